"""A dead letter: what ended without a verdict, verbatim, with headers that say why."""

from __future__ import annotations

from edxagent.model import DEAD_EXCHANGE, Message, Outcome, Properties
from edxagent.wire.retry import Attempts, same_request
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
    attempts: Attempts,
    told_learner: bool,
    time: float,
) -> Message:
    """A request that ended without a verdict, verbatim, with headers that say why.

    :param attempts: those that were made, the last one too.
    """
    headers = {
        **attempts.headers(),
        "x-outcome": str(outcome),
        "x-error": shorten(reason),
        "x-agent": agent,
        "x-grader": grader,
        "x-queue": queue,
        "x-told-learner": told_learner,
        "x-time": time,
    }
    return Message(
        exchange=DEAD_EXCHANGE, routing_key=queue, body=body, properties=same_request(request, submission, headers)
    )
