"""What the soak counts with: its ledger, its measure of growth, the log that it keeps in short."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from attrs import field, frozen
from twisted.trial.unittest import SynchronousTestCase

from edxagent.model import Properties
from tests.faults.ledger import Count
from tests.faults.soak.agents import BriefRun
from tests.faults.soak.ledger import LongLedger
from tests.faults.soak.report import Report
from tests.faults.soak.vitals import Sample, Vitals, growth

VITALS = Vitals(
    deferreds=1,
    pending=1,
    coroutines=0,
    calls=1,
    threads=1,
    descriptors=9,
    memory=60_000_000,
    kinds={"builtins.dict": 5},
)


@frozen(kw_only=True)
class Came:
    """A delivery, as much of it as a ledger looks at."""

    properties: Properties
    body: bytes
    redelivered: bool = False
    acks: list[None] = field(factory=list)

    def ack(self) -> None:
        """See ``IDelivery``."""
        self.acks.append(None)


def came(id: str, outcome: str = "graded", *, asked: str | None = None, agent: str = "a", **more: Any) -> Came:
    """A verdict or a dead letter."""
    headers = {"x-outcome": outcome, "x-agent": agent, "x-queue": "q"}
    header = json.dumps({"submission": asked or id})
    body = json.dumps({"xqueue_header": header, "xqueue_body": "{}"}).encode()
    return Came(properties=Properties(message_id=id, headers=headers), body=body, **more)


class LongLedgerTests(SynchronousTestCase):
    """What goes in must come out."""

    def setUp(self) -> None:
        """Have two submissions at the broker, of which one can only end as a dead letter."""
        self.ledger: Any = LongLedger()
        self.send("easy-1")
        self.send("mumbled-70000")

    def send(self, id: str) -> None:
        """The broker has it."""
        self.ledger.offered(id)
        self.ledger.accepted(id)

    def count(self, **changes: int) -> None:
        """See what it comes to."""
        expected = {"sent": 2, "lost": 0, "duplicated": 0, "unexpected": 0, "recovered": 0, **changes}
        self.assertEqual(self.ledger.count(), Count(**expected), self.ledger.strangers)

    def end(self) -> None:
        """All is well."""
        self.ledger.verdict(came("easy-1"))
        self.ledger.verdict(came("mumbled-70000", "bad-reply", agent="b"))
        self.ledger.dead_letter(came("mumbled-70000", "bad-reply"))

    def test_all_is_well(self) -> None:
        """Each came once, and the ledger knows from whom."""
        self.end()
        self.count()
        self.assertEqual((self.ledger.graded, self.ledger.entries), ({"a": 1, "b": 1}, 2))
        self.assertEqual(self.ledger.latest, {("a", "q"): 1, ("b", "q"): 70000})

    def test_lost(self) -> None:
        """Without a verdict; or without the dead letter that belongs to it."""
        self.count(lost=2)
        self.ledger.verdict(came("mumbled-70000", "bad-reply"))
        self.count(lost=2)
        self.assertEqual(self.ledger.missing, {"easy-1", "mumbled-70000"})

    def test_a_verdict_before_the_confirm(self) -> None:
        """Isn't missing afterwards."""
        self.end()
        self.ledger.offered("easy-3")
        self.ledger.verdict(came("easy-3"))
        self.ledger.accepted("easy-3")
        self.count(sent=3)

    def test_duplicated(self) -> None:
        """By an agent; by the broker, which knew no more that we had it; and by ourselves."""
        self.end()
        self.ledger.verdict(came("easy-1"))
        self.count(duplicated=1)
        self.assertEqual(self.ledger.by_agents, 1)
        self.ledger.verdict(came("easy-1", redelivered=True))
        self.count(duplicated=2)
        self.assertEqual((self.ledger.by_agents, self.ledger.again), (1, 1))
        self.ledger.offered("easy-5")
        self.send("easy-5")
        self.ledger.verdict(came("easy-5"))
        self.ledger.verdict(came("easy-5"))
        self.count(sent=3, duplicated=3, recovered=1)
        self.assertEqual((self.ledger.by_agents, self.ledger.ours), (1, 1))
        self.ledger.verdict(came("easy-5"))
        self.assertEqual(self.ledger.by_agents, 2)

    def test_unexpected(self) -> None:
        """What nobody sent, another's verdict, a wrong word, a dead letter of what can be graded."""
        self.end()
        for number, (take, wrong) in enumerate(
            [
                (self.ledger.verdict, came("easy-2")),
                (self.ledger.verdict, came("slow-1")),
                (self.ledger.verdict, came("None")),
                (self.ledger.verdict, came("easy-99999999")),
                (self.ledger.dead_letter, came("easy-4", "crashed")),
            ]
        ):
            take(wrong)
            self.assertGreater(len(self.ledger.strangers), number, wrong)
            self.assertEqual(wrong.acks, [None])
        for wrong in (came("easy-6", "crashed"), came("easy-6", asked="easy-1")):
            before = len(self.ledger.strangers)
            self.send("easy-6")
            self.ledger.verdict(wrong)
            self.assertEqual(len(self.ledger.strangers), before + 1)


class GrowthTests(SynchronousTestCase):
    """The slope of a process's memory."""

    def test_leak(self) -> None:
        """What is lost with each submission is found, whatever the warm-up took."""
        warm = [Sample(number, 10_000_000 * number) for number in range(5)]
        leak = [Sample(1000 * number, 50_000_000 + 1000 * number * 15) for number in range(5, 20)]
        self.assertAlmostEqual(growth([*warm, *leak]) or 0.0, 1.5)

    def test_flat(self) -> None:
        """Noise is no growth."""
        flat = [Sample(1000 * number, 50_000_000 + 4096 * (number % 2)) for number in range(200)]
        self.assertLess(abs(growth(flat) or 9.0), 0.01)

    def test_too_few(self) -> None:
        """From a point nobody knows where it goes."""
        self.assertIsNone(growth([Sample(5, 1)] * 10))
        self.assertIsNone(growth([]))


class BriefRunTests(SynchronousTestCase):
    """A program's output, without what is said of each submission."""

    def test_forgets(self) -> None:
        """Lines of submissions go, wherever the pieces end; the others, and half a line at the end, stay."""
        line = b"2026-11-28T20:32:55.176Z %b from q in 0.063 s, 0.000 of them waiting\n"
        said = b"connected to a\n%b%bTraceback\n" % (line % b"info  graded: easy-1", line % b"warn  bad-reply: x-2")
        for size in (1, 7, len(said)):
            run = BriefRun()
            for start in range(0, len(said), size):
                run.childDataReceived(1, said[start : start + size])
            run.childDataReceived(2, b"half")
            self.assertEqual((run.out, run.err), ("connected to a\nTraceback\n", "half"))
            self.assertEqual(b"".join(run.recent), said + b"half")

    def test_is_quick(self) -> None:
        """A hundred thousand submissions take no quadratic time."""
        run, began = BriefRun(), time.monotonic()
        for number in range(100_000):
            run.childDataReceived(1, b"T info  graded: easy-%d from q in 0.063 s, 0.000 of them waiting\n" % number)
        self.assertEqual(run.out, "")
        self.assertLess(time.monotonic() - began, 10.0)


class ReportTests(SynchronousTestCase):
    """The summary."""

    def test_there_and_back(self) -> None:
        """What the test saves is what its starter loads and prints."""
        report = Report(
            seed="7",
            minutes=30.0,
            faults={"agent killed": 3},
            count=Count(sent=1_000_000, lost=0, duplicated=12, unexpected=0, recovered=5),
            duplicated=11,
            allowed=160,
            recovery=2.5,
            witnessed=600_000,
            connections=40,
            growth=0.125,
            before=VITALS,
            after=VITALS,
        )
        path = Path(self.mktemp())
        report.save(path)
        self.assertEqual(Report.load(path), report)
        for words in ("1,000,000 |", "11 of 160 |", "0.12 MB |", "60.0 MB, 60.0 MB |", "2.5 s |", "agent killed"):
            self.assertIn(words, str(report))
