"""F18: three agents are restarted one after the other, as for a new version, while submissions keep coming."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from attrs import field, frozen
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from edxagent.interfaces import IDelivery
from tests.faults.case import FULL, FaultTestCase
from tests.faults.ledger import Ledger

AGENTS = 3
CONCURRENCY = 10
RATE = 40.0
"""Submissions a second: two agents can just as well grade as many."""
GRADER = {"kind": "sleep", "min": 0.2, "max": 0.4}


@frozen
class TimedLedger(Ledger):
    """Knows also how long each submission waited for its first verdict.

    :ivar sent: id → when it was first published.
    :ivar waits: id → seconds.
    """

    sent: dict[str, float] = field(factory=dict)
    waits: dict[str, float] = field(factory=dict)

    def offered(self, id: str) -> None:
        """See :class:`Ledger`."""
        self.sent.setdefault(id, time.monotonic())
        super().offered(id)

    def verdict(self, delivery: IDelivery) -> None:
        """See :class:`Ledger`."""
        id = str(delivery.properties.message_id)
        self.waits.setdefault(id, time.monotonic() - self.sent[id])
        super().verdict(delivery)

    def p99(self, name: str) -> float:
        """The wait that 99 of 100 of those that were sent under a name don't exceed."""
        waits = sorted(wait for id, wait in self.waits.items() if id.startswith(f"{name}-"))
        return waits[len(waits) * 99 // 100]


class RollingRestartTests(FaultTestCase):
    """``TERM``, and started again when it has ended."""

    fault = "F18"

    async def test_restarted(self) -> None:
        """None is lost or graded twice; hardly anybody waits longer than when nothing is restarted."""
        submissions, rounds = self.sized((300, 1), (5000, 10))
        ledger = self.ledger = TimedLedger()
        sections: dict[str, Any] = {"agent": {"concurrency": CONCURRENCY}, "grader": GRADER}
        config = self.write_config(**sections)
        agents = [self.start_agent(config) for _ in range(AGENTS)]
        for agent in agents:
            await agent.ready()
        await self.begin()
        calmly = submissions // 3
        await self.load("calm", calmly)
        restarts, wanted = 0, rounds * AGENTS
        load = Deferred.fromCoroutine(self.load("restarts", submissions - calmly, lambda: restarts == wanted))
        for _ in range(rounds):
            for number, agent in enumerate(agents):
                self.assertEqual(await agent.stop(), -15)
                self.assert_clean(agent)
                agents[number] = self.start_agent(config)
                await agents[number].ready()
                restarts += 1
        await load
        await self.check(times=restarts, duplicates=0)
        calm, meanwhile = ledger.p99("calm"), ledger.p99("restarts")
        print(f"99 of 100 waited no more than {calm:.2f} s in calm, {meanwhile:.2f} s meanwhile")
        if FULL:  # in the short form a hundredth is two submissions
            self.assertLess(meanwhile, 2 * calm)

    async def load(self, name: str, number: int, enough: Callable[[], bool] = lambda: True) -> None:
        """Send so many or more, at a steady rate, until it is enough; returns when a broker has them."""
        from twisted.internet import reactor

        began, sending = time.monotonic(), []
        while len(sending) < number or not enough():
            sending.append(Deferred.fromCoroutine(self.producer.send(f"{name}-{len(sending)}")))
            due = began + len(sending) / RATE
            await deferLater(reactor, max(0.0, due - time.monotonic()))  # type: ignore[arg-type]
        await gatherResults(sending)
