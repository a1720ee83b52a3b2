"""How long a server asks to be left alone."""

from __future__ import annotations

from datetime import timezone
from email.utils import parsedate_to_datetime

LONGEST_RETRY_AFTER = 3600.0
"""Seconds; a server that asks for more is asked again then all the same."""


def retry_after_seconds(value: str | None, now: float) -> float | None:
    """Read a ``Retry-After`` (RFC 9110 §10.2.3): seconds, at most an hour; ``None`` if it can't be read.

    :param now: seconds since the epoch.
    """
    if value is None or len(value) > 100:
        return None
    if value.strip().isdecimal():
        return min(float(value), LONGEST_RETRY_AFTER)
    try:
        date = parsedate_to_datetime(value)
        wait = (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp() - now
    except (ValueError, OverflowError):
        return None
    return min(max(wait, 0.0), LONGEST_RETRY_AFTER)
