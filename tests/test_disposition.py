"""Tests for :mod:`edxagent.disposition`, row by row."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from edxagent.disposition import DEFAULT_TABLE, dispose
from edxagent.model import Outcome


class DisposeTests(SynchronousTestCase):
    """What happens to a request."""

    def test_table(self) -> None:
        """Outcome → (dead letter, learner told, requeued), as the design has it."""
        expected = {
            "graded": (False, True, False),
            "malformed": (True, True, False),
            "unavailable": (True, False, False),
            "timed-out": (True, True, False),
            "crashed": (True, True, False),
            "bad-reply": (True, True, False),
            "quarantined": (True, False, False),
            "cancelled": (False, False, True),
        }
        rows = {str(outcome): dispose(outcome, tell_learner={}) for outcome in Outcome}
        self.assertEqual({word: (r.dead_letter, r.tell_learner, r.requeue) for word, r in rows.items()}, expected)

    def test_retried(self) -> None:
        """Outcome → the setting that says when it isn't tried again; the others never are."""
        limits = {str(outcome): row.retried_until.value for outcome, row in DEFAULT_TABLE.items() if row.retried_until}
        self.assertEqual(
            limits,
            {
                "unavailable": "give_up_after",
                "timed-out": "timeout_attempts",
                "crashed": "crash_attempts",
                "bad-reply": "crash_attempts",
            },
        )

    def test_nobody_to_tell(self) -> None:
        """Without a header a failing submission is a dead letter only."""
        row = dispose(Outcome.MALFORMED, tell_learner={"malformed": True}, header_known=False)
        self.assertEqual((row.dead_letter, row.tell_learner), (True, False))

    def test_operator_decides(self) -> None:
        """Whether the learner hears of a failure is configurable, for each outcome."""
        for outcome in Outcome:
            row = DEFAULT_TABLE[outcome]
            if row.dead_letter:
                for wanted in (True, False):
                    self.assertEqual(dispose(outcome, tell_learner={str(outcome): wanted}).tell_learner, wanted)

    def test_a_grade_is_always_told(self) -> None:
        """No setting holds back a real grade."""
        self.assertTrue(dispose(Outcome.GRADED, tell_learner={"graded": False}).tell_learner)

    def test_no_poison_circle(self) -> None:
        """Nothing goes back to its queue but what the agent itself cancelled; that is published nowhere else."""
        for outcome in Outcome:
            row = dispose(outcome, tell_learner={})
            self.assertEqual(row.requeue, outcome is Outcome.CANCELLED)
            self.assertFalse(row.requeue and (row.dead_letter or row.tell_learner))
