"""Tests for :mod:`edxagent.limits`."""

from __future__ import annotations

from collections import Counter

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from edxagent.errors import GraderCrashed, GraderTimedOut
from edxagent.interfaces import IGrader
from edxagent.limits import DeadlineGrader, FairSlots
from edxagent.model import GraderRequest, GraderResponse

REQUEST = GraderRequest(submission="1", queue="q", body="{}", student_response="", grader_payload="")


class FairSlotsTests(SynchronousTestCase):
    """Whose turn is it?"""

    def test_free(self) -> None:
        """Free tokens go to whoever asks, at once."""
        slots = FairSlots(2, {})
        self.successResultOf(slots.acquire("a"))
        self.assertEqual((slots.free, slots.busy), (1, 1))
        self.successResultOf(slots.acquire("b"))
        self.assertNoResult(slots.acquire("a"))
        self.assertEqual((slots.free, slots.busy, slots.waiting), (0, 2, 1))

    def test_release(self) -> None:
        """A token that is given back goes to the one who waits."""
        slots = FairSlots(1, {})
        slots.acquire("a")
        waiting = slots.acquire("b")
        slots.release()
        self.successResultOf(waiting)
        slots.release()
        self.assertEqual((slots.free, slots.waiting), (1, 0))

    def test_cancel(self) -> None:
        """Who gives up loses the place, and nobody else's token."""
        slots = FairSlots(1, {})
        slots.acquire("a")
        first, second = slots.acquire("b"), slots.acquire("c")
        first.cancel()
        self.failureResultOf(first, CancelledError)
        slots.release()
        self.successResultOf(second)
        slots.release()
        self.assertEqual((slots.free, slots.waiting), (1, 0))

    def test_weights(self) -> None:
        """With every queue always waiting, shares follow the weights to within one turn."""
        weights = {"a": 5, "b": 3, "c": 1, "d": 1}
        slots = FairSlots(1, weights)
        granted: Counter[str] = Counter()
        slots.acquire("x")

        def wait(queue: str) -> None:
            slots.acquire(queue).addCallback(lambda _: (granted.update([queue]), wait(queue)))

        for queue in weights:
            wait(queue)
        for _ in range(1000):
            slots.release()
        for queue, weight in weights.items():
            self.assertApproximates(granted[queue], 100 * weight, 5)

    def test_no_savings(self) -> None:
        """A queue that was idle for long doesn't shut the others out when it comes back."""
        slots = FairSlots(1, {"a": 1, "b": 1})
        granted: list[str] = []
        slots.acquire("a")

        def wait(queue: str) -> None:
            slots.acquire(queue).addCallback(lambda _: (granted.append(queue), wait(queue)))

        wait("a")
        for _ in range(100):
            slots.release()
        wait("b")
        del granted[:]
        for _ in range(10):
            slots.release()
        self.assertLessEqual(granted.count("b"), 6)

    def test_hand_over(self) -> None:
        """A token can be handed to a queue out of turn; with nobody there it is free for all."""
        slots = FairSlots(1, {})
        slots.acquire("a")
        first, second = slots.acquire("b"), slots.acquire("c")
        slots.hand_over("c")
        self.successResultOf(second)
        self.assertNoResult(first)
        slots.hand_over("a")
        self.successResultOf(first)
        slots.hand_over("a")
        self.assertEqual((slots.free, slots.waiting), (1, 0))


@implementer(IGrader)
class Stub:
    """A grader that answers what it is told to."""

    def __init__(self, work: Deferred[GraderResponse]) -> None:
        self.work = work

    def grade(self, request: GraderRequest) -> Deferred[GraderResponse]:
        """See :class:`IGrader`."""
        return self.work


class DeadlineGraderTests(SynchronousTestCase):
    """A grader that has to be in time."""

    def setUp(self) -> None:
        """A clock, and a grader with ten seconds."""
        self.clock = Clock()
        self.work: Deferred[GraderResponse] = Deferred()
        self.grader = DeadlineGrader(Stub(self.work), 10, self.clock)

    def grade(self) -> Deferred[GraderResponse]:
        """Grade something."""
        return Deferred.fromCoroutine(self.grader.grade(REQUEST))

    def test_interface(self) -> None:
        """It is a grader itself."""
        verifyObject(IGrader, self.grader)

    def test_in_time(self) -> None:
        """An answer in time comes through and leaves no timer behind."""
        grading = self.grade()
        self.clock.advance(9.9)
        self.work.callback(GraderResponse(reply=b"{}"))
        self.assertEqual(self.successResultOf(grading).reply, b"{}")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_late(self) -> None:
        """At the deadline the work is cancelled and the outcome is timed-out."""
        grading = self.grade()
        self.clock.advance(10)
        self.assertIn("10 s", str(self.failureResultOf(grading, GraderTimedOut).value))
        self.assertTrue(self.work.called)

    def test_own_error(self) -> None:
        """A grader's own error in time comes through."""
        grading = self.grade()
        self.work.errback(GraderCrashed("exit 1"))
        self.failureResultOf(grading, GraderCrashed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelled(self) -> None:
        """Cancelling from outside reaches the work and isn't taken for a deadline."""
        grading = self.grade()
        grading.cancel()
        self.failureResultOf(grading, CancelledError)
        self.assertTrue(self.work.called)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelled_with_another_error(self) -> None:
        """Whatever a grader raises when it is cancelled from outside, it was cancelled, and didn't crash."""
        self.work = Deferred(lambda work: work.errback(GraderCrashed("killed by SIGTERM")))
        self.grader = DeadlineGrader(Stub(self.work), 10, self.clock)
        grading = self.grade()
        grading.cancel()
        self.failureResultOf(grading, CancelledError)

    def test_cancels_itself(self) -> None:
        """A grader that raises ``CancelledError`` though nobody cancelled it has crashed."""
        grading = self.grade()
        self.work.cancel()
        self.failureResultOf(grading, GraderCrashed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_slow_to_let_go(self) -> None:
        """A grader that takes a while to die after the deadline counts as timed out, once it has died."""
        dead: Deferred[None] = Deferred()

        @implementer(IGrader)
        class Stubborn:
            """Needs time to end."""

            async def grade(self, request: GraderRequest) -> GraderResponse:
                """See :class:`IGrader`."""
                try:
                    return await Deferred()
                finally:
                    await dead

        grading = Deferred.fromCoroutine(DeadlineGrader(Stubborn(), 10, self.clock).grade(REQUEST))
        self.clock.advance(10)
        self.assertNoResult(grading)
        dead.callback(None)
        self.failureResultOf(grading, GraderTimedOut)
