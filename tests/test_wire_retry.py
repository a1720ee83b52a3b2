"""Tests for :mod:`edxagent.wire.retry`."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from edxagent.amqp.codec import encode_table
from edxagent.model import Message, Outcome, Properties
from edxagent.wire.dead_letter import encode_dead_letter
from edxagent.wire.request import requeued_request
from edxagent.wire.retry import MOST_HISTORY, Attempts, encode_retry, read_attempts

NOW = 1_795_494_009.0
MOST_BYTES = 4096
"""That all headers of a message may have together."""
VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=300) | st.binary(),
    lambda child: (
        st.lists(child, max_size=15) | st.dictionaries(st.sampled_from(Outcome).map(str) | st.text(max_size=3), child)
    ),
)
HEADERS = st.dictionaries(
    st.sampled_from(
        ("x-attempt", "x-failures", "x-first-failed", "x-history", "x-origin", "traceparent", "x-death", "CC", "other")
    ),
    VALUES,
)


def failed(attempts: Attempts = Attempts(), outcome: Outcome = Outcome.CRASHED, **changes: Any) -> Attempts:  # noqa: B008 frozen
    """Attempts with one more."""
    return attempts.failed(outcome, **{"reason": "exit status 3", "agent": "xserver", "now": NOW, **changes})


def retry(request: Properties, attempts: Attempts, delay: float = 5.0) -> Message:
    """A retry."""
    return encode_retry(queue="q", body=b"body", request=request, submission="id", attempts=attempts, delay=delay)


def dead(request: Properties, attempts: Attempts, name: str = "xserver", reason: str = "why") -> Message:
    """A dead letter."""
    return encode_dead_letter(
        queue="q" * 200,
        body=b"",
        request=request,
        submission="id",
        outcome=Outcome.UNAVAILABLE,
        reason=reason,
        agent=name,
        grader=name,
        attempts=attempts,
        told_learner=False,
        time=NOW,
    )


class AttemptsTests(SynchronousTestCase):
    """What is known of the attempts up to now."""

    def test_first(self) -> None:
        """A request from a producer has its first attempt before it."""
        self.assertEqual(read_attempts(Properties()), Attempts())

    def test_failed(self) -> None:
        """A failure is counted, dated, and told in one line."""
        attempts = failed()
        self.assertEqual((attempts.attempt, attempts.failures, attempts.first_failed), (1, {"crashed": 1}, NOW))
        self.assertEqual(attempts.history, ("1 crashed 2026-11-24T04:20:09Z xserver: exit status 3",))

    def test_failed_again(self) -> None:
        """Each outcome has its count; the first failure stays the first."""
        attempts = failed(failed(failed()), Outcome.UNAVAILABLE, now=NOW + 100)
        self.assertEqual((attempts.failures, attempts.first_failed), ({"crashed": 2, "unavailable": 1}, NOW))
        self.assertEqual(len(attempts.history), 3)

    def test_short_history(self) -> None:
        """The last ten are remembered, the newest last, each in a short line, whatever was said."""
        attempts = Attempts()
        for number in range(1, 20):
            attempts = failed(evolve(attempts, attempt=number), reason="ü\n" * 5000, agent="ä" * 100)
        self.assertEqual([int(entry.split()[0]) for entry in attempts.history], list(range(10, 20)))
        for entry in attempts.history:
            self.assertTrue(entry.isprintable())
            self.assertLessEqual(len(entry.encode()), 110)
            self.assertIn("äää: ü", entry)

    def test_first_failure_to_come(self) -> None:
        """A first failure that is still to come would never be long ago: it is now."""
        future = read_attempts(Properties(headers={"x-first-failed": NOW + 1e9}))
        self.assertEqual(failed(future).first_failed, NOW)

    def test_nonsense(self) -> None:
        """Headers that make no sense count as absent."""
        for headers in (
            {"x-attempt": "2", "x-failures": 3, "x-first-failed": "yesterday", "x-history": "1 crashed"},
            {"x-attempt": -1, "x-failures": {"crashed": -1}, "x-first-failed": -5, "x-history": [1, None]},
            {"x-attempt": True, "x-failures": {"crashed": True}, "x-first-failed": True, "x-history": {}},
            {"x-failures": {"crashed": "2", "sabotaged": 2}, "x-first-failed": float("nan"), "x-history": []},
        ):
            self.assertEqual(read_attempts(Properties(headers=headers)), Attempts())


class EncodeRetryTests(SynchronousTestCase):
    """The message that comes back later."""

    def test_where_it_goes(self) -> None:
        """It goes to the exchange of its delay, with the name of its queue as the key."""
        message = retry(Properties(), Attempts(), 2.5)
        self.assertEqual((message.exchange, message.routing_key), ("grading.retry.2500", "q"))
        self.assertEqual((message.body, message.properties.delivery_mode), (b"body", 2))

    def test_same_request(self) -> None:
        """What a producer said stays; what the broker wrote, and what we don't know, doesn't."""
        known = {"x-origin": "lms", "traceparent": "00-ab-cd-01"}
        request = Properties(
            type="grading.request",
            content_type="application/json",
            correlation_id="c",
            reply_to="r",
            timestamp=7,
            headers={**known, "x-death": [{}], "x-delivery-count": 3, "CC": ["q2"], "other": 1},
        )
        message = retry(request, Attempts())
        self.assertEqual(message.properties, evolve(request, message_id="id", headers={**known, "x-attempt": 2}))

    def test_round(self) -> None:
        """What one attempt writes, the next one reads, also when it was given back in between."""
        attempts = failed(failed(), Outcome.TIMED_OUT)
        message = retry(Properties(), attempts)
        self.assertEqual(read_attempts(message.properties), evolve(attempts, attempt=2))
        again = requeued_request("q", message.body, message.properties)
        self.assertEqual(read_attempts(again.properties), evolve(attempts, attempt=2))

    def test_counting_ends(self) -> None:
        """However often it went round, the number of its attempt makes sense."""
        message = retry(Properties(headers={"x-attempt": 1_000_000}), Attempts(attempt=1_000_000))
        self.assertEqual(read_attempts(message.properties).attempt, 1_000_000)

    @given(HEADERS)
    def test_anything(self, headers: dict[str, Any]) -> None:
        """Whatever the headers, they make sense when read, and stay small when written."""
        request = Properties(headers=headers)
        attempts = read_attempts(request)
        self.assertTrue(1 <= attempts.attempt <= 1_000_000)
        self.assertLessEqual(set(attempts.failures), set(map(str, Outcome)))
        self.assertTrue(all(0 < count <= 1_000_000 for count in attempts.failures.values()))
        self.assertLessEqual(len(attempts.history), MOST_HISTORY)
        self.assertTrue(failed(attempts).first_failed in (attempts.first_failed, NOW))
        for message in (retry(request, failed(attempts)), dead(request, failed(attempts), reason="é" * 5000)):
            self.assertLessEqual(len(encode_table(message.properties.headers)), MOST_BYTES)

    def test_longest(self) -> None:
        """With everything as long as it may be, all headers have 4 KiB."""
        attempts = Attempts(attempt=1_000_000)
        for _ in range(12):
            for outcome in Outcome:
                attempts = failed(attempts, outcome, reason="é" * 5000, agent="é" * 100)
        request = Properties(headers={"x-origin": "x" * 255, "traceparent": "x" * 255})
        message = dead(request, attempts, name="\U0001f600" * 100, reason="é" * 5000)
        self.assertLessEqual(len(encode_table(message.properties.headers)), MOST_BYTES)
