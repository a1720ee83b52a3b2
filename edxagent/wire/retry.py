"""What a request's headers tell of the attempts to grade it, and the message that it becomes when one failed.

Only headers that we know go on, and of those only short ones: all must fit into one frame, however often a request goes
round. What the broker writes on it (``x-death``) starts anew each time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from attrs import evolve, field, frozen

from edxagent.model import REQUESTS_RETRY, Message, Outcome, Properties, retry_name
from edxagent.wire.envelope import header_text
from edxagent.wire.request import attempt_of
from edxagent.words import shorten

MOST = 1_000_000
"""Where counting ends."""

MOST_HISTORY = 10
LONGEST_ENTRY = 110
"""Bytes of one entry of the history."""
_LONGEST_NAME = 40

_OUTCOMES = frozenset(map(str, Outcome))


@frozen(kw_only=True)
class Attempts:
    """The attempts at a submission up to now.

    :ivar attempt: the number of the one that is under way, or was the last (``x-attempt``).
    :ivar failures: outcome word → how many failed so (``x-failures``).
    :ivar first_failed: when the first one failed, in seconds since the epoch (``x-first-failed``).
    :ivar history: a line for each of the last ones that failed, the newest last (``x-history``).
    """

    attempt: int = 1
    failures: Mapping[str, int] = field(factory=dict)
    first_failed: float | None = None
    history: tuple[str, ...] = ()

    def failed(self, outcome: Outcome, *, reason: str, agent: str, now: float) -> Attempts:
        """The attempt failed as well.

        :param agent: who made it.
        :param now: seconds since the epoch. A first failure later than that never was.
        """
        when = datetime.fromtimestamp(now, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        entry = f"{self.attempt} {outcome} {when} {shorten(agent, _LONGEST_NAME)}: {reason}"
        return evolve(
            self,
            failures={**self.failures, str(outcome): min(self.failures.get(str(outcome), 0) + 1, MOST)},
            first_failed=now if self.first_failed is None else min(self.first_failed, now),
            history=(*self.history, shorten(entry, LONGEST_ENTRY))[-MOST_HISTORY:],
        )

    def headers(self) -> dict[str, Any]:
        """What :func:`read_attempts` reads."""
        headers: dict[str, Any] = {"x-attempt": self.attempt}
        if self.failures:
            headers["x-failures"] = dict(self.failures)
        if self.first_failed is not None:
            headers["x-first-failed"] = self.first_failed
        if self.history:
            headers["x-history"] = list(self.history)
        return headers


def read_attempts(request: Properties) -> Attempts:
    """What the headers say; what makes no sense there counts as not said."""
    headers = request.headers
    failures, history = headers.get("x-failures"), headers.get("x-history")
    return Attempts(
        attempt=attempt_of(request),
        failures={
            word: min(count, MOST)
            for word, count in failures.items()
            if word in _OUTCOMES and type(count) is int and count > 0
        }
        if isinstance(failures, Mapping)
        else {},
        first_failed=_time(headers.get("x-first-failed")),
        history=tuple(shorten(entry, LONGEST_ENTRY) for entry in history[-MOST_HISTORY:] if isinstance(entry, str))
        if isinstance(history, (list, tuple))
        else (),
    )


def encode_retry(
    *, queue: str, body: bytes, request: Properties, submission: str, attempts: Attempts, delay: float
) -> Message:
    """The request on its way to a retry queue, and from there back to ``queue``, for its next attempt.

    :param attempts: those up to now.
    """
    following = evolve(attempts, attempt=min(attempts.attempt + 1, MOST))
    return Message(
        exchange=retry_name(REQUESTS_RETRY, delay),
        routing_key=queue,
        body=body,
        properties=same_request(request, submission, following.headers()),
    )


def same_request(request: Properties, submission: str, headers: Mapping[str, Any]) -> Properties:
    """The properties of a request that moves elsewhere, with ``headers`` and those of its own that every stage needs.

    They stay if they are short texts.
    """
    kept = {name: header_text(request.headers.get(name)) for name in ("x-origin", "traceparent")}
    return Properties(
        message_id=submission,
        type=request.type,
        content_type=request.content_type,
        correlation_id=request.correlation_id,
        reply_to=request.reply_to,
        timestamp=request.timestamp,
        headers={**{name: value for name, value in kept.items() if value is not None}, **headers},
    )


def _time(value: object) -> float | None:
    sensible = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if sensible and 0 < value < 1e12 else None  # type: ignore[arg-type, operator]
