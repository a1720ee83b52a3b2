"""A bridge: fetches submissions from an LMS with edx-submissions, and posts their verdicts there."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredSemaphore

from edxagent.config.lms_values import BridgeConfig
from edxagent.interfaces import IPublisher
from edxagent.lms.bridge.client import Client
from edxagent.lms.bridge.giving_up import GivingUp
from edxagent.lms.bridge.intake import Intake, Stopped
from edxagent.lms.bridge.outstanding import Outstanding
from edxagent.lms.bridge.pause import Naps, Uniform
from edxagent.lms.bridge.poller import Peace, Poller
from edxagent.lms.bridge.session import Session
from edxagent.lms.bridge.sink import PutResultSink
from edxagent.lms.contracts import ILedger
from edxagent.tasks import Tasks


class Bridge(Service):
    """One ``[bridge:NAME]``. Stop those who use :attr:`sink` first: it can't post after this service has stopped.

    :param ledger: started before, stopped after.
    :param reactor: provides ``IReactorTime``, ``IReactorTCP``; its clock never jumps.
    :param wall_clock: seconds since the epoch.
    :param messages: outcome word → what learners are told instead of our own words.
    :param uniform: ``random.uniform``, or a test's own.
    :raises ValueError: the configured ``ca_file`` can't be used.
    :ivar sink: takes the verdicts on what came by this bridge.
    """

    def __init__(
        self,
        config: BridgeConfig,
        publisher: IPublisher,
        ledger: ILedger,
        reactor: Any,
        wall_clock: Callable[[], float],
        *,
        messages: Mapping[str, str] = {},  # nobody changes it
        uniform: Uniform = random.uniform,
    ) -> None:
        self._config = config
        self._reactor = reactor
        self._tasks = Tasks()
        self._naps = Naps(reactor)
        self._turns = DeferredSemaphore(config.concurrency)
        self._session = Session(config, reactor, uniform)
        self._outstanding = Outstanding(config.answer_within, reactor.seconds)
        client = Client(self._session)
        self.sink = PutResultSink(
            origin=config.origin,
            root=self._session.root,
            client=client,
            ledger=ledger,
            outstanding=self._outstanding,
            turns=self._turns,
        )
        self._intake = Intake(
            config=config,
            publisher=publisher,
            ledger=ledger,
            outstanding=self._outstanding,
            naps=self._naps,
            clock=reactor,
            wall_clock=wall_clock,
            uniform=uniform,
        )
        self._giving_up = GivingUp(
            config=config, sink=self.sink, outstanding=self._outstanding, naps=self._naps, messages=messages
        )
        peace = Peace(reactor, uniform)
        self._pollers = [
            Poller(
                queue=queue,
                config=config,
                client=client,
                intake=self._intake,
                outstanding=self._outstanding,
                turns=self._turns,
                peace=peace,
                naps=self._naps,
                uniform=uniform,
            )
            for queue in config.queues
        ]

    def startService(self) -> None:
        """Begin to poll, as soon as the ledger has told what is out."""
        super().startService()
        self._naps.begin()
        self._session.open()
        self._tasks.launch(self._begin(), "starting a bridge")

    def stopService(self) -> Deferred[None]:
        """Fetch nothing more; fires when the broker has what was fetched, and every connection is closed."""
        super().stopService()
        self._naps.end()
        self._outstanding.wake()
        return Deferred.fromCoroutine(self._end())

    async def _begin(self) -> None:
        try:
            await self._intake.remember()
        except Stopped:
            return
        self._tasks.launch(self._giving_up.run(), "giving up submissions")
        for poller in self._pollers:
            self._tasks.launch(poller.run(), "polling an LMS")

    async def _end(self) -> None:
        """Let requests come to their ends, which would never be known if they were cut off; cut them when cancelled."""
        turns = 0
        try:
            await self._tasks.when_idle()
            while turns < self._config.concurrency:
                await self._turns.acquire()
                turns += 1
        finally:
            self._tasks.cancel()
            await self._session.close()
            for _ in range(turns):
                self._turns.release()
            await self._tasks.when_idle()
