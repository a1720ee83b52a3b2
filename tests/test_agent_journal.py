"""Tests for :mod:`edxagent.agent.journal`."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from edxagent.agent.deaths import LONGEST_KEY, Deaths, key_of
from edxagent.agent.journal import SLOT, Journal, JournalFolder
from tests.cli_process import ROOT

NOW = 1_700_000_000.0

WORKER = """\
import sys
from edxagent.agent.journal import JournalFolder

journal, died = JournalFolder(sys.argv[1]).open(2)
print(sorted(died), flush=True)
for key in sys.argv[2:]:
    journal.begin(key)
print("grading", flush=True)
sys.stdin.read()
"""
"""A process that grades something until its input ends or somebody kills it."""

OUTLIVED = """\
import subprocess
print(subprocess.Popen(["/bin/sleep", "60"]).pid, flush=True)
sys.stdin.read()
"""
"""It has a child that goes on."""


class JournalTestCase(SynchronousTestCase):
    """A test with a journal's folder."""

    def setUp(self) -> None:
        """Choose one."""
        self.path = Path(self.mktemp()).absolute()
        self.folder = JournalFolder(str(self.path))

    def open(self, slots: int = 2) -> tuple[Journal, list[str]]:
        """Open the journal until the test ends."""
        journal, died = self.folder.open(slots)
        self.addCleanup(self.close, journal)
        return journal, sorted(died)

    def close(self, journal: Journal) -> None:
        """Close a journal, unless that was done."""
        try:
            journal.close()
        except OSError as error:
            self.assertEqual(error.errno, errno.EBADF)

    def leave(self, name: str, *keys: str) -> None:
        """Leave what a process leaves that dies while it grades ``keys``."""
        elsewhere = Path(self.mktemp())
        journal, _ = JournalFolder(str(elsewhere)).open(2)
        for key in keys:
            journal.begin(key)
        self.path.mkdir(exist_ok=True)
        shutil.copy(elsewhere / "1", self.path / name)
        journal.close()


class SlotTests(JournalTestCase):
    """What is being graded."""

    def test_left(self) -> None:
        """Whoever opens the folder learns what a dead process was grading, once."""
        self.leave("5", "a", "b c", "x" * LONGEST_KEY, key_of("\n"))
        self.assertEqual(self.open()[1], sorted(["a", "b c", "x" * LONGEST_KEY, key_of("\n")]))
        self.assertEqual(self.open()[1], [])

    def test_struck_out(self) -> None:
        """What has ended is no evidence, also when its slot was used again."""
        journal, _ = self.open()
        first, second = journal.begin("a"), journal.begin("b")
        journal.end(first)
        journal.begin("c")
        journal.end(second)
        shutil.copy(self.path / "1", self.path / "2")
        self.assertEqual(self.open()[1], ["c"])

    def test_no_growth(self) -> None:
        """The file has its size from the start and keeps it, unless more is graded at once."""
        journal, _ = self.open(slots=3)
        for number in range(100):
            slots = [journal.begin(f"{number}.{place}") for place in range(3)]
            for slot in slots:
                journal.end(slot)
            self.assertEqual((self.path / "1").stat().st_size, 3 * SLOT)
        for place in range(5):
            journal.begin(str(place))
        self.assertEqual((self.path / "1").stat().st_size, 5 * SLOT)

    def test_twice_at_once(self) -> None:
        """A submission that a process graded twice at once killed one process."""
        self.leave("2", "a", "a")
        self.leave("3", "a")
        self.assertEqual(self.open()[1], ["a", "a"])

    def test_close(self) -> None:
        """A process that stops in order leaves nothing, though something was still being graded."""
        journal, _ = self.open()
        journal.begin("a")
        journal.close()
        self.assertEqual(self.open()[1], [])

    @contextmanager
    def disk_full(self, size: int) -> Iterator[None]:
        """No file can be written to beyond ``size`` bytes."""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def test_disk_full(self) -> None:
        """What can't be written down raises, and leaves what stands there; afterwards there is room as before."""
        journal, _ = self.open(slots=1)
        first = journal.begin("a")
        with self.disk_full(SLOT):
            self.assertRaises(OSError, journal.begin, "b")
            self.assertRaises(OSError, journal.begin, "b")
        journal.begin("c")
        journal.end(first)
        shutil.copy(self.path / "1", self.path / "2")
        self.assertEqual(self.open()[1], ["c"])
        self.assertEqual((self.path / "1").stat().st_size, 2 * SLOT)

    def test_half_written(self) -> None:
        """A slot that takes only a part counts as not written, and what it holds then for nothing."""
        journal, _ = self.open(slots=1)
        with self.disk_full(SLOT + 12):
            slot = journal.begin("a")
            self.assertRaises(OSError, journal.begin, "bbbbbbbbbb")
        journal.end(slot)
        shutil.copy(self.path / "1", self.path / "2")
        self.assertEqual(self.open()[1], [])

    def test_not_struck_out(self) -> None:
        """What couldn't be struck out stands there only until the next one takes its place."""
        journal, _ = self.open(slots=2)
        journal.begin("a")
        second = journal.begin("b")
        with self.disk_full(SLOT):
            self.assertRaises(OSError, journal.end, second)
        journal.begin("c")
        shutil.copy(self.path / "1", self.path / "2")
        self.assertEqual(self.open()[1], ["a", "c"])


class FolderTests(JournalTestCase):
    """The folder."""

    def test_private(self) -> None:
        """Nobody else may look into it, whatever the umask."""
        old = os.umask(0)
        self.addCleanup(os.umask, old)
        self.open()
        self.folder.update(["a"], [], NOW)
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o700)
        self.assertEqual(sorted(os.listdir(self.path)), ["1", "deaths", "lock"])
        for name in os.listdir(self.path):
            self.assertEqual((self.path / name).stat().st_mode & 0o777, 0o600, name)

    def test_each_its_own(self) -> None:
        """Each process takes the first number that nobody has; what a living one grades is no evidence."""
        first, _ = self.open()
        second, _ = self.open()
        first.begin("a")
        second.begin("b")
        self.assertEqual(self.open()[1], [])
        first.close()
        self.assertEqual(self.open()[1], [])
        self.assertEqual(sorted(os.listdir(self.path)), ["1", "2", "3", "lock"])

    def test_update(self) -> None:
        """Agents add to what others have written down."""
        other = JournalFolder(str(self.path))
        self.open()
        self.folder.update(["a", "b"], [], NOW)
        self.assertEqual(other.update(["a"], ["b"], NOW + 1), {"a": Deaths(2, NOW + 1)})
        self.assertEqual(self.folder.update([], [], NOW), {"a": Deaths(2, NOW)})

    def test_nothing_new(self) -> None:
        """When nothing changes nothing is written."""
        self.open()
        self.folder.update(["a"], [], NOW)
        before = (self.path / "deaths").stat()
        self.folder.update([], ["b"], NOW)
        self.assertEqual((self.path / "deaths").stat(), before)

    def test_killed_between(self) -> None:
        """A process killed after it took the others' files and before it counted has lost evidence, not doubled it."""
        self.leave("2", "a")
        self.assertEqual(self.open()[1], ["a"])
        self.assertEqual(self.open()[1], [])
        self.assertEqual(self.folder.update([], [], NOW), {})

    def test_strange_company(self) -> None:
        """Links, pipes, folders and files of other names are left alone, and nobody waits for them."""
        self.leave("2", "a")
        precious = self.path / "precious"
        precious.write_text("x")
        os.symlink(precious, self.path / "3")
        os.mkfifo(self.path / "4")
        (self.path / "5").mkdir()
        (self.path / "0").write_text("x")
        (self.path / "1000").write_text("x")
        (self.path / "٣").write_text("x")
        (self.path / "1.swp").write_text("x")
        self.assertEqual(self.open()[1], ["a"])
        expected = ["0", "1", "1.swp", "1000", "3", "4", "5", "lock", "precious", "٣"]
        self.assertEqual(sorted(os.listdir(self.path)), expected)
        self.assertEqual(precious.read_text(), "x")

    @given(st.binary(max_size=1200))
    def test_anything(self, data: bytes) -> None:
        """Whatever stands in a file, it is read and done with."""
        self.path.mkdir(exist_ok=True)
        (self.path / "1").write_bytes(data)
        journal, died = self.folder.open(1)
        journal.close()
        self.assertEqual(died, [])

    @given(
        st.lists(st.tuples(st.integers(0, 2 * SLOT - 1), st.binary(min_size=1, max_size=30)), min_size=1, max_size=9)
    )
    def test_torn(self, patches: list[tuple[int, bytes]]) -> None:
        """What was half overwritten is nothing but lost evidence."""
        self.leave("1", "a" * 200, "b" * 500)
        data = bytearray((self.path / "1").read_bytes())
        journal, died = self.folder.open(2)
        journal.close()
        for at, patch in patches:
            data[at : at + len(patch)] = patch
        (self.path / "1").write_bytes(data)
        journal, died = self.folder.open(2)
        journal.close()
        self.assertLessEqual(set(died), {"a" * 200, "b" * 500})

    def test_huge(self) -> None:
        """Of a file without end only as much is read as one of ours can have."""
        self.leave("2", "a")
        os.truncate(self.path / "2", 1 << 36)
        self.assertEqual(self.open()[1], ["a"])

    def test_no_folder(self) -> None:
        """Where no folder can be, there is an error, and so there is where no file can be."""
        self.path.write_text("")
        self.assertRaises(OSError, self.folder.open, 1)
        self.assertRaises(OSError, JournalFolder("/proc/edxagent-journal").open, 1)

    def test_locked_for_long(self) -> None:
        """A process that keeps the folder to itself, as one that was stopped just then, isn't waited for for ever."""
        self.open()
        with open(self.path / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            error = self.assertRaises(OSError, JournalFolder(str(self.path), patience=0.1).open, 1)
        self.assertIn("0.1 s", str(error.strerror))
        self.open()


class ProcessTests(JournalTestCase):
    """Real processes."""

    def worker(self, *keys: str, program: str = WORKER) -> tuple[Popen[str], str]:
        """A process that grades ``keys``, and what it found when it started."""
        command = [sys.executable, "-c", program, str(self.path), *keys]
        process = Popen(command, stdin=PIPE, stdout=PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        self.addCleanup(self.end, process)
        assert process.stdout is not None
        found = process.stdout.readline().strip()
        self.assertEqual(process.stdout.readline(), "grading\n")
        return process, found

    def end(self, process: Popen[str]) -> None:
        """Kill a process."""
        process.kill()
        process.communicate()

    def test_killed(self) -> None:
        """Of two processes that share a folder one is killed: what it was grading is found, the other's isn't."""
        first, _ = self.worker("a", "b")
        second, found = self.worker("c")
        self.assertEqual(found, "[]")
        first.send_signal(signal.SIGKILL)
        first.wait()
        third, found = self.worker("a")
        self.assertEqual(found, "['a', 'b']")
        for process in (second, third):
            process.send_signal(signal.SIGKILL)
            process.wait()
        self.assertEqual(self.open()[1], ["a", "c"])

    def test_children(self) -> None:
        """A grader's process that outlives its agent doesn't keep the agent's journal."""
        process, _ = self.worker("a", program=WORKER.replace("sys.stdin.read()", OUTLIVED))
        assert process.stdout is not None
        child = int(process.stdout.readline())
        self.addCleanup(os.kill, child, signal.SIGKILL)
        self.end_hard(process)
        self.assertEqual(self.open()[1], ["a"])

    def end_hard(self, process: Popen[str]) -> None:
        """Kill a process, but wait for it alone, not for who has its output."""
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
