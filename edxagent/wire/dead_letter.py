"""A dead letter: what ended without a verdict, verbatim, with headers that say why."""

from __future__ import annotations

from edxagent.model import DEAD_EXCHANGE, Message, Outcome, Properties
from edxagent.wire.envelope import header_text
from edxagent.wire.request import attempt_of
from edxagent.words import shorten


def encode_dead_letter(
    *,
    queue: str,
    body: bytes,
    request: Properties,
    submission: str,
    outcome: Outcome,
    reason: str,
    agent: str,
    grader: str,
    told_learner: bool,
    time: float,
) -> Message:
    """A request that ended without a verdict, verbatim, with headers that say why.

    Of the request's own headers those stay that we know, if they are short texts: all headers must fit into one frame.
    """
    kept = {name: header_text(request.headers.get(name)) for name in ("x-origin", "traceparent")}
    headers = {
        **{name: value for name, value in kept.items() if value is not None},
        "x-outcome": str(outcome),
        "x-error": shorten(reason),
        "x-agent": agent,
        "x-grader": grader,
        "x-queue": queue,
        "x-attempt": attempt_of(request),
        "x-told-learner": told_learner,
        "x-time": time,
    }
    properties = Properties(
        message_id=submission,
        type=request.type,
        content_type=request.content_type,
        correlation_id=request.correlation_id,
        reply_to=request.reply_to,
        timestamp=request.timestamp,
        headers=headers,
    )
    return Message(exchange=DEAD_EXCHANGE, routing_key=queue, body=body, properties=properties)
