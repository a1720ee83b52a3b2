"""Where a server listens: Twisted's endpoint strings, such as ``tcp:18040:interface=127.0.0.1``.

The format is that of :func:`twisted.internet.endpoints.serverFromString`, which is asked whether it understands one.
"""

from __future__ import annotations

import re
from typing import Any

from twisted.internet.endpoints import serverFromString

from edxagent.config.broker_url import is_loopback
from edxagent.config.parsers import has_control_characters

_NO_REACTOR: Any = object()
_EXPECTED = "expected an endpoint, such as tcp:18040:interface=127.0.0.1"
_WITH_PORTS = ("tcp", "tcp6", "ssl")


def endpoint(value: str) -> str:
    """An endpoint string that Twisted understands; the files that one with TLS names can be read."""
    if not value or len(value) > 4096 or has_control_characters(value):
        raise ValueError(_EXPECTED)
    kind, arguments = _parts(value)
    try:
        serverFromString(_NO_REACTOR, value)
        if kind in _WITH_PORTS and not 0 <= int(arguments["port"]) <= 65535:
            raise ValueError
    except OSError as error:
        raise ValueError(f"{_EXPECTED}; of this one a file can't be read: {error.strerror}") from None
    except Exception:  # The parsers, which may come from plugins, raise whatever their mistakes lead to.
        hint = "; are the files of this one PEM files with a certificate and its key?" if kind == "ssl" else ""
        raise ValueError(_EXPECTED + hint) from None
    return value


def is_private(value: str) -> bool:
    """Whether what an endpoint says certainly stays on this machine, or is encrypted."""
    kind, arguments = _parts(value)
    return kind in ("ssl", "unix") or (kind in ("tcp", "tcp6") and is_loopback(arguments.get("interface", "")))


def _parts(value: str) -> tuple[str, dict[str, str]]:
    """Its kind and its arguments by name; the first one that has none is the port."""
    kind, *words = (re.sub(r"\\(.)", r"\1", part) for part in re.split(r"(?<!\\):", value))
    arguments: dict[str, str] = {}
    for word in words:
        name, equals, argument = word.partition("=")
        arguments.setdefault(*((name, argument) if equals else ("port", word)))
    return kind, arguments
