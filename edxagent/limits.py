"""Slots and deadlines: how many submissions are graded at once, whose turn is next, and how long one may take."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, ensureDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from edxagent.errors import GraderCrashed, GraderTimedOut
from edxagent.interfaces import IGrader
from edxagent.model import GraderRequest, GraderResponse

LET_GO_WITHIN = 10.0
"""Seconds that a cancelled grader may take to let go of what it holds."""


@define(eq=False)
class _Waiter:
    """One who waits for a token; ``alone``, for one while nobody else holds any."""

    alone: bool
    granted: Deferred[None] = field(init=False)


@define(eq=False)
class _Lane:
    """A queue's place in the turn: ``spent`` grows by 1 / weight with each turn that it has."""

    weight: int
    spent: float = 0.0
    waiting: deque[_Waiter] = field(factory=deque)


class FairSlots:
    """A ``DeferredSemaphore`` whose free tokens go to the queues by weight instead of first come, first served.

    Each token goes to the waiting queue that has had least for its weight (stride scheduling). A queue that had nothing
    waiting can't save up its turns: it comes back at most one round behind the others.

    Whoever wants a token *alone* waits for a turn like the others. Then nobody else is given one until those that are
    held have come back, the lone one has been granted, and it has come back too.

    :param count: the number of tokens.
    :param weights: queue name → its weight, from 1; a queue that isn't named weighs 1.
    """

    def __init__(self, count: int, weights: Mapping[str, int]) -> None:
        # Nobody ever waits in it: who gets a token is decided only when there is one.
        self._semaphore = DeferredSemaphore(count)
        self._count = count
        self._lanes = {queue: _Lane(weight) for queue, weight in weights.items()}
        self._round = 0.0
        self._waiting = 0
        self._next: _Waiter | None = None
        self._held_alone = False
        self._serving = False

    @property
    def free(self) -> int:
        """How many tokens one who asks may have at once: none while one is held alone, or about to be."""
        return 0 if self._held_alone or self._next else self._semaphore.tokens

    @property
    def busy(self) -> int:
        """How many tokens are held."""
        return self._semaphore.limit - self._semaphore.tokens

    @property
    def waiting(self) -> int:
        """How many wait for a token."""
        return self._waiting

    def acquire(self, queue: str, alone: bool = False) -> Deferred[None]:
        """Wait for a token; cancelling gives the place up.

        :param alone: for one that is held while no other is.
        """
        lane = self._lanes.setdefault(queue, _Lane(1))
        waiter = _Waiter(alone)
        waiter.granted = Deferred(lambda _: self._give_up(lane, waiter))
        lane.waiting.append(waiter)
        self._waiting += 1
        self._serve()
        return waiter.granted

    def release(self) -> None:
        """Give a token back."""
        self._held_alone = False
        self._semaphore.release()
        self._fit()
        self._serve()

    def hand_over(self, queue: str) -> None:
        """Give a token back so that the last of ``queue``'s that waits for one gets it, out of turn.

        One that wants it alone has its turn then, but gets it only when no other is held.
        """
        lane = self._lanes.get(queue)
        if lane is not None and lane.waiting and not self._held_alone:
            waiter = lane.waiting[-1]
            if not waiter.alone or self.busy == 1:
                lane.waiting.pop()
                self._grant(waiter)
                return
            if self._next is None:
                self._next = lane.waiting.pop()
        self.release()

    def resize(self, count: int) -> None:
        """Have ``count`` tokens, from 1, as soon as no more than that are held; none is taken from its holder."""
        self._count = count
        self._fit()
        self._serve()

    def reweigh(self, weights: Mapping[str, int]) -> None:
        """Go by other weights from now on; who waits keeps the place."""
        kept = {queue: lane for queue, lane in self._lanes.items() if queue in weights or lane.waiting}
        self._lanes = {queue: kept.get(queue) or _Lane(1) for queue in (*kept, *weights)}
        for queue, lane in self._lanes.items():
            lane.weight = weights.get(queue, 1)

    def _fit(self) -> None:
        semaphore = self._semaphore
        while semaphore.limit < self._count:
            semaphore.limit += 1
            semaphore.release()
        while semaphore.limit > self._count and semaphore.tokens:
            semaphore.tokens -= 1
            semaphore.limit -= 1

    def _serve(self) -> None:
        if self._serving:
            return  # who is granted a token may give it back at once: hundreds in a row would overflow the stack
        self._serving = True
        while (waiter := self._due()) is not None:
            self._semaphore.acquire()
            self._grant(waiter)
        self._serving = False

    def _due(self) -> _Waiter | None:
        """Take out of the line whoever may have a token now."""
        if self._held_alone or not self._semaphore.tokens or not self._waiting:
            return None
        waiter = self._next = self._next or self._take_turn()
        if waiter.alone and self.busy:
            return None
        self._next = None
        return waiter

    def _take_turn(self) -> _Waiter:
        lane = min((lane for lane in self._lanes.values() if lane.waiting), key=lambda lane: lane.spent)
        self._round = max(self._round, lane.spent)
        lane.spent = max(lane.spent, self._round - 1) + 1 / lane.weight
        return lane.waiting.popleft()

    def _grant(self, waiter: _Waiter) -> None:
        self._waiting -= 1
        self._held_alone = waiter.alone
        waiter.granted.callback(None)

    def _give_up(self, lane: _Lane, waiter: _Waiter) -> None:
        if waiter is self._next:
            self._next = None
        else:
            lane.waiting.remove(waiter)
        self._waiting -= 1
        self._serve()


class _Work(Deferred[GraderResponse]):
    """What a grader is doing; knows whether somebody cancelled it. Cancelled, it ends when the grader has let go."""

    def __init__(self, work: Deferred[GraderResponse]) -> None:
        super().__init__()
        self.cancelled = False
        self._work = work
        work.addCallbacks(self._answered, self._failed)

    def cancel(self) -> None:
        """See ``Deferred``."""
        self.cancelled = True
        self._work.cancel()

    def leave(self) -> None:
        """End without the grader, if it hasn't let go."""
        if not self.called:
            self.errback(CancelledError())

    def _answered(self, response: GraderResponse) -> None:
        if not self.called:
            self.callback(response)

    def _failed(self, failure: Failure) -> None:
        if not self.called:
            self.errback(failure)


@implementer(IGrader)
class DeadlineGrader:
    """Any grader, cancelled when a submission takes longer than ``timeout`` seconds.

    One that hasn't let go :data:`LET_GO_WITHIN` later is cancelled once more and then left to itself: its submission
    has to have an end.
    """

    _log = Logger()

    def __init__(self, grader: IGrader, timeout: float, clock: IReactorTime) -> None:
        self._grader = grader
        self._timeout = timeout
        self._clock = clock

    async def grade(self, request: GraderRequest) -> GraderResponse:
        """See :meth:`edxagent.interfaces.IGrader.grade`.

        :raises GraderTimedOut: the time was over.
        :raises CancelledError: the caller cancelled, whatever the grader made of it; and only then.
        """
        work = _Work(ensureDeferred(self._grader.grade(request)))
        late = ""
        timers: list[IDelayedCall] = []

        def expire() -> None:
            nonlocal late
            late = f"no verdict within {self._timeout:g} s"
            timers.append(self._clock.callLater(LET_GO_WITHIN, leave))
            work.cancel()

        def leave() -> None:
            nonlocal late
            work.cancel()
            if not work.called:
                late = f"{late}, and the grader goes on though it was cancelled"
                self._log.error(
                    "{submission}: the grader goes on though it was cancelled {seconds:g} s ago; it is left to itself, "
                    "with all that it holds: mend it",
                    submission=request.submission,
                    seconds=LET_GO_WITHIN,
                )
                work.leave()

        timers.append(self._clock.callLater(self._timeout, expire))
        try:
            return await work
        except Exception as error:
            if late:
                raise GraderTimedOut(late) from None
            if work.cancelled:
                raise CancelledError from None
            if isinstance(error, CancelledError):
                # Taken for the caller's, it would send the submission back to its queue, to be graded so for ever.
                raise GraderCrashed("the grader cancelled its own work") from None
            raise
        finally:
            for timer in timers:
                if timer.active():
                    timer.cancel()
