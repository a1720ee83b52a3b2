"""A dead-letter queue in the hands of a command: read without harm, and emptied so that nothing is lost or doubled.

What is read is ours until the channel closes, and then lies there again. Each time the broker counts that as a return,
and drops a letter that was returned too often; so those that were returned often are put there anew.

Everything goes over one channel, one letter after the other: published, confirmed, acked. The broker sees the ack
before the next publish; so whoever is killed here leaves one duplicate at most.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as WaitedLongEnough

from edxagent.agent.returns import returned_often
from edxagent.amqp.channel import Channel
from edxagent.amqp.delivery import Delivery
from edxagent.amqp.session import Session
from edxagent.cli.broker import ChannelPublisher, connected
from edxagent.config.values import BrokerConfig
from edxagent.errors import BrokerError, BrokerRefused, BrokerUnreachable, ChannelClosed
from edxagent.model import Message, dead_queue_of
from edxagent.wire.request import requeued_request

FIRST_PAGE = 16
LARGEST_PAGE = 1000
MOST_BYTES = 64 * 1024 * 1024
"""What the letters that wait here for their turn may take, as far as one can tell from those before them."""
QUIET = 0.5
"""Seconds without a letter, after which the broker is asked whether there are more."""
MOST_SILENCES = 40
"""After so many in a row it is given up, though there are more."""


class DeadQueue:
    """The letters that lay there when it was opened.

    :ivar queue: the queue that they were for.
    """

    def __init__(self, queue: str, ready: int, channel: Channel, publisher: ChannelPublisher, clock: Any) -> None:
        self.queue = queue
        self._name = dead_queue_of(queue)
        self._channel = channel
        self._publisher = publisher
        self._clock = clock
        self._left = ready
        self._page = FIRST_PAGE
        self._largest = 1
        self._credit = 0
        self._silences = 0
        self._arrived: deque[Delivery] = deque()
        self._waiter: Deferred[None] = Deferred()
        self._failure: BrokerError | None = None

    async def next(self) -> Delivery | None:
        """The next one, or ``None`` when all were read. Those that were returned often come first.

        :raises BrokerError: the connection or the queue is gone.
        """
        if not self._left:
            return None
        while not self._arrived:
            if self._failure is not None:
                raise self._failure
            if not self._credit:
                await self._ask_for_more()
            elif not await self._comes() and not await self._are_more():
                return None  # somebody else took the rest
        self._left -= 1
        return self._arrived.popleft()

    async def keep(self, delivery: Delivery) -> None:
        """Leave it there."""
        if returned_often(delivery):
            await self.move(delivery, requeued_request(self._name, delivery.body, delivery.properties))

    async def move(self, delivery: Delivery, message: Message) -> None:
        """Publish it as ``message``, and take it out of here when the broker has that.

        Cancelling takes effect when that is done: a duplicate would be left otherwise.

        :raises BrokerError: it lies there still; it may have been published as well.
        """
        heard: Deferred[None] = Deferred()
        moved: Deferred[None] = Deferred()

        def tell(result: Any) -> None:
            heard.callback(None)
            moved.callback(result)

        Deferred.fromCoroutine(self._move(delivery, message)).addBoth(tell)
        try:
            await heard
        finally:
            await moved

    def drop(self, delivery: Delivery) -> None:
        """Take it out of here, for good."""
        delivery.ack()
        self._credit += 1

    @property
    def may_stop(self) -> bool:
        """Whether one may stop reading here: no letter is in our hands that wants to be put there anew."""
        return not (self._arrived and returned_often(self._arrived[0]))

    async def _move(self, delivery: Delivery, message: Message) -> None:
        await self._publisher.publish(message)
        self.drop(delivery)

    async def _ask_for_more(self) -> None:
        """A further consumer: what we keep in hand uses up a consumer's prefetch, which can't be raised."""
        page = max(1, min(self._page, self._left, MOST_BYTES // self._largest))
        self._page = min(self._page * 2, LARGEST_PAGE)
        self._credit += page
        await self._channel.consume(self._name, self._receive, self._ended, prefetch=page)

    async def _comes(self) -> bool:
        """Wait a little for a letter."""
        self._waiter = Deferred()
        try:
            await self._waiter.addTimeout(QUIET, self._clock)
        except WaitedLongEnough:
            self._silences += 1
            return False
        self._silences = 0
        return True

    async def _are_more(self) -> bool:
        ready = (await self._channel.declare_queue(self._name, passive=True)).messages
        if ready and self._silences >= MOST_SILENCES:
            raise BrokerUnreachable(f"the broker hands out none of the {ready} letters in {self._name!r}; try again")
        return bool(ready or self._arrived)

    def _receive(self, delivery: Delivery) -> None:
        self._credit -= 1
        self._largest = max(self._largest, delivery.size)
        if returned_often(delivery):
            self._arrived.appendleft(delivery)
        else:
            self._arrived.append(delivery)
        self._wake()

    def _ended(self, reason: BrokerError) -> None:
        self._failure = reason
        self._wake()

    def _wake(self) -> None:
        if not self._waiter.called:
            self._waiter.callback(None)


class Sweep:
    """Goes through the dead letters of some queues.

    :param purpose: shown in the broker's list of connections.
    """

    def __init__(self, reactor: Any, config: BrokerConfig, purpose: str) -> None:
        self._reactor = reactor
        self._config = config
        self._purpose = purpose

    async def run(
        self,
        queues: Iterable[str],
        settle: Callable[[DeadQueue, Delivery], Awaitable[None]],
        *,
        must_exist: bool,
        enough: Callable[[], bool] = lambda: False,
    ) -> None:
        """Call ``settle`` with each letter, and wait for it, until it is enough.

        :param must_exist: whether it is an error that a queue has none for dead letters.
        :raises BrokerError: the broker can't be reached, was lost or refused something.
        """
        async with connected(self._reactor, self._config, self._purpose) as session:
            for queue in queues:
                channel = await session.open_channel()
                letters = await self._open(session, channel, queue)
                if letters is not None:
                    while not (enough() and letters.may_stop) and (delivery := await letters.next()) is not None:
                        await settle(letters, delivery)
                elif must_exist:
                    raise BrokerRefused(f"{session.address}: there is no queue {dead_queue_of(queue)!r}")
                else:
                    print(f"edxagent: there is no queue {dead_queue_of(queue)!r}", file=sys.stderr)
                await channel.close()

    async def _open(self, session: Session, channel: Channel, queue: str) -> DeadQueue | None:
        try:
            ready = (await channel.declare_queue(dead_queue_of(queue), passive=True)).messages
        except ChannelClosed as closed:
            if closed.code == 404:
                return None
            raise
        await channel.confirm_select()
        publisher = ChannelPublisher(channel, session.address, self._config.confirm_timeout, self._reactor)
        return DeadQueue(queue, ready, channel, publisher, self._reactor)
