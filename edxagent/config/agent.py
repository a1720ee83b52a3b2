"""``agent.ini`` → :class:`~edxagent.config.values.AgentConfig`, or every reason why not."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from edxagent.config.agent_keys import (
    AGENT_KEYS,
    BROKER_KEYS,
    FAILURE_KEYS,
    FAILURES,
    GRADER_KEYS,
    LOG_KEYS,
    MOST_QUEUES,
    RESULTS_KEYS,
    SECTIONS,
    queue_name,
    queue_options,
)
from edxagent.config.broker_url import broker_address, refuse_written_password
from edxagent.config.sections import ConfigFile, Section
from edxagent.config.values import (
    AgentConfig,
    BrokerAddress,
    BrokerConfig,
    FailureConfig,
    GraderConfig,
    LogConfig,
    QueueConfig,
    ResultsConfig,
    TLSConfig,
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
    broker = _read_broker(file.section("broker"))
    queues = _read_queues(file.section("queues"))
    grader = _read_grader(file.section("grader"), find_factory)
    results = ResultsConfig(**file.section("results").read(RESULTS_KEYS))
    failure = _read_failure(file.section("failure"))
    log = LogConfig(**file.section("log").read(LOG_KEYS))
    config = AgentConfig(
        **agent, broker=broker, queues=queues, grader=grader, results=results, failure=failure, log=log
    )
    _check_times(file.section("grader"), config)
    _check_results(file.section("results"), config)
    file.problems.raise_if_any()
    return config


def _read_broker(section: Section) -> BrokerConfig:
    values = section.read(BROKER_KEYS)
    tls = TLSConfig(
        ca_file=values.pop("tls_ca_file"),
        certificate_file=values.pop("tls_certificate_file"),
        key_file=values.pop("tls_key_file"),
        verify=values.pop("tls_verify"),
    )
    urls, password = values.pop("urls"), values.pop("password")
    addresses = _addresses(section, urls, tls, password) if urls else ()
    if urls:
        _check_tls(section, tls, any(url.startswith("amqps://") for url in urls))
    if values["retry_initial"] > values["retry_max"]:
        section.complain("retry_initial", f"is longer than retry_max, {values['retry_max']:g} s")
    return BrokerConfig(addresses=addresses, **values)


def _addresses(
    section: Section, urls: tuple[str, ...], tls: TLSConfig, password: str | None
) -> tuple[BrokerAddress, ...]:
    addresses = []
    try:
        for literal in section.literal("urls").split():
            refuse_written_password(literal)
    except ValueError as error:
        section.complain("urls", str(error))
        return ()
    for position, url in enumerate(urls, 1):
        try:
            addresses.append(broker_address(url, tls=tls, password=password))
        except ValueError as error:
            section.complain("urls", f"URL {position}: {error}" if len(urls) > 1 else str(error))
    return tuple(addresses)


def _check_tls(section: Section, tls: TLSConfig, used: bool) -> None:
    files = {
        "tls_ca_file": tls.ca_file,
        "tls_certificate_file": tls.certificate_file,
        "tls_key_file": tls.key_file,
    }
    for key, path in files.items():
        if path is not None and not used:
            section.complain(key, "is of no use: none of the urls begins with amqps://")
        elif path is not None and not (os.path.isfile(path) and os.access(path, os.R_OK)):
            section.complain(key, "there is no such file that we may read")
    if not tls.verify and not used:
        section.complain("tls_verify", "is of no use: none of the urls begins with amqps://")
    if tls.key_file is not None and tls.certificate_file is None:
        section.complain("tls_key_file", "is a key without a certificate; give tls_certificate_file too")


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


def _read_failure(section: Section) -> FailureConfig:
    messages = section.read(FAILURE_KEYS)
    told = messages.pop("tell_learner")
    return FailureConfig(messages=messages, tell_learner={outcome: outcome in told for outcome in FAILURES})


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
