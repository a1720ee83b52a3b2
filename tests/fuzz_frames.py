"""Feeds spoilt broker sessions to real connections for as long as it is told, and counts.

Usage: ``python -m tests.fuzz_frames SECONDS [SEED [FIRST]]``. What a session says and how it is spoilt follows from the
seed and the execution's number alone, so ``python -m tests.fuzz_frames 0 SEED FIRST`` repeats the one that failed. Ends
with the number of executions, what became of the connections, and the memory it took; the exit status says whether all
that must hold did.
"""

from __future__ import annotations

import gc
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from types import FrameType

from attrs import define, field

from tests.fuzz_session import run
from tests.fuzz_streams import SESSIONS, chunks, spoilt

LONGEST = 5.0
"""Seconds of the processor after which an execution counts as endless; the usual one takes some milliseconds."""
MOST_FAILURES = 10
MOST_GROWTH = 64 * 1024 * 1024
"""Bytes that the process may grow by, whatever it is fed: some frames, some tables, some bodies."""


class Endless(BaseException):
    """An execution takes so long that it may never end. Nobody who catches exceptions may catch it."""


@define
class Report:
    """What a run has seen.

    :ivar ends: how connections ended → how many did.
    :ivar failures: what doesn't hold that must, with the execution's number.
    :ivar growth: bytes that the process grew by.
    """

    seed: str
    executions: int = 0
    seconds: float = 0.0
    growth: int = 0
    ends: Counter[str] = field(factory=Counter)
    failures: list[str] = field(factory=list)

    def __str__(self) -> str:
        lines = [f"{count:9d}  {end}" for end, count in self.ends.most_common()]
        pace = self.executions / self.seconds if self.seconds else 0
        lines.append(
            f"{self.executions} executions with seed {self.seed} in {self.seconds:.0f} s, {pace:.0f} a second; "
            f"the process grew by {self.growth / 1024**2:.1f} MiB; {len(self.failures)} failed"
        )
        return "\n".join([*lines, *self.failures])


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise :class:`Endless` in what takes longer than so many seconds of the processor."""

    def stop(number: int, at: FrameType | None) -> None:
        raise Endless(f"still not done after {seconds:g} s of the processor")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def execute(seed: str, number: int) -> str:
    """One execution; returns how the connection ended.

    :raises BaseException: if something doesn't hold that must.
    """
    random = Random(f"{seed}.{number}")
    heard = chunks(random, b"".join(spoilt(random)))
    with limited(LONGEST):
        return run(random, heard).end


def check_sessions() -> None:
    """Go through the sessions as they are: if those fail, nothing was tried by spoiling them."""
    with limited(LONGEST):
        whole, ended, waiting = (run(Random(0), chunks(Random(0), b"".join(said)), calm=True) for said in SESSIONS)
    assert whole.complete and whole.deliveries == 5, "the agent's side of the first session doesn't fit the broker's"
    assert (ended.end, ended.cancellations) == ("the broker closed the connection: …", 1), ended.end
    assert (waiting.end, waiting.cancellations, waiting.deliveries) == ("waits", 1, 4), waiting.end


def fuzz(seed: str, *, seconds: float = 0.0, executions: int = 1, first: int = 0) -> Report:
    """Run so many executions, and then on until so many seconds are over, or too many have failed."""
    check_sessions()
    report = Report(seed=seed)
    began = time.monotonic()
    memory = _memory()
    gc.collect()
    gc.freeze()  # what was there before needn't be gone through each time
    try:
        while report.executions < executions or time.monotonic() < began + seconds:
            number = first + report.executions
            report.executions += 1
            try:
                report.ends[execute(seed, number)] += 1
            except (Exception, Endless) as error:
                report.failures.append(f"python -m tests.fuzz_frames 0 {seed} {number}: {error!r}")
                if len(report.failures) >= MOST_FAILURES:
                    break
    finally:
        gc.unfreeze()
    report.seconds = time.monotonic() - began
    report.growth = _memory() - memory
    if report.growth > MOST_GROWTH:
        report.failures.append(f"the process grew by {report.growth} bytes")
    return report


def _memory() -> int:
    """The most memory that the process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    """Read the command line; return the exit status."""
    if len(sys.argv) not in (2, 3, 4):
        print(__doc__)
        return 2
    seconds, seed, first = [*sys.argv[1:], *["", str(time.time_ns()), "0"][len(sys.argv) - 1 :]]
    print(f"seed {seed}", flush=True)
    report = fuzz(seed, seconds=float(seconds), first=int(first))
    print(report, flush=True)
    return int(bool(report.failures))


if __name__ == "__main__":
    sys.exit(main())
