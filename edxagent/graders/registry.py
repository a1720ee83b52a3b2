"""The kinds of graders that ``[grader] kind`` can name."""

from __future__ import annotations

from edxagent.interfaces import IGraderFactory
from edxagent.plugins import Kinds

BUILT_IN = {
    "http": "edxagent.graders.http:factory",
    "command": "edxagent.graders.command:factory",
    "sleep": "edxagent.graders.rehearsal:sleep",
    "fixed": "edxagent.graders.rehearsal:fixed",
    "failing": "edxagent.graders.rehearsal:failing",
}

_kinds = Kinds(interface=IGraderFactory, noun="grader", built_in=BUILT_IN)


def find_factory(kind: str) -> IGraderFactory:
    """Find the factory of a kind of grader, by the rules of :meth:`edxagent.plugins.Kinds.find`.

    :raises ValueError: there is none, or it can't be used; one line that says why.
    """
    factory: IGraderFactory = _kinds.find(kind)
    return factory
