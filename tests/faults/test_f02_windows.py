"""F2: the agent is killed inside each window of a request's life: a patient grader and the fault proxy hold it there.

Nothing is lost in any of them. Only in the last two is a verdict with the broker already, and comes twice, with one id.
"""

from __future__ import annotations

from collections.abc import Callable
from signal import SIGKILL

from twisted.internet.defer import Deferred

from edxagent.graders.rehearsal import verdict
from edxagent.testing.http_server import RogueServer, Visit, response
from tests.agentprocess import AgentProcess
from tests.cli_process import until
from tests.faults.case import FaultTestCase
from tests.faults.proxy import FaultProxy

HELD = 8
"""Requests that are in the window at each kill."""


class PatientGrader:
    """Answers when it is told to.

    :ivar waiting: who waits for an answer.
    """

    def __init__(self) -> None:
        self.waiting: list[Visit] = []
        self.server = RogueServer(self.waiting.append)

    @classmethod
    async def start(cls, case: FaultTestCase) -> PatientGrader:
        """One for the length of a test."""
        from twisted.internet import reactor

        grader = cls()
        await grader.server.start(reactor)
        case.addCleanup(lambda: Deferred.fromCoroutine(grader.server.stop()))
        return grader

    def answer(self) -> None:
        """Answer everybody."""
        while self.waiting:
            self.waiting.pop().send(response(verdict()))


class WindowTests(FaultTestCase):
    """``kill -9`` at the worst moment."""

    async def set_up(self) -> None:
        """Have a grader that waits, and a proxy."""
        await super().set_up()
        await self.begin()
        self.grader = await PatientGrader.start(self)
        self.proxy = FaultProxy.start(self)
        self.kills = self.sized(2, 15)

    async def test_received(self) -> None:
        """Requests that the agent has, but hasn't begun to grade, come again, and only once."""
        self.fault = "F2 received"
        for _ in range(self.kills):
            agent = await self.starting(concurrency=1)
            await self.producer.send_many(2)
            await until(lambda: self.grader.waiting)
            while await self.ready_in(self.requests):
                self.assertTrue(agent.alive, agent.log)
            self.assertEqual(len(self.grader.waiting), 1, "the other one should wait for its turn")
            await self.kill(agent)
            await self.drain()
        await self.check(times=self.kills, duplicates=0)

    async def test_graded(self) -> None:
        """Requests whose verdict the broker didn't get are graded again, and have one verdict."""
        self.fault = "F2 graded"

        def in_window(ids: set[str], agent: AgentProcess, withheld: int) -> bool:
            return withheld > HELD * len(verdict())

        await self.stalled_and_killed("publish", "to_broker", in_window)
        await self.check(times=self.kills, duplicates=0)

    async def test_published(self) -> None:
        """Requests whose verdict wasn't confirmed are graded again, and have two verdicts, with one id."""
        self.fault = "F2 published"

        def in_window(ids: set[str], agent: AgentProcess, withheld: int) -> bool:
            return withheld > 0 and ids <= self.ledger.verdicts.keys()

        await self.stalled_and_killed("publish", "from_broker", in_window)
        count = await self.check(times=self.kills)
        self.assertEqual(count.duplicated, HELD * self.kills)

    async def test_confirmed(self) -> None:
        """So are requests whose ack didn't reach the broker."""
        self.fault = "F2 confirmed"

        def in_window(ids: set[str], agent: AgentProcess, withheld: int) -> bool:
            return withheld > 0 and all(f"graded: {id} " in agent.log for id in ids)

        await self.stalled_and_killed("consume", "to_broker", in_window)
        count = await self.check(times=self.kills)
        self.assertEqual(count.duplicated, HELD * self.kills)

    async def stalled_and_killed(
        self, purpose: str, direction: str, in_window: Callable[[set[str], AgentProcess, int], bool]
    ) -> None:
        """Have requests graded while one direction of one connection is stalled; when they are in the window, kill.

        :param in_window: is told their ids, the agent, and how many bytes the proxy withheld.
        """
        for _ in range(self.kills):
            agent = await self.starting(concurrency=HELD)
            ids = set(await self.producer.send_many(HELD))
            await until(lambda: len(self.grader.waiting) == HELD, agent.run)
            getattr(await self.connection(self.proxy, purpose), direction).stall()
            before = self.proxy.did["bytes withheld"]
            self.grader.answer()
            arrived = (ids, agent, before)
            await until(lambda arrived=arrived: in_window(*arrived[:2], self.withheld_since(arrived[2])), agent.run)  # type: ignore[misc]
            self.assertEqual(await self.held_in(self.requests), HELD, agent.log)
            await self.kill(agent)
            await self.drain()
        self.assertEqual(self.proxy.did["stalled"], self.kills)

    def withheld_since(self, before: int) -> int:
        """Bytes that the proxy withheld since it had withheld ``before``."""
        return self.proxy.did["bytes withheld"] - before

    async def starting(self, concurrency: int) -> AgentProcess:
        """An agent behind the proxy that asks the patient grader, and has done so once."""
        agent = await self.agent(
            agent={"concurrency": concurrency, "hold_limit": 600},
            broker={"urls": self.proxy.url, "call_timeout": 600, "confirm_timeout": 600},
            grader={"kind": "http", "url": self.grader.server.url, "timeout": 600},
        )
        await self.producer.send_many(1)
        await until(lambda: self.grader.waiting, agent.run)
        self.grader.answer()
        await self.until_ended()
        return agent

    async def kill(self, agent: AgentProcess) -> None:
        """Kill it. What the proxy withheld never arrives."""
        self.assertTrue(agent.alive, agent.log)
        self.assertEqual(await agent.stop(SIGKILL), -SIGKILL)
        self.proxy.reset()
        self.grader.waiting.clear()

    async def drain(self) -> None:
        """Have another agent grade what is there."""
        agent = await self.agent()
        await self.until_ended()
        await self.until_settled()
        await agent.stop()
        self.assert_clean(agent)
