"""What ``edxagent dead`` shows of dead letters, to people and to programs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from attrs import asdict, define, field
from rich.console import Console
from rich.table import Table

from edxagent.cli.dead_letters import Letter
from edxagent.cli.trace import moment
from edxagent.words import brief

LONGEST_REASON = 80


@define
class Listing:
    """What lies in one dead-letter queue: all are counted, and the first few kept.

    :ivar queue: the queue that they were for.
    :ivar outcomes: outcome word → count; letters without one count as ``unknown``.
    """

    queue: str
    outcomes: Counter[str] = field(factory=Counter)
    letters: list[Letter] = field(factory=list)

    def add(self, letter: Letter, most: int) -> None:
        """One more; kept if it is among the first ``most``."""
        self.outcomes[outcome_of(letter)] += 1
        if len(self.letters) < most:
            self.letters.append(letter)

    @property
    def count(self) -> int:
        """How many."""
        return self.outcomes.total()


def outcome_of(letter: Letter) -> str:
    """Its outcome word."""
    return letter.outcome or "unknown"


def as_dict(letter: Letter) -> dict[str, Any]:
    """A letter for a machine. Times are seconds since the epoch."""
    return {**asdict(letter), "history": list(letter.history)}


def listings_as_dict(listings: Iterable[Listing]) -> dict[str, Any]:
    """Several queues for a machine."""
    return {
        "queues": [
            {
                "queue": listing.queue,
                "count": listing.count,
                "outcomes": dict(listing.outcomes),
                "letters": [as_dict(letter) for letter in listing.letters],
                "more": listing.count - len(listing.letters),
            }
            for listing in listings
        ]
    }


def show_listings(listings: Iterable[Listing]) -> None:
    """Several queues for a person."""
    console = _console()
    for position, listing in enumerate(listings):
        if position:
            console.print()
        console.print(f"{listing.queue}: {counted(listing.outcomes) or 'no dead letters'}")
        if listing.letters:
            console.print(_table(listing.letters))
        more = listing.count - len(listing.letters)
        if more:
            console.print(f"… and {more} more")


def show_letters(letters: Sequence[Letter]) -> None:
    """All that is told of some letters, for a person."""
    console = _console()
    for position, letter in enumerate(letters):
        if position:
            console.print()
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in told(letter):
            table.add_row(name, value)
        console.print(table)


def told(letter: Letter) -> Iterator[tuple[str, str]]:
    """The lines about a letter."""
    yield "submission", letter.id
    yield "queue", letter.queue
    yield "outcome", outcome_of(letter)
    yield "reason", letter.reason or "not said"
    yield "attempt", str(letter.attempt)
    yield "died", "not said when" if letter.time is None else moment(letter.time)
    yield "learner told", "yes, by a verdict with score 0" if letter.told_learner else "no"
    for name, value in (("agent", letter.agent), ("grader", letter.grader), ("sink", letter.sink)):
        if value is not None:
            yield name, value
    for entry in letter.history:
        yield "before", entry
    yield "size", f"{letter.size} bytes"


def counted(counts: Mapping[str, int]) -> str:
    """``3 crashed, 1 timed-out``, most first."""
    return ", ".join(f"{count} {word}" for word, count in Counter(counts).most_common())


def _table(letters: Sequence[Letter]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("submission", "outcome", "attempt", "died", "learner told", "reason"):
        table.add_column(name, overflow="fold")
    for letter in letters:
        table.add_row(
            letter.id,
            outcome_of(letter),
            str(letter.attempt),
            "" if letter.time is None else moment(letter.time),
            "yes" if letter.told_learner else "no",
            brief(letter.reason, LONGEST_REASON),
        )
    return table


def _console() -> Console:
    return Console(file=sys.stdout, markup=False, highlight=False, emoji=False, soft_wrap=True)
