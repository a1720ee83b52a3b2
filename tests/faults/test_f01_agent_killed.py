"""F1: the agent is killed, again and again, in the middle of its work."""

from __future__ import annotations

from signal import SIGKILL

from tests.cli_process import until
from tests.faults.case import FaultTestCase

CONCURRENCY = 10


class AgentKilledTests(FaultTestCase):
    """``kill -9``."""

    fault = "F1"

    async def test_killed(self) -> None:
        """Killed 50 times in 10,000 submissions and started again, the agent leaves none without a verdict."""
        requests, kills = self.sized((600, 3), (10_000, 50))
        config = self.write_config(
            agent={"concurrency": CONCURRENCY}, grader={"kind": "sleep", "min": 0.005, "max": 0.03}
        )
        await self.begin()
        await self.producer.send_many(requests)
        killed = 0
        for kill in range(kills):
            agent = self.start_agent(config)
            enough = (kill + self.random.random()) * requests / (kills + 1)
            await until(lambda enough=enough: len(self.ledger.verdicts) > enough, agent.run)  # type: ignore[misc]
            killed += bool(self.ledger.missing)
            self.assertEqual(await agent.stop(SIGKILL), -SIGKILL)
        agent = self.start_agent(config)
        await self.check(times=killed, duplicates=CONCURRENCY * kills)
        self.assertEqual(killed, kills, "there was nothing left to grade when it was killed")
        await agent.stop()
        self.assert_clean(agent)
