"""Takes requests from all queues of one broker session, and begins anew with a queue that broke.

The rules for one queue are in :mod:`edxagent.agent.lane`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from edxagent.agent.company import Company, Spares
from edxagent.agent.lane import Lane, QueuePort
from edxagent.errors import BrokerError
from edxagent.interfaces import IHeldDelivery
from edxagent.limits import FairSlots
from edxagent.tasks import Tasks

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0


class Intake:
    """The lanes of one session.

    :param open_port: opens a channel for a queue; told ``True`` after a failure, when the queue may have gone.
    :param receive: takes a held delivery through its life; fires when it has ended.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        queues: tuple[str, ...],
        open_port: Callable[[str, bool], Coroutine[Deferred[Any], Any, QueuePort]],
        slots: FairSlots,
        receive: Callable[[IHeldDelivery], Deferred[None]],
        clock: IReactorTime,
    ) -> None:
        self._queues = queues
        self._open_port = open_port
        self._slots = slots
        self._spares = Spares(slots)
        self._company = Company(slots)
        self._receive = receive
        self._clock = clock
        self._keepers = Tasks()
        self._errands = Tasks()
        self._lanes: dict[str, Lane] = {}
        self._hungry: dict[Lane, None] = {}

    def open(self) -> None:
        """Begin to take requests from every queue."""
        for queue in self._queues:
            self._keepers.launch(self._keep(queue), f"taking requests from {queue}")

    async def close(self) -> None:
        """Take no more; what is held but not begun goes back. Returns when the broker will send no more."""
        self._close_lanes()
        await self._errands.when_idle()

    def abandon(self) -> None:
        """The session is lost: what is held and not begun will come again from the broker."""
        self._close_lanes()
        self._errands.cancel()

    def _close_lanes(self) -> None:
        self._keepers.cancel()
        for lane in self._lanes.values():
            lane.close()

    async def _keep(self, queue: str) -> None:
        pause = FIRST_PAUSE
        failed = False
        while True:
            try:
                port = await self._open_port(queue, failed)
                lane = self._lane(queue, port)
                self._lanes[queue] = lane
                lane.feed()
                began = self._clock.seconds()
                error = await lane.when_broken()
                lane.retire()
                if self._clock.seconds() - began > LONGEST_PAUSE:
                    pause = FIRST_PAUSE
            except BrokerError as refused:
                error = refused
            failed = True
            self._log.warn(
                "no requests from {queue} for now: {reason}; again in {pause:g} s",
                queue=queue,
                reason=str(error),
                pause=pause,
            )
            await deferLater(self._clock, pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _lane(self, queue: str, port: QueuePort) -> Lane:
        return Lane(
            queue=queue,
            port=port,
            slots=self._slots,
            spares=self._spares,
            company=self._company,
            receive=self._receive,
            tasks=self._errands,
            hungry=self._feed_soon,
        )

    def _feed_soon(self, lane: Lane) -> None:
        """Feed at the end of this turn of the reactor: an ack that is being made may give the lane its credit back."""
        if not self._hungry:
            self._clock.callLater(0, self._feed)
        self._hungry[lane] = None

    def _feed(self) -> None:
        hungry, self._hungry = self._hungry, {}
        for lane in hungry:
            lane.feed()
