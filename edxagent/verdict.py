"""Is this reply a verdict that the LMS can take?

The LMS must never see an invalid one: ``CodeResponse.update_score`` (``capa/responsetypes.py``) wipes the learner's
attempt for some replies and raises for others, whatever key they carry. The rules below are what it needs, and no more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import msgspec

from edxagent.errors import BadReply
from edxagent.model import Outcome, Verdict

# What XML 1.0 §2.2 forbids in a document: the LMS parses ``msg`` as XML first.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_XML_DECLARATION = re.compile(r"\s*<\?xml", re.IGNORECASE)


class _Reply(msgspec.Struct):
    correct: bool
    score: float
    msg: str


_reply = msgspec.json.Decoder(_Reply)


def check_verdict(reply: bytes, *, max_size: int, max_score: float | None = None) -> Verdict:
    """Read a grader's reply: ``{"correct": bool, "score": number, "msg": text}``, other keys ignored.

    :param max_size: the greatest reply, in bytes, that is looked at.
    :param max_score: the greatest score, in points, that is believed; ``None`` = any finite one.
    :raises BadReply: it is no verdict; says what is wrong, without quoting it.
    """
    if len(reply) > max_size:
        raise BadReply(f"the grader's reply has more than {max_size} bytes")
    try:
        parsed = _reply.decode(reply)
    except msgspec.ValidationError as error:
        raise BadReply(f"the grader's reply: {error}") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise BadReply("the grader's reply isn't JSON") from None
    if not math.isfinite(parsed.score) or parsed.score < 0:
        raise BadReply("the grader's reply: score must be a finite number, 0 or more")
    if max_score is not None and parsed.score > max_score:
        raise BadReply(f"the grader's reply: score is greater than {max_score:g}")
    check_message(parsed.msg)
    return Verdict(correct=parsed.correct, score=parsed.score, msg=parsed.msg)


def check_message(msg: str) -> None:
    """Check the HTML for the learner.

    :raises BadReply: the LMS couldn't parse it.
    """
    if not msg.strip():
        raise BadReply("the grader's reply: msg is empty")
    if _FORBIDDEN.search(msg):
        raise BadReply("the grader's reply: msg holds a control character")
    if _XML_DECLARATION.match(msg.lstrip("\ufeff")):
        raise BadReply("the grader's reply: msg begins with an XML declaration")


_NOT_YOUR_FAULT = "This is not your fault. Please submit again; if it goes on, tell the course staff."

FAILURE_MESSAGES: Mapping[Outcome, str] = {
    Outcome.MALFORMED: f"<p>Your answer reached the grader in a form that it can't read. {_NOT_YOUR_FAULT}</p>",
    Outcome.UNAVAILABLE: f"<p>The grader could not be reached. {_NOT_YOUR_FAULT}</p>",
    Outcome.TIMED_OUT: "<p>Grading your answer took too long and was stopped. "
    "If your answer is a program, check that it comes to an end, then submit again.</p>",
    Outcome.CRASHED: f"<p>The grader failed while it looked at your answer. {_NOT_YOUR_FAULT}</p>",
    Outcome.BAD_REPLY: f"<p>The grader gave an answer that makes no sense. {_NOT_YOUR_FAULT}</p>",
    Outcome.QUARANTINED: f"<p>Your answer could not be graded. {_NOT_YOUR_FAULT}</p>",
}
"""What a learner is told, in HTML, of a submission that failed, where the operator gave no other words."""


def failure_verdict(outcome: Outcome, messages: Mapping[str, str]) -> Verdict:
    """The verdict for a submission that got none.

    :param messages: outcome word → the operator's own words.
    """
    return Verdict(correct=False, score=0.0, msg=messages.get(str(outcome), FAILURE_MESSAGES[outcome]))
