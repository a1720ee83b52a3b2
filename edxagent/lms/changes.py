"""What another configuration of the LMS side changes, and which changes have to wait for a restart."""

from __future__ import annotations

from attrs import evolve, fields_dict

from edxagent.config.lms_values import LMSConfig

_OF_LMS = ("name", "drain_timeout")
_NAMED = {"grants": "agent-config", "bridges": "bridge", "sinks": "sink"}


def changed_sections(old: LMSConfig, new: LMSConfig) -> list[str]:
    """The sections in which two configurations differ, in the file's order, as ``[updater]``."""
    sections: list[str] = []
    for name in fields_dict(LMSConfig):
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        if name in _NAMED:
            sections += [f"[{_NAMED[name]}:{each}]" for each in _differing(before, after)]
        elif name == "gateway":
            sections += _changed_in_gateway(old, new)
        else:
            sections.append("[lms]" if name in _OF_LMS else f"[{name}]")
    return list(dict.fromkeys(sections))


def within_reach(old: LMSConfig, new: LMSConfig) -> tuple[LMSConfig, list[str]]:
    """As much of ``new`` as an LMS side that runs with ``old`` can take over.

    Parts don't come or go, but for bridges and sinks; and no part moves.

    :returns: that, and what of ``new`` isn't in it, as ``[broker]``.
    """
    beyond = []
    reachable = new
    for name in ("name", "broker", "log"):
        if getattr(new, name) != getattr(old, name):
            reachable = evolve(reachable, **{name: getattr(old, name)})
            beyond.append("[lms] name" if name == "name" else f"[{name}]")
    if (old.gateway is None) != (new.gateway is None):
        reachable = evolve(reachable, gateway=old.gateway, grants=old.grants)
        beyond.append("[gateway]")
    elif old.gateway is not None and new.gateway is not None and old.gateway.listen != new.gateway.listen:
        reachable = evolve(reachable, gateway=evolve(new.gateway, listen=old.gateway.listen))
        beyond.append("[gateway] listen")
    if (old.updater is None) != (new.updater is None):
        reachable = evolve(reachable, updater=old.updater, sinks=old.sinks, bridges=old.bridges)
        beyond.append("[updater]")
    if (old.ledger is None) != (new.ledger is None):
        reachable = evolve(reachable, ledger=old.ledger, bridges=old.bridges)
        beyond.append("[ledger]")
    elif old.ledger is not None and new.ledger is not None and old.ledger.url != new.ledger.url:
        reachable = evolve(reachable, ledger=evolve(new.ledger, url=old.ledger.url))
        beyond.append("[ledger] url")
    return reachable, beyond


def _changed_in_gateway(old: LMSConfig, new: LMSConfig) -> list[str]:
    if old.gateway is None or new.gateway is None:
        return ["[gateway]", "[users]"]
    sections = []
    if evolve(old.gateway, users=new.gateway.users) != new.gateway:
        sections.append("[gateway]")
    if old.gateway.users != new.gateway.users:
        sections.append("[users]")
    return sections


def _differing(before: tuple[object, ...], after: tuple[object, ...]) -> list[str]:
    """The names of those that came, went or changed."""
    was, now = ({each.name: each for each in some} for some in (before, after))  # type: ignore[attr-defined]
    return [name for name in {**was, **now} if was.get(name) != now.get(name)]
