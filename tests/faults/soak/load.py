"""The soak's load: submissions of all kinds to several queues, so that about as many always wait for their verdict."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.task import deferLater

from edxagent.tasks import Tasks
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
        self._tasks = Tasks()

    def begin(self) -> None:
        """Send, until :meth:`stop`."""
        self._going = True
        self._tasks.launch(self._run(), "the load")

    async def stop(self) -> None:
        """Send no more; returns when a broker has everything."""
        self._going = False
        await self._tasks.when_idle()

    def cancel(self) -> None:
        """Send no more, come what may of what is being published."""
        self._tasks.cancel()

    async def send(self, kinds: list[str]) -> list[str]:
        """Send submissions of these kinds; returns their ids when a broker has them."""
        ids = [f"{kind}-{number}" for number, kind in enumerate(kinds, self.next)]
        self.next += len(ids)
        producers = self._chance.choices(self._producers, self._weights, k=len(kinds))
        sending = (
            producer.send(id, KINDS[kind].body) for producer, id, kind in zip(producers, ids, kinds, strict=True)
        )
        try:
            await gatherResults([Deferred.fromCoroutine(each) for each in sending], consumeErrors=True)
        except FirstError as first:
            first.subFailure.raiseException()  # such as its being cancelled, which is no failure
        return ids

    async def _run(self) -> None:
        while self._going:
            wanted = self._backlog - len(self._ledger.missing)
            if wanted > 0:
                await self.send(self._chance.choices(_NAMES, _SHARES, k=wanted))
            await deferLater(self._reactor, PAUSE)
