"""Verdicts on their way back to an LMS that takes each once."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from edxagent.errors import PossiblyRecorded, SinkRefused, SinkUnavailable
from edxagent.interfaces import IResultSink
from edxagent.lms.bridge.client import Put
from edxagent.lms.bridge.giving_up import GivingUp
from edxagent.lms.bridge.outstanding import Outstanding, Waiting
from edxagent.lms.bridge.pause import Naps
from edxagent.lms.bridge.session import Trouble
from edxagent.lms.bridge.sink import PutResultSink
from edxagent.model import CheckedResult
from tests.bridge_support import MemoryLedger, PlayedClient, bridge_config, result_of

ROOT = "https://lms.example.org"
GONE = Trouble("it broke off", unsure=True)
REFUSED = Trouble("connection refused")


class SinkTestCase(SynchronousTestCase):
    """A test with a sink, and the submission ``s`` out."""

    def setUp(self) -> None:
        """Publish a submission."""
        self.clock = Clock()
        self.ledger = MemoryLedger(self.clock.seconds)
        self.lms = PlayedClient()
        self.outstanding = Outstanding(240.0, self.clock.seconds)
        self.turns = DeferredSemaphore(2)
        self.sink = self.new_life()
        self.out("s")

    def new_life(self) -> PutResultSink:
        """A sink as after a restart: only the ledger is the same."""
        return PutResultSink(
            origin="bridge:lms",
            root=ROOT,
            client=self.lms,
            ledger=self.ledger,
            outstanding=self.outstanding,
            turns=self.turns,
        )

    def out(self, submission: str, header: str | None = "header") -> None:
        """Have a submission wait for its verdict."""
        self.successResultOf(
            Deferred.fromCoroutine(self.ledger.accepted(submission, origin="bridge:lms", queue="q1", remote="1"))
        )
        since = self.clock.seconds()
        self.outstanding.add(Waiting(submission=submission, queue="q1", header=header, since=since))

    def deliver(self, result: CheckedResult | None = None) -> Deferred[None]:
        """Hand a verdict to the sink."""
        return _started(self.sink.deliver(result or result_of("s", "header")))

    def ends(self, *puts: object) -> str:
        """Deliver once for each part that the LMS plays; returns what the last one ended in, and the ledger's word."""
        ending = ""
        for put in puts:
            self.lms.puts = [put]
            delivery = self.deliver()
            failure = None
            if delivery.called:
                delivery.addErrback(lambda reason: reason.value)
                failure = self.successResultOf(delivery)
            ending = f"{type(failure).__name__ if failure else 'done'}, {self.ledger.state('s')}"
        return ending


def _started(work: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
    return Deferred.fromCoroutine(work)


class PutResultSinkTests(SinkTestCase):
    """``PutResultSink``."""

    def test_is_a_sink(self) -> None:
        """It provides the interface."""
        self.assertTrue(verifyObject(IResultSink, self.sink))

    def test_target(self) -> None:
        """It is for what came by this bridge, and for nothing else."""
        result = result_of("s", "header")
        self.assertEqual(self.sink.target(result), ROOT)
        for origin in (None, "gateway", "bridge:other"):
            self.assertIsNone(self.sink.target(evolve(result, origin=origin)))

    def test_delivers(self) -> None:
        """Header and verdict go to the LMS, with a word to the ledger before and one after."""
        result = result_of("s", "header", score=0.5)
        self.successResultOf(self.deliver(result))
        self.assertEqual(self.lms.posted, [("header", result.verdict)])
        told = [call[2] for call in self.ledger.calls if call[0] == "sink"]
        self.assertEqual(told, ["posting", "delivered"])
        self.assertNotIn("s", self.outstanding)

    def test_failures_go_the_same_way(self) -> None:
        """An agent's word for a failure is a verdict like any other."""
        self.successResultOf(self.deliver(result_of("s", "header", outcome="crashed", score=0.0)))
        self.assertEqual(self.ledger.state("s"), "delivered")

    def test_once(self) -> None:
        """What the LMS has isn't posted again: not twice in a row, not at once, not after a restart, not by others."""
        waiting: Deferred[Put] = Deferred()
        self.lms.puts = [waiting]
        first, second = self.deliver(), self.deliver(result_of("s", "header", score=0.0))
        self.assertNoResult(second)
        waiting.callback(Put.RECORDED)
        self.successResultOf(first)
        self.successResultOf(second)
        self.sink = self.new_life()
        self.successResultOf(self.deliver())
        self.assertEqual(len(self.lms.posted), 1)

    def test_table(self) -> None:
        """What the LMS says, after what it said before → how that ends, and what the ledger says."""
        for puts, ending in {
            (Put.RECORDED,): "done, delivered",
            (Put.REFUSED,): "SinkRefused, parked",
            (Put.WRONG_KEY,): "SinkRefused, parked",
            (Put.LOCKED,): "SinkUnavailable, retrying",
            (Put.FAILED,): "SinkUnavailable, retrying",
            (REFUSED,): "SinkUnavailable, retrying",
            (GONE,): "SinkUnavailable, posting",
            # Nothing but a 500 on what may have been recorded means that it was.
            (Put.FAILED,) * 50: "SinkUnavailable, retrying",
            (Put.FAILED, Put.LOCKED, REFUSED, Put.FAILED): "SinkUnavailable, retrying",
            (Put.FAILED, Put.RECORDED): "done, delivered",
            (GONE, Put.RECORDED): "done, delivered",
            (GONE, Put.LOCKED): "SinkUnavailable, posting",
            (GONE, REFUSED): "SinkUnavailable, posting",
            (GONE, REFUSED, Put.LOCKED, Put.FAILED): "PossiblyRecorded, possibly-recorded",
            (GONE, Put.FAILED): "PossiblyRecorded, possibly-recorded",
            (GONE, Put.WRONG_KEY): "SinkRefused, parked",
            # A person had it tried again.
            (GONE, Put.FAILED, Put.FAILED): "PossiblyRecorded, possibly-recorded",
            (GONE, Put.FAILED, Put.RECORDED): "done, delivered",
            (Put.REFUSED, Put.RECORDED): "done, delivered",
        }.items():
            self.setUp()
            self.assertEqual(self.ends(*puts), ending, puts)

    def test_lms_that_fails_for_everybody(self) -> None:
        """While the LMS isn't well, a 500 says nothing about one verdict."""
        self.ends(GONE)
        self.lms.well = False
        self.assertEqual(self.ends(Put.FAILED), "SinkUnavailable, posting")
        self.lms.well = True
        self.assertEqual(self.ends(Put.FAILED), "PossiblyRecorded, possibly-recorded")

    def test_killed_after_posting(self) -> None:
        """Killed between the LMS's answer and the ledger's, it doesn't take the LMS's second answer for a failure."""
        self.ledger.refuse = lambda *call: call[2:] == ("delivered",)
        self.assertEqual(self.ends(Put.RECORDED), "SinkUnavailable, posting")
        self.ledger.refuse = lambda *call: False
        self.sink = self.new_life()
        self.assertEqual(self.ends(Put.FAILED), "PossiblyRecorded, possibly-recorded")
        self.assertNotIn("s", self.outstanding)

    def test_ledger_away_after_posting(self) -> None:
        """When only the ledger fails after the LMS's answer, it is written later, and nothing posted again."""
        self.ledger.refuse = lambda *call: call[2:] == ("delivered",)
        self.assertEqual(self.ends(Put.RECORDED), "SinkUnavailable, posting")
        self.ledger.refuse = lambda *call: False
        self.assertEqual(self.ends(Put.FAILED), "done, delivered")
        self.assertEqual(len(self.lms.posted), 1)

    def test_ledger_away_before_posting(self) -> None:
        """Without the ledger nothing is posted."""
        for calls in (1, 2):  # reading, and writing that an attempt begins
            self.setUp()
            self.ledger.refuse = lambda *call, calls=calls: len(self.ledger.calls) == calls + 1
            self.assertEqual(self.ends(Put.RECORDED), "SinkUnavailable, None")
            self.assertEqual(self.lms.posted, [])

    def test_ledger_lost(self) -> None:
        """When the ledger knows nothing of it, the LMS may have recorded it in an earlier life."""
        self.ledger.rows.clear()
        self.assertEqual(self.ends(Put.FAILED), "PossiblyRecorded, possibly-recorded")

    def test_cancelled(self) -> None:
        """Cancelled while it posts, it leaves the turn to others, and it is known that the end isn't."""
        self.lms.puts = [Deferred()]
        delivery = self.deliver()
        delivery.cancel()
        self.failureResultOf(delivery, CancelledError)
        self.assertEqual(self.ledger.state("s"), "posting")
        self.assertEqual(self.turns.tokens, 2)
        self.assertEqual(self.ends(Put.RECORDED), "done, delivered")

    def test_takes_turns(self) -> None:
        """Not more are posted at once than are configured; a cancelled one gives its place up, and was never posted."""
        waiting: list[Deferred[Put]] = [Deferred() for _ in range(2)]
        self.lms.puts = [*waiting]
        deliveries = [self.deliver(result_of(f"s{number}", "header")) for number in range(4)]
        self.assertEqual(len(self.lms.posted), 2)
        deliveries[2].cancel()
        self.failureResultOf(deliveries[2], CancelledError)
        waiting[0].callback(Put.RECORDED)
        self.successResultOf(deliveries[3])
        self.assertEqual(len(self.lms.posted), 3)
        self.assertIsNone(self.ledger.state("s2"))

    def test_what_went_wrong_counts_no_more(self) -> None:
        """A refused verdict's submission isn't out any more; one that is to be tried again is."""
        self.ends(Put.FAILED)
        self.assertIn("s", self.outstanding)
        self.ends(Put.REFUSED)
        self.assertNotIn("s", self.outstanding)


class GivingUpTests(SinkTestCase):
    """``GivingUp``: after half an hour."""

    def setUp(self) -> None:
        """Begin to look."""
        super().setUp()
        self.naps = Naps(self.clock)
        giving_up = GivingUp(
            config=bridge_config(),
            sink=self.sink,
            outstanding=self.outstanding,
            naps=self.naps,
            messages={"unavailable": "<p>Try again.</p>"},
        )
        self.looking = _started(giving_up.run())
        self.addCleanup(self.naps.end)

    def test_tells_the_learner_once(self) -> None:
        """The learner is told that it failed, in the operator's words, once, and a later verdict isn't posted."""
        self.clock.pump([30.0] * 59)
        self.assertEqual(self.lms.posted, [])
        self.clock.pump([30.0] * 100)
        [(header, verdict)] = self.lms.posted
        self.assertEqual((header, verdict.correct, verdict.score), ("header", False, 0.0))
        self.assertEqual(verdict.msg, "<p>Try again.</p>")
        self.assertEqual(self.ledger.state("s"), "delivered")
        self.assertEqual(self.ledger.rows["s"].outcome, "unavailable")
        self.successResultOf(self.deliver())
        self.assertEqual(len(self.lms.posted), 1)

    def test_a_verdict_is_on_its_way(self) -> None:
        """Nothing is given up that has a verdict, even if the LMS doesn't take it."""
        self.successResultOf(_started(self.ledger.answered(result_of("s", "header"))))
        self.clock.pump([30.0] * 100)
        self.assertEqual(self.lms.posted, [])

    def test_lms_away(self) -> None:
        """While the LMS can't be told, it is told later."""
        self.lms.puts = [REFUSED, GONE, Put.LOCKED]
        self.clock.pump([30.0] * 100)
        self.assertEqual(len(self.lms.posted), 4)
        self.assertEqual(self.ledger.state("s"), "delivered")

    def test_lms_refuses(self) -> None:
        """If the LMS won't hear of it, we leave it at that, and look at the others."""
        self.out("s2", "header2")
        self.lms.puts = [Put.WRONG_KEY]
        self.clock.pump([30.0] * 100)
        self.assertEqual([header for header, _ in self.lms.posted], ["header", "header2"])
        self.assertEqual((self.ledger.state("s"), self.ledger.state("s2")), ("parked", "delivered"))

    def test_ledger_away(self) -> None:
        """Without the ledger nothing is given up."""
        self.ledger.refuse = lambda *call: True
        self.clock.pump([30.0] * 100)
        self.assertEqual(self.lms.posted, [])
        self.ledger.refuse = lambda *call: False
        self.clock.advance(30.0)
        self.assertEqual(len(self.lms.posted), 1)

    def test_without_header(self) -> None:
        """What can't be answered, since its header isn't known any more, makes room until it is handed out again."""
        self.out("s2", None)
        self.clock.pump([30.0] * 61)
        self.assertEqual(len(self.outstanding), 0)
        self.assertEqual([header for header, _ in self.lms.posted], ["header"])

    def test_ends(self) -> None:
        """It ends when it is told to, and leaves nothing behind."""
        self.clock.advance(30.0)
        self.naps.end()
        self.successResultOf(self.looking)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class ErrorTests(SinkTestCase):
    """What a sink raises."""

    def test_words(self) -> None:
        """It raises what the updater understands, and says what the LMS said."""
        for put, expected in ((Put.REFUSED, SinkRefused), (Put.FAILED, SinkUnavailable), (GONE, SinkUnavailable)):
            self.lms.puts = [put]
            self.failureResultOf(self.deliver(), expected)
        self.lms.puts = [Put.FAILED]
        parked = self.failureResultOf(self.deliver(), PossiblyRecorded)
        self.assertIn("the LMS says failed", str(parked.value))
