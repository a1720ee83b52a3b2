"""Taking results: the connection that they come over, and a consumer on it for as long as the valve is open."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.defer import TimeoutError as TimeIsOver
from twisted.internet.task import deferLater
from twisted.logger import Logger

from edxagent.agent.valve import Valve
from edxagent.amqp.link import BrokerLink, Session
from edxagent.amqp.topology import ensure_updater_topology
from edxagent.amqp.watchdog import Watchdog
from edxagent.config.lms_values import UpdaterConfig
from edxagent.config.values import BrokerConfig
from edxagent.errors import BrokerError, BrokerRefused, BrokerUnreachable
from edxagent.interfaces import IDelivery
from edxagent.lms.updater.consumer import Consumer
from edxagent.tasks import Tasks

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0


class Taking(Service):
    """Takes results, from ``startService`` until :meth:`close`; the connection lasts until ``stopService`` is done.

    :param receive: takes a result through its life; fires when that has ended.
    :param has_room: whether another result would be begun at once.
    :param valve: no result is taken while it is shut. Meanwhile we see that all queues are there: one that somebody has
        deleted may be the reason.
    :param on_refused: see :class:`~edxagent.amqp.link.BrokerLink`.
    :param on_stuck: see :class:`~edxagent.amqp.watchdog.Watchdog`.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        config: UpdaterConfig,
        broker: BrokerConfig,
        name: str,
        reactor: Any,
        valve: Valve,
        receive: Callable[[IDelivery], Deferred[None]],
        has_room: Callable[[], bool],
        on_refused: Callable[[BrokerRefused], object],
        on_stuck: Callable[[], object],
    ) -> None:
        self._config = config
        self._broker = broker
        self._clock = reactor
        self._valve = valve
        self._pass_on = receive
        self._has_room = has_room
        self._session: Session | None = None
        self._consumer: Consumer | None = None
        self._taking = Tasks()
        self._leaving = Tasks()
        self._opened: Deferred[None] | None = None
        self._link = BrokerLink(
            reactor=reactor, config=broker, purpose="results", name=name, prepare=self._prepare, on_refused=on_refused
        )
        self._watchdog = Watchdog(
            clock=reactor,
            seconds=broker.watchdog,
            hungry=self._hungry,
            queues=lambda: [self._config.queue],
            on_stuck=on_stuck,
        )
        valve.watch(self._adjust)

    @property
    def consuming(self) -> bool:
        """Whether results are taken just now."""
        return self._consumer is not None

    def startService(self) -> None:
        """Connect, then take results."""
        super().startService()
        self._link.startService()
        self._watchdog.start()

    async def close(self) -> None:
        """Take no more. Returns when the broker will send no more."""
        self.running = 0
        self._watchdog.stop()
        self._taking.cancel()
        await self._taking.when_idle()
        if self._consumer is not None:
            with suppress(BrokerError):
                await self._consumer.cancel()
            self._consumer = None

    def stopService(self) -> Deferred[None]:
        """Close the connection; fires when it is gone. What isn't settled by then comes again."""
        super().stopService()
        self._watchdog.stop()
        self._leaving.cancel()
        return self._link.stopService()

    def hurry(self) -> None:
        """Have the broker agree to an end soon, now or whenever it comes."""
        self._link.hurry()

    async def prepared(self, config: UpdaterConfig) -> Callable[[], None]:
        """See to the queues of another configuration; returns what has us go by it, over the same connection.

        What came by the configuration that there was is finished and acked. Nothing has changed yet.

        :raises BrokerRefused: something is missing, or the broker doesn't let us.
        :raises BrokerUnreachable: the broker didn't answer in time.
        """
        while (session := self._session) is not None:
            try:
                await self._ensure_topology(session, config)
            except BrokerUnreachable:
                if session.alive:
                    raise
            if session is self._session:
                break

        def change() -> None:
            same = (config.queue, config.concurrency) == (self._config.queue, self._config.concurrency)
            self._config = config
            if not same and self._consumer is not None:
                self._consumer.end()

        return change

    # The connection

    async def _prepare(self, session: Session) -> None:
        """A session is up: see to the queues, then take results from it for as long as it lasts."""
        config = None
        while config is not self._config:
            config = self._config
            await self._ensure_topology(session, config)
        self._session = session
        session.when_lost().addCallback(lambda _: self._abandon())
        if self.running:
            self._taking.launch(self._take(session), "taking results")

    def _abandon(self) -> None:
        self._taking.cancel()
        self._session = self._consumer = None

    async def _ensure_topology(self, session: Session, config: UpdaterConfig) -> None:
        await ensure_updater_topology(session, self._broker, config.queue, config.retry_delays)

    # What is taken from it

    async def _take(self, session: Session) -> None:
        """Keep a consumer; begin anew when it ended, as when its queue was deleted."""
        pause, doubtful = FIRST_PAUSE, False
        while True:
            if not self._valve.is_open:
                await self._until_open(session)
            began = self._clock.seconds()
            reason = await self._consume(session, doubtful=doubtful)
            doubtful = reason is not None
            if reason is None:
                continue
            if self._clock.seconds() - began > LONGEST_PAUSE:
                pause = FIRST_PAUSE
            self._log.warn(
                "no results from {queue} for now: {reason}; again in {pause:g} s",
                queue=self._config.queue,
                reason=str(reason),
                pause=pause,
            )
            await deferLater(self._clock, pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _consume(self, session: Session, *, doubtful: bool) -> BrokerError | None:
        """Take results until that ends; returns why, or ``None`` if it was our wish.

        :param doubtful: whether the queue may be gone.
        """
        config = self._config
        try:
            if doubtful:
                await self._ensure_topology(session, config)
            consumer = Consumer(await session.open_channel(), self._receive)
            await consumer.begin(config.queue, prefetch=config.concurrency)
        except BrokerError as error:
            return error
        self._consumer = consumer
        self._adjust()  # the valve may have been shut meanwhile
        if config is not self._config:
            consumer.end()
        reason = await consumer.ended
        self._consumer = None
        self._leaving.launch(consumer.leave(), "ending a consumer of results")
        return reason

    def _adjust(self) -> None:
        if not self._valve.is_open:
            if self._consumer is not None:
                self._consumer.end()
        elif self._opened is not None:
            opened, self._opened = self._opened, None
            opened.callback(None)

    async def _until_open(self, session: Session) -> None:
        while not self._valve.is_open:
            try:
                await self._ensure_topology(session, self._config)
            except BrokerError as error:
                self._log.warn("the queues for results can't be seen to: {reason}", reason=str(error))
            if not self._valve.is_open:
                self._opened = Deferred()
                with suppress(TimeIsOver):
                    await self._opened.addTimeout(LONGEST_PAUSE, self._clock)

    def _receive(self, delivery: IDelivery) -> Deferred[None]:
        self._watchdog.fed()
        if self.running:
            return self._pass_on(delivery)
        delivery.requeue()
        return succeed(None)

    def _hungry(self) -> Session | None:
        return self._session if self._consumer is not None and self._has_room() else None
