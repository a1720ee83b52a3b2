"""Programs that a command starts and that must not outlive it, whatever ends it."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
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
    """A child ended though it shouldn't have. The message holds the last lines that it wrote."""


class Children:
    """The programs that are running.

    :param folder: where each one's output goes, into ``NAME.log``.
    """

    def __init__(self, reactor: Any, folder: Path) -> None:
        self._reactor = reactor
        self._folder = folder
        self._running: list[Child] = []
        self._guarded: Deferred[Any] | None = None
        self._failure: EdxagentError | None = None

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str], *, ends: bool = False) -> Child:
        """Start a program, in a session of its own, so that a Ctrl-C is ours alone; the kernel kills it when we die.

        :param name: as people call it; its log is named after it.
        :param ends: whether it comes to an end by itself. Any other one that ends has died.
        """
        log = self._folder / f"{name.lower().replace(' ', '-')}.log"
        child = Child(name, log, ends=ends, died=self.fail)
        bound = [*_if_there("setsid"), *_if_there("setpriv", "--pdeathsig", "KILL"), *command]
        self._reactor.spawnProcess(child, bound[0], bound, env=dict(environment))
        self._running.append(child)
        return child

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Do ``work``, unless a child dies meanwhile, or :meth:`fail` is called: then it is cancelled.

        :raises EdxagentError: the reason: :class:`ChildDied`, or what :meth:`fail` was called with.
        """
        guarded: Deferred[T] = Deferred.fromCoroutine(work)
        self._guarded = guarded
        try:
            return await guarded
        except CancelledError:
            if self._failure is None:
                raise
            raise self._failure from None

    def fail(self, reason: EdxagentError) -> None:
        """Nothing can come of the guarded work any more."""
        if self._failure is None:
            self._failure = reason
            self._reactor.callLater(0, self._give_up)  # not now: it may be the work that runs just now

    async def stop(self) -> None:
        """Terminate all of them; kill those that take longer than a few seconds."""
        await gatherResults([Deferred.fromCoroutine(child.stop(self._reactor)) for child in self._running])

    def _give_up(self) -> None:
        if self._guarded is not None:
            self._guarded.cancel()


class Child(ProcessProtocol):
    """One program. Made by :meth:`Children.start`.

    :ivar log: the file that holds its output.
    """

    def __init__(self, name: str, log: Path, *, ends: bool, died: Callable[[ChildDied], None]) -> None:
        self.name = name
        self.log = log
        self._file = log.open("wb")
        self._ends = ends
        self._died = died
        self._stopping = False
        self._end: int | ChildDied | None = None
        self._waiting: list[Deferred[int]] = []
        self._unfinished = {1: b"", 2: b""}
        self._readers: list[Callable[[str], None]] = []

    def on_line(self, reader: Callable[[str], None]) -> None:
        """Have ``reader`` called with each line that it writes from now on."""
        self._readers.append(reader)

    def says(self, words: str) -> Deferred[str]:
        """The rest of the first line, from now on, that has ``words`` in it."""
        heard: Deferred[str] = Deferred()

        def read(line: str) -> None:
            _, found, rest = line.partition(words)
            if found:
                self._readers.remove(read)
                heard.callback(rest)

        self._readers.append(read)
        return heard

    def ended(self) -> Deferred[int]:
        """Its exit status, as soon as it has ended; fails with :class:`ChildDied` if it died."""
        waiting: Deferred[int] = Deferred()
        self._waiting.append(waiting)
        self._tell()
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
        with suppress(ChildDied):
            await self.ended()
        if overdue.active():
            overdue.cancel()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Keep what it writes."""
        self._file.write(data)
        self._file.flush()
        *lines, rest = (self._unfinished[childFD] + data).split(b"\n")
        self._unfinished[childFD] = rest[:LONGEST_LINE]
        for line in lines:
            for read in list(self._readers):
                read(line.decode(errors="replace"))

    def processEnded(self, reason: Failure) -> None:
        """It is gone, and so is its output."""
        self._file.close()
        problem: Any = reason.value
        if self._stopping or (self._ends and not problem.signal):
            self._end = -problem.signal if problem.signal else problem.exitCode
        else:
            how = f"signal {problem.signal}" if problem.signal else f"status {problem.exitCode}"
            self._end = ChildDied(f"the {self.name} ended with {how}; its last words were:\n{self.last_words()}")
            self._died(self._end)
        self._tell()

    def _tell(self) -> None:
        if self._end is not None:
            waiting, self._waiting = self._waiting, []
            for one in waiting:
                if isinstance(self._end, ChildDied):
                    one.errback(self._end)
                else:
                    one.callback(self._end)

    def _signal(self, name: str) -> None:
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess(name)  # type: ignore[union-attr]  # it was started


def _if_there(program: str, *arguments: str) -> list[str]:
    found = shutil.which(program)
    return [found, *arguments] if found else []
