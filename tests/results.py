"""Results as they come, good and bad, for the tests of who takes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edxagent.model import Properties
from edxagent.testing.sinks import SECRET

HEADER = json.dumps({"lms_callback_url": "https://lms.example.org/courses/x/score_update", "lms_key": SECRET})
LEARNER = "words-for-the-learner-41b9"
VERDICT: Mapping[str, Any] = {"correct": True, "score": 0.5, "msg": f"<p>{LEARNER}</p>"}

VALID: Mapping[str, tuple[str, tuple[bool, float, str]]] = {
    name: (verdict, expected)
    for name, verdict, expected in (
        ("ordinary", '{"correct":true,"score":0.5,"msg":"<p>hi</p>"}', (True, 0.5, "<p>hi</p>")),
        ("plain text", '{"correct":true,"score":1,"msg":"hi"}', (True, 1.0, "hi")),
        ("unclosed br", '{"correct":true,"score":1,"msg":"a<br>b"}', (True, 1.0, "a<br>b")),
        ("nbsp", '{"correct":true,"score":1,"msg":"&nbsp;"}', (True, 1.0, "&nbsp;")),
        ("points for a wrong answer", '{"correct":false,"score":0.7,"msg":"x"}', (False, 0.7, "x")),
        ("greatest score", '{"correct":true,"score":10,"msg":"x"}', (True, 10.0, "x")),
        ("nothing", '{"correct":false,"score":0,"msg":"x"}', (False, 0.0, "x")),
        ("other keys", '{"correct":true,"score":1,"msg":"x","more":[1]}', (True, 1.0, "x")),
        ("script", '{"correct":true,"score":1,"msg":"<p>x<script>alert(1)</script></p>"}', (True, 1.0, "<p>x</p>")),
        ("handler", '{"correct":true,"score":1,"msg":"<p onclick=\'x()\'>x</p>"}', (True, 1.0, "<p>x</p>")),
        ("non-ASCII", '{"correct":true,"score":1,"msg":"<p>naïve 数学</p>"}', (True, 1.0, "<p>naïve 数学</p>")),
    )
}
"""What the LMS takes: name → (verdict as it comes, correct, score and msg as they go on), with ``max_score`` 10."""

INVALID: Mapping[str, tuple[str, str]] = {
    name: (verdict, reason)
    for name, verdict, reason in (
        ("empty msg", '{"correct":true,"score":1,"msg":""}', "msg is empty"),
        ("blank msg", '{"correct":true,"score":1,"msg":" \\n\\t"}', "msg is empty"),
        ("control character", '{"correct":true,"score":1,"msg":"a\\u0001"}', "control character"),
        ("null character", '{"correct":true,"score":1,"msg":"a\\u0000"}', "control character"),
        ("half a character", '{"correct":true,"score":1,"msg":"a\\ud800"}', ""),
        ("no correct", '{"score":1,"msg":"x"}', "correct"),
        ("no score", '{"correct":true,"msg":"x"}', "score"),
        ("no msg", '{"correct":true,"score":1}', "msg"),
        ("no JSON", "great!", "isn't JSON"),
        ("no text at all", "", "isn't JSON"),
        ("list", '[{"correct":true,"score":1,"msg":"x"}]', "object"),
        ("number", "1", "object"),
        ("null", "null", "object"),
        ("msg null", '{"correct":true,"score":1,"msg":null}', "msg"),
        ("msg list", '{"correct":true,"score":1,"msg":["x"]}', "msg"),
        ("XML declaration", '{"correct":true,"score":1,"msg":"<?xml version=\'1.0\' encoding=\'utf-8\'?><p/>"}', "XML"),
        ("score in quotes", '{"correct":true,"score":"0.9","msg":"x"}', "score"),
        ("score null", '{"correct":true,"score":null,"msg":"x"}', "score"),
        ("score bool", '{"correct":true,"score":true,"msg":"x"}', "score"),
        ("negative score", '{"correct":true,"score":-1,"msg":"x"}', "score must be"),
        ("NaN", '{"correct":true,"score":NaN,"msg":"x"}', "isn't JSON"),
        ("Infinity", '{"correct":true,"score":Infinity,"msg":"x"}', "isn't JSON"),
        ("endless score", '{"correct":true,"score":1e999,"msg":"x"}', ""),
        ("score beyond the greatest", '{"correct":true,"score":999,"msg":"x"}', "greater than 10"),
        ("correct in quotes", '{"correct":"false","score":1,"msg":"x"}', "correct"),
        ("correct null", '{"correct":null,"score":0,"msg":"x"}', "correct"),
        ("correct number", '{"correct":1,"score":1,"msg":"x"}', "correct"),
        ("deep", "[" * 100_000, ""),
    )
}
"""What the LMS chokes on: name → (verdict, words of the reason), with ``max_score`` 10."""


def result(verdict: Any = VERDICT, header: Any = HEADER, **changes: Any) -> bytes:
    """A result's body; ``verdict`` may be the text itself."""
    text = verdict if isinstance(verdict, str) else json.dumps(verdict)
    return json.dumps({"xqueue_header": header, "xqueue_body": text, **changes}).encode()


def properties(message_id: str | None = "submission-1", **headers: Any) -> Properties:
    """As an agent sets them; ``headers`` with ``_`` for ``-``."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    usual = {"x-outcome": "graded", "x-agent": "agent-1", "x-grader": "http", "x-queue": "6002x", "x-origin": "gateway"}
    return Properties(
        message_id=message_id, type="grading.result", content_type="application/json", headers={**usual, **named}
    )
