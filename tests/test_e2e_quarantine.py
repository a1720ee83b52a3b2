"""Submissions that kill the real agent, and neighbours that only die with it: each gets what it deserves."""

from __future__ import annotations

import json
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from tests.agentprocess import AgentProcess, AgentTestCase, Sections
from tests.amqp_support import Consumer
from tests.cli_process import until
from tests.outcomes import request
from tests.poison import KIND, Diary

NEIGHBOURS = 100
MAX_STARTS = 3


class Supervisor:
    """Starts an agent again when it has died, until it is told not to.

    :ivar deaths: how often it has died.
    """

    def __init__(self, case: AgentTestCase, config: str) -> None:
        self._case = case
        self._config = config
        self._wanted = True
        self.deaths = 0
        self.agents: list[AgentProcess] = []
        self.done = Deferred.fromCoroutine(self._supervise())

    async def _supervise(self) -> None:
        while self._wanted:
            agent = self._case.start_agent(self._config)
            self.agents.append(agent)
            self._case.assertIn(await agent.ended(), (-SIGKILL, -SIGTERM), agent.log)
            self.deaths += self._wanted

    async def stop(self) -> None:
        """Stop the agent, in order, for good."""
        self._wanted = False
        self.agents[-1].send_signal(SIGTERM)
        await self.done


class QuarantineTestCase(AgentTestCase):
    """A test with a grader that writes a diary."""

    timeout = 240.0

    async def set_up(self) -> None:
        """Have a diary."""
        await super().set_up()
        self.diary = Diary(Path(self.mktemp()).absolute())

    def write_config(self, **sections: Sections) -> str:
        """As for any agent, with the grader that dies of some."""
        return super().write_config(**{"grader": {"kind": KIND, "diary": self.diary.path}, **sections})

    async def submit(self, **answers: str) -> None:
        """Send submissions, by their ids."""
        inner = {"grader_payload": "", "student_info": "{}"}
        bodies = {id: request(inner={**inner, "student_response": answer}) for id, answer in answers.items()}
        await gatherResults([Deferred.fromCoroutine(self.publish(body, message_id=id)) for id, body in bodies.items()])

    async def watch(self, queue: str) -> Consumer:
        """Take all that comes to a queue, from now on."""
        consumer = Consumer()
        await (await self.channel()).consume(queue, consumer.receive, consumer.cancelled, prefetch=100)
        return consumer


class PoisonTests(QuarantineTestCase):
    """A submission that kills each agent that grades it."""

    async def check(self, agents: int = 1) -> None:
        """Submit it among good ones to agents that are started again whenever they die; see what becomes of each."""
        config = self.write_config(quarantine={"journal": self.journal, "max_starts": MAX_STARTS})
        first = self.start_agent(config)
        await first.ready()
        self.assertEqual(await first.stop(), -SIGTERM)  # it has declared the queues
        good = {f"good-{number}": "right" for number in range(NEIGHBOURS)}
        half = NEIGHBOURS // 2
        await self.submit(**dict(list(good.items())[:half]), bad="poison", **dict(list(good.items())[half:]))
        results, dead = await self.watch(self.results), await self.watch(self.dead)
        supervisors = [Supervisor(self, config) for _ in range(agents)]
        await until(lambda: len(results.deliveries) >= NEIGHBOURS and dead.deliveries, patience=180)
        await self.until_settled()
        for supervisor in supervisors:
            await supervisor.stop()

        verdicts = [str(each.properties.message_id) for each in results.deliveries]
        self.assertEqual(set(verdicts), set(good))
        self.assertEqual({each.properties.headers["x-outcome"] for each in results.deliveries}, {"graded"})
        (letter,) = dead.deliveries
        self.assertEqual(letter.properties.message_id, "bad")
        self.assertEqual(letter.properties.headers["x-outcome"], "quarantined")
        self.assertFalse(letter.properties.headers["x-told-learner"])
        self.assertEqual(json.loads(letter.body)["xqueue_header"], json.loads(request())["xqueue_header"])

        starts, deaths = self.diary.starts("bad"), sum(supervisor.deaths for supervisor in supervisors)
        self.assertEqual(starts, deaths)
        # One that was started before others died of it doesn't know that yet.
        self.assertTrue(MAX_STARTS <= starts < MAX_STARTS + agents, starts)
        if agents == 1:
            neighbours = self.diary.neighbours()
            self.assertEqual({one: with_it for one, with_it in neighbours.items() if with_it}, {})
            self.assertIn("bad", neighbours)
            self.assertGreater(len(neighbours), 1, "nobody was beside it the first time")
        log = "".join(agent.log for supervisor in supervisors for agent in supervisor.agents)
        self.assertEqual(log.count("bad isn't graded any more but becomes a dead letter"), 1)
        self.assertNotIn("Traceback", log)

    async def test_among_neighbours(self) -> None:
        """It becomes a dead letter after ``max_starts`` deaths; whoever was near was graded, suspects alone."""
        await self.check()

    async def test_delivery_limit(self) -> None:
        """Nothing vanishes either where the broker drops what it has delivered 20 times, as RabbitMQ 4 does."""
        policy = ("set_policy", self.requests, f"^{self.requests}$", '{"delivery-limit":20}', "--apply-to", "queues")
        await self.node.rabbitmqctl(*policy)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.node.rabbitmqctl("clear_policy", self.requests)))
        await self.check()
        listed = await self.node.rabbitmqctl("list_queues", "name", "policy")
        self.assertIn(f"{self.requests}\t{self.requests}", listed.splitlines())

    async def test_two_agents(self) -> None:
        """Two agents that share a journal die of it hardly more often than one, and nobody else suffers."""
        await self.check(agents=2)


class InnocentTests(QuarantineTestCase):
    """A submission that agents die with, but not of."""

    async def during(self, agent: AgentProcess, submission: str) -> None:
        """Wait until the agent grades it."""
        await until(lambda: self.diary.being_graded(submission), agent.run)

    async def test_killed_by_hand(self) -> None:
        """Three kills in the middle of it don't convict it: it is graded in the end."""
        config = self.write_config()
        agent = self.start_agent(config)
        await agent.ready()
        await self.submit(unlucky="slow")
        for death in range(3):
            await self.during(agent, "unlucky")
            agent.send_signal(SIGKILL)
            self.assertEqual(await agent.ended(), -SIGKILL)
            self.diary.path.write_text(self.diary.path.read_text() + "0 ends unlucky\n")
            agent = self.start_agent(config)
            await agent.says(f"unlucky is graded alone: agents that died while they graded it: {death + 1};")
        (result,) = await self.collect(self.results, 1)
        self.assertEqual(result.properties.headers["x-outcome"], "graded")
        await self.until_settled()
        self.assertEqual(await agent.stop(), -SIGTERM)
        self.assertEqual(await self.ready_in(self.dead), 0)
        self.assertEqual((self.journal / "deaths").read_text(), "")
        self.assert_clean(agent)

    async def stopped(self, answer: str, *signals: int, **sections: Any) -> None:
        """Stop an agent while it grades; the next one suspects nobody."""
        agent = await self.agent(**sections)
        await self.submit(unlucky=answer)
        await self.during(agent, "unlucky")
        for number in signals:
            agent.send_signal(number)
            await agent.says("waiting for 1 submissions")
        self.assertEqual(await agent.ended(), -SIGTERM)
        self.assertEqual(await self.held_in(self.requests), 1)
        self.assertEqual((self.journal / "1").read_bytes(), b"")
        again = await self.agent(**{**sections, "grader": {"kind": "fixed"}})
        await self.collect(self.results, 1)
        self.assertNotIn("alone", again.log)
        self.assertEqual(await again.stop(), -SIGTERM)

    async def test_drain_timeout(self) -> None:
        """An agent that stopped waiting for a submission hasn't died of it."""
        await self.stopped("slow", SIGTERM, agent={"drain_timeout": 0.2})

    async def test_second_signal(self) -> None:
        """Nor one that had to hurry."""
        await self.stopped("slow", SIGTERM, SIGTERM)

    async def test_stubborn_grader(self) -> None:
        """Nor one whose grader didn't let go."""
        await self.stopped("stubborn", SIGTERM, agent={"drain_timeout": 0.2})
