"""Runs a command's coroutine in the reactor, so that every way out of it is an exit status and is cleaned up after."""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from enum import IntEnum
from typing import Any, NoReturn

import click
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import react

from edxagent.errors import BrokerError, ConfigError, EdxagentError


class Status(IntEnum):
    """Exit statuses. A signal's is 128 and its number, as in a shell: 130 for Ctrl-C, 143 for TERM."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    BROKER = 3


Command = Callable[[Any], Coroutine[Any, Any, int]]


def run(command: Command) -> NoReturn:
    """Run a command in the reactor, then exit with the status that it returns.

    INT, TERM and HUP cancel the command, once; what it has to put away takes a bounded time, and is waited for.

    :param command: called with the running reactor.
    """
    debug = bool(click.get_current_context().find_root().params.get("debug"))
    react(lambda reactor: _Run(reactor, command, debug).to_the_end())


class _Run:
    """One run of a command."""

    def __init__(self, reactor: Any, command: Command, debug: bool) -> None:
        self._reactor = reactor
        self._command = command
        self._debug = debug
        self._work: Deferred[int] | None = None
        self._ended: Deferred[None] = Deferred()
        self._signal: int | None = None

    async def to_the_end(self) -> NoReturn:
        """Run it.

        :raises SystemExit: with its exit status, for ``react``.
        """
        reactor = self._reactor
        reactor.seconds = time.monotonic  # the reactor's own is the wall clock: a jump would fire every deadline
        # A signal may meet the reactor's handler before ours is there; then the reactor stops, and waits for us.
        reactor.addSystemEventTrigger("before", "shutdown", self._reactor_stops)
        running: Deferred[None] = Deferred()
        reactor.callWhenRunning(running.callback, None)
        await running
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: reactor.callFromThread(self._interrupt, number))
        self._work = Deferred.fromCoroutine(self._begin())
        try:
            raise SystemExit(await self._status_of(self._work))
        finally:
            self._ended.callback(None)

    async def _begin(self) -> int:
        return await self._command(self._reactor)

    async def _status_of(self, work: Deferred[int]) -> int:
        try:
            return await work
        except CancelledError:
            return Status.FAILED if self._signal is None else 128 + self._signal
        except Exception as error:
            if self._debug:
                traceback.print_exc()
            return complain(error)

    def _interrupt(self, number: int) -> None:
        if self._signal is None and self._work is not None:
            self._signal = number
            self._work.cancel()

    def _reactor_stops(self) -> Deferred[None]:
        if not self._ended.called:
            self._interrupt(signal.SIGINT)
        return self._ended


def complain(error: Exception) -> int:
    """Say on standard error what went wrong, a line a problem.

    :returns: the exit status that goes with it.
    """
    for line in _lines(error):
        print(line if line.startswith(" ") else f"edxagent: {line}", file=sys.stderr)
    if isinstance(error, click.ClickException):
        return error.exit_code
    if isinstance(error, ConfigError):
        return Status.USAGE
    return Status.BROKER if isinstance(error, BrokerError) else Status.FAILED


def _lines(error: Exception) -> list[str]:
    if isinstance(error, EdxagentError):
        return str(error).splitlines()
    if isinstance(error, click.ClickException):
        ctx = getattr(error, "ctx", None) or click.get_current_context(silent=True)
        path = ctx.command_path if ctx else "edxagent"
        return [f"{_joined(error.format_message())} ({path} --help tells more)"]
    return [_joined(f"{type(error).__name__}: {error} (edxagent --debug … shows where)")]


def _joined(text: str) -> str:
    return " ".join(text.split())
