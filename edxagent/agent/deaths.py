"""How often agents died while they graded a submission: a small text file, which the agents of a machine share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from hashlib import sha256

from attrs import frozen

LONGEST_KEY = 500
MOST = 10_000
MEMORY = 7 * 24 * 3600.0
"""Seconds after which a death is forgotten."""

MODE = 0o600

_LARGEST_FILE = MOST * (LONGEST_KEY + 30)
_LINE = re.compile(r"([1-9][0-9]{0,5}) ([0-9]{1,12}) (.+)", re.ASCII)


@frozen
class Deaths:
    """How often agents died of a submission, and when that was last, in seconds since the epoch."""

    count: int
    last: float


def key_of(submission: str) -> str:
    """A submission's id as it is written down: on one line, in at most :data:`LONGEST_KEY` bytes."""
    data = submission.encode("utf-8", "surrogatepass")
    if submission.isprintable() and 0 < len(data) <= LONGEST_KEY:
        return submission
    return f"sha256:{sha256(data).hexdigest()}"


def read_deaths(path: str) -> dict[str, Deaths]:
    """The deaths by key. What isn't a line that we write counts for nothing.

    :raises OSError: there is a file, but it can't be read.
    """
    try:
        with open(path, "rb", opener=_open_calmly) as file:
            lines = file.read(_LARGEST_FILE).decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return {}
    found = (match.groups() for match in map(_LINE.fullmatch, lines) if match)
    return {key: Deaths(int(count), int(last)) for count, last, key in found if key_of(key) == key}


def write_deaths(path: str, deaths: Mapping[str, Deaths]) -> None:
    """Put them into the place of those before, at once.

    :raises OSError: that can't be done; those before stay.
    """
    new = f"{path}.new"
    with suppress(FileNotFoundError):
        os.unlink(new)  # what an attempt left that was killed
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "w", encoding="utf-8") as file:
        file.writelines(f"{one.count} {one.last:.0f} {key}\n" for key, one in deaths.items())
    os.replace(new, path)


def updated(deaths: Mapping[str, Deaths], died: Iterable[str], ended: Iterable[str], now: float) -> dict[str, Deaths]:
    """The deaths when agents have died of ``died``, once for each time that it is named, and ``ended`` are done with.

    A week later a death is forgotten, and beyond :data:`MOST` submissions those that nobody has died of for longest.
    """
    result = {key: Deaths(one.count, min(one.last, now)) for key, one in deaths.items()}
    for key in died:
        before = result.get(key)
        result[key] = Deaths(min(before.count + 1, 999_999) if before else 1, now)
    for key in ended:
        result.pop(key, None)
    recent = sorted((item for item in result.items() if now - item[1].last < MEMORY), key=lambda item: item[1].last)
    return dict(recent[-MOST:])


def _open_calmly(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)  # a FIFO would wait for its other end
