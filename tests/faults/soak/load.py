"""The soak's load: submissions of all kinds to several queues, so that about as many always wait for their verdict."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from tests.faults.load import Producer
from tests.faults.soak.kinds import KINDS
from tests.faults.soak.ledger import LongLedger

PAUSE = 0.02
_NAMES = list(KINDS)
_SHARES = [kind.share for kind in KINDS.values()]


class Load:
    """See the module.

    :param producers: who sends to which queue, and how many of so many.
    :param chance: draws kinds and queues.
    :param backlog: about how many wait.
    :ivar next: the number of the next submission. Those that are being published have theirs already.
    """

    def __init__(
        self,
        producers: Mapping[Producer, int],
        ledger: LongLedger,
        chance: random.Random,
        reactor: Any,
        backlog: int,
    ) -> None:
        self._producers = list(producers)
        self._weights = list(producers.values())
        self._ledger = ledger
        self._chance = chance
        self._reactor = reactor
        self._backlog = backlog
        self.next = 1
        self._going = False
        self._ended: Deferred[None] | None = None

    def begin(self) -> None:
        """Send, until :meth:`stop`."""
        self._going = True
        self._ended = Deferred.fromCoroutine(self._run())

    async def stop(self) -> None:
        """Send no more; returns when a broker has everything."""
        self._going = False
        if self._ended is not None:
            ended, self._ended = self._ended, None
            await ended

    async def send(self, kinds: list[str]) -> None:
        """Send submissions of these kinds; returns when a broker has them."""
        producers = self._chance.choices(self._producers, self._weights, k=len(kinds))
        sending = [
            producer.send(f"{kind}-{number}", KINDS[kind].body)
            for number, (producer, kind) in enumerate(zip(producers, kinds, strict=True), self.next)
        ]
        self.next += len(kinds)
        await gatherResults([Deferred.fromCoroutine(each) for each in sending])

    async def _run(self) -> None:
        while self._going:
            wanted = self._backlog - len(self._ledger.missing)
            if wanted > 0:
                await self.send(self._chance.choices(_NAMES, _SHARES, k=wanted))
            await deferLater(self._reactor, PAUSE)
