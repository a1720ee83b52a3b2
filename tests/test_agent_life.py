"""Tests for :mod:`edxagent.agent.life` and :mod:`edxagent.agent.results`, with every part but those a double."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from edxagent.agent.grader_breaker import GraderBreaker
from edxagent.agent.held import HeldDelivery
from edxagent.agent.life import SubmissionLife
from edxagent.agent.results import ResultPublisher
from edxagent.agent.returns import MANY_RETURNS
from edxagent.agent.valve import Valve
from edxagent.config.values import (
    AgentConfig,
    BreakerConfig,
    BrokerConfig,
    FailureConfig,
    GraderConfig,
    QueueConfig,
    ResultsConfig,
    RetryConfig,
)
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
from edxagent.interfaces import IDelivery
from edxagent.limits import FairSlots
from edxagent.model import REQUESTS_RETRY, GraderRequest, GraderResponse, Message, Properties, retry_name
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
    retry=RetryConfig(delays=(5.0, 30.0), crash_attempts=2, give_up_after=100),
    breaker=BreakerConfig(failures=3, counts=("unavailable", "crashed")),
)
ONCE = evolve(CONFIG, retry=RetryConfig(crash_attempts=1))
NOW = 1_700_000_000.0


class KnownSuspects:
    """A quarantine that is told whom to suspect."""

    def __init__(self) -> None:
        self.suspects: set[str] = set()
        self.convicts: set[str] = set()
        self.watched: list[str] = []

    def is_suspect(self, delivery: IDelivery) -> bool:
        """See ``Quarantine``."""
        return delivery.properties.message_id in self.suspects

    def is_convicted(self, submission: str) -> bool:
        """See ``Quarantine``."""
        return submission in self.convicts

    @contextmanager
    def watch(self, submission: str) -> Iterator[None]:
        """See ``Quarantine``."""
        self.watched.append(submission)
        try:
            yield
        finally:
            self.watched.remove(submission)

    def forget(self, submission: str) -> None:
        """See ``Quarantine``."""
        self.convicts.remove(submission)


class Bench:
    """A life with its surroundings."""

    def __init__(self, *answers: bytes | Exception | None, config: AgentConfig = CONFIG) -> None:
        self.clock = Clock()
        self.broker = MemoryBroker(self.clock)
        self.broker.declare("q")
        self.broker.bind("grading.dead", "q", "q.dead")
        self.broker.bind("grading.results", "grading.results", "grading.results")
        for delay in config.retry.delays:
            self.broker.bind(retry_name(REQUESTS_RETRY, delay), "q", f"after {delay:g} s")
        self.publisher = MemoryPublisher(self.broker)
        self.valve = Valve()
        self.grader = StubGrader(*answers)
        self.slots = FairSlots(1, {})
        self.begun: list[HeldDelivery] = []
        self.breaker = GraderBreaker(
            config=config.breaker, valve=self.valve, clock=self.clock, wall_clock=self.wall_clock
        )
        self.quarantine: Any = KnownSuspects()
        self.use(ResultPublisher(self.publisher, "grading.results", self.clock, self.valve), config)
        self.logged: list[LogEvent] = []

    def use(self, results: ResultPublisher, config: AgentConfig) -> None:
        """Make a life that publishes so."""
        self.life = SubmissionLife(
            config=config,
            grader=self.grader,
            slots=self.slots,
            results=results,
            clock=self.clock,
            wall_clock=self.wall_clock,
            breaker=self.breaker,
            quarantine=self.quarantine,
        )

    def wall_clock(self) -> float:
        """Seconds since the epoch."""
        return NOW + self.clock.seconds()

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

    def waiting(self, seconds: float) -> list[Message]:
        """What is in the retry queue of a delay."""
        return [
            Message(exchange="", routing_key="q", body=body, properties=properties)
            for body, properties in self.broker.messages(f"after {seconds:g} s")
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
    """A submission that doesn't, at its last attempt."""

    def test_outcomes(self) -> None:
        """Each failure makes a dead letter that says why, and the learner hears of it."""
        for answer, outcome in (
            (MalformedSubmission("a file is missing"), "malformed"),
            (GraderTimedOut("late"), "timed-out"),
            (GraderCrashed("exit 1"), "crashed"),
            (BadReply("too large"), "bad-reply"),
            (b"<html>", "bad-reply"),
            (b'{"correct": true, "score": 6, "msg": "x"}', "bad-reply"),
        ):
            bench = Bench(answer, config=ONCE)
            delivery = bench.run(request())
            ((body, properties),) = bench.broker.messages("q.dead")
            self.assertEqual(body, delivery.body)
            self.assertEqual(properties.headers["x-outcome"], outcome)
            self.assertTrue(properties.headers["x-told-learner"])
            self.assertTrue(properties.headers["x-error"])
            self.assertEqual([(v["correct"], p.headers["x-outcome"]) for v, p in bench.results()], [(False, outcome)])
            self.assertEqual((delivery.settled, bench.slots.free), ("ack", 1))

    def test_dead_letter_first(self) -> None:
        """The dead letter is safe before the learner is told."""
        bench = Bench(GraderCrashed("exit 1"), config=ONCE)
        bench.run(request())
        self.assertEqual([m.exchange for m in bench.publisher.published], ["grading.dead", "grading.results"])

    def test_surprise(self) -> None:
        """An exception that no grader may raise counts as a crash; its traceback is logged, its text isn't told."""
        bench = Bench(ZeroDivisionError("the-answer"), config=ONCE)
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

        bench = Bench(config=ONCE)
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
        bench = Bench(GraderUnavailable("refused"), GraderCrashed("x"), config=evolve(ONCE, failure=failure))
        bench.run(request(headers={"x-first-failed": NOW - 24 * 3600}))
        bench.run(request())
        self.assertEqual([verdict["msg"] for verdict, _ in bench.results()], ["<p>Later.</p>"])
        self.assertEqual(len(bench.broker.bodies("q.dead")), 2)


class RetriedTests(SynchronousTestCase):
    """A submission that is tried again."""

    def test_waits_on_the_broker(self) -> None:
        """The same request goes to the retry queue; it is acked when the broker has it there, and nothing is kept."""
        bench = Bench(GraderUnavailable("refused"))
        before = request(correlation_id="c", reply_to="elsewhere")
        delivery = bench.run(before)
        (retry,) = bench.waiting(5)
        self.assertEqual(retry.body, delivery.body)
        self.assertEqual(evolve(retry.properties, headers={}), evolve(before.properties, headers={}))
        self.assertEqual((delivery.settled, bench.slots.free, bench.clock.getDelayedCalls()), ("ack", 1, []))
        self.assertEqual((bench.broker.bodies("q.dead"), bench.results()), ([], []))

    def test_never_acked_before_the_confirm(self) -> None:
        """Until the broker has confirmed the retry, the request is ours."""
        bench = Bench(GraderUnavailable("refused"))
        bench.publisher.failures = [PublishFailed("nacked")]
        delivery = bench.take(request())
        bench.handle(delivery)
        bench.clock.advance(0.4)
        self.assertEqual((delivery.settled, bench.slots.free), (None, 0))
        bench.clock.pump([0.2, 0.001, 0.001])
        self.assertEqual((delivery.settled, len(bench.waiting(5))), ("ack", 1))

    def test_crashes_twice(self) -> None:
        """At the second crash it is a dead letter that tells of both, and the verdict says which attempt it was."""
        bench = Bench(GraderCrashed("exit status 3"), GraderCrashed("exit status 4"))
        bench.run(request())
        bench.run(bench.waiting(5)[0])
        ((_, dead),) = bench.broker.messages("q.dead")
        self.assertEqual((dead.headers["x-attempt"], dead.headers["x-failures"]), (2, {"crashed": 2}))
        self.assertEqual(
            [entry.split(maxsplit=3)[::3] for entry in dead.headers["x-history"]],
            [["1", "agent-1: exit status 3"], ["2", "agent-1: exit status 4"]],
        )
        ((_, result),) = bench.results()
        self.assertEqual((result.headers["x-outcome"], result.headers["x-attempt"]), ("crashed", 2))
        self.assertEqual([each.attempt for each in bench.grader.requests], [1, 2])

    def test_graded_at_last(self) -> None:
        """Unavailable twice, it waits longer each time; then it is graded, at attempt three."""
        bench = Bench(GraderUnavailable("refused"), GraderUnavailable("refused"), GOOD)
        bench.run(request())
        bench.run(bench.waiting(5)[0])
        bench.run(bench.waiting(30)[0])
        ((verdict, result),) = bench.results()
        self.assertEqual((verdict["score"], result.headers["x-attempt"]), (1.0, 3))
        self.assertEqual(bench.broker.bodies("q.dead"), [])

    def test_retry_after(self) -> None:
        """A grader that asks for 6 s isn't asked after 5."""
        bench = Bench(GraderUnavailable("busy", 6.0))
        bench.run(request())
        self.assertEqual((bench.waiting(5), len(bench.waiting(30))), ([], 1))

    def test_given_up(self) -> None:
        """Unavailable for too long it is a dead letter, and no learner gets a 0."""
        bench = Bench(GraderUnavailable("refused"))
        bench.run(request())
        bench.clock.advance(100)
        bench.run(bench.waiting(5)[0])
        ((_, dead),) = bench.broker.messages("q.dead")
        self.assertEqual((dead.headers["x-outcome"], dead.headers["x-told-learner"]), ("unavailable", False))
        self.assertEqual(bench.results(), [])

    def test_given_back(self) -> None:
        """One that goes back to its queue keeps what is known of its attempts, and none is counted."""
        bench = Bench(GraderCrashed("exit status 3"), None)
        bench.run(request())
        delivery = bench.take(bench.waiting(5)[0])
        bench.handle(delivery).cancel()
        bench.clock.pump([0.001] * 3)
        ((_, properties),) = bench.broker.messages("q")
        self.assertEqual((properties.headers["x-attempt"], properties.headers["x-failures"]), (2, {"crashed": 1}))

    def test_log_line(self) -> None:
        """The line says when it is tried again."""
        bench = Bench(GraderUnavailable("refused"))
        bench.run(request())
        (event,) = bench.logged
        self.assertIn("refused; tried again in 5 s", formatEvent(event))


class BreakerTests(SynchronousTestCase):
    """What the breaker hears, and what it changes."""

    def test_opens(self) -> None:
        """After three failures in a row no more are taken."""
        bench = Bench(GraderUnavailable("refused"))
        for _ in range(3):
            self.assertTrue(bench.valve.is_open)
            bench.run(request())
        self.assertEqual(
            bench.valve.reasons,
            {"breaker": "the grader failed 3 times in a row: refused; one submission is tried in 5 s"},
        )

    def test_graded_between(self) -> None:
        """Only failures in a row count."""
        bench = Bench(*[GraderUnavailable("refused"), GraderUnavailable("refused"), GOOD] * 2)
        for _ in range(6):
            bench.run(request())
        self.assertTrue(bench.valve.is_open)

    def test_not_held_against_it(self) -> None:
        """What a grader that is down does to a submission doesn't count towards its end."""
        bench = Bench(GraderCrashed("exit status 127"))
        for _ in range(3):
            bench.run(request())
        doomed = request(headers={"x-failures": {"crashed": 1}, "x-attempt": 2})
        bench.run(doomed)
        retry = bench.waiting(30)[-1]
        self.assertEqual(retry.properties.headers["x-failures"], {"crashed": 1, "unavailable": 1})
        self.assertIn("crashed, as others before it: exit status 127", retry.properties.headers["x-history"][-1])
        self.assertEqual((bench.results(), bench.broker.bodies("q.dead")), ([], []))

    def test_says_nothing(self) -> None:
        """What never reached the grader, or was cancelled there, tells nothing of it."""
        bench = Bench(GraderUnavailable("refused"), GraderUnavailable("refused"), None, GraderUnavailable("refused"))
        bench.run(request())
        bench.run(request())
        bench.handle(bench.take(request())).cancel()
        bench.clock.pump([0.001] * 3)
        bench.broker["q"].ready.clear()
        bench.run(evolve(request(), body=b"?"))
        bench.quarantine.convicts.add("s-1")
        bench.run(request())
        self.assertTrue(bench.valve.is_open)
        bench.run(request())
        self.assertFalse(bench.valve.is_open)


class QuarantinedTests(SynchronousTestCase):
    """A submission that agents died of."""

    def test_watched(self) -> None:
        """It is known that a submission is being graded from before its grader begins until it has ended."""
        bench = Bench(None)
        life = bench.handle(bench.take(request()))
        self.assertEqual((bench.quarantine.watched, len(bench.grader.hanging)), (["s-1"], 1))
        life.cancel()
        self.assertEqual(bench.quarantine.watched, [])

    def test_suspect(self) -> None:
        """A suspect is graded when no other is, and no other while it is."""
        bench = Bench(None)
        bench.slots.resize(2)
        bench.quarantine.suspects.add("s-1")
        first, suspect, last = (bench.take(request(message_id=name)) for name in ("s-0", "s-1", "s-2"))
        for delivery in (first, suspect, last):
            bench.handle(delivery)
        for turn in (["s-0"], ["s-1"], ["s-2"]):
            self.assertEqual(bench.quarantine.watched, turn)
            bench.grader.hanging[0].callback(GOOD)
            bench.clock.pump([0.001] * 3)
        self.assertEqual([each.settled for each in (first, suspect, last)], ["ack"] * 3)

    def test_patient_suspect(self) -> None:
        """A suspect waits for the end of its neighbours: going back, it would have stopped everybody for nothing."""
        bench = Bench(None)
        bench.slots.resize(2)
        bench.quarantine.suspects.add("s-1")
        first, suspect = (bench.take(request(message_id=name)) for name in ("s-0", "s-1"))
        bench.handle(first)
        bench.handle(suspect)
        bench.clock.advance(CONFIG.hold_limit + CONFIG.grader.timeout - 1)
        bench.grader.hanging[0].callback(GOOD)
        bench.clock.pump([0.001] * 3)
        self.assertEqual((first.settled, bench.quarantine.watched), ("ack", ["s-1"]))
        bench.grader.hanging[0].callback(GOOD)
        bench.clock.pump([0.001] * 3)
        self.assertEqual((suspect.settled, bench.clock.getDelayedCalls()), ("ack", []))

    def test_convicted(self) -> None:
        """One of which it is known isn't graded any more: it is a dead letter, and the learner gets no 0."""
        bench = Bench(GOOD)
        bench.quarantine.convicts.add("s-1")
        delivery = bench.run(request())
        ((_, dead),) = bench.broker.messages("q.dead")
        self.assertEqual((dead.headers["x-outcome"], dead.headers["x-told-learner"]), ("quarantined", False))
        self.assertEqual((delivery.settled, bench.grader.requests, bench.results()), ("ack", [], []))
        self.assertEqual((bench.slots.free, bench.quarantine.watched), (1, []))

    def test_replayed(self) -> None:
        """Once it is a dead letter, and not before, it is forgotten: somebody who replays it has a reason."""
        bench = Bench(GOOD)
        bench.quarantine.convicts.add("s-1")
        bench.publisher.failures = [PublishFailed("refused")]
        delivery = bench.take(request())
        bench.handle(delivery)
        self.assertEqual(bench.quarantine.convicts, {"s-1"})
        bench.clock.pump([0.5, 0.001, 0.001, 0.001])
        self.assertEqual((bench.quarantine.convicts, delivery.settled), (set(), "ack"))
        bench.run(request())
        self.assertEqual(len(bench.results()), 1)


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
        self.assertEqual((delivery.settled, list(bench.valve.reasons)), (None, ["publishing"]))
        bench.broker.declare("grading.results")
        bench.clock.pump([0.1] * 60)
        self.assertEqual((delivery.settled, len(bench.results()), bench.valve.is_open), ("ack", 1, True))

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
