"""F5: connections are cut after N bytes, for every N from the first byte of the handshake to the end of a publish."""

from __future__ import annotations

import time

from attrs import evolve

from tests.cli_process import until
from tests.faults.case import FaultTestCase
from tests.faults.load import Producer
from tests.faults.proxy import HOST, FaultProxy, ProxiedConnection

QUICK = {"retry_initial": 0.01, "retry_max": 0.02}
DIRECTIONS = ("to_broker", "from_broker")


class CutTests(FaultTestCase):
    """No hang, no crash, nothing lost."""

    fault = "F5"

    async def test_every_byte(self) -> None:
        """A publisher whose connection is cut at whichever byte publishes over the next one, and has it confirmed."""
        await self.begin()
        proxy = FaultProxy.start(self)
        link = self.link(self.config(evolve(self.address, host=HOST, port=proxy.port), **QUICK), purpose="publish")
        producer = Producer(link, self.requests, self.ledger)
        await producer.send_many(1)
        (clean,) = proxy.connections
        lengths = {direction: getattr(clean, direction).passed for direction in DIRECTIONS}
        cuts = [(direction, size) for direction, length in lengths.items() for size in range(1, length + 1)]
        cuts = self.sized(self.random.sample(cuts, 40), cuts)
        for number, (direction, size) in enumerate(cuts, 1):
            self.cut_next(proxy, direction, size)
            session = await link.when_up()
            await session.close(0)
            await producer.send_many(1)
            self.assertEqual(proxy.did["cut"], number, f"it wasn't cut at byte {size} {direction}")
        agent = await self.agent()
        await self.check(times=len(cuts))
        await agent.stop()

    async def test_agent(self) -> None:
        """An agent whose connections are cut anywhere, over and over, goes on as soon as they are let be."""
        cuts = self.sized(20, 400)
        await self.begin()
        proxy = FaultProxy.start(self)
        agent = await self.agent(broker={"urls": proxy.url, "retry_initial": 0.05, "retry_max": 0.1})
        await self.recovery(time.monotonic())
        longest = max(max(each.to_broker.passed, each.from_broker.passed) for each in proxy.connections)
        proxy.on_connection = lambda connection: self.cut_somewhere(connection, longest)
        self.producer.keep_up(20)
        proxy.reset()
        await until(lambda: proxy.did["cut"] >= cuts, agent.run, patience=600.0)
        proxy.on_connection = lambda connection: None
        proxy.reset()
        seconds = await self.recovery(time.monotonic(), patience=120.0)
        await self.producer.stop()
        await self.check(times=proxy.did["cut"], recovery=seconds)
        await agent.stop()
        self.assert_clean(agent)

    def cut_next(self, proxy: FaultProxy, direction: str, size: int) -> None:
        """Cut the next connection, and that one only."""

        def cut(connection: ProxiedConnection) -> None:
            proxy.on_connection = lambda connection: None
            getattr(connection, direction).cut_at(size)

        proxy.on_connection = cut

    def cut_somewhere(self, connection: ProxiedConnection, longest: int) -> None:
        """Cut a connection before the end of its usual beginning, wherever that is."""
        getattr(connection, self.random.choice(DIRECTIONS)).cut_at(self.random.randint(1, longest))
