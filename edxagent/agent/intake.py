"""Takes requests from all queues of one broker session, and begins anew with a queue that broke.

The rules for one queue are in :mod:`edxagent.agent.lane`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from edxagent.agent.company import Company, Spares
from edxagent.agent.lane import Lane
from edxagent.agent.port import QueuePort
from edxagent.errors import BrokerError, ChannelClosed
from edxagent.interfaces import IHeldDelivery
from edxagent.limits import FairSlots
from edxagent.tasks import Tasks

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 5.0
"""Seconds before a queue that broke is tried again: who has made it anew mustn't wait for long."""


class Intake:
    """The lanes of one session.

    :param open_port: opens a channel for a queue; told ``True`` after a failure, when the queue may have gone.
    :param receive: takes a held delivery through its life; fires when it has ended.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        open_port: Callable[[str, bool], Coroutine[Deferred[Any], Any, QueuePort]],
        slots: FairSlots,
        receive: Callable[[IHeldDelivery], Deferred[None]],
        clock: IReactorTime,
    ) -> None:
        self._open_port = open_port
        self._slots = slots
        self._spares = Spares(slots)
        self._company = Company(slots)
        self._receive = receive
        self._clock = clock
        self._keepers: dict[str, Deferred[None]] = {}
        self._lanes: dict[str, Lane] = {}
        self._complaints: dict[str, str] = {}
        self._tasks = Tasks()
        self._hungry: dict[Lane, None] = {}

    @property
    def consuming(self) -> bool:
        """Whether the broker lets us have the requests of every queue."""
        lanes = [self._lanes.get(queue) for queue in self._keepers]
        return bool(lanes) and all(lane is not None and lane.consuming for lane in lanes)

    def take_from(self, queues: Iterable[str]) -> None:
        """Take requests from these queues and no others; what came from another and is being graded goes on."""
        wanted = dict.fromkeys(queues)
        for queue in [queue for queue in self._keepers if queue not in wanted]:
            self._keepers.pop(queue).cancel()
            lane = self._lanes.pop(queue, None)
            if lane is not None:
                lane.retire()
        for queue in wanted:
            if queue not in self._keepers:
                self._keepers[queue] = self._tasks.launch(self._keep(queue), f"taking requests from {queue}")

    async def close(self) -> None:
        """Take no more; what is held but not begun goes back. Returns when the broker will send no more.

        A channel over which something came that is being graded stays open until that is settled.
        """
        self.take_from(())
        await self._tasks.when_idle()

    def abandon(self) -> None:
        """The session is lost: what is held and not begun will come again from the broker."""
        self.take_from(())
        self._tasks.cancel()

    async def _keep(self, queue: str) -> None:
        """Have a lane for a queue, one after the other, until cancelled."""
        pause, failed = FIRST_PAUSE, False
        while True:
            try:
                port = await self._open_port(queue, failed)
                began = self._clock.seconds()
                error: BrokerError = await self._run_lane(self._lane(queue, port))
                if self._clock.seconds() - began > LONGEST_PAUSE:
                    pause = FIRST_PAUSE
            except BrokerError as refused:
                error = refused
            failed = True
            self._complain(queue, _in_plain_words(error))
            await deferLater(self._clock, pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _run_lane(self, lane: Lane) -> BrokerError:
        """Returns why it is of no more use."""
        self._lanes[lane.queue] = lane
        lane.when_consuming().addCallback(lambda _: self._be_content(lane.queue))
        lane.feed()
        error = await lane.when_broken()
        del self._lanes[lane.queue]
        lane.retire()
        return error

    def _complain(self, queue: str, reason: str) -> None:
        if self._complaints.get(queue) != reason:  # it may be the same for days
            self._complaints[queue] = reason
            self._log.warn("no requests from {queue} for now: {reason}; trying again", queue=queue, reason=reason)

    def _be_content(self, queue: str) -> None:
        if self._complaints.pop(queue, None) is not None:
            self._log.info("requests are taken from {queue} again", queue=queue)

    def _lane(self, queue: str, port: QueuePort) -> Lane:
        return Lane(
            queue=queue,
            port=port,
            slots=self._slots,
            spares=self._spares,
            company=self._company,
            receive=self._receive,
            tasks=self._tasks,
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


def _in_plain_words(error: BrokerError) -> str:
    """RabbitMQ closes a channel on which something wasn't acked in time, with what else came over it."""
    if isinstance(error, ChannelClosed) and error.code == 406 and "timed out" in error.text:
        return (
            "the broker has taken back what was being graded for longer than its consumer_timeout, and will send it"
            " again; raise that in RabbitMQ, or lower [grader] timeout"
        )
    return str(error)
