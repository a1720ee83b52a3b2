"""Tests for sending samples and seeing what becomes of each."""

from __future__ import annotations

from typing import Any

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from edxagent.cli.exchange import Exchange
from edxagent.cli.submissions import Sample, envelope
from edxagent.errors import BrokerUnreachable, EdxagentError
from edxagent.interfaces import IPublisher
from edxagent.model import Message, Properties


@implementer(IPublisher)
@define
class Publisher:
    """Keeps what is published; each publish is done at once, or when its Deferred in ``confirms`` fires, or fails."""

    published: list[Message] = field(factory=list)
    confirms: list[Deferred[None]] = field(factory=list)
    at_once: bool = True
    failure: Exception | None = None

    def publish(self, message: Message) -> Deferred[None]:
        """See :class:`IPublisher`."""
        self.published.append(message)
        if self.failure is not None:
            return fail(self.failure)
        if self.at_once:
            return succeed(None)
        self.confirms.append(Deferred())
        return self.confirms[-1]


def sample(name: str) -> Sample:
    """A sample that can be sent."""
    return Sample(submission=name, sort="sort", request=b"{}")


class ExchangeTests(SynchronousTestCase):
    """Tests for :class:`Exchange`."""

    def setUp(self) -> None:
        """Prepare what an exchange needs."""
        self.clock = Clock()
        self.publisher = Publisher()

    def exchange(self, **options: Any) -> Exchange:
        """An exchange with a place for two, unless told otherwise."""
        defaults: dict[str, Any] = {"unanswered": 2, "timeout": 10.0}
        return Exchange(
            clock=self.clock,
            wall_clock=lambda: 1234.5,
            publisher=self.publisher,
            queue="q",
            reply_to="me",
            **(defaults | options),
        )

    def run_exchange(self, exchange: Exchange, *samples: Sample, rate: float | None = None) -> Deferred[None]:
        """Begin a run, which ends with the test."""
        run = Deferred.fromCoroutine(exchange.run(samples, rate))

        def end() -> None:
            run.addErrback(lambda _: None)
            run.cancel()

        self.addCleanup(end)
        return run

    def answer(self, exchange: Exchange, name: str, outcome: str = "graded", score: object = 1.0) -> None:
        """Have a result arrive."""
        score = f'"{score}"' if isinstance(score, str) else score
        body = envelope("header", f'{{"correct": true, "score": {score}, "msg": "ok"}}')
        exchange.result_arrived(body, Properties(message_id=name, headers={"x-outcome": outcome}))

    def test_double_is_a_publisher(self) -> None:
        """The test's publisher provides the interface."""
        verifyObject(IPublisher, self.publisher)

    def test_graded(self) -> None:
        """A verdict ends the wait; its score and time are recorded."""
        exchange = self.exchange()
        done = self.run_exchange(exchange, sample("a"))
        self.assertNoResult(done)
        self.clock.advance(0.5)
        self.answer(exchange, "a")
        self.successResultOf(done)
        (record,) = exchange.records
        self.assertEqual((record.outcome, record.score, record.seconds), ("graded", 1.0, 0.5))
        self.assertEqual(exchange.seconds, 0.5)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_bounded(self) -> None:
        """No more than ``unanswered`` are on their way at once."""
        exchange = self.exchange()
        self.run_exchange(exchange, *(sample(name) for name in "abcd"))
        self.assertEqual(len(self.publisher.published), 2)
        self.answer(exchange, "b")
        self.assertEqual(len(self.publisher.published), 3)

    def test_answer_before_the_confirm(self) -> None:
        """A verdict may be faster than the broker's confirm."""
        self.publisher.at_once = False
        exchange = self.exchange()
        done = self.run_exchange(exchange, sample("a"))
        self.answer(exchange, "a")
        self.assertNoResult(done)
        self.publisher.confirms[0].callback(None)
        self.successResultOf(done)
        self.assertEqual(exchange.records[0].outcome, "graded")

    def test_failure(self) -> None:
        """A failure verdict ends the wait as well, and is recorded as that."""
        exchange = self.exchange()
        done = self.run_exchange(exchange, sample("a"))
        self.answer(exchange, "a", "malformed", 0)
        self.successResultOf(done)
        self.assertEqual((exchange.records[0].outcome, exchange.records[0].score), ("malformed", 0.0))
        self.assertEqual(exchange.answered, 1)

    def test_silence(self) -> None:
        """A sample without an answer is given up after the timeout, and its place goes to the next."""
        exchange = self.exchange(unanswered=1)
        done = self.run_exchange(exchange, sample("a"), sample("b"))
        self.clock.advance(10)
        self.answer(exchange, "b")
        self.successResultOf(done)
        self.assertEqual([record.outcome for record in exchange.records], [None, "graded"])

    def test_repeated(self) -> None:
        """A second verdict, or one for a sample that isn't waited for, is counted and changes nothing."""
        exchange = self.exchange(unanswered=1)
        done = self.run_exchange(exchange, sample("a"), sample("b"))
        self.answer(exchange, "a")
        self.answer(exchange, "a", score=0)
        self.answer(exchange, "b")
        self.successResultOf(done)
        self.assertEqual(exchange.repeated, 1)
        self.assertEqual([record.score for record in exchange.records], [1.0, 1.0])

    def test_without_waiting(self) -> None:
        """Without a timeout the broker's confirm is the end."""
        exchange = self.exchange(timeout=None)
        self.successResultOf(self.run_exchange(exchange, sample("a"), sample("b"), sample("c")))
        self.assertEqual((exchange.sent, len(exchange.records)), (3, 3))

    def test_rate(self) -> None:
        """A rate spaces the sends evenly."""
        exchange = self.exchange(timeout=None)
        done = self.run_exchange(exchange, *(sample(name) for name in "abc"), rate=2.0)
        sent = []
        for _ in range(5):
            self.clock.advance(0.25)
            sent.append(exchange.sent)
        self.assertEqual(sent, [1, 2, 2, 3, 3])
        self.successResultOf(done)

    def test_publishing_fails(self) -> None:
        """The first publish that fails ends the run with its error, and nothing is left to happen."""
        self.publisher.at_once = False
        exchange = self.exchange()
        done = self.run_exchange(exchange, *(sample(name) for name in "abcd"))
        self.publisher.confirms[0].errback(BrokerUnreachable("gone"))
        self.clock.advance(0)
        self.failureResultOf(done, BrokerUnreachable)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_publishing_fails_at_once(self) -> None:
        """The same holds for a publish that fails within the call."""
        exchange = self.exchange()
        self.publisher.failure = BrokerUnreachable("gone")
        done = self.run_exchange(exchange, *(sample(name) for name in "abcd"))
        self.clock.advance(0)
        self.failureResultOf(done, BrokerUnreachable)

    def test_fail(self) -> None:
        """Somebody else, who lost the connection, can end the run too."""
        exchange = self.exchange()
        done = self.run_exchange(exchange, sample("a"))
        exchange.fail(BrokerUnreachable("gone"))
        self.clock.advance(0)
        self.failureResultOf(done, BrokerUnreachable)

    def test_nonsense_as_result(self) -> None:
        """A message that is no result ends the run: somebody else writes to that queue."""
        for body in (b"nonsense", envelope("h", "{}"), envelope("h", '{"score": null}')):
            exchange = self.exchange()
            done = self.run_exchange(exchange, sample("a"))
            exchange.result_arrived(body, Properties(message_id="a"))
            self.clock.advance(0)
            self.failureResultOf(done, EdxagentError)

    def test_cancelled(self) -> None:
        """Cancelling leaves nothing to happen; what was seen until then stays."""
        exchange = self.exchange()
        done = self.run_exchange(exchange, *(sample(name) for name in "abcd"))
        self.answer(exchange, "a")
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.assertEqual((exchange.sent, len(exchange.records)), (3, 1))
        self.assertEqual(self.clock.getDelayedCalls(), [])
