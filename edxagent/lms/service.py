"""The LMS side as one Twisted service: in which order its parts start and stop, and how they change."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from edxagent.config.lms_values import LMSConfig
from edxagent.errors import BrokerRefused, ConfigError
from edxagent.interfaces import IResultSink
from edxagent.lms.altering import Altered, prepared
from edxagent.lms.changes import changed_sections, within_reach
from edxagent.lms.parts import Parts, PartsMaker
from edxagent.reload.changes import Changes
from edxagent.tasks import Patience, Tasks

LAST_CHANCE = 15.0
"""Seconds that the parts have, once the time for a stop is over, to let go of what they hold: longer than a request to
an LMS takes, which isn't cut off, because nobody would know then what became of it."""


def make_lms_service(
    config: LMSConfig,
    reactor: Any,
    *,
    on_refused: Callable[[BrokerRefused], None] | None = None,
    on_deaf: Callable[[ConfigError], None] | None = None,
    on_stuck: Callable[[], object] = lambda: None,
    wall_clock: Callable[[], float] = time.time,
    sinks: Mapping[str, IResultSink] | None = None,
) -> LMSService:
    """The LMS side, to be hung into any ``MultiService``.

    :param reactor: provides ``IReactorTime``, ``IReactorTCP``, ``IReactorThreads``, ``IReactorPluggableNameResolver``.
    :param on_refused: is called when every broker has refused one of our connections from the start, in a way that only
        a person can mend, and none is tried again. The program that owns the process may stop then; an embedding one
        may carry on, with the gateway telling the LMS that nothing can be submitted.
    :param on_deaf: is called when the gateway can't listen where it should; the other parts are at work all the same.
    :param on_stuck: is called when the broker has verdicts for us, yet sends none, over any connection that we make.
        Only another process may help then.
    :param wall_clock: seconds since the epoch, for what others read; deadlines run by the reactor's clock.
    :param sinks: name → sink of your own, in the place of the configured ones; a bridge's is there in any case. One
        that is an ``IService`` is started and stopped.
    :raises ConfigError: what is configured doesn't fit together, or can't be used.
    """
    nothing: Callable[[Any], None] = lambda news: None  # noqa: E731
    maker = PartsMaker(
        config, reactor, on_refused=on_refused or nothing, on_stuck=on_stuck, wall_clock=wall_clock, sinks=sinks
    )
    return LMSService(
        config=config,
        parts=maker.make(),
        prepared=partial(prepared, maker),
        clock=reactor,
        on_deaf=on_deaf or nothing,
    )


class LMSService(Service):
    """Works from ``startService`` until the Deferred of ``stopService`` has fired.

    :param prepared: see :func:`edxagent.lms.altering.prepared`, without its first argument.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        config: LMSConfig,
        parts: Parts,
        prepared: Callable[[Parts, LMSConfig, bool], Awaitable[Callable[[], Altered]]],
        clock: Any,
        on_deaf: Callable[[ConfigError], None],
    ) -> None:
        self.setName("edxagent-lms")
        self._config = config
        self._parts = parts
        self._prepared = prepared
        self._clock = clock
        self._on_deaf = on_deaf
        self._ending = Tasks()
        self._patience = Patience(clock)
        self._leaving: list[IService] = []
        self._changes = Changes(
            current=lambda: self._config,
            within_reach=within_reach,
            changed_sections=changed_sections,
            take_over=self._take_over,
        )

    def startService(self) -> None:
        """Start what others need first, and the door last."""
        super().startService()
        self._patience.renew()
        parts = self._parts
        sinks, bridges = parts.sink_services.values(), parts.bridges.values()
        for part in (parts.ledger, *sinks, parts.publishing, parts.updater, *bridges, parts.pull):
            if part is not None:
                part.startService()
        if parts.gateway is not None:
            parts.gateway.startService()
            parts.gateway.listening.addErrback(self._deaf)

    def stopService(self) -> Deferred[None]:
        """Take no more, bring to an end what is under way, then close; fires when nothing is left of us.

        The LMS, or RabbitMQ, has what didn't come to its end in time.
        """
        super().stopService()
        self._changes.stop()
        return Deferred.fromCoroutine(self._stop())

    def hurry(self) -> None:
        """Cut a stop short, or the one that is about to begin. A request to an LMS comes to its end all the same."""
        self._patience.hurry()
        if not self.running:
            self._hurry_parts()

    def reconfigure(self, config: LMSConfig) -> Deferred[None]:
        """Go on with another configuration, on the same connections and at the same address. During a stop it does
        nothing.

        What is under way ends by the configuration by which it began. What can't change without a restart stays as it
        is, and a line in the log names it.

        :raises ConfigError: a part can't go by it; nothing has changed.
        :raises BrokerError: the broker doesn't let us have a queue; nothing has changed.
        """
        return Deferred.fromCoroutine(self._changes.to(config))

    async def _take_over(self, config: LMSConfig) -> None:
        change = await self._prepared(self._parts, config, bool(self.running))
        altered = change()
        self._config, self._parts = config, altered.parts
        self._leaving += altered.left
        altered.over.addCallback(lambda _: self._let_go(altered.left))

    def _let_go(self, sinks: Iterable[IService]) -> None:
        """Stop the sinks that aren't needed any more, but for those that were stopped already."""
        for sink in sinks:
            if sink in self._leaving:
                self._leaving.remove(sink)
                self._ending.launch(_stopped(sink), "stopping a sink")

    async def _stop(self) -> None:
        parts = self._parts
        self._ending.launch(self._end_taking(), "stopping the gateway")
        self._ending.launch(self._end_delivering(), "stopping the updater")
        if not await self._patience.with_time(self._config.drain_timeout, self._ending.when_idle()):
            if not self._patience.hurried:
                self._log.warn("stopping takes too long; what is under way is given up")
            self._hurry_parts()
        publishing = parts.publishing.stopService()
        # Nobody's hurry cuts this short.
        if not await Patience(self._clock).to_the_last(LAST_CHANCE, self._ending.when_idle()):
            self._log.error("a part didn't stop within {seconds:g} s", seconds=LAST_CHANCE)
            self._ending.cancel()
        await publishing
        self._leaving += parts.sink_services.values()
        self._let_go(list(self._leaving))
        await self._ending.when_idle()
        if parts.ledger is not None:
            await parts.ledger.stopService()
        self._changes.resume()

    def _hurry_parts(self) -> None:
        for part in (self._parts.gateway, self._parts.pull, self._parts.updater, self._parts.publishing):
            if part is not None:
                part.hurry()

    async def _end_taking(self) -> None:
        if self._parts.gateway is not None:
            await self._parts.gateway.stopService()
        if self._parts.pull is not None:
            await self._parts.pull.stopService()

    async def _end_delivering(self) -> None:
        # The bridges post the updater's verdicts to the end.
        if self._parts.updater is not None:
            await self._parts.updater.stopService()
        for stopping in [bridge.stopService() for bridge in self._parts.bridges.values()]:
            await stopping

    def _deaf(self, failure: Failure) -> None:
        if self.running:
            error = failure.value
            if not isinstance(error, ConfigError):
                self._log.failure("the gateway failed to start", failure)
                error = ConfigError(["the gateway failed to start"])
            self._log.error("{reason}", reason=str(error))
            self._on_deaf(error)


async def _stopped(service: IService) -> None:
    await maybeDeferred(service.stopService)
