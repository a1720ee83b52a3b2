"""Tests for the example LMS, against a gateway that only notes down what it gets."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import treq
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from tests.cli_process import Run, start, until
from tests.fake_gateway import PASSWORD, FakeGateway, Submitted
from tests.test_examples_xserver import EXAMPLES, xserver

PROGRAM = EXAMPLES / "lms.py"


class LMSTests(TestCase):
    """The program as a process. What the gateway gets is graded at once by the example grader, in here."""

    timeout = 60.0

    def setUp(self) -> None:
        """Start the gateway."""
        self.gateway = FakeGateway()
        self.url = self.gateway.start(self)
        self.gateway.on_submitted = self.answer
        self.answers: list[Deferred[tuple[int, bytes]]] = []

    def start_lms(self, *options: str) -> Run:
        """Start the LMS."""
        password = Path(self.mktemp())
        password.write_text(PASSWORD + "\n")
        command = [sys.executable, str(PROGRAM), "--gateway", f"{self.url}/xqueue", "--password-file", str(password)]
        return start(self, *command, *options)

    async def summary(self, lms: Run, status: int = 0) -> dict[str, Any]:
        """Wait for its end; what it counted."""
        self.assertEqual(await lms.ends(), status, lms.out + lms.err)
        await gatherResults(self.answers)
        summary = json.loads(lms.out.splitlines()[-1])
        self.assertNotIn(PASSWORD, lms.out + lms.err)
        self.assertNotIn("Traceback", lms.err)
        return {**summary, "p50": summary["p50"] is not None, "p99": summary["p99"] is not None}

    def answer(self, sent: Submitted) -> None:
        """Grade a submission, and call back."""
        self.call_back(sent.header, xserver.grade(request_of(sent)))

    def call_back(self, header: Mapping[str, Any], reply: object) -> None:
        """Post a verdict to where the header says."""
        self.post(header["lms_callback_url"], {"xqueue_header": json.dumps(header), "xqueue_body": json.dumps(reply)})

    def post(self, url: str, form: Mapping[str, str]) -> Deferred[tuple[int, bytes]]:
        """Post a form; its answer is kept, too."""

        async def post() -> tuple[int, bytes]:
            response = await treq.post(url, data=dict(form), persistent=False)
            return response.code, await response.content()

        self.answers.append(Deferred.fromCoroutine(post()))
        return self.answers[-1]

    async def test_all_right(self) -> None:
        """Every learner submits once, gets the score that was meant for them, and the exit status is 0."""
        summary = await self.summary(self.start_lms("--count", "60"))
        self.assertEqual(
            summary,
            {
                "submitted": 60,
                "refused": 0,
                "answered": 60,
                "duplicates": 0,
                "stale": 0,
                "invalid": 0,
                "correct": sum(xserver.grade(request_of(sent))["correct"] for sent in self.gateway.submitted),
                "right": 60,
                "wrong": 0,
                "p50": True,
                "p99": True,
            },
        )
        self.assertEqual({await answer for answer in self.answers}, {(200, b"")})
        self.assertEqual(self.gateway.logins, 60)

    async def test_says_what_an_lms_says(self) -> None:
        """The forms are those of an LMS, files included; keys and callbacks are each learner's own."""
        await self.summary(self.start_lms("--count", "60", "--queue", "q1"))
        kinds = set()
        for sent in self.gateway.submitted:
            self.assertEqual(set(sent.header), {"lms_callback_url", "lms_key", "queue_name"})
            self.assertEqual(sent.header["queue_name"], "q1")
            self.assertEqual(set(sent.body), {"student_info", "grader_payload", "student_response"})
            self.assertEqual({type(value) for value in sent.body.values()}, {str})
            kinds.add(json.loads(sent.body["grader_payload"])["kind"])
        self.assertEqual(kinds, {"number", "list", "text", "files"})
        for name in ("lms_key", "lms_callback_url"):
            self.assertEqual(len({sent.header[name] for sent in self.gateway.submitted}), 60)
        files = {name: content for sent in self.gateway.submitted for name, content in sent.files.items()}
        self.assertEqual(files["Übertragung.csv"], "the content of Übertragung.csv\n".encode())
        self.assertGreater(max(len(sent.body["student_response"]) for sent in self.gateway.submitted), 1 << 20)

    async def test_seed(self) -> None:
        """The same seed makes the same submissions, and another one others."""
        sent = []
        for seed in ("1", "1", "2"):
            self.gateway.submitted.clear()
            await self.summary(self.start_lms("--count", "12", "--seed", seed))
            sent.append(sorted(one.body["grader_payload"] for one in self.gateway.submitted))
        self.assertEqual(sent[0], sent[1])
        self.assertNotEqual(sent[0], sent[2])

    async def test_unreadable(self) -> None:
        """If wanted, there are bodies that nobody can read; 0 points for those, and the true ones, are right."""

        def answer(sent: Submitted) -> None:
            try:
                self.answer(sent)
            except xserver.NotARequest:
                self.call_back(sent.header, {"correct": False, "score": 0, "msg": "unreadable"})

        self.gateway.on_submitted = answer
        summary = await self.summary(self.start_lms("--count", "40", "--unreadable"))
        self.assertEqual(summary["right"], 40)
        self.assertTrue({"", "print(1)"} < {sent.text for sent in self.gateway.submitted})

    async def test_scores(self) -> None:
        """A file gets a line of JSON a learner: what was expected, what came and when; nothing, where nothing came."""
        scores = Path(self.mktemp()).absolute()
        self.gateway.on_submitted = lambda sent: self.answer(sent) if len(self.gateway.submitted) == 1 else None
        lms = self.start_lms("--count", "2", "--concurrency", "1", "--deadline", "5", "--scores", str(scores))
        await self.summary(lms, status=1)
        first, second = (json.loads(line) for line in scores.read_text().splitlines())
        self.assertGreater(first.pop("seconds"), 0)
        self.assertIsInstance(first.pop("submitted"), float)
        expected = {"outcome": "graded", "score": 2.0}
        self.assertEqual(first, {"learner": 1, "sort": "correct", "expected": expected, "score": 2.0})
        self.assertEqual([second[name] for name in ("learner", "score", "submitted", "seconds")], [2, None, None, None])

    async def test_refused(self) -> None:
        """A learner who is refused reads why, and tries again with another key."""
        self.gateway.refusals = ["Queue '6002x-problems' not found"] * 3
        lms = self.start_lms("--count", "2")
        summary = await self.summary(lms)
        self.assertEqual((summary["refused"], summary["submitted"], summary["right"]), (3, 2, 2))
        self.assertIn("couldn't submit: Queue '6002x-problems' not found", lms.err)

    async def test_gateway_down(self) -> None:
        """While there is no gateway, learners are refused; they get through when it's up."""
        await self.gateway.stop()
        lms = self.start_lms("--count", "2")
        await lms.says("couldn't submit: ConnectionRefusedError")
        self.gateway.start(self)
        self.assertEqual((await self.summary(lms))["right"], 2)

    async def test_wrong_score(self) -> None:
        """A score that isn't what it should be makes the exit status 1."""
        self.gateway.on_submitted = lambda sent: self.call_back(
            sent.header, {"correct": True, "score": 0.25, "msg": "x"}
        )
        summary = await self.summary(self.start_lms("--count", "5"), status=1)
        self.assertEqual((summary["answered"], summary["wrong"], summary["correct"]), (5, 5, 5))

    async def test_no_verdict(self) -> None:
        """Learners who get no verdict until the deadline make the exit status 1."""
        self.gateway.on_submitted = lambda sent: None
        summary = await self.summary(self.start_lms("--count", "5", "--deadline", "5"), status=1)
        self.assertEqual((summary["submitted"], summary["answered"], summary["wrong"]), (5, 0, 5))
        self.assertFalse(summary["p50"])

    async def test_callbacks(self) -> None:
        """A duplicate, a wrong key and an unreadable reply change the counts only; what is no callback gets a 404."""
        self.gateway.on_submitted = lambda sent: None
        lms = self.start_lms("--count", "2", "--concurrency", "1")
        await until(lambda: len(self.gateway.submitted) == 2, lms)
        first, second = self.gateway.submitted
        url, header = first.header["lms_callback_url"], json.dumps(first.header)
        wrong = json.dumps({**first.header, "lms_key": "0" * 32})
        full = json.dumps({"correct": True, "score": 99, "msg": "x"})
        right = json.dumps(xserver.grade(request_of(first)))
        for form, status in (
            ({"xqueue_header": header}, 404),
            ({"xqueue_body": full}, 404),
            ({"xqueue_header": "{}", "xqueue_body": full}, 404),
            ({"xqueue_header": "[]", "xqueue_body": full}, 404),
            ({"xqueue_header": "nonsense", "xqueue_body": full}, 500),
            ({"xqueue_header": wrong, "xqueue_body": full}, 200),
            ({"xqueue_header": header, "xqueue_body": "nonsense"}, 200),
            ({"xqueue_header": header, "xqueue_body": '{"correct": true, "score": 99, "msg": ""}'}, 200),
            ({"xqueue_header": header, "xqueue_body": right}, 200),
            ({"xqueue_header": header, "xqueue_body": full}, 200),
        ):
            self.assertEqual(await self.post(url, form), (status, b""), form)
        form = {"xqueue_header": header, "xqueue_body": full}
        for elsewhere in (url.replace("/xqueue/1/", "/xqueue/3/"), url + "/", url.partition("/courses")[0]):
            self.assertEqual((await self.post(elsewhere, form))[0], 404)
        self.answer(second)
        summary = await self.summary(lms)
        self.assertEqual(
            [summary[name] for name in ("answered", "right", "duplicates", "stale", "invalid")], [2, 2, 1, 1, 2]
        )

    async def test_interrupted(self) -> None:
        """Who stops it sooner reads what was counted until then, and it's no success."""
        self.gateway.on_submitted = lambda sent: None
        lms = self.start_lms("--count", "2")
        await until(lambda: len(self.gateway.submitted) == 2, lms)
        lms.kill(15)
        self.assertEqual((await self.summary(lms, status=1))["answered"], 0)


def request_of(sent: Submitted) -> bytes:
    """What the example grader gets of a submission."""
    files = {name: f"https://gateway/{name}" for name in sent.files}
    return json.dumps({"xqueue_body": sent.text, "xqueue_files": json.dumps(files)}).encode()
