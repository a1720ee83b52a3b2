"""From text to value where only ``lms.ini`` has such values; as in :mod:`edxagent.config.parsers`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from edxagent.config.parsers import size, text, url
from edxagent.config.queues import MOST_QUEUES, queue_name, queue_options

SHORTEST_SECRET = 16

_ACTIVE = "applet base embed form frame iframe input link math meta object script style svg"
ACTIVE_TAGS = frozenset(_ACTIVE.split())
"""Elements that do something by themselves, or that a sanitiser can't let in."""

_TAG = re.compile(r"[a-z][a-z0-9]{0,31}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HASH = re.compile(r"scrypt(\$[0-9]{1,8}){3}\$[0-9a-f]{16,128}\$[0-9a-f]{32,128}")
_DATABASE = re.compile(r"(sqlite|postgresql)(\+\w+)?://")
_SECTION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def section_name(value: str) -> str:
    """The NAME in ``[sink:NAME]``: it goes into logs, message headers and the ledger."""
    if not _SECTION_NAME.fullmatch(value):
        raise ValueError("expected a name of at most 64 letters, digits, ., _ and -, such as campus")
    return value


def user_name(value: str) -> str:
    """The name that an LMS or a grader logs in with; Django's have at most 150 characters."""
    if len(value) > 150:
        raise ValueError("expected a name of at most 150 characters, such as lms")
    return text(value)


def queue_names(value: str) -> tuple[str, ...]:
    """Some queues with blanks or line breaks between them, at least one."""
    return tuple(_queues(value, options=False))


def queues_with_weights(value: str) -> Mapping[str, int]:
    """Some queues with blanks or line breaks between them, at least one; ``weight=2`` may follow each."""
    return _queues(value, options=True)


def _queues(value: str, *, options: bool) -> dict[str, int]:
    example = "6002x-problems weight=2 6002x-exam" if options else "6002x-problems 6002x-exam"
    expected = f"expected 1 to {MOST_QUEUES} queues with blanks between them, such as {example}"
    queues: dict[str, int] = {}
    try:
        for word in value.split():
            if options and queues and "=" in word:
                queues[next(reversed(queues))] = queue_options(word)["weight"]
            elif queue_name(word) in queues:
                raise ValueError("one of them is there twice")
            else:
                queues[word] = 1
    except ValueError as error:
        raise ValueError(f"{expected}; {str(error).removeprefix('expected ')}") from None
    if not 1 <= len(queues) <= MOST_QUEUES:
        raise ValueError(expected)
    return queues


def size_below(limit: int) -> Callable[[str], int]:
    """A parser of sizes in bytes that are less than ``limit``."""

    def parse(value: str) -> int:
        expected = f"expected a size of 1 byte to less than {limit // 1024**2} MiB, such as 10 MiB"
        try:
            parsed = size(value)
        except ValueError:
            raise ValueError(expected) from None
        if parsed >= limit:
            raise ValueError(expected)
        return parsed

    return parse


def root_url(value: str) -> str:
    """A web server's address, ``http`` or ``https``, without credentials, and without a path."""
    address = url(value)
    parts = urlsplit(address)
    if parts.path not in ("", "/") or "?" in address:
        raise ValueError("expected the address alone, without a path, such as https://lms.example.org")
    return address.rstrip("/")


def folder_url(value: str) -> str:
    """The address of a folder of a web server, ``http`` or ``https``, without credentials."""
    address = url(value)
    if urlsplit(address).path in ("", "/") or "?" in address:
        raise ValueError("expected an address with a path, such as https://grading.example.org/files/")
    return address


def secret_text(value: str) -> str:
    """A secret that nobody has to remember."""
    if len(value) < SHORTEST_SECRET:
        raise ValueError(
            f"expected a random text of at least {SHORTEST_SECRET} characters, as openssl rand -hex 32 prints"
        )
    return text(value)


def api_key_hash(value: str) -> str:
    """SHA-256 of an agent's key."""
    if not _SHA256.fullmatch(value):
        raise ValueError("expected a hash as edxagent api-key prints it: 64 digits and letters a to f")
    return value


def password_hash(value: str) -> str:
    """The shape of a password's hash; the gateway looks at the rest when it is made."""
    if not _HASH.fullmatch(value):
        raise ValueError("expected a hash as edxagent password prints it, such as scrypt$16384$8$1$…")
    return value


def database_url(value: str) -> str:
    """The beginning of a database's URL; SQLAlchemy looks at the rest."""
    if not _DATABASE.match(value):
        raise ValueError("expected sqlite:////path/of/a/file or postgresql://user:password@host/name")
    return text(value)


def html_tags(value: str) -> tuple[str, ...]:
    """Names of HTML elements; none is fine."""
    tags = tuple(dict.fromkeys(value.replace(",", " ").split()))
    if not all(_TAG.fullmatch(tag) for tag in tags):
        raise ValueError("expected names of HTML elements with blanks between them, such as p pre ul li")
    if active := sorted(ACTIVE_TAGS & set(tags)):
        raise ValueError(f"expected elements that do nothing by themselves, such as p or pre, but not {active[0]}")
    return tags
