"""The agent's topology on a real broker."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from edxagent.amqp.topology import (
    ensure_agent_topology,
    ensure_request_queue,
    ensure_retry_queues,
    ensure_updater_topology,
    open_reply_queue,
)
from edxagent.config.values import AgentConfig, GraderConfig, QueueConfig, ResultsConfig, RetryConfig
from edxagent.errors import BrokerRefused, ChannelClosed
from edxagent.model import (
    DEAD_EXCHANGE,
    REQUESTS_EXCHANGE,
    REQUESTS_RETRY,
    RESULTS_EXCHANGE,
    RESULTS_RETRY,
    dead_queue_of,
    milliseconds,
    retry_name,
)
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

    async def test_requests_come_back_from_retry_queues(self) -> None:
        """Each of the configured delays has its queue, which keeps a request for so long; classic work queues too."""
        delays = (0.05, 3601.0)
        names = [retry_name(REQUESTS_RETRY, delay) for delay in delays]
        self.addCleanup(lambda: self.remove_retry_queues(*names))
        config = evolve(self.agent_config(queue_type="classic"), retry=RetryConfig(delays=delays))
        await ensure_agent_topology(self.session, config)
        channel = await self.channel(confirming=True)
        for name in names:
            await channel.publish(message(self.name, name.encode(), exchange=name))
        back = None
        while back is None:
            back = await channel.get(self.name)
        self.assertEqual((back.body, back.exchange), (names[0].encode(), REQUESTS_EXCHANGE))
        self.assertEqual((await channel.declare_queue(names[1], passive=True)).messages, 1)

    async def test_a_retry_queue_with_other_arguments(self) -> None:
        """It would keep requests for ever, or lose them: the error names it and the remedy."""
        name = retry_name(REQUESTS_RETRY, 3602.0)
        self.addCleanup(lambda: self.remove_retry_queues(name))
        await (await self.channel()).declare_queue(name, arguments={"x-message-ttl": 3602000})
        config = evolve(self.agent_config(), retry=RetryConfig(delays=(3602.0,)))
        error = await self.assertFailure(
            Deferred.fromCoroutine(ensure_agent_topology(self.session, config)), BrokerRefused
        )
        for words in (f"declare queue '{name}' for retries", "406", "delete it once it is empty"):
            self.assertIn(words, str(error))

    async def remove_retry_queues(self, *names: str) -> None:
        """Take retry queues away again."""
        channel = await self.channel()
        for name in names:
            await channel.delete_queue(name)
            await channel.exchange_delete(exchange=name)

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


class RetryTests(LinkTestCase):
    """Queues where messages wait before they go back to work."""

    async def set_up(self) -> None:
        """A link, names of our own, and a channel to publish on."""
        self.session = await self.link().when_up()
        self.name, self.prefix = self.unique("results"), self.unique("retry")
        self.broker = await self.channel(confirming=True)
        self.addCleanup(lambda: self.remove(self.name, dead_queue_of(self.name)))

    async def remove(self, *names: str) -> None:
        """Take queues away again, with the exchanges of the same names."""
        channel = await self.channel()
        for name in names:
            await channel.delete_queue(name)
            await channel.exchange_delete(exchange=name)

    async def retry_queues(self, *delays: float, exchange: str = RESULTS_EXCHANGE, **broker: Any) -> list[str]:
        """Retry queues; their names."""
        names = [retry_name(self.prefix, delay) for delay in delays]
        self.addCleanup(lambda: self.remove(*names))
        await ensure_retry_queues(self.session, self.config(**broker), exchange, self.prefix, delays)
        return names

    async def next(self) -> Any:
        """The next message in the work queue."""
        while True:
            delivery = await self.broker.get(self.name)
            if delivery is not None:
                return delivery

    async def test_hop(self) -> None:
        """A message comes back after the delay, to the queue that its routing key names, with all that it had."""
        for _ in range(2):
            await ensure_updater_topology(self.session, self.config(), self.name, [])
        (retry,) = await self.retry_queues(0.2)
        began = self.seconds_now()
        await self.broker.publish(
            message(self.name, b"verdict", exchange=retry, message_id="7", headers={"x-origin": "gateway"})
        )
        back = await self.next()
        self.assertGreater(self.seconds_now() - began, 0.19)
        self.assertEqual((back.body, back.routing_key, back.exchange), (b"verdict", self.name, RESULTS_EXCHANGE))
        self.assertEqual((back.properties.message_id, back.properties.headers["x-origin"]), ("7", "gateway"))

    async def test_many_hops(self) -> None:
        """What the broker writes on a message of its journeys doesn't grow with their number, taken on or not."""
        await ensure_updater_topology(self.session, self.config(), self.name, [])
        first, second = await self.retry_queues(0.001, 0.002)
        headers: Any = {}
        sizes = []
        for number in range(30):
            retry = (first, second)[number % 2]
            await self.broker.publish(message(self.name, b"verdict", exchange=retry, headers=headers))
            back = await self.next()
            back.ack()
            headers = back.properties.headers
            sizes.append(len(repr(headers)))
        self.assertLessEqual(len(headers["x-death"]), 2)
        self.assertLess(sizes[-1], sizes[1] + 20)

    async def test_requests_wait_in_the_same_way(self) -> None:
        """The exchange that they go back to is the caller's choice."""
        self.addCleanup(lambda: self.remove(self.name))
        await ensure_request_queue(self.session, self.config(), self.name)
        (retry,) = await self.retry_queues(0.001, exchange=REQUESTS_EXCHANGE)
        await self.broker.publish(message(self.name, b"request", exchange=retry))
        self.assertEqual((await self.next()).exchange, REQUESTS_EXCHANGE)

    async def test_nothing_is_lost_while_the_work_queue_is_away(self) -> None:
        """A message whose time is over waits for the queue that it should go to."""
        await self.look_again_after(500)
        await ensure_updater_topology(self.session, self.config(), self.name, [])
        (retry,) = await self.retry_queues(0.001)
        await self.broker.delete_queue(self.name)
        await self.broker.publish(message(self.name, b"verdict", exchange=retry))
        await self.look_again_after(180_000)
        await ensure_updater_topology(self.session, self.config(), self.name, [])
        self.assertEqual((await self.next()).body, b"verdict")

    async def look_again_after(self, milliseconds: int) -> None:
        """How long the broker waits before it tries again to move a message; in force for queues made from now on."""
        setting = "dead_letter_worker_publisher_confirm_timeout"
        await self.node.rabbitmqctl("eval", f"application:set_env(rabbit, {setting}, {milliseconds}).")

    async def test_other_arguments(self) -> None:
        """A retry queue that would keep messages for ever, or lose them, is refused: which one, and the remedy."""
        name = retry_name(self.prefix, 5)
        self.addCleanup(lambda: self.remove(name))
        await self.broker.declare_queue(name)
        error = await self.assertFailure(Deferred.fromCoroutine(self.retry_queues(5)), BrokerRefused)
        for words in (name, "406", "delete it once it is empty"):
            self.assertIn(words, str(error))

    async def test_other_exchange(self) -> None:
        """An exchange that isn't a fanout would mistake the routing key for its own."""
        name = retry_name(self.prefix, 5)
        self.addCleanup(lambda: self.remove(name))
        await self.broker.declare_exchange(name, "direct")
        error = await self.assertFailure(Deferred.fromCoroutine(self.retry_queues(5)), BrokerRefused)
        self.assertIn(f"declare exchange {name!r}", str(error))

    async def test_nothing_may_be_declared(self) -> None:
        """What is missing is named, and the remedy; what is there is taken."""
        error = await self.assertFailure(Deferred.fromCoroutine(self.retry_queues(5, declare=False)), BrokerRefused)
        self.assertIn(retry_name(self.prefix, 5), str(error))
        self.assertIn("declare = yes", str(error))
        await self.retry_queues(5)
        await self.retry_queues(5, declare=False)

    async def test_classic(self) -> None:
        """Retry queues are of the kind that loses nothing, whatever the others are."""
        (retry,) = await self.retry_queues(5, queue_type="classic")
        await self.broker.declare_queue(retry, passive=True)
        await self.retry_queues(5)

    async def test_updater(self) -> None:
        """The updater's results queue, parking queue and retry queues are there, and bound."""
        delays = (3600.0, 0.001)
        names = [retry_name(RESULTS_RETRY, delay) for delay in delays]
        self.addCleanup(lambda: self.remove(*names))
        await ensure_updater_topology(self.session, self.config(), self.name, delays)
        await self.broker.publish(message(self.name, b"parked", exchange=DEAD_EXCHANGE))
        self.assertEqual((await self.broker.get(dead_queue_of(self.name))).body, b"parked")
        await self.broker.publish(message(self.name, b"result", exchange=RESULTS_EXCHANGE))
        self.assertEqual((await self.next()).body, b"result")
        await self.broker.publish(message(self.name, b"again", exchange=names[1]))
        self.assertEqual((await self.next()).body, b"again")
        await self.broker.publish(message(self.name, b"much later", exchange=names[0]))
        self.assertEqual((await self.broker.declare_queue(names[0], passive=True)).messages, 1)

    def seconds_now(self) -> float:
        """Seconds by the reactor's clock."""
        from twisted.internet import reactor

        return float(reactor.seconds())  # type: ignore[attr-defined]


class RetryNameTests(SynchronousTestCase):
    """What retry queues are called."""

    def test_name(self) -> None:
        """By their milliseconds, of which there is at least one."""
        self.assertEqual(retry_name("grading.retry", 2.5), "grading.retry.2500")
        self.assertEqual([milliseconds(delay) for delay in (0.0001, 0.0019, 2, 120.0)], [1, 2, 2000, 120000])
