"""Tests for :mod:`edxagent.lms.updater.checks`."""

from __future__ import annotations

import json
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from edxagent.config.lms_values import UpdaterConfig
from edxagent.errors import InvalidResult
from edxagent.lms.updater.checks import ResultChecker, name_of
from edxagent.lms.updater.html import NOTHING_LEFT
from edxagent.model import CheckedResult, Properties
from edxagent.testing.sinks import SECRET
from edxagent.verdict import check_message
from tests.results import HEADER, INVALID, LEARNER, VALID, properties, result

CONFIG = UpdaterConfig(max_score=10, max_result=1024 * 1024)


class ResultCheckerTests(SynchronousTestCase):
    """What may go to an LMS."""

    def check(self, body: bytes | None = None, having: Properties | None = None, **config: Any) -> CheckedResult:
        """Check a result that is ordinary but for what is given."""
        checker = ResultChecker(evolve(CONFIG, **config))
        return checker.check(result() if body is None else body, properties() if having is None else having)

    def refusal(self, *arguments: Any, **config: Any) -> str:
        """Why a result is refused: one line that tells neither the learner's words nor the LMS's key."""
        reason = str(self.assertRaises(InvalidResult, self.check, *arguments, **config))
        self.assertEqual(len(reason.splitlines()), 1)
        self.assertNotIn(SECRET, reason)
        self.assertNotIn(LEARNER, reason)
        return reason

    def test_valid(self) -> None:
        """A verdict that the LMS takes goes on, its message sanitised."""
        for name, (verdict, expected) in VALID.items():
            checked = self.check(result(verdict)).verdict
            self.assertEqual((checked.correct, checked.score, checked.msg), expected, name)

    def test_invalid(self) -> None:
        """A verdict that the LMS would choke on goes nowhere."""
        for name, (verdict, reason) in INVALID.items():
            self.assertIn(reason, self.refusal(result(verdict)), name)

    def test_what_a_sink_learns(self) -> None:
        """Whose it is and who graded it; the header as it came."""
        checked = self.check(
            having=properties(x_outcome="crashed", x_attempt=2, x_received=1.5, x_finished=2, x_origin="bridge:a")
        )
        self.assertEqual((checked.submission, checked.outcome, checked.queue), ("submission-1", "crashed", "6002x"))
        self.assertEqual((checked.origin, checked.header, checked.graded), ("bridge:a", HEADER, False))
        about = {"x-agent": "agent-1", "x-grader": "http", "x-attempt": 2, "x-received": 1.5, "x-finished": 2}
        self.assertEqual(checked.headers, about)

    def test_another_program_s_result(self) -> None:
        """Without headers it counts as a grade from nowhere; without an id it is known by its body."""
        checked = self.check(having=Properties())
        self.assertEqual((checked.outcome, checked.queue, checked.origin, checked.headers), ("graded", "", None, {}))
        self.assertEqual(len(checked.submission), 64)
        self.assertEqual(self.check(having=Properties()).submission, checked.submission)

    def test_headers_of_any_kind(self) -> None:
        """What makes no sense in the headers is left out, so that no database chokes on it."""
        for nonsense in (None, [], {}, b"x", "x" * 256, "a\x00b", "\udcff", float("nan"), float("inf"), -1, True):
            names = ("x_agent", "x_attempt", "x_received", "x_queue", "x_origin")
            checked = self.check(having=properties(**dict.fromkeys(names, nonsense)))
            self.assertEqual((checked.queue, checked.origin, checked.headers), ("", None, {"x-grader": "http"}))

    def test_outcome(self) -> None:
        """The outcome is one of our words, or not told."""
        for nonsense in (None, "", "excellent", ["graded"], 1, "graded\n"):
            self.assertIn("x-outcome", self.refusal(None, properties(x_outcome=nonsense)))

    def test_type(self) -> None:
        """A message of another type is none of ours."""
        self.assertIn("type", self.refusal(None, evolve(properties(), type="grading.request")))

    def test_size(self) -> None:
        """A larger result isn't looked at."""
        body = result()
        self.check(body, max_result=len(body))
        self.assertIn("more than", self.refusal(body, max_result=len(body) - 1))

    def test_envelope(self) -> None:
        """Anything but an object with the two strings is refused."""
        for body in (b"", b"\xff", b"null", b"[]", b"{}", b"[" * 100_000, result(header=1), result(header=None)):
            self.assertIn("not a result", self.refusal(body))
        self.assertIn("not a result", self.refusal(json.dumps({"xqueue_header": "h", "xqueue_body": {}}).encode()))
        self.assertIn("xqueue_header is empty", self.refusal(result(header="")))

    def test_clamp(self) -> None:
        """A score beyond the greatest can be lowered to it; one that is no score can't."""
        body = result({"correct": True, "score": 999, "msg": "x"})
        self.assertEqual(self.check(body, clamp_scores=True).verdict.score, 10)
        self.assertEqual(self.check(body, max_score=None).verdict.score, 999)
        for score in (-1, float("nan"), float("inf"), "11"):
            self.refusal(result({"correct": True, "score": score, "msg": "x"}), clamp_scores=True)

    def test_allowed_tags(self) -> None:
        """Which elements stay is configured."""
        body = result({"correct": True, "score": 1, "msg": "<p><b>x</b></p>"})
        self.assertEqual(self.check(body, allowed_tags=frozenset({"b"})).verdict.msg, "<b>x</b>")
        self.assertEqual(self.check(body, allowed_tags=frozenset()).verdict.msg, "x")

    def test_nothing_left(self) -> None:
        """A message of which nothing is left is replaced: an empty one would wipe the attempt."""
        body = result({"correct": True, "score": 1, "msg": "<script>x</script>"})
        self.assertEqual(self.check(body).verdict.msg, NOTHING_LEFT)

    def test_name(self) -> None:
        """An id that can't be printed is replaced by one that can, the same each time."""
        names = {name_of(b"", properties(name)) for name in ("a\x00b", "a\x00c", "\udcff", "a\x00b", "fine")}
        self.assertEqual(len(names), 4)
        self.assertIn("fine", names)
        self.assertTrue(all(name.isprintable() for name in names))

    @given(
        st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda child: st.lists(child, max_size=3))
        | st.fixed_dictionaries({"correct": st.booleans(), "score": st.floats(), "msg": st.text()})
    )
    def test_anything(self, verdict: Any) -> None:
        """Whatever the verdict, it is refused or fit for the LMS."""
        try:
            checked = self.check(result(verdict)).verdict
        except InvalidResult:
            return
        self.assertIs(type(checked.correct), bool)
        self.assertTrue(0 <= checked.score <= 10)
        check_message(checked.msg)
