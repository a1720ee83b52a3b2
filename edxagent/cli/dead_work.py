"""What may be done about dead letters: each that is meant is taken out of its queue, in one way or the other."""

from __future__ import annotations

from collections import Counter
from typing import Any

from attrs import frozen
from twisted.internet.defer import CancelledError

from edxagent.amqp.delivery import Delivery
from edxagent.cli.dead_letters import Selection, read_letter, replayed_request, replayed_result
from edxagent.cli.dead_queue import DeadQueue
from edxagent.model import dead_queue_of


@frozen(kw_only=True)
class Order:
    """What is to be done.

    :ivar most: to so many at most; ``None`` = all.
    :ivar force: also to those whose learners were told of a failure.
    :ivar dry_run: not at all; only count.
    """

    selection: Selection
    most: int | None
    force: bool
    dry_run: bool


class Work:
    """Settles letters, and counts.

    :ivar results: the name of the results queue.
    :ivar done: queue → how many were taken out of its dead letters, or would have been.
    :ivar kept_back: how many stay because their learners were told.
    """

    name: str
    participle: str

    def __init__(self, order: Order) -> None:
        self.order = order
        self.results = ""
        self.done: Counter[str] = Counter()
        self.kept_back = 0

    @property
    def total(self) -> int:
        """How many were settled."""
        return self.done.total()

    def is_enough(self) -> bool:
        """Whether that were as many as were wanted."""
        return self.order.most is not None and self.total >= self.order.most

    async def settle(self, letters: DeadQueue, delivery: Delivery) -> None:
        """Do it to a letter, if it is meant; keep it, if not."""
        letter = read_letter(delivery, letters.queue)
        if self.is_enough() or not self.order.selection.takes(letter):
            await letters.keep(delivery)
        elif letter.told_learner and not self.order.force:
            self.kept_back += 1
            await letters.keep(delivery)
        elif self.order.dry_run:
            self.done[letters.queue] += 1
            await letters.keep(delivery)
        else:
            try:
                await self.take_out(letters, delivery)
            except CancelledError:  # it was heard when this one was done
                self.done[letters.queue] += 1
                raise
            self.done[letters.queue] += 1

    async def take_out(self, letters: DeadQueue, delivery: Delivery) -> None:
        """Do it."""
        raise NotImplementedError

    def as_dict(self) -> dict[str, Any]:
        """The figures for a machine."""
        return {self.participle: dict(self.done), "kept_back": self.kept_back, "dry_run": self.order.dry_run}

    def summary(self) -> str:
        """The figures for a person."""
        participle = f"would be {self.participle}" if self.order.dry_run else self.participle
        lines = [f"{count} {participle} from {dead_queue_of(queue)}" for queue, count in self.done.items()]
        return "\n".join(lines) or f"0 {participle}"


class Replay(Work):
    """Each goes back to the queue that it was in."""

    name = "replay"
    participle = "replayed"

    async def take_out(self, letters: DeadQueue, delivery: Delivery) -> None:
        """See :class:`Work`."""
        again = replayed_result if letters.queue == self.results else replayed_request
        await letters.move(delivery, again(delivery, letters.queue))


class Drop(Work):
    """Each is gone."""

    name = "drop"
    participle = "dropped"

    async def take_out(self, letters: DeadQueue, delivery: Delivery) -> None:
        """See :class:`Work`."""
        letters.drop(delivery)
