"""Gateway, agent and updater are killed, again and again, while a thousand learners submit: every score is right."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from random import Random
from signal import SIGKILL
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, gatherResults

from tests.circle import GATEWAY, UPDATER, Asked, CircleTestCase, Score, graded, pause, verdict_on
from tests.cli_process import until
from tests.real_lms import Callbacks, LearnerState, Told

LEARNERS = 1000
KILLS_OF_EACH = 3
AGENT_CONCURRENCY, UPDATER_CONCURRENCY = 10, 20
FIRST_KILL, LAST_KILL = 50, 900
"""How many learners' submissions are queued when the first and the last kill happens."""


@define
class Program:
    """One of the three.

    :ivar process: the running one.
    :ivar killed_at: how many learners' submissions were queued at each of its kills.
    """

    config: str
    process: Any
    killed_at: list[int] = field(factory=list)


class KillTests(CircleTestCase):
    """``kill -9``."""

    async def grade(self, asked: Asked) -> object:
        """Grade; the answer is the learner's number."""
        await pause(self.pauses.uniform(0.02, 0.1))
        correct, score, msg = verdict_on(int(asked.answer))
        return {"correct": correct, "score": score, "msg": msg}

    async def test_killed(self) -> None:
        """Each of the three programs is killed three times in the middle of the work, and no score is lost or wrong."""
        seed = int(os.environ.get("KILL_SEED") or time.time_ns() % 1_000_000)
        self.random = Random(seed)
        self.pauses = Random(seed)
        await self.start_programs()
        # Whoever is killed between the LMS's answer and the ack has it delivered once more: more time for that.
        await self.learners.answer_next(100 * LEARNERS, delay=0.05, record=True)
        self.queued: list[Told] = []
        began = time.monotonic()
        submitting = gatherResults(
            [Deferred.fromCoroutine(self.learner_submits(number)) for number in range(1, LEARNERS + 1)]
        )
        await self.kill_in_between()
        told = dict(enumerate(await submitting, start=1))
        took = time.monotonic() - began
        await self.until_quiet()
        quiet = time.monotonic() - began
        self.count(seed, told, await self.learners.states(), self.scores(), await self.learners.callbacks())
        print(f"  {took:.1f} s to submit, {quiet:.1f} s until all was quiet")
        self.assertEqual(await self.dead_letters(), (0, 0))
        await self.assert_nothing_odd()

    async def start_programs(self) -> None:
        """Start the three."""
        gateway = self.part_config(*GATEWAY)
        updater = self.part_config(*UPDATER, updater={"concurrency": UPDATER_CONCURRENCY})
        agent = self.grading_config(agent={"concurrency": AGENT_CONCURRENCY})
        self.programs = {
            "gateway": Program(gateway, self.start_again(gateway)),
            "agent": Program(agent, self.start_grading(agent)),
            "updater": Program(updater, self.start_again(updater)),
        }
        for name in self.programs:
            await self.ready(name)

    async def ready(self, name: str) -> None:
        """Wait until a program is at work."""
        process = self.programs[name].process
        if name == "gateway":
            await process.port()
        else:
            await process.says("(publish): connected to ")
            await process.says("(consume): connected to " if name == "agent" else "(results): connected to ")

    async def learner_submits(self, number: int) -> Told:
        """A learner submits until they're told that it worked."""
        told = await self.learners.submit_until_queued(number, str(number))
        self.queued.append(told)
        return told

    async def kill_in_between(self) -> None:
        """Kill the programs in a random order at random moments, and start each again at once."""
        victims = [name for name in self.programs for _ in range(KILLS_OF_EACH)]
        self.random.shuffle(victims)
        moments = sorted(self.random.sample(range(FIRST_KILL, LAST_KILL), len(victims)))
        for name, moment in zip(victims, moments, strict=True):
            await until(lambda moment=moment: len(self.queued) >= moment)
            await self.ready(name)
            program = self.programs[name]
            await self.kill(program)
            self.assertLess(len(self.queued), LEARNERS, f"the {name} was killed too late")

    async def kill(self, program: Program) -> None:
        """Kill a program, and start it again."""
        program.killed_at.append(len(self.queued))
        program.process.send_signal(SIGKILL)
        self.assertEqual(await program.process.ended(), -SIGKILL)
        again = self.start_grading if program is self.programs["agent"] else self.start_again
        program.process = again(program.config)

    def count(
        self,
        seed: int,
        told: Mapping[int, Told],
        states: Mapping[int, LearnerState],
        rows: Sequence[Score],
        seen: Callbacks,
    ) -> None:
        """See that everybody has the score that they should have, in the LMS and in the database; print how it went.

        A gateway that is killed after the broker's confirm and before its answer leaves a submission behind that the
        learner was told has failed. It is graded, and has a row in the database, but the LMS ignores its verdict:
        the key is of another attempt.
        """
        by_learner: dict[int, list[Score]] = {number: [] for number in told}
        for row in rows:
            by_learner[row.learner].append(row)
        lost = [n for n in told if not (n in states and states[n].graded and by_learner[n])]
        wrong_states = [n for n in told if states[n] != graded(*verdict_on(n), attempts=told[n].tries)]
        wrong_rows = [row for row in rows if (row.correct, row.score, row.msg) != verdict_on(row.learner)]
        orphans = {n: len(of) - 1 for n, of in by_learner.items() if len(of) > 1}
        asked_again = len(self.grader.asked) - len(rows)
        resubmitted = sum(one.tries > 1 for one in told.values())
        killed = {name: program.killed_at for name, program in self.programs.items()}
        print(
            f"\n  {len(told)} learners, KILL_SEED={seed}; killed when so many were queued: {killed}"
            f"\n  lost {len(lost)}, wrong in the LMS {len(wrong_states)}, wrong in the database {len(wrong_rows)}"
            f"\n  {resubmitted} learners were refused and submitted again; {sum(orphans.values())} refused submissions"
            f" were queued all the same, and ignored by the LMS"
            f"\n  duplicates: {asked_again} graded again, {seen.repeated} delivered again, of {seen.received} callbacks"
        )
        self.assertEqual({name: len(at) for name, at in killed.items()}, dict.fromkeys(killed, KILLS_OF_EACH))
        self.assertEqual([one for one in told.values() if not one.queued], [])
        self.assertEqual((lost, wrong_states, wrong_rows), ([], [], []))
        self.assertEqual({n: more for n, more in orphans.items() if more >= told[n].tries}, {})
        self.assertEqual(seen.taken, LEARNERS)
        self.assertEqual(seen.received, seen.taken + seen.repeated + seen.stale)
        self.assertGreaterEqual(seen.stale, sum(orphans.values()))
        self.assertLessEqual(asked_again, KILLS_OF_EACH * AGENT_CONCURRENCY)
        self.assertLessEqual(seen.repeated, KILLS_OF_EACH * (AGENT_CONCURRENCY + UPDATER_CONCURRENCY))
