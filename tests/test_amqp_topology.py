"""The agent's topology on a real broker."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred

from edxagent.amqp.topology import ensure_agent_topology, ensure_request_queue, open_reply_queue
from edxagent.config.values import AgentConfig, GraderConfig, QueueConfig, ResultsConfig
from edxagent.errors import BrokerRefused, ChannelClosed
from edxagent.model import DEAD_EXCHANGE, REQUESTS_EXCHANGE, RESULTS_EXCHANGE, dead_queue_of
from tests.amqp_support import LinkTestCase, message


class TopologyTests(LinkTestCase):
    """What is missing is made, what exists is taken, what is forbidden is explained."""

    async def set_up(self) -> None:
        """A link, and names of our own."""
        self.up = self.link()
        self.session = await self.up.when_up()
        self.name, self.results = self.unique("exam"), self.unique("results")
        self.addCleanup(self.remove)

    async def remove(self) -> None:
        """Take the queues away again."""
        channel = await self.channel()
        for name in (self.name, dead_queue_of(self.name), self.results):
            await channel.delete_queue(name)

    def agent_config(self, **broker: Any) -> AgentConfig:
        """An agent with one queue."""
        return AgentConfig(
            name="t",
            broker=evolve(self.config(), **broker),
            queues=(QueueConfig(name=self.name),),
            grader=GraderConfig(kind="fixed"),
            results=ResultsConfig(queue=self.results),
        )

    async def test_everything_missing_is_made_and_routes(self) -> None:
        """A request, a dead letter and a result, published by name, lands in its queue; twice is as good as once."""
        for _ in range(2):
            await ensure_agent_topology(self.session, self.agent_config())
        channel = await self.channel(confirming=True)
        await channel.publish(message(self.name, b"request", exchange=REQUESTS_EXCHANGE))
        await channel.publish(message(self.name, b"dead", exchange=DEAD_EXCHANGE))
        await channel.publish(message(self.results, b"result", exchange=RESULTS_EXCHANGE))
        found = [(await channel.get(queue)).body for queue in (self.name, dead_queue_of(self.name), self.results)]
        self.assertEqual(found, [b"request", b"dead", b"result"])

    async def test_the_broker_dead_letters_into_the_dead_queue(self) -> None:
        """A rejected request moves to the dead queue by itself, with an x-death array that we can read."""
        await ensure_agent_topology(self.session, self.agent_config())
        channel = await self.channel(confirming=True)
        await channel.publish(message(self.name, b"request", exchange=REQUESTS_EXCHANGE))
        (await channel.get(self.name)).reject()
        dead = None
        while dead is None:
            dead = await channel.get(dead_queue_of(self.name))
        self.assertEqual(dead.body, b"request")
        death = dead.properties.headers["x-death"][0]
        self.assertEqual((death["queue"], death["reason"], death["routing-keys"]), (self.name, "rejected", [self.name]))

    async def test_existing_queues_are_taken_as_they_are(self) -> None:
        """A transient classic queue of the right name serves, though we would have made another."""
        channel = await self.channel()
        await channel.declare_queue(self.name, durable=False)
        await ensure_agent_topology(self.session, self.agent_config())
        self.assertFalse(channel.closed)

    async def test_classic_queues_can_be_had(self) -> None:
        """With queue_type = classic nothing asks for quorum's features."""
        await ensure_agent_topology(self.session, self.agent_config(queue_type="classic"))
        channel = await self.channel()
        error = await self.assertFailure(
            Deferred.fromCoroutine(channel.declare_queue(self.name, arguments={"x-queue-type": "quorum"})),
            ChannelClosed,
        )
        self.assertEqual(error.code, 406)

    async def test_a_missing_queue_is_an_error_when_nothing_may_be_declared(self) -> None:
        """The error names the queue and the remedy."""
        await ensure_agent_topology(self.session, evolve(self.agent_config(), queues=()))
        try:
            await ensure_request_queue(self.session, self.config(declare=False), self.name)
        except BrokerRefused as refused:
            self.assertIn(dead_queue_of(self.name), str(refused))
            self.assertIn("declare = yes", str(refused))
        else:
            self.fail("it was taken for there")

    async def test_a_queue_of_another_connection_is_explained(self) -> None:
        """A queue that is exclusive to somebody else gives one clear line."""
        await (await self.channel()).declare_queue(self.name, exclusive=True, durable=False)
        try:
            await ensure_request_queue(self.session, self.config(), self.name)
        except BrokerRefused as refused:
            self.assertIn("405", str(refused))
            self.assertIn("exclusive", str(refused))
        else:
            self.fail("it was taken")

    async def test_a_private_reply_queue_gets_results(self) -> None:
        """A caller's own queue is bound under its name."""
        channel, queue = await open_reply_queue(self.session, self.config())
        await channel.confirm_select()
        await channel.publish(message(queue, b"result", exchange=RESULTS_EXCHANGE))
        self.assertEqual((await channel.get(queue)).body, b"result")
