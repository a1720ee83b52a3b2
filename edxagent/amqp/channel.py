"""A channel as the rest of the program sees it: queues, consumers, settling, confirmed publishing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred, fail

from edxagent.amqp.confirms import Confirms
from edxagent.amqp.content import MAX_BODY, Content
from edxagent.amqp.delivery import Delivery
from edxagent.amqp.frames import METHOD, OVERHEAD, pack_content, pack_frame
from edxagent.amqp.methods import Deliver, encode_ack, encode_header, encode_nack, encode_publish
from edxagent.amqp.rpc import RPCChannel
from edxagent.errors import BrokerError, BrokerUnreachable, MessageRefused
from edxagent.model import Message


@frozen(kw_only=True)
class QueueInfo:
    """What the broker says of a queue: ``messages`` are the ready ones."""

    name: str
    messages: int
    consumers: int


@frozen(kw_only=True)
class _Consumer:
    queue: str
    receive: Callable[[Delivery], object]
    cancelled: Callable[[BrokerError], object]
    max_body: int


class Channel(RPCChannel):
    """A conversation with the broker. Made by ``Session.open_channel``.

    Every question has the deadline ``call_timeout``. Beyond the errors named below each method may raise

    :raises ChannelClosed: the broker closed the channel: 404 not found, 403 refused, 405 locked, 406 different.
    :raises BrokerUnreachable: the connection was lost, or the broker didn't answer in time; the channel is closed then.
    :raises MessageRefused: an argument that AMQP can't carry; nothing was sent.
    """

    def __init__(self, id: int, outgoing: object, client: Any) -> None:
        super().__init__(id, outgoing, client)
        self._consumers: dict[str, _Consumer] = {}
        self._consumer_count = 0
        self._starting: set[str] = set()
        self._confirms = Confirms()
        self._confirming = False
        self._held: deque[tuple[Message, bytes, Deferred[None]]] = deque()

    # Topology

    async def declare_exchange(self, name: str, kind: str, *, passive: bool = False) -> None:
        """Declare a durable exchange; ``passive`` only asks whether it is there."""
        await self.exchange_declare(exchange=name, type=kind, durable=True, passive=passive)

    async def declare_queue(
        self,
        name: str,
        *,
        durable: bool = True,
        exclusive: bool = False,
        auto_delete: bool = False,
        passive: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> QueueInfo:
        """Declare a queue; ``passive`` only asks whether it is there. An empty name lets the broker choose one."""
        reply = await self.queue_declare(
            queue=name,
            durable=durable,
            exclusive=exclusive,
            auto_delete=auto_delete,
            passive=passive,
            arguments=arguments or {},
        )
        return QueueInfo(name=reply.queue, messages=reply.message_count, consumers=reply.consumer_count)

    async def bind_queue(self, queue: str, exchange: str, routing_key: str) -> None:
        """Route what is published to ``exchange`` with ``routing_key`` to ``queue``; may be repeated."""
        await self.queue_bind(queue=queue, exchange=exchange, routing_key=routing_key)

    async def delete_queue(self, name: str) -> None:
        """Remove a queue with all that is in it; one that isn't there is no error."""
        await self.queue_delete(queue=name)

    # Taking

    async def consume(
        self,
        queue: str,
        receive: Callable[[Delivery], object],
        cancelled: Callable[[BrokerError], object],
        *,
        prefetch: int,
        max_body: int = MAX_BODY,
    ) -> str:
        """Start a consumer.

        :param receive: called with each delivery, as soon as it is complete.
        :param cancelled: called once if deliveries end and it wasn't by :meth:`cancel` or :meth:`close`: the queue was
            deleted, the channel or the connection went.
        :param prefetch: how many unsettled deliveries this consumer may hold; 0 = no limit.
        :param max_body: a larger body is thrown away while it arrives; see :attr:`Delivery.size`.
        :returns: the consumer's tag.
        """
        if not 0 <= prefetch < 1 << 16:
            raise ValueError("prefetch must be 0 to 65535")
        self._consumer_count += 1
        tag = f"{self.id}.{self._consumer_count}"
        self._consumers[tag] = _Consumer(queue=queue, receive=receive, cancelled=cancelled, max_body=max_body)
        self._starting.add(tag)
        asked = []
        try:
            # Asked in one go, so that no other consumer's prefetch can slip between them.
            asked.append(self.basic_qos(prefetch_count=prefetch))
            asked.append(self.basic_consume(queue=queue, consumer_tag=tag))
            for question in asked:
                await question
        except BaseException:
            self._consumers.pop(tag, None)
            for question in asked:
                question.addErrback(lambda _: None)
            raise
        finally:
            self._starting.discard(tag)
        return tag

    async def cancel(self, tag: str) -> None:
        """End a consumer. Deliveries that are on their way still reach ``receive``; afterwards none comes."""
        if tag not in self._consumers:
            return
        await self.basic_cancel(consumer_tag=tag)
        self._consumers.pop(tag, None)

    async def get(self, queue: str) -> Delivery | None:
        """Take one message, or ``None`` if the queue is empty."""
        reply = await self.basic_get(queue=queue)
        if reply.method.name == "get-empty":
            return None
        return self._delivery(queue, reply.content, reply)

    def ack(self, tag: int, multiple: bool = False) -> bool:
        """Settle a delivery, or (``multiple``) all up to it; false if the channel is gone."""
        return self._settle(encode_ack(tag, multiple))

    def nack(self, tag: int, requeue: bool = True) -> bool:
        """Give a delivery back to its queue, or (not ``requeue``) to its dead-letter exchange; false as for ack."""
        return self._settle(encode_nack(tag, requeue))

    # Publishing

    async def confirm_select(self) -> None:
        """Have the broker confirm publishes; needed once before :meth:`publish`."""
        await super().confirm_select()
        self._confirming = True

    def publish(self, message: Message) -> Deferred[None]:
        """Publish as mandatory. Fires when the broker has taken responsibility for the message.

        While the broker blocks publishers, or its connection can't take more, the message waits here; cancelling takes
        it out again. A message that was written can't be called back.

        Fails with ``Unroutable``, ``PublishFailed`` (the broker refused it), or as said for the class.
        """
        refusal = self.refusal()
        if refusal is not None:
            return fail(refusal)
        if not self._confirming:
            raise RuntimeError("confirm_select() comes before publish()")
        try:
            data = self._encode(message)
        except MessageRefused as error:
            return fail(error)
        if self.client.may_publish and not self._held:
            deferred: Deferred[None] = Deferred()
            self._confirms.published(message, deferred)
            self.client.write(data)
        else:
            deferred = Deferred(self._unhold)
            self._held.append((message, data, deferred))
        return deferred

    @property
    def unconfirmed(self) -> int:
        """How many publishes were written and not answered yet."""
        return len(self._confirms)

    def flush(self, last: bool = False) -> None:
        """Write what waited for the connection to take more; all of it when it is the ``last`` chance."""
        while self._held and (last or self.client.may_publish) and not self.closed:
            message, data, deferred = self._held.popleft()
            self._confirms.published(message, deferred)
            self.client.write(data)

    async def close(self) -> None:
        """Close the channel. Publishes without their confirm fail; unsettled deliveries go back to their queues."""
        self._closing = True
        with suppress(BrokerError):
            await self.leave(BrokerUnreachable("the channel was closed"))

    # What the broker sends

    def cancelled_by_broker(self, tag: str) -> None:
        """``basic.cancel``: the queue was deleted, or its node is gone."""
        consumer = self._consumers.pop(tag, None)
        if consumer is not None:
            self._guarded(consumer.cancelled, BrokerUnreachable(f"the broker ended the consumer of {consumer.queue!r}"))

    def returned_by_broker(self, reply: Any) -> None:
        """``basic.return``: nothing is bound for a message."""
        content = reply.content
        text = f"{reply.reply_code} {reply.reply_text}"
        if not self._confirms.returned(text, reply.exchange, reply.routing_key, content.properties, content.body):
            self._log.warn("A message came back to {broker} that wasn't sent from it.", broker=self.client)

    def _body_limit(self, content: Content) -> int:
        announced = content.announced
        if isinstance(announced, Deliver):
            consumer = self._consumers.get(announced.consumer_tag)
            return consumer.max_body if consumer else 0
        return MAX_BODY

    def _delivered(self, content: Content) -> None:
        announced = content.announced
        consumer = self._consumers.get(announced.consumer_tag)
        if consumer is None:
            self.nack(announced.delivery_tag)
        else:
            self._guarded(consumer.receive, self._delivery(consumer.queue, content, announced))

    def _delivery(self, queue: str, content: Content, announced: Any) -> Delivery:
        assert content.properties is not None
        return Delivery(
            channel=self,
            tag=announced.delivery_tag,
            queue=queue,
            body=content.body,
            size=content.size,
            properties=content.properties,
            redelivered=announced.redelivered,
            exchange=announced.exchange,
            routing_key=announced.routing_key,
        )

    def _confirmed(self, tag: int, multiple: bool, taken: bool) -> None:
        self._confirms.settle(tag, multiple, taken)

    def _ended(self, reason: BrokerError) -> None:
        held, self._held = self._held, deque()
        for _, _, deferred in held:
            deferred.errback(reason)
        self._confirms.fail_all(reason)
        consumers, self._consumers = self._consumers, {}
        for tag, consumer in consumers.items():
            # Who waits for consume() learns it there; who closed the channel knows.
            if tag not in self._starting and not self._closing:
                self._guarded(consumer.cancelled, reason)

    # Helpers

    def _settle(self, payload: bytes) -> bool:
        if self.refusal() is not None:
            return False
        self.client.write(pack_frame(METHOD, self.id, payload))
        return True

    def _encode(self, message: Message) -> bytes:
        max_payload = self.client.frame_max - OVERHEAD
        method = encode_publish(message.exchange, message.routing_key)
        header = encode_header(message.properties, len(message.body))
        if len(header) > max_payload:
            raise MessageRefused(f"the properties take {len(header)} bytes; the broker takes {max_payload}")
        return pack_content(self.id, method, header, message.body, max_payload)

    def _unhold(self, deferred: Deferred[None]) -> None:
        self._held = deque(entry for entry in self._held if entry[2] is not deferred)
