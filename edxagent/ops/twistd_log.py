"""Puts our log observer in the place of twistd's own, where twistd's options say that the log goes.

twistd chooses its observer after ``makeService`` has returned: ``--logger`` first, then an ``ILogObserver`` component
of the application, then its own text. (So ``makeService`` must not begin logging itself: all would be written twice.)
The application appears when twistd hangs our service into it, and that is when the component is set. What was logged
before is kept by ``globalLogBeginner``, and shown by our observer too.
"""

from __future__ import annotations

import signal
import sys
import syslog
from collections.abc import Callable, Mapping
from typing import Any, TextIO, cast

from twisted.application.service import IServiceCollection, MultiService
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import ILogObserver, LogEvent, LogLevel
from twisted.python.components import Componentized
from twisted.python.logfile import LogFile
from zope.interface import implementer

from edxagent.config.values import LogConfig
from edxagent.errors import ConfigError
from edxagent.ops.logs import make_log_observer, only_important, renderer

ROTATE_AT = 10_000_000
"""The size of a log file, in bytes, at which another is begun."""

MOST_ROTATED = 10
"""How many full log files are kept."""

_PRIORITIES = {
    LogLevel.debug: syslog.LOG_DEBUG,
    LogLevel.info: syslog.LOG_INFO,
    LogLevel.warn: syslog.LOG_WARNING,
    LogLevel.error: syslog.LOG_ERR,
    LogLevel.critical: syslog.LOG_CRIT,
}


class LoggedService(MultiService):
    """A service whose application logs with an observer of our choice; hung elsewhere it is a plain collection."""

    def __init__(self, observer: ILogObserver) -> None:
        super().__init__()
        self._observer = observer

    def setServiceParent(self, parent: IServiceCollection) -> None:
        """Choose the observer, if the parent is an application."""
        if isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._observer)
        super().setServiceParent(parent)


def use_log_config(config: LogConfig, twistd: Mapping[str, Any] | None, reactor: IReactorFromThreads) -> MultiService:
    """A service to return from ``makeService``, with the real ones hung into it.

    :param twistd: twistd's own options: the ``parent`` of the plugin's, if it has one. With ``--logger``, and under
        anything that isn't twistd, such as ``twist``, logging stays as it is.
    :raises ConfigError: the log can't be written where twistd's options say.
    """
    if not twistd or "nodaemon" not in twistd or twistd["logger"]:
        return MultiService()
    if twistd["syslog"]:
        syslog.openlog(twistd["prefix"], 0, syslog.LOG_USER)
        return LoggedService(only_important(config, SyslogObserver(config, syslog.syslog)))
    return LoggedService(make_log_observer(config, _log_file(twistd, reactor)))


@implementer(ILogObserver)
class SyslogObserver:
    """Sends events to syslog, with the priority that their level has there.

    :param send: takes a priority and a line, as ``syslog.syslog`` does.
    """

    def __init__(self, config: LogConfig, send: Callable[[int, str], object]) -> None:
        self._render = renderer(config)
        self._send = send

    def __call__(self, event: LogEvent) -> None:
        """Send one event, a message for each of its lines."""
        priority = _PRIORITIES.get(event.get("log_level", LogLevel.info), syslog.LOG_INFO)
        for line in (self._render(event) or "").splitlines():
            self._send(priority, line)


def _log_file(twistd: Mapping[str, Any], reactor: IReactorFromThreads) -> TextIO:
    name = twistd["logfile"]
    foreground = twistd["nodaemon"] or twistd["debug"]
    if name == "-" and not foreground:
        raise ConfigError(["--logfile -: a daemon has no standard output; add --nodaemon, or name a file"])
    if name == "-" or (foreground and not name):
        return sys.stdout
    try:
        file = LogFile.fromFullPath(name or "twistd.log", rotateLength=ROTATE_AT, maxRotatedFiles=MOST_ROTATED)
    except OSError as error:
        raise ConfigError([f"--logfile {name}: can't be written: {error.strerror}; name another"]) from None
    if signal.getsignal(signal.SIGUSR1) in (signal.SIG_DFL, None):
        # As twistd does for its own file, so that logrotate's recipes hold.
        signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(file.rotate))
    return cast(TextIO, file)
