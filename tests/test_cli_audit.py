"""Tests for holding the LMS's scores against the database's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine
from twisted.trial.unittest import SynchronousTestCase

from edxagent.cli.audit import TABLE, Learner, count_rows, duration_of, read_learners, read_rows, records
from edxagent.lms.sinks.database import row_of, scores_table, write_row
from edxagent.model import CheckedResult, Verdict


def learner(number: int = 1, **changes: Any) -> Learner:
    """A learner with the score that they should have."""
    defaults = {
        "sort": "partial",
        "outcome": "graded",
        "expected": 0.5,
        "score": 0.5,
        "submitted": 10.0,
        "seconds": 2.0,
    }
    return Learner(number=number, **{**defaults, **changes})


def row(student: str | None = "1", **changes: Any) -> dict[str, Any]:
    """Their row."""
    return {"submission": f"id-{student}", "student": student, "outcome": "graded", "score": 0.5, **changes}


class RecordsTests(SynchronousTestCase):
    """Tests for :func:`records`."""

    def surprise(self, learner: Learner, *rows: dict[str, Any]) -> str | None:
        """What is said of one learner."""
        (record,) = records([learner], rows)
        return record.surprise

    def test_right(self) -> None:
        """A learner with the right score in both places is no surprise; outcome, score and time are recorded."""
        (record,) = records([learner()], [row()])
        self.assertEqual(
            (record.submission, record.sort, record.outcome, record.score, record.seconds, record.surprise),
            ("id-1", "partial", "graded", 0.5, 2.0, None),
        )

    def test_surprises(self) -> None:
        """Whatever isn't as it must be is said: in the LMS first, then in the database."""
        self.assertEqual(self.surprise(learner(score=1.0), row()), "expected score 0.5, the LMS has 1")
        self.assertEqual(self.surprise(learner(score=None), row()), "expected score 0.5, the LMS has none")
        self.assertEqual(self.surprise(learner()), "it is in the database 0 times")
        self.assertEqual(self.surprise(learner(), row(), row()), "it is in the database 2 times")
        self.assertEqual(self.surprise(learner(), row(score=0.0)), "expected score 0.5, the database has 0")
        self.assertEqual(self.surprise(learner(), row(outcome="crashed")), "expected graded, the database says crashed")

    def test_exchanged(self) -> None:
        """Two learners who have each other's score are noticed, though all sums are right."""
        surprises = [
            record.surprise
            for record in records([learner(1, expected=1.0, score=1.0), learner(2)], [row("2", score=1.0), row("1")])
        ]
        self.assertEqual(
            surprises, ["expected score 1, the database has 0.5", "expected score 0.5, the database has 1"]
        )

    def test_nobodys_rows(self) -> None:
        """A row of a learner whom the LMS doesn't have is a surprise of its own."""
        found = list(records([learner()], [row(), row("7"), row(None)]))
        self.assertEqual(
            [(record.submission, record.surprise) for record in found],
            [
                ("id-1", None),
                ("id-7", "the LMS has no such learner"),
                ("id-None", "the LMS has no such learner"),
            ],
        )


class DurationTests(SynchronousTestCase):
    """Tests for :func:`duration_of`."""

    def test_first_to_last(self) -> None:
        """It is the time from the first submission to the last score, whoever's they are."""
        self.assertEqual(duration_of([learner(submitted=12.0), learner(submitted=10.0, seconds=1.0)]), 4.0)

    def test_without_scores(self) -> None:
        """Where nobody has a score it is nothing."""
        self.assertEqual(duration_of([learner(submitted=None, seconds=None)]), 0.0)


class ReadLearnersTests(SynchronousTestCase):
    """Tests for :func:`read_learners`."""

    def test_lines(self) -> None:
        """A line is a learner."""
        expected = {"outcome": "graded", "score": 0.5}
        fields = {"learner": 1, "sort": "partial", "expected": expected, "score": 0.5, "submitted": 10, "seconds": 2}
        self.assertEqual(read_learners(json.dumps(fields) + "\n"), [learner()])


class ReadRowsTests(SynchronousTestCase):
    """Tests for reading what a database sink writes."""

    def setUp(self) -> None:
        """Choose a file."""
        self.path = Path(self.mktemp()).absolute()

    def test_before_the_first_score(self) -> None:
        """There are no rows while there is no file, or no table in it."""
        self.assertEqual((count_rows(self.path), read_rows(self.path)), (0, []))
        self.path.touch()
        self.assertEqual((count_rows(self.path), read_rows(self.path)), (0, []))

    def test_rows(self) -> None:
        """Rows come as the sink names their columns, the oldest first."""
        header = json.dumps({"lms_callback_url": "http://lms/courses/c/xqueue/7/b/score_update", "lms_key": "secret"})
        verdict = Verdict(correct=True, score=2.0, msg="<p>Well done.</p>")
        engine, table = create_engine(f"sqlite:///{self.path}"), scores_table(TABLE)
        with engine.begin() as connection:
            table.metadata.create_all(connection)
            for number, submission in enumerate("ba"):
                result = CheckedResult(
                    submission=submission, outcome="graded", queue="q", header=header, verdict=verdict
                )
                write_row(connection, table, row_of(result, 1000.0 + number))
        engine.dispose()
        self.assertEqual(count_rows(self.path), 2)
        first, second = read_rows(self.path)
        self.assertEqual((first["submission"], second["submission"]), ("b", "a"))
        self.assertEqual((first["student"], first["score"], first["msg"]), ("7", 2.0, "<p>Well done.</p>"))
        self.assertNotIn("secret", str(first))
