"""F16: ``edxagent dead replay`` is killed, again and again, in the middle of its work."""

from __future__ import annotations

from signal import SIGKILL

from edxagent.model import Outcome
from tests.cli_process import start_cli, until
from tests.faults.case import FaultTestCase
from tests.faults.load import Collector

CONCURRENCY = 10


class ReplayKilledTests(FaultTestCase):
    """``kill -9``."""

    fault = "F16"

    async def test_killed(self) -> None:
        """What died of an outage is graded when it is replayed; a kill costs none, and repeats at most one."""
        letters, kills = self.sized((150, 3), (1000, 20))
        await self.begin(collecting=False)
        results = {self.results: self.ledger.verdict}
        self.collector = Collector(lambda prepare: self.link(self.config(), prepare=prepare), results)
        await self.collector.when_up()
        ids = set(await self.producer.send_many(letters))
        await self.let_die(letters)
        self.assertFalse(self.ledger.verdicts, "somebody was told of a failure")

        config = self.write_config(agent={"concurrency": CONCURRENCY})
        agent = self.start_agent(config)
        await agent.ready()
        killed = 0
        for kill in range(kills):
            run = start_cli(self, "dead", "replay", "--config", config)
            left = letters - (kill + self.random.random()) * letters / (kills + 1)
            while await self.ready_in(self.dead) > left:
                self.assertIsNone(run.status, run.out + run.err)
            killed += run.status is None
            run.kill(SIGKILL)
            self.assertEqual(await run.ends(), -SIGKILL)
        run = start_cli(self, "dead", "replay", "--config", config)
        self.assertEqual(await run.ends(), 0, run.out + run.err)
        self.assertFalse(self.ledger.dead)
        await self.check(times=killed, duplicates=kills)
        self.assertEqual(killed, kills, "there was nothing left to replay when it was killed")
        self.assertEqual(self.ledger.verdicts.keys(), ids)
        await agent.stop()
        self.assert_clean(agent)

    async def let_die(self, number: int) -> None:
        """Have an agent whose grader is never available, and wait until it has given everything up."""
        agent = await self.agent(
            agent={"concurrency": 50},
            grader={"kind": "failing", "outcome": str(Outcome.UNAVAILABLE)},
            retry={"delays": 0.5, "give_up_after": 1},
            breaker={"failures": 1000},
        )
        await until(lambda: agent.log.count("unavailable: ") > number, agent.run)
        while await self.held_in(self.dead) < number:
            self.assertTrue(agent.alive, agent.log)
        await agent.stop()
        self.assert_clean(agent)
