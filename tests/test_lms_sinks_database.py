"""Verdicts in a table, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import itertools
import json
import sqlite3
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from attrs import evolve
from sqlalchemy import URL, Connection, select, text
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from edxagent.config.sections import ConfigFile
from edxagent.errors import ConfigError, SinkRefused, SinkUnavailable
from edxagent.interfaces import SinkTools
from edxagent.lms.database import Database
from edxagent.lms.sinks.database import DatabaseSink, database_url, factory, scores_table, table_name
from edxagent.model import Verdict
from edxagent.testing.graders import until
from edxagent.testing.sinks import (
    SECRET,
    FailingSinkContractTests,
    SinkContractTests,
    SlowSinkContractTests,
    make_result,
)
from tests.postgresql import shared_postgresql

PATH = "/courses/course-v1:O+C+R/xqueue/7/block-v1:O+C+R+type@problem+block@abc/score_update"
NOW = 1_700_000_000.0
HEADER = json.dumps({"lms_callback_url": f"http://lms:8000{PATH}", "lms_key": SECRET})


def build(url: str, reactor: Any, table: str = "edxagent_scores") -> DatabaseSink:
    """The factory's sink."""
    tools = SinkTools(name="scores", reactor=reactor, concurrency=10, wall_clock=lambda: NOW)
    return factory.build({"url": url, "table": table}, tools)


def verdict(score: float) -> Verdict:
    """A verdict that can be told from others."""
    return Verdict(correct=score > 0, score=score, msg=f"<p>{score}</p>")


class _Tests(SinkContractTests, FailingSinkContractTests):
    """What holds for both. ``url`` is a new database's."""

    assertFalse: Any
    assertIn: Any
    assertRaises: Any
    url: str

    def sink(self, table: str = "edxagent_scores") -> Any:
        """A sink, started, until the test ends."""
        return self.started(build(self.url, self.reactor, table))

    def make_sink(self) -> Any:
        """See the suite."""
        return build(self.url, self.reactor)

    async def rows(self, table: str = "edxagent_scores") -> list[dict[str, Any]]:
        """What is in the table."""
        reader = Database(self.url, self.reactor, read_only=True)
        reader.startService()

        def read(connection: Connection) -> list[dict[str, Any]]:
            return [dict(row._mapping) for row in connection.execute(select(scores_table(table)))]

        try:
            return await reader.run(read)
        finally:
            await reader.stopService()

    async def test_row(self) -> None:
        """A row holds whose verdict it is, what it is, and when it was made and written; no key."""
        result = make_result(
            "s1", header=HEADER, queue="q", verdict=verdict(0.5), headers={"x-finished": NOW - 60, "x-agent": "a"}
        )
        await self.sink().deliver(result)
        (row,) = await self.rows()
        for column in ("graded_at", "updated_at"):
            row[column] = row[column].replace(tzinfo=row[column].tzinfo or timezone.utc)
        now = datetime.fromtimestamp(NOW, timezone.utc)
        self.assertEqual(
            row,
            {
                "submission": "s1",
                "course": "course-v1:O+C+R",
                "student": "7",
                "block": "block-v1:O+C+R+type@problem+block@abc",
                "queue": "q",
                "outcome": "graded",
                "correct": True,
                "score": 0.5,
                "msg": "<p>0.5</p>",
                "graded_at": now - timedelta(seconds=60),
                "updated_at": now,
            },
        )

    async def test_no_place(self) -> None:
        """What a bridge fetched, or another program published, has a row too."""
        await self.sink().deliver(make_result("s1", header='{"submission_id": 3, "submission_key": "k"}'))
        (row,) = await self.rows()
        self.assertEqual((row["course"], row["student"], row["block"]), (None, None, None))

    async def test_which_stays(self) -> None:
        """Graded replaces a failure, nothing replaces graded, among equals the first stays: in any order."""
        sink = self.sink()
        results = [("crashed", 0.0), ("timed-out", 0.1), ("graded", 1.0), ("graded", 2.0)]
        for order in itertools.permutations(results):
            name = str(order)
            for outcome, score in order:
                await sink.deliver(make_result(name, outcome=outcome, verdict=verdict(score)))
            expected = next(result for result in order if result[0] == "graded")
            row = next(row for row in await self.rows() if row["submission"] == name)
            self.assertEqual((row["outcome"], row["score"], row["msg"]), (*expected, f"<p>{expected[1]}</p>"))
        failures = [result for result in results if result[0] != "graded"]
        for order in itertools.permutations(failures):
            name = str(order)
            for outcome, score in order:
                await sink.deliver(make_result(name, outcome=outcome, verdict=verdict(score)))
            row = next(row for row in await self.rows() if row["submission"] == name)
            self.assertEqual((row["outcome"], row["score"]), order[0])

    async def test_two_updaters(self) -> None:
        """Two programs that write the same verdicts at once, on an empty database, leave one row a submission."""
        sinks = [self.sink(), self.sink()]
        works = []
        for number in range(50):
            failure = make_result(f"s{number}", outcome="crashed", verdict=verdict(0.0))
            grade = make_result(f"s{number}", verdict=verdict(number + 1.0))
            works += [
                sinks[0].deliver(failure),
                sinks[1].deliver(grade),
                sinks[0].deliver(grade),
                sinks[1].deliver(failure),
            ]
        await gatherResults([Deferred.fromCoroutine(work) for work in works])
        rows = await self.rows()
        self.assertEqual({row["submission"]: row["score"] for row in rows}, {f"s{n}": n + 1.0 for n in range(50)})
        self.assertEqual(len(rows), 50)
        self.assertEqual({row["outcome"] for row in rows}, {"graded"})

    async def test_other_table(self) -> None:
        """The table may have another name, and be there already."""
        for _ in range(2):
            await self.sink("grades_2026").deliver(make_result())
        self.assertEqual(len(await self.rows("grades_2026")), 1)

    async def test_hostile(self) -> None:
        """What a message may hold, a row may hold."""
        result = make_result(
            "s\0" + "x" * 300,
            outcome="o" * 99,
            queue="q\0'; DROP TABLE edxagent_scores; --",
            verdict=Verdict(correct=True, score=1e308, msg="'; DROP TABLE edxagent_scores; --" + "é" * 100_000),
            headers={"x-finished": float("nan")},
        )
        sink = self.sink()
        await sink.deliver(result)
        await sink.deliver(evolve(result, headers={"x-finished": 1e300}))
        (row,) = await self.rows()
        self.assertEqual(row["score"], 1e308)
        self.assertEqual(row["msg"], result.verdict.msg)

    async def test_refused_value(self) -> None:
        """What a table can't hold is refused for good, in words that don't quote it."""
        sink = self.sink()
        await sink.deliver(make_result())
        try:
            await sink.deliver(make_result("s2", verdict=Verdict(correct=None, score=1.0, msg="secret words")))  # type: ignore[arg-type]
        except SinkRefused as error:
            self.assertNotIn("secret words", str(error))
        else:
            raise AssertionError("it was taken")

    def make_failing_sinks(self) -> Any:
        """See the suite."""
        yield self.closed(), SinkUnavailable

    def closed(self) -> Any:
        """A sink whose database can't be used: nobody has started it."""
        sink = self.make_sink()
        sink.startService = lambda: None
        return sink


class SQLiteTests(_Tests, TestCase):
    """On SQLite."""

    timeout = 60.0

    def setUp(self) -> None:
        """A new file."""
        self.path = Path(self.mktemp()).absolute()
        self.url = URL.create("sqlite", database=str(self.path)).render_as_string()

    def test_name(self) -> None:
        """Its target is the database."""
        self.assertEqual(self.make_sink().target(make_result()), f"sqlite:///{self.path}")

    async def test_locked(self) -> None:
        """While another program holds the file, the verdict comes again later."""
        sink = self.sink()
        await sink.deliver(make_result("s1"))
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN EXCLUSIVE")
        try:
            await sink.deliver(make_result("s2"))
        except SinkUnavailable as error:
            self.assertIn("locked", str(error))
        other.execute("COMMIT")
        await sink.deliver(make_result("s2"))
        self.assertEqual(len(await self.rows()), 2)

    async def test_killed(self) -> None:
        """What was taken is there after the program was killed, and the file is whole."""
        program = (
            "import sys, os\n"
            "from twisted.internet import reactor\n"
            "from twisted.internet.defer import ensureDeferred\n"
            "from edxagent.testing.sinks import make_result\n"
            "from tests.test_lms_sinks_database import build\n"
            "async def main():\n"
            "    sink = build(sys.argv[1], reactor)\n"
            "    sink.startService()\n"
            "    n = 0\n"
            "    while True:\n"
            "        await sink.deliver(make_result(f's{n}'))\n"
            "        os.write(1, b'%d\\n' % n)\n"
            "        n += 1\n"
            "reactor.callWhenRunning(lambda: ensureDeferred(main()))\n"
            "reactor.run()\n"
        )
        writer = subprocess.Popen(
            [sys.executable, "-c", program, self.url],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parent.parent,
        )
        assert writer.stdout is not None
        for _ in range(20):
            writer.stdout.readline()
        writer.kill()
        told = int((writer.stdout.read().split() or [b"19"])[-1])
        writer.stdout.close()
        writer.wait()
        names = {row["submission"] for row in await self.rows()}
        self.assertFalse({f"s{n}" for n in range(told + 1)} - names)
        await self.sink().deliver(make_result("after"))


class LockedSQLiteTests(SlowSinkContractTests, TestCase):
    """On an SQLite file that another program doesn't let go of."""

    timeout = 60.0

    def make_slow_sink(self) -> Any:
        """See the suite."""
        path = Path(self.mktemp()).absolute()
        other = sqlite3.connect(path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("BEGIN IMMEDIATE")
        return build(f"sqlite:///{path}", self.reactor)

    async def holds_nothing(self, action: Any) -> None:
        """See the suite: the other program's descriptors aren't the sink's."""
        await action()


class PostgreSQLTests(_Tests, TestCase):
    """On a real PostgreSQL."""

    timeout = 120.0

    def setUp(self) -> None:
        """A new database."""
        self.server = shared_postgresql()
        self.url = self.server.new_database()

    def test_name(self) -> None:
        """Its target is the database, without the password."""
        target = self.make_sink().target(make_result())
        self.assertIn("***@127.0.0.1", target)
        self.assertNotIn(self.server.password, target)

    async def test_away_and_back(self) -> None:
        """While PostgreSQL is away the verdict comes again later; then it is taken, also by a database made anew."""
        self.addCleanup(self.server.start)
        sink = self.sink()
        await sink.deliver(make_result("s1"))
        self.server.kill()
        try:
            await sink.deliver(make_result("s2"))
        except SinkUnavailable as error:
            self.assertNotIn(self.server.password, str(error))
        else:
            raise AssertionError("it was taken")
        self.server.start()
        await sink.deliver(make_result("s2"))
        self.assertEqual({row["submission"] for row in await self.rows()}, {"s1", "s2"})

    async def test_killed_in_the_middle(self) -> None:
        """What PostgreSQL took before it died is there, and the rest is when it has come again."""
        self.addCleanup(self.server.start)
        sink = self.sink()
        await sink.deliver(make_result("first"))
        taken: list[str] = []
        works = []
        for number in range(200):
            work = self.offer(sink, f"s{number}")
            work.addCallbacks(
                lambda _, name=f"s{number}": taken.append(name), lambda failure: failure.trap(SinkUnavailable)
            )
            works.append(work)
        await until(lambda: len(taken) >= 50, "some are taken", self.reactor)
        self.server.kill()
        await gatherResults(works)
        before = list(taken)
        self.server.start()
        self.assertFalse(set(before) - {row["submission"] for row in await self.rows()})
        for number in range(200):
            await sink.deliver(make_result(f"s{number}"))
        self.assertEqual(len(await self.rows()), 201)

    async def test_no_permission(self) -> None:
        """A database where we may not write is told as one that a person has to mend."""
        owner = Database(self.url, self.reactor)
        self.started(owner)

        def forbid(connection: Connection) -> None:
            connection.execute(text("CREATE ROLE guest LOGIN PASSWORD 'guest' NOSUPERUSER"))
            connection.execute(text("REVOKE CREATE ON SCHEMA public FROM PUBLIC"))
            name = connection.execute(text("SELECT current_database()")).scalar()
            connection.execute(text(f'GRANT CONNECT ON DATABASE "{name}" TO guest'))

        await owner.run(forbid)
        self.url = self.url.replace(f"grading:{self.server.password}", "guest:guest")
        try:
            await self.sink().deliver(make_result())
        except SinkUnavailable as error:
            self.assertIn("permission denied", str(error))
        else:
            raise AssertionError("it was taken")


class OptionsTests(SynchronousTestCase):
    """What may be configured."""

    def test_table(self) -> None:
        """A table's name needs no quotes, so that it can't be more than a name."""
        for name in ("scores", "_x", "edxagent_scores_2", "x" * 63):
            self.assertEqual(table_name(name), name)
        for name in ("", "Scores", "a b", "a;b", 'a"', "1a", "é", "public.scores", "x" * 64, "scores\n"):
            self.assertIn("such as edxagent_scores", str(self.assertRaises(ValueError, table_name, name)))

    def test_url(self) -> None:
        """What can't be used is refused where it is read, without being repeated."""
        self.assertEqual(database_url("sqlite:///x.db"), "sqlite:///x.db")
        self.assertNotIn("sesame", str(self.assertRaises(ValueError, database_url, "mysql://u:sesame@h/d")))

    def test_written_down(self) -> None:
        """A file's URL may stand in the configuration; one that may hold a password comes from outside."""

        def read(url: str) -> tuple[Any, list[str]]:
            path = Path(self.mktemp())
            path.write_text(f"[sink:scores]\nurl = {url}\n")
            file = ConfigFile(str(path), environment={"URL": "postgresql://u:sesame@h/d"}, overrides={})
            values = file.section("sink:scores").values(factory.keys)
            try:
                file.problems.raise_if_any()
            except ConfigError as error:
                return None, list(error.problems)
            return values["url"], []

        self.assertEqual(read("sqlite:///x.db"), ("sqlite:///x.db", []))
        self.assertEqual(read("${URL}"), ("postgresql://u:sesame@h/d", []))
        for url in ("postgresql://u:sesame@h/d", "postgresql://u@h/d?x=sqlite:"):
            value, (problem,) = read(url)
            self.assertIsNone(value)
            self.assertIn("use url_file", problem)
            self.assertNotIn("sesame", problem)

    def test_missing_folder(self) -> None:
        """A folder that isn't there is an error that names the key."""
        error = self.assertRaises(ValueError, build, "sqlite:////no/such/folder/x.db", MemoryReactorClock())
        self.assertTrue(str(error).startswith("url: the folder /no/such/folder doesn't exist"), str(error))

    def test_keys(self) -> None:
        """Only the URL must be given; it is a secret unless it is a file's."""
        self.assertEqual([(key.name, key.harmless) for key in factory.keys if key.secret], [("url", "sqlite:")])
        self.assertTrue(all(key.help for key in factory.keys))
