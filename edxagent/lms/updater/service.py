"""The updater as one Twisted service: takes results from their queue and sees to it that they reach their sinks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from edxagent.agent.results import ResultPublisher
from edxagent.agent.valve import Valve
from edxagent.breaker import Breaker
from edxagent.config.lms_values import UpdaterConfig
from edxagent.config.values import BrokerConfig
from edxagent.errors import BrokerRefused
from edxagent.interfaces import IDelivery, IPublisher, IResultSink
from edxagent.lms.contracts import ILedger
from edxagent.lms.updater.checks import ResultChecker
from edxagent.lms.updater.desk import Desk
from edxagent.lms.updater.life import ResultLife, Retries
from edxagent.lms.updater.notes import Notes
from edxagent.lms.updater.taking import Taking
from edxagent.lms.updater.turns import Turns
from edxagent.tasks import Patience, Tasks

LAST_CHANCE = 10.0
"""Seconds that a cancelled delivery may take to let go of what it holds, before the updater stops without it."""


class Updater(Service):
    """Hands results over, from ``startService`` until the Deferred of ``stopService`` has fired.

    While something that follows from a result can't be published, no more are taken. (A broker that takes no messages
    for want of memory isn't reason enough: verdicts that the LMS takes need none, and make room.)

    The publisher, the sinks and the ledger belong to whoever made it: they run before it starts and after it stopped.

    :param name: with the purpose ``results``, what the broker's list of connections shows.
    :param reactor: provides ``IReactorTCP``, ``IReactorTime``, ``IReactorPluggableNameResolver``.
    :param wall_clock: seconds since the epoch.
    :param drain_timeout: how long a stop waits for what is under way.
    :param on_refused: see :class:`~edxagent.amqp.link.BrokerLink`.
    :param on_stuck: see :class:`~edxagent.amqp.watchdog.Watchdog`.
    :ivar valve: whether results are taken, and every reason why not.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        config: UpdaterConfig,
        broker: BrokerConfig,
        name: str,
        sinks: Mapping[str, IResultSink],
        publisher: IPublisher,
        ledger: ILedger | None,
        reactor: Any,
        wall_clock: Callable[[], float],
        drain_timeout: float,
        on_refused: Callable[[BrokerRefused], None],
        on_stuck: Callable[[], object] = lambda: None,
    ) -> None:
        self.setName("updater")
        self.valve = Valve()
        self._config = config
        self._clock = reactor
        self._wall_clock = wall_clock
        self._drain_timeout = drain_timeout
        self._patience = Patience(reactor)
        self._notes = Notes(ledger)
        self._publisher = ResultPublisher(publisher, config.queue, reactor, self.valve)
        self._turns = Turns(config.concurrency)
        self._breaker = self._new_breaker(config)
        self._shift = Shift(self._life(config, sinks, self._breaker))
        self._shifts = [self._shift]
        self._taking = Taking(
            config=config,
            broker=broker,
            name=name,
            reactor=reactor,
            valve=self.valve,
            receive=self._receive,
            has_room=lambda: self._count < self._config.concurrency,
            on_refused=on_refused,
            on_stuck=on_stuck,
        )

    @property
    def consuming(self) -> bool:
        """Whether results are being taken."""
        return self._taking.consuming

    def startService(self) -> None:
        """Connect and begin to take results."""
        super().startService()
        self._patience.renew()
        self._taking.startService()

    def stopService(self) -> Deferred[None]:
        """Take no more, finish what is under way, give the rest back, then close; fires when all that is done."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    def hurry(self) -> None:
        """Cut a stop short, or the one that is about to begin: what is still under way goes back to its queue."""
        self._taking.hurry()
        self._patience.hurry()

    # Stopping

    async def _stop(self) -> None:
        if not await self._patience.with_time(self._drain_timeout, Deferred.fromCoroutine(self._drain())):
            self._log.warn("{count} results go back to their queue", count=self._count)
            for shift in self._shifts:
                shift.cancel()
            await self._patience.to_the_last(LAST_CHANCE, Deferred.fromCoroutine(self._all_over()))
        if not await self._patience.to_the_last(LAST_CHANCE, self._notes.when_written()):
            self._notes.cancel()
        await self._taking.stopService()

    async def _drain(self) -> None:
        # A broker that doesn't answer is no reason to drain for longer, so this is a part of it.
        await self._taking.close()
        if self._count:
            self._log.info("waiting for {count} results", count=self._count)
        await self._all_over()

    async def _all_over(self) -> None:
        for shift in list(self._shifts):
            await shift.when_over()

    def _receive(self, delivery: IDelivery) -> Deferred[None]:
        return self._shift.receive(delivery)

    @property
    def _count(self) -> int:
        """How many results are under way."""
        return sum(shift.count for shift in self._shifts)

    # From one configuration to another

    async def prepared(
        self, config: UpdaterConfig, sinks: Mapping[str, IResultSink], drain_timeout: float
    ) -> Callable[[], Deferred[None]]:
        """See that it can go by another configuration; returns what has it do so. Nothing has changed yet.

        A result ends by the configuration by which it began. What is returned returns a Deferred that fires when none
        is under way any more that began before: then nobody needs the sinks of that time.

        :raises BrokerError: the broker doesn't let us have a queue.
        """
        same_breaker = _breaker_settings(config) == _breaker_settings(self._config)
        breaker = self._breaker if same_breaker else self._new_breaker(config)
        shift = Shift(self._life(config, sinks, breaker))
        take_by = await self._taking.prepared(config)

        def change() -> Deferred[None]:
            if config.concurrency != self._config.concurrency:
                self._turns.resize(config.concurrency)
            self._config, self._drain_timeout, self._breaker = config, drain_timeout, breaker
            self._publisher.default_key = config.queue
            before, self._shift = self._shift, shift
            self._shifts.append(shift)
            take_by()
            return before.when_over().addCallback(lambda _: self._shifts.remove(before))

        return change

    def _new_breaker(self, config: UpdaterConfig) -> Breaker:
        return Breaker(failures=config.breaker_failures, pause=config.breaker_pause, seconds=self._clock.seconds)

    def _life(self, config: UpdaterConfig, sinks: Mapping[str, IResultSink], breaker: Breaker) -> ResultLife:
        return ResultLife(
            checker=ResultChecker(config),
            turns=self._turns,
            desk=Desk(sinks=sinks, breaker=breaker, refusal_attempts=config.refusal_attempts, notes=self._notes),
            sinks=tuple(sinks),
            retries=Retries(queue=config.queue, delays=config.retry_delays),
            publisher=self._publisher,
            notes=self._notes,
            clock=self._clock,
            wall_clock=self._wall_clock,
        )


class Shift:
    """The results that are handled by one configuration."""

    def __init__(self, life: ResultLife) -> None:
        self._life = life
        self._lives = Tasks()

    @property
    def count(self) -> int:
        """How many haven't ended yet."""
        return len(self._lives)

    def receive(self, delivery: IDelivery) -> Deferred[None]:
        """Take a result through its life; fires when that has ended. Cancelling gives it back to its queue."""
        return self._lives.launch(self._life.handle(delivery), "a result's life")

    def cancel(self) -> None:
        """Give back everything that hasn't ended yet."""
        self._lives.cancel()

    def when_over(self) -> Deferred[None]:
        """Fires when every result has ended; cancelling stops the waiting only."""
        return self._lives.when_idle()


def _breaker_settings(config: UpdaterConfig) -> tuple[int, float]:
    return config.breaker_failures, config.breaker_pause
