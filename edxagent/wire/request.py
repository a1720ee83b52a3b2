"""A request: a submission on its way to a grader."""

from __future__ import annotations

import hashlib

import msgspec
from attrs import evolve

from edxagent.errors import MalformedRequest
from edxagent.model import REQUEST_TYPE, REQUESTS_EXCHANGE, GraderRequest, Message, Properties, Submission
from edxagent.wire.envelope import UNREADABLE, Envelope, encoder, explain, header_text


class _HeaderOnly(msgspec.Struct):
    xqueue_header: str


class _Body(msgspec.Struct):
    student_response: str
    grader_payload: str | None  # null for an empty <grader_payload/>: capa/responsetypes.py, CodeResponse
    student_info: str = "{}"


_envelope = msgspec.json.Decoder(Envelope)
_header_only = msgspec.json.Decoder(_HeaderOnly)
_body = msgspec.json.Decoder(_Body)


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
    except UNREADABLE as error:
        raise MalformedRequest(f"the request: {explain(error)}", _header_of(body)) from None
    if not envelope.xqueue_header:
        raise MalformedRequest("xqueue_header is empty: nobody could be told the verdict")
    try:
        inner = _body.decode(envelope.xqueue_body)
    except UNREADABLE as error:
        raise MalformedRequest(f"xqueue_body: {explain(error)}", envelope.xqueue_header) from None
    return Submission(
        id=submission_id(body, properties),
        queue=queue,
        header=envelope.xqueue_header,
        body=envelope.xqueue_body,
        files=envelope.xqueue_files or "{}",
        student_response=inner.student_response,
        grader_payload=inner.grader_payload or "",
        student_info=inner.student_info,
        attempt=attempt_of(properties),
        origin=header_text(properties.headers.get("x-origin")),
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
    origin: str | None = None,
) -> Message:
    """A request as a producer publishes it.

    :param origin: which leg of the LMS side takes the verdict back; comes back with the verdict as ``x-origin``.
    """
    envelope = Envelope(xqueue_header=header, xqueue_body=body, xqueue_files=files)
    properties = Properties(
        message_id=submission,
        type=REQUEST_TYPE,
        content_type="application/json",
        timestamp=timestamp,
        reply_to=reply_to,
        headers={} if origin is None else {"x-origin": origin},
    )
    return Message(exchange=REQUESTS_EXCHANGE, routing_key=queue, body=encoder.encode(envelope), properties=properties)


def requeued_request(queue: str, body: bytes, request: Properties) -> Message:
    """The same request as a new message straight into ``queue``: the broker counts its deliveries from 0 again."""
    dropped = ("x-delivery-count", "CC", "BCC")  # RabbitMQ would send copies to those that CC and BCC name
    kept = {name: value for name, value in request.headers.items() if name not in dropped}
    return Message(exchange="", routing_key=queue, body=body, properties=evolve(request, headers=kept, delivery_mode=2))


def _header_of(body: bytes) -> str | None:
    try:
        return _header_only.decode(body).xqueue_header or None
    except UNREADABLE:
        return None
