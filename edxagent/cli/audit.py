"""Whether each learner has the score that they should have: the LMS's account of it held against the database's."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from attrs import frozen

from edxagent.cli.report import Record

TABLE = "edxagent_scores"
"""The default of ``[sink:NAME] table``."""

Row = Mapping[str, Any]


@frozen(kw_only=True)
class Learner:
    """What the LMS knows of a learner, whose ``number`` is the database's ``student``.

    :ivar sort: what is special about their submission.
    :ivar outcome: what must become of it.
    :ivar expected: the score that they should have.
    :ivar score: the one that they have; ``None`` = none.
    :ivar submitted: on the LMS's clock, in seconds.
    :ivar seconds: from submitting to the score.
    """

    number: int
    sort: str
    outcome: str
    expected: float
    score: float | None
    submitted: float | None
    seconds: float | None


def read_learners(lines: str) -> list[Learner]:
    """What ``examples/lms.py --scores`` writes."""
    return [_learner(json.loads(line)) for line in lines.splitlines()]


def _learner(fields: Mapping[str, Any]) -> Learner:
    return Learner(
        number=fields["learner"],
        sort=fields["sort"],
        outcome=fields["expected"]["outcome"],
        expected=fields["expected"]["score"],
        score=fields["score"],
        submitted=fields["submitted"],
        seconds=fields["seconds"],
    )


def count_rows(database: Path) -> int:
    """How many scores a database sink's SQLite file holds by now."""
    return int(_select(database, "count(*) AS rows")[0]["rows"]) if _is_there(database) else 0


def read_rows(database: Path) -> list[Row]:
    """All of them, oldest first."""
    return _select(database, "*", "ORDER BY updated_at, submission") if _is_there(database) else []


def records(learners: Iterable[Learner], rows: Iterable[Row]) -> Iterator[Record]:
    """A record for each learner, and one for each row that is nobody's."""
    rows_of: dict[str | None, list[Row]] = defaultdict(list)
    for row in rows:
        rows_of[row["student"]].append(row)
    for learner in learners:
        theirs = rows_of.pop(str(learner.number), [])
        yield Record(
            submission=theirs[0]["submission"] if theirs else f"learner {learner.number}",
            sort=learner.sort,
            outcome=theirs[0]["outcome"] if theirs else None,
            score=learner.score,
            seconds=learner.seconds,
            surprise=_surprise(learner, theirs),
        )
    for others in rows_of.values():
        for row in others:
            yield Record(submission=row["submission"], sort="nobody's", surprise="the LMS has no such learner")


def _surprise(learner: Learner, rows: Sequence[Row]) -> str | None:
    if learner.score != learner.expected:
        return f"expected score {learner.expected:g}, the LMS has {_shown(learner.score)}"
    if len(rows) != 1:
        return f"it is in the database {len(rows)} times"
    if rows[0]["outcome"] != learner.outcome:
        return f"expected {learner.outcome}, the database says {rows[0]['outcome']}"
    if rows[0]["score"] != learner.expected:
        return f"expected score {learner.expected:g}, the database has {_shown(rows[0]['score'])}"
    return None


def duration_of(learners: Iterable[Learner]) -> float:
    """Seconds from the first submission to the last score."""
    times = [
        (learner.submitted, learner.submitted + learner.seconds)
        for learner in learners
        if learner.submitted is not None and learner.seconds is not None
    ]
    return max(end for _, end in times) - min(begin for begin, _ in times) if times else 0.0


def _shown(score: float | None) -> str:
    return "none" if score is None else f"{score:g}"


def _is_there(database: Path) -> bool:
    return database.exists() and bool(_query(database, f"PRAGMA table_info({TABLE})"))


def _select(database: Path, what: str, order: str = "") -> list[Row]:
    return _query(database, f"SELECT {what} FROM {TABLE} {order}")


def _query(database: Path, statement: str) -> list[Row]:
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(statement)]
