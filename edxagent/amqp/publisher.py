"""Publishing so that we know: over whatever session the link has, confirmed, bounded, with a deadline."""

from __future__ import annotations

from collections import deque
from contextlib import suppress

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from zope.interface import implementer

from edxagent.amqp.channel import Channel
from edxagent.amqp.link import BrokerLink, Session
from edxagent.errors import BrokerError, BrokerUnreachable, ChannelClosed, PublishFailed, Unroutable
from edxagent.interfaces import IPublisher
from edxagent.model import Message
from edxagent.tasks import Tasks


@define(eq=False)
class _Lane:
    """A channel in confirm mode, and how many publishes of ours are on it."""

    session: Session
    channel: Channel
    under_way: int = 0


class _Turns:
    """A bound on what is under way.

    ``DeferredSemaphore`` hands a token on by a nested call: a thousand waiters that fail at once overflow the stack.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[Deferred[None]] = deque()
        self._handing_out = False

    def take(self) -> Deferred[None]:
        """Wait for a turn; cancelling gives the place up."""
        waiter: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        self._hand_out()
        return waiter

    def give_back(self) -> None:
        """The turn is over."""
        self._free += 1
        self._hand_out()

    def _hand_out(self) -> None:
        if self._handing_out:
            return
        self._handing_out = True
        while self._free and self._waiting:
            self._free -= 1
            self._waiting.popleft().callback(None)
        self._handing_out = False


@implementer(IPublisher)
class ConfirmingPublisher:
    """See :class:`edxagent.interfaces.IPublisher`.

    After a refusal or a missing confirm the next publish goes over a new channel: one whose first publish met a quorum
    queue without a leader is refused for ever.

    :param link: needs no preparation of its sessions.
    :param most: how many publishes may be under way; more wait.
    :param timeout: seconds for everything; ``None`` = the link's ``confirm_timeout``.
    """

    def __init__(self, link: BrokerLink, *, most: int = 1000, timeout: float | None = None) -> None:
        self._link = link
        self._timeout = link.config.confirm_timeout if timeout is None else timeout
        self._turns = _Turns(most)
        self._lane: _Lane | None = None
        self._opening = False
        self._lane_waiters: list[Deferred[None]] = []
        self._tasks = Tasks()

    async def publish(self, message: Message) -> None:
        """See :meth:`IPublisher.publish`."""
        publishing = Deferred.fromCoroutine(self._publish(message))
        publishing.addTimeout(self._timeout, self._link.reactor)
        try:
            await publishing
        except DeferredTimeout:
            raise self._overdue() from None

    async def _publish(self, message: Message) -> None:
        await self._turns.take()
        try:
            lane = await self._ready_lane()
            lane.under_way += 1
            try:
                await lane.channel.publish(message)
            except ChannelClosed as closed:
                raise _explain(closed, message) from None
            except Unroutable:
                raise
            except Exception:
                self._retire(lane)
                raise
            finally:
                lane.under_way -= 1
                self._close_if_done(lane)
        finally:
            self._turns.give_back()

    async def _ready_lane(self) -> _Lane:
        while True:
            session = await self._link.when_up()
            lane = self._lane
            if lane is not None and lane.session is session and not lane.channel.closed:
                return lane
            try:
                await self._lane_opened(session)
            except BrokerError:
                # Nothing was sent: if there is a newer session already, or soon, it will do.
                if session is self._link.session:
                    raise

    def _lane_opened(self, session: Session) -> Deferred[None]:
        """Fires when a lane was opened; all who need one wait for the same."""
        waiter: Deferred[None] = Deferred(lambda _: None)
        self._lane_waiters.append(waiter)
        if not self._opening:
            self._opening = True
            self._tasks.launch(self._open(session), "opening a channel to publish on")
        return waiter

    async def _open(self, session: Session) -> None:
        problem: BrokerError | None = None
        try:
            self._lane = await _open_lane(session)
        except BrokerError as error:
            problem = error
        except Exception:
            problem = BrokerUnreachable(f"{session.address}: no channel could be opened")
            raise
        finally:
            self._opening = False
            waiters, self._lane_waiters = self._lane_waiters, []
            for waiter in waiters:
                if not waiter.called:
                    waiter.callback(None) if problem is None else waiter.errback(problem)

    def _overdue(self) -> BrokerError:
        session = self._link.session
        if session is None:
            return BrokerUnreachable(f"{self._link.label}: no connection to a broker within {self._timeout:g} s")
        if session.blocked is not None:
            return PublishFailed(f"{session.address}: the broker takes no messages: {session.blocked}")
        return PublishFailed(f"{session.address}: the broker didn't confirm a message within {self._timeout:g} s")

    def _retire(self, lane: _Lane) -> None:
        """Publish nothing more on this channel, but let the others on it hear from the broker."""
        # While the broker blocks us it wouldn't open another one, and the silence isn't the channel's fault.
        if self._lane is lane and lane.session.blocked is None:
            self._lane = None

    def _close_if_done(self, lane: _Lane) -> None:
        if lane is not self._lane and not lane.under_way and not lane.channel.closed:
            self._tasks.launch(lane.channel.close(), "closing a channel")


async def _open_lane(session: Session) -> _Lane:
    channel = await session.open_channel()
    try:
        await channel.confirm_select()
    except BaseException:
        with suppress(BrokerError):
            await channel.close()
        raise
    return _Lane(session=session, channel=channel)


def _explain(closed: ChannelClosed, message: Message) -> PublishFailed:
    if closed.code == 404 and f"'{message.exchange}'" in closed.text:
        return Unroutable(f"there is no exchange {message.exchange!r} on the broker; declare it, or set declare = yes")
    return PublishFailed(f"publishing to {message.exchange!r} failed: {closed}")
