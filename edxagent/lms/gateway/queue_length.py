"""How many submissions wait in a queue: asked of the broker over a channel that is kept for it."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.defer import TimeoutError as TimeIsOver
from twisted.logger import Logger

from edxagent.amqp.channel import Channel
from edxagent.amqp.link import BrokerLink
from edxagent.amqp.session import Session
from edxagent.errors import BrokerError

MOST_WAITING = 50
"""Who comes when so many wait isn't told: each goes on from within the one before, and the stack is finite."""


class QueueLengths:
    """Asks.

    :param within: seconds; who asks has somebody waiting.
    """

    _log = Logger()

    def __init__(self, link: BrokerLink, within: float) -> None:
        self._link = link
        self._within = within
        self._one_by_one = DeferredLock()
        self._session: Session | None = None
        self._channel: Channel | None = None

    async def of(self, queue: str) -> int | None:
        """The number of ready messages, or ``None`` if that can't be found out in time."""
        if len(self._one_by_one.waiting) >= MOST_WAITING:
            return None
        asking = Deferred.fromCoroutine(self._ask(queue)).addTimeout(self._within, self._link.reactor)
        try:
            return await asking
        except (BrokerError, TimeIsOver, CancelledError) as error:
            self._log.debug("the length of {queue} isn't known: {reason}", queue=queue, reason=str(error))
            return None

    async def _ask(self, queue: str) -> int | None:
        await self._one_by_one.acquire()
        try:
            session = self._link.session
            if session is None:
                return None
            if self._channel is None or self._channel.closed or session is not self._session:
                self._session, self._channel = session, await session.open_channel()
            return (await self._channel.declare_queue(queue, passive=True)).messages
        finally:
            self._one_by_one.release()
