"""``docs/reliability.md``: what it names is there."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from tests.cli_process import ROOT
from tests.faults import table
from tests.faults.soak import report

PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


class ReliabilityTests(SynchronousTestCase):
    """The page's words."""

    def test_named_tests(self) -> None:
        """Each test that a promise leans on is there."""
        named = set(re.findall(r"`(tests\.[a-z0-9_.]+)`", PAGE))
        self.assertGreater(len(named), 5)
        self.assertEqual([name for name in named if not (ROOT / f"{name.replace('.', '/')}.py").is_file()], [])

    def test_named_faults(self) -> None:
        """So is each fault, and none is left out."""
        promises, _, _ = PAGE.partition("## What is not promised")
        spans = re.findall(r"F(\d+)(?:–F(\d+))?", promises)
        named = {number for first, last in spans for number in range(int(first), int(last or first) + 1)}
        there = {int(fault.split()[0][1:]) for fault in table.FAULTS}
        self.assertEqual(there, set(range(1, 19)))
        self.assertEqual(named, there)

    def test_places_for_what_is_measured(self) -> None:
        """The programs find where their tables go."""
        for marker in (table.BEGIN, table.END, report.BEGIN, report.END):
            self.assertEqual(PAGE.count(marker), 1, marker)
