"""``benchmarks/spawn.py`` still runs. What it measures is for people to read, on a quiet machine."""

from __future__ import annotations

import json
import sys

from twisted.trial.unittest import TestCase

from tests.cli_process import ROOT, start

WAYS = ("raw", "launched", "command")


class SpawnTests(TestCase):
    """The benchmark of the ``command`` grader."""

    timeout = 60.0

    async def test_json(self) -> None:
        """Each way has as many laps as there were rounds, and there is a ratio."""
        program = str(ROOT / "benchmarks" / "spawn.py")
        run = start(self, sys.executable, program, "--rounds", "2", "--count", "6", "--concurrency", "3", "--json")
        self.assertEqual(await run.ends(), 0, run.err)
        report = json.loads(run.out)
        self.assertEqual({way: len(laps) for way, laps in report["ways"].items()}, dict.fromkeys(WAYS, 2))
        self.assertGreater(report["ratio"], 0)
