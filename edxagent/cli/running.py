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


def run(command: Callable[[Any], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run a command in the reactor, then exit with the status that it returns.

    INT, TERM and HUP cancel the command, once; what it has to put away takes a bounded time, and is waited for.

    :param command: called with the running reactor.
    """
    react(_run, [command, click.get_current_context().find_root().params.get("debug", False)])


async def _run(reactor: Any, command: Callable[[Any], Coroutine[Any, Any, int]], debug: bool) -> NoReturn:
    reactor.seconds = time.monotonic  # the reactor's own is the wall clock: a jump would fire every deadline
    running: Deferred[None] = Deferred()
    reactor.callWhenRunning(running.callback, None)
    await running
    raise SystemExit(await _status_of(reactor, command, debug))


async def _status_of(reactor: Any, command: Callable[[Any], Coroutine[Any, Any, int]], debug: bool) -> int:
    signals: list[int] = []

    def interrupt(number: int) -> None:
        signals.append(number)
        if len(signals) == 1:
            work.cancel()

    work = Deferred.fromCoroutine(command(reactor))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: reactor.callFromThread(interrupt, number))
    try:
        return await work
    except CancelledError:
        return 128 + signals[0] if signals else Status.FAILED
    except Exception as error:
        if debug:
            traceback.print_exc()
        return complain(error)


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
