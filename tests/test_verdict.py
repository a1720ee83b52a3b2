"""Tests for :mod:`edxagent.verdict`."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from edxagent.errors import BadReply
from edxagent.model import Outcome, Verdict
from edxagent.verdict import FAILURE_MESSAGES, check_message, check_verdict, failure_verdict

GOOD = {"correct": True, "score": 1, "msg": "<p>Great!</p>"}


def reply(**changes: object) -> bytes:
    """A reply with some keys changed, or left out where the value is ``...``."""
    return json.dumps({key: value for key, value in {**GOOD, **changes}.items() if value is not ...}).encode()


class CheckVerdictTests(SynchronousTestCase):
    """Which replies are verdicts."""

    def check(self, text: bytes, max_score: float | None = None) -> Verdict:
        """Check a reply."""
        return check_verdict(text, max_size=1000, max_score=max_score)

    def test_good(self) -> None:
        """What the LMS takes comes through."""
        self.assertEqual(self.check(reply()), Verdict(correct=True, score=1.0, msg="<p>Great!</p>"))

    def test_lenient(self) -> None:
        """Plain text, unclosed tags, entities, more keys and partial or zero points are all right."""
        for change in ({"msg": "ok"}, {"msg": "a<br>&nbsp;\t\r\n"}, {"more": [1]}, {"score": 0}, {"score": 0.25}):
            self.check(reply(**change))

    def test_bad(self) -> None:
        """Every reply that the LMS would choke on, or believe wrongly, is refused."""
        for text in (
            b"",
            b"<html>",
            b"[]",
            b"null",
            b"{}",
            b"\xff",
            b"[" * 500,
            reply(correct=...),
            reply(correct="false"),
            reply(correct=None),
            reply(correct=1),
            reply(score=...),
            reply(score="0.9"),
            reply(score=None),
            reply(score=True),
            reply(score=-1),
            reply(score=float("nan")),
            reply(score=float("inf")),
            b'{"correct": true, "score": 1e400, "msg": "x"}',
            b'{"correct": true, "score": 1' + b"0" * 400 + b', "msg": "x"}',
            reply(msg=...),
            reply(msg=None),
            reply(msg=""),
            reply(msg=" \n"),
            reply(msg="a\x00b"),
            reply(msg="a\x1b[0m"),
            reply(msg="\ufffe"),
            reply(msg='<?xml version="1.0" encoding="utf-8"?><p/>'),
            reply(msg="\ufeff <?XML ?>"),
            b'{"correct": true, "score": 1, "msg": "\\ud800x"}',
        ):
            error = self.assertRaises(BadReply, self.check, text)
            self.assertEqual(error.outcome, Outcome.BAD_REPLY)

    def test_too_large(self) -> None:
        """A reply beyond the limit isn't parsed."""
        self.assertIn("1000 bytes", str(self.assertRaises(BadReply, self.check, reply(msg="x" * 1000))))

    def test_max_score(self) -> None:
        """A configured limit holds."""
        self.check(reply(score=10), max_score=10)
        self.assertRaises(BadReply, self.check, reply(score=10.1), 10)

    def test_quotes_nothing(self) -> None:
        """The reason never holds what the grader wrote."""
        error = self.assertRaises(BadReply, self.check, reply(score="my secret"))
        self.assertNotIn("secret", str(error))


class FailureVerdictTests(SynchronousTestCase):
    """What a learner reads when grading failed."""

    def test_every_failing_outcome(self) -> None:
        """Each has words that the LMS can parse, and no points."""
        for outcome in FAILURE_MESSAGES:
            verdict = failure_verdict(outcome, {})
            check_message(verdict.msg)
            self.assertEqual((verdict.correct, verdict.score), (False, 0))

    def test_own_words(self) -> None:
        """An operator's words win."""
        self.assertEqual(failure_verdict(Outcome.CRASHED, {"crashed": "<p>Oh.</p>"}).msg, "<p>Oh.</p>")

    def test_complete(self) -> None:
        """Only the outcomes that are no failures have no words."""
        self.assertEqual(set(Outcome) - set(FAILURE_MESSAGES), {Outcome.GRADED, Outcome.CANCELLED})
