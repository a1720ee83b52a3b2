"""F7: the broker is short of memory, and blocks whoever publishes."""

from __future__ import annotations

import time

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tests.faults.case import FaultTestCase
from tests.faults.proxy import FaultProxy

HEARTBEAT = 2
REQUESTS = 200
CONCURRENCY = 4
WATERMARK = "0.4"


class MemoryAlarmTests(FaultTestCase):
    """No hang; both connections stay, for heartbeats go on."""

    fault = "F7"

    async def watermark(self, value: str) -> None:
        """Have RabbitMQ think that it may use such a share of the memory."""
        await self.node.rabbitmqctl("set_vm_memory_high_watermark", value)

    async def test_alarm(self) -> None:
        """While the alarm lasts requests wait at the broker; then they are graded, over the same connections."""
        from twisted.internet import reactor

        seconds = self.sized(3 * HEARTBEAT, 60)
        await self.begin()
        proxy = FaultProxy.start(self)
        slow = {"kind": "sleep", "min": 0.05, "max": 0.1}
        agent = await self.agent(
            agent={"concurrency": CONCURRENCY}, broker={"urls": proxy.url, "heartbeat": HEARTBEAT}, grader=slow
        )
        await self.producer.send_many(REQUESTS)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.watermark(WATERMARK)))
        await self.watermark("0.000001")
        await agent.says("no more requests are taken")
        self.assertIn("memory", agent.log)
        await self.until_taken(CONCURRENCY, agent)
        graded, ready = len(self.ledger.verdicts), await self.ready_in(self.requests)
        self.assertLess(graded, REQUESTS, "the alarm came too late")
        await deferLater(reactor, seconds)  # type: ignore[arg-type]
        self.assertEqual((len(self.ledger.verdicts), await self.ready_in(self.requests)), (graded, ready))
        self.assertEqual(proxy.did["connections"], 2, agent.log)
        await self.watermark(WATERMARK)
        began = time.monotonic()
        recovered = await self.recovery(began)
        await agent.says("requests are taken again")
        self.assertEqual(proxy.did["connections"], 2, agent.log)
        await self.check(times=1, duplicates=0, recovery=recovered)
        await agent.stop()
        self.assert_clean(agent)
