"""From the word behind ``kind =`` to the factory that builds such a thing; imports only the one asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen
from twisted.plugin import getCache, getPlugins
from twisted.python.modules import getModule
from zope.interface import Invalid
from zope.interface.verify import verifyObject

import twisted.plugins
from edxagent.config.parsers import did_you_mean
from edxagent.words import brief


@frozen(kw_only=True)
class Kinds:
    """The kinds that there are of one sort of thing.

    :ivar interface: what their factories provide, ``kind`` among it.
    :ivar noun: what a factory makes, in an error message: ``grader``.
    :ivar built_in: kind → dotted name of its factory.
    """

    interface: Any
    noun: str
    built_in: Mapping[str, str]

    def find(self, kind: str) -> Any:
        """Find the factory of a kind.

        :param kind: a built-in kind, the ``kind`` of a ``twisted.plugin``, or the dotted name of a factory:
            ``package.module:attribute`` or ``package.module.attribute``.
        :raises ValueError: there is none, or it can't be used; one line that says why.
        """
        if kind in self.built_in:
            return self._named(self.built_in[kind])
        if ":" in kind or "." in kind:
            return self._named(kind)
        plugins = list(getPlugins(self.interface, twisted.plugins))
        matching = [plugin for plugin in plugins if getattr(plugin, "kind", None) == kind]
        if len(matching) > 1:
            raise ValueError(f"{len(matching)} plugins are of kind {brief(kind)}; name one as package.module:attribute")
        if matching:
            return self._verified(matching[0], f"the plugin {brief(kind)}")
        known = sorted({*self.built_in, *(str(getattr(plugin, "kind", "?")) for plugin in plugins)})
        broken = "".join(f"; {name} could not be imported: {why}" for name, why in _broken_plugins())
        raise ValueError(f"unknown kind {brief(kind)}; known are {', '.join(known)}{did_you_mean(kind, known)}{broken}")

    def _named(self, name: str) -> Any:
        module, separator, attribute = name.partition(":") if ":" in name else name.rpartition(".")
        if not (module and separator and attribute):
            raise ValueError(f"{brief(name)} is no name of a {self.noun} factory; write package.module:attribute")
        try:
            found = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except Exception as error:
            raise ValueError(f"{brief(name)} could not be imported: {_words(error)}") from error
        return self._verified(found, brief(name))

    def _verified(self, candidate: object, name: str) -> Any:
        try:
            verifyObject(self.interface, candidate)
        except Invalid as error:
            raise ValueError(f"{name} is no {self.noun} factory: {brief(str(error))}") from error
        return candidate


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
