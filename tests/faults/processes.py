"""What a test sees of a running process from outside, and does to it besides signals."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.agentprocess import AgentProcess
from tests.cli_process import ROOT, start_agent

PAGE = os.sysconf("SC_PAGE_SIZE")


def start_agent_in(case: Any, config: str, environment: Mapping[str, str]) -> AgentProcess:
    """Start an agent with some more in its environment; it isn't ready yet."""
    return AgentProcess(start_agent(case, config, environment))


def python_path(*folders: Path) -> str:
    """A ``PYTHONPATH`` with folders before our own."""
    return os.pathsep.join([*map(str, folders), str(ROOT)])


def state(pid: int) -> str:
    """``T`` while it is stopped, see ``proc_pid_stat(5)``."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def descriptors(pid: int) -> int:
    """How many it has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def highest_descriptor(pid: int) -> int:
    """The greatest one."""
    return max(map(int, os.listdir(f"/proc/{pid}/fd")))


def memory(pid: int) -> int:
    """Bytes of its resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


@contextmanager
def limited(pid: int, kind: int, most: int) -> Iterator[None]:
    """While the block lasts, a running process may have no more than ``most`` of something (``resource.RLIMIT_…``)."""
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (most, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, kind, before)
