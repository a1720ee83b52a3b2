"""An example HTTP grader: a small stand-in for the xserver of MIT's 6.002x, to start your own from.

A grader is a web server that answers one question. It gets a POST with a JSON object of two strings,

- ``xqueue_body``: JSON text with ``student_response``, what the learner typed; ``grader_payload``, what the course
  author wrote into the problem; and ``student_info``;
- ``xqueue_files``: JSON text, the names of uploaded files and where they can be fetched;

and replies ``{"correct": true, "score": 2, "msg": "<p>Well done.</p>"}``: whether to show a green tick, how many
points, and HTML that the learner sees. (That is how Open edX's XQueue has always asked its external graders.)

This one understands four kinds of assignment, told by ``grader_payload``::

    {"kind": "number", "answer": 6.0, "tolerance": 0.05, "points": 2}    half the points within ten tolerances
    {"kind": "text",   "answer": "Kirchhoff"}                            capitals and spaces don't matter
    {"kind": "list",   "answer": ["R1", "R2", "C1"], "points": 3}        comma-separated; points for each one named
    {"kind": "files",  "answer": ["amplifier.cir"]}                      points for each one uploaded

``points`` is 1 unless given. A payload that isn't a JSON object is itself the text to answer. Run it with::

    python examples/xserver.py --listen tcp:8080:interface=127.0.0.1

Nothing that a learner sends is ever executed, and everything of theirs is escaped before it is shown.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import react
from twisted.web.http import BAD_REQUEST, REQUEST_ENTITY_TOO_LARGE, Request
from twisted.web.resource import Resource
from twisted.web.server import Site

MAX_REQUEST = 16 * 1024 * 1024
MAX_ANSWER = 1_000
SHOWN = 200


class NotARequest(Exception):
    """What was posted can't be graded: the text says why, for the one who runs the course."""


class Marks(NamedTuple):
    """``share`` of the points, from 0 to 1, and a sentence (plain text) for the learner."""

    share: float
    comment: str


# -- the four kinds of assignment: (expected answer, what the learner sent, names of their files) → marks ------------


def mark_number(assignment: Mapping[str, Any], response: str, files: Sequence[str]) -> Marks:
    """All the points within ``tolerance`` of the answer, half of them when it is close."""
    answer = number(assignment, "answer")
    tolerance = number(assignment, "tolerance", default=abs(answer) / 1000)
    try:
        given = float(response[:MAX_ANSWER])
    except ValueError:
        return Marks(0, f"“{shortened(response)}” isn't a number.")
    distance = abs(given - answer)
    if distance <= tolerance:
        return Marks(1, "Exactly.")
    if distance <= 10 * tolerance:
        return Marks(0.5, "Close: have another look at your rounding.")
    return Marks(0, f"{given:g} isn't it. Did you mind the units?")


def mark_text(assignment: Mapping[str, Any], response: str, files: Sequence[str]) -> Marks:
    """The right words, whatever their capitals and spacing."""
    answer = assignment.get("answer")
    if not isinstance(answer, str):
        raise NotARequest("the payload's answer has to be a text")
    if plain(response[:MAX_ANSWER]) == plain(answer) and len(response) <= MAX_ANSWER:
        return Marks(1, "That is the word.")
    return Marks(0, f"“{shortened(response)}” isn't what we were looking for.")


def mark_list(assignment: Mapping[str, Any], response: str, files: Sequence[str]) -> Marks:
    """A share of the points for each item that is named, in any order."""
    named = {plain(item) for item in response.split(",")}
    return marks_for_each(names(assignment), lambda item: plain(item) in named, "not named")


def mark_files(assignment: Mapping[str, Any], response: str, files: Sequence[str]) -> Marks:
    """A share of the points for each file that was uploaded."""
    return marks_for_each(names(assignment), lambda item: item in files, "not uploaded")


KINDS: Mapping[str, Callable[[Mapping[str, Any], str, Sequence[str]], Marks]] = {
    "number": mark_number,
    "text": mark_text,
    "list": mark_list,
    "files": mark_files,
}


def marks_for_each(expected: Sequence[str], is_there: Callable[[str], bool], complaint: str) -> Marks:
    """The share of ``expected`` that is there, and a word about the rest."""
    missing = [item for item in expected if not is_there(item)]
    share = (len(expected) - len(missing)) / len(expected)
    return Marks(share, f"{', '.join(missing)}: {complaint}." if missing else "All there.")


# -- from a request's bytes to a reply ------------------------------------------------------------------------------


def grade(request: bytes) -> dict[str, Any]:
    """Grade what was posted.

    :returns: the reply, ``correct``, ``score`` and ``msg``.
    :raises NotARequest: it can't be graded.
    """
    outer = json_object(request, "the request")
    body = json_object(text(outer, "xqueue_body"), "xqueue_body")
    files = sorted(json_object(outer.get("xqueue_files") or "{}", "xqueue_files"))
    assignment = read_assignment(text(body, "grader_payload"))
    points = number(assignment, "points", default=1.0)
    if points < 0:
        raise NotARequest("the payload's points must not be negative")
    marks = KINDS[assignment["kind"]](assignment, text(body, "student_response"), files)
    return {"correct": marks.share == 1, "score": points * marks.share, "msg": message(marks.comment, files)}


def message(comment: str, files: Sequence[str]) -> str:
    """The HTML that the learner sees."""
    html = f"<p>{escape(comment)}</p>"
    if files:
        listed = "".join(f"<li>{escape(shortened(name))}</li>" for name in files[:20])
        html += f"<p>Your files:</p><ul>{listed}</ul>"
    return printable(html)


def read_assignment(payload: str) -> Mapping[str, Any]:
    """The course author's ``grader_payload``: a JSON object, or else the expected text itself."""
    try:
        assignment = json.loads(payload)
    except (ValueError, RecursionError):
        assignment = None
    if not isinstance(assignment, dict):
        return {"kind": "text", "answer": payload}
    if str(assignment.get("kind")) not in KINDS:
        raise NotARequest(f"the payload's kind has to be one of {', '.join(KINDS)}")
    return assignment


def json_object(source: str | bytes, name: str) -> dict[str, Any]:
    """Parse a JSON object."""
    try:
        parsed = json.loads(source)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise NotARequest(f"{name} isn't a JSON object")
    return parsed


def text(fields: Mapping[str, Any], name: str) -> str:
    """The text ``name`` of a JSON object."""
    value = fields.get(name)
    if not isinstance(value, str):
        raise NotARequest(f"{name} is missing, or isn't a text")
    return value


def number(assignment: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """The number ``name`` of an assignment."""
    value = assignment.get(name, default)
    if type(value) not in (int, float) or not -1e300 < value < 1e300:
        raise NotARequest(f"the payload's {name} has to be a number")
    return float(value)


def names(assignment: Mapping[str, Any]) -> list[str]:
    """The answer of an assignment that expects several texts."""
    answer = assignment.get("answer")
    if not isinstance(answer, list) or not answer or not all(isinstance(item, str) for item in answer):
        raise NotARequest("the payload's answer has to be a list of texts")
    return answer


def plain(words: str) -> str:
    """``words`` as they are compared."""
    return " ".join(words.casefold().split())


def shortened(words: str) -> str:
    """As much of the learner's words as is good to show."""
    return words if len(words) <= SHOWN else words[:SHOWN] + "…"


def printable(html: str) -> str:
    """``html`` without control characters, for which the LMS would refuse the whole reply."""
    return "".join(character if character.isprintable() else " " for character in html)


# -- the web server --------------------------------------------------------------------------------------------------


class Grader(Resource):
    """Answers a POST to any path."""

    isLeaf = True

    def render_POST(self, request: Request) -> bytes:
        """Grade, and reply with JSON; a line of text and status 400 for what can't be graded."""
        posted = request.content.read(MAX_REQUEST + 1)
        if len(posted) > MAX_REQUEST:
            return self.refuse(request, REQUEST_ENTITY_TOO_LARGE, f"more than {MAX_REQUEST} bytes")
        try:
            reply = grade(posted)
        except NotARequest as problem:
            return self.refuse(request, BAD_REQUEST, str(problem))
        request.setHeader("Content-Type", "application/json")
        return json.dumps(reply).encode()

    def refuse(self, request: Request, status: int, why: str) -> bytes:
        """Reply with an error status and a line of text."""
        request.setResponseCode(status)
        request.setHeader("Content-Type", "text/plain; charset=utf-8")
        return f"{why}\n".encode()


async def main(reactor: Any, listen: str) -> None:
    """Serve until somebody stops the program."""
    port = await serverFromString(reactor, listen).listen(Site(Grader()))
    address = port.getHost()
    print(f"listening on http://{address.host}:{address.port}/", flush=True)
    await Deferred()  # Ctrl-C stops the reactor, and that the program


if __name__ == "__main__":
    parser = ArgumentParser(description="An example HTTP grader for edxagent.")
    parser.add_argument(
        "--listen",
        default="tcp:8080:interface=127.0.0.1",
        help="a Twisted endpoint string; port 0 takes a free one (default: %(default)s)",
    )
    react(main, [parser.parse_args().listen])
