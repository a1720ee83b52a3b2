"""From what was seen of each submission to the figures at the end, for people and for machines. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from attrs import field, frozen
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

MOST_SCORES = 10
MOST_SURPRISES = 10
_BAR = 30


@frozen(kw_only=True)
class Record:
    """What was seen of one submission.

    :ivar outcome: its outcome word; ``None`` = nothing was seen.
    :ivar score: of its verdict; ``None`` = there was none.
    :ivar seconds: from send to verdict.
    :ivar surprise: how that differs from what was expected, in one line; ``None`` = it doesn't.
    """

    submission: str
    sort: str
    outcome: str | None = None
    score: float | None = None
    seconds: float | None = None
    surprise: str | None = None


@frozen(kw_only=True)
class Statistics:
    """The figures of one run.

    :ivar outcomes: outcome word → submissions, most first.
    :ivar scores: a score, or a range of scores, → verdicts, in ascending order.
    :ivar rate: verdicts a second.
    :ivar seconds: the whole run.
    :ivar p50: half of the verdicts came within so many seconds after the send. ``p99`` alike.
    :ivar repeated: verdicts and dead letters beyond the first for a submission.
    :ivar surprises: one line each, the first few.
    """

    sent: int
    verdicts: int
    nothing: int
    outcomes: dict[str, int]
    scores: dict[str, int]
    seconds: float
    rate: float
    p50: float | None
    p99: float | None
    repeated: int
    surprised: int
    surprises: Sequence[str] = field(factory=tuple)

    @property
    def without_verdict(self) -> int:
        """Submissions that were sent and got none."""
        return self.sent - self.verdicts


def statistics(records: Iterable[Record], *, seconds: float, repeated: int = 0) -> Statistics:
    """Reckon.

    :param seconds: from the first send to the last answer.
    :param repeated: see :class:`Statistics`.
    """
    records = list(records)
    latencies = sorted(record.seconds for record in records if record.seconds is not None)
    scores = [record.score for record in records if record.score is not None]
    surprises = [record for record in records if record.surprise is not None]
    return Statistics(
        sent=len(records),
        verdicts=len(scores),
        nothing=sum(record.outcome is None for record in records),
        outcomes=dict(Counter(record.outcome for record in records if record.outcome is not None).most_common()),
        scores=distribution(scores),
        seconds=seconds,
        rate=len(scores) / seconds if seconds > 0 else 0.0,
        p50=percentile(latencies, 50),
        p99=percentile(latencies, 99),
        repeated=repeated,
        surprised=len(surprises),
        surprises=tuple(f"{r.submission} ({r.sort}): {r.surprise}" for r in surprises[:MOST_SURPRISES]),
    )


def percentile(ascending: Sequence[float], percent: int) -> float | None:
    """The value that ``percent`` of them don't exceed (nearest rank); ``None`` of nothing."""
    if not ascending:
        return None
    return ascending[max(math.ceil(len(ascending) * percent / 100), 1) - 1]


def distribution(scores: Sequence[float]) -> dict[str, int]:
    """How often each score came; in ten equal ranges when there are more than ten different ones."""
    counts = Counter(f"{score:g}" for score in sorted(scores))
    if len(counts) <= MOST_SCORES:
        return dict(counts)
    low, high = min(scores), max(scores)
    width = high / MOST_SCORES - low / MOST_SCORES
    borders = [f"{low + n * width:.4g}" for n in range(MOST_SCORES + 1)]
    ranges = [f"{borders[n]} - {borders[n + 1]}" for n in range(MOST_SCORES)]
    distributed = dict.fromkeys(ranges, 0)
    for score in scores:
        distributed[ranges[min(int((score - low) / width), MOST_SCORES - 1)]] += 1
    return distributed


def as_json(figures: Statistics) -> dict[str, Any]:
    """The figures for a machine. Times are seconds."""
    return {
        "sent": figures.sent,
        "verdicts": figures.verdicts,
        "without_verdict": figures.without_verdict,
        "outcomes": figures.outcomes,
        "scores": figures.scores,
        "seconds": round(figures.seconds, 3),
        "rate": round(figures.rate, 1),
        "latency": {"p50": _rounded(figures.p50), "p99": _rounded(figures.p99)},
        "repeated": figures.repeated,
    }


def as_table(figures: Statistics, title: str) -> RenderableType:
    """The figures for a person."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    _add_counts(table, "outcomes", figures.outcomes, figures.sent)
    if figures.nothing:
        table.add_row("", Text("nothing seen", style="red"), str(figures.nothing), _bar(figures.nothing, figures.sent))
    table.add_row()
    _add_counts(table, "scores", figures.scores, figures.verdicts)
    table.add_row()
    table.add_row("verdicts", "", str(figures.verdicts), f"of {figures.sent} submissions in {figures.seconds:.1f} s")
    table.add_row("rate", "", f"{figures.rate:.0f}/s")
    if figures.p50 is not None and figures.p99 is not None:
        table.add_row("send to verdict", "p50", duration(figures.p50))
        table.add_row("", "p99", duration(figures.p99))
    if figures.repeated:
        table.add_row("repeated", "", str(figures.repeated), "more than one answer to a submission")
    surprises = [Text(f"unexpected: {line}", style="red") for line in figures.surprises]
    if figures.surprised > len(surprises):
        surprises.append(Text(f"… and {figures.surprised - len(surprises)} more", style="red"))
    return Group(table, *surprises)


def duration(seconds: float) -> str:
    """A time for a person."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def _add_counts(table: Table, title: str, counts: dict[str, int], total: int) -> None:
    for name, count in counts.items() or [("none", 0)]:
        table.add_row(title, Text(name), str(count), _bar(count, total))
        title = ""


def _bar(count: int, total: int) -> Text:
    return Text("━" * max(round(_BAR * count / total), 1 if count else 0) if total else "", style="cyan")


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
