"""F3: the broker goes and comes back under load."""

from __future__ import annotations

import time
from signal import SIGKILL, SIGTERM

from tests.amqp_support import known_to_the_disk
from tests.cli_process import until
from tests.faults.case import FULL, FaultTestCase
from tests.faults.proxy import FaultProxy

CONCURRENCY = 10
GRADER = {"kind": "sleep", "min": 0.005, "max": 0.03}
WITHIN = 10.0 if FULL else 60.0
"""Seconds from the moment at which the broker listens until submissions are graded again."""


class BrokerRestartedTests(FaultTestCase):
    """The broker is stopped in order, or killed; the agent has the pauses that it has by default."""

    fault = "F3"

    async def test_restarted(self) -> None:
        """Restarted 20 times, the broker gets every submission graded; within 10 s after it listens work goes on."""
        restarts = self.sized(2, 20)
        signals = ([SIGTERM, SIGKILL] * restarts)[:restarts]
        self.random.shuffle(signals)
        pauses = {"retry_initial": 0.5, "retry_max": 30}
        agent = await self.agent(agent={"concurrency": CONCURRENCY}, broker=pauses, grader=GRADER)
        await self.begin()
        self.producer.keep_up()
        recoveries = []
        for number in signals:
            done = len(self.ledger.verdicts)
            await until(lambda done=done: len(self.ledger.verdicts) > done + 100)  # type: ignore[misc]
            await until(lambda: known_to_the_disk(self.node, self.requests, self.results, self.dead))
            self.assertTrue(self.ledger.missing, "there was no load")
            await self.node.kill(number)
            await self.node.start()
            recoveries.append(await self.recovery(time.monotonic()))
        await self.producer.stop()
        self.broker = await self.channel(confirming=True)
        await self.check(times=restarts, recovery=max(recoveries))
        self.assertLess(max(recoveries), WITHIN, recoveries)
        await agent.stop()
        self.assert_clean(agent)


class DropsTests(FaultTestCase):
    """Every connection is reset, a hundred times in a row."""

    fault = "F3 drops"

    async def test_drops(self) -> None:
        """Within 10 s of each drop the agent has as many consumers as it is configured to."""
        drops = self.sized(5, 100)
        proxy = FaultProxy.start(self)
        agent = await self.agent(broker={"urls": proxy.url, "retry_initial": 0.5, "retry_max": 30}, grader=GRADER)
        await self.begin()
        self.producer.keep_up(20)
        recoveries = []
        for _ in range(drops):
            self.assertEqual(len(proxy.connections), 2)
            proxy.reset()
            began = time.monotonic()
            await until(lambda: len(proxy.connections) == 2)
            recoveries.append(await self.recovery(began))
        await self.producer.stop()
        self.assertEqual(proxy.did["reset"], 2 * drops)
        await self.check(times=drops, recovery=max(recoveries))
        self.assertLess(max(recoveries), WITHIN, recoveries)
        while not (await self.broker.declare_queue(self.requests, passive=True)).consumers:
            self.assertTrue(agent.alive)
        await agent.stop()
        self.assert_clean(agent)
