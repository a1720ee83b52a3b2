"""Dead letters as a person is told of them, and as the messages that they become again.

Nothing is told of the body, which holds the LMS's credential and the learner's work, and no header that isn't ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve, frozen

from edxagent.amqp.delivery import Delivery
from edxagent.model import REQUESTS_EXCHANGE, RESULTS_EXCHANGE, Message, Outcome, Properties
from edxagent.wire.journey import known_headers
from edxagent.wire.request import attempt_of, submission_id
from edxagent.wire.retry import read_attempts, same_request
from edxagent.words import MAX_REASON, brief

LONGEST_NAME = 255
OUTCOMES = tuple(map(str, Outcome))


@frozen(kw_only=True)
class Letter:
    """What is told of a dead letter.

    :ivar id: the submission's.
    :ivar queue: the queue that it was for.
    :ivar outcome: its outcome word; ``None`` if no program of ours put it there.
    :ivar attempt: of grading it, or, for a parked result, of handing it over.
    :ivar time: when it died, in seconds since the epoch, if that is known.
    :ivar told_learner: whether a failure verdict went out.
    :ivar sink: who wouldn't have a parked result.
    :ivar history: a line for each of the last attempts that failed, the newest last.
    :ivar size: of its body, in bytes.
    """

    id: str
    queue: str
    outcome: str | None
    reason: str
    attempt: int
    time: float | None
    told_learner: bool
    agent: str | None
    grader: str | None
    sink: str | None
    history: tuple[str, ...]
    size: int


@frozen(kw_only=True)
class Selection:
    """Which letters are meant; ``None`` = whatever it is."""

    id: str | None = None
    outcome: str | None = None

    def takes(self, letter: Letter) -> bool:
        """Whether this one is."""
        return self.id in (None, letter.id) and self.outcome in (None, letter.outcome)


def read_letter(delivery: Delivery, queue: str) -> Letter:
    """What the properties of a message in the dead-letter queue of ``queue`` tell; nonsense counts as not said."""
    properties = delivery.properties
    headers = properties.headers
    return Letter(
        id=brief(submission_id(delivery.body, properties), LONGEST_NAME),
        queue=queue,
        outcome=_outcome(headers.get("x-outcome")),
        reason=_text(headers.get("x-error"), MAX_REASON) or _brokers_reason(headers),
        attempt=_whole(headers.get("x-delivery-attempt")) or attempt_of(properties),
        time=_time(headers.get("x-time")),
        told_learner=headers.get("x-told-learner") is True,
        agent=_text(headers.get("x-agent")),
        grader=_text(headers.get("x-grader")),
        sink=_text(headers.get("x-sink")),
        history=read_attempts(properties).history,
        size=len(delivery.body),
    )


def replayed_request(delivery: Delivery, queue: str) -> Message:
    """The request for another first attempt; what was tried before stays in its history."""
    properties = delivery.properties
    history = read_attempts(properties).history
    return Message(
        exchange=REQUESTS_EXCHANGE,
        routing_key=queue,
        body=delivery.body,
        properties=same_request(
            properties,
            submission_id(delivery.body, properties),
            {"x-history": list(history)} if history else {},
        ),
    )


def replayed_result(delivery: Delivery, queue: str) -> Message:
    """The result as it was before anybody tried to hand it over."""
    properties = delivery.properties
    return Message(
        exchange=RESULTS_EXCHANGE,
        routing_key=queue,
        body=delivery.body,
        properties=evolve(
            properties,
            message_id=submission_id(delivery.body, properties),
            delivery_mode=Properties().delivery_mode,
            headers=known_headers(properties),
        ),
    )


def _outcome(value: object) -> str | None:
    return value if isinstance(value, str) and value in OUTCOMES else None


def _text(value: object, longest: int = LONGEST_NAME) -> str | None:
    return brief(value, longest) or None if isinstance(value, str) else None


def _whole(value: object) -> int:
    return value if type(value) is int and 0 < value <= 1_000_000 else 0


def _time(value: object) -> float | None:
    return float(value) if type(value) in (int, float) and 0 < value < 1e11 else None  # type: ignore[arg-type, operator]


def _brokers_reason(headers: Mapping[str, Any]) -> str:
    """Why the broker itself put it there (https://www.rabbitmq.com/docs/dlx#effects)."""
    reason = _text(headers.get("x-first-death-reason"))
    return f"by the broker: {reason}" if reason else ""
