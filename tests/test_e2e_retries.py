"""A grader that is down, busy or broken for a while, and what the real agent makes of it, on a real broker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from twisted.internet.task import deferLater

from edxagent.amqp.delivery import Delivery
from edxagent.testing.graders import CORRECT
from edxagent.testing.http_server import Behaviour, RogueServer, Visit, answering
from edxagent.verdict import check_verdict
from tests.agentprocess import AgentProcess, AgentTestCase
from tests.cli_process import until
from tests.outcomes import SECRETS, request

POLL = 0.05
GOOD = answering(CORRECT)
DOWN = answering(b"", "503 Service Unavailable")


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """One after the other, a request each; the last one for all that follow."""
    remaining = list(behaviours)

    def behave(visit: Visit) -> None:
        (remaining.pop(0) if len(remaining) > 1 else remaining[0])(visit)

    return behave


class RetryTestCase(AgentTestCase):
    """A test with an agent, and a web server that grades or doesn't.

    :ivar server: the web server.
    """

    async def set_up(self) -> None:
        """Start the web server."""
        from twisted.internet import reactor

        await super().set_up()
        self.server = RogueServer(GOOD)
        await self.server.start(reactor)
        self.addCleanup(self.server.stop)

    async def served(self, behaviour: Behaviour, **sections: Mapping[str, object]) -> AgentProcess:
        """Have the web server behave so, and an agent ask it."""
        self.server.behaviour = behaviour
        grader = {"kind": "http", "url": self.server.url, "timeout": 5}
        return await self.agent(**{"grader": grader, **sections})

    async def submit(self, count: int = 1) -> None:
        """Publish so many requests, named by number."""
        for number in range(count):
            await self.publish(request(), message_id=str(number), type="grading.request")

    async def ends(self, agent: AgentProcess) -> None:
        """Nothing is left in any queue of ours, and the agent was quiet about it."""
        await self.until_settled()
        self.assertEqual((await self.ready_in(self.dead), await self.ready_in(self.results)), (0, 0))
        self.assertEqual(await agent.stop(), -15)
        self.assert_clean(agent, SECRETS)

    async def until_ready(self, count: int) -> None:
        """Wait until so many requests are ready in the queue, for whichever agent."""
        from twisted.internet import reactor

        deadline = reactor.seconds() + 30  # type: ignore[attr-defined]
        while (ready := await self.ready_in(self.requests)) != count:
            self.assertLess(reactor.seconds(), deadline, f"{ready} requests are ready, not {count}")  # type: ignore[attr-defined]
            await deferLater(reactor, POLL)  # type: ignore[arg-type]

    def told(self, result: Delivery) -> tuple[str, float, int]:
        """A result's outcome and score, and the attempt that it is of."""
        verdict = check_verdict(json.loads(result.body)["xqueue_body"].encode(), max_size=1 << 20)
        headers: Mapping[str, Any] = result.properties.headers
        return headers["x-outcome"], verdict.score, headers["x-attempt"]


class LadderTests(RetryTestCase):
    """One submission after another attempt."""

    async def test_crashes_twice(self) -> None:
        """It is a dead letter then, with the history of both, and the learner's verdict says that it was the second."""
        agent = await self.agent(grader={"kind": "failing", "outcome": "crashed"}, retry={"delays": "0.3 600"})
        await self.submit()
        (dead,) = await self.collect(self.dead, 1)
        (result,) = await self.collect(self.results, 1)
        headers = dead.properties.headers
        self.assertTrue(dead.body == request(), "the body isn't verbatim")
        self.assertEqual((dead.properties.message_id, dead.properties.type), ("0", "grading.request"))
        self.assertEqual((headers["x-attempt"], headers["x-failures"]), (2, {"crashed": 2}))
        self.assertLess(headers["x-first-failed"] + 0.3, headers["x-time"])
        first, second = headers["x-history"]
        self.assertRegex(first, r"^1 crashed \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ e2e: a rehearsed failure")
        self.assertRegex(second, r"^2 crashed ")
        self.assertNotIn("x-death", headers)
        self.assertEqual((result.properties.message_id, self.told(result)), ("0", ("crashed", 0.0, 2)))
        self.assertTrue(headers["x-told-learner"])
        await self.ends(agent)

    async def test_graded_at_last(self) -> None:
        """Unavailable twice, then graded: the learner has the grade and hears of nothing else."""
        agent = await self.served(in_turn(DOWN, DOWN, GOOD), retry={"delays": "0.2 0.4"})
        await self.submit()
        (result,) = await self.collect(self.results, 1)
        self.assertEqual(self.told(result), ("graded", 1.0, 3))
        self.assertEqual(len(self.server.asked), 3)
        await self.ends(agent)

    async def test_retry_after(self) -> None:
        """A grader that asks for two seconds is asked again after the next pause that is as long."""
        times: list[float] = []

        def behave(visit: Visit) -> None:
            from twisted.internet import reactor

            times.append(reactor.seconds())  # type: ignore[attr-defined]
            busy = answering(b"", "429 Too Many Requests", ["Retry-After: 2"])
            (busy if len(times) == 1 else GOOD)(visit)

        agent = await self.served(behave, retry={"delays": "0.2 3 600"})
        await self.submit()
        (result,) = await self.collect(self.results, 1)
        self.assertEqual(self.told(result), ("graded", 1.0, 2))
        self.assertGreaterEqual(times[1] - times[0], 2.9)
        await agent.says("answered 429; tried again in 3 s")
        await self.ends(agent)

    async def test_given_up(self) -> None:
        """Unavailable for too long it is a dead letter. No learner gets a 0, so a replay can still grade it."""
        agent = await self.served(DOWN, retry={"delays": 0.3, "give_up_after": 1})
        await self.submit()
        (dead,) = await self.collect(self.dead, 1)
        headers = dead.properties.headers
        self.assertEqual((headers["x-outcome"], headers["x-told-learner"]), ("unavailable", False))
        self.assertGreaterEqual(headers["x-time"] - headers["x-first-failed"], 1)
        self.assertEqual(headers["x-failures"], {"unavailable": headers["x-attempt"]})
        await self.ends(agent)

    async def test_waits_without_an_agent(self) -> None:
        """What waits for another attempt waits on the broker: it is graded though its agent was killed meanwhile."""
        agent = await self.served(in_turn(DOWN, GOOD), retry={"delays": 8})
        await self.submit()
        await agent.says("tried again in 8 s")
        await self.until_settled()
        self.assertEqual(await agent.stop(9), -9)
        await self.until_ready(1)
        agent = await self.served(GOOD, retry={"delays": 8})
        (result,) = await self.collect(self.results, 1)
        self.assertEqual(self.told(result), ("graded", 1.0, 2))
        await self.ends(agent)


class BreakerTests(RetryTestCase):
    """A grader that is down, and a queue full of submissions."""

    COUNT = 20

    async def down(self, agent: AgentProcess) -> None:
        """See the grader fail three times, and be left alone: all submissions are ready for another agent."""
        await agent.says("the grader failed 3 times in a row: ")
        await self.until_ready(self.COUNT)
        self.assertEqual(len(self.server.asked), 3)

    async def test_outage(self) -> None:
        """Left alone after three failures, tried with one submission at a time; in the end everybody has a grade."""
        agent = await self.served(
            DOWN,
            agent={"concurrency": 1},
            retry={"delays": 1},
            breaker={"failures": 3, "pause": 8, "longest_pause": 8},
        )
        await self.submit(self.COUNT)
        await self.down(agent)
        await agent.says("the grader failed again: ")
        self.assertEqual(len(self.server.asked), 4)
        await self.until_ready(self.COUNT)
        self.assertEqual(len(self.server.asked), 4)
        self.server.behaviour = GOOD
        await agent.says("the grader's breaker is closed: the grader answers")
        results = await self.collect(self.results, self.COUNT)
        self.assertEqual({result.properties.message_id for result in results}, set(map(str, range(self.COUNT))))
        self.assertEqual({self.told(result)[:2] for result in results}, {("graded", 1.0)})
        self.assertEqual(len(self.server.asked), self.COUNT + 4)
        await self.ends(agent)

    async def test_other_agents(self) -> None:
        """What an agent with a dead grader leaves, another one takes."""
        await self.served(
            DOWN, agent={"name": "unlucky", "concurrency": 1}, retry={"delays": 1}, breaker={"failures": 3, "pause": 60}
        )
        await self.submit(self.COUNT)
        await until(lambda: len(self.server.asked) >= 3)
        await self.until_ready(self.COUNT)
        await self.agent(agent={"name": "lucky"}, grader={"kind": "fixed"})
        results = await self.collect(self.results, self.COUNT)
        self.assertEqual({result.properties.headers["x-agent"] for result in results}, {"lucky"})
        self.assertEqual(len(self.server.asked), 3)

    async def test_stopped_meanwhile(self) -> None:
        """An agent whose grader is left alone, or being tried, stops at once, and leaves everything in the queue."""
        for pause, words in ((60, "breaker is open"), (0.1, "breaker is half-open")):
            self.server.asked.clear()
            agent = await self.served(
                DOWN, retry={"delays": 1}, breaker={"failures": 1, "pause": pause, "longest_pause": 60}
            )
            await self.submit()
            await agent.says(words)
            self.assertEqual(await agent.stop(), -15)
            self.assert_clean(agent, SECRETS)
            self.assertNotIn("taken again", agent.log)
        await self.until_ready(2)


class StuckTests(RetryTestCase):
    """Where the broker doesn't take what follows."""

    async def test_results_queue_gone(self) -> None:
        """While there is no queue for verdicts none is graded; when there is one again, all are told, none twice."""
        agent = await self.served(GOOD, agent={"concurrency": 1})
        await self.broker.delete_queue(self.results)
        await self.submit(10)
        await agent.says(f"no more requests are taken: grading.results can't be reached with the key {self.results}: ")
        await self.until_ready(9)
        self.assertEqual((len(self.server.asked), await self.held_in(self.requests)), (1, 10))
        await self.broker.declare_queue(self.results, arguments={"x-queue-type": "quorum"})
        await self.broker.bind_queue(self.results, "grading.results", self.results)
        await agent.says("requests are taken again")
        results = await self.collect(self.results, 10)
        self.assertEqual(len({result.properties.message_id for result in results}), 10)
        self.assertEqual(len(self.server.asked), 10)
        await self.ends(agent)
