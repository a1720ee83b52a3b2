"""The ledger, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import itertools
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from attrs import evolve
from sqlalchemy import URL, Connection, inspect, text
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from edxagent.errors import DatabaseUnavailable
from edxagent.lms import ledger
from edxagent.lms.bridge.sink import LEDGER_NAME
from edxagent.lms.contracts import LedgerEntry
from edxagent.lms.database import Database
from edxagent.lms.ledger import Ledger
from edxagent.model import CheckedResult, Verdict
from edxagent.testing.graders import until
from tests.postgresql import shared_postgresql

HEADERS = {
    "x-agent": "agent-1",
    "x-grader": "http",
    "x-attempt": 2,
    "x-received": 1001.0,
    "x-started": 1002.5,
    "x-finished": 1003,
}
SECRET = "the lms_key"


def result(submission: str = "s1", outcome: str = "graded", **changes: Any) -> CheckedResult:
    """A verdict as the updater passes it on."""
    plain = CheckedResult(
        submission=submission,
        outcome=outcome,
        queue="q",
        origin="bridge:a",
        header=SECRET,
        verdict=Verdict(correct=True, score=1.0, msg="<p>the message</p>"),
        headers=HEADERS,
    )
    return evolve(plain, **changes)


class _Tests:
    """What holds for both. ``url`` is a new database's."""

    addCleanup: Any
    assertEqual: Any
    assertFalse: Any
    assertIn: Any
    assertNotIn: Any
    assertIsNone: Any
    assertTrue: Any
    failureResultOf: Any
    mktemp: Any
    url: str

    def opened(self, keep: float = 1000.0) -> Ledger:
        """A ledger that is open until the test ends. Its timers are ``self.clock``, its time is ``self.now``."""
        from twisted.internet import reactor

        self.clock = Clock()
        self.now = 1000.0
        opened = Ledger(Database(self.url, reactor), keep=keep, reactor=self.clock, wall_clock=lambda: self.now)
        opened.startService()
        self.addCleanup(opened.stopService)
        return opened

    async def failure_of(self, work: Coroutine[Any, Any, Any]) -> str:
        """Why it can't be done."""
        try:
            await work
        except DatabaseUnavailable as error:
            return str(error)
        raise AssertionError("it didn't fail")

    async def looked_at(self, statement: str) -> list[Any]:
        """What the database says to another program."""
        from twisted.internet import reactor

        other = Database(self.url, reactor)
        other.startService()
        try:
            return await other.run(lambda connection: list(connection.execute(text(statement))))
        finally:
            await other.stopService()

    async def test_whole_life(self) -> None:
        """A row tells who took a submission, who graded it, and what each sink did."""
        opened = self.opened()
        self.assertTrue(await opened.accepted("s1", origin="bridge:a", queue="q", remote="17"))
        self.now = 1004.0
        await opened.answered(result())
        await opened.sink("s1", "lms", "retrying", "it is down")
        self.now = 1005.0
        await opened.sink("s1", "lms", "delivered")
        await opened.sink("s1", "scores", "parked", "no")
        self.assertEqual(
            await opened.find("s1"),
            LedgerEntry(
                submission="s1",
                origin="bridge:a",
                queue="q",
                accepted=1000.0,
                remote="17",
                outcome="graded",
                agent="agent-1",
                grader="http",
                attempt=2,
                received=1001.0,
                started=1002.5,
                finished=1003.0,
                sinks={"lms": ("delivered", 1005.0, ""), "scores": ("parked", 1005.0, "no")},
            ),
        )

    async def test_unknown(self) -> None:
        """There is no row of what was never heard of."""
        self.assertIsNone(await self.opened().find("s1"))

    async def test_accepted_twice(self) -> None:
        """The second time is told from the first, and changes nothing."""
        opened = self.opened()
        self.assertTrue(await opened.accepted("s1", origin="bridge:a", queue="q", remote="17"))
        before = await opened.find("s1")
        self.now = 1001.0
        self.assertFalse(await opened.accepted("s1", origin="gateway", queue="other"))
        self.assertEqual(await opened.find("s1"), before)

    async def test_any_order(self) -> None:
        """Whatever order the events come in, and although each comes twice, the same row is left."""
        opened = self.opened()
        events = {
            "accepted": lambda name: opened.accepted(name, origin="bridge:a", queue="q", remote="17"),
            "failed": lambda name: opened.answered(result(name, "crashed", headers={"x-agent": "agent-0"})),
            "graded": lambda name: opened.answered(result(name, origin=None, queue="elsewhere")),
            "delivered": lambda name: opened.sink(name, "lms", "delivered"),
            "possibly": lambda name: opened.sink(name, "lms", "possibly-recorded", "500"),
            "retrying": lambda name: opened.sink(name, "lms", "retrying", "500"),
        }
        orders = {"-".join(order): order for order in itertools.permutations(events)}
        for step in range(len(events) * 2):
            works = [events[order[step % len(order)]](name) for name, order in orders.items()]
            await gatherResults([Deferred.fromCoroutine(work) for work in works])
        expected = await opened.find(next(iter(orders)))
        assert expected is not None
        self.assertEqual(expected.sinks, {"lms": ("delivered", 1000.0, "")})
        for name in orders:
            self.assertEqual(await opened.find(name), evolve(expected, submission=name))

    async def test_order_of_failures(self) -> None:
        """Of a sink that hasn't ended well, the latest word counts, though an earlier one comes late."""
        opened = self.opened()
        for now, state in ((1002.0, "parked"), (1001.0, "retrying"), (1003.0, "posting")):
            self.now = now
            await opened.sink("s1", "lms", state, state)
        await opened.accepted("s1", origin="o", queue="q")
        entry = await opened.find("s1")
        assert entry is not None
        self.assertEqual(entry.sinks, {"lms": ("posting", 1003.0, "posting")})

    async def test_clock_that_was_set_back(self) -> None:
        """An attempt that begins is remembered whatever the clock says: it may be what the LMS records."""
        opened = self.opened()
        for now, state in ((1002.0, "retrying"), (900.0, "posting")):
            self.now = now
            await opened.sink("s1", "lms", state, state)
        await opened.accepted("s1", origin="o", queue="q")
        entry = await opened.find("s1")
        assert entry is not None
        self.assertEqual(entry.sinks, {"lms": ("posting", 900.0, "posting")})

    async def test_unanswered(self) -> None:
        """Those that an origin accepted before then come oldest first, but not those whose answer is settled."""
        opened = self.opened()
        names = ("old", "answered", "delivered", "parked", "possible", "posting", "elsewhere", "new")
        for position, name in enumerate(names):
            self.now = 1000.0 + position
            await opened.accepted(name, origin="bridge:a", queue="q")
        await opened.accepted("other", origin="bridge:b", queue="q")
        await opened.answered(result("answered"))
        await opened.answered(result("never accepted"))
        states = {"delivered": "delivered", "parked": "parked", "possible": "possibly-recorded", "posting": "posting"}
        for name, state in states.items():
            await opened.sink(name, LEDGER_NAME, state)
        await opened.sink("elsewhere", "scores", "delivered")
        waiting = await opened.unanswered("bridge:a", before=1007.0)
        self.assertEqual([entry.submission for entry in waiting], ["old", "answered", "posting", "elsewhere"])
        self.assertIn(LEDGER_NAME, waiting[2].sinks)

    async def test_old_rows(self) -> None:
        """Rows older than ``keep`` are deleted by and by, with what sinks did, and others stay."""
        opened = self.opened(keep=100.0)
        names = [f"s{n}" for n in range(ledger.MOST_AT_ONCE * 2 + 1)]
        await gatherResults([Deferred.fromCoroutine(opened.accepted(name, origin="o", queue="q")) for name in names])
        await opened.sink("s0", "lms", "delivered")
        await opened.sink("stray", "lms", "delivered")
        self.now = 1099.0
        await opened.accepted("young", origin="o", queue="q")
        self.now = 1101.0
        self.clock.advance(ledger.TIDY_SECONDS)
        await opened.stopService()
        rest = await self.looked_at("SELECT submission FROM edxagent_ledger")
        self.assertTrue(1 < len(rest) < len(names), "a stop waits for one bite only")
        opened = self.opened(keep=100.0)
        self.now = 1101.0
        for _ in range(100):
            self.clock.advance(ledger.TIDY_SECONDS)
            rest = await self.looked_at("SELECT submission FROM edxagent_ledger")
            if len(rest) == 1:
                break
        self.assertEqual(rest, [("young",)])
        self.assertEqual(await self.looked_at("SELECT submission FROM edxagent_ledger_sinks"), [])

    async def test_holds_no_secret(self) -> None:
        """Neither the header nor the verdict's words are anywhere in it."""
        opened = self.opened()
        await opened.answered(result())
        row = str(await self.looked_at("SELECT * FROM edxagent_ledger"))
        self.assertIn("agent-1", row)
        self.assertNotIn(SECRET, row)
        self.assertNotIn("the message", row)

    async def test_hostile(self) -> None:
        """What a message on the queue may hold can't keep others from being written."""
        opened = self.opened()
        hostile = result(
            "s\0\ud800" + "x" * 300,
            outcome="o" * 100,
            queue="q\0" * 500,
            headers={
                "x-agent": "\0\x1b[31m" * 500,
                "x-grader": 7,
                "x-attempt": 2**70,
                "x-received": float("nan"),
                "x-started": 1e300,
                "x-finished": "soon",
            },
        )
        works = [opened.answered(hostile), opened.answered(result()), opened.sink("\0", "\0", "\0" * 99, "\0" * 9999)]
        await gatherResults([Deferred.fromCoroutine(work) for work in works])
        entry = await opened.find(hostile.submission)
        assert entry is not None
        self.assertEqual((entry.grader, entry.attempt, entry.received), (None, None, None))
        self.assertTrue(str(entry.agent).isprintable())
        self.assertTrue(await opened.find("s1"))

    async def test_two_programs(self) -> None:
        """Two that begin together on an empty database, and tell of the same submissions, agree."""
        first, second = self.opened(), self.opened()
        works = [
            work
            for n in range(100)
            for work in (
                first.accepted(f"s{n}", origin="bridge:a", queue="q"),
                second.answered(result(f"s{99 - n}")),
                second.accepted(f"s{99 - n}", origin="bridge:a", queue="q"),
                first.sink(f"s{n}", LEDGER_NAME, "delivered"),
            )
        ]
        answers = await gatherResults([Deferred.fromCoroutine(work) for work in works])
        self.assertTrue(sum(answer is True for answer in answers) <= 100)
        rows = await self.looked_at("SELECT count(*), min(outcome), min(accepted) FROM edxagent_ledger")
        self.assertEqual(rows, [(100, "graded", 1000.0)])
        self.assertEqual(await first.unanswered("bridge:a", 2000.0), [])

    async def test_later_schema(self) -> None:
        """Tables of a later version are left alone, and the error says what to do."""
        opened = self.opened()
        await opened.accepted("s1", origin="o", queue="q")
        await opened.stopService()
        from twisted.internet import reactor

        other = Database(self.url, reactor)
        other.startService()
        self.addCleanup(other.stopService)
        await other.run(lambda connection: connection.execute(text("UPDATE edxagent_schemas SET version = 2")))
        self.assertIn("upgrade", await self.failure_of(self.opened().accepted("s2", origin="o", queue="q")))
        self.assertEqual(await other.run(_rows), 1)

    async def test_cancelled(self) -> None:
        """An event that is cancelled while it waits isn't written, and others are."""
        opened = self.opened()
        works = [Deferred.fromCoroutine(opened.accepted(name, origin="o", queue="q")) for name in ("a", "b", "c")]
        works[1].cancel()
        self.failureResultOf(works[1], CancelledError)
        await gatherResults([works[0], works[2]])
        self.assertIsNone(await opened.find("b"))
        self.assertTrue(await opened.find("c"))

    async def test_stop_writes(self) -> None:
        """What was told before a stop is written; what comes after is refused."""
        opened = self.opened()
        work = Deferred.fromCoroutine(opened.accepted("s1", origin="o", queue="q"))
        await opened.stopService()
        self.assertTrue(await work)
        self.assertIn("isn't open", await self.failure_of(opened.accepted("s2", origin="o", queue="q")))
        self.assertEqual(await self.looked_at("SELECT submission FROM edxagent_ledger"), [("s1",)])


def _rows(connection: Connection) -> int:
    assert "edxagent_ledger" in inspect(connection).get_table_names()
    return int(connection.execute(text("SELECT count(*) FROM edxagent_ledger")).scalar_one())


class SQLiteTests(_Tests, TestCase):
    """On SQLite."""

    timeout = 60.0

    def setUp(self) -> None:
        """A new file."""
        self.path = Path(self.mktemp()).absolute()
        self.url = URL.create("sqlite", database=str(self.path)).render_as_string()

    async def test_no_database(self) -> None:
        """A database that can't be used is told to whoever writes and whoever asks."""
        self.path.write_bytes(b"something else" * 100)
        opened = self.opened()
        for work in (opened.accepted("s1", origin="o", queue="q"), opened.find("s1")):
            self.assertIn("not a database", await self.failure_of(work))


class PostgreSQLTests(_Tests, TestCase):
    """On a real PostgreSQL."""

    timeout = 120.0

    def setUp(self) -> None:
        """A new database."""
        self.server = shared_postgresql()
        self.url = self.server.new_database()

    async def test_away_and_back(self) -> None:
        """While the server is away events fail, and afterwards they don't."""
        from twisted.internet import reactor

        self.addCleanup(self.server.start)
        opened = self.opened()
        await opened.accepted("s1", origin="o", queue="q")
        self.server.kill()
        failed = []
        work = Deferred.fromCoroutine(opened.accepted("s2", origin="o", queue="q"))
        work.addErrback(lambda failure: failed.append(failure.check(DatabaseUnavailable)))
        await until(lambda: failed == [DatabaseUnavailable], "it fails", reactor)
        self.server.start()
        self.assertTrue(await opened.accepted("s2", origin="o", queue="q"))
        self.assertFalse(await opened.accepted("s1", origin="o", queue="q"))
