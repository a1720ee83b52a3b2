"""Tests for the example grader."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.test.requesthelper import DummyRequest

from edxagent.errors import BadReply
from edxagent.verdict import check_verdict

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def load_example() -> Any:
    """The example as a module; it isn't in a package."""
    spec = importlib.util.spec_from_file_location("xserver", EXAMPLES / "xserver.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


xserver = load_example()


def request(payload: object, response: str = "", files: object = None) -> bytes:
    """What XQueue would post; ``payload`` and ``files`` as objects or as texts."""
    body = {
        "student_response": response,
        "grader_payload": payload if isinstance(payload, str) else json.dumps(payload),
        "student_info": "{}",
    }
    return json.dumps(
        {"xqueue_body": json.dumps(body), "xqueue_files": files if isinstance(files, str) else json.dumps(files or {})}
    ).encode()


class GradeTests(SynchronousTestCase):
    """Tests for :func:`grade`."""

    def assert_graded(self, posted: bytes, correct: bool, score: float) -> str:
        """The verdict is one that the LMS takes, and this one; returns its message."""
        verdict = check_verdict(json.dumps(xserver.grade(posted)).encode(), max_size=1 << 20)
        self.assertEqual((verdict.correct, verdict.score), (correct, score), verdict.msg)
        return verdict.msg

    def assert_refused(self, posted: bytes, why: str) -> None:
        """It is no request; the reason says so."""
        self.assertIn(why, str(self.assertRaises(xserver.NotARequest, xserver.grade, posted)))

    def test_number(self) -> None:
        """A number gets all its points within the tolerance, half of them nearby, none elsewhere."""
        assignment = {"kind": "number", "answer": 6, "tolerance": 0.05, "points": 2}
        self.assert_graded(request(assignment, " 6.04 "), True, 2)
        self.assert_graded(request(assignment, "6.4"), False, 1)
        self.assert_graded(request(assignment, "7"), False, 0)

    def test_no_number(self) -> None:
        """What isn't a number is wrong, whatever it is."""
        assignment = {"kind": "number", "answer": 6}
        for response in ("", "six", "nan", "inf", "1e999", "6" * 100_000, "6 V", "\x00"):
            self.assert_graded(request(assignment, response), False, 0)

    def test_text(self) -> None:
        """Capitals and spacing don't matter; without ``points`` there is one."""
        assignment = {"kind": "text", "answer": "Thévenin’s theorem"}
        self.assert_graded(request(assignment, "  thévenin’s   THEOREM"), True, 1)
        self.assert_graded(request(assignment, "Norton"), False, 0)

    def test_list(self) -> None:
        """Each item that is named gets its share."""
        assignment = {"kind": "list", "answer": ["R1", "R2", "C1"], "points": 3}
        self.assert_graded(request(assignment, "c1, r1, r2"), True, 3)
        self.assert_graded(request(assignment, "R1, R9, C1"), False, 2)

    def test_files(self) -> None:
        """Each file that was uploaded gets its share, and is listed."""
        assignment = {"kind": "files", "answer": ["a.cir", "b.cir"]}
        files = {"a.cir": "https://lms/a", "<b>.cir": "https://lms/b"}
        msg = self.assert_graded(request(assignment, files=files), False, 0.5)
        self.assertIn("<li>a.cir</li>", msg)
        self.assertIn("<li>&lt;b&gt;.cir</li>", msg)

    def test_plain_payload(self) -> None:
        """A payload that isn't a JSON object is itself the expected text."""
        self.assert_graded(request("superposition", "Superposition"), True, 1)
        self.assert_graded(request("42", "42"), True, 1)
        self.assert_graded(request("[" * 100_000, "["), False, 0)

    def test_escapes(self) -> None:
        """The learner's words are escaped and shortened, and control characters go."""
        msg = self.assert_graded(request("x", "<script>alert(1)</script>\x00\ud800" + "y" * 1000), False, 0)
        self.assertNotIn("<script>", msg)
        self.assertLess(len(msg), 500)

    def test_no_request(self) -> None:
        """What isn't a request is refused with a reason."""
        self.assert_refused(b"", "the request isn't a JSON object")
        self.assert_refused(b"\xff", "the request isn't a JSON object")
        self.assert_refused(b"[" * 100_000, "the request isn't a JSON object")
        self.assert_refused(b"{}", "xqueue_body is missing")
        self.assert_refused(b'{"xqueue_body": "[]"}', "xqueue_body isn't a JSON object")
        self.assert_refused(b'{"xqueue_body": "{}"}', "grader_payload is missing")
        self.assert_refused(request("x", files="no"), "xqueue_files isn't a JSON object")

    def test_no_assignment(self) -> None:
        """An assignment that makes no sense is refused: that is the course author's to mend."""
        self.assert_refused(request({"kind": "essay"}), "kind has to be one of number, text, list, files")
        self.assert_refused(request({"kind": ["number"]}), "kind has to be one of")
        self.assert_refused(request({"kind": "number", "answer": "6"}), "answer has to be a number")
        self.assert_refused(request('{"kind": "number", "answer": 1' + "0" * 400 + "}"), "answer has to be a number")
        self.assert_refused(request({"kind": "number", "answer": 6, "points": -1}), "points must not be negative")
        self.assert_refused(request('{"kind": "text", "answer": "x", "points": NaN}'), "points has to be a number")
        self.assert_refused(request({"kind": "text", "answer": 6}), "answer has to be a text")
        self.assert_refused(request({"kind": "list", "answer": []}), "answer has to be a list of texts")

    @given(st.binary(max_size=200) | st.builds(request, st.text(), st.text(), st.dictionaries(st.text(), st.text())))
    def test_anything(self, posted: bytes) -> None:
        """Whatever is posted is refused, or gets a verdict that the LMS takes."""
        try:
            reply = xserver.grade(posted)
        except xserver.NotARequest:
            return
        try:
            check_verdict(json.dumps(reply).encode(), max_size=1 << 20)
        except BadReply as error:
            self.fail(f"{posted!r}: {error}")


class SubmissionsTests(SynchronousTestCase):
    """Tests for the sample files."""

    def test_names_tell_the_verdict(self) -> None:
        """Each sample file gets the verdict that its name tells."""
        scores = {
            "files-whole-request": 1.0,
            "list-partial": 2.0,
            "number-close": 1.0,
            "number-correct": 2.0,
            "number-wrong": 0.0,
            "text-plain-payload": 1.0,
        }
        seen = {}
        for file in (EXAMPLES / "submissions").glob("*.json"):
            content = json.loads(file.read_text())
            whole = content if "xqueue_body" in content else {"xqueue_body": json.dumps(content)}
            seen[file.stem] = xserver.grade(json.dumps(whole).encode())["score"]
        self.assertEqual(seen, scores)


class GraderTests(SynchronousTestCase):
    """Tests for the web resource :class:`Grader`."""

    def post(self, body: bytes) -> tuple[int | None, bytes]:
        """Post; the status (``None`` is 200) and the reply."""
        posted = DummyRequest([b""])
        posted.content = io.BytesIO(body)
        reply = xserver.Grader().render_POST(posted)
        return posted.responseCode, reply

    def test_reply(self) -> None:
        """A request gets a 200 and JSON."""
        status, reply = self.post(request("x", "x"))
        self.assertIsNone(status)
        self.assertEqual(json.loads(reply)["score"], 1)

    def test_bad_request(self) -> None:
        """What isn't a request gets a 400 and a line of text."""
        self.assertEqual(self.post(b"{}"), (400, b"xqueue_body is missing, or isn't a text\n"))

    def test_too_large(self) -> None:
        """A request beyond the limit gets a 413."""
        status, _ = self.post(b"x" * (xserver.MAX_REQUEST + 1))
        self.assertEqual(status, 413)
