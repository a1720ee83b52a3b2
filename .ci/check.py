"""Check the project: lint, format, types, then the tests whose names are given.

The last line is ``N passed, N failed``. A test that is skipped, expected to fail or unexpectedly passing counts as
failed, and so does each check before the tests; no test at all is a failure too.

Usage: ``check.py [TEST …]``, in the project's folder.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from twisted.trial.reporter import TreeReporter
from twisted.trial.runner import TestLoader, TrialRunner

ROOT = Path(__file__).resolve().parent.parent
CHECKS = (("ruff", "check"), ("ruff", "format", "--check"), ("mypy",))


def failed_checks() -> int:
    """Run the static checks, all of them; return how many failed."""
    failed = 0
    for check in CHECKS:
        print("#", *check, flush=True)
        failed += subprocess.run([sys.executable, "-m", *check], cwd=ROOT, check=False).returncode != 0
    return failed


def run_tests(names: list[str]) -> tuple[int, int]:
    """Run tests in this process, as trial does; return how many passed and how many did not."""
    print("# trial", *names, flush=True)
    sys.path.insert(0, str(ROOT))
    result = TrialRunner(TreeReporter).run(TestLoader().loadByNames(names, recurse=True))
    bad = (result.failures, result.errors, result.skips, result.expectedFailures, result.unexpectedSuccesses)
    return result.successes, sum(map(len, bad))


def main() -> int:
    """Run everything and sum it up; return the exit status."""
    names = sys.argv[1:]
    failed = failed_checks()
    if not names:
        return int(failed > 0)
    passed, broken = run_tests(names)
    failed += broken
    if passed + failed == 0:
        print("no test was found: that is a failure")
        failed = 1
    print(f"{passed} passed, {failed} failed", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
