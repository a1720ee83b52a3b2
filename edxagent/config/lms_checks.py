"""What can be wrong with an ``lms.ini`` whose values are right one by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from edxagent.config.broker_url import is_loopback
from edxagent.config.listening import is_private
from edxagent.config.lms_values import AgentGrant, BridgeConfig, GatewayConfig, LMSConfig
from edxagent.config.sections import ConfigFile, Section


def check_lms_config(file: ConfigFile, config: LMSConfig) -> None:
    """Add the file's problems."""
    _check_parts(file, config)
    if config.gateway is not None:
        _check_gateway(file.section("gateway"), config.gateway, config)
    _check_grants(file, config.grants)
    for bridge in config.bridges:
        _check_bridge(file.section(f"bridge:{bridge.name}"), bridge, config)
    queues = (config.gateway, *config.bridges)
    taken = {queue for part in queues if part is not None for queue in part.queues or ()}
    if config.updater is not None and config.updater.queue in taken:
        file.section("updater").complain(
            "queue", "submissions come in by a queue of that name; verdicts need their own"
        )


def _check_parts(file: ConfigFile, config: LMSConfig) -> None:
    """What one part can't do without another."""

    def complain(sections: Iterable[str], message: str) -> None:
        for section in sections:
            file.section(section).complain(None, message)

    sinks = [f"sink:{sink.name}" for sink in config.sinks]
    bridges = [f"bridge:{bridge.name}" for bridge in config.bridges]
    if config.gateway is None:
        grants = [f"agent-config:{grant.name}" for grant in config.grants]
        users = ["users"] if "users" in file else []
        complain([*users, *grants], "is of no use without a section [gateway]")
        if "listen" in file.section("gateway"):
            file.section("gateway").complain("listen", "is of no use without a section [gateway]")
    if config.ledger is None:
        complain(bridges, "a bridge must know what it has fetched already; write a section [ledger]")
    if config.updater is None:
        complain([*sinks, *bridges], "no verdict would come here; write a section [updater]")
        if config.gateway is None and not bridges:
            complain(["lms"], "there is nothing to do; write a section [gateway], [bridge:NAME] or [updater]")
    elif not sinks and not bridges:
        complain(["updater"], "verdicts would have nowhere to go; write a section [sink:NAME]")


def _check_gateway(section: Section, gateway: GatewayConfig, config: LMSConfig) -> None:
    most = config.broker.consumer_timeout / 2
    if gateway.lease > most:
        section.complain("lease", f"is longer than half of [broker] consumer_timeout, {most:g} s")
    if "files_folder" in section and "files_url" not in section:
        section.complain("files_url", "is missing; graders couldn't fetch what is in files_folder")
    if "files_url" in section and "files_folder" not in section:
        section.complain("files_folder", "is missing; there would be no files at files_url")
    if config.grants and not gateway.behind_tls_proxy and not is_private(gateway.listen):
        section.complain(
            "listen",
            "agents would be told passwords without TLS; listen at ssl:…, or on this machine alone, or write "
            "behind_tls_proxy = yes if a proxy in front has TLS",
        )


def _check_grants(file: ConfigFile, grants: Sequence[AgentGrant]) -> None:
    first: dict[str, str] = {}
    for grant in grants:
        if grant.key_hash is not None and first.setdefault(grant.key_hash, grant.name) != grant.name:
            section = file.section(f"agent-config:{grant.name}")
            section.complain("key_hash", f"[agent-config:{first[grant.key_hash]}] has the same one; make another key")


def _check_bridge(section: Section, bridge: BridgeConfig, config: LMSConfig) -> None:
    if bridge.poll_initial > bridge.poll_max:
        section.complain("poll_initial", f"is longer than poll_max, {bridge.poll_max:g} s")
    if bridge.answer_within >= bridge.give_up_after:
        section.complain("answer_within", f"isn't shorter than give_up_after, {bridge.give_up_after:g} s")
    if config.ledger is not None and bridge.give_up_after >= config.ledger.keep:
        section.complain("give_up_after", f"isn't shorter than [ledger] keep, {config.ledger.keep:g} s")
    if bridge.url is None or bridge.allow_http:
        return
    parts = urlsplit(bridge.url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        section.complain(
            "url", "the password would go over the network unencrypted; use https, or write allow_http = yes"
        )
