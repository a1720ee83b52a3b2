"""What a fault of the soak acts on, and the chance by which it does."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from signal import SIGHUP
from typing import Any

from attrs import field, frozen
from twisted.internet.task import deferLater

from edxagent.amqp.channel import Channel
from edxagent.amqp.link import BrokerLink
from edxagent.errors import BrokerError
from edxagent.privatenode import PrivateNode
from tests.cli_process import until
from tests.faults.proxy import ProxiedConnection
from tests.faults.soak.agents import CHANGED, SoakedAgent
from tests.faults.soak.ledger import LongLedger
from tests.faults.soak.load import Load
from tests.faults.stream import Stream

DIRECTIONS = ("to_broker", "from_broker")


@frozen(kw_only=True)
class Scene:
    """See the module.

    :ivar witness: an agent that nobody ends: what it holds is counted at the end.
    :ivar victim: one that is killed, and started again.
    :ivar queues: all that mustn't be lost by a broker that is killed.
    :ivar results: the queue of the verdicts.
    :ivar quiet: stops the load; returns when all is graded, and every queue empty.
    :ivar chance: of this fault alone, so that what it does doesn't depend on how those before it went.
    :ivar concurrencies: from, to.
    """

    node: PrivateNode
    witness: SoakedAgent
    victim: SoakedAgent
    load: Load
    ledger: LongLedger
    link: BrokerLink
    queues: tuple[str, ...]
    results: str
    quiet: Callable[[], Any]
    concurrencies: tuple[int, int]
    chance: random.Random = field(factory=random.Random)

    @property
    def agents(self) -> list[SoakedAgent]:
        """Both."""
        return [self.witness, self.victim]

    def some_agent(self) -> SoakedAgent:
        """One of them."""
        return self.chance.choice(self.agents)

    async def some_connection(self, agent: SoakedAgent | None = None) -> tuple[ProxiedConnection, str]:
        """A connection of an agent, any by default, and the agent's name."""
        agent = agent or self.some_agent()
        await agent.whole()
        return self.chance.choice(list(agent.proxy.connections)), agent.name

    async def pause(self, shortest: float, longest: float) -> float:
        """Let some seconds pass; returns how many."""
        from twisted.internet import reactor

        seconds = self.chance.uniform(shortest, longest)
        await deferLater(reactor, seconds)  # type: ignore[arg-type]  # zope's interface, mypy's module
        return seconds

    async def reload(self, agent: SoakedAgent) -> None:
        """Have an agent go by what it is to have now."""

        def told() -> int:
            return sum(map(agent.process.log.count, CHANGED))

        before = told()
        agent.configure()
        agent.process.send_signal(SIGHUP)
        await until(lambda: told() > before, agent.process.run)

    @contextmanager
    def each_connection(self, agent: SoakedAgent, spoil: Callable[[Stream], object]) -> Iterator[None]:
        """While the block lasts, spoil both directions of each connection of an agent, new ones too; then heal them."""

        def each(do: Callable[[Stream], object], connection: ProxiedConnection) -> None:
            do(connection.to_broker)
            do(connection.from_broker)

        for connection in list(agent.proxy.connections):
            each(spoil, connection)
        agent.proxy.on_connection = lambda connection: each(spoil, connection)
        try:
            yield
        finally:
            agent.proxy.on_connection = lambda connection: None
            for connection in list(agent.proxy.connections):
                each(lambda stream: stream.heal(), connection)

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[Channel]:
        """A channel, past every proxy."""
        channel = await (await self.link.when_up()).open_channel()
        try:
            yield channel
        finally:
            with suppress(BrokerError):
                await channel.close()
