"""Tests for the LMS process, so that tests with it are about the gateway and the updater only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import treq
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.trial.unittest import TestCase

from tests.fake_gateway import PASSWORD, USERNAME, FakeGateway, Submitted
from tests.real_lms import Callbacks, LearnerState, RealLMS, Work

RIGHT = {"correct": True, "score": 1, "msg": "x"}
REFUSED = "Unable to deliver your submission to grader (Reason: {}). Please try again later."


class RealLMSTests(TestCase):
    """Tests for :class:`RealLMS`, with a gateway that only notes down what it gets."""

    timeout = 60.0

    async def start(self, **options: Any) -> None:
        """Start the gateway and the LMS."""
        self.gateway = FakeGateway()
        url = self.gateway.start(self)
        settings = {"gateway": url, "username": USERNAME, "password": PASSWORD, "queue": "q1"} | options
        self.lms = await RealLMS.start(self, **settings)

    async def call_back(self, header: Mapping[str, Any], reply: object, url: str | None = None) -> tuple[int, bytes]:
        """Post a verdict, as an object or as text, to the submission's own URL; the LMS's answer."""
        text = reply if isinstance(reply, str) else json.dumps(reply)
        return await self.post(
            url or header["lms_callback_url"], {"xqueue_header": json.dumps(header), "xqueue_body": text}
        )

    async def post(self, url: str, form: Mapping[str, str]) -> tuple[int, bytes]:
        """Post a form; the answer."""
        response = await treq.post(url, data=form, persistent=False)
        return response.code, await response.content()

    async def submit(self, learner: int = 7) -> Submitted:
        """Let a learner submit successfully; what came to the gateway."""
        await self.lms.submit(learner, "6.0")
        return self.gateway.submitted[-1]

    async def assert_refused(self, why: str) -> None:
        """A learner submits, and is told why that failed."""
        told = await self.lms.submit(7, "6.0")
        self.assertEqual((told.queued, told.message), (False, REFUSED.format(why)))
        self.assertFalse((await self.lms.state(7)).queued)

    def assert_state(self, state: LearnerState, correctness: str | None, npoints: float | None, msg: str) -> None:
        """A learner sees this."""
        self.assertEqual((state.correctness, state.npoints, state.msg), (correctness, npoints, msg))

    async def test_submits(self) -> None:
        """Each submission logs in first, and arrives in the LMS's own format; the learner is told that it's queued."""
        await self.start(callback_url="http://lms.example.org:8000")
        told = await self.lms.submit(7, "print('Σ')", payload='{"answer": "<&>Ω\\n"}', queue="q2")
        (sent,) = self.gateway.submitted
        self.assertEqual((told.queued, told.message, self.gateway.logins), (True, "1", 1))
        self.assertEqual(
            sent.header.pop("lms_callback_url"),
            "http://lms.example.org:8000/courses/course-v1:MITx+6.002x+2026/xqueue/7/"
            "block-v1:MITx+6.002x+2026+type@problem+block@divider/score_update",
        )
        self.assertRegex(sent.header.pop("lms_key"), "^[0-9a-f]{32}$")
        self.assertEqual(sent.header, {"queue_name": "q2"})
        self.assertEqual(sent.body["grader_payload"], '{"answer": "<&>Ω\\n"}')
        self.assertEqual(sent.body["student_response"], "print('Σ')")
        self.assertTrue((await self.lms.state(7)).queued)
        await self.submit(8)
        self.assertEqual(self.gateway.logins, 2)

    async def test_files(self) -> None:
        """Files come as parts of the form, whole also after the login; there is no response then."""
        await self.start()
        files = {"a.cir": b"R1 1 0 1k\r\n\x00\xff", "Übertragung.csv": b"f,U\n"}
        told = await self.lms.submit(7, files=files, payload="x")
        self.assertTrue(told.queued, told.message)
        self.assertEqual(self.gateway.submitted[0].files, files)
        self.assertEqual(self.gateway.submitted[0].body["student_response"], "")

    async def test_refused(self) -> None:
        """A learner whose submission is refused is told why, and can submit again."""
        await self.start()
        self.gateway.refusals = ["Queue 'q1' not found"]
        await self.assert_refused("Queue 'q1' not found")
        self.gateway.password = "another"
        await self.assert_refused("Incorrect login credentials")
        self.gateway.password = PASSWORD
        await self.gateway.stop()
        await self.assert_refused("cannot connect to server")
        self.gateway.start(self)
        self.assertTrue((await self.lms.submit(7, "6.0")).queued)

    async def test_until_queued(self) -> None:
        """A learner who keeps trying submits until it works, with another key each second, or gives up."""
        await self.start()
        self.gateway.refusals = ["no", "no"]
        told = await self.lms.submit_until_queued(7, "6.0", pause=0.01)
        self.assertEqual((told.queued, told.tries), (True, 3))
        self.gateway.refusals = ["no"] * 100
        told = await self.lms.submit_until_queued(8, "6.0", patience=0.2, pause=0.05)
        self.assertFalse(told.queued)
        self.assertLessEqual(told.tries, 5)
        self.assertEqual((await self.lms.state(8)).attempts, told.tries)

    async def test_another_key(self) -> None:
        """Who submits again a second later has another key, and the earlier one is worth nothing."""
        await self.start()
        first = await self.submit()
        self.gateway.refusals = ["no"]
        await self.lms.submit_until_queued(7, "6.1", pause=1.1)
        second = self.gateway.submitted[-1]
        self.assertNotEqual(first.header["lms_key"], second.header["lms_key"])
        await self.call_back(first.header, {"correct": True, "score": 9, "msg": "old"})
        self.assertTrue((await self.lms.state(7)).queued)
        await self.call_back(second.header, {"correct": True, "score": 2, "msg": "new"})
        self.assert_state(await self.lms.state(7), "correct", 2, "new")
        self.assertEqual(await self.lms.callbacks(), Callbacks(received=2, stale=1, taken=1))

    async def test_until_gateway_is_up(self) -> None:
        """Learners who keep trying get through once the gateway is up."""
        await self.start()
        await self.gateway.stop()
        told = Deferred.fromCoroutine(self.lms.submit_all([Work(learner=7, answer="6.0")], pause=0.1))
        while not [state for state in (await self.lms.states()).values() if state.attempts]:
            self.assertNoResult(told)
        self.gateway.start(self)
        (one,) = await told
        self.assertTrue(one.queued)
        self.assertGreater(one.tries, 1)

    async def test_verdicts(self) -> None:
        """A verdict becomes the learner's score: all points, a part of them, or none; once only, and for its key."""
        await self.start()
        verdicts = {1: (True, 2, "<p>Ω</p>"), 2: (False, 0.5, "<p>close</p>"), 3: (False, 0, "no<br>")}
        for learner, (correct, score, msg) in verdicts.items():
            sent = await self.submit(learner)
            wrong = {**sent.header, "lms_key": "0" * 32}
            self.assertEqual(await self.call_back(wrong, RIGHT), (200, b""))
            self.assertTrue((await self.lms.state(learner)).queued)
            answer = await self.call_back(sent.header, {"correct": correct, "score": score, "msg": msg})
            self.assertEqual(answer, (200, b""))
            self.assertEqual(await self.call_back(sent.header, RIGHT), (200, b""))
        states = await self.lms.until_graded()
        self.assert_state(states[1], "correct", 2, "<p>Ω</p>")
        self.assert_state(states[2], "incorrect", 0.5, "<p>close</p>")
        self.assert_state(states[3], "incorrect", 0, "no<br>")
        self.assertEqual(await self.lms.callbacks(), Callbacks(received=9, taken=3, repeated=3, stale=3))

    async def test_bad_verdicts(self) -> None:
        """A reply that the LMS can't read wipes the attempt, whatever its key; on others its code raises: a 500."""
        await self.start()
        sent = await self.submit()
        status, _ = await self.call_back(sent.header, {**RIGHT, "score": None})
        self.assertEqual(status, 500)
        status, _ = await self.call_back(sent.header, RIGHT, sent.header["lms_callback_url"].replace("/7/", "/99/"))
        self.assertEqual(status, 500)
        self.assertTrue((await self.lms.state(7)).queued)
        await self.call_back({**sent.header, "lms_key": "wrong"}, {**RIGHT, "msg": ""})
        state = await self.lms.state(7)
        self.assertEqual((state.queued, state.graded), (False, False))
        self.assertIn("Invalid grader reply", state.msg)
        self.assertEqual(await self.call_back(sent.header, RIGHT), (200, b""))
        self.assertFalse((await self.lms.state(7)).graded)
        seen = await self.lms.callbacks()
        self.assertEqual((seen.received, seen.raised, seen.rejected, seen.stale), (4, 2, 1, 1))
        self.assertEqual(len(seen.troubles), 3)

    async def test_missing(self) -> None:
        """A callback without its fields or without a key is answered 404, and so is one to another place."""
        await self.start()
        sent = await self.submit()
        url, header = sent.header["lms_callback_url"], json.dumps(sent.header)
        for form in ({"xqueue_header": header}, {"xqueue_body": "{}"}, {"xqueue_header": "{}", "xqueue_body": "{}"}):
            self.assertEqual((await self.post(url, form))[0], 404)
        status, _ = await self.post(self.lms.url + "/courses/", {"xqueue_header": header, "xqueue_body": "{}"})
        self.assertEqual(status, 404)
        self.assertEqual((await self.lms.callbacks()).missing, 4)

    async def test_answers_to_order(self) -> None:
        """The next callbacks are answered as the test wants, and not recorded; what is left can be taken back."""
        await self.start()
        sent = await self.submit()
        await self.lms.answer_next(2, status=503, body="<h1>Sorry</h1>")
        for _ in range(2):
            self.assertEqual(await self.call_back(sent.header, RIGHT), (503, b"<h1>Sorry</h1>"))
        self.assertTrue((await self.lms.state(7)).queued)
        self.assertEqual(await self.call_back(sent.header, RIGHT), (200, b""))
        self.assertEqual(await self.lms.callbacks(), Callbacks(received=3, ordered=2, taken=1))
        await self.lms.answer_next(1000, status=500)
        await self.lms.answer_next(0)
        self.assertEqual(await self.call_back(sent.header, RIGHT), (200, b""))

    async def test_slow(self) -> None:
        """A callback can be recorded at once and answered late, and no other one waits for it."""
        await self.start()
        sent, other = await self.submit(7), await self.submit(8)
        await self.lms.answer_next(1, delay=3.0, record=True)
        slow = Deferred.fromCoroutine(self.call_back(sent.header, RIGHT))
        await self.lms.until_graded(7)
        await self.call_back(other.header, RIGHT)
        self.assertNoResult(slow)
        self.assertEqual(await slow, (200, b""))

    async def test_closed(self) -> None:
        """An LMS that is closed refuses connections, and listens in the same place when it's open again."""
        await self.start()
        sent = await self.submit()
        await self.lms.close()
        with self.assertRaises(ConnectionRefusedError):
            await self.call_back(sent.header, RIGHT)
        await self.lms.open()
        self.assertEqual(await self.call_back(sent.header, RIGHT), (200, b""))

    async def test_many(self) -> None:
        """A thousand learners submit, are graded, and each has the score that was meant for them."""
        await self.start()
        told = await self.lms.submit_all(Work(learner=number, answer=str(number)) for number in range(1, 1001))
        self.assertEqual([one.queued for one in told], [True] * 1000)
        keys = {sent.header["lms_key"] for sent in self.gateway.submitted}
        self.assertEqual(len(keys), 1000)
        for sent in self.gateway.submitted:
            score = int(sent.body["student_response"]) / 8
            await self.call_back(sent.header, {"correct": False, "score": score, "msg": "x"})
        states = await self.lms.until_graded()
        self.assertEqual(
            {number: state.npoints for number, state in states.items()}, {n: n / 8 for n in range(1, 1001)}
        )

    async def test_dies(self) -> None:
        """Whoever waits for an LMS that dies is told so."""
        await self.start()
        await self.gateway.stop()
        told = Deferred.fromCoroutine(self.lms.submit_until_queued(7, "6.0"))
        await self.lms.stop()
        self.assertIn("the LMS ended", str(self.failureResultOf(told, AssertionError).value))
