"""F6: the broker won't have a verdict: it nacks it, its queue is gone, or nothing leads there."""

from __future__ import annotations

import time

from edxagent.model import RESULTS_EXCHANGE
from tests.agentprocess import AgentProcess
from tests.cli_process import until
from tests.faults.case import FaultTestCase

REQUESTS = 40
CONCURRENCY = 4
FULL_AT = 5
"""Verdicts that the results queue takes; RabbitMQ's quorum queues take a few more."""


class RefusedTests(FaultTestCase):
    """Requests stay unacked, none is taken any more, the log says why; when all is well again, all are drained."""

    async def test_nacked(self) -> None:
        """The results queue is full."""
        self.fault = "F6 nacked"
        full = {"x-queue-type": "quorum", "x-max-length": FULL_AT, "x-overflow": "reject-publish"}
        await self.broker.declare_queue(self.results, arguments=full)
        await self.begin(collecting=False)
        agent = await self.agent(agent={"concurrency": CONCURRENCY})
        await self.producer.send_many(REQUESTS)
        await self.paused(agent, "refused")
        self.assertGreaterEqual(await self.held_in(self.results), FULL_AT)
        await self.drained(agent)

    async def test_deleted(self) -> None:
        """The results queue is gone."""
        self.fault = "F6 deleted"
        await self.begin(collecting=False)
        agent = await self.agent(agent={"concurrency": CONCURRENCY})
        await self.broker.delete_queue(self.results)
        await self.producer.send_many(REQUESTS)
        await self.paused(agent, "NO_ROUTE")
        await self.broker.declare_queue(self.results, arguments={"x-queue-type": "quorum"})
        await self.broker.bind_queue(self.results, RESULTS_EXCHANGE, self.results)
        await self.drained(agent)

    async def test_unroutable(self) -> None:
        """The results queue isn't bound any more."""
        self.fault = "F6 unroutable"
        await self.begin(collecting=False)
        agent = await self.agent(agent={"concurrency": CONCURRENCY})
        await self.broker.queue_unbind(queue=self.results, exchange=RESULTS_EXCHANGE, routing_key=self.results)
        await self.producer.send_many(REQUESTS)
        await self.paused(agent, "NO_ROUTE")
        await self.broker.bind_queue(self.results, RESULTS_EXCHANGE, self.results)
        await self.drained(agent)

    async def paused(self, agent: AgentProcess, reason: str) -> None:
        """See that the agent takes nothing any more and says why, and that every request is still there, unacked."""
        await agent.says("no more requests are taken")
        self.assertIn(reason, agent.log)
        await self.until_taken(CONCURRENCY, agent)
        await agent.says("again in 2 s")
        taken = await self.taken()
        await agent.says("again in 4 s")
        self.assertEqual(await self.taken(), taken, agent.log)
        self.assertTrue(0 < taken <= CONCURRENCY, taken)
        published = await self.held_in(self.results) if self.fault == "F6 nacked" else 0
        self.assertEqual(await self.held_in(self.requests) + published, REQUESTS)

    async def drained(self, agent: AgentProcess) -> None:
        """Take verdicts again, and see that all come."""
        began = time.monotonic()
        await self.collect_verdicts()
        await until(lambda: not self.ledger.missing, agent.run)
        await self.check(times=1, recovery=time.monotonic() - began)
        await agent.says("requests are taken again")
        await agent.stop()
        self.assert_clean(agent)
