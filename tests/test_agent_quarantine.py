"""Tests for :mod:`edxagent.agent.quarantine`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import LogEvent, LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from edxagent.agent.journal import JournalFolder
from edxagent.agent.quarantine import Quarantine
from edxagent.agent.returns import MANY_RETURNS
from edxagent.config.values import QuarantineConfig
from edxagent.interfaces import IDelivery
from edxagent.model import Properties
from tests.threadless import ThreadlessReactor

NOW = 1_700_000_000.0


@implementer(IDelivery)
class Delivered:
    """A delivery to look at."""

    queue = "q"
    body = b"{}"
    redelivered = False

    def __init__(self, submission: str | None, returns: Any = None) -> None:
        headers = {} if returns is None else {"x-delivery-count": returns}
        self.properties = Properties(message_id=submission, headers=headers)

    def ack(self) -> bool:
        """See ``IDelivery``."""
        raise NotImplementedError

    def requeue(self) -> bool:
        """See ``IDelivery``."""
        raise NotImplementedError


class QuarantineTestCase(SynchronousTestCase):
    """A test with a folder for journals, and agents that die.

    :ivar logged: what was logged while a test looked.
    """

    def setUp(self) -> None:
        """Choose a folder."""
        self.folder = Path(self.mktemp()).absolute()
        self.config = QuarantineConfig(journal=str(self.folder), max_starts=3)
        self.reactor = ThreadlessReactor()
        self.now = NOW
        logs = ExitStack()
        self.logged: list[LogEvent] = logs.enter_context(capturedLogs())
        self.addCleanup(logs.close)

    def quarantine(self, config: QuarantineConfig | None = None) -> Quarantine:
        """What an agent knows that has just started; it stops when the test ends."""
        quarantine = Quarantine(config or self.config, self.reactor, concurrency=2, wall_clock=lambda: self.now)
        self.successResultOf(quarantine.open())
        self.addCleanup(self.stop, quarantine)
        return quarantine

    def stop(self, quarantine: Quarantine) -> None:
        """Stop an agent in order."""
        self.successResultOf(Deferred.fromCoroutine(quarantine.close()))

    def die(self, *submissions: str) -> None:
        """Let an agent start, and die while it grades some submissions."""
        agent = self.quarantine()
        with ExitStack() as grading:
            for submission in submissions:
                grading.enter_context(agent.watch(submission))
            files = [name for name in os.listdir(self.folder) if name.isdigit()]
            (mine,) = files
            shutil.copy(self.folder / mine, self.folder / "dead")
            grading.pop_all()  # it is dead: nothing ends
        self.stop(agent)
        (self.folder / "dead").rename(self.folder / "99")

    def lines(self, level: LogLevel = LogLevel.warn) -> list[str]:
        """What was logged as important as this, or more so; then it is forgotten."""
        lines = [str(formatEvent(event)) for event in self.logged if event["log_level"] >= level]
        self.logged.clear()
        return lines


class SuspectTests(QuarantineTestCase):
    """Who is graded alone."""

    def test_innocent(self) -> None:
        """What nobody died of, and the broker didn't deliver often, is graded among others."""
        quarantine = self.quarantine()
        self.assertEqual(quarantine.starts("a"), 0)
        self.assertFalse(quarantine.is_convicted("a"))
        for returns in (None, 0, MANY_RETURNS - 1, "many", True):
            self.assertFalse(quarantine.is_suspect(Delivered("a", returns)))
        self.assertEqual(self.lines(LogLevel.info), [])

    def test_died_of(self) -> None:
        """An agent died while it graded it: it is a suspect, and the log says so once."""
        self.die("a", "b")
        quarantine = self.quarantine()
        self.assertEqual([quarantine.starts(one) for one in "abc"], [1, 1, 0])
        self.assertEqual([quarantine.is_suspect(Delivered(one)) for one in "abca"], [True, True, False, True])
        self.assertFalse(quarantine.is_convicted("a"))
        self.assertEqual(
            self.lines(),
            [
                "2 submissions were being graded when an agent died; they will be graded alone",
                "a is graded alone: agents that died while they graded it: 1; returns to its queue: 0",
                "b is graded alone: agents that died while they graded it: 1; returns to its queue: 0",
            ],
        )

    def test_often_returned(self) -> None:
        """What the broker has delivered often is a suspect, but never a convict."""
        quarantine = self.quarantine()
        self.assertTrue(quarantine.is_suspect(Delivered("a", 1_000_000)))
        self.assertTrue(quarantine.is_suspect(Delivered("a", 1_000_001)))
        self.assertFalse(quarantine.is_convicted("a"))
        self.assertEqual(
            self.lines(),
            ["a is graded alone: agents that died while they graded it: 0; returns to its queue: 1000000"],
        )

    def test_without_an_id(self) -> None:
        """A submission without an id of its own is known by its body."""
        self.die("44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a")
        self.assertTrue(self.quarantine().is_suspect(Delivered(None)))

    def test_hostile_id(self) -> None:
        """An id may hold anything, and be as long as it likes; the log shows it on a short line."""
        ids = ["x" * 100_000, "a\nfake line", "1 1 other", "../../etc/passwd", "\udc80", "{starts}"]
        for submission in ids:
            self.die(submission)
        quarantine = self.quarantine()
        for submission in ids:
            self.assertEqual(quarantine.starts(submission), 1, submission[:20])
            self.assertTrue(quarantine.is_suspect(Delivered(submission)))
        self.assertEqual(quarantine.starts("other"), 0)
        lines = self.lines()
        self.assertLess(max(map(len, lines)), 400)
        self.assertTrue(all("\n" not in line for line in lines))


class ConvictTests(QuarantineTestCase):
    """Who isn't graded any more."""

    def test_convicted(self) -> None:
        """After ``max_starts`` deaths it is convicted, and the log says so once; to be alone is no use to it then."""
        for _ in range(self.config.max_starts):
            before = self.quarantine()
            self.assertFalse(before.is_convicted("a"))
            self.stop(before)
            self.die("a")
        self.lines()
        quarantine = self.quarantine()
        self.assertFalse(quarantine.is_suspect(Delivered("a", 50)))
        self.assertTrue(quarantine.is_convicted("a"))
        self.assertTrue(quarantine.is_convicted("a"))
        self.assertEqual(
            self.lines(LogLevel.error),
            [
                "a isn't graded any more but becomes a dead letter: agents that died while they graded it: 3; find out "
                "why before you replay it"
            ],
        )

    def test_dead_letter(self) -> None:
        """When it is a dead letter it is forgotten, so that it is graded when somebody replays it."""
        for _ in range(3):
            self.die("a")
        quarantine = self.quarantine()
        self.assertTrue(quarantine.is_convicted("a"))
        quarantine.forget("a")
        self.assertFalse(quarantine.is_convicted("a"))
        self.assertEqual(self.quarantine().starts("a"), 0)

    def test_graded_at_last(self) -> None:
        """What was graded has a clean record, also for agents that start later; the others keep theirs."""
        self.die("a", "b")
        quarantine = self.quarantine()
        with quarantine.watch("a"):
            pass
        self.assertEqual([quarantine.starts(one) for one in "ab"], [0, 1])
        self.assertEqual([self.quarantine().starts(one) for one in "ab"], [0, 1])

    def test_given_back(self) -> None:
        """What is given back unfinished has one death no more and no less."""
        self.die("a")
        quarantine = self.quarantine()
        with self.assertRaises(CancelledError), quarantine.watch("a"):
            raise CancelledError
        self.assertEqual([quarantine.starts("a"), self.quarantine().starts("a")], [1, 1])

    def test_stopped_in_the_middle(self) -> None:
        """What is still being graded when an agent has to stop isn't held against it."""
        quarantine = self.quarantine()
        with quarantine.watch("a"):
            self.stop(quarantine)
            self.assertEqual(self.quarantine().starts("a"), 0)
        self.assertEqual(self.quarantine().starts("a"), 0)

    def test_old(self) -> None:
        """After a week without more deaths it is forgotten."""
        self.die("a")
        self.assertEqual(self.quarantine().starts("a"), 1)
        self.now += 7 * 24 * 3600
        self.assertEqual(self.quarantine().starts("a"), 0)

    def test_another_limit(self) -> None:
        """A reload may change the limit; the journal stays where it is."""
        self.die("a"), self.die("a")
        quarantine = self.quarantine()
        self.assertFalse(quarantine.is_convicted("a"))
        quarantine.use(QuarantineConfig(journal="elsewhere", max_starts=2))
        self.assertTrue(quarantine.is_convicted("a"))
        self.assertFalse(Path("elsewhere").exists())


class JournalTests(QuarantineTestCase):
    """A journal that isn't to be had."""

    def test_none(self) -> None:
        """Without a journal nothing is written anywhere, and only the broker's count is known."""
        before = set(os.listdir())
        quarantine = self.quarantine(evolve(self.config, journal=None))
        with quarantine.watch("a"):
            self.assertEqual(quarantine.starts("a"), 0)
        self.assertTrue(quarantine.is_suspect(Delivered("a", MANY_RETURNS)))
        self.assertEqual(set(os.listdir()), before)

    def test_no_folder(self) -> None:
        """Where no folder can be made the log says so in one line, and grading goes on."""
        self.folder.write_text("")
        quarantine = self.quarantine()
        for _ in range(3):
            with quarantine.watch("a"):
                pass
        self.assertFalse(quarantine.is_suspect(Delivered("a")))
        self.assertEqual(
            self.lines(LogLevel.info),
            [
                f"the journal in {self.folder} can't be used: File exists; without it nobody knows what agents die of: "
                "mend [quarantine] journal and start the agent again"
            ],
        )

    @contextmanager
    def full(self) -> Iterator[None]:
        """The disk has no space: the journal's file isn't to be had either, a stand-in for it is."""
        mine = os.open("/dev/full", os.O_RDWR)
        targets = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        (journal,) = [int(one.rpartition("/")[2]) for one in targets if _target(one) == str(self.folder / "1")]
        kept = os.dup(journal)
        os.dup2(mine, journal)
        try:
            yield
        finally:
            os.dup2(kept, journal)
            os.close(kept)
            os.close(mine)

    def test_disk_full(self) -> None:
        """A disk that gets full costs evidence and one line in the log; when it has space again, all is as before."""
        quarantine = self.quarantine()
        with self.full():
            for number in range(10):
                with quarantine.watch(str(number)):
                    pass
        for number in range(10):
            with quarantine.watch(str(number)):
                pass
        self.assertEqual(
            self.lines(LogLevel.info),
            [
                f"the journal in {self.folder} can't take what is being graded: No space left on device; grading goes "
                "on, but nobody may know what agents die of meanwhile",
                "the journal takes what is being graded again",
            ],
        )
        self.stop(quarantine)
        self.die("a")
        self.assertEqual(self.quarantine().starts("a"), 1)

    def test_full_when_it_ends(self) -> None:
        """What can't be struck out raises nothing, and is struck out by the next one."""
        quarantine = self.quarantine()
        with quarantine.watch("a"):
            full = self.full()
            full.__enter__()
        full.__exit__(None, None, None)
        with quarantine.watch("b"):
            shutil.copy(self.folder / "1", self.folder / "2")
        self.assertEqual(self.quarantine().starts("a"), 0)
        self.assertEqual(len(self.lines()), 2)

    def test_deaths_not_written(self) -> None:
        """While deaths can't be written down, they are known here, and written with the next change."""
        self.die("a", "b")
        (self.folder / "deaths.new").mkdir()
        quarantine = self.quarantine()
        self.assertEqual(self.quarantine().starts("a"), 0)
        self.assertEqual([quarantine.starts(one) for one in "ab"], [1, 1])
        for _ in range(3):
            with quarantine.watch("c"):
                pass
        self.assertEqual(len([line for line in self.lines() if "can't take what agents died of" in line]), 1)
        (self.folder / "deaths.new").rmdir()
        with quarantine.watch("a"):
            pass
        self.assertEqual(self.lines(LogLevel.info), ["the journal takes what agents died of again"])
        self.assertEqual([self.quarantine().starts(one) for one in "ab"], [0, 1])

    def test_written_at_the_end(self) -> None:
        """What couldn't be written down before is when the agent stops."""
        self.die("a", "b")
        quarantine = self.quarantine()
        (self.folder / "deaths.new").mkdir()
        with quarantine.watch("a"):
            pass
        (self.folder / "deaths.new").rmdir()
        self.stop(quarantine)
        self.assertEqual([self.quarantine().starts(one) for one in "ab"], [0, 1])

    def test_ends_while_writing(self) -> None:
        """What ends while others are being written down is written down as well, and has ended at once for us."""
        self.die("a", "b")
        quarantine = self.quarantine()
        self.reactor.hold = True
        for submission in "ab":
            with quarantine.watch(submission):
                pass
        (work,) = self.reactor.held
        self.reactor.hold = False
        work()
        self.assertEqual([quarantine.starts(one) for one in "ab"], [0, 0])
        self.assertEqual(JournalFolder(str(self.folder)).update([], [], NOW), {})


class OpeningTests(QuarantineTestCase):
    """Opening takes its time."""

    def test_stopped_meanwhile(self) -> None:
        """An agent that stops while the journal is being opened waits for that, and leaves nothing open."""
        before = len(os.listdir("/proc/self/fd"))
        self.reactor.hold = True
        quarantine = Quarantine(self.config, self.reactor, concurrency=2, wall_clock=lambda: self.now)
        opening = quarantine.open()
        opening.cancel()
        self.failureResultOf(opening, CancelledError)
        closing = Deferred.fromCoroutine(quarantine.close())
        self.assertNoResult(closing)
        self.reactor.hold = False
        self.reactor.held.pop()()
        self.successResultOf(closing)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_again(self) -> None:
        """An agent that was stopped can be started again."""
        quarantine = self.quarantine()
        self.stop(quarantine)
        self.successResultOf(quarantine.open())
        with quarantine.watch("a"):
            shutil.copy(self.folder / "1", self.folder / "2")
        self.stop(quarantine)
        self.successResultOf(quarantine.open())
        self.assertEqual(quarantine.starts("a"), 1)


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""
