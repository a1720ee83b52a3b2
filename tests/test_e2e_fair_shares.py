"""Slots and shares against a real broker: agents in this process, whose grader tells what is being graded."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from zope.interface import implementer

from edxagent.agent.service import AgentService
from edxagent.config.values import AgentConfig, GraderConfig, QueueConfig, ResultsConfig
from edxagent.errors import BrokerRefused
from edxagent.interfaces import IGrader
from edxagent.model import GraderRequest, GraderResponse, dead_queue_of
from edxagent.testing.graders import CORRECT, until
from edxagent.wire.request import encode_request
from tests.amqp_support import LinkTestCase

BODY = '{"student_response": "42", "grader_payload": "", "student_info": "{}"}'


@implementer(IGrader)
class WatchedGrader:
    """Takes a while, and counts by queue.

    :param seconds: how long a submission takes; ``None`` = until the test ends.
    """

    def __init__(self, seconds: Callable[[], float] | None) -> None:
        self._seconds = seconds
        self.running: Counter[str] = Counter()
        self.most = 0
        self.graded: list[str] = []
        self.ids: Counter[str] = Counter()

    async def grade(self, request: GraderRequest) -> GraderResponse:
        """See :class:`IGrader`."""
        self.running[request.queue] += 1
        self.most = max(self.most, sum(self.running.values()))
        try:
            await (Deferred() if self._seconds is None else deferLater(reactor, self._seconds()))
        finally:
            self.running[request.queue] -= 1
        self.graded.append(request.queue)
        self.ids[request.submission] += 1
        return GraderResponse(reply=CORRECT)


class FairSharesTests(LinkTestCase):
    """Who gets the slots."""

    async def set_up(self) -> None:
        """A channel to publish on and ask with."""
        self.broker = await self.channel(confirming=True)
        self.results = self.unique("results")

    def queues(self, *weights: int) -> dict[str, int]:
        """New queue names, with their weights."""
        return {self.unique("fair"): weight for weight in weights}

    async def agent(
        self,
        weights: Mapping[str, int],
        seconds: Callable[[], float] | None,
        *,
        concurrency: int,
        hold_limit: float = 10.0,
    ) -> WatchedGrader:
        """A running agent's grader."""
        grader = WatchedGrader(seconds)
        config = AgentConfig(
            name="fair",
            concurrency=concurrency,
            hold_limit=hold_limit,
            drain_timeout=0.1,
            broker=self.config(),
            queues=tuple(QueueConfig(name=name, weight=weight) for name, weight in weights.items()),
            grader=GraderConfig(kind="stub", timeout=60),
            results=ResultsConfig(queue=self.results),
        )
        refusals: list[BrokerRefused] = []
        service = AgentService(
            config=config, grader=grader, reactor=reactor, on_refused=refusals.append, wall_clock=reactor.seconds
        )
        service.startService()
        self.addCleanup(lambda: Deferred.fromCoroutine(self._clean(service, weights)))
        await self.until(lambda: service.consuming, "the agent consumes")
        self.assertEqual(refusals, [])
        return grader

    async def _clean(self, service: AgentService, queues: Mapping[str, int]) -> None:
        await service.stopService()
        for queue in queues:
            await self.broker.delete_queue(queue)
            await self.broker.delete_queue(dead_queue_of(queue))
        await self.broker.delete_queue(self.results)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something."""
        await until(condition, what, reactor)

    async def fill(self, queue: str, count: int) -> None:
        """Publish requests; returns when the broker has them."""
        sent = [
            self.broker.publish(
                encode_request(queue=queue, submission=f"{queue}-{number}", header="h", body=BODY, timestamp=1)
            )
            for number in range(count)
        ]
        for confirmed in sent:
            await confirmed

    async def ready(self, queue: str) -> int:
        """How many requests nobody has taken."""
        return (await self.broker.declare_queue(queue, passive=True)).messages

    async def test_one_busy_among_ten(self) -> None:
        """One busy queue among ten gets all slots."""
        queues = self.queues(*[1] * 10)
        busy = list(queues)[4]
        grader = await self.agent(queues, None, concurrency=10)
        await self.fill(busy, 30)
        await self.until(lambda: grader.running[busy] == 10, "all slots are that queue's")
        self.assertGreaterEqual(await self.ready(busy), 30 - 10 - 1)

    async def test_shares_follow_weights(self) -> None:
        """When all queues are busy their shares of 1,000 submissions follow the weights within 10 %."""
        queues = self.queues(5, 3, 1, 1)
        grader = await self.agent(queues, lambda: random.uniform(0.01, 0.03), concurrency=8)
        for queue in reversed(queues):
            await self.fill(queue, 1000)
        await self.until(lambda: sum(1 for queue in queues if grader.running[queue]) == 4, "all are busy")
        begin = len(grader.graded)
        await self.until(lambda: len(grader.graded) >= begin + 1000, "1,000 are graded")
        shares = Counter(grader.graded[begin : begin + 1000])
        for queue, weight in queues.items():
            self.assertApproximates(shares[queue], 100 * weight, 10 * weight)
        self.assertEqual(grader.most, 8)

    async def test_one_held_a_queue(self) -> None:
        """An agent with every slot busy holds one request a queue, and none longer than hold_limit."""
        queues = self.queues(1, 1, 1)
        for queue in queues:
            await self.broker.declare_queue(queue, arguments={"x-queue-type": "quorum"})
        grader = await self.agent(queues, None, concurrency=2, hold_limit=1.0)
        for queue in queues:
            await self.fill(queue, 10)
        await self.until(lambda: sum(grader.running.values()) == 2, "the slots are busy")
        taken = [10 - await self.ready(queue) - grader.running[queue] for queue in queues]
        self.assertLessEqual(max(taken), 1)

        async def left() -> int:
            return sum([await self.ready(queue) for queue in queues])

        for _ in range(200):
            if await left() == 30 - 2:
                break
            await deferLater(reactor, 0.05)
        self.assertEqual(await left(), 30 - 2)

    async def test_second_agent_gets_work(self) -> None:
        """What one agent can't begin, another gets at once."""
        queues = self.queues(1)
        (queue,) = queues
        first = await self.agent(queues, None, concurrency=2)
        await self.fill(queue, 6)
        await self.until(lambda: first.running[queue] == 2, "the first is busy")
        second = await self.agent(queues, None, concurrency=3)
        await self.until(lambda: second.running[queue] == 3, "the second has work")

    async def test_one_queue_alone(self) -> None:
        """A queue alone is served by no more consumers than there are slots, and one."""
        queues = self.queues(1)
        (queue,) = queues
        grader = await self.agent(queues, lambda: 0.002, concurrency=4)
        await self.fill(queue, 500)
        await self.until(lambda: len(grader.graded) == 500, "all are graded")
        self.assertEqual(grader.most, 4)
        consumers = (await self.broker.declare_queue(queue, passive=True)).consumers
        self.assertLessEqual(consumers, 4 + 1)

    async def test_delivery_limit(self) -> None:
        """Under a policy that drops a request at its 20th return, a slow grader loses none (60 s scaled to 0.5 s)."""
        queues = self.queues(1, 1)
        await self.node.rabbitmqctl("set_policy", "limit", "^fair-", '{"delivery-limit": 20}', "--apply-to", "queues")
        self.addCleanup(lambda: Deferred.fromCoroutine(self.node.rabbitmqctl("clear_policy", "limit")))
        grader = await self.agent(queues, lambda: 0.5, concurrency=1, hold_limit=0.08)
        for queue in queues:
            await self.fill(queue, 12)
        await self.until(lambda: len(grader.ids) == 24, "all are graded")
        self.assertEqual(set(grader.ids.values()), {1})
        for queue in queues:
            self.assertEqual((await self.broker.declare_queue(dead_queue_of(queue), passive=True)).messages, 0)
