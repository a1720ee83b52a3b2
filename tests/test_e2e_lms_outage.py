"""The LMS is away, slow or confused, or the broker is gone while it submits: scores arrive late, and none is lost."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlencode

import treq
from twisted.internet.defer import Deferred, gatherResults

from edxagent.model import dead_queue_of
from tests.amqp_support import silenced
from tests.circle import Asked, CircleTestCase, graded, pause, verdict_on
from tests.cli_process import until
from tests.gateway_support import HOST
from tests.lmsprocess import PASSWORD, USER
from tests.real_lms import Told, Work

REFUSED_WITHIN = 5.0
"""Seconds in which a learner has to be told that their submission failed."""

NOT_NOW = "the grading system takes no submissions at the moment"
AT_ONCE = 20
"""Learners who submit at the same time."""

PAGE = "<html><body><h1>We'll be back soon</h1></body></html>"


class OutageTestCase(CircleTestCase):
    """A test in which learner N's answer is worth N / 8 points."""

    async def grade(self, asked: Asked) -> object:
        """Grade."""
        correct, score, msg = verdict_on(int(asked.answer))
        return {"correct": correct, "score": score, "msg": msg}

    async def everybody_submits(self, *learners: int) -> None:
        """Let learners submit, all at once."""
        told = await self.learners.submit_all(Work(learner=number, answer=str(number)) for number in learners)
        self.assertEqual([one for one in told if not one.queued], [])

    async def assert_all_right(self, *learners: int) -> None:
        """Every learner has their score, in the LMS and in the database.

        The database has one for each of their submissions, and may have one for each that they were told had failed.
        """
        await self.learners.until_graded(*learners)
        await self.until_quiet()
        states, rows = await self.learners.states(), self.scores()
        self.assertEqual(states, {n: graded(*verdict_on(n), attempts=states[n].attempts) for n in learners})
        self.assertEqual([row for row in rows if (row.correct, row.score, row.msg) != verdict_on(row.learner)], [])
        count = Counter(row.learner for row in rows)
        self.assertEqual(set(count), set(learners))
        self.assertEqual([n for n in learners if count[n] > states[n].attempts], [])
        self.assertEqual((await self.learners.callbacks()).taken, len(learners))
        await self.assert_nothing_odd()


class LMSOutageTests(OutageTestCase):
    """The LMS doesn't take verdicts for a while."""

    async def test_away(self) -> None:
        """An LMS that refuses connections has all the scores, each once, when it's back; the database doesn't wait."""
        await self.close_circle()
        lms = self.processes[0]
        await self.learners.close()
        everybody = range(1, 101)
        await self.everybody_submits(*everybody)
        self.assertEqual(len(await self.until_scores(len(everybody))), len(everybody))
        await lms.says("Connection refused", times=20)
        self.assertFalse([n for n, state in (await self.learners.states()).items() if not state.queued])
        await self.learners.open()
        await self.assert_all_right(*everybody)
        seen = await self.learners.callbacks()
        self.assertEqual((seen.repeated, seen.stale), (0, 0))
        self.assertEqual(await self.dead_letters(), (0, 0))

    async def test_confused(self) -> None:
        """An LMS that answers 500, 503 and a page with 200 in turn is asked again, until each score is taken."""
        await self.close_circle()
        everybody = range(1, 31)
        for status, body in ((500, "<h1>Server Error</h1>"), (503, ""), (200, PAGE)):
            before = (await self.learners.callbacks()).ordered
            await self.learners.answer_next(1_000_000, status=status, body=body)
            if before == 0:
                await self.everybody_submits(*everybody)
            await self.until_ordered(before + 5)
        self.assertEqual((await self.learners.callbacks()).taken, 0)
        await self.learners.answer_next(0)
        await self.assert_all_right(*everybody)
        self.assertEqual(await self.dead_letters(), (0, 0))

    async def test_recorded_and_unanswered(self) -> None:
        """Verdicts that the LMS takes, and then answers 500, are sent again, and it ignores them."""
        await self.close_circle()
        await self.learners.answer_next(20, status=500, record=True)
        await self.everybody_submits(*range(1, 31))
        await self.assert_all_right(*range(1, 31))
        seen = await self.learners.callbacks()
        self.assertEqual((seen.ordered, seen.repeated, seen.stale), (20, 20, 0))

    async def test_slow(self) -> None:
        """An LMS that takes 9 s is waited for, and gets each score once."""
        # By default it would have 10 s, which leaves one second for whatever else this machine is busy with.
        await self.close_circle(**{"sink:lms": {"timeout": 14}})
        await self.learners.answer_next(20, delay=9, record=True)
        await self.everybody_submits(*range(1, 21))
        await self.assert_all_right(*range(1, 21))
        seen = await self.learners.callbacks()
        self.assertEqual((seen.received, seen.repeated), (20, 0))

    async def test_too_slow(self) -> None:
        """One that takes longer than we wait is asked again; the score that it took meanwhile stays."""
        await self.close_circle(**{"sink:lms": {"timeout": 2}})
        await self.learners.answer_next(10, delay=6, record=True)
        await self.everybody_submits(*range(1, 31))
        await self.assert_all_right(*range(1, 31))
        seen = await self.learners.callbacks()
        self.assertEqual((seen.repeated, seen.stale), (10, 0))

    async def test_refused_for_good(self) -> None:
        """A verdict that the LMS answers 404 three times is parked with the reason; others aren't held up."""
        await self.close_circle()
        await self.learners.answer_next(1_000_000, status=404, body="<h1>Page not found</h1>")
        await self.everybody_submits(1)
        (parked,) = await self.collect(dead_queue_of(self.results), 1)
        self.assertEqual((await self.learners.callbacks()).received, 3)
        self.assertIn("404", parked.properties.headers["x-error"])
        await self.learners.answer_next(0)
        await self.everybody_submits(2)
        states = await self.learners.until_graded(2)
        self.assertEqual(states[2], graded(*verdict_on(2)))
        self.assertTrue(states[1].queued)
        rows = {row.learner: row for row in await self.until_scores(2)}
        self.assertEqual(rows[1].submission, parked.properties.message_id)
        self.assertEqual(rows[1].score, verdict_on(1)[1])

    async def until_ordered(self, count: int) -> None:
        """Wait until so many callbacks were answered out of order."""
        deadline = time.monotonic() + 60
        while (seen := await self.learners.callbacks()).ordered < count:
            self.assertLess(time.monotonic(), deadline, seen)
            await pause(0.1)


class BrokerOutageTests(OutageTestCase):
    """The broker is gone, or silent, while learners submit."""

    async def set_up(self) -> None:
        """Keep what learners are told."""
        await super().set_up()
        self.told: list[Told] = []
        self.waited: list[float] = []

    @property
    def refused(self) -> int:
        """How often learners were told that it failed."""
        return sum(not told.queued for told in self.told)

    async def test_killed(self) -> None:
        """Learners hear in time that it failed; what was acknowledged is graded once the broker is back."""
        await self.close_circle()
        await until(self.known_to_the_disk)
        submitting = self.submit_patiently(80)
        await until(lambda: len(self.grader.asked) >= 20)
        await self.node.kill()
        await until(lambda: self.refused >= AT_ONCE)
        await self.node.start()
        await submitting
        await self.assert_told_in_time("killed")
        await self.assert_all_right(*range(1, 81))

    async def test_silent(self) -> None:
        """So it is with a broker that falls silent, and then takes what it was sent while it was."""
        await self.close_circle()
        submitting = self.submit_patiently(80)
        await until(lambda: len(self.grader.asked) >= 20)
        async with silenced(self.node):
            await until(lambda: self.refused >= AT_ONCE)
        await submitting
        await self.assert_told_in_time("silent")
        await self.assert_all_right(*range(1, 81))

    def submit_patiently(self, learners: int) -> Deferred[Any]:
        """Let learners submit, as many at once as the LMS has threads; who is refused submits again."""
        return gatherResults(
            [
                Deferred.fromCoroutine(self.submit_in_turn(range(1 + first, 1 + learners, AT_ONCE)))
                for first in range(AT_ONCE)
            ]
        )

    async def submit_in_turn(self, learners: Iterable[int]) -> None:
        """Let learners submit, one after the other, and measure how long they wait for an answer."""
        for learner in learners:
            queued = False
            while not queued:
                began = time.monotonic()
                told = await self.learners.submit(learner, str(learner))
                self.waited.append(time.monotonic() - began)
                self.told.append(told)
                queued = told.queued
                if not queued:
                    await pause(1.1)  # for another key

    async def assert_told_in_time(self, what: str) -> None:
        """Every learner was told what became of their submission within the time for that."""
        reasons = {told.message for told in self.told if not told.queued}
        slowest = max(self.waited)
        print(
            f"\n  broker {what}: {self.refused} of {len(self.told)} submissions refused; slowest answer {slowest:.2f} s"
        )
        self.assertEqual([reason for reason in reasons if NOT_NOW not in reason], [])
        self.assertLess(slowest, REFUSED_WITHIN)


class PollerTests(OutageTestCase):
    """A grader that polls, as xqueue-watcher does, works beside an agent."""

    async def grade(self, asked: Asked) -> object:
        """Grade at the leisure of a poller."""
        await pause(0.05)
        return await super().grade(asked)

    async def test_one_queue(self) -> None:
        """Both take from one queue, and each learner has their score, whoever graded."""
        await self.close_circle(agent={"agent": {"concurrency": 1}})
        everybody = range(1, 201)
        polling = [True]
        pollers = [Deferred.fromCoroutine(self.poll(lambda: bool(polling))) for _ in range(2)]
        await self.everybody_submits(*everybody)
        await self.assert_all_right(*everybody)
        polling.clear()
        polled = sum(await gatherResults(pollers))
        self.assertEqual(polled + len(self.grader.asked), len(everybody))
        print(f"\n  one queue: an agent graded {len(self.grader.asked)}, two pollers {polled}")
        self.assertGreater(polled, 10)
        self.assertGreater(len(self.grader.asked), 10)

    async def poll(self, wanted: Callable[[], bool]) -> int:
        """Fetch, grade and answer as long as ``wanted``. Returns how many were graded."""
        base = f"http://{HOST}:{self.gateway_port}/xqueue"
        question = f"{base}/get_submission/?{urlencode({'queue_name': self.requests})}"
        cookies: Any = None
        count = 0
        while wanted():
            asked = await treq.get(question, cookies=cookies, allow_redirects=False, persistent=False)
            if asked.code == 302:
                form = {"username": USER, "password": PASSWORD}
                login = await treq.post(f"{base}/login/", data=form, persistent=False)
                self.assertEqual(await login.json(), {"return_code": 0, "content": "Logged in"})
                cookies = login.cookies()
                continue
            reply = await asked.json()
            if reply["return_code"]:
                await pause(0.1)
                continue
            work = json.loads(reply["content"])
            body = json.loads(work["xqueue_body"])
            correct, score, msg = verdict_on(int(body["student_response"]))
            verdict = json.dumps({"correct": correct, "score": score, "msg": msg})
            form = {"xqueue_header": work["xqueue_header"], "xqueue_body": verdict}
            put = await treq.post(
                f"{base}/put_result/", data=form, cookies=cookies, allow_redirects=False, persistent=False
            )
            self.assertEqual(await put.json(), {"return_code": 0, "content": ""})
            count += 1
        return count
