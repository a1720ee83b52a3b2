"""The composition root of ``twistd edxagent``: the one room that reaches for reactor, clock and signals."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, ClassVar

from twisted.application.service import IService
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger
from twisted.python import usage

from edxagent.errors import ConfigError

EXIT_CONFIG = 2
EXIT_REFUSED = 3

_log = Logger(namespace="edxagent.tap")


class Options(usage.Options):
    """What can be said on the command line; everything else is in the file."""

    synopsis = "[--config FILE] [overrides]"
    longdesc = (
        "Grades the submissions that wait in RabbitMQ queues. TERM or INT stops it when what is being graded is done "
        "([agent] drain_timeout); a second one stops it at once. "
        f"Exit status: {EXIT_CONFIG} the options or the configuration can't be used, {EXIT_REFUSED} the broker refused "
        "something that a person must mend, 143 and 130 stopped by TERM and INT."
    )
    optParameters: ClassVar = [
        ["config", "c", "etc/agent.ini", "The configuration file."],
        ["name", None, None, "Overrides [agent] name."],
        ["concurrency", None, None, "Overrides [agent] concurrency."],
        ["broker-urls", None, None, "Overrides [broker] urls; must hold no password."],
        ["grader-url", None, None, "Overrides [grader] url."],
        ["log-level", None, None, "Overrides [log] level: debug, info, warn, error or critical."],
        ["log-format", None, None, "Overrides [log] format: text or json."],
    ]
    overrides: ClassVar = {
        "name": "agent.name",
        "concurrency": "agent.concurrency",
        "broker-urls": "broker.urls",
        "grader-url": "grader.url",
        "log-level": "log.level",
        "log-format": "log.format",
    }

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Say what is wrong in one line, where ``twistd`` would print every option that there is."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            print(f"twistd edxagent: {error} (twistd edxagent --help lists the options)", file=sys.stderr)
            raise SystemExit(EXIT_CONFIG) from None

    def parseArgs(self, *arguments: str) -> None:
        """Everything is an option."""
        if arguments:
            raise usage.UsageError(f"unexpected argument {arguments[0]!r}; the configuration is named by --config FILE")

    def config_overrides(self) -> dict[str, str]:
        """The overrides that were given, by the name that the file has for them."""
        return {key: self[option] for option, key in self.overrides.items() if self[option] is not None}


def makeService(options: Options) -> IService:
    """The agent, for ``twistd``."""
    from twisted.internet import reactor as twisted_reactor

    from edxagent.agent import make_agent_service
    from edxagent.config.agent import read_agent_config
    from edxagent.graders.registry import find_factory
    from edxagent.ops.twistd_log import use_log_config

    reactor: Any = twisted_reactor
    # The reactor's own clock is the wall clock: when that jumps, every deadline and heartbeat would fire at once.
    reactor.seconds = time.monotonic
    status = ExitStatus(reactor)
    try:
        config = read_agent_config(
            options["config"],
            environment=os.environ,
            find_factory=find_factory,
            overrides=options.config_overrides(),
        )
        logged = use_log_config(config.log, options.parent, reactor)
        agent = make_agent_service(config, reactor, on_refused=lambda refused: status.stop(EXIT_REFUSED))
    except ConfigError as error:
        print(error, file=sys.stderr)
        raise SystemExit(EXIT_CONFIG) from None
    reactor.callWhenRunning(_handle_signals, reactor, agent.hurry)
    agent.setServiceParent(logged)
    return logged


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


def _leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _handle_signals(reactor: Any, hurry: Callable[[], None]) -> None:
    """Around Twisted's handlers, which complain about a second TERM and know no HUP."""
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

    def hang_up(number: int, frame: FrameType | None) -> None:
        reactor.callFromThread(
            _log.warn, "HUP is ignored: to have a changed configuration read, stop the agent and start it again"
        )

    for number in first:
        signal.signal(number, stop)
    signal.signal(signal.SIGHUP, hang_up)
