"""Tests for :mod:`edxagent.agent.life` and :mod:`edxagent.agent.results`, with every part but those a double."""

from __future__ import annotations

import json
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from edxagent.agent.held import HeldDelivery
from edxagent.agent.life import MANY_RETURNS, SubmissionLife
from edxagent.agent.results import ResultPublisher
from edxagent.config.values import AgentConfig, BrokerConfig, FailureConfig, GraderConfig, QueueConfig, ResultsConfig
from edxagent.errors import (
    BadReply,
    BrokerUnreachable,
    GraderCrashed,
    GraderTimedOut,
    GraderUnavailable,
    MalformedSubmission,
    MessageRefused,
    PublishFailed,
)
from edxagent.limits import FairSlots
from edxagent.model import GraderRequest, GraderResponse, Message, Properties
from edxagent.testing.graders import StubGrader
from edxagent.testing.memory import MemoryBroker, MemoryPublisher
from edxagent.wire.request import encode_request

HEADER = '{"lms_key": "the-secret-key"}'
GOOD = b'{"correct": true, "score": 1, "msg": "<p>ok</p>"}'
CONFIG = AgentConfig(
    name="agent-1",
    concurrency=1,
    hold_limit=10,
    broker=BrokerConfig(addresses=()),
    queues=(QueueConfig(name="q"),),
    grader=GraderConfig(kind="stub"),
    results=ResultsConfig(max_score=5),
)
NOW = 1_700_000_000.0


class Bench:
    """A life with its surroundings."""

    def __init__(self, *answers: bytes | Exception | None, config: AgentConfig = CONFIG) -> None:
        self.clock = Clock()
        self.broker = MemoryBroker(self.clock)
        self.broker.declare("q")
        self.broker.bind("grading.dead", "q", "q.dead")
        self.broker.bind("grading.results", "grading.results", "grading.results")
        self.publisher = MemoryPublisher(self.broker)
        self.grader = StubGrader(*answers)
        self.slots = FairSlots(1, {})
        self.begun: list[HeldDelivery] = []
        self.life = SubmissionLife(
            config=config,
            grader=self.grader,
            slots=self.slots,
            results=ResultPublisher(self.publisher, "grading.results", self.clock),
            clock=self.clock,
            wall_clock=lambda: NOW + self.clock.seconds(),
        )
        self.logged: list[LogEvent] = []

    def take(self, message: Message) -> Any:
        """Put a message into the queue and take it out; the delivery."""
        taken: list[Any] = []
        self.broker.put("q", message.body, properties=message.properties)
        Deferred.fromCoroutine(self.broker.port("q").get()).addCallback(taken.append)
        self.clock.pump([0.001] * 5)
        return taken[0]

    def handle(self, delivery: Any) -> Deferred[None]:
        """Take a delivery through its life."""
        held = HeldDelivery(delivery, begun=self.begun.append, settling=lambda held, returning: None)
        return Deferred.fromCoroutine(self.life.handle(held))

    def run(self, message: Message) -> Any:
        """Take a message from its queue to the end of its life; the delivery."""
        delivery = self.take(message)
        with capturedLogs() as self.logged:
            life = self.handle(delivery)
            self.clock.pump([0.001] * 10)
        assert life.called, "the life isn't over"
        return delivery

    def results(self) -> list[tuple[dict[str, Any], Properties]]:
        """What is in the results queue: verdict and properties."""
        return [
            (json.loads(json.loads(body)["xqueue_body"]), properties)
            for body, properties in self.broker.messages("grading.results")
        ]


def request(**changes: Any) -> Message:
    """A request as the LMS side publishes it."""
    body = json.dumps({"student_response": "the-answer", "grader_payload": "", "student_info": "{}"})
    message = encode_request(queue="q", submission="s-1", header=HEADER, body=body, timestamp=1)
    return evolve(message, properties=evolve(message.properties, **changes))


class GradedTests(SynchronousTestCase):
    """A submission that gets its verdict."""

    def test_graded(self) -> None:
        """The verdict is published, then the request is acked, and the slot is free again."""
        bench = Bench(GOOD)
        delivery = bench.run(request())
        (verdict, properties), *more = bench.results()
        self.assertEqual(verdict, {"correct": True, "score": 1.0, "msg": "<p>ok</p>"})
        self.assertEqual((properties.message_id, properties.headers["x-outcome"]), ("s-1", "graded"))
        self.assertEqual(properties.headers["x-agent"], "agent-1")
        self.assertEqual((more, delivery.settled, bench.slots.free), ([], "ack", 1))
        self.assertEqual(bench.broker.bodies("q.dead") if "q.dead" in bench.broker else [], [])

    def test_never_acked_before_the_confirm(self) -> None:
        """While the broker hasn't confirmed, the request is ours and so is the slot."""
        bench = Bench(GOOD)
        delivery = bench.take(request())
        bench.handle(delivery)
        bench.clock.advance(0.0015)
        self.assertEqual(len(bench.results()), 1)
        self.assertEqual((delivery.settled, bench.slots.free), (None, 0))
        bench.clock.pump([0.001] * 3)
        self.assertEqual((delivery.settled, bench.slots.free), ("ack", 1))

    def test_phases(self) -> None:
        """The result says when the request came, when grading began and when it ended."""
        bench = Bench(None)
        delivery = bench.take(request())
        bench.slots.acquire("another")
        start = NOW + bench.clock.seconds()
        bench.handle(delivery)
        bench.clock.advance(2)
        self.assertEqual(bench.begun, [])
        bench.slots.release()
        self.assertEqual(len(bench.begun), 1)
        bench.clock.advance(3)
        bench.grader.hanging[0].callback(GOOD)
        bench.clock.pump([0.001] * 5)
        headers = bench.results()[0][1].headers
        self.assertEqual([headers[f"x-{p}"] - start for p in ("received", "started", "finished")], [0, 2, 5])

    def test_reply_to(self) -> None:
        """A request that names another place in grading.results gets its verdict there."""
        bench = Bench(GOOD)
        bench.broker.bind("grading.results", "elsewhere", "elsewhere")
        bench.run(request(reply_to="elsewhere"))
        self.assertEqual((len(bench.broker.bodies("elsewhere")), bench.results()), (1, []))

    def test_bad_reply_to(self) -> None:
        """A place that doesn't exist doesn't stop the agent: the verdict goes to the usual one, and says so."""
        bench = Bench(GOOD)
        delivery = bench.run(request(reply_to="nowhere"))
        self.assertEqual(bench.results()[0][1].headers["x-reply-to"], "nowhere")
        self.assertEqual(delivery.settled, "ack")

    def test_log_line(self) -> None:
        """One line tells outcome, submission and queue; none holds the header or the answer."""
        bench = Bench(GOOD)
        bench.run(request())
        (event,) = bench.logged
        self.assertEqual((event["outcome"], event["submission"], event["queue"]), ("graded", "s-1", "q"))
        self.assertNotIn("the-secret-key", str(bench.logged))
        self.assertNotIn("the-answer", str(bench.logged))

    def test_grader_sees_no_header(self) -> None:
        """The grader isn't shown the LMS's credential."""
        bench = Bench(GOOD)
        bench.run(request())
        self.assertNotIn("the-secret-key", str([getattr(bench.grader.requests[0], n) for n in ("body", "files")]))

    def test_stale_connection(self) -> None:
        """When the request's connection has gone meanwhile, its verdict is published all the same."""
        bench = Bench(GOOD)
        delivery = bench.take(request())
        delivery.lost = True
        bench.handle(delivery)
        bench.clock.pump([0.001] * 5)
        self.assertEqual((len(bench.results()), delivery.settled), (1, "ack"))


class FailedTests(SynchronousTestCase):
    """A submission that doesn't."""

    def test_outcomes(self) -> None:
        """Each failure makes a dead letter that says why; the learner hears of it unless the fault is ours."""
        for answer, outcome, told in (
            (MalformedSubmission("a file is missing"), "malformed", True),
            (GraderUnavailable("refused"), "unavailable", False),
            (GraderTimedOut("late"), "timed-out", True),
            (GraderCrashed("exit 1"), "crashed", True),
            (BadReply("too large"), "bad-reply", True),
            (b"<html>", "bad-reply", True),
            (b'{"correct": true, "score": 6, "msg": "x"}', "bad-reply", True),
        ):
            bench = Bench(answer)
            delivery = bench.run(request())
            ((body, properties),) = bench.broker.messages("q.dead")
            self.assertEqual(body, delivery.body)
            self.assertEqual(properties.headers["x-outcome"], outcome)
            self.assertEqual(properties.headers["x-told-learner"], told)
            self.assertTrue(properties.headers["x-error"])
            self.assertEqual(
                [(v["correct"], p.headers["x-outcome"]) for v, p in bench.results()], [(False, outcome)] * told
            )
            self.assertEqual((delivery.settled, bench.slots.free), ("ack", 1))

    def test_dead_letter_first(self) -> None:
        """The dead letter is safe before the learner is told."""
        bench = Bench(GraderCrashed("exit 1"))
        bench.run(request())
        self.assertEqual([m.exchange for m in bench.publisher.published], ["grading.dead", "grading.results"])

    def test_surprise(self) -> None:
        """An exception that no grader may raise counts as a crash; its traceback is logged, its text isn't told."""
        bench = Bench(ZeroDivisionError("the-answer"))
        bench.run(request())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        ((_, properties),) = bench.broker.messages("q.dead")
        self.assertEqual(properties.headers["x-error"], "the grader raised ZeroDivisionError")

    def test_exit(self) -> None:
        """A grader in this process that calls ``sys.exit`` has crashed, like any other."""

        class Exits:
            """Doesn't stay."""

            async def grade(self, request: GraderRequest) -> GraderResponse:
                """See ``IGrader``."""
                raise SystemExit(1)

        bench = Bench()
        bench.life._grader = Exits()
        delivery = bench.run(request())
        self.assertEqual(len(self.flushLoggedErrors(SystemExit)), 1)
        ((_, properties),) = bench.broker.messages("q.dead")
        self.assertEqual(properties.headers["x-outcome"], "crashed")
        self.assertEqual(delivery.settled, "ack")

    def test_malformed(self) -> None:
        """What can't be read needs no slot; with a header the learner is told, without one nobody can be."""
        for body, told in ((b'{"xqueue_header": "h"}', 1), (b"\xff", 0)):
            bench = Bench(GOOD)
            bench.slots.acquire("another")
            delivery = bench.run(evolve(request(), body=body))
            self.assertEqual(bench.broker.bodies("q.dead"), [body])
            self.assertEqual(len(bench.results()), told)
            self.assertEqual((delivery.settled, bench.grader.requests), ("ack", []))

    def test_operators_wishes(self) -> None:
        """An operator chooses who is told, and in which words."""
        failure = FailureConfig(
            tell_learner={"unavailable": True, "crashed": False}, messages={"unavailable": "<p>Later.</p>"}
        )
        bench = Bench(GraderUnavailable("refused"), GraderCrashed("x"), config=evolve(CONFIG, failure=failure))
        bench.run(request())
        bench.run(request())
        self.assertEqual([verdict["msg"] for verdict, _ in bench.results()], ["<p>Later.</p>"])


class PublishingTests(SynchronousTestCase):
    """When a verdict can't be published."""

    def test_again_until_confirmed(self) -> None:
        """The same message is tried again, with growing pauses; meanwhile request and slot are kept."""
        bench = Bench(GOOD)
        bench.publisher.failures = [BrokerUnreachable("gone"), PublishFailed("nacked"), BrokerUnreachable("gone")]
        delivery = bench.take(request())
        bench.handle(delivery)
        bench.clock.pump([0.5, 1.0])
        self.assertEqual((delivery.settled, bench.slots.free, bench.publisher.failures), (None, 0, []))
        bench.clock.pump([2.0, 0.001, 0.001, 0.001])
        self.assertEqual((delivery.settled, len(bench.results())), ("ack", 1))

    def test_results_queue_missing(self) -> None:
        """An unroutable verdict waits until somebody binds the queue."""
        bench = Bench(GOOD)
        bench.broker.delete("grading.results")
        delivery = bench.take(request())
        bench.handle(delivery)
        bench.clock.pump([0.1] * 100)
        self.assertEqual(delivery.settled, None)
        bench.broker.declare("grading.results")
        bench.clock.pump([0.1] * 200)
        self.assertEqual((delivery.settled, len(bench.results())), ("ack", 1))

    def test_cannot_be_carried(self) -> None:
        """A verdict that AMQP can't carry isn't tried for ever: it is logged, and the request stays unsettled."""
        bench = Bench(GOOD)
        bench.publisher.failures = [MessageRefused("too long")]
        delivery = bench.take(request())
        self.failureResultOf(bench.handle(delivery), MessageRefused)
        self.assertEqual((delivery.settled, bench.slots.free), (None, 1))


class GivenBackTests(SynchronousTestCase):
    """A request that goes back to its queue."""

    def test_held_too_long(self) -> None:
        """With no slot within hold_limit it goes back, and leaves no timer."""
        bench = Bench(GOOD)
        bench.slots.acquire("another")
        delivery = bench.take(request())
        life = bench.handle(delivery)
        bench.clock.advance(9.9)
        self.assertNoResult(life)
        bench.clock.advance(0.2)
        self.successResultOf(life)
        self.assertEqual((delivery.settled, bench.slots.waiting, bench.grader.requests), ("requeue", 0, []))

    def test_cancelled_while_graded(self) -> None:
        """Cancelling reaches the grader; the request goes back and the slot is free."""
        bench = Bench(None)
        delivery = bench.take(request())
        life = bench.handle(delivery)
        life.cancel()
        self.successResultOf(life)
        self.assertEqual(bench.grader.cancelled, ["s-1"])
        self.assertEqual((delivery.settled, bench.slots.free, bench.publisher.published), ("requeue", 1, []))

    def test_cancelled_while_publishing(self) -> None:
        """A verdict that isn't published by then is lost, but not the request."""
        bench = Bench(GOOD)
        bench.publisher.failures = [BrokerUnreachable("gone")]
        delivery = bench.take(request())
        life = bench.handle(delivery)
        life.cancel()
        self.successResultOf(life)
        self.assertEqual((delivery.settled, bench.slots.free), ("requeue", 1))

    def test_returned_often(self) -> None:
        """A request that was returned often goes back as a new message, before the broker drops it."""
        for failures, settled in (([], "ack"), ([BrokerUnreachable("gone")], "requeue")):
            bench = Bench(None)
            bench.publisher.failures = list(failures)
            delivery = bench.take(request(headers={"x-delivery-count": MANY_RETURNS, "x-attempt": 2}))
            life = bench.handle(delivery)
            life.cancel()
            bench.clock.pump([0.001] * 5)
            self.successResultOf(life)
            self.assertEqual(delivery.settled, settled)
            ((body, properties),) = bench.broker.messages("q")
            self.assertEqual(body, delivery.body)
            if settled == "ack":
                self.assertEqual(dict(properties.headers), {"x-attempt": 2})

    def test_cancelled_twice(self) -> None:
        """Cancelled again while it goes back as a new message, it goes back the plain way, and at once."""
        bench = Bench(None)
        bench.publisher.publish = lambda message: Deferred()
        delivery = bench.take(request(headers={"x-delivery-count": MANY_RETURNS}))
        life = bench.handle(delivery)
        life.cancel()
        self.assertNoResult(life)
        life.cancel()
        self.successResultOf(life)
        self.assertEqual((delivery.settled, bench.slots.free), ("requeue", 1))

    def test_log_level(self) -> None:
        """Going back is an ordinary event, a failure is a warning."""
        bench = Bench(GraderCrashed("exit 1"))
        bench.run(request())
        self.assertEqual([event["log_level"] for event in bench.logged], [LogLevel.warn])
        bench = Bench(None)
        delivery = bench.take(request())
        with capturedLogs() as logged:
            bench.handle(delivery).cancel()
        self.assertEqual([event["log_level"] for event in logged], [LogLevel.info])
