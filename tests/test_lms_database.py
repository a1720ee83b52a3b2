"""Databases off the reactor's thread, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import DataError, IntegrityError
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.trial.unittest import SynchronousTestCase, TestCase

from edxagent.errors import DatabaseUnavailable
from edxagent.lms import database
from edxagent.lms.database import Database
from edxagent.lms.engine import read_url, shown
from edxagent.testing.graders import until
from tests.postgresql import shared_postgresql


def our_threads() -> list[threading.Thread]:
    """The threads that databases have."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("PoolThread-database")]


def launch(database: Database, work: Callable[[Connection], Any]) -> Deferred[Any]:
    """A transaction on its way."""
    return Deferred.fromCoroutine(database.run(work))


def count(connection: Connection) -> int:
    """What the counter says."""
    return int(connection.execute(text("SELECT n FROM counter")).scalar_one())


def increase(connection: Connection) -> None:
    """One more, read and written apart, as whoever loses updates would."""
    connection.execute(text("UPDATE counter SET n = :n"), {"n": count(connection) + 1})


class _Tests:
    """What holds for both. ``url`` is a new database's."""

    addCleanup: Any
    assertEqual: Any
    assertFalse: Any
    assertIn: Any
    assertNotIn: Any
    assertRaises: Any
    assertTrue: Any
    failureResultOf: Any
    assertNoResult: Any
    url: str

    async def opened(self, **options: Any) -> Database:
        """A database that is open until the test ends, and stopped then."""
        from twisted.internet import reactor

        opened = Database(self.url, reactor, **options)
        opened.startService()
        self.addCleanup(opened.stopService)
        return opened

    async def with_counter(self, **options: Any) -> Database:
        """One with a table that counts."""
        opened = await self.opened(**options)

        def create(connection: Connection) -> None:
            connection.execute(text("CREATE TABLE counter (n integer NOT NULL CHECK (n >= 0))"))
            connection.execute(text("INSERT INTO counter VALUES (0)"))

        await opened.run(create)
        return opened

    async def failure_of(self, work: Deferred[Any], errors: Any = DatabaseUnavailable) -> str:
        """The words of what it fails with."""
        try:
            await work
        except errors as error:
            return str(error)
        raise AssertionError("it didn't fail")

    async def test_commits(self) -> None:
        """What returned is there for the next transaction, and its result comes back."""
        opened = await self.with_counter()
        await opened.run(increase)
        self.assertEqual(await opened.run(count), 1)

    async def test_rolls_back(self) -> None:
        """What raised has left nothing, and its own error comes out."""
        opened = await self.with_counter()

        def fail(connection: Connection) -> None:
            increase(connection)
            raise KeyError("on purpose")

        await self.failure_of(launch(opened, fail), KeyError)
        self.assertEqual(await opened.run(count), 0)

    async def test_threads(self) -> None:
        """Work runs in threads of our own, none of them a daemon, and none is left when stopping is done."""
        opened = await self.opened()
        worker = await opened.run(lambda _: threading.current_thread())
        self.assertIn(worker, our_threads())
        self.assertFalse(worker.daemon)
        await opened.stopService()
        self.assertEqual(our_threads(), [])

    async def test_refused_value(self) -> None:
        """A value that the database can't take is told from a database that is away."""
        opened = await self.with_counter()
        work = launch(opened, lambda connection: connection.execute(text("UPDATE counter SET n = -1")))
        await self.failure_of(work, (IntegrityError, DataError))

    async def test_missing_table(self) -> None:
        """A table that a person has to mend makes it unavailable, and the error names the database."""
        opened = await self.opened()
        reason = await self.failure_of(launch(opened, count))
        self.assertIn(str(opened), reason)
        self.assertIn("counter", reason)
        self.assertEqual(len(reason.splitlines()), 1)

    async def test_concurrent_writers(self) -> None:
        """Two programs that write at once lose nothing when each says what it means in one statement."""
        first = await self.with_counter()
        second = await self.opened()
        more = text("UPDATE counter SET n = n + 1")
        work = [launch(each, lambda connection: connection.execute(more)) for each in (first, second) * 100]
        await gatherResults(work)
        self.assertEqual(await first.run(count), 200)

    async def test_cancelled_before_it_began(self) -> None:
        """What waits for a thread is dropped when cancelled; what had begun goes on, and its thread comes back."""
        from twisted.internet import reactor

        opened = await self.with_counter(threads=1)
        go_on, begun = threading.Event(), threading.Event()
        self.addCleanup(go_on.set)

        def slow(connection: Connection) -> None:
            begun.set()
            go_on.wait(20)
            increase(connection)

        running, waiting = launch(opened, slow), launch(opened, increase)
        await until(begun.is_set, "it begins", reactor)
        for work in (running, waiting):
            work.cancel()
            self.failureResultOf(work, CancelledError)
        go_on.set()
        self.assertEqual(await opened.run(count), 1)

    async def test_stop_with_work(self) -> None:
        """Stopping waits for what has begun, and refuses what waits and what comes later."""
        from twisted.internet import reactor

        opened = await self.with_counter(threads=1)
        go_on, begun = threading.Event(), threading.Event()
        self.addCleanup(go_on.set)

        def slow(connection: Connection) -> None:
            begun.set()
            go_on.wait(20)
            increase(connection)

        running, waiting = launch(opened, slow), launch(opened, increase)
        await until(begun.is_set, "it begins", reactor)
        stopping = opened.stopService()
        self.assertNoResult(stopping)
        go_on.set()
        await running
        self.assertIn("isn't open", await self.failure_of(waiting))
        await stopping
        self.assertIn("isn't open", await self.failure_of(launch(opened, increase)))
        opened.startService()
        self.assertEqual(await opened.run(count), 1)

    async def test_stop_with_much_work(self) -> None:
        """However much waits, a stop comes to its end, and all that waits is refused."""
        from twisted.internet import reactor

        opened = await self.with_counter(threads=1)
        go_on, begun = threading.Event(), threading.Event()
        self.addCleanup(go_on.set)

        def slow(connection: Connection) -> None:
            begun.set()
            go_on.wait(20)

        running = launch(opened, slow)
        waiting = [launch(opened, increase) for _ in range(database.MOST_WAITING)]
        await until(begun.is_set, "it begins", reactor)
        stopping = opened.stopService()
        go_on.set()
        await running
        for work in waiting:
            self.assertIn("isn't open", await self.failure_of(work))
        await stopping.addTimeout(10, reactor)
        opened.startService()
        self.assertEqual(await opened.run(count), 0)

    async def test_too_much_waits(self) -> None:
        """There is an end to what may wait."""
        opened = await self.with_counter(threads=1)
        works = [launch(opened, count) for _ in range(database.MOST_WAITING + 1)]
        self.assertIn("wait already", await self.failure_of(launch(opened, count)))
        for work in works:
            work.addErrback(lambda failure: failure.trap(CancelledError))
            work.cancel()

    async def test_read_only(self) -> None:
        """A reader reads while a writer has it open, and can't write."""
        writer = await self.with_counter()
        reader = await self.opened(read_only=True)
        await writer.run(increase)
        self.assertEqual(await reader.run(count), 1)
        await self.failure_of(launch(reader, increase))
        await writer.run(increase)
        self.assertEqual(await reader.run(count), 2)


class SQLiteTests(_Tests, TestCase):
    """On SQLite."""

    timeout = 60.0

    def setUp(self) -> None:
        """The name of a file, with all that a URL could stumble over."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        self.path = folder / "a ü #%41.db"
        self.url = URL.create("sqlite", database=str(self.path)).render_as_string()

    async def test_file(self) -> None:
        """The file and its companions are ours alone to read, and it has a write-ahead log."""
        opened = await self.with_counter()
        for path in self.path.parent.iterdir():
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600, path)
        pragmas = await opened.run(
            lambda connection: [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
            ]
        )
        self.assertEqual(pragmas, ["wal", 2])

    async def test_read_lately(self) -> None:
        """A reader reads also when no writer has it open."""
        writer = await self.with_counter()
        await writer.stopService()
        reader = await self.opened(read_only=True)
        self.assertEqual(await reader.run(count), 0)

    async def test_reader_makes_nothing(self) -> None:
        """A reader that finds no file says so, and leaves none."""
        reader = await self.opened(read_only=True)
        self.assertIn("unable to open", await self.failure_of(launch(reader, count)))
        self.assertEqual(list(self.path.parent.iterdir()), [])

    async def test_locked(self) -> None:
        """While another program doesn't stop writing it is unavailable, and afterwards it isn't."""
        opened = await self.with_counter()
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN EXCLUSIVE")
        self.assertIn("locked", await self.failure_of(launch(opened, increase)))
        other.execute("COMMIT")
        await opened.run(increase)
        self.assertEqual(await opened.run(count), 1)

    async def test_no_database(self) -> None:
        """A file that is something else is left alone, and named."""
        self.path.write_bytes(b"something else" * 100)
        opened = await self.opened()
        self.assertIn("not a database", await self.failure_of(launch(opened, count)))

    async def test_folder_gone(self) -> None:
        """A folder that went away after the start makes it unavailable."""
        opened = await self.opened()
        self.path.parent.rmdir()
        self.assertIn("No such file", await self.failure_of(launch(opened, count)))


class PostgreSQLTests(_Tests, TestCase):
    """On a real PostgreSQL."""

    timeout = 120.0

    def setUp(self) -> None:
        """A new database."""
        self.server = shared_postgresql()
        self.url = self.server.new_database()

    async def test_wrong_password(self) -> None:
        """A password that PostgreSQL refuses isn't in the error."""
        self.url = self.url.replace(self.server.password, "sesame-open")
        opened = await self.opened()
        reason = await self.failure_of(launch(opened, count))
        self.assertIn("password authentication failed", reason)
        self.assertNotIn("sesame-open", reason)

    async def test_away_and_back(self) -> None:
        """A server that is killed makes it unavailable, and one that comes back makes it available again."""
        self.addCleanup(self.server.start)
        opened = await self.with_counter()
        await opened.run(increase)
        self.server.kill()
        await self.failure_of(launch(opened, increase))
        self.assertIn("refused", await self.failure_of(launch(opened, increase)))
        self.server.start()
        await opened.run(increase)
        self.assertEqual(await opened.run(count), 2)

    async def test_killed_in_the_middle(self) -> None:
        """A transaction whose server dies leaves nothing."""
        self.addCleanup(self.server.start)
        opened = await self.with_counter()

        def die(connection: Connection) -> None:
            increase(connection)
            self.server.kill()
            increase(connection)

        await self.failure_of(launch(opened, die))
        self.server.start()
        self.assertEqual(await opened.run(count), 0)

    async def test_restarted_between(self) -> None:
        """A kept connection that died meanwhile costs no failure."""
        opened = await self.with_counter()
        self.server.kill()
        self.server.start()
        await opened.run(increase)

    async def test_hanging(self) -> None:
        """A server that holds its connections but does nothing is given up at the deadline; stopping doesn't hang."""
        opened = await self.with_counter(deadline=1.0)
        self.server.pause()
        self.addCleanup(self.server.go_on)
        await self.failure_of(launch(opened, count))
        work = launch(opened, count)
        await opened.stopService()
        await self.failure_of(work)

    async def test_idle_forever(self) -> None:
        """A statement of endless length is ended."""
        opened = await self.opened()
        timeout = await opened.run(lambda connection: connection.execute(text("SHOW statement_timeout")).scalar())
        self.assertEqual(timeout, "10s")

    async def test_bounded(self) -> None:
        """There are never more connections than threads."""
        opened = await self.opened(threads=2)
        mine = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        counts = await gatherResults(
            [launch(opened, lambda connection: connection.execute(mine).scalar()) for _ in range(20)]
        )
        self.assertTrue(1 <= max(counts) <= 2, counts)


class UrlTests(SynchronousTestCase):
    """What may stand in ``url =``."""

    def test_password(self) -> None:
        """What is shown has no password, wherever that was."""
        url = "postgresql://me:sesame@db.example.org:5433/grades?password=sesame&sslmode=require"
        self.assertEqual(shown(read_url(url)), "postgresql://me:***@db.example.org:5433/grades")

    def test_refused(self) -> None:
        """What we can't use is refused in one line that doesn't repeat it."""
        for url in (
            "",
            "sesame",
            "mysql://me:sesame@host/grades",
            "postgresql+psycopg2://me:sesame@host/grades",
            "postgresql://me:sesame@host",
            "postgresql://me:sesame@host:port/grades",
            "sqlite://",
            "sqlite:///:memory:",
            "sqlite:///sesame.db?mode=memory",
            "sqlite://sesame/grades.db",
            "sqlite+aiosqlite:///sesame.db",
        ):
            reason = str(self.assertRaises(ValueError, read_url, url))
            self.assertIn("expected sqlite:", reason)
            self.assertNotIn("sesame", reason)
            self.assertEqual(len(reason.splitlines()), 1)

    def test_missing_folder(self) -> None:
        """A folder that isn't there is found at once, and named."""
        error = self.assertRaises(ValueError, Database, "sqlite:////no/such/folder/x.db", None)
        self.assertEqual(str(error), "the folder /no/such/folder doesn't exist; make it, and let us write there")

    def run_python(self, program: str) -> str:
        """What a program prints."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.run(
            [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
        ).stdout

    def test_missing_driver(self) -> None:
        """Without PostgreSQL's driver, the error says how to install it."""
        printed = self.run_python(
            "import sys; sys.modules['psycopg'] = None\n"
            "from edxagent.lms.database import Database\n"
            "try: Database('postgresql://me@host/grades', None)\n"
            "except ValueError as error: print(error)"
        )
        self.assertIn("pip install 'edxagent[postgresql]'", printed)

    def test_imported_only_when_configured(self) -> None:
        """Neither the contracts nor a look for other sinks import SQLAlchemy, and SQLite doesn't import psycopg."""
        printed = self.run_python(
            "import sys\n"
            "import edxagent.cli.main, edxagent.lms.contracts\n"
            "from edxagent.lms.sinks.registry import find_sink_factory\n"
            "find_sink_factory('callback')\n"
            "print('sqlalchemy' in sys.modules)\n"
            "from edxagent.lms.database import Database\n"
            "Database('sqlite:///x.db', None)\n"
            "print('sqlalchemy' in sys.modules, 'psycopg' in sys.modules)"
        )
        self.assertEqual(printed.split(), ["False", "True", "False"])
