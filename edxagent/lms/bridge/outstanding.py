"""What was handed to the graders and isn't answered yet, and how much of that there may be.

A submission that isn't answered within 5 minutes is handed out again at every poll, in front of all that were submitted
after it was first handed out (``get_submission`` orders by ``status_time``, which doesn't change then). So no more may
be out than the graders answer in time: their rate times ``answer_within``. The rate is that of the last minutes when
there was anything to do. We begin with a few; each verdict that came in time lets in one more, up to that number, and
each that came late one less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from attrs import evolve, field, frozen
from twisted.internet.defer import Deferred

FEW = 4
"""How many may be out in any case."""
MOST = 20_000
"""How many may be out at most: they are kept in memory."""
MEMORY = 0.5
"""For which part of ``answer_within`` a verdict counts towards the rate."""


@frozen(kw_only=True)
class Waiting:
    """A submission that waits for its verdict.

    :ivar header: ``None`` where only the ledger has told us of it.
    :ivar since: on the clock of whoever keeps it.
    """

    submission: str
    queue: str
    header: str | None = field(repr=False, default=None)
    since: float


class Outstanding:
    """Counts them.

    :ivar answer_within: seconds.
    :param seconds: a clock that never jumps.
    """

    def __init__(self, answer_within: float, seconds: Callable[[], float]) -> None:
        self.answer_within = answer_within
        self._seconds = seconds
        self._waiting: dict[str, Waiting] = {}
        self._waiters: list[Deferred[None]] = []
        self._granted: float = FEW
        self._at = seconds()
        self._verdicts = 0.0
        self._busy = 0.0

    def __contains__(self, submission: object) -> bool:
        return submission in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def limit(self) -> int:
        """How many may be out now."""
        self._advance()
        return max(FEW, min(MOST, int(min(self._granted, self._in_time))))

    @property
    def full(self) -> bool:
        """Whether no more should be fetched."""
        return len(self._waiting) >= self.limit

    def changed(self) -> Deferred[None]:
        """Fires when :attr:`full` may have become false."""
        waiter: Deferred[None] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        return waiter

    def wake(self) -> None:
        """Fire all that :meth:`changed` has given out."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)

    def add(self, waiting: Waiting) -> None:
        """One more waits."""
        self._advance()
        self._waiting[waiting.submission] = waiting

    def found(self, submission: str, header: str) -> None:
        """One that waits was handed out again."""
        self._waiting[submission] = evolve(self._waiting[submission], header=header)

    def answered(self, submission: str) -> None:
        """The LMS has its verdict."""
        waiting = self._waiting.get(submission)
        if waiting is not None:
            self._advance()
            self._verdicts += 1
            in_time = self._seconds() - waiting.since <= self.answer_within
            granted = self._granted + 1 if in_time else self._granted - 1
            self._granted = max(FEW, min(granted, self._in_time))
            self.forget(submission)

    def forget(self, submission: str) -> None:
        """It doesn't count any more, though the LMS has no verdict."""
        self._advance()
        self._waiting.pop(submission, None)
        self.wake()

    def older_than(self, seconds: float) -> Sequence[Waiting]:
        """Those that wait for longer."""
        then = self._seconds() - seconds
        return [waiting for waiting in self._waiting.values() if waiting.since <= then]

    @property
    def _in_time(self) -> float:
        """How many would be answered in time at the rate that was seen.

        Right after a verdict, the time until the next one has still to be paid: on average, half of it.
        """
        return (self._verdicts - 0.5) / self._busy * self.answer_within if self._busy else 0.0

    def _advance(self) -> None:
        """Have time pass: the busy one only, and let what is long ago fade."""
        now = self._seconds()
        past, self._at = now - self._at, now
        if self._waiting:
            memory = self.answer_within * MEMORY
            kept = math.exp(-past / memory)
            self._busy = self._busy * kept + memory * (1 - kept)
            self._verdicts *= kept
