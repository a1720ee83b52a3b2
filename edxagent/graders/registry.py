"""From the word behind ``kind =`` to the factory that builds such a grader; imports only the one asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from twisted.plugin import getCache, getPlugins
from twisted.python.modules import getModule
from zope.interface import Invalid
from zope.interface.verify import verifyObject

import twisted.plugins
from edxagent.config.parsers import did_you_mean
from edxagent.interfaces import IGraderFactory
from edxagent.words import brief

BUILT_IN = {
    "http": "edxagent.graders.http:factory",
    "command": "edxagent.graders.command:factory",
    "sleep": "edxagent.graders.rehearsal:sleep",
    "fixed": "edxagent.graders.rehearsal:fixed",
    "failing": "edxagent.graders.rehearsal:failing",
}


def find_factory(kind: str) -> IGraderFactory:
    """Find the factory of a kind of grader.

    :param kind: a built-in kind, the ``kind`` of a ``twisted.plugin``, or the dotted name of a factory:
        ``package.module:attribute`` or ``package.module.attribute``.
    :raises ValueError: there is none, or it can't be used; one line that says why.
    """
    if kind in BUILT_IN:
        return _named(BUILT_IN[kind])
    if ":" in kind or "." in kind:
        return _named(kind)
    plugins = list(getPlugins(IGraderFactory, twisted.plugins))
    matching = [plugin for plugin in plugins if getattr(plugin, "kind", None) == kind]
    if len(matching) > 1:
        raise ValueError(f"{len(matching)} plugins are of kind {brief(kind)}; name one as package.module:attribute")
    if matching:
        return _verified(matching[0], f"the plugin {brief(kind)}")
    known = sorted({*BUILT_IN, *(str(getattr(plugin, "kind", "?")) for plugin in plugins)})
    broken = "".join(f"; {name} could not be imported: {why}" for name, why in _broken_plugins())
    raise ValueError(f"unknown kind {brief(kind)}{did_you_mean(kind, known)}; known are {', '.join(known)}{broken}")


def _named(name: str) -> IGraderFactory:
    module, separator, attribute = name.partition(":") if ":" in name else name.rpartition(".")
    if not (module and separator and attribute):
        raise ValueError(f"{brief(name)} is no name of a grader factory; write package.module:attribute")
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise ValueError(f"{brief(name)} could not be imported: {_words(error)}") from error
    return _verified(found, brief(name))


def _verified(candidate: object, name: str) -> IGraderFactory:
    try:
        verifyObject(IGraderFactory, candidate)
    except Invalid as error:
        raise ValueError(f"{name} is no grader factory: {brief(str(error))}") from error
    return candidate  # type: ignore[return-value]  # verifyObject has just said so


def _broken_plugins() -> Iterator[tuple[str, str]]:
    """The plugin modules that Twisted passed over because their import fails, and why."""
    loaded = getCache(twisted.plugins)
    for module in getModule(twisted.plugins.__name__).iterModules():
        if module.name.rpartition(".")[2] not in loaded:
            try:
                importlib.import_module(module.name)
            except Exception as error:
                yield module.name, _words(error)


def _words(error: Exception) -> str:
    return brief(f"{type(error).__name__}: {error}")
