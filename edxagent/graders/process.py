"""One child process on a leash: what it says is bounded, and so is the time that it takes to go."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

STDIN, STDOUT, STDERR, VERDICT = range(4)
CHILD_FDS: dict[int, str | int] = {STDIN: "w", STDOUT: "r", STDERR: "r", VERDICT: "r"}


@frozen(kw_only=True)
class Leash:
    """How far a child may go.

    :ivar max_reply: bytes on the verdict's descriptor, beyond which it is killed.
    :ivar max_output: bytes of the end of its standard output, and of its standard error, that are kept.
    :ivar kill_after: seconds from TERM to KILL.
    :ivar drain: seconds that its descriptors may stay open after its exit: a process that it left behind may hold them.
    """

    max_reply: int
    max_output: int
    kill_after: float
    drain: float = 1.0


class Child(ProcessProtocol):
    """A process that leads its own group, from its start until it is gone and nothing of it is held any more.

    :ivar exit_status: ``None`` while it runs, and when a signal ended it.
    :ivar exit_signal: the number of the signal that ended it, or ``None``.
    :ivar gone: whether it has ended, and nothing is held for it any more.
    :ivar overflow: whether it was killed for saying too much on the verdict's descriptor.
    """

    def __init__(self, clock: IReactorTime, stdin: bytes, leash: Leash) -> None:
        self._clock = clock
        self._stdin = stdin
        self._leash = leash
        self._pid = 0
        self._exited = False
        self._stopping = False
        self.gone = False
        self._timer: IDelayedCall | None = None
        self._waiters: list[Deferred[None]] = []
        self.exit_status: int | None = None
        self.exit_signal: int | None = None
        self.overflow = False
        self.reply = bytearray()
        self.tails = {STDOUT: bytearray(), STDERR: bytearray()}

    def when_gone(self) -> Deferred[None]:
        """Fires when it has ended and all that was held for it is let go. Cancelling stops the waiting only."""
        waiter: Deferred[None] = Deferred()
        self._waiters.append(waiter)
        if self.gone:
            waiter.callback(None)
        return waiter

    def stop(self) -> None:
        """End it: TERM, and KILL if it is still there ``kill_after`` later, or when told again; to its whole group."""
        if self._exited:
            self._set_timer(0, self._let_go)
        elif self._stopping:
            self._kill()
        else:
            self._stopping = True
            self._signal(signal.SIGTERM)
            self._set_timer(self._leash.kill_after, self._kill)

    def connectionMade(self) -> None:
        """It runs: hand it the submission. If it doesn't want to read that, so be it."""
        self._pid = self._process.pid
        self._process.writeToChild(STDIN, self._stdin)
        self._process.closeChildFD(STDIN)
        self._stdin = b""

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """It said something; keep no more than the leash allows, but go on reading lest it stalls."""
        if childFD == VERDICT:
            if len(self.reply) + len(data) > self._leash.max_reply:
                self.overflow = True
                self.reply.clear()
                self._kill()
            elif not self.overflow:
                self.reply += data
            return
        tail = self.tails[childFD]
        tail += data
        if len(tail) > 2 * self._leash.max_output:
            del tail[: -self._leash.max_output]

    def processExited(self, reason: Failure) -> None:
        """It ended. What it said last may still be in the pipes, which others may hold open."""
        end: Any = reason.value  # ProcessDone or ProcessTerminated
        self._exited = True
        self.exit_status = end.exitCode
        self.exit_signal = end.signal
        self._signal(signal.SIGKILL)
        self._set_timer(0 if self._stopping else self._leash.drain, self._let_go)

    def processEnded(self, reason: Failure) -> None:
        """It ended, and nobody holds its pipes any more."""
        self._let_go()

    @property
    def _process(self) -> Any:
        """The transport: beyond its interface we need ``pid`` and ``pipes``."""
        return self.transport

    def _kill(self) -> None:
        self._stopping = True
        self._signal(signal.SIGKILL)
        # A process in the kernel's uninterruptible sleep outlives even that; don't wait for it.
        self._set_timer(self._leash.drain, self._let_go)

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._pid, number)
        except OSError:  # gone, or so young that it isn't a group of its own yet
            if not self._exited:
                with suppress(OSError):
                    os.kill(self._pid, number)

    def _set_timer(self, seconds: float, call: Any) -> None:
        self._cancel_timer()
        self._timer = self._clock.callLater(seconds, call)

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _let_go(self) -> None:
        """The end. While pipes are open, to be called by a timer only.

        Amid a round of epoll's events it would free descriptors that the events to come may speak of, and the next
        process would get both.
        """
        if self.gone:
            return
        self.gone = True
        self._cancel_timer()
        # Not loseConnection(), which would wait until a process that was left behind has read all of its stdin.
        for pipe in list(self._process.pipes.values()):
            pipe.connectionLost(Failure(ConnectionDone()))
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)
