"""A bridge: fetches submissions from an LMS with edx-submissions, and posts their verdicts there."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.logger import Logger

from edxagent.config.lms_values import BridgeConfig
from edxagent.errors import SinkRefused, SinkUnavailable
from edxagent.interfaces import IPublisher
from edxagent.lms.bridge.client import Client
from edxagent.lms.bridge.intake import Intake, Stopped
from edxagent.lms.bridge.outstanding import Outstanding, Waiting
from edxagent.lms.bridge.pause import Naps, Uniform
from edxagent.lms.bridge.poller import Peace, Poller
from edxagent.lms.bridge.session import Session
from edxagent.lms.bridge.sink import PutResultSink
from edxagent.lms.contracts import ILedger
from edxagent.model import CheckedResult, Outcome
from edxagent.tasks import Tasks
from edxagent.verdict import failure_verdict

LOOKS = 60
"""How often within ``give_up_after`` we look for what has waited too long."""


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

    _log = Logger()

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
        self._messages = messages
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
        self._tasks.launch(self._give_up_in_time(), "giving up submissions")
        for poller in self._pollers:
            self._tasks.launch(poller.run(), "polling an LMS")

    async def _end(self) -> None:
        await self._tasks.when_idle()
        for _ in range(self._config.concurrency):  # nobody's request is cut off: its end would never be known
            await self._turns.acquire()
        await self._session.close()
        for _ in range(self._config.concurrency):
            self._turns.release()

    async def _give_up_in_time(self) -> None:
        while not self._naps.over:
            await self._naps.sleep(self._config.give_up_after / LOOKS)
            for waiting in self._outstanding.older_than(self._config.give_up_after):
                if self._naps.over or not await self._give_up(waiting):
                    break

    async def _give_up(self, waiting: Waiting) -> bool:
        """Tell the learner of one that waited too long that it failed; false if the LMS can't be told now."""
        if waiting.header is not None:
            outcome = Outcome.UNAVAILABLE
            failure = CheckedResult(
                submission=waiting.submission,
                outcome=str(outcome),
                queue=waiting.queue,
                origin=self._config.origin,
                header=waiting.header,
                verdict=failure_verdict(outcome, self._messages),
            )
            try:
                await self.sink.give_up(failure)
            except SinkUnavailable as error:
                self._log.warn(
                    "{submission} can't be given up: {reason}", submission=waiting.submission, reason=str(error)
                )
                return False
            except SinkRefused as error:
                self._log.error("{submission} is given up: {reason}", submission=waiting.submission, reason=str(error))
        # Without its header it can't be answered: it is when the LMS hands it out again, for which there must be room.
        self._outstanding.forget(waiting.submission)
        return True
