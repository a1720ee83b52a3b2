"""A broker in memory: queues, consumers with a prefetch, acks, returns and confirms, on a clock that tests turn.

Everything takes ``latency`` seconds each way and keeps its order, as on a connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

from attrs import define, evolve, field
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from edxagent.errors import BrokerError, BrokerUnreachable, ChannelClosed, Unroutable
from edxagent.interfaces import IDelivery, IPublisher
from edxagent.model import REQUESTS_EXCHANGE, Message, Properties


@define(eq=False)
class _Stored:
    body: bytes
    properties: Properties
    deliveries: int = 0


@define(eq=False)
class _Consumer:
    tag: str
    receive: Callable[[IDelivery], None]
    ended: Callable[[BrokerError], None]
    prefetch: int
    unsettled: int = 0


@define(eq=False)
class _Queue:
    name: str
    deleted: bool = False
    ready: deque[_Stored] = field(factory=deque)
    consumers: deque[_Consumer] = field(factory=deque)
    unsettled: int = 0
    acked: int = 0
    returned: int = 0
    gets: int = 0
    started_consumers: int = 0


class MemoryBroker:
    """Queues by name. What is published to ``grading.requests`` or the default exchange goes to the queue of that name;
    what goes anywhere else must be bound by :meth:`bind`.

    :param latency: seconds that a word takes to the broker, and its answer back.
    """

    def __init__(self, clock: IReactorTime, latency: float = 0.001) -> None:
        self.clock = clock
        self.latency = latency
        self._queues: dict[str, _Queue] = {}
        self._bindings: dict[tuple[str, str], str] = {}
        self._tags = count(1)

    def declare(self, *names: str) -> None:
        """Make queues."""
        for name in names:
            self._queues.setdefault(name, _Queue(name))

    def bind(self, exchange: str, routing_key: str, queue: str) -> None:
        """Route to ``queue``, which is made if it isn't there."""
        self.declare(queue)
        self._bindings[exchange, routing_key] = queue

    def __getitem__(self, name: str) -> _Queue:
        return self._queues[name]

    def __contains__(self, name: object) -> bool:
        return name in self._queues

    def bodies(self, name: str) -> list[bytes]:
        """What is ready in a queue."""
        return [stored.body for stored in self._queues[name].ready]

    def messages(self, name: str) -> list[tuple[bytes, Properties]]:
        """What is ready in a queue, with its properties."""
        return [(stored.body, stored.properties) for stored in self._queues[name].ready]

    def put(self, name: str, *bodies: bytes, properties: Properties | None = None) -> None:
        """Put messages into a queue, at once."""
        queue = self._queues[name]
        queue.ready.extend(_Stored(body, properties or Properties()) for body in bodies)
        self._hand_out(queue)

    def delete(self, name: str) -> None:
        """Delete a queue: its consumers are told."""
        queue = self._queues.pop(name)
        consumers, queue.consumers = queue.consumers, deque()
        queue.ready.clear()
        queue.deleted = True
        for consumer in consumers:
            self._later(consumer.ended, BrokerUnreachable(f"the broker ended the consumer of {name!r}"))

    def port(self, name: str) -> MemoryPort:
        """A channel that serves one queue."""
        return MemoryPort(self, name)

    def route(self, message: Message) -> None:
        """Take a message.

        :raises Unroutable: there is no queue for it.
        """
        direct = message.exchange in ("", REQUESTS_EXCHANGE)
        name = message.routing_key if direct else self._bindings.get((message.exchange, message.routing_key))
        if name is None or name not in self._queues:
            raise Unroutable(f"no queue is bound to {message.exchange} with key {message.routing_key}")
        self.put(name, message.body, properties=message.properties)

    def _later(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.clock.callLater(self.latency, call, *arguments)

    def _ask(self, answer: Callable[[], Any]) -> Deferred[Any]:
        """``answer`` runs at the broker; the Deferred fires back here."""
        asked: Deferred[Any] = Deferred()

        def run() -> None:
            try:
                result = answer()
            except BrokerError as error:
                self._later(asked.errback, error)
            else:
                self._later(asked.callback, result)

        self._later(run)
        return asked

    def _hand_out(self, queue: _Queue) -> None:
        while queue.ready:
            for _ in range(len(queue.consumers)):
                consumer = queue.consumers[0]
                queue.consumers.rotate(-1)
                if consumer.unsettled < consumer.prefetch:
                    break
            else:
                return
            consumer.unsettled += 1
            self._later(consumer.receive, self._delivery(queue, queue.ready.popleft(), consumer))

    def _delivery(self, queue: _Queue, stored: _Stored, consumer: _Consumer | None) -> MemoryDelivery:
        queue.unsettled += 1
        delivery = MemoryDelivery(self, queue.name, stored)

        def settle(requeue: bool) -> None:
            queue.unsettled -= 1
            if consumer is not None:
                consumer.unsettled -= 1
            if requeue and not queue.deleted:
                stored.deliveries += 1
                queue.returned += 1
                queue.ready.appendleft(stored)
            else:
                queue.acked += 1
            self._hand_out(queue)

        delivery.settle = settle
        return delivery


class MemoryPort:
    """One queue's consumers and gets, with one request a consumer, as the agent's lanes use a channel."""

    def __init__(self, broker: MemoryBroker, name: str) -> None:
        self._broker = broker
        self._name = name
        self.closed = False

    async def consume(self, receive: Callable[[IDelivery], None], ended: Callable[[BrokerError], None]) -> str:
        """Begin to consume; returns the tag."""
        consumer = _Consumer(str(next(self._broker._tags)), receive, ended, prefetch=1)

        def start() -> None:
            queue = self._queue()
            queue.consumers.append(consumer)
            queue.started_consumers += 1
            self._broker._later(self._broker._hand_out, queue)

        await self._broker._ask(start)
        return consumer.tag

    async def cancel(self, tag: str) -> None:
        """End a consumer; what it holds stays unsettled."""

        def stop() -> None:
            queue = self._queue()
            queue.consumers = deque(consumer for consumer in queue.consumers if consumer.tag != tag)

        await self._broker._ask(stop)

    async def get(self) -> IDelivery | None:
        """The next request, if there is one."""

        def take() -> IDelivery | None:
            queue = self._queue()
            queue.gets += 1
            return self._broker._delivery(queue, queue.ready.popleft(), None) if queue.ready else None

        delivery: IDelivery | None = await self._broker._ask(take)
        return delivery

    async def close(self) -> None:
        """Give the channel up."""
        self.closed = True

    def _queue(self) -> _Queue:
        try:
            return self._broker[self._name]
        except KeyError:
            raise ChannelClosed(404, f"NOT_FOUND - no queue '{self._name}'") from None


@implementer(IDelivery)
class MemoryDelivery:
    """A delivery from a :class:`MemoryBroker`. ``lost`` makes its connection go."""

    settle: Callable[[bool], None]

    def __init__(self, broker: MemoryBroker, queue: str, stored: _Stored) -> None:
        self._broker = broker
        self.queue: str = queue
        self.body: bytes = stored.body
        headers = dict(stored.properties.headers)
        if stored.deliveries:
            headers["x-delivery-count"] = stored.deliveries
        self.properties: Properties = evolve(stored.properties, headers=headers)
        self.redelivered: bool = stored.deliveries > 0
        self.settled: str | None = None
        self.lost = False

    def ack(self) -> bool:
        """See :meth:`IDelivery.ack`."""
        return self._settle("ack", False)

    def requeue(self) -> bool:
        """See :meth:`IDelivery.requeue`."""
        return self._settle("requeue", True)

    def _settle(self, how: str, requeue: bool) -> bool:
        if self.settled:
            raise RuntimeError("a delivery can be settled only once")
        self.settled = how
        if self.lost:
            return False
        self._broker._later(self.settle, requeue)
        return True


@implementer(IPublisher)
class MemoryPublisher:
    """Publishes into a :class:`MemoryBroker`; ``failures`` are raised first, one a publish."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self.failures: list[Exception] = []
        self.published: list[Message] = []

    def publish(self, message: Message) -> Deferred[None]:
        """See :meth:`IPublisher.publish`."""
        if self.failures:
            return fail(self.failures.pop(0))

        def take() -> None:
            self._broker.route(message)
            self.published.append(message)

        return self._broker._ask(take)
