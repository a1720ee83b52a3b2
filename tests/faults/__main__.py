"""All faults: at their full size, then in their short form by RabbitMQ 4's rules; ends with one table.

Usage: ``python -m tests.faults [MODULE …]``, such as ``test_f01_agent_killed``. When all were run and went well, the
table goes into ``docs/reliability.md`` as measured. The exit status says whether all went well.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from tests.faults.table import RULES_OF_4, Table, write_into

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENT = ROOT / "docs" / "reliability.md"
PASSES = ({"EDXAGENT_FAULTS": "full"}, {"EDXAGENT_FAULTS": "short", "EDXAGENT_FAULTS_RULES": RULES_OF_4})


def run(module: str, settings: dict[str, str], folder: Path) -> bool:
    """Run the tests of a module in a process of their own; whether all went well."""
    print(f"# {module}", *(f"{name}={value}" for name, value in settings.items()), flush=True)
    trial = [sys.executable, "-m", "twisted.trial", "--temp-directory", str(folder / "trial")]
    return subprocess.run([*trial, f"tests.faults.{module}"], cwd=ROOT, env={**os.environ, **settings}).returncode == 0  # noqa: PLW1510


def machine(minutes: float) -> str:
    """How and where it was measured."""
    return (
        f"Measured in {minutes:.0f} minutes on {os.cpu_count()} processors, with Python {platform.python_version()} "
        f"and Twisted {version('twisted')}."
    )


def main() -> int:
    """Run them one after another, for they need the whole machine."""
    began = time.monotonic()
    found = sorted(path.stem for path in Path(__file__).parent.glob("test_*.py"))
    modules = sys.argv[1:] or found
    with tempfile.TemporaryDirectory(prefix="edxagent-faults-") as name:
        folder = Path(name)
        rows = folder / "rows"
        failed = [
            f"{module} ({settings})"
            for settings in PASSES
            for module in modules
            if not run(module, {**settings, "EDXAGENT_FAULTS_ROWS": str(rows)}, folder)
        ]
        table = Table.read(rows)
    measured = machine((time.monotonic() - began) / 60)
    problems = [f"failed: {what}" for what in failed]
    if modules == found:
        problems += table.problems()
        if not problems:
            write_into(DOCUMENT, f"{table}\n\n{measured}")
    print(f"\n{table}\n\n{measured}", *problems, sep="\n", flush=True)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
