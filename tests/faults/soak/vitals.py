"""How an agent's process is: what it holds, what is open, how much memory it has; and how fast that grows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGUSR2
from statistics import linear_regression
from typing import Any

from attrs import fields_dict, frozen

from tests.agentprocess import AgentProcess
from tests.cli_process import until
from tests.faults.processes import descriptors, memory, python_path

COUNTED = Path(__file__).parent / "counted"
WARM_UP = 0.25
"""The share of the samples, from the first one on, that say nothing about growth: caches fill, arenas are got."""
PER = 100_000
MB = 1_000_000


@frozen(kw_only=True)
class Vitals:
    """What there is in a process that has nothing to do.

    :ivar deferreds: Deferreds that something still refers to; ``pending``, those among them that haven't fired.
    :ivar calls: what the reactor is to call later.
    :ivar memory: bytes that are resident.
    :ivar kinds: the class → how many of it, for those with most.
    """

    deferreds: int
    pending: int
    coroutines: int
    calls: int
    threads: int
    descriptors: int
    memory: int
    kinds: Mapping[str, int]

    def grown_since(self, before: Vitals) -> str:
        """What there is more of, for people who look for a leak."""
        grown = {kind: count - before.kinds.get(kind, 0) for kind, count in self.kinds.items()}
        most = sorted(grown.items(), key=lambda item: -item[1])[:15]
        return ", ".join(f"{kind} {count:+d}" for kind, count in most if count > 0)


class Census:
    """Counts what is alive in an agent that was started with :attr:`environment`.

    :param path: of a file, for the counts.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path).absolute()
        self.environment = {"TEST_CENSUS": str(self._path), "PYTHONPATH": python_path(COUNTED)}

    async def take(self, agent: AgentProcess) -> Vitals:
        """Count."""
        self._path.unlink(missing_ok=True)
        agent.send_signal(SIGUSR2)
        await until(self._path.exists, agent.run)
        counts: dict[str, Any] = json.loads(self._path.read_text())
        known = {name: counts[name] for name in fields_dict(Vitals) if name in counts}
        return Vitals(descriptors=descriptors(agent.pid), memory=memory(agent.pid), **known)


@frozen
class Sample:
    """How much memory a process had when it had graded so many."""

    graded: int
    memory: int


def growth(samples: Sequence[Sample]) -> float | None:
    """MB for each 100,000 submissions, by least squares over the samples after the warm-up; ``None`` = too few."""
    counted = samples[int(len(samples) * WARM_UP) :]
    if len({sample.graded for sample in counted}) < 3:
        return None
    line = linear_regression([sample.graded for sample in counted], [sample.memory for sample in counted])
    return line.slope * PER / MB
