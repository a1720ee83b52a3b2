"""Programs that a command starts and that must not outlive it, whatever ends it."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from edxagent.errors import EdxagentError

T = TypeVar("T")

STOP_SECONDS = 5.0
SHOWN_LINES = 15
LONGEST_LINE = 64 * 1024


class ChildDied(EdxagentError):
    """A child ended though nobody had stopped it. The message holds the last lines that it wrote."""


class Children:
    """The programs that are running.

    :param folder: where each one's output goes, into ``NAME.log``.
    """

    def __init__(self, reactor: Any, folder: Path) -> None:
        self._reactor = reactor
        self._folder = folder
        self._running: list[Child] = []
        self._guarded: Deferred[Any] | None = None
        self._died: ChildDied | None = None

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Child:
        """Start a program, in a session of its own, so that a Ctrl-C is ours alone; the kernel kills it when we die."""
        child = Child(name, self._folder / f"{name}.log", self._ended)
        bound = [*_if_there("setsid"), *_if_there("setpriv", "--pdeathsig", "KILL"), *command]
        self._reactor.spawnProcess(child, bound[0], bound, env=dict(environment))
        self._running.append(child)
        return child

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Do ``work``, unless a child dies meanwhile: then it is cancelled.

        :raises ChildDied: one did.
        """
        guarded: Deferred[T] = Deferred.fromCoroutine(work)
        self._guarded = guarded
        try:
            return await guarded
        except CancelledError:
            if self._died is None:
                raise
            raise self._died from None

    async def stop(self) -> None:
        """Terminate all of them; kill those that take longer than a few seconds."""
        await gatherResults([Deferred.fromCoroutine(child.stop(self._reactor)) for child in self._running])

    def _ended(self, child: Child, status: str) -> None:
        self._died = ChildDied(f"the {child.name} {status}; its last words were:\n{child.last_words()}")
        self._reactor.callLater(0, self._give_up)  # not now: it may be the work that runs just now

    def _give_up(self) -> None:
        if self._guarded is not None:
            self._guarded.cancel()


class Child(ProcessProtocol):
    """One program. Made by :meth:`Children.start`.

    :ivar log: the file that holds its output.
    """

    def __init__(self, name: str, log: Path, ended: Any) -> None:
        self.name = name
        self.log = log
        self._file = log.open("wb")
        self._on_end = ended
        self._stopping = False
        self._gone: Deferred[None] = Deferred()
        self._line = b""
        self._wanted: tuple[bytes, Deferred[str]] | None = None

    def says(self, beginning: str) -> Deferred[str]:
        """The rest of the first line that begins so."""
        waiting: Deferred[str] = Deferred()
        self._wanted = (beginning.encode(), waiting)
        return waiting

    def last_words(self) -> str:
        """The last lines of its output, indented."""
        with self.log.open(errors="replace") as log:
            lines = deque((line.rstrip() for line in log if line.strip()), maxlen=SHOWN_LINES)
        return "\n".join(f"  {line}" for line in lines or ["(none)"])

    async def stop(self, reactor: Any) -> None:
        """Terminate it, or kill it if it doesn't listen."""
        self._stopping = True
        self._signal("TERM")
        overdue = reactor.callLater(STOP_SECONDS, self._signal, "KILL")
        await self._gone
        if overdue.active():
            overdue.cancel()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Keep what it writes."""
        self._file.write(data)
        self._file.flush()
        if self._wanted is not None:
            self._look_for_line(data)

    def processEnded(self, reason: Failure) -> None:
        """It is gone, and so is its output."""
        self._file.close()
        self._gone.callback(None)
        if not self._stopping:
            problem: Any = reason.value
            how = f"signal {problem.signal}" if problem.signal else f"status {problem.exitCode}"
            self._on_end(self, f"ended with {how}")

    def _look_for_line(self, data: bytes) -> None:
        assert self._wanted is not None
        beginning, waiting = self._wanted
        *lines, self._line = (self._line + data).split(b"\n")
        self._line = self._line[:LONGEST_LINE]
        for line in lines:
            if line.startswith(beginning):
                self._wanted = None
                waiting.callback(line.removeprefix(beginning).decode(errors="replace"))
                return

    def _signal(self, name: str) -> None:
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess(name)  # type: ignore[union-attr]  # it was started


def _if_there(program: str, *arguments: str) -> list[str]:
    found = shutil.which(program)
    return [found, *arguments] if found else []
