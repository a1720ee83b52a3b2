"""The JSON object around requests and results, and what is common to reading them."""

from __future__ import annotations

import msgspec

UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""What reading hostile JSON may raise."""

LONGEST_TEXT = 255
"""Bytes that a header of ours may have."""


class Envelope(msgspec.Struct):
    """XQueue's three strings."""

    xqueue_header: str
    xqueue_body: str
    xqueue_files: str = "{}"


encoder = msgspec.json.Encoder()


def header_text(value: object) -> str | None:
    """A message header that is a short text, or ``None``."""
    return value if isinstance(value, str) and len(value.encode(errors="replace")) <= LONGEST_TEXT else None


def explain(error: Exception) -> str:
    """msgspec's own words name types and paths, never the learner's text; the other two need ours."""
    if isinstance(error, RecursionError):
        return "JSON nested too deeply"
    if isinstance(error, UnicodeError):
        return "not valid UTF-8"
    return str(error)
