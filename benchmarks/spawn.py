"""How many submissions a second the ``command`` grader starts programs for, beside what starting one costs at all.

Three ways to run the same trivial program take turns, so that a noisy machine disturbs all alike:

raw       ``reactor.spawnProcess`` with three pipes, and nothing else
launched  the same through the grader's launcher, two programs that make a session and enter a folder
command   the ``command`` grader: that, and a folder for each, the verdict's descriptor, time limits, clearing away

Usage: ``benchmarks/spawn.py [--rounds N] [--count N] [--concurrency N] [--json]``
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import repeat
from typing import Any

from attrs import asdict, frozen
from rich.console import Console
from rich.table import Table
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import react
from twisted.python.failure import Failure

from edxagent.graders import command
from edxagent.testing.graders import build, make_request

BAR = 0.3
VERDICT = '{"correct": true, "score": 1, "msg": "<p>ok</p>"}'
C_PROGRAM = """
#include <unistd.h>
static char buffer[65536];
static const char verdict[] = %s;
int main(void)
{
    while (read(0, buffer, sizeof buffer) > 0) {}
    return write(3, verdict, sizeof verdict - 1) < 0; /* started raw, it has nowhere to write to */
}
"""
SHELL_PROGRAM = f"read submission; echo '{VERDICT}' >&3"

Run = Callable[[], Awaitable[object]]


@frozen(kw_only=True)
class Lap:
    """One way's part of a round.

    :ivar rate: programs a second.
    :ivar own_cpu: this process's CPU time for each, in milliseconds.
    :ivar children_cpu: the same of all that was started.
    """

    rate: float
    own_cpu: float
    children_cpu: float


def make_program(folder: str) -> tuple[str, ...]:
    """The trivial program: compiled if there is a compiler, or else a line of shell."""
    compiler = shutil.which("cc")
    if compiler is None:
        return ("/bin/sh", "-c", SHELL_PROGRAM)
    source, program = os.path.join(folder, "trivial.c"), os.path.join(folder, "trivial")
    with open(source, "w", encoding="utf-8") as file:
        file.write(C_PROGRAM % json.dumps(VERDICT))
    subprocess.run([compiler, "-O2", "-o", program, source], check=True)
    return (program,)


class Raw(ProcessProtocol):
    """Closes its standard input, and notices its end."""

    def __init__(self) -> None:
        self.ended: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        """It runs."""
        transport: Any = self.transport
        transport.closeStdin()

    def processEnded(self, reason: Failure) -> None:
        """It ended."""
        self.ended.callback(None)


def raw_run(reactor: Any, words: Sequence[str]) -> Run:
    """Start a program, and wait for its end."""

    def run() -> Deferred[None]:
        protocol = Raw()
        reactor.spawnProcess(protocol, words[0], words, {"PATH": os.defpath})
        return protocol.ended

    return run


async def lap(run: Run, count: int, concurrency: int) -> Lap:
    """Run ``count`` programs, ``concurrency`` at once."""
    before, began = os.times(), time.perf_counter()
    todo = repeat(run, count)

    async def worker() -> None:
        for each in todo:
            await each()

    for work in [ensureDeferred(worker()) for _ in range(concurrency)]:
        await work
    seconds, after = time.perf_counter() - began, os.times()
    return Lap(
        rate=count / seconds,
        own_cpu=(after.user + after.system - before.user - before.system) / count * 1000,
        children_cpu=(after.children_user + after.children_system - before.children_user - before.children_system)
        / count
        * 1000,
    )


async def measure(reactor: Any, options: argparse.Namespace) -> dict[str, list[Lap]]:
    """All laps, way by way."""
    with tempfile.TemporaryDirectory() as folder:
        words = make_program(folder)
        grader: Any = build(
            command.factory,
            reactor,
            concurrency=options.concurrency,
            command=words,
            work_dir=os.path.join(folder, "work"),
        )
        request = make_request()
        grader.startService()
        launcher = (shutil.which("setsid") or "setsid", "/bin/sh", "-c", command.LAUNCH, "launcher", folder)
        ways: dict[str, Run] = {
            "raw": raw_run(reactor, words),
            "launched": raw_run(reactor, (*launcher, *words)),
            "command": lambda: grader.grade(request),
        }
        for run in ways.values():
            await lap(run, 2 * options.concurrency, options.concurrency)  # to warm up
        laps: dict[str, list[Lap]] = {name: [] for name in ways}
        for number in range(options.rounds):
            for name in ways if number % 2 == 0 else reversed(ways):
                laps[name].append(await lap(ways[name], options.count, options.concurrency))
        await grader.stopService()
    return laps


def show(laps: dict[str, list[Lap]], ratio: float, options: argparse.Namespace) -> None:
    """A table."""
    title = f"{options.rounds} rounds of {options.count} programs, {options.concurrency} at once; medians"
    table = Table("way", "programs/s", "least", "most", "own CPU, ms", "children's CPU, ms", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, those in laps.items():
        rates = [each.rate for each in those]
        table.add_row(
            name,
            *(f"{rate:.0f}" for rate in (statistics.median(rates), min(rates), max(rates))),
            *(
                f"{statistics.median(values):.2f}"
                for values in ([e.own_cpu for e in those], [e.children_cpu for e in those])
            ),
        )
    console = Console()
    console.print(table)
    console.print(f"command / raw: {ratio:.2f} (median of the rounds' ratios; at least {BAR} is wanted)")


async def main(reactor: Any, options: argparse.Namespace) -> None:
    laps = await measure(reactor, options)
    ratio = statistics.median(ours.rate / raw.rate for raw, ours in zip(laps["raw"], laps["command"], strict=True))
    if options.json:
        ways = {name: [asdict(each) for each in those] for name, those in laps.items()}
        print(json.dumps({"concurrency": options.concurrency, "count": options.count, "ratio": ratio, "ways": ways}))
    else:
        show(laps, ratio, options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare the command grader with bare spawnProcess.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way has its turn (5)")
    parser.add_argument("--count", type=int, default=300, help="programs a turn (300)")
    parser.add_argument("--concurrency", type=int, default=10, help="programs at once (10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    sys.exit(react(lambda reactor: ensureDeferred(main(reactor, arguments))))
