"""Tests for :mod:`edxagent.ops.twistd_log`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import syslog
from pathlib import Path
from typing import Any

from twisted.application.service import Application, IServiceCollection, MultiService, Service
from twisted.logger import FilteringLogObserver, ILogObserver, LogLevel
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from edxagent.config.values import LogConfig
from edxagent.errors import ConfigError
from edxagent.ops.twistd_log import LoggedService, SyslogObserver, use_log_config

CHECKOUT = Path(__file__).parent.parent

TWISTD = {"nodaemon": True, "debug": False, "logger": None, "syslog": False, "logfile": None, "prefix": "x"}
"""twistd's options for ``twistd --nodaemon``."""

EVENT = {"log_level": LogLevel.info, "log_namespace": "x", "log_format": "words", "log_time": 0.0}

PLUGIN = """\
from twisted.application.service import ServiceMaker
throwaway = ServiceMaker("throwaway", "throwaway_tap", "For a test.", "throwaway")
"""

TAP = """\
from twisted.application.service import Service
from twisted.logger import Logger
from twisted.python import usage
from edxagent.config.values import LogConfig
from edxagent.ops.twistd_log import use_log_config

class Options(usage.Options):
    optParameters = [["format", None, "text"]]

class Talker(Service):
    log = Logger()

    def startService(self):
        from twisted.internet import reactor
        self.log.info("graded {submission}", submission="b42\\nforged", seconds=0.5)
        self.log.debug("whispered")
        print("printed")
        reactor.callWhenRunning(reactor.stop)

def makeService(options):
    from twisted.internet import reactor
    Talker.log.warn("before the beginning")
    root = use_log_config(LogConfig(format=options["format"]), options.parent, reactor)
    Talker().setServiceParent(root)
    return root
"""


class NoReactor:
    """A reactor whose threads are never used."""

    def callFromThread(self, callable: Any, *args: object, **kwargs: object) -> None:
        """Call at once."""
        callable(*args, **kwargs)


class UseLogConfigTests(SynchronousTestCase):
    """Where the log goes under each of twistd's options."""

    def use(self, **options: Any) -> MultiService:
        """What a plugin would return."""
        return use_log_config(LogConfig(), {**TWISTD, **options}, NoReactor())  # type: ignore[arg-type]

    def observer_of(self, service: MultiService) -> ILogObserver | None:
        """The observer that an application gets from a service that is hung into it."""
        application = Application("x")
        service.setServiceParent(application)
        self.assertEqual(list(IServiceCollection(application)), [service])
        observer: ILogObserver | None = application.getComponent(ILogObserver, None)
        return observer

    def test_terminal(self) -> None:
        """In the foreground the application gets an observer of ours."""
        for logfile in (None, "-"):
            self.assertIsInstance(self.observer_of(self.use(logfile=logfile)), FilteringLogObserver)

    def test_file(self) -> None:
        """With ``--logfile`` lines are added to that file, and SIGUSR1 begins a new one."""
        self.addCleanup(signal.signal, signal.SIGUSR1, signal.getsignal(signal.SIGUSR1))
        path = Path(self.mktemp())
        path.write_text("old\n")
        observer = self.observer_of(self.use(logfile=str(path)))
        assert observer is not None
        observer({**EVENT, "log_format": "one"})
        self.assertEqual(path.read_text(), "old\n1970-01-01T00:00:00.000Z info  one\n")
        os.kill(os.getpid(), signal.SIGUSR1)
        observer({**EVENT, "log_format": "two"})
        self.assertEqual(path.read_text(), "1970-01-01T00:00:00.000Z info  two\n")

    def test_file_that_cannot_be(self) -> None:
        """A log file that can't be written is a problem in one line."""
        error = self.assertRaises(ConfigError, self.use, logfile="/nope/x.log")
        self.assertEqual(str(error), "--logfile /nope/x.log: can't be written: No such file or directory; name another")

    def test_daemon_without_output(self) -> None:
        """A daemon can't log to the terminal."""
        error = self.assertRaises(ConfigError, self.use, logfile="-", nodaemon=False)
        self.assertIn("--logfile -: a daemon has no standard output", str(error))

    def test_logger(self) -> None:
        """``--logger`` stays in force."""
        self.assertIs(self.observer_of(self.use(logger=object())), None)

    def test_not_twistd(self) -> None:
        """Where the options aren't twistd's, logging is left alone, and no file is made."""
        for options in (None, {"logFile": None}):
            service = use_log_config(LogConfig(), options, NoReactor())  # type: ignore[arg-type]
            self.assertIs(self.observer_of(service), None)

    def test_syslog(self) -> None:
        """With ``--syslog`` the application gets an observer of ours as well."""
        self.assertIsInstance(self.observer_of(self.use(syslog=True)), FilteringLogObserver)


class LoggedServiceTests(SynchronousTestCase):
    """A service that brings its observer along."""

    def test_elsewhere(self) -> None:
        """Hung into another service it is a plain collection."""
        outer, inner, service = MultiService(), Service(), LoggedService(lambda event: None)
        inner.setServiceParent(service)
        service.setServiceParent(outer)
        outer.startService()
        self.assertTrue(inner.running)


class SyslogObserverTests(SynchronousTestCase):
    """Events on their way to syslog."""

    def test_priorities(self) -> None:
        """Each line is sent with the priority that its level has there."""
        sent: list[tuple[int, str]] = []
        observer = SyslogObserver(LogConfig(), lambda priority, line: sent.append((priority, line)))
        verifyObject(ILogObserver, observer)
        for level in LogLevel.iterconstants():
            observer({"log_level": level, "log_format": "a\nb", "log_time": 0.0})
        self.assertEqual(
            [priority for priority, _ in sent],
            [syslog.LOG_DEBUG, syslog.LOG_INFO, syslog.LOG_WARNING, syslog.LOG_ERR, syslog.LOG_CRIT],
        )
        self.assertEqual(sent[1][1], r"1970-01-01T00:00:00.000Z info  a\nb")

    def test_silence(self) -> None:
        """An event without words isn't sent."""
        sent: list[tuple[int, str]] = []
        SyslogObserver(LogConfig(), lambda priority, line: sent.append((priority, line)))({"log_time": 0.0})
        self.assertEqual(sent, [])


class RealTwistdTests(SynchronousTestCase):
    """A plugin that uses it, in a process of its own."""

    def setUp(self) -> None:
        """A folder with a plugin."""
        self.folder = Path(self.mktemp()).absolute()
        (self.folder / "twisted" / "plugins").mkdir(parents=True)
        (self.folder / "twisted" / "plugins" / "throwaway_plugin.py").write_text(PLUGIN)
        (self.folder / "throwaway_tap.py").write_text(TAP)

    def twistd(self, *arguments: str) -> str:
        """Run it; its standard output."""
        done = subprocess.run(
            [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": f"{self.folder}{os.pathsep}{CHECKOUT}"},
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        return done.stdout

    def test_text(self) -> None:
        """Everything is written once, in our form: from before logging began to twistd's last words, prints too."""
        lines = self.twistd("throwaway").splitlines()
        words = [line.partition("Z ")[2] for line in lines]
        self.assertEqual(words[0], "warn  before the beginning")
        self.assertEqual(words.count(r"info  graded b42\nforged seconds=0.5"), 1)
        self.assertEqual(words.count("info  printed"), 1)
        self.assertEqual(words[-1], "info  Server Shut Down.")
        self.assertEqual([word for word in words if "whispered" in word or not word], [])

    def test_json_in_a_file(self) -> None:
        """With ``--logfile`` the terminal stays empty, and each line of the file is an object."""
        self.assertEqual(self.twistd("--logfile", "x.log", "throwaway", "--format", "json"), "")
        records = [json.loads(line) for line in (self.folder / "x.log").read_text().splitlines()]
        self.assertEqual([record.get("submission") for record in records if "seconds" in record], ["b42\nforged"])
        self.assertEqual(records[-1]["message"], "Server Shut Down.")
