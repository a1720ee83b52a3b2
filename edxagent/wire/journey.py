"""What a result's headers tell of the attempts to hand it over, and the messages that it becomes when one failed.

Only headers that we know go on, and of those only short ones: all must fit into one frame, however often a message goes
round. What the broker writes on it (``x-death``) starts anew each time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from attrs import evolve, field, frozen

from edxagent.model import DEAD_EXCHANGE, RESULTS_RETRY, Message, Properties, retry_name
from edxagent.wire.envelope import header_text
from edxagent.words import shorten

MOST = 1_000_000
"""Where counting ends."""

_TEXTS = ("x-outcome", "x-agent", "x-grader", "x-queue", "x-origin", "x-reply-to", "traceparent")
_NUMBERS = ("x-attempt", "x-received", "x-started", "x-finished")


@frozen(kw_only=True)
class Journey:
    """How far a result has come.

    :ivar attempt: how often it has been to a retry queue (``x-delivery-attempt``).
    :ivar done: the sinks that need it no more: they took it, or it is parked for them (``x-sinks-done``).
    :ivar refusals: sink → how often it refused the result (``x-refusals``).
    """

    attempt: int = 0
    done: frozenset[str] = frozenset()
    refusals: Mapping[str, int] = field(factory=dict)

    def without(self, sink: str) -> Journey:
        """That sink needs it no more."""
        refusals = {name: count for name, count in self.refusals.items() if name != sink}
        return evolve(self, done=self.done | {sink}, refusals=refusals)

    def refused_by(self, sink: str) -> Journey:
        """That sink refused it once more."""
        return evolve(self, refusals={**self.refusals, sink: min(self.refusals.get(sink, 0) + 1, MOST)})


def read_journey(properties: Properties, sinks: Collection[str]) -> Journey:
    """What the headers say; what makes no sense there counts as not said.

    :param sinks: the names of those that there are; others are forgotten.
    """
    headers = properties.headers
    done, refusals = headers.get("x-sinks-done"), headers.get("x-refusals")
    return Journey(
        attempt=_count(headers.get("x-delivery-attempt")),
        done=frozenset(sinks).intersection(name for name in done if isinstance(name, str))
        if isinstance(done, (list, tuple))
        else frozenset(),
        refusals={name: _count(refusals.get(name)) for name in sinks if name in refusals}
        if isinstance(refusals, Mapping)
        else {},
    )


def encode_retry(
    *, queue: str, body: bytes, properties: Properties, submission: str, journey: Journey, delay: float
) -> Message:
    """A result on its way to a retry queue, and from there back to ``queue``; ``journey`` is the one up to now."""
    headers = {
        **known_headers(properties),
        "x-delivery-attempt": min(journey.attempt + 1, MOST),
        "x-sinks-done": sorted(journey.done),
        "x-refusals": dict(journey.refusals),
    }
    return Message(
        exchange=retry_name(RESULTS_RETRY, delay),
        routing_key=queue,
        body=body,
        properties=_same(properties, submission, headers),
    )


def encode_parked(
    *, queue: str, body: bytes, properties: Properties, submission: str, reason: str, sink: str | None, time: float
) -> Message:
    """A result that a person has to look at, verbatim, with headers that say why.

    :param sink: who won't have it; ``None`` = it was offered to none.
    """
    headers = {
        **known_headers(properties),
        "x-delivery-attempt": _count(properties.headers.get("x-delivery-attempt")) + 1,
        "x-error": shorten(reason),
        "x-time": time,
    }
    if sink is not None:
        headers["x-sink"] = sink
    return Message(
        exchange=DEAD_EXCHANGE, routing_key=queue, body=body, properties=_same(properties, submission, headers)
    )


def known_headers(properties: Properties) -> dict[str, Any]:
    """Who graded it, when and for whom: the headers that :func:`~edxagent.wire.result.encode_result` writes."""
    texts = {name: header_text(properties.headers.get(name)) for name in _TEXTS}
    numbers = {name: _number(properties.headers.get(name)) for name in _NUMBERS}
    return {name: value for name, value in {**texts, **numbers}.items() if value is not None and _is_clean(value)}


def _same(properties: Properties, submission: str, headers: Mapping[str, Any]) -> Properties:
    return Properties(
        message_id=properties.message_id or submission,
        type=properties.type,
        content_type=properties.content_type,
        correlation_id=properties.correlation_id,
        timestamp=properties.timestamp,
        headers=headers,
    )


def _is_clean(value: object) -> bool:
    return not isinstance(value, str) or value.isprintable()


def _number(value: object) -> float | int | None:
    sensible = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if sensible and 0 <= value < 1e12 else None  # type: ignore[operator, return-value]


def _count(value: object) -> int:
    return min(value, MOST) if type(value) is int and value > 0 else 0
