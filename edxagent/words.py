"""Foreign text, made fit for one line of a log, a header or an error message."""

from __future__ import annotations

LONGEST = 200

MAX_REASON = 1024
"""The longest error text, in bytes, that goes into a message's header: all headers must fit into one frame."""


def brief(text: str | bytes | bytearray, longest: int = LONGEST) -> str:
    """The first ``longest`` characters of ``text`` on one line, without anything that isn't printable."""
    if not isinstance(text, str):
        text = text.decode("utf-8", "replace")
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: longest * 4]).split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def shorten(text: str, limit: int = MAX_REASON) -> str:
    """``text`` as one printable line of at most ``limit`` UTF-8 bytes."""
    line = "".join(c if c.isprintable() else " " for c in text[:limit]).strip()
    return line.encode()[:limit].decode(errors="ignore")
