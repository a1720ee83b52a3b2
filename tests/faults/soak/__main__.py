"""The soak, for as long as somebody wants: random faults, one after the other, and a summary at the end.

Usage: ``python -m tests.faults.soak [MINUTES]``; 30 of them by default. ``EDXAGENT_FAULTS_SEED`` replays one. When it
took ten minutes or more and went well, the summary goes into ``docs/reliability.md`` as measured. The exit status says
whether all went well.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.faults.__main__ import DOCUMENT, ROOT, machine
from tests.faults.soak.report import BEGIN, END, Report
from tests.faults.table import write_into

MINUTES = "30"
WORTH_TELLING = 10.0
LEFT = ROOT / "_trial_temp_soak"
LOGS = f"what the agents said last is in {LEFT}/*.log"


def main() -> int:
    """Run the test in a process of its own."""
    minutes = sys.argv[1] if len(sys.argv) > 1 else MINUTES
    with tempfile.TemporaryDirectory(prefix="edxagent-soak-") as name:
        path = Path(name) / "report"
        settings = {
            "EDXAGENT_FAULTS": "full",
            "EDXAGENT_SOAK_MINUTES": minutes,
            "EDXAGENT_SOAK_REPORT": str(path),
        }
        trial = [sys.executable, "-m", "twisted.trial", "--temp-directory", str(LEFT)]
        test = [*trial, "tests.faults.test_f17_soak"]
        failed = subprocess.run(test, cwd=ROOT, env={**os.environ, **settings}).returncode  # noqa: PLW1510
        if not path.exists():
            print(f"there is no summary: the soak ended before its time; {LOGS}", file=sys.stderr)
            return 1
        report = Report.load(path)
    text = f"{report}\n\n{machine(report.minutes)}"
    print(f"\n{text}\n{f'FAILED; {LOGS}' if failed else 'all went well'}", flush=True)
    if not failed and report.minutes >= WORTH_TELLING:
        write_into(DOCUMENT, text, BEGIN, END)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
