"""Foreign text, made fit for one line of a log or an error message."""

from __future__ import annotations

LONGEST = 200


def brief(text: str | bytes | bytearray, longest: int = LONGEST) -> str:
    """The first ``longest`` characters of ``text`` on one line, without anything that isn't printable."""
    if not isinstance(text, str):
        text = text.decode("utf-8", "replace")
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: longest * 4]).split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
