"""Tests for the figures at the end."""

from __future__ import annotations

import io
import json

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from twisted.trial.unittest import SynchronousTestCase

from edxagent.cli.report import Record, as_json, as_table, distribution, duration, percentile, statistics


def graded(score: float, seconds: float = 0.1) -> Record:
    """A record of a verdict."""
    return Record(submission="id", sort="correct", outcome="graded", score=score, seconds=seconds)


NOTHING = Record(submission="lost", sort="wrong", surprise="expected graded, saw nothing")
DEAD = Record(submission="dead", sort="not JSON", outcome="malformed")


def rendered(records: list[Record], **options: float) -> str:
    """The table as text."""
    out = io.StringIO()
    figures = statistics(records, seconds=2.0, **options)  # type: ignore[arg-type]
    Console(file=out, width=120).print(as_table(figures, "a title"))
    return out.getvalue()


class PercentileTests(SynchronousTestCase):
    """Tests for :func:`percentile`."""

    def test_nearest_rank(self) -> None:
        """It is the smallest value that so many percent don't exceed."""
        self.assertEqual(percentile([1, 2, 3, 4], 50), 2)
        self.assertEqual(percentile([1, 2, 3, 4], 99), 4)
        self.assertEqual(percentile(range(1, 101), 99), 99)
        self.assertEqual(percentile([5], 50), 5)

    def test_of_nothing(self) -> None:
        """Nothing has no percentile."""
        self.assertIsNone(percentile([], 50))


class DistributionTests(SynchronousTestCase):
    """Tests for :func:`distribution`."""

    def test_few_scores(self) -> None:
        """A few different scores are counted one by one, in ascending order."""
        self.assertEqual(list(distribution([2, 0, 0.5, 2]).items()), [("0", 1), ("0.5", 1), ("2", 2)])

    def test_many_scores(self) -> None:
        """Many different ones are counted in ten ranges."""
        counts = distribution([float(n) for n in range(100)])
        self.assertEqual(len(counts), 10)
        self.assertEqual(set(counts.values()), {10})

    @given(st.lists(st.floats(min_value=0, allow_nan=False, allow_infinity=False), max_size=50))
    def test_counts_each_once(self, scores: list[float]) -> None:
        """Whatever the scores are, each is counted once."""
        self.assertEqual(sum(distribution(scores).values()), len(scores))


class StatisticsTests(SynchronousTestCase):
    """Tests for :func:`statistics`, :func:`as_json` and :func:`as_table`."""

    def test_figures(self) -> None:
        """Verdicts, outcomes and silence are told apart; the rate is that of verdicts."""
        figures = statistics([graded(1), graded(0), DEAD, NOTHING], seconds=2.0)
        self.assertEqual((figures.sent, figures.verdicts, figures.nothing, figures.without_verdict), (4, 2, 1, 2))
        self.assertEqual(figures.outcomes, {"graded": 2, "malformed": 1})
        self.assertEqual(figures.rate, 1.0)
        self.assertEqual(figures.surprises, ("lost (wrong): expected graded, saw nothing",))

    def test_of_nothing(self) -> None:
        """No records at all make figures, a table and JSON."""
        figures = statistics([], seconds=0.0)
        self.assertEqual((figures.sent, figures.rate, figures.p50), (0, 0.0, None))
        self.assertEqual(json.loads(json.dumps(as_json(figures)))["latency"], {"p50": None, "p99": None})
        self.assertIn("none", rendered([]))

    def test_json(self) -> None:
        """The JSON has every figure under a name of its own."""
        figures = as_json(statistics([graded(1, 0.25), DEAD, NOTHING], seconds=2.0, repeated=3))
        self.assertEqual(
            figures,
            {
                "sent": 3,
                "verdicts": 1,
                "without_verdict": 2,
                "outcomes": {"graded": 1, "malformed": 1},
                "scores": {"1": 1},
                "seconds": 2.0,
                "rate": 0.5,
                "latency": {"p50": 0.25, "p99": 0.25},
                "repeated": 3,
            },
        )

    def test_table(self) -> None:
        """The table shows outcomes, scores, rate, percentiles, silence and what was unexpected."""
        table = rendered([graded(1, 0.25), graded(0.5, 1.5), DEAD, NOTHING], repeated=1)
        for words in ("graded", "malformed", "nothing seen", "0.5", "1/s", "250.0 ms", "1.50 s", "repeated"):
            self.assertIn(words, table)
        self.assertIn("unexpected: lost (wrong): expected graded, saw nothing", table)

    def test_many_surprises(self) -> None:
        """Only the first surprises are told, with the number of the others."""
        table = rendered([NOTHING] * 25)
        self.assertEqual(table.count("unexpected:"), 10)
        self.assertIn("and 15 more", table)

    def test_names_are_no_markup(self) -> None:
        """What looks like markup in a file's name or an outcome is shown as it is."""
        record = Record(submission="id", sort="[red]file[/red].json", outcome="[bold]x", surprise="odd")
        table = rendered([record])
        self.assertIn("[red]file[/red].json", table)
        self.assertIn("[bold]x", table)


class DurationTests(SynchronousTestCase):
    """Tests for :func:`duration`."""

    def test_units(self) -> None:
        """Short times are told in milliseconds."""
        self.assertEqual((duration(0.0123), duration(1.234)), ("12.3 ms", "1.23 s"))
