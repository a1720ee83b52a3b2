"""The life of one result, from the broker's delivery to its ack. Begin with :meth:`ResultLife.handle`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from edxagent.agent.results import ResultPublisher
from edxagent.agent.returns import returned_often
from edxagent.errors import InvalidResult
from edxagent.interfaces import IDelivery
from edxagent.lms.updater.checks import ResultChecker, name_of
from edxagent.lms.updater.desk import Desk, Fate
from edxagent.lms.updater.notes import Notes
from edxagent.lms.updater.turns import Turns
from edxagent.model import Message
from edxagent.wire.journey import encode_parked, encode_retry, read_journey
from edxagent.wire.request import requeued_request
from edxagent.words import shorten


@frozen(kw_only=True)
class Retries:
    """Where results wait.

    :ivar queue: where they come back to.
    :ivar delays: in seconds, ascending; the last one is repeated for as long as it takes.
    """

    queue: str
    delays: Sequence[float]

    def delay(self, attempt: int, at_least: float) -> float:
        """Before the next attempt when there were ``attempt`` before the last one; rounded up to the next of them."""
        wanted = max(self.delays[min(attempt, len(self.delays) - 1)], at_least)
        return next((delay for delay in self.delays if delay >= wanted), self.delays[-1])


class ResultLife:
    """Takes each delivery through its life.

    :param sinks: the names of those behind the desk.
    :param wall_clock: seconds since the epoch; ``clock`` may be a monotonic one.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        checker: ResultChecker,
        turns: Turns,
        desk: Desk,
        sinks: Sequence[str],
        retries: Retries,
        publisher: ResultPublisher,
        notes: Notes,
        clock: IReactorTime,
        wall_clock: Callable[[], float],
    ) -> None:
        self._checker = checker
        self._turns = turns
        self._desk = desk
        self._sinks = sinks
        self._retries = retries
        self._publisher = publisher
        self._notes = notes
        self._clock = clock
        self._wall_clock = wall_clock

    async def handle(self, delivery: IDelivery) -> None:
        """Wait for a turn → check → offer → publish what is left to do, confirmed → ack.

        What is left to do: a copy for each sink that will never have it goes to the parking queue, and one for those
        that should be asked again to a retry queue. Cancelling gives the result back to its queue.
        """
        began = self._clock.seconds()
        fate: Fate | None = None
        try:
            async with self._turns.on(name_of(delivery.body, delivery.properties)):
                fate = await self._fate(delivery)
                for message in self._left_to_do(delivery, fate):
                    await self._publisher.publish(message)
            done_with = True
        except CancelledError:
            fate = None
            done_with = await self._give_back_as_new(delivery)
        settled = delivery.ack() if done_with else delivery.requeue()
        self._report(delivery, fate, self._clock.seconds() - began, settled)

    async def _fate(self, delivery: IDelivery) -> Fate:
        try:
            result = self._checker.check(delivery.body, delivery.properties)
            journey = read_journey(delivery.properties, self._sinks)
            if not journey.attempt:
                self._notes.answered(result)
            return await self._desk.offer(result, journey)
        except InvalidResult as error:
            return Fate(parked={None: str(error)})
        except CancelledError:
            raise
        except Exception as error:
            self._log.failure("a result could not be handled")
            return Fate(parked={None: f"handling it failed with {type(error).__name__}: see the updater's log"})

    def _left_to_do(self, delivery: IDelivery, fate: Fate) -> list[Message]:
        same: dict[str, Any] = {
            "queue": self._retries.queue,
            "body": delivery.body,
            "properties": delivery.properties,
            "submission": name_of(delivery.body, delivery.properties),
        }
        now = self._wall_clock()
        messages = [encode_parked(reason=why, sink=sink, time=now, **same) for sink, why in fate.parked.items()]
        if fate.waiting:
            delay = self._retries.delay(fate.journey.attempt, fate.at_least)
            messages.append(encode_retry(journey=fate.journey, delay=delay, **same))
        return messages

    async def _give_back_as_new(self, delivery: IDelivery) -> bool:
        """Publish a result that was returned often as a new message; whether the broker has it."""
        if not returned_often(delivery):
            return False
        return await self._publisher.publish_once(requeued_request(delivery.queue, delivery.body, delivery.properties))

    def _report(self, delivery: IDelivery, fate: Fate | None, seconds: float, settled: bool) -> None:
        report, what = self._log.info, "delivered"
        if fate is None:
            what = "given back"
        elif fate.parked:
            report, what = self._log.warn, "parked"
        elif fate.waiting:
            report, what = self._log.warn if fate.asked else self._log.debug, "to be retried"
        report(
            "{what}: the verdict on {submission} in {seconds:.3f} s{because}{again}",
            what=what,
            submission=shorten(name_of(delivery.body, delivery.properties), 255),
            seconds=round(seconds, 6),
            because=f": {fate.reasons}" if fate is not None and fate.reasons else "",
            again="" if settled else "; its connection is gone, so it will come again",
        )
