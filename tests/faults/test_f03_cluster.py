"""F3 in a cluster: the node that leads the queues is killed, and the others go on without it."""

from __future__ import annotations

import time

from edxagent.config.values import BrokerAddress
from edxagent.privatenode import PrivateNode
from tests.amqp_support import known_to_the_disk
from tests.cli_process import until
from tests.faults.case import FULL, FaultTestCase
from tests.faults.nodes import Cluster

CONCURRENCY = 10
GRADER = {"kind": "sleep", "min": 0.005, "max": 0.03}
WITHIN = 20.0 if FULL else 90.0
"""Seconds from the kill until submissions are graded again: a leader is elected, agents go to another address."""


class ClusterTests(FaultTestCase):
    """Three nodes, quorum queues, an agent that knows all three addresses."""

    fault = "F3 cluster"
    cluster: Cluster

    async def find_node(self) -> PrivateNode:
        """The first of a cluster of the test's own."""
        self.cluster = await Cluster.start(self)
        return self.cluster.nodes[0]

    async def test_leader_killed(self) -> None:
        """Whichever node leads the requests is killed under load, many times: nothing is lost, grading goes on."""
        kills = self.sized(1, 12)
        addresses = [
            BrokerAddress(host=node.host, port=node.port, username="guest", password="guest")
            for node in self.cluster.nodes
        ]
        await self.begin(*addresses)
        queues = (self.requests, self.results, self.dead)
        agent = await self.agent(agent={"concurrency": CONCURRENCY}, broker={"urls": self.cluster.urls}, grader=GRADER)
        self.producer.keep_up()
        recoveries = []
        for _ in range(kills):
            done = len(self.ledger.verdicts)
            await until(lambda done=done: len(self.ledger.verdicts) > done + 100)  # type: ignore[misc]
            leader = await self.cluster.leader_of(self.requests)
            await until(lambda leader=leader: known_to_the_disk(leader, *queues))  # type: ignore[misc]
            self.assertTrue(self.ledger.missing, "there was no load")
            killed = time.monotonic()
            await leader.kill()
            recoveries.append(await self.recovery(killed))
            self.assertIsNone(leader.pid)
            self.assertIsNot(await self.cluster.leader_of(self.requests), leader)
            await leader.start()
            for queue in queues:
                while await self.cluster.online(queue) < 3:
                    self.assertTrue(agent.alive, agent.log)
        await self.producer.stop()
        await self.check(times=kills, recovery=max(recoveries))
        self.assertLess(max(recoveries), WITHIN, recoveries)
        await agent.stop()
        self.assert_clean(agent)
