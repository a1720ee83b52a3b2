"""Polling, and what happens to what it brings."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from edxagent.errors import BrokerUnreachable, MessageRefused, Unroutable
from edxagent.lms.bridge.client import QueueTrouble
from edxagent.lms.bridge.intake import Intake
from edxagent.lms.bridge.outstanding import FEW, Outstanding
from edxagent.lms.bridge.pause import GrowingPause, Naps
from edxagent.lms.bridge.poller import Peace, Poller
from edxagent.lms.bridge.session import Trouble
from edxagent.model import Message
from edxagent.testing.memory import MemoryBroker, MemoryPublisher
from edxagent.wire.request import decode_request
from tests.bridge_support import MemoryLedger, PlayedClient, bridge_config, half, item_of, result_of, same

NOW = 1_800_000_000.0


class PollerTestCase(SynchronousTestCase):
    """A test with pollers of the queues ``q1`` and ``q2``."""

    uniform = staticmethod(same)

    def setUp(self) -> None:
        """Have everything ready."""
        self.clock = Clock()
        self.clock.advance(1000)
        self.began = self.clock.seconds()
        self.broker = MemoryBroker(self.clock)
        self.broker.declare("q1", "q2")
        self.publisher = MemoryPublisher(self.broker)
        self.ledger = MemoryLedger(self.wall_clock)
        self.lms = PlayedClient()
        self.config = bridge_config(poll_initial=1.0, poll_max=10.0, concurrency=2)
        self.new_life()

    def new_life(self) -> None:
        """As after a restart: only what is in the ledger, the broker and the LMS is the same."""
        self.outstanding = Outstanding(240.0, self.clock.seconds)
        self.naps = Naps(self.clock)
        self.turns = DeferredSemaphore(self.config.concurrency)
        self.peace = Peace(self.clock, self.uniform)
        self.intake = Intake(
            config=self.config,
            publisher=self.publisher,
            ledger=self.ledger,
            outstanding=self.outstanding,
            naps=self.naps,
            clock=self.clock,
            wall_clock=self.wall_clock,
            uniform=self.uniform,
        )

    def wall_clock(self) -> float:
        """Seconds since the epoch."""
        return NOW + self.clock.seconds()

    def poll(self, queue: str = "q1") -> Deferred[None]:
        """Begin to poll."""
        poller = Poller(
            queue=queue,
            config=self.config,
            client=self.lms,
            intake=self.intake,
            outstanding=self.outstanding,
            turns=self.turns,
            peace=self.peace,
            naps=self.naps,
            uniform=self.uniform,
        )
        return Deferred.fromCoroutine(poller.run())

    def pass_time(self, seconds: float) -> None:
        """Let time pass, in small steps."""
        for _ in range(int(seconds * 100)):
            self.clock.advance(0.01)

    def stop(self) -> None:
        """End all."""
        self.naps.end()
        self.outstanding.wake()

    def waits(self) -> list[float]:
        """The seconds between polls, until there were none for a while."""
        pauses, before, at = [], len(self.lms.asked), self.clock.seconds()
        while self.clock.seconds() < at + 12:
            self.clock.advance(0.01)
            if len(self.lms.asked) > before:
                pauses.append(round(self.clock.seconds() - at, 1))
                before, at = len(self.lms.asked), self.clock.seconds()
                if len(pauses) == 7:
                    break
        return pauses


class PollingTests(PollerTestCase):
    """``Poller``: when."""

    def test_backs_off(self) -> None:
        """An empty queue is polled ever more rarely."""
        self.poll()
        self.assertEqual(self.lms.asked, ["q1"])
        self.assertEqual(self.waits(), [1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0])

    def test_at_once(self) -> None:
        """While there is work, the next poll comes as soon as the broker has the last one; then pauses are short."""
        self.poll()
        self.pass_time(20)
        self.lms.pulls = [item_of(number) for number in range(3)]
        while not self.publisher.published:
            self.pass_time(0.01)
        self.pass_time(0.2)
        self.assertEqual(len(self.publisher.published), 3)
        first, *others = self.waits()
        self.assertLess(first, 1.0)
        self.assertEqual(others, [2.0, 4.0, 8.0, 10.0, 10.0, 10.0])

    def test_trouble_of_the_lms(self) -> None:
        """An LMS in trouble is left alone by the pollers of all its queues, ever longer, until it answers."""
        self.lms.pulls = [Trouble("it is down")] * 7
        self.poll("q1")
        self.poll("q2")
        at: list[float] = []
        for _ in range(13_000):
            if len(self.lms.asked) > len(at):
                at += [round(self.clock.seconds() - self.began)] * (len(self.lms.asked) - len(at))
            self.clock.advance(0.01)
        self.assertEqual(at[:9], [0, 1, 3, 7, 15, 31, 63, 123, 123])

    def test_trouble_of_a_queue(self) -> None:
        """A queue in trouble doesn't keep another from being polled."""
        self.lms.pulls = [QueueTrouble("no such queue"), item_of(1), item_of(2)]
        self.poll("q1")
        self.poll("q2")
        self.pass_time(0.5)
        self.assertEqual(len(self.publisher.published), 2)
        self.assertEqual(self.lms.asked.count("q1"), 1)

    def test_bug(self) -> None:
        """What nobody thought of is logged, and doesn't end the polling."""
        self.lms.pulls = [ZeroDivisionError()]
        self.poll()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.pass_time(1.1)
        self.assertEqual(len(self.lms.asked), 2)

    def test_only_what_is_answered_in_time(self) -> None:
        """As long as no verdict comes, only a few are fetched; each verdict lets in more."""
        self.lms.pulls = [item_of(number) for number in range(100)]
        self.poll()
        self.pass_time(500)
        self.assertEqual(len(self.publisher.published), FEW)
        self.new_life()
        self.lms.pulls = [item_of(1000 + number) for number in range(100)]
        self.poll()
        self.pass_time(5)
        for message in self.publisher.published[FEW : 2 * FEW]:
            self.outstanding.answered(str(message.properties.message_id))
        self.pass_time(1)
        self.assertEqual(len(self.publisher.published), FEW + FEW + 2 * FEW)

    def test_concurrency(self) -> None:
        """Queues share the requests that the LMS may have at once."""
        pulls: list[Deferred[Any]] = [Deferred() for _ in range(3)]  # kept: a poll that nobody can end is cleared away
        self.lms.pulls = [*pulls]
        for queue in ("q1", "q2", "q3"):
            self.poll(queue)
        self.assertEqual(self.lms.asked, ["q1", "q2"])

    def test_stop(self) -> None:
        """Told to stop, it fetches no more; what was being fetched is published first."""
        pulls: list[Deferred[Any]] = [Deferred(), Deferred()]
        self.lms.pulls = [*pulls]
        polling = [self.poll(queue) for queue in ("q1", "q2", "q3")]
        self.stop()
        pulls[0].callback(item_of(1))
        pulls[1].callback(None)
        self.successResultOf(polling[1])
        self.successResultOf(polling[2])
        self.assertEqual(self.lms.asked, ["q1", "q2"])
        self.assertNoResult(polling[0])
        self.pass_time(0.1)
        self.successResultOf(polling[0])
        self.assertEqual(len(self.publisher.published), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_while_idle(self) -> None:
        """Told to stop while it waits, for time, for room or for the LMS, it ends at once."""
        for pulls in ([], [Trouble("down")], [item_of(number) for number in range(FEW)]):
            self.setUp()
            self.lms.pulls = [*pulls]
            polling = self.poll()
            self.pass_time(0.5)
            self.stop()
            self.successResultOf(polling)
            self.assertEqual(self.clock.getDelayedCalls(), [])


class JitterTests(PollerTestCase):
    """With the other end of the lots."""

    uniform = staticmethod(half)

    def test_jitter(self) -> None:
        """A pause may be half as long, so that not everybody comes at once."""
        self.poll()
        self.assertEqual(self.waits(), [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0])

    def test_reset(self) -> None:
        """A growing pause begins anew when all is well."""
        pause = GrowingPause(1.0, 3.0, half)
        self.assertEqual([pause.next() for _ in range(4)], [0.5, 1.0, 1.5, 1.5])
        pause.reset()
        self.assertEqual(pause.next(), 0.5)


class IntakeTests(PollerTestCase):
    """``Intake``: what is published, and when it isn't."""

    def fetch(self, *items: object) -> list[Message]:
        """Have the LMS hand these out; returns what was published of them."""
        before = len(self.publisher.published)
        self.lms.pulls = list(items)
        self.poll()
        self.pass_time(60)
        self.stop()
        return self.publisher.published[before:]

    def test_message(self) -> None:
        """A submission is published with its three strings, under an id of ours, and remembered."""
        item = item_of(7, "k", files='{"a.c": "https://lms.example.org/a.c"}')
        [message] = self.fetch(item)
        properties = message.properties
        self.assertEqual((message.exchange, message.routing_key), ("grading.requests", "q1"))
        self.assertEqual(
            json.loads(message.body),
            {"xqueue_header": item.header, "xqueue_body": item.body, "xqueue_files": item.files},
        )
        self.assertEqual(properties.headers["x-origin"], "bridge:lms")
        self.assertEqual((properties.message_id, properties.timestamp), (item.submission("lms"), int(NOW + self.began)))
        row = self.ledger.rows[item.submission("lms")]
        self.assertEqual((row.origin, row.queue, row.remote), ("bridge:lms", "q1", "7"))

    def test_readable(self) -> None:
        """An agent can read it."""
        item = item_of(1)
        body = json.dumps({"student_response": "ä", "grader_payload": "", "student_info": "{}"})
        [message] = self.fetch(type(item)(header=item.header, body=body, files="{}", remote=1, key="key"))
        submission = decode_request(message.body, message.properties, "q1", 10_000)
        self.assertEqual((submission.student_response, submission.origin), ("ä", "bridge:lms"))

    def test_handed_out_again(self) -> None:
        """What is handed out again under the same key is known, in this life and the next, and isn't published."""
        self.assertEqual(len(self.fetch(item_of(1), item_of(1), item_of(1))), 1)
        self.new_life()
        self.assertEqual(self.fetch(item_of(1), item_of(1)), [])

    def test_another_key(self) -> None:
        """Handed out under another key it is to be graded anew."""
        first, second = self.fetch(item_of(1, "a"), item_of(1, "b"))
        self.assertNotEqual(first.properties.message_id, second.properties.message_id)

    def test_known_ones_are_no_work(self) -> None:
        """One that is handed out again and again isn't a reason to poll at once."""
        self.lms.pulls = [item_of(1)] * 50
        self.poll()
        self.pass_time(30)
        self.assertLess(len(self.lms.asked), 9)

    def test_published_but_not_confirmed(self) -> None:
        """If the broker's confirm is lost, it is published again under the same id."""
        self.publisher.failures = [BrokerUnreachable("it broke off")]
        [message] = self.fetch(item_of(1))
        self.assertEqual(message.properties.message_id, item_of(1).submission("lms"))

    def test_published_but_not_remembered(self) -> None:
        """If the program ends before the ledger is written, it is published again under the same id."""
        self.ledger.refuse = lambda *call: call[0] == "accepted"
        [first] = self.fetch(item_of(1))
        self.ledger.refuse = lambda *call: False
        self.new_life()
        [second] = self.fetch(item_of(1))
        self.assertEqual(first.properties.message_id, second.properties.message_id)

    def test_graded_but_not_remembered(self) -> None:
        """… unless its verdict has come meanwhile."""
        self.ledger.refuse = lambda *call: call[0] == "accepted"
        [message] = self.fetch(item_of(1))
        self.ledger.refuse = lambda *call: False
        answering = self.ledger.answered(result_of(str(message.properties.message_id), "header"))
        self.successResultOf(Deferred.fromCoroutine(answering))
        self.new_life()
        self.assertEqual(self.fetch(item_of(1)), [])

    def test_possibly_recorded(self) -> None:
        """One whose verdict was parked as possibly recorded has none, if it is handed out again: it is graded again."""
        [message] = self.fetch(item_of(1))
        submission = str(message.properties.message_id)
        for work in (
            self.ledger.answered(result_of(submission, "header")),
            self.ledger.sink(submission, "put_result", "possibly-recorded"),
        ):
            self.successResultOf(Deferred.fromCoroutine(work))
        self.new_life()
        self.assertEqual(len(self.fetch(item_of(1), item_of(1))), 1)

    def test_delivered(self) -> None:
        """One that crossed its verdict is done."""
        [message] = self.fetch(item_of(1))
        submission = str(message.properties.message_id)
        self.successResultOf(Deferred.fromCoroutine(self.ledger.answered(result_of(submission, "header"))))
        self.new_life()
        self.fetch(item_of(1))
        self.assertNotIn(submission, self.outstanding)

    def test_remembers(self) -> None:
        """A new life knows what is out, since when, and its header as soon as it is handed out again."""
        [message] = self.fetch(item_of(1))
        self.new_life()
        self.successResultOf(Deferred.fromCoroutine(self.intake.remember()))
        [waiting] = self.outstanding.older_than(0)
        self.assertEqual((waiting.submission, waiting.header), (message.properties.message_id, None))
        self.assertLess(abs(waiting.since - self.began), 0.1)
        self.fetch(item_of(1))
        [waiting] = self.outstanding.older_than(0)
        self.assertEqual(waiting.header, item_of(1).header)
        self.assertLess(abs(waiting.since - self.began), 0.1)

    def test_known_to_the_ledger_only(self) -> None:
        """So it does of one that it didn't remember at its start."""
        self.fetch(item_of(1))
        self.new_life()
        self.fetch(item_of(1))
        [waiting] = self.outstanding.older_than(0)
        self.assertEqual(waiting.header, item_of(1).header)
        self.assertLess(abs(waiting.since - self.began), 0.1)

    def test_broker_away(self) -> None:
        """While the broker is away nothing more is fetched, from any queue; then what is in hand comes first."""
        self.publisher.failures = [BrokerUnreachable("no broker")] * 5
        self.lms.pulls = [item_of(1)]
        self.poll("q1")
        self.poll("q2")
        self.pass_time(0.1)
        asked = len(self.lms.asked)
        self.pass_time(7)
        self.assertEqual(len(self.lms.asked), asked)
        self.pass_time(20)
        self.assertEqual(len(self.publisher.published), 1)
        self.assertGreater(len(self.lms.asked), asked + 2)

    def test_queue_missing(self) -> None:
        """So it is while the broker has no such queue."""
        self.publisher.failures = [Unroutable("no queue q1")] * 3
        self.assertEqual(len(self.fetch(item_of(1))), 1)

    def test_ledger_away(self) -> None:
        """While the ledger is away nothing is fetched, or published, that could have been before."""
        self.ledger.refuse = lambda *call: True
        self.lms.pulls = [item_of(1), item_of(2)]
        self.poll()
        self.pass_time(60)
        self.assertEqual((self.lms.asked, self.publisher.published), (["q1"], []))
        self.ledger.refuse = lambda *call: False
        self.pass_time(60)
        self.assertEqual(len(self.publisher.published), 2)

    def test_stop_while_broker_is_away(self) -> None:
        """Told to stop while the broker is away, it ends, and what it had comes again."""
        self.publisher.failures = [BrokerUnreachable("no broker")] * 100
        self.lms.pulls = [item_of(1)]
        polling = self.poll()
        self.pass_time(3)
        self.stop()
        self.pass_time(0.1)
        self.successResultOf(polling)
        self.publisher.failures = []
        self.new_life()
        self.assertEqual(len(self.fetch(item_of(1))), 1)

    def test_what_no_broker_takes(self) -> None:
        """A message that AMQP can't carry is logged, and isn't tried for ever."""
        self.publisher.failures = [MessageRefused("too long")]
        self.assertEqual(len(self.fetch(item_of(1), item_of(2))), 1)
        self.assertEqual(len(self.flushLoggedErrors(MessageRefused)), 1)
        self.assertEqual(len(self.outstanding), 1)

    def test_log(self) -> None:
        """Neither the key nor the learner's text is logged."""
        events: list[Any] = []
        observer: Any = events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.publisher.failures = [BrokerUnreachable("no broker")]
        self.fetch(Trouble("down"), item_of(1, "the-secret-key"))
        self.assertTrue(events)
        self.assertNotIn("the-secret-key", str(events))
