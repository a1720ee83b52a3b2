"""The command line as a real process, for tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 90.0
POLL = 0.05


class Run(ProcessProtocol):
    """A running program.

    :ivar status: its exit status, or minus the signal that ended it; ``None`` while it runs.
    """

    def __init__(self) -> None:
        self._outputs = {1: b"", 2: b""}
        self.status: int | None = None

    @property
    def out(self) -> str:
        """What it wrote to standard output until now."""
        return self._outputs[1].decode()

    @property
    def err(self) -> str:
        """What it wrote to standard error until now."""
        return self._outputs[2].decode()

    def kill(self, number: int) -> None:
        """Send it a signal."""
        transport: Any = self.transport
        transport.signalProcess(number)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Keep what it writes."""
        self._outputs[childFD] += data

    def processEnded(self, reason: Failure) -> None:
        """It ended."""
        ended: Any = reason.value
        self.status = -ended.signal if ended.signal else ended.exitCode

    async def ends(self) -> int:
        """Its exit status, as soon as it has one."""
        await until(lambda: self.status is not None, self)
        assert self.status is not None
        return self.status

    async def says(self, words: str) -> None:
        """Wait until it has written ``words`` to either output."""
        await until(lambda: words in self.out + self.err or self.status is not None, self)
        if words not in self.out + self.err:
            raise AssertionError(f"it never said {words!r} but ended with {self.status}:\n{self.out}\n{self.err}")


async def until(condition: Any, run: Run | None = None, patience: float = PATIENCE) -> None:
    """Poll until ``condition()`` holds."""
    from twisted.internet import reactor

    deadline = reactor.seconds() + patience  # type: ignore[attr-defined]
    while not condition():
        if reactor.seconds() > deadline:  # type: ignore[attr-defined]
            raise AssertionError(
                f"it didn't happen within {patience:g} s" + (f":\n{run.out}\n{run.err}" if run else "")
            )
        await deferLater(reactor, POLL)  # type: ignore[arg-type]


def start(
    case: Any,
    *command: str,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    run: Run | None = None,
) -> Run:
    """Start a program for the length of a test, in ``folder`` or trial's own; ``run`` may be of a kind of its own."""
    from twisted.internet import reactor

    run = run or Run()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EDXAGENT_")}
    variables = {**inherited, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **(environment or {})}
    reactor.spawnProcess(run, command[0], command, env=variables, path=folder and str(folder))  # type: ignore[attr-defined]
    case.addCleanup(_end, run)
    return run


def start_cli(case: Any, *arguments: str, environment: Mapping[str, str] | None = None) -> Run:
    """Start ``edxagent`` with ``arguments``."""
    return start(case, sys.executable, "-m", "edxagent.cli", *arguments, environment=environment)


def start_agent(case: Any, config: str, environment: Mapping[str, str] | None = None) -> Run:
    """Start ``twistd edxagent`` with a configuration file."""
    twistd = str(Path(sys.executable).with_name("twistd"))
    return start(case, twistd, "--nodaemon", "--pidfile=", "edxagent", "--config", config, environment=environment)


def processes_of(folder: Path) -> list[int]:
    """The processes, other than ours, whose command line or environment names ``folder``."""
    needle = os.fsencode(folder)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if needle in (entry / "cmdline").read_bytes() or needle in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:  # it went just now
                continue
    return found


def _end(run: Run) -> Deferred[int]:
    with suppress(ProcessExitedAlready):
        run.kill(9)
    return Deferred.fromCoroutine(run.ends())
