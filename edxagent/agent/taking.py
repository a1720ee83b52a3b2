"""Taking requests: the consuming connection, and an intake on it for as long as the valve is open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred

from edxagent.agent.intake import Intake
from edxagent.agent.lane import QueuePort
from edxagent.agent.valve import Valve
from edxagent.amqp.channel import Channel
from edxagent.amqp.link import BrokerLink, Session
from edxagent.amqp.topology import ensure_agent_topology, ensure_request_queue
from edxagent.config.values import AgentConfig
from edxagent.errors import BrokerError, BrokerRefused
from edxagent.interfaces import IDelivery, IHeldDelivery
from edxagent.limits import FairSlots


class Taking(Service):
    """Takes requests, from ``startService`` until :meth:`close`; the connection lasts until ``stopService`` is done.

    :param receive: takes a held delivery through its life; fires when it has ended.
    :param valve: no request is taken while it is shut.
    :param on_refused: see :class:`~edxagent.amqp.link.BrokerLink`.
    """

    def __init__(
        self,
        *,
        config: AgentConfig,
        reactor: Any,
        slots: FairSlots,
        valve: Valve,
        receive: Callable[[IHeldDelivery], Deferred[None]],
        on_refused: Callable[[BrokerRefused], None],
    ) -> None:
        self._config = config
        self._clock = reactor
        self._slots = slots
        self._valve = valve
        self._receive = receive
        self._intake: Intake | None = None
        self._link = BrokerLink(
            reactor=reactor,
            config=config.broker,
            purpose="consume",
            name=config.name,
            prepare=self._prepare,
            on_refused=on_refused,
        )

    @property
    def consuming(self) -> bool:
        """Whether there is a session that requests are taken from."""
        return self._link.session is not None

    def startService(self) -> None:
        """Connect, then take requests."""
        super().startService()
        self._link.startService()

    async def close(self) -> None:
        """Take no more; what is held but not begun goes back. Returns when the broker will send no more."""
        self.running = 0
        if self._intake is not None:
            await self._intake.close()

    def stopService(self) -> Deferred[None]:
        """Close the connection; fires when it is gone. What isn't settled by then comes again."""
        super().stopService()
        return self._link.stopService()

    def hurry(self) -> None:
        """Have the broker agree to an end soon, now or whenever it comes."""
        self._link.hurry()

    async def _prepare(self, session: Session) -> None:
        """A session is up: see to the queues, then take requests from it for as long as it lasts."""
        await ensure_agent_topology(session, self._config)
        if not self.running:
            return
        intake = Intake(
            queues=tuple(queue.name for queue in self._config.queues),
            open_port=lambda queue, failed: self._open_port(session, queue, failed),
            slots=self._slots,
            receive=self._receive,
            clock=self._clock,
        )
        self._intake = intake
        intake.open()
        session.when_lost().addCallback(lambda _: intake.abandon())

    async def _open_port(self, session: Session, queue: str, failed: bool) -> QueuePort:
        if failed:
            await ensure_request_queue(session, self._config.broker, queue)
        return ChannelPort(await session.open_channel(), queue)


class ChannelPort:
    """A channel that serves one queue, as a lane wants it."""

    def __init__(self, channel: Channel, queue: str) -> None:
        self._channel = channel
        self._queue = queue

    async def consume(self, receive: Callable[[IDelivery], None], ended: Callable[[BrokerError], None]) -> str:
        """See :class:`QueuePort`."""
        return await self._channel.consume(self._queue, receive, ended, prefetch=1)

    async def cancel(self, tag: str) -> None:
        """See :class:`QueuePort`."""
        await self._channel.cancel(tag)

    async def get(self) -> IDelivery | None:
        """See :class:`QueuePort`."""
        return await self._channel.get(self._queue)

    async def close(self) -> None:
        """See :class:`QueuePort`."""
        await self._channel.close()
