"""What another configuration changes, and which changes have to wait for a restart."""

from __future__ import annotations

from attrs import evolve, fields_dict

from edxagent.config.values import AgentConfig

_SECTIONS = {"lms": "[lms-config]"}
_OF_AGENT = ("name", "concurrency", "drain_timeout", "hold_limit", "max_request")


def changed_sections(old: AgentConfig, new: AgentConfig) -> list[str]:
    """The sections in which two configurations differ, in the file's order, as ``[queues]``."""
    differing = (name for name in fields_dict(AgentConfig) if getattr(old, name) != getattr(new, name))
    sections = ("[agent]" if name in _OF_AGENT else _SECTIONS.get(name, f"[{name}]") for name in differing)
    return list(dict.fromkeys(sections))


def within_reach(old: AgentConfig, new: AgentConfig) -> tuple[AgentConfig, list[str]]:
    """As much of ``new`` as an agent that runs with ``old`` can take over.

    :returns: that, and what of ``new`` isn't in it, as ``[agent] name``.
    """
    reachable, beyond = with_same_source(old, new)
    if reachable.name != old.name:
        beyond.append("[agent] name")
    if reachable.broker != old.broker:
        beyond.append("[broker]")
    if reachable.quarantine.journal != old.quarantine.journal:
        beyond.append("[quarantine] journal")
    if reachable.log != old.log:
        beyond.append("[log]")
    quarantine = evolve(reachable.quarantine, journal=old.quarantine.journal)
    return evolve(reachable, name=old.name, broker=old.broker, quarantine=quarantine, log=old.log), beyond


def with_same_source(old: AgentConfig, new: AgentConfig) -> tuple[AgentConfig, list[str]]:
    """As much of ``new`` as can be had while the same one tells broker and queues, the file or the LMS side.

    :returns: as :func:`within_reach` does.
    """
    if (old.lms is None) == (new.lms is None):
        return new, []
    return evolve(new, lms=old.lms, broker=old.broker, queues=old.queues), ["[lms-config]"]
