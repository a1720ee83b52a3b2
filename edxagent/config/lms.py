"""``lms.ini`` → :class:`~edxagent.config.lms_values.LMSConfig`, or every reason why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from twisted.logger import Logger

from edxagent.config.broker import read_broker
from edxagent.config.common import read_failure, read_log
from edxagent.config.grants import read_grant
from edxagent.config.lms_checks import check_lms_config
from edxagent.config.lms_keys import (
    BRIDGE_KEYS,
    GATEWAY_KEYS,
    LEDGER_KEYS,
    LMS_KEYS,
    MOST_USERS,
    SECTIONS,
    SINK_KEYS,
    UPDATER_KEYS,
)
from edxagent.config.lms_parsers import password_hash, section_name, user_name
from edxagent.config.lms_values import BridgeConfig, GatewayConfig, LedgerConfig, LMSConfig, SinkConfig, UpdaterConfig
from edxagent.config.sections import ConfigFile, Section
from edxagent.interfaces import IResultSinkFactory

_NO_OVERRIDES: Mapping[str, str] = {}
_PLAIN = [section for section in SECTIONS if ":" not in section]
_NAMED = [section.partition(":")[0] for section in SECTIONS if ":" in section]

_log = Logger()


def read_lms_config(
    path: str,
    *,
    environment: Mapping[str, str],
    find_sink: Callable[[str], IResultSinkFactory],
    overrides: Mapping[str, str] = _NO_OVERRIDES,
) -> LMSConfig:
    """Read a configuration.

    :param environment: for ``${NAME}``, such as ``os.environ``.
    :param find_sink: the kind of sink → its factory; raises ``ValueError`` for one that it doesn't know.
    :param overrides: ``section.key`` → value, from the command line; checked as the file is.
    :raises ConfigError: with every problem found.
    """
    file = ConfigFile(path, environment=environment, overrides=overrides)
    _refuse_other_sections(file)
    config = LMSConfig(
        **file.section("lms").read(LMS_KEYS),
        broker=read_broker(file.section("broker")),
        gateway=_read_gateway(file) if "gateway" in file else None,
        grants=tuple(read_grant(name, section) for name, section in _named(file, "agent-config")),
        bridges=tuple(BridgeConfig(name=name, **section.read(BRIDGE_KEYS)) for name, section in _named(file, "bridge")),
        updater=_read_updater(file.section("updater")) if "updater" in file else None,
        sinks=tuple(_read_sink(name, section, find_sink) for name, section in _named(file, "sink")),
        ledger=LedgerConfig(**file.section("ledger").read(LEDGER_KEYS)) if "ledger" in file else None,
        failure=read_failure(file.section("failure")),
        log=read_log(file.section("log")),
    )
    check_lms_config(file, config)
    file.problems.raise_if_any()
    return config


def _refuse_other_sections(file: ConfigFile) -> None:
    known = list(_PLAIN)
    for section in file:
        word, colon, name = section.partition(":")
        if colon:
            known += [f"{other}:{name}" for other in _NAMED]
        elif word in _NAMED:
            known.append(word)
            file.section(section).complain(None, f"expected a name as well, such as [{word}:campus]")
    file.refuse_other_sections(known)


def _named(file: ConfigFile, word: str) -> Iterator[tuple[str, Section]]:
    for header in file:
        if header.startswith(f"{word}:"):
            section = file.section(header)
            name = header.partition(":")[2]
            try:
                section_name(name)
            except ValueError as error:
                section.complain(None, str(error))
            yield name, section


def _read_gateway(file: ConfigFile) -> GatewayConfig:
    return GatewayConfig(**file.section("gateway").read(GATEWAY_KEYS), users=_read_users(file.section("users")))


def _read_users(section: Section) -> dict[str, str]:
    users: dict[str, str] = {}
    names = list(section)
    if not 1 <= len(names) <= MOST_USERS:
        section.complain(
            None, f"expected 1 to {MOST_USERS} users, a line each, such as lms = ${{EDXAGENT_LMS_PASSWORD_HASH}}"
        )
    for name in names[:MOST_USERS]:
        try:
            user_name(name)
            if text := section.text(name):
                users[name] = password_hash(text)
            else:
                _log.warn(
                    "[users] {user}: nobody can log in as {user} without a hash, which 'edxagent password' makes",
                    user=name,
                )
        except ValueError as error:
            section.complain(name, str(error))
    return users


def _read_updater(section: Section) -> UpdaterConfig:
    values = section.read(UPDATER_KEYS)
    if values["clamp_scores"] and values["max_score"] is None:
        section.complain("clamp_scores", "lowers scores to max_score; give that too")
    return UpdaterConfig(allowed_tags=frozenset(values.pop("allowed_tags")), **values)


def _read_sink(name: str, section: Section, find_sink: Callable[[str], IResultSinkFactory]) -> SinkConfig:
    kind = section.values(SINK_KEYS)["kind"]
    options: Mapping[str, Any] = {}
    if kind is not None:
        try:
            keys = find_sink(kind).keys
        except ValueError as error:
            section.complain("kind", str(error))
        else:
            options = section.values(keys)
            section.refuse_others([*SINK_KEYS, *keys])
    return SinkConfig(name=name, kind=kind, options=options)
