"""Tests for :mod:`edxagent.wire.journey`."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from edxagent.amqp.methods import encode_header
from edxagent.model import Message, Properties
from edxagent.wire.journey import Journey, encode_parked, encode_retry, read_journey
from tests.results import properties, result

SINKS = ("callback", "database")
VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=400),
    lambda child: st.lists(child, max_size=3) | st.dictionaries(st.sampled_from(SINKS), child),
)
HEADERS = st.dictionaries(
    st.sampled_from(
        ("x-sinks-done", "x-refusals", "x-delivery-attempt", "x-outcome", "x-origin", "x-received", "x-death", "other")
    ),
    VALUES,
)


def retry(having: Properties, journey: Journey, delay: float = 2.0) -> Message:
    """A retry."""
    return encode_retry(queue="results", body=result(), properties=having, submission="1", journey=journey, delay=delay)


def parked(having: Properties, reason: str = "no", sink: str | None = None) -> Message:
    """A parked result."""
    return encode_parked(
        queue="results", body=result(), properties=having, submission="1", reason=reason, sink=sink, time=5.0
    )


class RetryTests(SynchronousTestCase):
    """The message that comes back later."""

    def test_where_it_goes(self) -> None:
        """It goes to the exchange of its delay, with the key of the queue that it comes back to."""
        message = retry(properties(), Journey(), 2.5)
        self.assertEqual((message.exchange, message.routing_key), ("grading.results.retry.2500", "results"))
        self.assertEqual((message.body, message.properties.delivery_mode), (result(), 2))

    def test_round(self) -> None:
        """What one attempt says, the next one reads."""
        journey = Journey(attempt=3, done=frozenset({"database"}), refusals={"callback": 2})
        back = read_journey(retry(properties(), journey).properties, SINKS)
        self.assertEqual(back, Journey(attempt=4, done=journey.done, refusals=journey.refusals))

    def test_first(self) -> None:
        """A result that comes from an agent has no journey behind it."""
        self.assertEqual(read_journey(properties(), SINKS), Journey())

    def test_sinks_that_there_were(self) -> None:
        """A sink that isn't configured any more is forgotten."""
        journey = Journey(done=frozenset({"gone"}), refusals={"gone too": 1})
        self.assertEqual(read_journey(retry(properties(), journey).properties, SINKS), Journey(attempt=1))

    def test_same_message(self) -> None:
        """The properties stay, those of the headers that we know too; what the broker wrote doesn't."""
        before = properties(x_death=[{"count": 7}], x_reply_to="nowhere", something="else", x_finished=1.5)
        after = retry(before, Journey()).properties
        self.assertEqual((after.message_id, after.type), ("submission-1", "grading.result"))
        self.assertEqual(after.headers["x-reply-to"], "nowhere")
        self.assertEqual(after.headers["x-finished"], 1.5)
        self.assertFalse({"x-death", "something"} & set(after.headers))

    def test_name(self) -> None:
        """A message without an id gets one, and keeps it."""
        self.assertEqual(retry(Properties(), Journey()).properties.message_id, "1")

    @given(HEADERS)
    def test_anything(self, headers: dict[str, Any]) -> None:
        """Whatever the headers, the journey makes sense, and the messages fit into the smallest frame."""
        having = Properties(message_id="x" * 255, correlation_id="x" * 255, headers=headers)
        journey = read_journey(having, SINKS)
        self.assertTrue(0 <= journey.attempt <= 1_000_000)
        self.assertLessEqual(journey.done | set(journey.refusals), set(SINKS))
        for message in (retry(having, journey), parked(having, "é" * 5000, "callback")):
            self.assertLess(len(encode_header(message.properties, len(message.body))), 4096 - 8)

    def test_longest(self) -> None:
        """With every header as long as it may be, it fits into the smallest frame that RabbitMQ 4 knows."""
        names = ("x_outcome", "x_agent", "x_grader", "x_queue", "x_origin", "x_reply_to", "traceparent")
        message = parked(properties("x" * 255, **dict.fromkeys(names, "x" * 255)), "é" * 5000, "x" * 255)
        self.assertLess(len(encode_header(message.properties, len(message.body))), 8192 - 8)


class JourneyTests(SynchronousTestCase):
    """Who needs a result still."""

    def test_done(self) -> None:
        """Who needs it no more has no refusals to count."""
        journey = Journey().refused_by("a").refused_by("a").refused_by("b")
        self.assertEqual(journey.refusals, {"a": 2, "b": 1})
        self.assertEqual(journey.without("a"), Journey(done=frozenset({"a"}), refusals={"b": 1}))


class ParkedTests(SynchronousTestCase):
    """The message for a person."""

    def test_parked(self) -> None:
        """The body is verbatim; headers say why, who, when, and after how many attempts."""
        message = parked(retry(properties(), Journey(attempt=1)).properties, "the LMS won't\nhave it", "callback")
        self.assertEqual((message.exchange, message.routing_key, message.body), ("grading.dead", "results", result()))
        headers = message.properties.headers
        expected = {"x-error": "the LMS won't have it", "x-sink": "callback", "x-time": 5.0, "x-delivery-attempt": 3}
        self.assertEqual({name: headers[name] for name in expected}, expected)
        self.assertEqual((headers["x-outcome"], headers["x-queue"]), ("graded", "6002x"))

    def test_never_offered(self) -> None:
        """Where no sink was asked, none is named."""
        self.assertNotIn("x-sink", parked(properties()).properties.headers)
