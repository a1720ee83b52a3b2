"""One table of what the faults did: from the rows that their tests wrote, for people and for ``docs/reliability.md``.

Usage: ``python -m tests.faults.table ROWS [DOCUMENT]``; the document gets the table between its two markers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

FAULTS: Mapping[str, str] = {
    "F1": "agent killed by `kill -9` in the middle of its work",
    "F2 received": "agent killed when it has a request but hasn't begun to grade it",
    "F2 graded": "agent killed when a request is graded but no verdict published",
    "F2 published": "agent killed when a verdict is published but not confirmed",
    "F2 confirmed": "agent killed when a verdict is confirmed but the request not acked",
    "F3": "broker stopped or killed, and started again, under load",
    "F3 cluster": "node that leads the queues killed, in a cluster of three, under load",
    "F3 drops": "every connection dropped, again and again",
    "F4": "one direction of one connection closed, or silent for a while or for good",
    "F4 TLS": "the same over TLS",
    "F4 slow": "a network with latency, and one that passes a byte a second",
    "F5": "connection cut after N bytes, at every stage of handshake and publish",
    "F6 nacked": "results queue full: the broker refuses verdicts",
    "F6 deleted": "results queue deleted",
    "F6 unroutable": "results queue unbound",
    "F7": "broker short of memory: it blocks who publishes",
    "F8": "agent told to stop, once or twice, by `TERM` or `INT`, in the middle of its work",
    "F8 reconnecting": "agent told to stop while it has no connection",
    "F9": "agent told by `HUP` to read a changed configuration, good or bad, under load",
    "F10": "poisonous submissions among good ones: agents die of them, graders raise, hang or answer nonsense",
    "F11": "web grader refuses, is slow, endless or confused; any failure opens the breaker",
    "F11 default": "the same, and only what is surely the grader's fault opens the breaker",
    "F12 disk": "no space for working folders, the journal, the cache",
    "F12 descriptors": "no more descriptors",
    "F12 processes": "no process and no thread can be started, no memory mapped",
    "F13": "clock set forward or back by an hour",
    "F14": "one of two agents frozen for minutes",
    "F15": "LMS answers 500, 409 or nothing, or records a score and answers nothing",
    "F16": "replay of dead letters killed by `kill -9`",
    "F17": "random faults, one after the other, for a long time",
    "F18": "three agents restarted one after the other, under load",
}
"""The rows that there must be, and what happens there."""

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
RULES_OF_4 = "4"
NOTHING = "–"


@frozen(kw_only=True)
class Row:
    """What one fault did, in all its tests of one pass."""

    times: int
    sent: int
    lost: int
    duplicated: int
    unexpected: int
    recovery: float | None

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Row | None:
        """Several tests' rows as one; ``None`` if there are none."""
        if not rows:
            return None
        sums = {key: sum(row[key] for row in rows) for key in ("times", "sent", "lost", "duplicated", "unexpected")}
        recoveries = [row["recovery"] for row in rows if row["recovery"] is not None]
        return cls(**sums, recovery=max(recoveries, default=None))


@frozen
class Table:
    """All rows of a run: those of the full form, and those of the short one by RabbitMQ 4's rules."""

    rows: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Table:
        """From the file that the tests appended to; an absent one is empty."""
        return cls([json.loads(line) for line in path.read_text().splitlines()] if path.exists() else [])

    def row(self, fault: str, rules: str = "") -> Row | None:
        """A fault's."""
        return Row.of([row for row in self.rows if (row["fault"], row["rules"]) == (fault, rules)])

    def problems(self, faults: Iterable[str] = FAULTS) -> list[str]:
        """What is missing in it, or not as it must be."""
        problems = []
        for fault in faults:
            for rules in ("", RULES_OF_4):
                name = f"{fault} by RabbitMQ {rules}'s rules" if rules else fault
                row = self.row(fault, rules)
                if row is None:
                    problems.append(f"{name}: no row, so it wasn't tested, or its test failed before the end")
                elif row.lost or row.unexpected or not row.times:
                    problems.append(f"{name}: {row.lost} lost, {row.unexpected} unexpected, {row.times} times")
        return problems

    def __str__(self) -> str:
        head = ("", "what happens", "times", "sent", "lost", "duplicated", "recovered within, s", "4.x: times", "lost")
        lines = [head, *(self._line(fault, what) for fault, what in FAULTS.items())]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        rule = ["-" * width for width in widths[:2]] + ["-" * (width - 1) + ":" for width in widths[2:]]

        def joined(cells: Sequence[str]) -> str:
            texts = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
            numbers = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
            return f"| {' | '.join([*texts, *numbers])} |"

        return "\n".join(map(joined, [head, rule, *lines[1:]]))

    def _line(self, fault: str, what: str) -> tuple[str, ...]:
        row, ruled = self.row(fault), self.row(fault, RULES_OF_4)
        numbers = [NOTHING] * 5
        if row is not None:
            within = NOTHING if row.recovery is None else f"{row.recovery:.1f}"
            numbers = [*(f"{number:,}" for number in (row.times, row.sent, row.lost, row.duplicated)), within]
        others = [NOTHING] * 2 if ruled is None else [f"{ruled.times:,}", f"{ruled.lost:,}"]
        return (fault, what, *numbers, *others)


def write_into(document: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Put a text between two markers of a document."""
    before, _, rest = document.read_text().partition(begin) if document.exists() else ("", "", "")
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{document}: the markers {begin} and {end} are missing")
    document.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def main() -> int:
    """Print; write; tell what is missing by the exit status."""
    table = Table.read(Path(sys.argv[1]))
    print(table)
    for document in sys.argv[2:]:
        write_into(Path(document), str(table))
    problems = table.problems()
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
