"""From the text behind a ``=`` to a value: one function a kind of value.

Each takes the text without surrounding blanks, and raises ``ValueError("expected …, such as …")`` for anything that it
doesn't understand. No message repeats the text: it may be a secret. Everything is bounded.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Iterable
from itertools import pairwise
from urllib.parse import urlsplit

LONGEST_TEXT = 8 * 1024
LONGEST_TIME = 7 * 24 * 3600.0
LARGEST_SIZE = 16 * 1024**3
LARGEST_NUMBER = 1e9
MOST_WORDS = 1000
MOST_DELAYS = 10

_DECIMAL = re.compile(r"[0-9]{1,15}(\.[0-9]{0,15})?|\.[0-9]{1,15}")
_INTEGER = re.compile(r"[0-9]{1,15}")
_SIZE = re.compile(r"([0-9]{1,15}) *(bytes|KiB|MiB|GiB)?")
_UNITS = {None: 1, "bytes": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_BOOLEANS = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt word, to be put behind an error message: ``; did you mean "…"?``, or nothing."""
    folded = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(word[:100].lower(), folded, n=1)
    return f'; did you mean "{folded[near[0]]}"?' if near else ""


def has_control_characters(value: str) -> bool:
    """Whether a text holds what could break a line of a log: C0, DEL, C1, line separators, lone surrogates."""
    return any(
        character < " "
        or "\x7f" <= character <= "\x9f"
        or character in "\u2028\u2029"
        or "\ud800" <= character <= "\udfff"
        for character in value
    )


def text(value: str) -> str:
    """One line of text, not empty."""
    if not value or len(value) > LONGEST_TEXT or has_control_characters(value):
        raise ValueError("expected a line of text, such as xserver")
    return value


def seconds_between(low: float, high: float) -> Callable[[str], float]:
    """A parser of times, in seconds, from ``low`` to ``high`` inclusive."""

    def parse(value: str) -> float:
        parsed = float(value) if _DECIMAL.fullmatch(value) else -1.0
        if not low <= parsed <= high:
            raise ValueError(
                f"expected a time in seconds from {low:.9g} to {high:.9g}, such as {max(low, min(high, 30)):.9g}"
            )
        return parsed

    return parse


def seconds(value: str) -> float:
    """A time in seconds, more than zero and at most a week."""
    parsed = float(value) if _DECIMAL.fullmatch(value) else 0.0
    if not 0 < parsed <= LONGEST_TIME:
        raise ValueError(f"expected a time in seconds, above 0 and at most {LONGEST_TIME:.0f}, such as 30 or 0.5")
    return parsed


def size(value: str) -> int:
    """A number of bytes, at least one, plain or in ``KiB``, ``MiB`` or ``GiB``."""
    match = _SIZE.fullmatch(value)
    parsed = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 1 <= parsed <= LARGEST_SIZE:
        raise ValueError("expected a size of 1 byte to 16 GiB, such as 65536, 64 KiB or 1 MiB")
    return parsed


def count_between(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from ``low`` to ``high`` inclusive."""

    def parse(value: str) -> int:
        parsed = int(value) if _INTEGER.fullmatch(value) else None
        if parsed is None or not low <= parsed <= high:
            raise ValueError(f"expected a whole number from {low} to {high}, such as {max(low, min(high, 10))}")
        return parsed

    return parse


count = count_between(1, 1_000_000)
"""A whole number, at least one."""


def number(value: str) -> float:
    """A number that isn't negative."""
    parsed = float(value) if _DECIMAL.fullmatch(value) else -1.0
    if not 0 <= parsed <= LARGEST_NUMBER:
        raise ValueError(f"expected a number from 0 to {LARGEST_NUMBER:.0f}, such as 1 or 2.5")
    return parsed


def share(value: str) -> float:
    """A share of the whole, from 0 to 1."""
    parsed = float(value) if _DECIMAL.fullmatch(value) else -1.0
    if not 0 <= parsed <= 1:
        raise ValueError("expected a share from 0 to 1, such as 0.25")
    return parsed


def boolean(value: str) -> bool:
    """Yes or no."""
    try:
        return _BOOLEANS[value.lower()]
    except KeyError:
        raise ValueError("expected yes or no (true, false, on and off will do), such as yes") from None


def choice(*words: str) -> Callable[[str], str]:
    """A parser of one of some words."""
    listed = f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]

    def parse(value: str) -> str:
        if value not in words:
            raise ValueError(f"expected {listed}{did_you_mean(value, words)}")
        return value

    return parse


def path(value: str) -> str:
    """The path of a file or folder; a relative one counts from where the program was started."""
    if not value or len(value) > 4096 or has_control_characters(value):
        raise ValueError("expected the path of a file, such as /etc/edxagent/password")
    return value


def command_line(value: str) -> tuple[str, ...]:
    """A program and its arguments, quoted as for a shell, though none is started."""
    expected = "expected a command, such as /usr/bin/python3 'my grader.py'"
    if len(value) > LONGEST_TEXT or has_control_characters(value.replace("\n", " ")):
        raise ValueError(expected)
    try:
        words = tuple(shlex.split(value))
    except ValueError:
        raise ValueError(f"{expected}; a quote or a backslash has no other half") from None
    if not words or not words[0] or len(words) > MOST_WORDS:
        raise ValueError(expected)
    return words


def url(value: str) -> str:
    """A web address, ``http`` or ``https``, without credentials."""
    expected = "expected a web address, such as http://127.0.0.1:8080/"
    if len(value) > 2048 or not value.isascii() or " " in value or has_control_characters(value):
        raise ValueError(expected)
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.fragment:
        raise ValueError(expected)
    if "@" in parts.netloc:
        raise ValueError(f"{expected}; a name and password don't belong into it")
    return value


def name_list(value: str) -> tuple[str, ...]:
    """Words with blanks or commas between them, without duplicates; none is fine."""
    names = tuple(dict.fromkeys(value.replace(",", " ").split()))
    if len(names) > MOST_WORDS or any(len(name) > 255 or has_control_characters(name) for name in names):
        raise ValueError("expected names with blanks between them, such as LANG TZ")
    return names


def delays(value: str) -> tuple[float, ...]:
    """Times in seconds, ascending."""
    expected = (
        f"expected 1 to {MOST_DELAYS} ascending times in seconds, each above 0 and at most {LONGEST_TIME:.0f}, "
        "such as 2 10 60"
    )
    try:
        pauses = tuple(seconds(word) for word in value.split())
    except ValueError:
        raise ValueError(expected) from None
    if not 1 <= len(pauses) <= MOST_DELAYS or any(first >= second for first, second in pairwise(pauses)):
        raise ValueError(expected)
    return pauses
