"""Tests for :mod:`edxagent.agent.retries`."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from edxagent.agent.retries import RetryPolicy
from edxagent.config.values import RetryConfig
from edxagent.model import Outcome
from edxagent.wire.retry import Attempts

NOW = 1_700_000_000.0
DELAYS = (5.0, 30.0, 120.0)
POLICY = RetryPolicy(RetryConfig(delays=DELAYS, timeout_attempts=2, crash_attempts=3, give_up_after=1000))


def delay(outcome: Outcome, *, now: float = NOW, retry_after: float | None = None, **attempts: Any) -> float | None:
    """What the policy says."""
    return POLICY.delay(outcome, Attempts(**attempts), now=now, retry_after=retry_after)


class LimitTests(SynchronousTestCase):
    """Whether there is another attempt."""

    def test_never(self) -> None:
        """No other attempt helps what can't be read or mustn't be graded; what has its grade needs none."""
        for outcome in (Outcome.MALFORMED, Outcome.QUARANTINED, Outcome.GRADED, Outcome.CANCELLED):
            self.assertIsNone(delay(outcome, retry_after=1.0))

    def test_timeouts(self) -> None:
        """``timeout_attempts`` counts timeouts only."""
        self.assertEqual(delay(Outcome.TIMED_OUT, failures={"timed-out": 1, "crashed": 2}), 5.0)
        self.assertIsNone(delay(Outcome.TIMED_OUT, failures={"timed-out": 2}))

    def test_crashes(self) -> None:
        """``crash_attempts`` counts crashes and bad replies together."""
        for outcome in (Outcome.CRASHED, Outcome.BAD_REPLY):
            self.assertEqual(delay(outcome, failures={"crashed": 1, "bad-reply": 1, "timed-out": 9}), 5.0)
            self.assertIsNone(delay(outcome, failures={"crashed": 2, "bad-reply": 1}))
            self.assertIsNone(delay(outcome, failures={str(outcome): 3}))

    def test_unavailable(self) -> None:
        """An unavailable grader is asked again however often it was, until ``give_up_after`` is over."""
        often = {"attempt": 500, "failures": {"unavailable": 500}}
        self.assertEqual(delay(Outcome.UNAVAILABLE, first_failed=NOW - 999, **often), 120.0)
        self.assertIsNone(delay(Outcome.UNAVAILABLE, first_failed=NOW - 1000, attempt=1))
        self.assertEqual(delay(Outcome.UNAVAILABLE, first_failed=None), 5.0)

    def test_time_is_for_outages_only(self) -> None:
        """A crash after a long outage is the submission's first."""
        self.assertEqual(delay(Outcome.CRASHED, first_failed=NOW - 9999, failures={"crashed": 1}), 5.0)


class DelayTests(SynchronousTestCase):
    """When there is another attempt."""

    def test_ladder(self) -> None:
        """Each attempt that failed is followed by the next delay; the last one is repeated."""
        delays = [delay(Outcome.UNAVAILABLE, attempt=attempt) for attempt in (1, 2, 3, 4, 1_000_000)]
        self.assertEqual(delays, [5.0, 30.0, 120.0, 120.0, 120.0])

    def test_retry_after(self) -> None:
        """A time that the grader asks for is rounded up to the next delay; more than the longest isn't waited."""
        asked = {0.0: 5.0, 4.9: 5.0, 5.0: 5.0, 5.1: 30.0, 31.0: 120.0, 3600.0: 120.0, float("inf"): 120.0}
        delays = {seconds: delay(Outcome.UNAVAILABLE, retry_after=seconds) for seconds in asked}
        self.assertEqual(delays, asked)

    def test_no_earlier(self) -> None:
        """A grader that asks for less doesn't shorten the delay that it is time for."""
        self.assertEqual(delay(Outcome.UNAVAILABLE, attempt=2, retry_after=1.0), 30.0)

    @given(
        st.sampled_from(Outcome),
        st.integers(1, 1_000_000),
        st.dictionaries(st.sampled_from(Outcome).map(str), st.integers(0, 1_000_000)),
        st.none() | st.floats(1e-9, 1e12),
        st.none() | st.floats(allow_nan=False),
    )
    def test_anything(
        self, outcome: Outcome, attempt: int, failures: dict[str, int], first: float | None, asked: float | None
    ) -> None:
        """Whatever came before, it is one of the delays, or the end."""
        attempts = {"attempt": attempt, "failures": failures, "first_failed": first}
        self.assertIn(delay(outcome, retry_after=asked, **attempts), (*DELAYS, None))
