"""The graders to rehearse with."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import CancelledError, ensureDeferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from edxagent.errors import GraderTimedOut, GraderUnavailable
from edxagent.graders import rehearsal
from edxagent.testing.graders import build, make_request


class RehearsalTests(SynchronousTestCase):
    """``sleep``, ``fixed`` and ``failing``."""

    def setUp(self) -> None:
        """Have a clock."""
        self.clock = Clock()

    def grade(self, grader: Any, submission: str = "submission-1") -> Any:
        """Start grading."""
        return ensureDeferred(grader.grade(make_request(submission)))

    def note(self, failure: Failure, submission: str, failed: list[str]) -> None:
        """Write down a failure of the expected kind."""
        failure.trap(GraderUnavailable)
        failed.append(submission)

    def failures(self, share: float) -> list[str]:
        """Which of 1,000 submissions fail."""
        grader = build(rehearsal.failing, self.clock, outcome="unavailable", share=share)
        failed: list[str] = []
        for submission in (f"submission-{number}" for number in range(1000)):
            work = self.grade(grader, submission)
            work.addErrback(self.note, submission, failed)
            self.successResultOf(work)
        return failed

    def test_sleep(self) -> None:
        """A verdict of correct comes after min at the earliest and after max at the latest."""
        grader = build(rehearsal.sleep, self.clock, min=2.0, max=5.0)
        work = [self.grade(grader, f"submission-{number}") for number in range(100)]
        self.clock.advance(1.99)
        self.assertEqual([each.called for each in work], [False] * 100)
        self.clock.advance(1.5)
        self.assertIn(sum(each.called for each in work), range(20, 80))
        self.clock.advance(1.52)
        for each in work:
            self.assertTrue(json.loads(self.successResultOf(each).reply)["correct"])

    def test_sleep_is_the_same_again(self) -> None:
        """How long a submission takes depends on its id alone."""
        self.assertEqual(rehearsal.lot("a"), rehearsal.lot("a"))
        self.assertNotEqual(rehearsal.lot("a"), rehearsal.lot("b"))

    def test_cancelled_sleep(self) -> None:
        """Cancelling a sleep leaves no delayed call."""
        work = self.grade(build(rehearsal.sleep, self.clock, min=5.0, max=5.0))
        work.cancel()
        self.failureResultOf(work, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_fixed(self) -> None:
        """Everybody gets the verdict that was configured."""
        grader = build(rehearsal.fixed, self.clock, correct=False, score=0.5, msg="<p>né</p>")
        reply = self.successResultOf(self.grade(grader)).reply
        self.assertEqual(json.loads(reply), {"correct": False, "score": 0.5, "msg": "<p>né</p>"})

    def test_share(self) -> None:
        """About the configured share of submissions fails; all and none mean all and none."""
        self.assertIn(len(self.failures(0.25)), range(200, 300))
        self.assertEqual(len(self.failures(0.0)), 0)
        self.assertEqual(len(self.failures(1.0)), 1000)

    def test_failing_is_the_same_again(self) -> None:
        """A submission that comes again meets the same fate."""
        self.assertEqual(self.failures(0.5), self.failures(0.5))

    def test_outcome(self) -> None:
        """The outcome word chooses the failure."""
        grader = build(rehearsal.failing, self.clock, outcome="timed-out")
        self.failureResultOf(self.grade(grader), GraderTimedOut)
