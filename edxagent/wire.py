"""Bytes on the broker ⇄ values: the one place where the message formats are decided.

A request carries XQueue's three strings verbatim (``xqueue_header``, ``xqueue_body``, ``xqueue_files``; upstream:
``xqueue/queue/lms_interface.py`` and ``capa/xqueue_interface.py``), so that nothing changes for course teams.
``xqueue_body`` is JSON text again, with the three strings that ``CodeResponse.get_score`` writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec
from attrs import evolve, field, frozen

from edxagent.errors import MalformedRequest
from edxagent.model import (
    DEAD_EXCHANGE,
    REQUEST_TYPE,
    REQUESTS_EXCHANGE,
    RESULT_TYPE,
    RESULTS_EXCHANGE,
    GraderRequest,
    Message,
    Outcome,
    Properties,
    Submission,
    Verdict,
)

MAX_REASON = 1024
"""The longest error text, in bytes, that goes into a header: a content header must fit into one frame."""

_UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)


class _Envelope(msgspec.Struct):
    xqueue_header: str
    xqueue_body: str
    xqueue_files: str = "{}"


class _HeaderOnly(msgspec.Struct):
    xqueue_header: str


class _Body(msgspec.Struct):
    student_response: str
    grader_payload: str
    student_info: str = "{}"


_envelope = msgspec.json.Decoder(_Envelope)
_header_only = msgspec.json.Decoder(_HeaderOnly)
_body = msgspec.json.Decoder(_Body)
_encoder = msgspec.json.Encoder()


@frozen(kw_only=True)
class Phases:
    """When the agent received a request, began to grade it and had the answer, in seconds since the epoch."""

    received: float
    started: float | None = None
    finished: float | None = None


def decode_request(body: bytes, properties: Properties, queue: str, max_size: int) -> Submission:
    """Read a request.

    :param max_size: the greatest body, in bytes, that is looked at.
    :raises MalformedRequest: it can't be read; holds the header if at least that could.
    """
    if len(body) > max_size:
        raise MalformedRequest(f"the request has more than {max_size} bytes")
    if properties.type not in (None, REQUEST_TYPE):
        raise MalformedRequest(f"the message's type isn't {REQUEST_TYPE}", _header_of(body))
    try:
        envelope = _envelope.decode(body)
    except _UNREADABLE as error:
        raise MalformedRequest(f"the request: {_explain(error)}", _header_of(body)) from None
    if not envelope.xqueue_header:
        raise MalformedRequest("xqueue_header is empty: nobody could be told the verdict")
    try:
        inner = _body.decode(envelope.xqueue_body)
    except _UNREADABLE as error:
        raise MalformedRequest(f"xqueue_body: {_explain(error)}", envelope.xqueue_header) from None
    return Submission(
        id=submission_id(body, properties),
        queue=queue,
        header=envelope.xqueue_header,
        body=envelope.xqueue_body,
        files=envelope.xqueue_files or "{}",
        student_response=inner.student_response,
        grader_payload=inner.grader_payload,
        student_info=inner.student_info,
        attempt=attempt_of(properties),
        origin=_text(properties.headers.get("x-origin")),
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to or None,
    )


def submission_id(body: bytes, properties: Properties) -> str:
    """The request's ``message_id``; for a producer that gives none, the SHA-256 of the body, in hex."""
    return properties.message_id or hashlib.sha256(body).hexdigest()


def attempt_of(properties: Properties) -> int:
    """The header ``x-attempt``; 1 where it is absent or nonsense."""
    attempt = properties.headers.get("x-attempt")
    return attempt if type(attempt) is int and 1 <= attempt <= 1_000_000 else 1


def grader_request(submission: Submission) -> GraderRequest:
    """What a grader may see of a submission: all but the header."""
    return GraderRequest(
        submission=submission.id,
        queue=submission.queue,
        attempt=submission.attempt,
        body=submission.body,
        files=submission.files,
        student_response=submission.student_response,
        grader_payload=submission.grader_payload,
        student_info=submission.student_info,
    )


def encode_request(
    *,
    queue: str,
    submission: str,
    header: str,
    body: str,
    files: str = "{}",
    timestamp: int,
    reply_to: str | None = None,
) -> Message:
    """A request as a producer publishes it."""
    envelope = _Envelope(xqueue_header=header, xqueue_body=body, xqueue_files=files)
    properties = Properties(
        message_id=submission,
        type=REQUEST_TYPE,
        content_type="application/json",
        timestamp=timestamp,
        reply_to=reply_to,
    )
    return Message(exchange=REQUESTS_EXCHANGE, routing_key=queue, body=_encoder.encode(envelope), properties=properties)


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
    body = {"xqueue_header": header, "xqueue_body": _encoder.encode(answer).decode()}
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
    origin = _text(request.headers.get("x-origin"))
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
    return Message(
        exchange=RESULTS_EXCHANGE, routing_key=routing_key, body=_encoder.encode(body), properties=properties
    )


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
    kept = {name: _text(request.headers.get(name)) for name in ("x-origin", "traceparent")}
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


def requeued_request(queue: str, body: bytes, request: Properties) -> Message:
    """The same request as a new message straight into ``queue``: the broker counts its deliveries from 0 again."""
    dropped = ("x-delivery-count", "CC", "BCC")  # RabbitMQ would send copies to those that CC and BCC name
    kept = {name: value for name, value in request.headers.items() if name not in dropped}
    return Message(exchange="", routing_key=queue, body=body, properties=evolve(request, headers=kept, delivery_mode=2))


@frozen(kw_only=True)
class Result:
    """A result as a consumer of ``grading.results`` reads it. ``header`` is the LMS's, verbatim."""

    submission: str
    outcome: str
    header: str = field(repr=False)
    verdict: Mapping[str, Any] = field(repr=False)
    headers: Mapping[str, Any]


def decode_result(body: bytes, properties: Properties) -> Result:
    """Read a result that :func:`encode_result` wrote.

    :raises ValueError: it is none.
    """
    try:
        envelope = msgspec.json.decode(body, type=_Envelope)
        verdict = msgspec.json.decode(envelope.xqueue_body, type=dict[str, Any])
    except _UNREADABLE as error:
        raise ValueError(f"not a result: {_explain(error)}") from None
    return Result(
        submission=properties.message_id or "",
        outcome=_text(properties.headers.get("x-outcome")) or "",
        header=envelope.xqueue_header,
        verdict=verdict,
        headers=properties.headers,
    )


def shorten(text: str, limit: int = MAX_REASON) -> str:
    """``text`` as one printable line of at most ``limit`` UTF-8 bytes."""
    line = "".join(c if c.isprintable() else " " for c in text[:limit]).strip()
    return line.encode()[:limit].decode(errors="ignore")


def _header_of(body: bytes) -> str | None:
    try:
        return _header_only.decode(body).xqueue_header or None
    except _UNREADABLE:
        return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and len(value.encode(errors="replace")) <= 255 else None


def _explain(error: Exception) -> str:
    """msgspec's own words name types and paths, never the learner's text; the other two need ours."""
    if isinstance(error, RecursionError):
        return "JSON nested too deeply"
    if isinstance(error, UnicodeError):
        return "not valid UTF-8"
    return str(error)
