"""A result: a verdict on its way to the LMS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from attrs import field, frozen

from edxagent.model import RESULT_TYPE, RESULTS_EXCHANGE, Message, Outcome, Properties, Verdict
from edxagent.wire.envelope import UNREADABLE, Envelope, encoder, explain, header_text
from edxagent.wire.request import attempt_of

_envelope = msgspec.json.Decoder(Envelope)
_verdict = msgspec.json.Decoder(dict[str, Any])


@frozen(kw_only=True)
class Phases:
    """When the agent received a request, began to grade it and had the answer, in seconds since the epoch."""

    received: float
    started: float | None = None
    finished: float | None = None


def encode_result(
    *,
    routing_key: str,
    header: str,
    verdict: Verdict,
    outcome: Outcome,
    agent: str,
    grader: str,
    queue: str,
    request: Properties,
    submission: str,
    phases: Phases,
) -> Message:
    """A verdict on its way to the LMS.

    :param request: the request's properties: ``correlation_id``, ``x-origin`` and ``x-attempt`` come along.
    """
    answer = {"correct": verdict.correct, "score": verdict.score, "msg": verdict.msg}
    body = {"xqueue_header": header, "xqueue_body": encoder.encode(answer).decode()}
    headers: dict[str, Any] = {
        "x-outcome": str(outcome),
        "x-agent": agent,
        "x-grader": grader,
        "x-queue": queue,
        "x-attempt": attempt_of(request),
        "x-received": phases.received,
    }
    if phases.started is not None:
        headers["x-started"] = phases.started
    if phases.finished is not None:
        headers["x-finished"] = phases.finished
    origin = header_text(request.headers.get("x-origin"))
    if origin is not None:
        headers["x-origin"] = origin
    properties = Properties(
        message_id=submission,
        type=RESULT_TYPE,
        content_type="application/json",
        correlation_id=request.correlation_id,
        timestamp=int(phases.finished or phases.received),
        headers=headers,
    )
    return Message(exchange=RESULTS_EXCHANGE, routing_key=routing_key, body=encoder.encode(body), properties=properties)


@frozen(kw_only=True)
class Result:
    """A result as a consumer of ``grading.results`` reads it. ``header`` is the LMS's, verbatim."""

    submission: str
    outcome: str
    header: str = field(repr=False)
    verdict: Mapping[str, Any] = field(repr=False)
    headers: Mapping[str, Any]


def open_result(body: bytes) -> tuple[str, str]:
    """The LMS's header, and the verdict, a JSON text that may be anything.

    :raises ValueError: it is no result.
    """
    try:
        envelope = _envelope.decode(body)
    except UNREADABLE as error:
        raise ValueError(f"not a result: {explain(error)}") from None
    return envelope.xqueue_header, envelope.xqueue_body


def decode_result(body: bytes, properties: Properties) -> Result:
    """Read a result that :func:`encode_result` wrote.

    :raises ValueError: it is none.
    """
    header, text = open_result(body)
    try:
        verdict = _verdict.decode(text)
    except UNREADABLE as error:
        raise ValueError(f"not a result: {explain(error)}") from None
    return Result(
        submission=properties.message_id or "",
        outcome=header_text(properties.headers.get("x-outcome")) or "",
        header=header,
        verdict=verdict,
        headers=properties.headers,
    )
