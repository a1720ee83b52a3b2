"""F9: the agent is told by HUP to go by another configuration, again and again, under load; some can't be used."""

from __future__ import annotations

from pathlib import Path
from signal import SIGHUP

from tests.agentprocess import AgentProcess, Sections
from tests.cli_process import until
from tests.faults.case import FaultTestCase

GOOD: tuple[dict[str, Sections], ...] = (
    {"agent": {"concurrency": 1}},
    {"agent": {"concurrency": 16, "hold_limit": 1}},
    {"grader": {"kind": "sleep", "min": 0, "max": 0.02}},
    {"grader": {"kind": "fixed", "timeout": 5}},
    {"retry": {"delays": "1 5", "crash_attempts": 5}},
    {"breaker": {"failures": 3}},
)
BAD: tuple[tuple[dict[str, Sections], str], ...] = (
    ({"agent": {"concurrency": 0}}, "[agent] concurrency"),
    ({"agent": {"concurency": 3}}, "concurency: unknown key"),
    ({"grader": {"kind": "sleep", "min": 2, "max": 1}}, "[grader] max is below min"),
    ({"queues": {"a b": "weight=x"}}, "[queues] a b"),
    ({"retry": {"delays": "soon"}}, "[retry] delays"),
)
"""What is wrong, and the place that the log must name."""
STAYS = "the configuration stays as it is"


class ReloadTests(FaultTestCase):
    """A good file is used, a bad one changes nothing and is complained of; no submission notices either."""

    fault = "F9"

    async def test_reloads(self) -> None:
        """Nothing is lost, and nothing graded twice."""
        times = self.sized(12, 200)
        await self.begin()
        self.path = Path(self.config_with({}))
        agent = self.start_agent(str(self.path))
        await agent.ready()
        self.producer.keep_up()
        for number in range(times):
            if number % 2:
                await self.change(agent, self.random.choice(GOOD))
            else:
                await self.refuse(agent, *self.random.choice(BAD))
            graded = len(self.ledger.verdicts)
            await until(lambda enough=graded + 20: len(self.ledger.verdicts) >= enough, agent.run)
        await self.producer.stop()
        await self.check(times=times, duplicates=0)
        await agent.stop()
        self.assert_clean(agent)

    async def change(self, agent: AgentProcess, sections: dict[str, Sections]) -> None:
        """Have it go by a good file."""
        answers = ("the configuration has changed", "nothing changed")
        before = sum(map(agent.log.count, answers))
        await self.hang_up(agent, sections)
        await until(lambda: sum(map(agent.log.count, answers)) > before, agent.run)

    async def refuse(self, agent: AgentProcess, sections: dict[str, Sections], place: str) -> None:
        """Offer it a bad file."""
        before = agent.log.count(STAYS), agent.log.count(place)
        await self.hang_up(agent, sections)
        await until(lambda: agent.log.count(STAYS) > before[0] and agent.log.count(place) > before[1], agent.run)

    async def hang_up(self, agent: AgentProcess, sections: dict[str, Sections]) -> None:
        """Write a file and tell the agent."""
        Path(self.config_with(sections)).rename(self.path)
        agent.send_signal(SIGHUP)

    def config_with(self, sections: dict[str, Sections]) -> str:
        """A file, with the same journal each time: another one needs a restart."""
        return self.write_config(**{"quarantine": {"journal": self.journal}, **sections})
