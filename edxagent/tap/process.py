"""What both programs are as processes: options, exit statuses, signals."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, ClassVar, Protocol

from twisted.application.service import IService, IServiceCollection
from twisted.internet.error import ReactorNotRunning
from twisted.python import usage

from edxagent.config.values import LogConfig
from edxagent.errors import ConfigError
from edxagent.ops.twistd_log import use_log_config

EXIT_LISTEN = 1
EXIT_CONFIG = 2
EXIT_REFUSED = 3
EXIT_STUCK = 4


class ProgramOptions(usage.Options):
    """What can be said on the command line; everything else is in the file.

    :ivar program: the plugin's name.
    :ivar overrides: option → the ``section.key`` that it overrides.
    """

    program: ClassVar[str]
    overrides: ClassVar[Mapping[str, str]]
    synopsis = "[--config FILE] [overrides]"

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Say what is wrong in one line, where ``twistd`` would print every option that there is."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            name = f"twistd {self.program}"
            print(f"{name}: {error} ({name} --help lists the options)", file=sys.stderr)
            raise SystemExit(EXIT_CONFIG) from None

    def parseArgs(self, *arguments: str) -> None:
        """Everything is an option."""
        if arguments:
            raise usage.UsageError(f"unexpected argument {arguments[0]!r}; the configuration is named by --config FILE")

    def config_overrides(self) -> dict[str, str]:
        """The overrides that were given, by the name that the file has for them."""
        return {key: self[option] for option, key in self.overrides.items() if self[option] is not None}


class ProgramService(Protocol):
    """What a program consists of: a service that can be told to hurry, and to read its file again."""

    def setServiceParent(self, parent: IServiceCollection) -> None:
        """See :meth:`IService.setServiceParent`."""

    def hurry(self) -> None:
        """Cut a stop short, or the one that is about to begin."""

    def reload(self) -> None:
        """Go by what the file says now, if that can be used."""


class ExitStatus:
    """Stops the process with an exit status, which ``reactor.stop()`` can't say and ``twistd`` has no word for."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def stop(self, status: int) -> None:
        """Stop the reactor in order; the process then ends with ``status``, unless it was stopping already."""
        self._reactor.callLater(0, self._stop, status)

    def _stop(self, status: int) -> None:
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            return
        # Registered last, it runs first, when twistd has cleaned up.
        atexit.register(_leave, status)


def make_program(
    options: ProgramOptions, build: Callable[[Any, ExitStatus], tuple[LogConfig, ProgramService]]
) -> IService:
    """A service to return from ``makeService``.

    :param build: reads the configuration and makes the program's service, with the reactor and a way to end the
        process; may raise :class:`ConfigError`, which ends it with status 2.
    """
    from twisted.internet import reactor as twisted_reactor

    reactor: Any = twisted_reactor
    # The reactor's own clock is the wall clock: when that jumps, every deadline and heartbeat would fire at once.
    reactor.seconds = time.monotonic
    try:
        log, service = build(reactor, ExitStatus(reactor))
        logged = use_log_config(log, options.parent, reactor)
    except ConfigError as error:
        print(error, file=sys.stderr)
        raise SystemExit(EXIT_CONFIG) from None
    _handle_hang_up(reactor, service.reload)
    reactor.callWhenRunning(_handle_ends, reactor, service.hurry)
    service.setServiceParent(logged)
    return logged


def _leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _handle_hang_up(reactor: Any, reload: Callable[[], None]) -> None:
    """HUP would end the process; twistd lets it."""
    signal.signal(signal.SIGHUP, lambda number, frame: reactor.callFromThread(reload))


def _handle_ends(reactor: Any, hurry: Callable[[], None]) -> None:
    """Around Twisted's handlers, which complain about a second TERM."""
    stopping: list[int] = []
    # Twisted has installed its own by now, as twistd asked it to.
    handlers = ((number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT))
    # One that was ignored from the start (INT is, of what a shell script puts into the background) stays so.
    first: dict[int, Any] = {number: handler for number, handler in handlers if callable(handler)}

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.append(number)
        if len(stopping) == 1:
            first[number](number, frame)
        else:
            reactor.callFromThread(hurry)

    for number in first:
        signal.signal(number, stop)
