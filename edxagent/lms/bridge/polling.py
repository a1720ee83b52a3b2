"""What a bridge does by one configuration: logged in at an LMS, it polls queues, and gives up what waits too long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import DeferredSemaphore

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


class Polling:
    """The arguments are those of :class:`~edxagent.lms.bridge.service.Bridge`.

    :raises ValueError: the configured ``ca_file`` can't be used.
    :ivar root: the LMS's address.
    :ivar client: talks to it.
    :ivar turns: bounds the requests to it.
    """

    def __init__(
        self,
        config: BridgeConfig,
        *,
        publisher: IPublisher,
        ledger: ILedger,
        outstanding: Outstanding,
        reactor: Any,
        wall_clock: Callable[[], float],
        messages: Mapping[str, str],
        uniform: Uniform,
    ) -> None:
        self._config = config
        self._messages = messages
        self._uniform = uniform
        self._reactor = reactor
        self._outstanding = outstanding
        self._tasks = Tasks()
        self._naps = Naps(reactor)
        self._session = Session(config, reactor, uniform)
        self.root = self._session.root
        self.client = Client(self._session)
        self.turns = DeferredSemaphore(config.concurrency)
        self._intake = Intake(
            config=config,
            publisher=publisher,
            ledger=ledger,
            outstanding=outstanding,
            naps=self._naps,
            clock=reactor,
            wall_clock=wall_clock,
            uniform=uniform,
        )

    def open(self) -> None:
        """Be ready to talk to the LMS."""
        self._session.open()

    def begin(self, sink: PutResultSink) -> None:
        """Poll, as soon as the ledger has told what is out; ``sink`` takes the word for what is given up."""
        self._naps.begin()
        self._tasks.launch(self._begin(sink), "starting a bridge")

    def end(self) -> None:
        """Fetch nothing more."""
        self._naps.end()
        self._outstanding.wake()

    async def rest(self) -> None:
        """Fetch nothing more; returns when the broker has what was fetched. Verdicts can be posted still."""
        self.end()
        await self._tasks.when_idle()

    async def close(self) -> None:
        """Let requests come to their ends, which would never be known if they were cut off; cut them when cancelled."""
        turns = 0
        try:
            await self.rest()
            while turns < self._config.concurrency:
                await self.turns.acquire()
                turns += 1
        finally:
            for _ in range(turns):
                self.turns.release()
            await self.cut()

    async def cut(self) -> None:
        """Cut off whatever is under way."""
        self._naps.end()
        self._tasks.cancel()
        await self._session.close()
        await self._tasks.when_idle()

    async def _begin(self, sink: PutResultSink) -> None:
        try:
            await self._intake.remember()
        except Stopped:
            return
        giving_up = GivingUp(
            config=self._config,
            sink=sink,
            outstanding=self._outstanding,
            naps=self._naps,
            messages=self._messages,
        )
        self._tasks.launch(giving_up.run(), "giving up submissions")
        peace = Peace(self._reactor, self._uniform)
        for queue in self._config.queues:
            poller = Poller(
                queue=queue,
                config=self._config,
                client=self.client,
                intake=self._intake,
                outstanding=self._outstanding,
                turns=self.turns,
                peace=peace,
                naps=self._naps,
                uniform=self._uniform,
            )
            self._tasks.launch(poller.run(), "polling an LMS")
