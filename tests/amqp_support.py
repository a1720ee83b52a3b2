"""What the tests of the AMQP room share: links to the private broker that end with their test."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred

from edxagent.amqp.channel import Channel
from edxagent.amqp.link import BrokerLink, Session
from edxagent.config.values import BrokerAddress, BrokerConfig
from edxagent.errors import BrokerError, BrokerRefused
from edxagent.model import Message, Properties
from edxagent.privatenode import PrivateNode
from edxagent.testing.broker import BrokerTestCase
from tests.cli_process import until


async def nothing(session: Session) -> None:
    """A preparation that needs none."""


def message(routing_key: str, body: bytes = b"{}", *, exchange: str = "", **properties: Any) -> Message:
    """A message for the default exchange, which routes by queue name."""
    return Message(exchange=exchange, routing_key=routing_key, body=body, properties=Properties(**properties))


class LinkTestCase(BrokerTestCase):
    """A test with links to the shared node."""

    timeout = 90.0

    @property
    def address(self) -> BrokerAddress:
        """The node's, with RabbitMQ's default user."""
        return BrokerAddress(host=self.node.host, port=self.node.port, username="guest", password="guest")

    def config(self, *addresses: BrokerAddress, **changes: Any) -> BrokerConfig:
        """A configuration that doesn't try one's patience."""
        config = BrokerConfig(
            addresses=addresses or (self.address,), call_timeout=10.0, retry_initial=0.05, retry_max=0.5
        )
        return evolve(config, **changes)

    def link(
        self,
        config: BrokerConfig | None = None,
        *,
        prepare: Callable[[Session], Awaitable[None]] = nothing,
        on_refused: Callable[[BrokerRefused], object] = lambda refused: None,
        purpose: str = "consume",
    ) -> BrokerLink:
        """A started link, stopped after the test."""
        from twisted.internet import reactor

        link = BrokerLink(
            reactor=reactor,
            config=config or self.config(),
            purpose=purpose,
            name=self.id().rsplit(".", 1)[-1],
            prepare=prepare,
            on_refused=on_refused,
        )
        link.startService()
        self.addCleanup(lambda: link.stopService() if link.running else None)
        return link

    async def channel(self, link: BrokerLink | None = None, *, confirming: bool = False) -> Channel:
        """A channel of a new link."""
        session = await (link or self.link()).when_up()
        channel = await session.open_channel()
        if confirming:
            await channel.confirm_select()
        return channel

    async def queue(self, channel: Channel, **options: Any) -> str:
        """A new durable queue, removed after the test."""
        name = self.unique("amqp")
        await channel.declare_queue(name, **options)
        self.addCleanup(lambda: Deferred.fromCoroutine(self._remove(name)))
        return name

    async def _remove(self, name: str) -> None:
        link = self.link()
        await (await self.channel(link)).delete_queue(name)
        await link.stopService()


class Consumer:
    """Keeps what a consumer is told, and lets a test wait for it."""

    def __init__(self, *, ack: bool = True) -> None:
        self.deliveries: list[Any] = []
        self.reasons: list[BrokerError] = []
        self._ack = ack
        self._waiters: list[tuple[int, Deferred[None]]] = []
        self.ended: Deferred[BrokerError] = Deferred()

    def receive(self, delivery: Any) -> None:
        """A delivery."""
        self.deliveries.append(delivery)
        if self._ack:
            delivery.ack()
        for count, waiter in list(self._waiters):
            if len(self.deliveries) >= count:
                self._waiters.remove((count, waiter))
                waiter.callback(None)

    def cancelled(self, reason: BrokerError) -> None:
        """The end."""
        self.reasons.append(reason)
        self.ended.callback(reason)

    def when(self, count: int) -> Deferred[None]:
        """Fires when so many have come."""
        waiter: Deferred[None] = Deferred()
        if len(self.deliveries) >= count:
            waiter.callback(None)
        else:
            self._waiters.append((count, waiter))
        return waiter


def known_to_the_disk(node: PrivateNode, *queues: str) -> bool:
    """Whether RabbitMQ has written down which files are whose queue's, so that a test may kill it.

    It does so when its tables have been left alone for half a second (``auto_save`` of DETS, in ``ra_directory``).
    Killed before, it starts with empty queues that never find a leader.
    """
    tables = list(node.folder.rglob("names.dets"))
    latest = max(table.stat().st_mtime for table in tables)
    known = b"".join(table.read_bytes() for table in tables)
    return time.time() - latest > 1.5 and all(queue.encode() in known for queue in queues)


@asynccontextmanager
async def silenced(node: PrivateNode) -> AsyncIterator[None]:
    """A RabbitMQ that says nothing: when the block begins it is sure to have stopped, and after it, it goes on."""
    pid = node.pid
    assert pid is not None
    threads = Path(f"/proc/{pid}/task")
    os.kill(pid, signal.SIGSTOP)
    try:
        # Each thread stops only when it notices; until then a quick question may still be answered.
        await until(lambda: all(_state(thread) == "T" for thread in threads.iterdir()))
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _state(thread: Path) -> str:
    return (thread / "stat").read_text().rpartition(")")[2].split()[0]
