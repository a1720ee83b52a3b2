"""The real agent while brokers, connections and queues come and go."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from edxagent.amqp.channel import Channel
from edxagent.errors import BrokerError
from edxagent.model import REQUESTS_EXCHANGE, dead_queue_of
from edxagent.privatenode import PrivateNode
from edxagent.testing.graders import CORRECT
from edxagent.testing.http_server import RogueServer, Visit, response, silent
from tests.agentprocess import AgentTestCase
from tests.amqp_support import message
from tests.cli_process import until
from tests.faults.proxy import FaultProxy
from tests.outcomes import SECRETS, request

BOUND = 10.0
"""Seconds within which everything is consumed again after a broker, or a queue, has come back."""
DROPS = 100 if os.environ.get("EDXAGENT_FAULTS") == "full" else 20
"""How many connections are lost in a row."""
OUTAGE = 8.0
"""Seconds that every tenth of these outages lasts."""


def now() -> float:
    """Seconds by the reactor's clock."""
    from twisted.internet import reactor

    return float(reactor.seconds())  # type: ignore[attr-defined]


def report(what: str, seconds: Sequence[float]) -> None:
    """Print how long it took, for those who want to know."""
    print(f"{what}: {len(seconds)} times, worst {max(seconds):.2f} s, median {median(seconds):.2f} s")


class FaultTestCase(AgentTestCase):
    """A test that hurts what stands between agents and their submissions."""

    async def rest(self, seconds: float) -> None:
        """Let some time pass."""
        from twisted.internet import reactor

        await deferLater(reactor, seconds)  # type: ignore[arg-type]

    async def own_node(self, **options: Any) -> PrivateNode:
        """A broker that a test may hurt."""
        from twisted.internet import reactor

        node = PrivateNode(reactor, **options)
        self.addCleanup(lambda: Deferred.fromCoroutine(node.stop()))
        await node.start()
        return node

    async def consumers(self, queue: str) -> int:
        """How many consumers a queue has; a queue that isn't there has none."""
        session: Any = await self.asking.when_up()
        channel: Channel = await session.open_channel()
        try:
            return (await channel.declare_queue(queue, passive=True)).consumers
        except BrokerError:
            return 0
        finally:
            await channel.close()

    async def set_up(self) -> None:
        """A connection for questions that the broker may answer with "no"."""
        await super().set_up()
        self.asking = self.link()


class DroppedConnectionTests(FaultTestCase):
    """Connections that are reset, one after the other."""

    timeout = 90.0 + 5 * DROPS

    async def test_drops(self) -> None:
        """After each of them every queue is consumed again soon, and in the end every submission has a verdict."""
        queues = [self.requests, *(self.unique("requests") for _ in range(2))]
        self.addCleanup(lambda: Deferred.fromCoroutine(self.remove(queues[1:])))
        proxy = FaultProxy.start(self)
        agent = await self.agent(
            broker={"urls": proxy.url, "retry_initial": 0.5, "retry_max": 5}, queues=dict.fromkeys(queues, "")
        )
        took = []
        for drop in range(DROPS):
            for queue in queues:
                await self.publish(request(), queue, message_id=f"{drop} {queue}")
            connections = agent.log.count("(consume): connected to ")
            if drop % 10 == 9:
                await proxy.refuse()
            proxy.reset()
            if drop % 10 == 9:
                await self.rest(OUTAGE)
                proxy.accept()
            began = now()
            await agent.says("(consume): connected to ", times=connections + 1)
            for queue in queues:
                while not 1 <= await self.consumers(queue) <= 4:
                    self.assertLess(now() - began, BOUND)
            took.append(now() - began)
        report("consuming again after a drop", took)
        self.assertLess(max(took), BOUND)
        self.assertGreaterEqual(proxy.did["reset"], DROPS)
        await self.assert_complete({f"{drop} {queue}" for drop in range(DROPS) for queue in queues})
        for queue in queues:
            await self.until_settled(queue)
        self.assertEqual(await agent.stop(), -15)
        self.assert_clean(agent, SECRETS)

    async def assert_complete(self, sent: set[str]) -> None:
        """Wait until each id has a verdict; others have none, and none has more than a drop each may have brought."""
        verdicts: Counter[str] = Counter()
        while set(verdicts) != sent:
            (result,) = await self.collect(self.results, 1)
            verdicts[str(result.properties.message_id)] += 1
        print(f"{len(sent)} submissions, {sum(verdicts.values()) - len(sent)} verdicts repeated")
        self.assertLessEqual(set(verdicts), sent)

    async def remove(self, queues: Sequence[str]) -> None:
        """Take queues away again."""
        for queue in queues:
            await self.broker.delete_queue(queue)
            await self.broker.delete_queue(dead_queue_of(queue))


class FailOverTests(FaultTestCase):
    """Two brokers that know nothing of each other."""

    async def test_to_and_fro(self) -> None:
        """When one is killed the agent serves the other, within seconds, as often as that happens."""
        nodes = [await self.own_node(), await self.own_node()]
        agent = await self.agent(broker={"urls": "\n  ".join(node.url for node in nodes), "retry_max": 5})
        took = []
        for number in range(4):
            here, there = nodes[number % 2], nodes[1 - number % 2]
            await self.is_served(here, f"{number}")
            await here.kill()
            began = now()
            await self.is_served(there, f"{number} again")
            took.append(now() - began)
            await here.start()
        report("served by the other broker after a kill", took)
        self.assertLess(max(took), BOUND)
        self.assertEqual(await agent.stop(), -15)
        self.assert_clean(agent, SECRETS)

    async def is_served(self, node: PrivateNode, name: str) -> None:
        """Have a submission graded that is sent to that broker, as soon as it has a queue for it."""
        link = self.link(self.config(evolve(self.address, port=node.port)))
        channel = await self.channel(link, confirming=True)
        while True:
            try:
                await channel.publish(message(self.requests, request(), exchange=REQUESTS_EXCHANGE, message_id=name))
                break
            except BrokerError:
                await self.rest(0.05)
                if channel.closed:
                    channel = await self.channel(link, confirming=True)
        result = None
        while result is None:
            await self.rest(0.02)
            result = await channel.get(self.results)
        self.assertEqual(result.properties.message_id, name)
        result.ack()
        await link.stopService()


class DeletedQueueTests(FaultTestCase):
    """Somebody deletes the queue that an agent consumes."""

    async def test_under_load(self) -> None:
        """It is made anew and consumed again, every time; what is sent to it from then on is graded."""
        agent = await self.agent()
        took = []
        for attempt in range(5):
            for number in range(50):
                await self.publish(request(), message_id=f"{attempt} before {number}")
            await self.broker.delete_queue(self.requests)
            began = now()
            await until(lambda: agent.log.count("no requests from") > len(took), agent.run)
            while not await self.consumers(self.requests):
                self.assertLess(now() - began, BOUND)
            took.append(now() - began)
            after = {f"{attempt} after {number}" for number in range(20)}
            for name in after:
                await self.publish(request(), message_id=name)
            await self.until_verdicts(after)
        report("consuming again after a queue was deleted", took)
        self.assertEqual(agent.log.count(f"requests are taken from {self.requests} again"), 5)
        await self.until_settled()
        self.assertEqual(await agent.stop(), -15)
        self.assert_clean(agent, SECRETS)

    async def until_verdicts(self, names: set[str]) -> None:
        """Wait until each of these has a verdict."""
        while names:
            (result,) = await self.collect(self.results, 1)
            names.discard(str(result.properties.message_id))


class ConsumerTimeoutTests(FaultTestCase):
    """A broker that takes back what isn't acked within five seconds."""

    async def set_up(self) -> None:
        """Start it, and a grader that takes its time."""
        from twisted.internet import reactor

        self.node = await self.own_node(settings=("consumer_timeout = 5000",))
        # How often it looks whether somebody has taken too long, in milliseconds.
        await self.node.rabbitmqctl("eval", "application:set_env(rabbit, channel_tick_interval, 1000).")
        await super().set_up()
        self.server = RogueServer(silent)
        await self.server.start(reactor)
        self.addCleanup(self.server.stop)

    async def test_taken_back(self) -> None:
        """The verdict goes out all the same, the agent goes on, and the log has one calm line about it."""
        agent = await self.agent(grader={"kind": "http", "url": self.server.url, "timeout": 100})
        await self.publish(request(), message_id="slow")
        await agent.says("the broker has taken back what was being graded for longer than its consumer_timeout")
        await until(lambda: len(self.server.asked) == 2, agent.run)  # it came again
        self.answer()
        for result in await self.collect(self.results, 2):
            self.assertEqual(result.properties.message_id, "slow")
        await self.until_settled()
        await self.publish(request(), message_id="next")
        (result,) = await self.collect(self.results, 1)
        self.assertEqual(result.properties.message_id, "next")
        self.assertEqual(agent.log.count("no requests from"), 1)
        self.assertEqual(agent.log.count("its connection is gone, so it will come again"), 1)
        self.assertEqual(agent.log.count("(consume): connected to "), 1)
        self.assertEqual(await agent.stop(), -15)
        self.assert_clean(agent, SECRETS)

    def answer(self) -> None:
        """Answer what was asked, and from now on at once."""

        def answer(visit: Visit) -> None:
            visit.send(response(CORRECT))

        self.server.behaviour = answer
        for visit in self.server.visits:
            answer(visit)
