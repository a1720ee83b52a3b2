"""The whole circle, with the LMS's own code at both its ends: what a learner submits, and what they see in the end."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import treq
from twisted.internet.defer import Deferred

from edxagent.model import RESULTS_EXCHANGE, Outcome, dead_queue_of
from edxagent.verdict import FAILURE_MESSAGES
from tests.amqp_support import message
from tests.circle import GATEWAY, UPDATER, Asked, CircleTestCase, graded, pause
from tests.cli_process import start_cli, until
from tests.lmsprocess import PASSWORD, USER
from tests.real_lms import LearnerState, RealLMS

NO_SENSE = FAILURE_MESSAGES[Outcome.BAD_REPLY]
GOOD = {"correct": True, "score": 1, "msg": "<p>ok</p>"}

BAD_REPLIES: Mapping[str, bytes] = {
    "an empty msg": json.dumps({**GOOD, "msg": ""}).encode(),
    "a msg of blanks": json.dumps({**GOOD, "msg": " \n"}).encode(),
    "no msg": b'{"correct": true, "score": 1}',
    "no score": b'{"correct": true, "msg": "<p>ok</p>"}',
    "no correct": b'{"score": 1, "msg": "<p>ok</p>"}',
    "msg is null": json.dumps({**GOOD, "msg": None}).encode(),
    "a control character": json.dumps({**GOOD, "msg": "<p>\x08</p>"}).encode(),
    "an XML declaration": json.dumps({**GOOD, "msg": '<?xml version="1.0" encoding="UTF-8"?><p>x</p>'}).encode(),
    "a score in quotes": json.dumps({**GOOD, "score": "0.9"}).encode(),
    "score is null": json.dumps({**GOOD, "score": None}).encode(),
    "a negative score": json.dumps({**GOOD, "score": -1}).encode(),
    "too great a score": json.dumps({**GOOD, "score": 999}).encode(),
    "NaN": b'{"correct": true, "score": NaN, "msg": "<p>ok</p>"}',
    "Infinity": b'{"correct": true, "score": 1e999, "msg": "<p>ok</p>"}',
    "correct in quotes": json.dumps({**GOOD, "correct": "false"}).encode(),
    "correct is null": json.dumps({**GOOD, "correct": None}).encode(),
    "a list": json.dumps([GOOD]).encode(),
    "no JSON": b"<html>It works!</html>",
    "nothing": b"",
    "no UTF-8": b'{"correct": true, "score": 1, "msg": "\xff"}',
}
"""What the LMS would choke on, or believe though it is nonsense."""

GOOD_REPLIES: Mapping[str, tuple[object, LearnerState]] = {
    "plain text": ({**GOOD, "msg": "Well done"}, graded(True, 1, "Well done")),
    "an element that isn't closed": ({**GOOD, "msg": "one<br>two"}, graded(True, 1, "one<br>two")),
    "a name that XML hasn't": ({**GOOD, "msg": "a&nbsp;b"}, graded(True, 1, "a&#160;b")),
    "points for a wrong answer": ({**GOOD, "correct": False, "score": 0.7}, graded(False, 0.7, "<p>ok</p>")),
    "a script": ({**GOOD, "msg": "<p>ok</p><script>steal()</script>"}, graded(True, 1, "<p>ok</p>")),
}
"""What looks as bad, and is fine: name → what a grader says, what its learner sees."""

COMMAND = """\
import json, os, sys
files = json.loads(sys.stdin.readline())["files"]
listed = sorted(f"{name}: {os.path.getsize(path)}" for name, path in files.items())
verdict = {"correct": len(files) > 1, "score": len(files) - 1, "msg": "<p>" + ", ".join(listed) + "</p>"}
os.write(3, json.dumps(verdict).encode())
"""
"""A grader that tells which files it found, and how long they are."""


class CircleTests(CircleTestCase):
    """What graders say reaches the learner, exactly."""

    async def test_scores(self) -> None:
        """A correct answer, a wrong one and a partly right one: each learner sees theirs, and so does the database."""
        await self.close_circle()
        for learner, answer in {1: "1", 2: "0", 3: "0.25"}.items():
            self.assertTrue((await self.learners.submit(learner, answer)).queued)
        states = await self.learners.until_graded()
        self.assertEqual(
            states,
            {1: graded(True, 1, "<p>1</p>"), 2: graded(False, 0, "<p>0</p>"), 3: graded(False, 0.25, "<p>0.25</p>")},
        )
        scores = {row.learner: (row.outcome, row.correct, row.score, row.msg) for row in await self.until_scores(3)}
        self.assertEqual(
            scores,
            {
                1: ("graded", True, 1.0, "<p>1</p>"),
                2: ("graded", False, 0.0, "<p>0</p>"),
                3: ("graded", False, 0.25, "<p>0.25</p>"),
            },
        )
        await self.assert_nothing_odd()

    async def test_again(self) -> None:
        """Who submits again gets the verdict on the later submission, also when they didn't wait for the first one."""
        slow: Deferred[object] = Deferred()

        async def grade(asked: Asked) -> object:
            return await slow if asked.answer == "slow" else GOOD

        self.grader.grade = grade
        await self.close_circle()
        await self.learners.submit(1, "slow")
        await until(lambda: bool(self.grader.asked))
        await pause(1.1)  # for another key
        await self.learners.submit(1, "x")
        expected = {1: graded(True, 1, "<p>ok</p>", attempts=2)}
        self.assertEqual(await self.learners.until_graded(1), expected)
        slow.callback({"correct": False, "score": 0, "msg": "<p>late</p>"})
        self.assertEqual(sorted(row.score for row in await self.until_scores(2)), [0.0, 1.0])
        await self.until_quiet()
        self.assertEqual(await self.learners.states(), expected)
        seen = await self.learners.callbacks()
        self.assertEqual((seen.received, seen.taken, seen.stale), (2, 1, 1))
        await self.learners.submit(1, "x")
        self.assertEqual(await self.learners.until_graded(1), {1: graded(True, 1, "<p>ok</p>", attempts=3)})

    async def test_any_character(self) -> None:
        """Answer, payload and message keep every character of theirs."""
        answer = "π ≈ 3,14 – “naïve”\r\n\tприве́т 電阻 🙂 <b>&amp;</b> \\u0041 \"'"
        payload = '{"Übung": "Ω < 5 & \\n"} – kein JSON 🙂'

        async def grade(asked: Asked) -> object:
            ok = (asked.answer, asked.payload) == (answer, payload)
            return {"correct": ok, "score": 1, "msg": "<p>¡Olé! Ω 電阻 🙂</p>"}

        self.grader.grade = grade
        await self.close_circle()
        self.assertTrue((await self.learners.submit(1, answer, payload=payload)).queued)
        states = await self.learners.until_graded(1)
        (asked,) = self.grader.asked
        self.assertEqual((asked.answer, asked.payload), (answer, payload))
        self.assertEqual(states[1], graded(True, 1, "<p>¡Olé! Ω 電阻 🙂</p>"))
        (row,) = await self.until_scores(1)
        self.assertEqual(row.msg, "<p>¡Olé! Ω 電阻 🙂</p>")
        await self.assert_nothing_odd(["3,14", "Übung", "Olé"])

    async def test_no_payload(self) -> None:
        """A problem without a grader_payload, which the LMS writes as null, is graded like any other."""
        await self.close_circle()
        await self.learners.submit(1, "1", payload="")
        self.assertEqual(await self.learners.until_graded(1), {1: graded(True, 1, "<p>1</p>")})
        (asked,) = self.grader.asked
        self.assertIn('\\"grader_payload\\": null', asked.told)

    async def test_html(self) -> None:
        """A message keeps its formatting; what could harm who reads it doesn't arrive, in the LMS or the database."""
        msg = (
            '<p class="x" onclick="steal()">Almost: <b>R<sub>2</sub></b> &lt; 1&nbsp;kΩ<br></p>'
            "<script>steal()</script><style>p {display: none}</style>"
            '<a href="javascript:steal()">a</a><a href="https://example.org/help">help</a>'
            '<img src="x" onerror="steal()"><iframe src="https://example.org"></iframe>'
            "<svg onload=steal()></svg><form action=https://example.org><input name=p></form>"
            "<table><tr><td>1</td></tr></table><pre>a < b</pre>"
        )

        async def grade(asked: Asked) -> object:
            return {"correct": False, "score": 0.5, "msg": msg}

        self.grader.grade = grade
        await self.close_circle()
        await self.learners.submit(1, "1")
        state = (await self.learners.until_graded(1))[1]
        self.assertEqual((state.correctness, state.npoints), ("incorrect", 0.5))
        for bad in (
            "steal",
            "script",
            "onclick",
            "onerror",
            "onload",
            "style",
            "iframe",
            "<img",
            "<svg",
            "<form",
            "<input",
        ):
            self.assertNotIn(bad, state.msg)
        for good in ("<b>R<sub>2</sub></b>", "&lt; 1", "https://example.org/help", "<td>1</td>", "<pre>a &lt; b</pre>"):
            self.assertIn(good, state.msg)
        (row,) = await self.until_scores(1)
        self.assertEqual(row.msg.replace("&nbsp;", "&#160;"), state.msg)  # as the LMS itself writes it
        await self.assert_nothing_odd()

    async def test_trace(self) -> None:
        """``edxagent trace`` tells an operator the whole way of a submission."""
        await self.close_circle()
        await self.learners.submit(1, "1")
        await self.learners.until_graded(1)
        (row,) = await self.until_scores(1)
        await self.until_quiet()
        told = start_cli(self, "trace", row.submission, "--ledger", self.ledger_url)
        self.assertEqual(await told.ends(), 0, told.err)
        lines = [re.sub(" +", " ", line).strip() for line in told.out.splitlines()]
        time = r"\d\d\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC"
        expected = (
            f"submission {row.submission}",
            "came by gateway",
            f"queue {self.requests}",
            f"accepted {time}",
            f"received {time} by agent e2e, attempt 1",
            f"started {time} by grader http",
            rf"finished {time}, after \d+\.\d\d s",
            "outcome graded",
            f"sink lms delivered, {time}",
            f"sink scores delivered, {time}",
            "now done",
        )
        self.assertEqual(len(lines), len(expected), told.out)
        for line, pattern in zip(lines, expected, strict=True):
            self.assertRegex(line, f"^{pattern}$")


class FileTests(CircleTestCase):
    """What learners upload is graded by its content."""

    FILES: Mapping[str, bytes] = {
        "amplifier.cir": b"R1 1 0 1k\r\n\x00\xff",
        "Übertragung 電阻.csv": "f,U\n1,Ω\n".encode(),
        "empty.txt": b"",
    }

    async def test_fetched_by_grader(self) -> None:
        """A grader fetches each file from its URL, and finds there what the learner uploaded, byte for byte."""

        async def grade(asked: Asked) -> object:
            found = {name: await (await treq.get(url, persistent=False)).content() for name, url in asked.files.items()}
            return {"correct": found == self.FILES, "score": len(found), "msg": f"<p>{len(found)} files</p>"}

        self.grader.grade = grade
        await self.close_circle()
        told = await self.learners.submit(1, files=self.FILES, payload="circuit")
        self.assertTrue(told.queued, told.message)
        self.assertEqual(await self.learners.until_graded(1), {1: graded(True, 3, "<p>3 files</p>")})
        (asked,) = self.grader.asked
        self.assertEqual((set(asked.files), asked.answer, asked.payload), (set(self.FILES), "", "circuit"))
        await self.assert_nothing_odd()

    async def test_fetched_by_agent(self) -> None:
        """An agent whose grader is a command fetches the files for it."""
        program = Path(self.mktemp()).absolute()
        program.write_text(COMMAND)
        grader = {
            "kind": "command",
            "command": f"{sys.executable} {program}",
            "file_hosts": f"127.0.0.1:{self.gateway_port}",
        }
        await self.close_circle(agent={"grader": grader})
        await self.learners.submit(1, files=self.FILES)
        await self.learners.submit(2, files={"amplifier.cir": b"R1 1 0 2k\n"})
        states = await self.learners.until_graded()
        listed = sorted(f"{name}: {len(content)}" for name, content in self.FILES.items())
        self.assertEqual(states[1], graded(True, 2, f"<p>{', '.join(listed)}</p>"))
        self.assertEqual(states[2], graded(False, 0, "<p>amplifier.cir: 10</p>"))
        await self.assert_nothing_odd()


class BadReplyTests(CircleTestCase):
    """What the LMS can't take never gets to it, from wherever it comes."""

    async def test_by_a_grader(self) -> None:
        """Graders reply nonsense: each of their learners is told that it's not their fault, and others are graded."""

        async def grade(asked: Asked) -> object:
            return BAD_REPLIES.get(asked.answer, GOOD)

        self.grader.grade = grade
        await self.close_circle(agent={"results": {"max_score": 100}})
        cases = dict(enumerate(BAD_REPLIES, start=1))
        for learner, name in cases.items():
            await self.learners.submit(learner, name)
            await self.learners.submit(1000 + learner, "well")
        states = await self.learners.until_graded()
        for learner, name in cases.items():
            self.assertEqual(states[learner], graded(False, 0, NO_SENSE), name)
            self.assertEqual(states[1000 + learner], graded(True, 1, "<p>ok</p>"), name)
        rows = {row.learner: (row.outcome, row.correct, row.score) for row in await self.until_scores(2 * len(cases))}
        for learner, name in cases.items():
            self.assertEqual(rows[learner], ("bad-reply", False, 0.0), name)
            self.assertEqual(rows[1000 + learner], ("graded", True, 1.0), name)
        self.assertEqual(await self.dead_letters(), (len(cases), 0))
        self.assertEqual((await self.learners.callbacks()).taken, 2 * len(cases))
        await self.assert_nothing_odd()

    async def test_straight_into_the_results_queue(self) -> None:
        """Nonsense that somebody publishes as a verdict is parked; the right verdict comes all the same."""
        lms = self.start_part(*GATEWAY, *UPDATER, updater={"max_score": 100})
        await lms.ready("publish", "results")
        await lms.port()
        await self.learners.submit(1, "x")
        (request,) = await self.collect(self.requests, 1)
        header = json.loads(request.body)["xqueue_header"]
        for name, reply in BAD_REPLIES.items():
            await self.publish_result(name, header, reply)
        parked = await self.collect(dead_queue_of(self.results), len(BAD_REPLIES))
        self.assertEqual({str(each.properties.message_id) for each in parked}, set(BAD_REPLIES))
        for each in parked:
            self.assertTrue(each.properties.headers["x-error"], each.properties.message_id)
        self.assertTrue((await self.learners.state(1)).queued)
        await self.publish_result("good", header, json.dumps(GOOD).encode())
        expected = {1: graded(True, 1, "<p>ok</p>")}
        self.assertEqual(await self.learners.until_graded(1), expected)
        await self.publish_result("late", header, BAD_REPLIES["an empty msg"])
        await self.collect(dead_queue_of(self.results), 1)
        self.assertEqual(await self.learners.states(), expected)
        self.assertEqual([row.submission for row in await self.until_scores(1)], ["good"])
        self.assertEqual((await self.learners.callbacks()).received, 1)
        key = json.loads(header)["lms_key"]
        await self.assert_nothing_odd([key])
        for database in self.folder.glob("*.db*"):
            self.assertNotIn(key.encode(), database.read_bytes(), database.name)

    async def test_good_by_a_grader(self) -> None:
        """What merely looks bad is the learner's verdict."""

        async def grade(asked: Asked) -> object:
            return GOOD_REPLIES[asked.answer][0]

        self.grader.grade = grade
        await self.close_circle()
        expected = {}
        for learner, (name, (_, state)) in enumerate(GOOD_REPLIES.items(), start=1):
            await self.learners.submit(learner, name)
            expected[learner] = state
        self.assertEqual(await self.learners.until_graded(), expected)
        self.assertEqual(await self.dead_letters(), (0, 0))
        await self.assert_nothing_odd()

    async def test_good_straight_into_the_results_queue(self) -> None:
        """It is when somebody publishes it as a verdict, too; under another's key it does nothing."""
        lms = self.start_part(*GATEWAY, *UPDATER)
        await lms.ready("publish", "results")
        await lms.port()
        expected = {}
        for learner, (name, (reply, state)) in enumerate(GOOD_REPLIES.items(), start=1):
            await self.learners.submit(learner, name)
            (request,) = await self.collect(self.requests, 1)
            header = json.loads(json.loads(request.body)["xqueue_header"])
            wrong = json.dumps({**header, "lms_key": "0" * 32})
            await self.publish_result(f"{name}, wrong key", wrong, json.dumps({**GOOD, "score": 99}).encode())
            await self.publish_result(name, json.dumps(header), json.dumps(reply).encode())
            expected[learner] = state
        self.assertEqual(await self.learners.until_graded(), expected)
        await self.until_scores(2 * len(GOOD_REPLIES))
        await self.until_quiet()
        self.assertEqual(await self.learners.states(), expected)
        seen = await self.learners.callbacks()
        self.assertEqual((seen.taken, seen.received), (len(GOOD_REPLIES), 2 * len(GOOD_REPLIES)))
        await self.assert_nothing_odd()

    async def test_callback_elsewhere(self) -> None:
        """A verdict for an address that isn't listed is posted nowhere and parked; the score is in the database."""
        other = await RealLMS.start(
            self,
            gateway=f"http://127.0.0.1:{self.gateway_port}",
            username=USER,
            password=PASSWORD,
            queue=self.requests,
            callback_url="http://169.254.169.254:80",
        )
        await self.close_circle()
        self.assertTrue((await other.submit(1, "1")).queued)
        (parked,) = await self.collect(dead_queue_of(self.results), 1)
        self.assertIn("169.254.169.254", parked.properties.headers["x-error"])
        self.assertEqual([(row.learner, row.score) for row in await self.until_scores(1)], [(1, 1.0)])
        self.assertTrue((await other.state(1)).queued)
        await self.assert_nothing_odd()

    async def publish_result(self, submission: str, header: str, reply: bytes) -> None:
        """Publish a verdict as an agent does, but whatever it says."""
        envelope = {"xqueue_header": header, "xqueue_body": reply.decode("utf-8", "surrogateescape")}
        body = json.dumps(envelope, ensure_ascii=False).encode("utf-8", "surrogateescape")
        headers = {"x-outcome": "graded", "x-agent": "rogue", "x-queue": self.requests, "x-origin": "gateway"}
        properties: Mapping[str, Any] = {"message_id": submission, "type": "grading.result", "headers": headers}
        await self.broker.publish(message(self.results, body, exchange=RESULTS_EXCHANGE, **properties))
