"""An INI file as text → sections of entries, each with its line; nothing is known here about what they mean.

The dialect is ``configparser``'s with ``=`` alone as the delimiter, so that ``course-v1:MITx+6.00x`` can be a key. Keys
keep their case, and ``%`` means nothing. It is read here rather than there because configparser stops at the first
mistake and forgets the line numbers, and a person wants to see every mistake at once.

* ``[section]``, then ``key = value`` lines; an indented line goes on with the value above it.
* ``#`` or ``;`` at the start of a line begins a comment, and so does ``;`` behind a blank.
* ``${NAME}`` in a value is the environment variable, ``${NAME:-text}`` has a default, ``$$`` is a dollar sign.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from typing import NamedTuple

from attrs import field, frozen

from edxagent.config.parsers import has_control_characters
from edxagent.errors import ConfigError

LARGEST_FILE = 1024 * 1024
MOST_PROBLEMS = 100

_SECTION = re.compile(r"\[([^\[\]]+)\]")
_INLINE_COMMENT = re.compile(r"(^|[ \t]);.*")
_DOLLAR = re.compile(r"\$\$|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^{}]*))?\}|\$\{")


@frozen(kw_only=True)
class Entry:
    """What stands behind a ``=``, before ``${…}`` is expanded; ``line`` counts from 1."""

    value: str = field(repr=False)
    line: int


@frozen(kw_only=True)
class Expanded:
    """A value after ``${…}`` was expanded.

    :ivar literal: the part that was written in the file; the rest came from the environment.
    """

    text: str = field(repr=False)
    literal: str = field(repr=False)


class Problems:
    """Collects what is wrong with a file, so that a person gets to know all of it at once."""

    def __init__(self, file: str) -> None:
        self._file = shown(file)
        self._lines: list[str] = []
        self._left_out = 0

    def add(self, message: str, *, section: str | None = None, key: str | None = None, line: int | None = None) -> None:
        """Remember a problem: ``FILE [section] key: message (line 7)``."""
        where = self._file
        if section is not None:
            where += f" [{shown(section)}]"
        if key is not None:
            where += f" {shown(key)}"
        self.add_line(f"{where}: {message}" + (f" (line {line})" if line is not None else ""))

    def add_line(self, line: str) -> None:
        """Remember a problem that isn't the file's."""
        if len(self._lines) < MOST_PROBLEMS:
            self._lines.append(line)
        else:
            self._left_out += 1

    def __bool__(self) -> bool:
        return bool(self._lines)

    def raise_if_any(self) -> None:
        """:raises ConfigError: there was at least one problem."""
        if self._lines:
            raise ConfigError([*self._lines, *([f"… and {self._left_out} more problems"] if self._left_out else [])])


def shown(word: str) -> str:
    """A word of the file, fit for an error message: short, and on one line."""
    word = word if len(word) <= 80 else word[:80] + "…"
    return ascii(word)[1:-1] if has_control_characters(word) else word


def read_text(path: str) -> str:
    """The text of a file.

    :raises ConfigError: with one line that says what hinders us, and what to do.
    """
    try:
        return read_small_file(path, LARGEST_FILE)
    except ValueError as error:
        raise ConfigError([f"{shown(path)}: {error}"]) from None


def read_small_file(path: str, most: int) -> str:
    """The text of a regular file of at most ``most`` bytes.

    :raises ValueError: it can't be had; the message says why, without its name.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("isn't a regular file")
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except FileNotFoundError:
        raise ValueError("there is no such file; create it, or name another") from None
    except PermissionError:
        raise ValueError("may not be read; check its owner and mode, and those of its folders") from None
    except OSError as error:
        raise ValueError(f"can't be read: {error.strerror}") from None
    if len(data) > most:
        raise ValueError(f"is larger than {most // 1024} KiB; is it the right file?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"isn't UTF-8 text (line {line}); save it as UTF-8") from None


class _Written(NamedTuple):
    """A value under construction: its first line, and the indented ones below it."""

    parts: list[str]
    line: int


def parse_ini(text: str, problems: Problems) -> dict[str, dict[str, Entry]]:
    """Section name → key → entry. What can't be read is added to ``problems`` and left out."""
    found: dict[str, dict[str, _Written]] = {}
    section: str | None = None
    above: list[str] | None = None
    for line, full in enumerate(text.split("\n"), 1):
        content = _INLINE_COMMENT.sub("", full.rstrip("\r")).rstrip()
        if not content or content.lstrip().startswith("#"):
            continue
        if content[0] in " \t" and above is not None:
            above.append(content.strip())
            continue
        content, above = content.strip(), None
        if header := _SECTION.fullmatch(content):
            section = header[1].strip()
            if section in found:
                problems.add("this section is there twice; join the two", section=section, line=line)
            found.setdefault(section, {})
            continue
        name, equals, value = (part.strip() for part in content.partition("="))
        above = [value]  # Also of a line that is refused: its indented lines belong to it.
        if section is None:
            problems.add("expected a section first, such as [agent]", line=line)
        elif not equals or not name:
            problems.add("expected a line such as key = value", section=section, line=line)
        elif name in found[section]:
            message = f"this key is there twice; it is in line {found[section][name].line} too"
            problems.add(message, section=section, key=name, line=line)
        else:
            found[section][name] = _Written(above, line)
    return {
        section: {
            name: Entry(value="\n".join(written.parts).lstrip("\n"), line=written.line)
            for name, written in keys.items()
        }
        for section, keys in found.items()
    }


def expand(value: str, environment: Mapping[str, str]) -> Expanded:
    """Put environment variables where ``${NAME}`` stands. What they hold isn't expanded again.

    :raises ValueError: a variable without a default is unset, or a ``${`` isn't understood.
    """
    whole: list[str] = []
    literal: list[str] = []
    end = length = 0
    for match in _DOLLAR.finditer(value):
        written = value[end : match.start()]
        replacement, is_ours = _replacement(match, environment)
        whole += [written, replacement]
        literal += [written, replacement if is_ours else ""]
        end = match.end()
        length += len(replacement)
        if length > LARGEST_FILE:
            raise ValueError("is too long with its environment variables put in")
    rest = value[end:]
    return Expanded(text="".join([*whole, rest]), literal="".join([*literal, rest]))


def _replacement(match: re.Match[str], environment: Mapping[str, str]) -> tuple[str, bool]:
    """What to put for a ``$…``, and whether the file itself said it."""
    name, default = match["name"], match["default"]
    if match[0] == "$$":
        return "$", True
    if name is None:
        raise ValueError("expected ${NAME} or ${NAME:-default} after a dollar sign; a plain ${ is written $${")
    found = environment.get(name)
    if default is not None:
        return (found, False) if found else (default, True)
    if found is None:
        raise ValueError(
            f"the environment variable {shown(name)} isn't set; set it, or write ${{{shown(name)}:-default}}"
        )
    return found, False
