"""Check the project: lint, format, types, then the tests whose names are given.

The last line is ``N passed, N failed``. A test that is skipped, expected to fail or unexpectedly passing counts as
failed, and so does each check before the tests; no test at all is a failure too.

All tests run in as many processes as there are processors, each with a broker of its own; some of them in one process.

Usage: ``check.py [TEST …]``, in the project's folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.trial._dist.disttrial import DistTrialRunner  # what "trial -j" uses
from twisted.trial.reporter import TreeReporter
from twisted.trial.runner import TestLoader, TrialRunner
from twisted.trial.unittest import makeTodo

ROOT = Path(__file__).resolve().parent.parent
ALL = ["tests"]
MOST_PROCESSES = 4
CHECKS = (("ruff", "check"), ("ruff", "format", "--check"), ("mypy",))


class Reporter(TreeReporter):
    """Trial's, that can also print what it gets from other processes: there a ``todo`` is only its reason."""

    def addUnexpectedSuccess(self, test: Any, todo: Any = None) -> None:
        """See ``TestResult``."""
        super().addUnexpectedSuccess(test, makeTodo(todo) if isinstance(todo, str) else todo)


def failed_checks() -> int:
    """Run the static checks, all of them; return how many failed."""
    failed = 0
    for check in CHECKS:
        print("#", *check, flush=True)
        failed += subprocess.run([sys.executable, "-m", *check], cwd=ROOT, check=False).returncode != 0
    return failed


def run_tests(names: list[str], processes: int) -> tuple[int, int]:
    """Run tests as trial does; return how many passed and how many did not."""
    print("# trial", f"-j{processes}", *names, flush=True)
    sys.path.insert(0, str(ROOT))
    suite = TestLoader().loadByNames(names, recurse=True)
    result: Any
    if processes > 1 and suite.countTestCases():  # without any, it would wait for ever
        result = DistTrialRunner(Reporter, processes, []).run(suite)
    else:
        result = TrialRunner(Reporter).run(suite)
    bad = (result.failures, result.errors, result.skips, result.expectedFailures, result.unexpectedSuccesses)
    return result.successes, sum(map(len, bad))


def main() -> int:
    """Run everything and sum it up; return the exit status."""
    names = sys.argv[1:]
    failed = failed_checks()
    if not names:
        return int(failed > 0)
    passed, broken = run_tests(names, min(os.cpu_count() or 1, MOST_PROCESSES) if names == ALL else 1)
    failed += broken
    if passed + failed == 0:
        print("no test was found: that is a failure")
        failed = 1
    print(f"{passed} passed, {failed} failed", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
