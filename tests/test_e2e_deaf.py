"""The real agent on connections that look alive, but over which RabbitMQ's deliveries never come."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from tests.agentprocess import AgentTestCase
from tests.faults.proxy import FaultProxy, ProxiedConnection
from tests.outcomes import SECRETS, request

METHOD = 1
DELIVER = struct.pack(">HH", 60, 60)
"""``basic.deliver`` (AMQP 0-9-1 §1.8.3.13)."""


class Swallows:
    """Passes on what a broker says, but no deliveries.

    :ivar swallowed: how many it has kept.
    """

    def __init__(self, enter: Callable[[bytes | None], object]) -> None:
        self.swallowed = 0
        self._enter = enter
        self._data = b""
        self._within: dict[int, bool] = {}

    def __call__(self, data: bytes | None) -> None:
        """Bytes came, or the end."""
        if data is None:
            self._enter(None)
            return
        self._data += data
        while len(self._data) >= 7:
            kind, channel, size = struct.unpack(">BHI", self._data[:7])
            if len(self._data) < size + 8:
                break
            frame, self._data = self._data[: size + 8], self._data[size + 8 :]
            if kind == METHOD:  # its content, the frames behind it, goes the same way
                self._within[channel] = frame[7:11] == DELIVER
                self.swallowed += self._within[channel]
            if not self._within.get(channel):
                self._enter(frame)


class DeafTests(AgentTestCase):
    """An agent behind a proxy that swallows deliveries."""

    async def set_up(self) -> None:
        """Start the proxy."""
        await super().set_up()
        self.swallows: list[Swallows] = []
        self.proxy = FaultProxy.start(self)
        self.proxy.on_connection = self.swallow

    def swallow(self, connection: ProxiedConnection) -> None:
        """Let no delivery through."""
        stream: Any = connection.from_broker
        stream.enter = Swallows(stream.enter)
        self.swallows.append(stream.enter)

    async def deaf_agent(self) -> Any:
        """An agent that is waiting for submissions that it is never given."""
        agent = await self.agent(
            agent={"concurrency": 2}, broker={"urls": self.proxy.url, "watchdog": 2, "retry_initial": 0.1}
        )
        for number in range(6):
            await self.publish(request(), message_id=str(number))
        return agent

    async def test_exit(self) -> None:
        """Two new connections don't help, so it ends with status 4; nothing is lost, and the log says why."""
        agent = await self.deaf_agent()
        self.assertEqual(await agent.ended(), 4)
        self.assertEqual(agent.log.count("(consume): connected to "), 3)
        self.assertEqual(agent.log.count(f"though messages are ready in {self.requests}"), 3)
        self.assertGreaterEqual(sum(each.swallowed for each in self.swallows), 3)
        self.assert_clean(agent, SECRETS)
        self.assertEqual(len(await self.collect(self.requests, 6)), 6)

    async def test_healed(self) -> None:
        """A connection made anew that does bring something is kept."""
        agent = await self.deaf_agent()
        await agent.says("connecting anew")
        self.proxy.on_connection = lambda connection: None
        self.assertEqual(len(await self.collect(self.results, 6)), 6)
        await self.until_settled()
        self.assertEqual(agent.log.count("(consume): connected to "), 2)
        self.assertEqual(await agent.stop(), -15)
        self.assert_clean(agent, SECRETS)
