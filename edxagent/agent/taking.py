"""Taking requests: the consuming connection, and an intake on it for as long as the valve is open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import evolve
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed

from edxagent.agent.intake import Intake
from edxagent.agent.port import ChannelPort, QueuePort
from edxagent.agent.probing import Probing
from edxagent.agent.valve import Valve
from edxagent.amqp.channel import Channel
from edxagent.amqp.link import BrokerLink, Session
from edxagent.amqp.topology import ensure_agent_topology, ensure_request_queue
from edxagent.amqp.watchdog import Watchdog
from edxagent.config.values import AgentConfig
from edxagent.errors import BrokerRefused, BrokerUnreachable
from edxagent.interfaces import IHeldDelivery
from edxagent.limits import FairSlots
from edxagent.tasks import Tasks


class Taking(Service):
    """Takes requests, from ``startService`` until :meth:`close`; the connection lasts until ``stopService`` is done.

    :param receive: takes a held delivery through its life; fires when it has ended.
    :param valve: no request is taken while it is shut, but for those that :meth:`probe` takes.
    :param on_refused: see :class:`~edxagent.amqp.link.BrokerLink`.
    :param on_stuck: see :class:`~edxagent.amqp.watchdog.Watchdog`.
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
        on_stuck: Callable[[], object] = lambda: None,
    ) -> None:
        self._config = config
        self._clock = reactor
        self._slots = slots
        self._valve = valve
        self._pass_on = receive
        self._session: Session | None = None
        self._intake: Intake | None = None
        self._closing = False
        self._tasks = Tasks()
        self._link = BrokerLink(
            reactor=reactor,
            config=config.broker,
            purpose="consume",
            name=config.name,
            prepare=self._prepare,
            on_refused=on_refused,
        )
        self._probing = Probing(
            open_channel=self._open_channel,
            queues=self._queues,
            slots=slots,
            valve=valve,
            receive=self._receive,
            clock=reactor,
        )
        self._watchdog = Watchdog(
            clock=reactor,
            seconds=config.broker.watchdog,
            hungry=self._hungry,
            queues=self._queues,
            on_stuck=on_stuck,
        )
        valve.watch(self._adjust)

    @property
    def consuming(self) -> bool:
        """Whether requests are taken from every queue just now, as far as the broker has any."""
        return self._intake is not None and not self._closing and self._intake.consuming

    def startService(self) -> None:
        """Connect, then take requests."""
        super().startService()
        self._link.startService()
        self._watchdog.start()

    async def close(self) -> None:
        """Take no more; what is held but not begun goes back. Returns when the broker will send no more."""
        self.running = 0
        self._watchdog.stop()
        self._adjust()
        await self._probing.close()
        await self._tasks.when_idle()

    def stopService(self) -> Deferred[None]:
        """Close the connection; fires when it is gone. What isn't settled by then comes again."""
        super().stopService()
        self._watchdog.stop()
        return self._link.stopService()

    def hurry(self) -> None:
        """Have the broker agree to an end soon, now or whenever it comes."""
        self._link.hurry()

    def probe(self) -> Deferred[None]:
        """Take a single request though the valve is shut; see :meth:`edxagent.agent.probing.Probing.probe`."""
        return self._probing.probe() if self.running else succeed(None)

    async def use(self, config: AgentConfig) -> None:
        """Take from the queues of another configuration, over the same connection; without one, over the next.

        What came from a queue that isn't in it, and is being graded, is finished and acked. ``[broker]`` stays as it
        was. Mustn't be called again before it has returned.

        :raises BrokerRefused: something of it is missing, or the broker doesn't let us; nothing has changed then.
        :raises BrokerUnreachable: the broker didn't answer in time; likewise.
        """
        config = evolve(config, broker=self._config.broker)
        while (session := self._session) is not None:
            try:
                await ensure_agent_topology(session, config)
            except BrokerUnreachable:
                if session.alive:
                    raise
            if session is self._session:
                break
        self._config = config
        if self._intake is not None and not self._closing:
            self._intake.take_from(self._queues())

    # The connection

    async def _prepare(self, session: Session) -> None:
        """A session is up: see to what is needed, then take requests from it for as long as it lasts.

        Of a first one everything must be there. Later, a queue that somebody has deleted concerns its own lane only.
        """
        config = None
        while config is not self._config:
            config = self._config
            await ensure_agent_topology(session, config if session.generation == 1 else evolve(config, queues=()))
        self._session = session
        session.when_lost().addCallback(lambda _: self._lost())
        self._adjust()

    def _lost(self) -> None:
        self._session = None
        if self._intake is not None:
            intake, self._intake, self._closing = self._intake, None, False
            intake.abandon()

    # What is taken from it

    def _adjust(self) -> None:
        """Have an intake exactly while there should be one; it has ended before another one begins."""
        wanted = self._session if self.running and self._valve.is_open else None
        if self._intake is None:
            if wanted is not None:
                self._intake = self._open_intake(wanted)
        elif wanted is None and not self._closing:
            self._closing = True
            self._tasks.launch(self._close_intake(self._intake), "ending the taking of requests")

    def _open_intake(self, session: Session) -> Intake:
        async def open_port(queue: str, failed: bool) -> QueuePort:
            if failed or session.generation > 1:
                await ensure_request_queue(session, self._config.broker, queue)
            return ChannelPort(await session.open_channel(), queue)

        intake = Intake(open_port=open_port, slots=self._slots, receive=self._receive, clock=self._clock)
        intake.take_from(self._queues())
        return intake

    async def _close_intake(self, intake: Intake) -> None:
        await intake.close()
        if self._intake is intake:
            self._intake, self._closing = None, False
            self._adjust()

    async def _open_channel(self) -> Channel:
        if self._session is None:
            raise BrokerUnreachable("there is no connection to take a request from")
        return await self._session.open_channel()

    def _receive(self, held: IHeldDelivery) -> Deferred[None]:
        self._watchdog.fed()
        return self._pass_on(held)

    def _hungry(self) -> Session | None:
        return self._session if self.consuming and self._slots.free else None

    def _queues(self) -> tuple[str, ...]:
        return tuple(queue.name for queue in self._config.queues)
