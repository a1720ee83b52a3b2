"""``twistd edxagent-lms``: gateway, bridges and updater as a program."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, ClassVar

from twisted.application.service import IService

from edxagent.config.lms import read_lms_config
from edxagent.config.lms_values import LMSConfig
from edxagent.config.values import LogConfig
from edxagent.lms.service import make_lms_service
from edxagent.lms.sinks.registry import find_sink_factory
from edxagent.reload.file import ConfiguredService
from edxagent.tap.process import (
    EXIT_CONFIG,
    EXIT_LISTEN,
    EXIT_REFUSED,
    EXIT_STUCK,
    ExitStatus,
    ProgramOptions,
    make_program,
)


class Options(ProgramOptions):
    """See :class:`ProgramOptions`."""

    program = "edxagent-lms"
    longdesc = (
        "Takes submissions from the LMS into RabbitMQ queues, and brings the verdicts back. TERM or INT stops it when "
        "what is under way is done ([lms] drain_timeout); a second one stops it at once. HUP has it read its "
        "configuration again, without closing its door; what is wrong with that is logged, and changes nothing. "
        f"Exit status: {EXIT_LISTEN} the gateway can't listen where it should, {EXIT_CONFIG} the options or the "
        f"configuration can't be used, {EXIT_REFUSED} the broker refused something that a person must mend, "
        f"{EXIT_STUCK} the broker has verdicts but sends none, over three connections in a row ([broker] watchdog), "
        "143 and 130 stopped by TERM and INT."
    )
    optParameters: ClassVar = [
        ["config", "c", "etc/lms.ini", "The configuration file."],
        ["name", None, None, "Overrides [lms] name."],
        ["broker-urls", None, None, "Overrides [broker] urls; must hold no password."],
        ["listen", None, None, "Overrides [gateway] listen: a Twisted endpoint."],
        ["log-level", None, None, "Overrides [log] level: debug, info, warn, error or critical."],
        ["log-format", None, None, "Overrides [log] format: text or json."],
    ]
    overrides: ClassVar = {
        "name": "lms.name",
        "broker-urls": "broker.urls",
        "listen": "gateway.listen",
        "log-level": "log.level",
        "log-format": "log.format",
    }


def makeService(options: Options) -> IService:
    """The LMS side, for ``twistd``."""

    def read(path: str) -> LMSConfig:
        return read_lms_config(
            path, environment=os.environ, find_sink=find_sink_factory, overrides=options.config_overrides()
        )

    def build(reactor: Any, status: ExitStatus) -> tuple[LogConfig, ConfiguredService[LMSConfig]]:
        config = read(options["config"])
        path = os.path.abspath(options["config"])  # twistd may go elsewhere later
        service = make_lms_service(
            config,
            reactor,
            on_refused=lambda refused: status.stop(EXIT_REFUSED),
            on_deaf=lambda error: status.stop(EXIT_LISTEN),
            on_stuck=lambda: status.stop(EXIT_STUCK),
        )
        return config.log, ConfiguredService(program=service, read=partial(read, path), reactor=reactor)

    return make_program(options, build)
