"""Slots and deadlines: how many submissions are graded at once, whose turn is next, and how long one may take."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, ensureDeferred
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from edxagent.errors import GraderCrashed, GraderTimedOut
from edxagent.interfaces import IGrader
from edxagent.model import GraderRequest, GraderResponse


@define
class _Lane:
    """A queue's place in the turn: ``spent`` grows by 1 / weight with each slot that it gets."""

    weight: int
    spent: float = 0.0
    waiting: deque[Deferred[None]] = field(factory=deque)


class FairSlots:
    """A ``DeferredSemaphore`` whose free tokens go to the queues by weight instead of first come, first served.

    Each token goes to the waiting queue that has had least for its weight (stride scheduling). A queue that had nothing
    waiting can't save up its turns: it comes back at most one round behind the others.

    :param count: the number of tokens.
    :param weights: queue name → its weight, from 1; a queue that isn't named weighs 1.
    """

    def __init__(self, count: int, weights: Mapping[str, int]) -> None:
        self._semaphore = DeferredSemaphore(count)
        self._claims: deque[Deferred[DeferredSemaphore]] = deque()
        self._lanes = {queue: _Lane(weight) for queue, weight in weights.items()}
        self._round = 0.0

    @property
    def free(self) -> int:
        """How many tokens nobody holds."""
        return int(self._semaphore.tokens)

    @property
    def busy(self) -> int:
        """How many tokens are held."""
        return int(self._semaphore.limit - self._semaphore.tokens)

    @property
    def waiting(self) -> int:
        """How many wait for a token."""
        return len(self._claims)

    def acquire(self, queue: str) -> Deferred[None]:
        """Wait for a token; cancelling gives the place up."""
        lane = self._lanes.setdefault(queue, _Lane(1))
        waiter: Deferred[None] = Deferred(lambda waiter: self._give_up(lane, waiter))
        lane.waiting.append(waiter)
        # A claim on the semaphore is anonymous: who gets the token is decided only when there is one.
        claim = self._semaphore.acquire()
        if claim.called:
            self._grant()
        else:
            self._claims.append(claim)
            claim.addCallback(self._grant_claim)
            claim.addErrback(lambda failure: failure.trap(CancelledError) and None)
        return waiter

    def release(self) -> None:
        """Give a token back."""
        self._semaphore.release()

    def hand_over(self, queue: str) -> None:
        """Give a token back so that the last of ``queue``'s that waits for one gets it, out of turn."""
        lane = self._lanes[queue]
        if lane.waiting:
            self._claims.pop().cancel()
            lane.waiting.pop().callback(None)
        else:
            self.release()

    def _grant_claim(self, _: object) -> None:
        self._claims.popleft()
        self._grant()

    def _grant(self) -> None:
        lane = min((lane for lane in self._lanes.values() if lane.waiting), key=lambda lane: lane.spent)
        self._round = max(self._round, lane.spent)
        lane.spent = max(lane.spent, self._round - 1) + 1 / lane.weight
        lane.waiting.popleft().callback(None)

    def _give_up(self, lane: _Lane, waiter: Deferred[None]) -> None:
        lane.waiting.remove(waiter)
        self._claims.pop().cancel()


class _Work(Deferred[GraderResponse]):
    """What a grader is doing; knows whether somebody cancelled it."""

    cancelled = False

    def __init__(self, work: Deferred[GraderResponse]) -> None:
        super().__init__()
        self.addCallback(lambda _: work)
        self.callback(None)  # type: ignore[arg-type]  # the callback above makes it a response

    def cancel(self) -> None:
        """See ``Deferred``."""
        self.cancelled = True
        super().cancel()


@implementer(IGrader)
class DeadlineGrader:
    """Any grader, cancelled when a submission takes longer than ``timeout`` seconds."""

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
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            work.cancel()

        deadline = self._clock.callLater(self._timeout, expire)
        try:
            return await work
        except Exception as error:
            if expired:
                raise GraderTimedOut(f"no verdict within {self._timeout:g} s") from None
            if work.cancelled:
                raise CancelledError from None
            if isinstance(error, CancelledError):
                # Taken for the caller's, it would send the submission back to its queue, to be graded so for ever.
                raise GraderCrashed("the grader cancelled its own work") from None
            raise
        finally:
            if deadline.active():
                deadline.cancel()
