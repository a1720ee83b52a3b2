"""Who sends requests while something breaks, and who takes what comes back: both tell the ledger."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.task import deferLater

from edxagent.amqp.link import BrokerLink, Session
from edxagent.amqp.publisher import ConfirmingPublisher
from edxagent.errors import BrokerError
from edxagent.interfaces import IDelivery
from edxagent.tasks import Tasks
from edxagent.wire.request import encode_request
from tests.faults.ledger import Ledger

BODY = json.dumps({"student_response": "42", "grader_payload": "", "student_info": "{}"})
AT_ONCE = 200
"""Publishes of a producer that may be under way."""
PAUSE = 0.1
PREFETCH = 1000


class Producer:
    """Publishes requests, each until a broker confirms that it has it, as a producer must.

    :param link: isn't the program's under test, and goes past its fault proxy.
    """

    def __init__(self, link: BrokerLink, queue: str, ledger: Ledger) -> None:
        self._reactor = link.reactor
        self._publisher = ConfirmingPublisher(link, most=AT_ONCE, timeout=10.0)
        self._queue = queue
        self._ledger = ledger
        self._numbers = count(1)
        self._tasks = Tasks()

    async def send(self, id: str, body: str = BODY) -> None:
        """Send a request; returns when a broker has it."""
        header = json.dumps({"submission": id})
        message = encode_request(queue=self._queue, submission=id, header=header, body=body, timestamp=int(time.time()))
        while True:
            self._ledger.offered(id)
            try:
                await self._publisher.publish(message)
            except BrokerError:
                await deferLater(self._reactor, PAUSE)
            else:
                self._ledger.accepted(id)
                return

    async def send_many(self, number: int, name: str = "load") -> list[str]:
        """Send so many requests; returns their ids when a broker has them all."""
        ids = [f"{name}-{next(self._numbers)}" for _ in range(number)]
        try:
            await gatherResults([Deferred.fromCoroutine(self.send(id)) for id in ids], consumeErrors=True)
        except FirstError as first:
            first.subFailure.raiseException()  # such as its being cancelled, which is no failure
        return ids

    def keep_up(self, backlog: int = AT_ONCE) -> None:
        """Begin to send for as long as it lasts, so that about ``backlog`` requests always wait for their verdict."""
        self._tasks.launch(self._keep_up(backlog), "a load")

    async def _keep_up(self, backlog: int) -> None:
        while True:
            wanted = backlog - len(self._ledger.missing)
            if wanted > 0:
                await self.send_many(wanted)
            await deferLater(self._reactor, PAUSE / 2)

    async def stop(self) -> None:
        """End the load. What was being published is unconfirmed then, and may or may not have its verdict."""
        self._tasks.cancel()
        await self._tasks.when_idle()


class Collector:
    """Takes what comes to some queues, as fast as it comes, over whatever session there is.

    :param link: makes a link with a preparation.
    :param takers: queue → who is told of each delivery, and takes it out of the queue.
    """

    def __init__(
        self, link: Callable[[Callable[[Session], Any]], BrokerLink], takers: dict[str, Callable[[IDelivery], None]]
    ) -> None:
        self._takers = takers
        self._link = link(self._prepare)

    def when_up(self) -> Deferred[Session]:
        """Fires when it takes, or at once if it does."""
        return self._link.when_up()

    async def stop(self) -> None:
        """Take no more."""
        if self._link.running:
            await self._link.stopService()

    async def _prepare(self, session: Session) -> None:
        for queue, taker in self._takers.items():
            channel = await session.open_channel()
            # A queue that went makes the link begin anew, until the queue is there again.
            await channel.consume(queue, taker, lambda reason: session.close(1.0), prefetch=PREFETCH)


def ids_of(prefix: str, ids: Iterable[str]) -> set[str]:
    """Those that were sent under a name."""
    return {id for id in ids if id.rpartition("-")[0] == prefix}
