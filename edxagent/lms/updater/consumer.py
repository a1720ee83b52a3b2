"""A consumer of results on a channel of its own, which stays for those that it brought, also when no more may come."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from twisted.internet.defer import CancelledError, Deferred

from edxagent.amqp.channel import Channel
from edxagent.errors import BrokerError
from edxagent.interfaces import IDelivery


class Consumer:
    """See the module.

    :param receive: takes a result through its life; fires when that has ended.
    :ivar ended: fires when it should take no more: with the broker's reason, or with ``None`` if we want it so.
    """

    def __init__(self, channel: Channel, receive: Callable[[IDelivery], Deferred[None]]) -> None:
        self._channel = channel
        self._pass_on = receive
        self._tag = ""
        self.ended: Deferred[BrokerError | None] = Deferred()
        self._under_way = 0
        self._idle: Deferred[None] | None = None

    async def begin(self, queue: str, *, prefetch: int) -> None:
        """Have the broker send results, ``prefetch`` of them at once.

        :raises BrokerError: it won't, or can't.
        """
        try:
            self._tag = await self._channel.consume(queue, self._receive, self._end, prefetch=prefetch)
        except CancelledError:
            await self._channel.close()  # it may have begun there
            raise

    def end(self) -> None:
        """Take no more: :meth:`leave` follows."""
        self._end(None)

    async def cancel(self) -> None:
        """Returns when the broker will send no more.

        :raises BrokerError: it didn't agree; the channel is gone then.
        """
        await self._channel.cancel(self._tag)

    async def leave(self) -> None:
        """Take no more, and close the channel when everything that it brought is settled."""
        with suppress(BrokerError):
            await self.cancel()
        if self._under_way:
            self._idle = Deferred()
            await self._idle
        await self._channel.close()

    def _end(self, reason: BrokerError | None) -> None:
        if not self.ended.called:
            self.ended.callback(reason)

    def _receive(self, delivery: IDelivery) -> None:
        self._under_way += 1
        self._pass_on(delivery).addCallback(self._settled)

    def _settled(self, result: None) -> None:
        self._under_way -= 1
        if not self._under_way and self._idle is not None:
            idle, self._idle = self._idle, None
            idle.callback(None)
