"""A bridge: fetches submissions from an LMS with edx-submissions, and posts their verdicts there."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredLock

from edxagent.config.lms_values import BridgeConfig
from edxagent.interfaces import IPublisher
from edxagent.lms.bridge.outstanding import Outstanding
from edxagent.lms.bridge.pause import Uniform
from edxagent.lms.bridge.polling import Polling
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
        self._outstanding = Outstanding(config.answer_within, reactor.seconds)
        self._make_polling = partial(
            Polling,
            publisher=publisher,
            ledger=ledger,
            outstanding=self._outstanding,
            reactor=reactor,
            wall_clock=wall_clock,
            uniform=uniform,
        )
        self._polling = self._make_polling(config, messages=messages)
        self.sink = PutResultSink(
            origin=config.origin,
            root=self._polling.root,
            client=self._polling.client,
            ledger=ledger,
            outstanding=self._outstanding,
            turns=self._polling.turns,
        )
        self._resting = False
        self._turn = DeferredLock()
        self._changes = Tasks()

    def startService(self) -> None:
        """Begin to poll, as soon as the ledger has told what is out."""
        super().startService()
        self._polling.open()
        if not self._resting:
            self._polling.begin(self.sink)

    def stopService(self) -> Deferred[None]:
        """Fetch nothing more; fires when the broker has what was fetched, and every connection is closed."""
        super().stopService()
        self._polling.end()
        return Deferred.fromCoroutine(self._end())

    def rest(self) -> None:
        """Fetch nothing more until another configuration comes; what was fetched can be answered still."""
        self._resting = True
        self._polling.end()

    def prepared(self, config: BridgeConfig, messages: Mapping[str, str]) -> Callable[[], None]:
        """See that it can go by another configuration of the same name; returns what has it do so.

        What is out stays out, and a verdict that is being posted is posted as it was begun.

        :raises ValueError: as the class does.
        """
        polling = self._make_polling(config, messages=messages)

        def change() -> None:
            self._resting = False
            self._outstanding.answer_within = config.answer_within
            self.sink.use(root=polling.root, client=polling.client, turns=polling.turns)
            polling.open()
            self._polling.end()
            self._changes.launch(self._succeed(polling), "changing a bridge")

        return change

    async def _succeed(self, polling: Polling) -> None:
        """Two never poll at once: both might be handed the same submission."""
        await self._turn.acquire()
        try:
            before, self._polling = self._polling, polling
            try:
                await before.rest()
                if self.running and not self._resting:
                    polling.begin(self.sink)
                await before.close()
            except CancelledError:
                await before.cut()
                raise
        finally:
            self._turn.release()

    async def _end(self) -> None:
        try:
            await self._changes.when_idle()
            await self._polling.close()
        except CancelledError:
            self._changes.cancel()
            await self._polling.cut()
            raise
