"""F4: one direction of one connection fails in every way there is, the others stay; plain and over TLS.

The way to the matrix was shown by Nameko's tests of its broker connections (https://github.com/nameko/nameko).
"""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path

from attrs import frozen
from twisted.internet.task import deferLater

from edxagent.privatenode import PrivateNode, TlsFiles
from tests.agentprocess import AgentProcess
from tests.certificates import Authority
from tests.faults.case import FULL, FaultTestCase
from tests.faults.nodes import own_node
from tests.faults.proxy import HOST, FaultProxy
from tests.faults.stream import Stream

HEARTBEAT = 3
"""Seconds. RabbitMQ notices a silent client between two and three intervals later, the agent a silent broker after two
to two and a half."""
WITHIN = 2 * HEARTBEAT + 5.0 if FULL else 60.0
TIMEOUT = 1.0
"""Seconds of silence before a connection breaks, in the cells that say so."""
SLOWNESS = 120.0


@frozen
class Cell:
    """One cell of the matrix.

    :ivar fault: ``down``: that direction is closed; ``timeout``: it is silent, then the connection breaks;
        ``blackhole``: it is silent.
    """

    fault: str
    direction: str
    purpose: str

    def __str__(self) -> str:
        return f"{self.fault} {self.direction} {self.purpose}"


FAULTS = ("down", "timeout", "blackhole")
WHERE = tuple(product(("to_broker", "from_broker"), ("consume", "publish")))
MATRIX = [Cell(fault, *where) for fault in FAULTS for where in WHERE]


class MatrixTests(FaultTestCase):
    """Over plain TCP."""

    fault = "F4"
    proxy: FaultProxy
    agent_process: AgentProcess

    async def start(self) -> None:
        """Have a proxy and an agent behind it."""
        await self.begin()
        self.proxy = FaultProxy.start(self)
        self.agent_process = await self.agent(broker={"urls": self.proxy.url, "heartbeat": HEARTBEAT})

    async def test_matrix(self) -> None:
        """After each fault the agent grades again, within two heartbeats and five seconds."""
        await self.start()
        recoveries = {}
        one_of_each = [Cell(fault, *self.random.choice(WHERE)) for fault in FAULTS]
        for cell in self.sized(one_of_each, MATRIX):
            await self.recovery(time.monotonic())
            recoveries[str(cell)] = await self.seconds_after(cell)
        self.assertEqual(self.proxy.did["half-closed"] + self.proxy.did["stalled"], len(recoveries))
        await self.check(times=len(recoveries), recovery=max(recoveries.values()))
        self.assertLess(max(recoveries.values()), WITHIN, recoveries)
        await self.agent_process.stop()
        self.assert_clean(self.agent_process)

    async def seconds_after(self, cell: Cell) -> float:
        """Have it happen; how long until all goes well again."""
        from twisted.internet import reactor

        connection = await self.connection(self.proxy, cell.purpose)
        stream: Stream = getattr(connection, cell.direction)
        began = time.monotonic()
        if cell.fault == "down":
            stream.half_close()
        else:
            stream.stall()
        if cell.fault == "timeout":
            await deferLater(reactor, TIMEOUT)  # type: ignore[arg-type]
            connection.reset()
        seconds = await self.recovery(began)
        connection.reset()  # a black hole may still hold it
        self.assertIsNot(await self.connection(self.proxy, cell.purpose), connection)
        return seconds


class SlowTests(FaultTestCase):
    """A network that is slow, and one that is worse."""

    fault = "F4 slow"

    async def test_latency(self) -> None:
        """Half a second each way slows the agent down, and breaks no connection."""
        await self.begin()
        proxy = FaultProxy.start(self)
        agent = await self.agent(broker={"urls": proxy.url})
        for connection in proxy.connections:
            connection.to_broker.delay(0.5)
            connection.from_broker.delay(0.5)
        seconds = await self.recovery(time.monotonic())
        self.assertGreater(seconds, 1.0)
        self.assertEqual(proxy.did["connections"], 2)
        for connection in proxy.connections:
            connection.to_broker.heal()
            connection.from_broker.heal()
        await self.check(times=proxy.did["delayed"], duplicates=0)
        await agent.stop()
        self.assert_clean(agent)

    async def test_trickle(self) -> None:
        """One byte a second, on one direction of a connection after the other, is as good as none: it is left."""
        await self.begin()
        proxy = FaultProxy.start(self)
        agent = await self.agent(broker={"urls": proxy.url, "call_timeout": 3, "confirm_timeout": 3, "watchdog": 5})
        recoveries = {}
        for direction, purpose in self.sized([self.random.choice(WHERE)], list(WHERE)):
            await self.recovery(time.monotonic())
            connection = await self.connection(proxy, purpose)
            stream: Stream = getattr(connection, direction)
            stream.trickle()
            before = proxy.did["connections"]
            recoveries[purpose, direction] = await self.recovery(time.monotonic(), patience=SLOWNESS)
            self.assertGreater(proxy.did["connections"], before)
            connection.reset()  # the broker has yet to hear of its end, byte by byte
        await self.check(times=proxy.did["trickled"], recovery=max(recoveries.values()))
        await agent.stop()
        self.assert_clean(agent)


class TLSMatrixTests(MatrixTests):
    """Over TLS."""

    fault = "F4 TLS"

    async def find_node(self) -> PrivateNode:
        """One with a TLS port."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        authority = Authority(folder / "authority")
        broker = authority.issue(folder / "broker", HOST)
        self.authority = authority.path
        return await own_node(
            self, tls=TlsFiles(certificate=broker.certificate, key=broker.key, authority=authority.path)
        )

    async def start(self) -> None:
        """Have the proxy before the TLS port."""
        await self.begin()
        self.proxy = FaultProxy.start(self, to=self.node.tls_port)
        urls = f"amqps://guest@{HOST}:{self.proxy.port}/"
        self.agent_process = await self.agent(
            broker={"urls": urls, "heartbeat": HEARTBEAT, "tls_ca_file": self.authority}
        )
