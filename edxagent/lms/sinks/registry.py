"""The kinds of sinks that ``[sink:NAME] kind`` can name."""

from __future__ import annotations

from edxagent.interfaces import IResultSinkFactory
from edxagent.plugins import Kinds

BUILT_IN = {
    "callback": "edxagent.lms.sinks.callback:factory",
    "database": "edxagent.lms.sinks.database:factory",
}

_kinds = Kinds(interface=IResultSinkFactory, noun="sink", built_in=BUILT_IN)


def find_sink_factory(kind: str) -> IResultSinkFactory:
    """Find the factory of a kind of sink, by the rules of :meth:`edxagent.plugins.Kinds.find`.

    :raises ValueError: there is none, or it can't be used; one line that says why.
    """
    factory: IResultSinkFactory = _kinds.find(kind)
    return factory
