"""Tests for :mod:`edxagent.lms.updater.life` and its desk; the broker and the sinks are doubles."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from edxagent.agent.results import ResultPublisher
from edxagent.agent.returns import MANY_RETURNS
from edxagent.breaker import Breaker
from edxagent.config.lms_values import UpdaterConfig
from edxagent.errors import (
    BrokerUnreachable,
    DatabaseUnavailable,
    PossiblyRecorded,
    PublishFailed,
    SinkRefused,
    SinkUnavailable,
)
from edxagent.lms.contracts import LedgerEntry
from edxagent.lms.updater.checks import ResultChecker
from edxagent.lms.updater.desk import Desk
from edxagent.lms.updater.life import ResultLife, Retries
from edxagent.lms.updater.notes import Notes
from edxagent.lms.updater.turns import Turns
from edxagent.model import CheckedResult, Properties
from edxagent.testing.memory import MemoryBroker, MemoryPublisher
from edxagent.testing.sinks import SECRET, RecordingSink
from tests.results import INVALID, LEARNER, VALID, properties, result

CONFIG = UpdaterConfig(
    concurrency=2,
    max_score=10,
    retry_delays=(2.0, 10.0, 60.0),
    refusal_attempts=3,
    breaker_failures=3,
    breaker_pause=15.0,
)
HOUR = 3600.0
NOW = 1_700_000_000.0


class RecordingLedger:
    """Keeps what it is told; raises ``error`` if there is one."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []
        self.error: Exception | None = None
        self.hangs = False

    async def _tell(self, *what: str) -> None:
        if self.hangs:
            await Deferred()
        if self.error is not None:
            raise self.error
        self.told.append(what)

    async def accepted(self, submission: str, *, origin: str, queue: str, remote: str | None = None) -> bool:
        """See ``ILedger``."""
        raise NotImplementedError

    async def answered(self, result: CheckedResult) -> None:
        """See ``ILedger``."""
        await self._tell("answered", result.submission, result.outcome)

    async def sink(self, submission: str, sink: str, state: str, reason: str = "") -> None:
        """See ``ILedger``."""
        await self._tell(sink, submission, state, reason)

    async def find(self, submission: str) -> LedgerEntry | None:
        """See ``ILedger``."""
        raise NotImplementedError

    async def unanswered(self, origin: str, before: float) -> list[LedgerEntry]:
        """See ``ILedger``."""
        raise NotImplementedError


class Bench:
    """A life with its surroundings; retry queues give back what waits in them when its time is over."""

    def __init__(self, config: UpdaterConfig = CONFIG, **sinks: Any) -> None:
        self.clock = Clock()
        self.broker = MemoryBroker(self.clock)
        self.broker.bind("grading.results", "grading.results", "grading.results")
        self.broker.bind("grading.dead", "grading.results", "dead")
        for delay in config.retry_delays:
            self.broker.bind(f"grading.results.retry.{delay * 1000:.0f}", "grading.results", self.retry(delay))
        self.publisher = MemoryPublisher(self.broker)
        self.ledger = RecordingLedger()
        self.sinks: dict[str, Any] = sinks or {"callback": RecordingSink()}
        self.notes = Notes(self.ledger)
        breaker = Breaker(failures=config.breaker_failures, pause=config.breaker_pause, seconds=self.clock.seconds)
        self.life = ResultLife(
            checker=ResultChecker(config),
            turns=Turns(config.concurrency),
            desk=Desk(sinks=self.sinks, breaker=breaker, refusal_attempts=config.refusal_attempts, notes=self.notes),
            sinks=tuple(self.sinks),
            retries=Retries(queue="grading.results", delays=config.retry_delays),
            publisher=ResultPublisher(self.publisher, "grading.results", self.clock),
            notes=self.notes,
            clock=self.clock,
            wall_clock=lambda: NOW + self.clock.seconds(),
        )
        self.logged: list[LogEvent] = []

    @staticmethod
    def retry(delay: float) -> str:
        """The name of a retry queue."""
        return f"retry {delay:g}"

    def begin(self, body: bytes | None = None, having: Properties | None = None) -> tuple[Any, Deferred[None]]:
        """Put a result into the queue, take it out, and begin its life."""
        self.broker.put("grading.results", result() if body is None else body, properties=having or properties())
        return self.go_on()

    def go_on(self) -> tuple[Any, Deferred[None]]:
        """Take a result out of the queue, and begin its life."""
        taken: list[Any] = []
        Deferred.fromCoroutine(self.broker.port("grading.results").get()).addCallback(taken.append)
        self.pump()
        delivery = taken[0]
        with capturedLogs() as logged:
            life = Deferred.fromCoroutine(self.life.handle(delivery))
            self.pump()
        self.logged += logged
        return delivery, life

    def handle(self, body: bytes | None = None, having: Properties | None = None) -> Any:
        """Take a result through its life to its end; the delivery."""
        delivery, life = self.begin(body, having)
        assert life.called, "its life hasn't ended"
        return delivery

    def come_back(self, delay: float) -> Any:
        """Let the delay pass and handle the result that waited there; the delivery."""
        queue = self.broker[self.retry(delay)]
        self.clock.advance(delay)
        stored = queue.ready.popleft()
        return self.handle(stored.body, stored.properties)

    def pump(self) -> None:
        """Let a few words go to the broker and back."""
        self.clock.pump([0.001] * 12)

    def parked(self) -> list[Properties]:
        """The properties of what is parked."""
        return [having for _, having in self.broker.messages("dead")]

    def waiting(self) -> dict[float, int]:
        """How many results wait for which delay."""
        counts = {delay: len(self.broker.bodies(self.retry(delay))) for delay in CONFIG.retry_delays}
        return {delay: count for delay, count in counts.items() if count}

    def said(self, level: LogLevel) -> list[str]:
        """What was logged."""
        return [str(formatEvent(event)) for event in self.logged if event["log_level"] is level]


class DeliveredTests(SynchronousTestCase):
    """Verdicts that reach their sinks."""

    def test_delivered(self) -> None:
        """A result is offered, sanitised, to the sink that it is for, and acked; the ledger learns of it."""
        bench = Bench()
        delivery = bench.handle(result(VALID["script"][0]))
        (taken,) = bench.sinks["callback"].taken
        self.assertEqual((taken.submission, taken.verdict.msg), ("submission-1", "<p>x</p>"))
        self.assertEqual(delivery.settled, "ack")
        self.assertEqual(bench.publisher.published, [])
        self.assertEqual(
            bench.ledger.told, [("answered", "submission-1", "graded"), ("callback", "submission-1", "delivered", "")]
        )

    def test_all_that_it_is_for(self) -> None:
        """A result may be for several sinks, and not for another."""
        sinks = [RecordingSink(), RecordingSink(takes=lambda result: False), RecordingSink()]
        Bench(a=sinks[0], b=sinks[1], c=sinks[2]).handle()
        self.assertEqual([len(sink.asked) for sink in sinks], [1, 0, 1])

    def test_ack_comes_last(self) -> None:
        """While a sink is at work the result isn't acked."""
        sink = RecordingSink(RecordingSink.HANG)
        bench = Bench(a=sink)
        delivery, _ = bench.begin()
        self.assertIsNone(delivery.settled)
        sink.hanging[0].callback(None)
        bench.pump()
        self.assertEqual(delivery.settled, "ack")

    def test_several_at_once(self) -> None:
        """As many results as configured are under way at once, and no more."""
        sink = RecordingSink(RecordingSink.HANG)
        bench = Bench(a=sink)
        for number in range(3):
            bench.begin(having=properties(str(number)))
        self.assertEqual([each.submission for each in sink.asked], ["0", "1"])
        sink.hanging[0].callback(None)
        self.assertEqual([each.submission for each in sink.asked], ["0", "1", "2"])

    def test_one_submission_at_a_time(self) -> None:
        """The same result, handed out again by the broker, waits for its twin's end."""
        sink = RecordingSink(RecordingSink.HANG)
        bench = Bench(a=sink)
        lives = [bench.begin()[1] for _ in range(3)]
        for number in range(3):
            self.assertEqual(len(sink.asked), number + 1)
            sink.hanging[0].callback(None)
            bench.pump()
            self.successResultOf(lives[number])

    def test_connection_gone(self) -> None:
        """A result whose connection is gone is delivered all the same; the log says that it will come again."""
        sink = RecordingSink(RecordingSink.HANG)
        bench = Bench(a=sink)
        delivery, life = bench.begin()
        delivery.lost = True
        with capturedLogs() as logged:
            sink.hanging[0].callback(None)
        self.successResultOf(life)
        self.assertIn("will come again", str(formatEvent(logged[-1])))


class UnavailableTests(SynchronousTestCase):
    """Sinks that are down for a while."""

    def test_retry(self) -> None:
        """The result waits in the first retry queue, confirmed before it is acked, and is delivered afterwards."""
        sink = RecordingSink(SinkUnavailable("503"), None)
        bench = Bench(a=sink)
        delivery = bench.handle()
        self.assertEqual((delivery.settled, bench.waiting()), ("ack", {2.0: 1}))
        bench.come_back(2.0)
        self.assertEqual([each.submission for each in sink.taken], ["submission-1"])
        self.assertEqual(
            bench.ledger.told[1:],
            [("a", "submission-1", "retrying", "503"), ("a", "submission-1", "delivered", "")],
        )

    def test_unconfirmed(self) -> None:
        """Until the broker has confirmed the retry, the result isn't acked; it is published again."""
        bench = Bench(a=RecordingSink(SinkUnavailable("503")))
        bench.publisher.failures += [PublishFailed("nack"), BrokerUnreachable("gone")]
        delivery, _ = bench.begin()
        self.assertIsNone(delivery.settled)
        bench.clock.pump([0.5] * 6)
        self.assertEqual((delivery.settled, bench.waiting()), ("ack", {2.0: 1}))

    def test_a_day(self) -> None:
        """The delays grow, and the last one repeats for as long as it takes: an outage loses nothing."""
        sink = RecordingSink(SinkUnavailable("down"))
        bench = Bench(a=sink)
        bench.handle()
        delays = []
        while bench.clock.seconds() < 24 * HOUR:
            (delay,) = bench.waiting()
            delays.append(delay)
            bench.come_back(delay)
        self.assertEqual(delays[:2], [2.0, 10.0])
        self.assertEqual(set(delays[2:]), {60.0})
        self.assertEqual(bench.parked(), [])
        sink.answers = [None]
        bench.come_back(60.0)
        self.assertEqual(len(sink.taken), 1)

    def test_retry_after(self) -> None:
        """The time that the LMS asks for is rounded up to the next delay, or as near as there is one."""
        for asked, delay in ((0.5, 2.0), (2.0, 2.0), (3.0, 10.0), (60.0, 60.0), (HOUR, 60.0), (float("nan"), 2.0)):
            bench = Bench(a=RecordingSink(SinkUnavailable("503", retry_after=asked)))
            bench.handle()
            self.assertEqual(bench.waiting(), {delay: 1}, asked)

    def test_only_who_needs_it(self) -> None:
        """A sink that took the result isn't asked again when another one must be."""
        up, down = RecordingSink(), RecordingSink(SinkUnavailable("down"), SinkUnavailable("down"), None)
        bench = Bench(up=up, down=down)
        bench.handle()
        bench.come_back(2.0)
        delivery = bench.come_back(10.0)
        self.assertEqual((len(up.asked), len(down.asked), len(down.taken)), (1, 3, 1))
        self.assertEqual((delivery.settled, bench.waiting(), bench.parked()), ("ack", {}, []))

    def test_breaker(self) -> None:
        """A target that fails too often in a row is left alone: results go straight to a queue that outlasts it."""
        down = RecordingSink(SinkUnavailable("down"), target="https://lms.example.org")
        bench = Bench(down=down)
        for number in range(10):
            bench.handle(having=properties(str(number)))
        self.assertEqual(len(down.asked), 3)
        self.assertEqual(bench.waiting(), {2.0: 3, 60.0: 7})
        (opened,) = bench.said(LogLevel.error)
        self.assertIn("https://lms.example.org failed too often", opened)

    def test_breaker_closes(self) -> None:
        """After the pause one is tried; when it is taken the others follow."""
        sink = RecordingSink(*[SinkUnavailable("down")] * 3, None)
        bench = Bench(a=sink)
        for number in range(4):
            bench.handle(having=properties(str(number)))
        bench.clock.advance(15)
        for number in range(4, 6):
            bench.handle(having=properties(str(number)))
        self.assertEqual([each.submission for each in sink.taken], ["4", "5"])
        self.assertIn("answers again", "".join(bench.said(LogLevel.info)))

    def test_other_targets(self) -> None:
        """Others are asked as ever while one is left alone."""
        down, up = RecordingSink(SinkUnavailable("down"), target="down"), RecordingSink(target="up")
        bench = Bench(down=down, up=up)
        for number in range(10):
            bench.handle(having=properties(str(number)))
        self.assertEqual((len(down.asked), len(up.taken)), (3, 10))


class ParkedTests(SynchronousTestCase):
    """Results that a person has to look at."""

    def test_invalid(self) -> None:
        """A reply that the LMS would choke on goes nowhere but to the parking queue, verbatim, with the reason."""
        bench = Bench()
        for name, (verdict, reason) in INVALID.items():
            body = result(verdict)
            self.assertEqual(bench.handle(body, properties(name)).settled, "ack")
            self.assertEqual(bench.broker.bodies("dead")[-1], body)
            parked = bench.parked()[-1]
            self.assertEqual(parked.message_id, name)
            self.assertIn(reason, parked.headers["x-error"], name)
            self.assertNotIn("x-sink", parked.headers)
        self.assertEqual(bench.sinks["callback"].asked, [])
        self.assertEqual(bench.ledger.told, [])

    def test_refused(self) -> None:
        """A sink that refuses is asked a few times, far apart: it may be a proxy's error page; then it is parked."""
        sink = RecordingSink(SinkRefused("404: no such course"))
        bench = Bench(a=sink)
        bench.handle()
        bench.come_back(60.0)
        self.assertEqual(bench.parked(), [])
        self.assertEqual(bench.come_back(60.0).settled, "ack")
        (parked,) = bench.parked()
        self.assertEqual((parked.headers["x-error"], parked.headers["x-sink"]), ("404: no such course", "a"))
        self.assertEqual((parked.headers["x-delivery-attempt"], parked.headers["x-outcome"]), (3, "graded"))
        self.assertEqual(parked.headers["x-time"], NOW + bench.clock.seconds() - 0.012)
        self.assertEqual((len(sink.asked), bench.waiting()), (3, {}))
        self.assertEqual(bench.ledger.told[-1], ("a", "submission-1", "parked", "404: no such course"))

    def test_outages_don_t_count(self) -> None:
        """Only refusals are counted, and each sink's by themselves."""
        no, down = SinkRefused("no"), SinkUnavailable("down")
        bench = Bench(a=RecordingSink(no, down, no, down, None), b=RecordingSink(down, no, down, no, None))
        bench.handle()
        for _ in range(4):
            bench.come_back(60.0)
        self.assertEqual([len(sink.taken) for sink in bench.sinks.values()], [1, 1])
        self.assertEqual(bench.parked(), [])

    def test_parked_for_one(self) -> None:
        """What is parked for one sink still reaches the others."""
        refusing = RecordingSink(SinkRefused("no"))
        down = RecordingSink(*[SinkUnavailable("down")] * 3, None)
        bench = Bench(refusing=refusing, down=down, config=CONFIG)
        bench.handle()
        for _ in range(3):
            bench.come_back(60.0)
        self.assertEqual((len(refusing.asked), len(down.taken)), (3, 1))
        self.assertEqual([each.headers["x-sink"] for each in bench.parked()], ["refusing"])
        self.assertEqual(bench.waiting(), {})

    def test_possibly_recorded(self) -> None:
        """What the LMS may have recorded is parked at once, and the ledger says so."""
        sink = RecordingSink(PossiblyRecorded("500 for one that was posted before"))
        bench = Bench(a=sink)
        bench.handle()
        (parked,) = bench.parked()
        self.assertIn("posted before", parked.headers["x-error"])
        self.assertEqual(len(sink.asked), 1)
        self.assertEqual(bench.ledger.told[-1][2], "possibly-recorded")

    def test_nobody_s(self) -> None:
        """A result that no sink takes is parked with that reason."""
        bench = Bench(a=RecordingSink(takes=lambda result: False))
        bench.handle(having=properties(x_origin="bridge:gone"))
        (parked,) = bench.parked()
        self.assertIn("no sink is for a result from bridge:gone", parked.headers["x-error"])

    def test_of_a_bridge_that_is_gone(self) -> None:
        """A result of a bridge that isn't here is parked, too, when others have taken it: its LMS doesn't know it."""
        database = RecordingSink(SinkUnavailable("down"), None)
        bench = Bench(database=database)
        bench.handle(having=properties(x_origin="bridge:gone"))
        self.assertEqual((bench.parked(), bench.waiting()), ([], {2.0: 1}))
        bench.come_back(2.0)
        (parked,) = bench.parked()
        self.assertIn("no sink is for a result from bridge:gone", parked.headers["x-error"])
        self.assertEqual((len(database.taken), bench.waiting()), (1, {}))

    def test_unexpected(self) -> None:
        """Any other error of a sink counts as a refusal, and is logged with its traceback."""
        for sink in (RecordingSink(ZeroDivisionError("secret")), RecordingSink(takes=lambda result: 1 / 0 > 0)):
            bench = Bench(a=sink)
            for _ in range(3):
                bench.handle(having=properties(x_refusals={"a": 2}))
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 3)
            self.assertEqual(
                {each.headers["x-error"] for each in bench.parked()}, {"the sink raised ZeroDivisionError"}
            )

    def test_a_sink_that_cancels_itself(self) -> None:
        """A sink's own CancelledError isn't taken for a stop of the updater's."""
        bench = Bench(a=RecordingSink(CancelledError()))
        self.assertEqual(bench.handle().settled, "ack")
        self.assertEqual(bench.waiting(), {60.0: 1})
        self.assertEqual(len(self.flushLoggedErrors(CancelledError)), 1)

    def test_a_bug_of_ours(self) -> None:
        """A result that we fail at ourselves is parked too: it must not be taken again and again."""
        bench = Bench()
        bench.life._checker = None  # type: ignore[assignment]
        self.assertEqual(bench.handle().settled, "ack")
        self.assertIn("AttributeError", bench.parked()[0].headers["x-error"])
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)


class CancelledTests(SynchronousTestCase):
    """The updater is told to stop."""

    def test_given_back(self) -> None:
        """The attempt is ended and the result goes back to its queue."""
        sink = RecordingSink(RecordingSink.HANG)
        bench = Bench(a=sink)
        delivery, life = bench.begin()
        life.cancel()
        bench.pump()
        self.successResultOf(life)
        self.assertEqual((delivery.settled, sink.cancelled), ("requeue", ["submission-1"]))
        self.assertEqual(bench.publisher.published, [])

    def test_while_it_waits(self) -> None:
        """So does one that waits for its turn, and the others still get theirs."""
        sink = RecordingSink(RecordingSink.HANG)
        bench = Bench(a=sink)
        lives = [bench.begin(having=properties(str(number % 3)))[1] for number in range(6)]
        for life in lives[2:]:
            life.cancel()
        for _ in range(2):
            sink.hanging[0].callback(None)
        bench.pump()
        self.assertEqual(len(bench.life._turns), 0)
        self.assertEqual([life.called for life in lives], [True] * 6)
        self.assertEqual(len(sink.asked), 2)

    def test_while_it_is_published(self) -> None:
        """A retry that the broker hasn't confirmed is given up: the result goes back."""
        bench = Bench(a=RecordingSink(SinkUnavailable("down")))
        bench.publisher.failures += [BrokerUnreachable("gone")] * 100
        delivery, life = bench.begin()
        life.cancel()
        self.successResultOf(life)
        self.assertEqual(delivery.settled, "requeue")

    def test_the_probe(self) -> None:
        """When the one that tries a target is cancelled, it, or another, may try again."""
        sink = RecordingSink(*[SinkUnavailable("down")] * 3, RecordingSink.HANG, None)
        bench = Bench(a=sink)
        for number in range(3):
            bench.handle(having=properties(str(number)))
        bench.clock.advance(15)
        bench.begin()[1].cancel()
        self.assertEqual(sink.cancelled, ["submission-1"])
        bench.go_on()
        self.assertEqual([each.submission for each in sink.taken], ["submission-1"])

    def test_returned_often(self) -> None:
        """A result that was returned often goes back as a new message, before the broker drops it."""
        bench = Bench(a=RecordingSink(RecordingSink.HANG))
        delivery, life = bench.begin(having=properties(x_delivery_count=MANY_RETURNS))
        life.cancel()
        bench.pump()
        self.successResultOf(life)
        self.assertEqual((delivery.settled, bench.broker.bodies("grading.results")), ("ack", [result()]))


class LedgerTests(SynchronousTestCase):
    """What the ledger can't do any harm to."""

    def test_unavailable(self) -> None:
        """A ledger that is down is logged; verdicts go on."""
        bench = Bench()
        bench.ledger.error = DatabaseUnavailable("the database is locked")
        self.assertEqual(bench.handle().settled, "ack")
        self.assertEqual(len(bench.sinks["callback"].taken), 1)
        self.assertIn("the database is locked", "".join(bench.said(LogLevel.warn)))

    def test_broken(self) -> None:
        """So does one that raises what it must not."""
        bench = Bench()
        bench.ledger.error = ZeroDivisionError()
        self.assertEqual(bench.handle().settled, "ack")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_slow(self) -> None:
        """No verdict waits for a ledger that hangs; a stop can wait for it, and give it up."""
        bench = Bench()
        bench.ledger.hangs = True
        self.assertEqual(bench.handle().settled, "ack")
        written = bench.notes.when_written()
        self.assertNoResult(written)
        bench.notes.cancel()
        self.successResultOf(written)

    def test_once(self) -> None:
        """That a verdict arrived is told at its first attempt only."""
        bench = Bench(a=RecordingSink(SinkUnavailable("down"), None))
        bench.handle()
        bench.come_back(2.0)
        self.assertEqual([what[0] for what in bench.ledger.told], ["answered", "a", "a"])


class LogTests(SynchronousTestCase):
    """What an operator reads."""

    def test_no_secrets(self) -> None:
        """No line, and nothing in its fields, holds the LMS's key or the learner's words."""
        sink = RecordingSink(None, SinkUnavailable("down"), SinkRefused("no"), PossiblyRecorded("perhaps"))
        bench = Bench(a=sink)
        for number in range(5):
            bench.handle(having=properties(str(number)))
        bench.handle(b"{" + result())
        for what in (SECRET, LEARNER):
            self.assertNotIn(what, repr(bench.logged))
            self.assertNotIn(what, "".join(bench.said(LogLevel.info) + bench.said(LogLevel.warn)))

    def test_lines(self) -> None:
        """One line a result: what became of it, of which submission, and why."""
        bench = Bench(a=RecordingSink(None, SinkUnavailable("503")))
        bench.handle(having=properties("1"))
        bench.handle(having=properties("2"))
        bench.handle(b"x", properties("3"))
        self.assertRegex("".join(bench.said(LogLevel.info)), r"^delivered: the verdict on 1 in 0\.\d+ s$")
        retried, parked = bench.said(LogLevel.warn)
        self.assertRegex(retried, r"^to be retried: the verdict on 2 in 0\.\d+ s: a: 503$")
        self.assertRegex(parked, r"^parked: the verdict on 3 in 0\.\d+ s: not a result")
