"""What a soak comes to, for people, for ``docs/reliability.md``, and from the test to who started it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from attrs import asdict, frozen

from tests.faults.ledger import Count
from tests.faults.soak.vitals import Vitals

BEGIN, END = "<!-- soak: begin -->", "<!-- soak: end -->"


@frozen(kw_only=True)
class Report:
    """See the module.

    :ivar faults: in words → how often.
    :ivar duplicated: of :attr:`count`'s, those that agents made; ``allowed``, how many there might have been.
    :ivar recovery: seconds, the worst.
    :ivar witnessed: what the agent graded that nobody ended; ``connections``, how many it had.
    :ivar growth: its memory's, in MB for each 100,000 submissions; ``None`` = a soak too short to tell.
    :ivar before: its vitals when it first had nothing to do; ``after``, when it last had.
    """

    seed: str
    minutes: float
    faults: Mapping[str, int]
    count: Count
    duplicated: int
    allowed: int
    recovery: float
    witnessed: int
    connections: int
    growth: float | None
    before: Vitals
    after: Vitals

    def save(self, path: Path) -> None:
        """Write it into a file."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read what :meth:`save` wrote."""
        values = json.loads(path.read_text())
        parts = {"count": Count, "before": Vitals, "after": Vitals}
        return cls(**{key: parts[key](**value) if key in parts else value for key, value in values.items()})

    def __str__(self) -> str:
        rows = self._rows()
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        lines = [("", ""), ("-" * first, "-" * (second - 1) + ":"), *rows]
        return "\n".join(f"| {name.ljust(first)} | {value.rjust(second)} |" for name, value in lines)

    def _rows(self) -> list[tuple[str, str]]:
        before, after = self.before, self.after
        growth = "–" if self.growth is None else f"{self.growth:.2f} MB"
        return [
            ("minutes", f"{self.minutes:.1f}"),
            ("faults", f"{sum(self.faults.values()):,}"),
            *((f"– {name}", f"{times:,}") for name, times in self.faults.items()),
            ("submissions sent", f"{self.count.sent:,}"),
            ("lost", f"{self.count.lost:,}"),
            ("unexpected", f"{self.count.unexpected:,}"),
            ("duplicated", f"{self.count.duplicated:,}"),
            ("– by agents, of as many as the design allows", f"{self.duplicated:,} of {self.allowed:,}"),
            ("worst recovery", f"{self.recovery:.1f} s"),
            ("the agent that ran all the time: submissions graded", f"{self.witnessed:,}"),
            ("– connections made", f"{self.connections:,}"),
            ("– growth of its memory for 100,000 submissions", growth),
            ("– its memory at first and at last", f"{before.memory / 1e6:.1f} MB, {after.memory / 1e6:.1f} MB"),
            ("– open descriptors", f"{before.descriptors}, {after.descriptors}"),
            ("– Deferreds", f"{before.deferreds}, {after.deferreds}"),
            ("– of these, not fired yet", f"{before.pending}, {after.pending}"),
            ("– delayed calls", f"{before.calls}, {after.calls}"),
            ("– threads", f"{before.threads}, {after.threads}"),
            ("seed", self.seed),
        ]
