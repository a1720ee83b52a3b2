"""Tests for :mod:`edxagent.lms.gateway.pull_service`: graders that poll, against real brokers."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from edxagent.agent import make_agent_service
from edxagent.amqp.publisher import ConfirmingPublisher
from edxagent.config.agent import read_agent_config
from edxagent.config.lms_values import GatewayConfig
from edxagent.config.values import BrokerConfig, FailureConfig
from edxagent.graders.registry import find_factory
from edxagent.lms.contracts import IPull, Reply
from edxagent.lms.gateway.pull_service import PullService
from edxagent.privatenode import PrivateNode
from tests.agentprocess import PATIENCE, AgentTestCase
from tests.amqp_support import message, silenced
from tests.cli_process import until
from tests.outcomes import HEADER, LMS_KEY, request

GOOD = '{"correct": true, "score": 1, "msg": "<p>ok</p>"}'
TAKEN = Reply(0, "")
NO_SUCH = Reply(1, "Submission does not exist")


class PullTestCase(AgentTestCase):
    """A pull side on the test's queues."""

    def pull_side(self, broker: BrokerConfig | None = None, **changes: Any) -> PullService:
        """A started one, stopped after the test."""
        from twisted.internet import reactor

        broker = broker or self.config()
        publishing = self.link(broker, purpose="publish")
        service = PullService(
            name="gateway-1",
            config=GatewayConfig(queues=(self.requests,), users={}, **changes),
            broker=broker,
            failure=FailureConfig(),
            results=self.results,
            publisher=ConfirmingPublisher(publishing),
            reactor=reactor,
            on_refused=lambda refused: None,
            wall_clock=time.time,
        )
        service.startService()
        self.addCleanup(lambda: service.stopService() if service.running else None)
        return service

    async def own_node(self) -> tuple[PrivateNode, BrokerConfig]:
        """A broker that a test may hurt, and the way to it."""
        from twisted.internet import reactor

        node = PrivateNode(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(node.stop()))
        await node.start()
        return node, self.config(evolve(self.address, port=node.port))

    async def empty(self, pull: IPull) -> None:
        """Wait until the pull side is connected, and the queue empty."""
        deadline = time.monotonic() + PATIENCE
        while await pull.get_submission(self.requests) != Reply(1, f"Queue '{self.requests}' is empty"):
            self.assertLess(time.monotonic(), deadline, "it doesn't become empty")
            await pause(0.05)

    async def lease(self, pull: IPull) -> str:
        """The header that comes with the next submission, as soon as there is one."""
        deadline = time.monotonic() + PATIENCE
        while (reply := await pull.get_submission(self.requests)).return_code:
            self.assertLess(time.monotonic(), deadline, "no submission came")
            await pause(0.05)
        return str(json.loads(str(reply.content))["xqueue_header"])


def pause(seconds: float) -> Deferred[None]:
    """Between two questions."""
    from twisted.internet import reactor

    return deferLater(reactor, seconds)  # type: ignore[arg-type]


class PullTests(PullTestCase):
    """What a grader that polls does all day."""

    async def test_circle(self) -> None:
        """The length of the queue, the submission, its verdict; in the end nothing is left in the queue."""
        pull = self.pull_side()
        await self.empty(pull)
        await self.publish(request(), message_id="s-1", headers={"x-origin": "gateway"})
        self.assertEqual(await pull.get_queuelen(self.requests), Reply(0, 1))
        content = await pull.get_submission(self.requests)
        self.assertNotIn(LMS_KEY, str(content.content))
        header = json.loads(str(content.content))["xqueue_header"]
        self.assertEqual(await pull.get_queuelen(self.requests), Reply(0, 0))
        self.assertEqual(await self.held_in(self.requests), 1)
        self.assertEqual(await pull.put_result(header, GOOD), TAKEN)
        (result,) = await self.collect(self.results, 1)
        self.assertEqual(json.loads(result.body)["xqueue_header"], HEADER)
        self.assertEqual((result.properties.message_id, result.properties.headers["x-grader"]), ("s-1", "pull"))
        await self.until_settled()

    async def test_twice_at_once(self) -> None:
        """Of two verdicts with one key, one is taken and published, and the request is acked once."""
        pull = self.pull_side()
        await self.empty(pull)
        await self.publish(request(), message_id="s-1")
        header = await self.lease(pull)
        replies = await gatherResults([Deferred.fromCoroutine(pull.put_result(header, GOOD)) for _ in range(2)])
        self.assertEqual(list(replies), [TAKEN, NO_SUCH])
        await self.collect(self.results, 1)
        await self.until_settled()
        self.assertEqual(await self.ready_in(self.results), 0)

    async def test_malformed(self) -> None:
        """What can't be read becomes a dead letter, and the next one is given out."""
        pull = self.pull_side()
        await self.empty(pull)
        await self.publish(b"not JSON", message_id="bad")
        await self.publish(request(), message_id="s-1")
        await pull.put_result(await self.lease(pull), GOOD)
        (dead,) = await self.collect(self.dead, 1)
        self.assertEqual((dead.body, dead.properties.headers["x-outcome"]), (b"not JSON", "malformed"))
        await self.collect(self.results, 1)
        await self.until_settled()

    async def test_deleted_queue(self) -> None:
        """A queue that somebody deletes is made again."""
        pull = self.pull_side()
        await self.empty(pull)
        await self.broker.delete_queue(self.requests)
        await self.empty(pull)
        self.assertEqual(await pull.get_queuelen(self.requests), Reply(0, 0))

    async def test_stop(self) -> None:
        """Stopping gives back what is out with graders."""
        pull = self.pull_side()
        await self.empty(pull)
        await self.publish(request(), message_id="s-1")
        header = await self.lease(pull)
        await pull.stopService()
        self.assertEqual(await pull.put_result(header, GOOD), NO_SUCH)
        self.assertEqual((await pull.get_submission(self.requests)).return_code, 1)
        (again,) = await self.collect(self.requests, 1)
        self.assertEqual((again.properties.message_id, again.redelivered), ("s-1", True))

    async def test_expired_often(self) -> None:
        """A submission that no grader answers is never near the broker's delivery limit, and isn't lost."""
        pull = self.pull_side(lease=0.01)
        await self.empty(pull)
        await self.publish(request(), message_id="s-1")
        late = {await self.lease(pull) for _ in range(25)}
        self.assertEqual(len(late), 25)
        await pause(0.1)
        self.assertEqual({await pull.put_result(header, GOOD) for header in late}, {NO_SUCH})
        await pull.stopService()
        (again,) = await self.collect(self.requests, 1)
        self.assertLessEqual(again.properties.headers.get("x-delivery-count", 0), 11)
        self.assertEqual(again.properties.message_id, "s-1")


class CompanyTests(PullTestCase):
    """Graders that poll, and our agents."""

    async def test_one_queue(self) -> None:
        """An agent and four graders that poll work on one queue, and each submission gets exactly one verdict."""
        from twisted.internet import reactor

        pull = self.pull_side()
        await self.empty(pull)
        config = read_agent_config(self.write_config(), environment={}, find_factory=find_factory)
        agent = make_agent_service(config, reactor)
        agent.startService()
        self.addCleanup(lambda: agent.stopService() if agent.running else None)
        await until(lambda: agent.consuming)
        polling = [True]

        async def poll() -> None:
            while polling:
                reply = await pull.get_submission(self.requests)
                if reply.return_code:
                    await pause(0.01)
                    continue
                content = json.loads(str(reply.content))
                self.assertEqual(await pull.put_result(content["xqueue_header"], GOOD), TAKEN)

        graders = [Deferred.fromCoroutine(poll()) for _ in range(4)]
        expected = {f"s-{number}" for number in range(500)}
        await gatherResults([Deferred.fromCoroutine(self.publish(request(), message_id=each)) for each in expected])
        results = await self.collect(self.results, len(expected))
        polling.clear()
        await gatherResults(graders)
        await self.until_settled()
        self.assertEqual(Counter(each.properties.message_id for each in results), Counter(expected))
        self.assertEqual(await self.ready_in(self.results), 0)
        shares = Counter(each.properties.headers["x-grader"] for each in results)
        self.assertEqual(set(shares), {"fixed", "pull"})
        self.assertGreater(min(shares.values()), 20, shares)


class BrokenBrokerTests(PullTestCase):
    """The broker goes, or loses its patience."""

    async def test_killed(self) -> None:
        """After a kill graders are refused in time, the lease is over, and the submission comes again."""
        node, broker = await self.own_node()
        pull = self.pull_side(broker)
        await self.empty(pull)
        channel = await self.channel(self.link(broker), confirming=True)
        await channel.publish(message(self.requests, request()))
        header = await self.lease(pull)
        await pause(2)  # RabbitMQ 3.10 can't bring up a quorum queue that was killed in its first second
        await node.kill()
        for asked in (pull.get_submission(self.requests), pull.put_result(header, GOOD)):
            began = time.monotonic()
            self.assertEqual((await asked).return_code, 1)
            self.assertLess(time.monotonic() - began, 5)
        await node.start()
        again = await self.lease(pull)
        self.assertEqual(await pull.put_result(header, GOOD), NO_SUCH)
        self.assertEqual(await pull.put_result(again, GOOD), TAKEN)

    async def test_silent(self) -> None:
        """A broker that has fallen silent: graders are refused in time; a verdict can be sent again afterwards."""
        node, broker = await self.own_node()
        pull = self.pull_side(broker)
        await self.empty(pull)
        channel = await self.channel(self.link(broker), confirming=True)
        for _ in range(2):
            await channel.publish(message(self.requests, request()))
        header = await self.lease(pull)
        async with silenced(node):
            for asked in (
                pull.get_submission(self.requests),
                pull.get_queuelen(self.requests),
                pull.put_result(header, GOOD),
            ):
                began = time.monotonic()
                self.assertEqual((await asked).return_code, 1)
                self.assertLess(time.monotonic() - began, 5)
        self.assertEqual(await pull.put_result(header, GOOD), TAKEN)
        self.assertEqual(await pull.put_result(await self.lease(pull), GOOD), TAKEN)

    async def test_consumer_timeout(self) -> None:
        """A broker that takes a submission back earlier than it was said to: that lease is over, the others go on."""
        node, broker = await self.own_node()
        await node.rabbitmqctl("eval", "application:set_env(rabbit, consumer_timeout, 2000).")
        await node.rabbitmqctl("eval", "application:set_env(rabbit, channel_tick_interval, 1000).")
        pull = self.pull_side(broker)
        await self.empty(pull)
        channel = await self.channel(self.link(broker), confirming=True)
        for _ in range(2):
            await channel.publish(message(self.requests, request()))
        early = await self.lease(pull)
        await pause(1.5)
        later = await self.lease(pull)
        again = await self.lease(pull)
        self.assertEqual(await pull.put_result(later, GOOD), TAKEN)
        self.assertEqual(await pull.put_result(early, GOOD), NO_SUCH)
        self.assertEqual(await pull.put_result(again, GOOD), TAKEN)
