"""``twistd edxagent``: the agent as a program."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, ClassVar

from twisted.application.service import IService

from edxagent.agent import make_agent
from edxagent.config.agent import read_agent_config
from edxagent.config.values import AgentConfig, LogConfig
from edxagent.graders.registry import find_factory
from edxagent.reload.file import ConfiguredService
from edxagent.tap.process import EXIT_CONFIG, EXIT_REFUSED, EXIT_STUCK, ExitStatus, ProgramOptions, make_program


class Options(ProgramOptions):
    """See :class:`ProgramOptions`."""

    program = "edxagent"
    longdesc = (
        "Grades the submissions that wait in RabbitMQ queues. TERM or INT stops it when what is being graded is done "
        "([agent] drain_timeout); a second one stops it at once. HUP has it read its configuration again, "
        "without losing a submission; what is wrong with that is logged, and changes nothing. "
        f"Exit status: {EXIT_CONFIG} the options or the configuration can't be used, {EXIT_REFUSED} the broker, or the "
        f"LMS side, refused something that a person must mend, {EXIT_STUCK} the broker has submissions but sends none, "
        "over three connections in a row ([broker] watchdog), 143 and 130 stopped by TERM and INT."
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


def makeService(options: Options) -> IService:
    """The agent, for ``twistd``."""

    def read(path: str) -> AgentConfig:
        return read_agent_config(
            path, environment=os.environ, find_factory=find_factory, overrides=options.config_overrides()
        )

    def build(reactor: Any, status: ExitStatus) -> tuple[LogConfig, ConfiguredService[AgentConfig]]:
        config = read(options["config"])
        path = os.path.abspath(options["config"])  # twistd may go elsewhere later
        agent = make_agent(
            config,
            reactor,
            on_refused=lambda refused: status.stop(EXIT_REFUSED),
            on_stuck=lambda: status.stop(EXIT_STUCK),
        )
        return config.log, ConfiguredService(program=agent, read=partial(read, path), reactor=reactor)

    return make_program(options, build)
