"""``agent.ini`` → :class:`~edxagent.config.values.AgentConfig`, or every reason why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edxagent.config.agent_keys import (
    AGENT_KEYS,
    BREAKER_KEYS,
    GRADER_KEYS,
    LMS_KEYS,
    QUARANTINE_KEYS,
    RESULTS_KEYS,
    RETRY_KEYS,
    SECTIONS,
)
from edxagent.config.broker import read_broker, read_broker_without_urls
from edxagent.config.common import read_failure, read_log
from edxagent.config.queues import MOST_QUEUES, queue_name, queue_options
from edxagent.config.sections import ConfigFile, Section
from edxagent.config.values import (
    AgentConfig,
    BreakerConfig,
    BrokerConfig,
    GraderConfig,
    LMSSourceConfig,
    QuarantineConfig,
    QueueConfig,
    ResultsConfig,
    RetryConfig,
)
from edxagent.interfaces import IGraderFactory

_NO_OVERRIDES: Mapping[str, str] = {}


def read_agent_config(
    path: str,
    *,
    environment: Mapping[str, str],
    find_factory: Callable[[str], IGraderFactory],
    overrides: Mapping[str, str] = _NO_OVERRIDES,
) -> AgentConfig:
    """Read a configuration.

    :param environment: for ``${NAME}``, such as ``os.environ``.
    :param find_factory: the kind of grader → its factory; raises ``ValueError`` for one that it doesn't know.
    :param overrides: ``section.key`` → value, from the command line; checked as the file is.
    :raises ConfigError: with every problem found.
    """
    file = ConfigFile(path, environment=environment, overrides=overrides)
    file.refuse_other_sections(tuple(SECTIONS))
    agent = file.section("agent").read(AGENT_KEYS)
    lms = None
    if list(file.section("lms-config")):
        broker, lms = _read_lms(file.section("broker"), file.section("lms-config"))
        _refuse_queues(file.section("queues"))
        queues: tuple[QueueConfig, ...] = ()
    else:
        broker = read_broker(file.section("broker"))
        queues = _read_queues(file.section("queues"))
    grader = _read_grader(file.section("grader"), find_factory)
    results = ResultsConfig(**file.section("results").read(RESULTS_KEYS))
    retry = RetryConfig(**file.section("retry").read(RETRY_KEYS))
    breaker = BreakerConfig(**file.section("breaker").read(BREAKER_KEYS))
    quarantine = QuarantineConfig(**file.section("quarantine").read(QUARANTINE_KEYS))
    failure = read_failure(file.section("failure"))
    log = read_log(file.section("log"))
    config = AgentConfig(
        **agent,
        broker=broker,
        queues=queues,
        grader=grader,
        results=results,
        retry=retry,
        breaker=breaker,
        quarantine=quarantine,
        failure=failure,
        log=log,
        lms=lms,
    )
    _check_times(file.section("grader"), config)
    _check_results(file.section("results"), config)
    if breaker.longest_pause < breaker.pause:
        file.section("breaker").complain("longest_pause", "is shorter than pause")
    file.problems.raise_if_any()
    return config


def _read_queues(section: Section) -> tuple[QueueConfig, ...]:
    names = list(section)
    if not 1 <= len(names) <= MOST_QUEUES:
        section.complain(None, f"expected 1 to {MOST_QUEUES} queues, a line each, such as 6002x-exam =")
    queues = []
    for name in names[:MOST_QUEUES]:
        try:
            queues.append(QueueConfig(name=queue_name(name), **queue_options(section.text(name))))
        except ValueError as error:
            section.complain(name, str(error))
    return tuple(queues)


def _read_lms(broker: Section, lms: Section) -> tuple[BrokerConfig, LMSSourceConfig]:
    config, tls, password = read_broker_without_urls(broker)
    return config, LMSSourceConfig(**lms.read(LMS_KEYS), tls=tls, broker_password=password)


def _refuse_queues(section: Section) -> None:
    if list(section):
        section.complain(None, "the LMS tells the queues, as there is a section [lms-config]; take one of the two away")


def _read_grader(section: Section, find_factory: Callable[[str], IGraderFactory]) -> GraderConfig:
    common = section.values(GRADER_KEYS)
    options: Mapping[str, Any] = {}
    if common["kind"] is not None:
        try:
            keys = find_factory(common["kind"]).keys
        except ValueError as error:
            section.complain("kind", str(error))
        else:
            options = section.values(keys)
            section.refuse_others([*GRADER_KEYS, *keys])
    return GraderConfig(**common, options=options)


def _check_times(section: Section, config: AgentConfig) -> None:
    held = config.grader.timeout + config.hold_limit
    if held >= config.broker.consumer_timeout:
        section.complain(
            "timeout",
            f"with [agent] hold_limit it makes {held:g} s, but RabbitMQ takes a submission back after "
            f"{config.broker.consumer_timeout:g} s; lower it, or raise [broker] consumer_timeout and RabbitMQ's own",
        )


def _check_results(section: Section, config: AgentConfig) -> None:
    if config.results.queue in (queue.name for queue in config.queues):
        section.complain("queue", "is one of [queues]; verdicts would be graded")
