"""Takes requests from queues one by one, each on a channel of its own for as long as it is out.

A broker that runs out of patience with one request (RabbitMQ's ``consumer_timeout``) closes its channel, and so takes
back that one and no other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from twisted.internet.defer import Deferred
from zope.interface import implementer

from edxagent.amqp.channel import QueueInfo
from edxagent.errors import BrokerError, BrokerUnreachable, ChannelClosed, EdxagentError
from edxagent.interfaces import IDelivery
from edxagent.model import Properties
from edxagent.tasks import Tasks

MOST_IDLE = 16
"""Channels that are kept open for the next grader that asks."""


class AllOut(EdxagentError):
    """As many requests are out as may be. *Ask again later.*"""


class GettingChannel(Protocol):
    """The part of a channel that is needed here."""

    @property
    def closed(self) -> bool:
        """Whether it can't be used any more."""

    async def get(self, queue: str) -> IDelivery | None:
        """Take one message."""

    async def declare_queue(self, name: str, *, passive: bool) -> QueueInfo:
        """Ask for a queue."""

    async def close(self) -> None:
        """Close it."""

    def when_closed(self) -> Deferred[BrokerError]:
        """Fires when it can't be used any more."""


@implementer(IDelivery)
class Taken:
    """A request with its channel. See :class:`edxagent.interfaces.IDelivery`.

    :ivar on_lost: is called if the broker takes the request back before it is settled.
    """

    def __init__(self, delivery: IDelivery, channel: GettingChannel, free: Callable[[GettingChannel], None]) -> None:
        self._delivery = delivery
        self._channel = channel
        self._free = free
        self.queue: str = delivery.queue
        self.body: bytes = delivery.body
        self.properties: Properties = delivery.properties
        self.redelivered: bool = delivery.redelivered
        self.on_lost: Callable[[], object] = lambda: None

    def ack(self) -> bool:
        """See :meth:`IDelivery.ack`."""
        settled = self._delivery.ack()
        self._free(self._channel)
        return settled

    def requeue(self) -> bool:
        """See :meth:`IDelivery.requeue`."""
        settled = self._delivery.requeue()
        self._free(self._channel)
        return settled


class Channels:
    """The channels.

    :param open_channel: opens one.
    :param missing: is awaited when the broker doesn't know a queue (any more); may make it.
    :ivar most: requests that may be out at once.
    """

    def __init__(
        self,
        *,
        open_channel: Callable[[], Awaitable[GettingChannel]],
        missing: Callable[[str], Awaitable[None]],
        most: int,
    ) -> None:
        self._open_channel = open_channel
        self._missing = missing
        self.most = most
        self._taking = 0
        self._out: dict[GettingChannel, Taken] = {}
        self._idle: list[GettingChannel] = []
        self._closing = Tasks()

    async def take(self, queue: str) -> Taken | None:
        """Take a request, or ``None`` if there is none. Cancelling leaves it in its queue.

        :raises AllOut: others have to be settled first.
        :raises BrokerError: the broker can't be asked, or refuses.
        """
        if self._taking + len(self._out) >= self.most:
            raise AllOut(f"{self.most} submissions are out with graders")
        self._taking += 1
        try:
            channel = await self._ready()
            delivery = await channel.get(queue)
        except ChannelClosed as closed:
            await self._explained(closed, queue)
            return None
        finally:
            self._taking -= 1
        if delivery is None:
            self._rest(channel)
            return None
        taken = Taken(delivery, channel, self._free)
        self._out[channel] = taken
        return taken

    async def waiting(self, queue: str) -> int:
        """How many requests a queue has ready; raises :class:`BrokerError` as :meth:`take` does."""
        channel = await self._ready()
        try:
            info = await channel.declare_queue(queue, passive=True)
        except ChannelClosed as closed:
            await self._explained(closed, queue)
            return 0
        self._rest(channel)
        return info.messages

    async def close(self) -> None:
        """Returns when no channel is being closed any more; those that are open go with their connection."""
        await self._closing.when_idle()

    async def _ready(self) -> GettingChannel:
        while self._idle:
            channel = self._idle.pop()
            if not channel.closed:
                return channel
        channel = await self._open_channel()
        channel.when_closed().addCallback(lambda _: self._lost(channel))
        return channel

    async def _explained(self, closed: ChannelClosed, queue: str) -> None:
        if closed.code != 404:
            raise BrokerUnreachable(f"{queue}: {closed}") from None
        await self._missing(queue)

    def _free(self, channel: GettingChannel) -> None:
        if self._out.pop(channel, None) is not None:
            self._rest(channel)

    def _rest(self, channel: GettingChannel) -> None:
        if channel.closed:
            return
        if len(self._idle) < MOST_IDLE:
            self._idle.append(channel)
        else:
            self._closing.launch(channel.close(), "closing a channel")

    def _lost(self, channel: GettingChannel) -> None:
        taken = self._out.pop(channel, None)
        if taken is not None:
            taken.on_lost()
