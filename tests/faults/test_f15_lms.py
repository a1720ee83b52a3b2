"""F15: the LMS answers 500, 409 or nothing, and the updater is killed when the LMS has recorded a score.

The learner's state in the LMS changes once for each submission, whatever was delivered how often; a verdict on a
submission that the learner has replaced is ignored.
"""

from __future__ import annotations

import time
from signal import SIGKILL
from typing import Any

from tests.circle import GATEWAY, UPDATER, Asked, CircleTestCase, graded, pause, verdict_on
from tests.faults.case import FULL, FaultTestCase
from tests.faults.ledger import Count
from tests.lmsprocess import LMSProcess
from tests.real_lms import Callbacks, Work

ALL = 1_000_000
SINK_TIMEOUT = 0.5
TROUBLES: tuple[dict[str, Any], ...] = (
    {"status": 500},
    {"status": 409},
    {"delay": 3 * SINK_TIMEOUT},
    {"delay": 3 * SINK_TIMEOUT, "record": True},
    {"status": 500, "record": True},
)
LATER = 100_000
"""What a learner's second answer is greater by than the first one."""


class LMSFaultTests(CircleTestCase, FaultTestCase):
    """Learner N's answer is worth N / 8 points."""

    fault = "F15"
    timeout = 3600.0 if FULL else 300.0

    async def grade(self, asked: Asked) -> object:
        """Grade."""
        correct, score, msg = verdict_on(int(asked.answer))
        return {"correct": correct, "score": score, "msg": msg}

    async def test_lms(self) -> None:
        """Each score is recorded once and right; one for a submission that was replaced isn't recorded at all."""
        learners, kills = self.sized((8, 1), (100, 20))
        gateway = self.start_part(*GATEWAY)
        config = self.part_config(
            *UPDATER, updater={"refusal_attempts": 100}, **{"sink:lms": {"timeout": SINK_TIMEOUT}}
        )
        updater = self.start_again(config)
        agent = self.start_grading(self.grading_config())
        await gateway.port()
        await updater.ready("results")
        await agent.ready()

        self.wanted: dict[int, int] = {}
        recoveries = []
        for trouble in TROUBLES:
            before = await self.callbacks()
            await self.learners.answer_next(ALL, **trouble)
            await self.submit(learners)
            await self.until_callbacks(ordered=before.ordered + learners)
            recoveries.append(await self.recovered())
        for _ in range(kills):
            updater = await self.kill_after_post(updater, config, learners)
            recoveries.append(await self.recovered())
        replaced = await self.replace(learners)
        recoveries.append(await self.recovered())
        await self.see_all_right(kills, replaced, max(recoveries))

    async def submit(self, number: int) -> None:
        """New learners submit."""
        first = len(self.wanted) + 1
        await self.send({learner: learner for learner in range(first, first + number)})

    async def send(self, answers: dict[int, int]) -> None:
        """Learners submit; learner → answer."""
        self.wanted.update(answers)
        told = await self.learners.submit_all(
            Work(learner=learner, answer=str(answer)) for learner, answer in answers.items()
        )
        self.assertEqual([one for one in told if not one.queued or one.tries > 1], [])

    async def kill_after_post(self, updater: LMSProcess, config: str, number: int) -> LMSProcess:
        """Kill the updater when the LMS has recorded scores, and hasn't said so; returns the one after it."""
        before = await self.callbacks()
        await self.learners.answer_next(ALL, delay=60, record=True)
        await self.submit(number)
        await self.until_callbacks(taken=before.taken + 1)
        self.assertEqual(await updater.stop(SIGKILL), -SIGKILL)
        again = self.start_again(config)
        await again.ready("results")
        return again

    async def replace(self, number: int) -> int:
        """Learners submit again before the LMS has taken their verdicts; returns how many."""
        await self.learners.answer_next(ALL, status=500)
        before = await self.callbacks()
        await self.submit(number)
        again = sorted(self.wanted)[-number:]
        await self.until_callbacks(ordered=before.ordered + number)
        await pause(1.1)  # the LMS makes its key of the time in whole seconds
        await self.send({learner: learner + LATER for learner in again})
        await self.until_scores(len(self.wanted) + number)
        return number

    async def recovered(self) -> float:
        """Let the LMS be well; seconds until everybody has their verdict."""
        began = time.monotonic()
        await self.learners.answer_next(0)
        await self.learners.until_graded()
        await self.until_quiet()
        return time.monotonic() - began

    async def see_all_right(self, kills: int, replaced: int, recovery: float) -> None:
        """Count."""
        states, seen, rows = await self.learners.states(), await self.callbacks(), self.scores()
        right = {
            learner: graded(*verdict_on(answer), attempts=states[learner].attempts)
            for learner, answer in self.wanted.items()
        }
        count = Count(
            sent=len(self.wanted) + replaced,
            lost=sum(not (learner in states and states[learner].graded) for learner in right),
            duplicated=seen.repeated,
            unexpected=sum(states[learner] != right[learner] for learner in right) + seen.rejected + seen.raised,
            recovered=0,
        )
        self._note(seen.ordered + kills, count, recovery)
        self.assertEqual(states, right)
        self.assertEqual(seen.taken, len(self.wanted), "some state changed more than once")
        self.assertGreaterEqual(seen.stale, replaced)
        self.assertGreaterEqual(seen.repeated, kills)
        self.assertEqual(len(rows), count.sent)
        self.assertEqual(await self.dead_letters(), (0, 0))
        await self.assert_nothing_odd()

    async def callbacks(self) -> Callbacks:
        """What the LMS has seen."""
        return await self.learners.callbacks()

    async def until_callbacks(self, *, ordered: int = 0, taken: int = 0) -> None:
        """Wait until it has seen so much."""
        deadline = time.monotonic() + 60
        while (seen := await self.callbacks()).ordered < ordered or seen.taken < taken:
            self.assertLess(time.monotonic(), deadline, seen)
            await pause(0.05)
