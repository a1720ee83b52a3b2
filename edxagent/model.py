"""The values that travel between the rooms: frozen, keyword-only, without behaviour.

Texts that belong to the learner or the LMS are left out of every ``repr`` so that no log line can hold them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from attrs import field, frozen

REQUESTS_EXCHANGE = "grading.requests"
RESULTS_EXCHANGE = "grading.results"
DEAD_EXCHANGE = "grading.dead"
REQUEST_TYPE = "grading.request"
RESULT_TYPE = "grading.result"
REQUESTS_RETRY = "grading.retry"
RESULTS_RETRY = "grading.results.retry"


def dead_queue_of(queue: str) -> str:
    """The queue that keeps what ended without a verdict in ``queue``."""
    return f"{queue}.dead"


def milliseconds(delay: float) -> int:
    """A delay in seconds as the broker counts."""
    return max(1, round(delay * 1000))


def retry_name(prefix: str, delay: float) -> str:
    """The exchange, and the queue behind it, where messages wait for ``delay`` seconds: ``grading.retry.2000``."""
    return f"{prefix}.{milliseconds(delay)}"


class Outcome(str, Enum):
    """What became of a submission: one word, the same in code, logs, metrics, result headers and docs."""

    GRADED = "graded"
    MALFORMED = "malformed"
    UNAVAILABLE = "unavailable"
    TIMED_OUT = "timed-out"
    CRASHED = "crashed"
    BAD_REPLY = "bad-reply"
    QUARANTINED = "quarantined"
    CANCELLED = "cancelled"

    def __str__(self) -> str:
        return self.value


@frozen(kw_only=True)
class Properties:
    """The AMQP message properties that we read and write (AMQP 0-9-1 §1.8.1, class ``basic``).

    ``timestamp`` is in whole seconds since the epoch. ``headers`` is an AMQP table.
    """

    message_id: str | None = None
    type: str | None = None
    content_type: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    timestamp: int | None = None
    delivery_mode: int | None = 2
    headers: Mapping[str, Any] = field(factory=dict, repr=False)


@frozen(kw_only=True)
class Message:
    """Something to publish."""

    exchange: str
    routing_key: str
    body: bytes = field(repr=False)
    properties: Properties


@frozen(kw_only=True)
class Submission:
    """A request as the agent holds it: the LMS's three strings verbatim, and what the properties tell.

    :ivar id: AMQP ``message_id``, or the body's SHA-256 in hex where a producer gave none.
    :ivar header: ``xqueue_header``; holds the LMS's only credential.
    :ivar attempt: 1 for the first.
    """

    id: str
    queue: str
    header: str = field(repr=False)
    body: str = field(repr=False)
    files: str = field(repr=False)
    student_response: str = field(repr=False)
    grader_payload: str = field(repr=False)
    student_info: str = field(repr=False)
    attempt: int = 1
    origin: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None


@frozen(kw_only=True)
class GraderRequest:
    """What a grader is shown of a submission: everything but the header.

    :ivar body: ``xqueue_body`` verbatim: JSON text with the three strings below it.
    :ivar files: ``xqueue_files`` verbatim: JSON text, file name → URL.
    :ivar student_response: what the learner typed; empty when files were uploaded.
    :ivar grader_payload: the course author's text, often but not always JSON.
    :ivar student_info: JSON text with ``anonymous_student_id``, ``submission_time``, ``random_seed``.
    """

    submission: str
    queue: str
    attempt: int = 1
    body: str = field(repr=False)
    files: str = field(repr=False, default="{}")
    student_response: str = field(repr=False)
    grader_payload: str = field(repr=False)
    student_info: str = field(repr=False, default="{}")


@frozen(kw_only=True)
class GraderResponse:
    """What a grader answered: JSON text, not yet trusted (:mod:`edxagent.verdict` decides whether it is a verdict)."""

    reply: bytes = field(repr=False)


@frozen(kw_only=True)
class Verdict:
    """A verdict that the LMS can take.

    :ivar score: finite, not negative; in points, as the problem's author counts them.
    :ivar msg: HTML for the learner; not empty.
    """

    correct: bool
    score: float
    msg: str = field(repr=False)


@frozen(kw_only=True)
class CheckedResult:
    """A verdict that came back from the broker, as a sink gets it: it obeys the LMS's rules.

    :ivar header: the LMS's ``xqueue_header``, verbatim; holds its only credential.
    :ivar outcome: an :class:`Outcome` word.
    :ivar origin: which leg of the LMS side the request came in by; ``None`` if another program published it.
    :ivar headers: the result message's headers: who graded it, on which attempt, and when (``x-agent``, ``x-grader``,
        ``x-attempt``, ``x-received``, ``x-started``, ``x-finished``).
    """

    submission: str
    outcome: str
    queue: str
    origin: str | None = None
    header: str = field(repr=False)
    verdict: Verdict
    headers: Mapping[str, Any] = field(factory=dict, repr=False)

    @property
    def graded(self) -> bool:
        """Whether the verdict is a grader's, and not our word for a failure."""
        return self.outcome == Outcome.GRADED
