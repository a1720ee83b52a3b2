"""A configuration file's sections, read by tables of :class:`~edxagent.config.keys.Key`.

Where a value comes from, in this order: an override (the command line), the file, the key's default.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from twisted.logger import Logger

from edxagent.config.ini import Entry, Expanded, Problems, expand, parse_ini, read_small_file, read_text, shown
from edxagent.config.keys import REQUIRED, Key
from edxagent.config.parsers import did_you_mean

LARGEST_SECRET = 64 * 1024

_SHORT = ("agent", "lms", "gateway")
"""The sections that the command line doesn't name."""


def option_name(override: str) -> str:
    """The command line's name for ``section.key``: ``--concurrency`` in ``[agent]``, ``--grader-url`` elsewhere."""
    section, _, key = override.partition(".")
    return "--" + (key if section in _SHORT else f"{section}-{key}").replace("_", "-")


class ConfigFile:
    """A file whose sections can be asked for; what is wrong gathers in :attr:`problems`.

    :raises ConfigError: the file can't be read at all.
    """

    def __init__(self, path: str, *, environment: Mapping[str, str], overrides: Mapping[str, str]) -> None:
        self.problems = Problems(path)
        self._sections = parse_ini(read_text(path), self.problems)
        self._environment = environment
        self._overrides = overrides

    def __iter__(self) -> Iterator[str]:
        """The names of the sections that the file has, in its order."""
        return iter(self._sections)

    def __contains__(self, section: str) -> bool:
        return section in self._sections

    def section(self, name: str) -> Section:
        """A section; one that isn't there has no keys, and so all defaults."""
        overrides = {
            override.removeprefix(f"{name}."): value
            for override, value in self._overrides.items()
            if override.startswith(f"{name}.")
        }
        return Section(name, self._sections.get(name, {}), overrides, self._environment, self.problems)

    def refuse_other_sections(self, known: Sequence[str]) -> None:
        """Add a problem for each section, and each override's section, that isn't among the known ones."""
        for name in self._sections:
            if name not in known:
                self.problems.add(f"unknown section{did_you_mean(name, known)}", section=name)
        for override in self._overrides:
            if override.partition(".")[0] not in known:
                self.problems.add_line(f"{option_name(shown(override))}: there is nothing of that name to be set")


class Section:
    """One section: what was given for its keys, and how to complain about it."""

    _log = Logger()

    def __init__(
        self,
        name: str,
        entries: Mapping[str, Entry],
        overrides: Mapping[str, str],
        environment: Mapping[str, str],
        problems: Problems,
    ) -> None:
        self.name = name
        self._entries = entries
        self._overrides = overrides
        self._environment = environment
        self._problems = problems

    def __iter__(self) -> Iterator[str]:
        """The names of the keys that are given, in the file's order."""
        return iter({**self._entries, **self._overrides})

    def __contains__(self, key: str) -> bool:
        return key in self._overrides or key in self._entries

    def complain(self, key: str | None, message: str) -> None:
        """Add a problem with a key, or with the section as a whole."""
        if key is not None and key in self._overrides:
            self._problems.add_line(f"{option_name(f'{self.name}.{key}')}: {message}")
            return
        entry = None if key is None else self._entries.get(key)
        self._problems.add(message, section=self.name, key=key, line=entry.line if entry else None)

    def text(self, key: str) -> str:
        """What was given for a key, with ``${…}`` expanded; empty if nothing was.

        :raises ValueError: it names an environment variable that isn't set.
        """
        given = self._given(key)
        return given.text if given else ""

    def literal(self, key: str) -> str:
        """What of :meth:`text` was written down, rather than taken from the environment; raises as it does."""
        given = self._given(key)
        return given.literal if given else ""

    def read(self, keys: Sequence[Key]) -> dict[str, Any]:
        """The :meth:`values` of a section that has no other keys."""
        self.refuse_others(keys)
        return self.values(keys)

    def values(self, keys: Iterable[Key]) -> dict[str, Any]:
        """A value for each of the keys. One with a problem has its default; a required one, ``None``."""
        return {key.name: self._value(key) for key in keys}

    def refuse_others(self, keys: Iterable[Key]) -> None:
        """Add a problem for each key given that isn't among these."""
        known = [name for key in keys for name in ([key.name, _file_key(key)] if key.secret else [key.name])]
        for name in self:
            if name not in known:
                self.complain(name, f"unknown key{did_you_mean(name, known)}")

    def _given(self, key: str) -> Expanded | None:
        if key in self._overrides:
            return Expanded(text=self._overrides[key].strip(), literal=self._overrides[key].strip())
        if key in self._entries:
            return expand(self._entries[key].value, self._environment)
        return None

    def _value(self, key: Key) -> Any:
        from_file = key.secret and _file_key(key) in self
        try:
            text = self._secret(key) if from_file else self._text(key)
            if text is not None:
                return key.parse(text)
            if key.default is REQUIRED:
                raise ValueError(f"is missing; {key.expectation}")
        except ValueError as error:
            self.complain(_file_key(key) if from_file else key.name, str(error))
        return None if key.default is REQUIRED else key.default

    def _text(self, key: Key) -> str | None:
        given = self._given(key.name)
        if given is None:
            return None
        harmless = key.harmless is not None and given.text.startswith(key.harmless)
        if key.secret and given.literal and not harmless:
            raise ValueError(f"a secret isn't written down here; use {_file_key(key)}, or ${{VARIABLE}} in the file")
        return given.text

    def _secret(self, key: Key) -> str:
        if key.name in self:
            raise ValueError(f"{key.name} is given as well; keep one of the two")
        path = self.text(_file_key(key))
        if not path or "\0" in path:
            raise ValueError("expected the path of a file that holds nothing but the secret")
        try:
            secret = read_small_file(path, LARGEST_SECRET)
        except ValueError as error:
            # What isn't there may be no path at all, but the secret itself in the wrong place.
            named = f"{shown(path)} " if os.path.lexists(path) else ""
            raise ValueError(f"{named}{error}") from None
        secret = secret.removesuffix("\n").removesuffix("\r")
        if not secret:
            raise ValueError(f"{shown(path)} is empty")
        if os.stat(path).st_mode & stat.S_IROTH:
            self._log.warn("{path} holds a secret, yet everybody may read it; try chmod o-r", path=shown(path))
        return secret


def _file_key(key: Key) -> str:
    return f"{key.name}_file"
