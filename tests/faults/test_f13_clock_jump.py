"""F13: the machine's clock is set forward or back by an hour, while submissions are graded and wait to be retried."""

from __future__ import annotations

import mmap
import re
import struct
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from tests.agentprocess import AgentProcess
from tests.cli_process import until
from tests.faults.case import FaultTestCase
from tests.faults.graders import KIND, asking
from tests.faults.processes import python_path, start_agent_in

HOUR = 3600.0
HEARTBEAT = 1
TIMEOUT = 4
DELAY = 0.5
"""Seconds that a submission waits to be retried."""

_STAMP = re.compile(r"^(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)", re.MULTILINE)


class WrongClock:
    """The wall clock of an agent that is a process."""

    def __init__(self, case: FaultTestCase) -> None:
        path = Path(case.mktemp()).absolute()
        path.write_bytes(bytes(8))
        self.environment = {
            "TEST_CLOCK": str(path),
            "PYTHONPATH": python_path(Path(__file__).parent / "shifted_clock"),
        }
        with open(path, "r+b") as file:
            self._offset = mmap.mmap(file.fileno(), 8)
        case.addCleanup(self._offset.close)

    def be_wrong_by(self, seconds: float) -> None:
        """Jump."""
        struct.pack_into("d", self._offset, 0, seconds)


class ClockJumpTests(FaultTestCase):
    """Deadlines, heartbeats and pauses run by another clock."""

    fault = "F13"

    async def test_jumps(self) -> None:
        """Nothing ends early, nothing hangs, no connection is given up."""
        jumps = self.sized([HOUR, -HOUR], [HOUR, 0, -HOUR, 0] * 5)
        clock = WrongClock(self)
        config = self.write_config(
            agent={"concurrency": 20, "hold_limit": 60},
            broker={"heartbeat": HEARTBEAT},
            grader={"kind": KIND, "timeout": TIMEOUT},
            retry={"delays": DELAY},
            breaker={"failures": 1000},
        )
        agent = start_agent_in(self, config, clock.environment)
        await agent.ready()
        await self.begin()
        for number, offset in enumerate(jumps):
            # Some are in the middle of being graded, some on their way through a retry queue, one takes too long.
            grading = [f"grading-{number}-{each}" for each in range(5)]
            retried = [f"retried-{number}-{each}" for each in range(5)]
            late = f"late-{number}"
            for id in grading:
                await self.producer.send(id, asking(sleep=1.5))
            for id in retried:
                await self.producer.send(id, asking(failures=2))
            await self.producer.send(late, asking(sleep=HOUR / 2))
            await until(lambda retried=retried: all(f"unavailable: {id} " in agent.log for id in retried), agent.run)  # type: ignore[misc]
            self.assertFalse(self.ledger.verdicts.keys() & {*grading, late}, "they weren't being graded any more")
            clock.be_wrong_by(offset)
            began = time.monotonic()
            await until(lambda there={*grading, *retried}: there <= self.ledger.verdicts.keys(), agent.run)  # type: ignore[misc]
            self.assertLess(time.monotonic() - began, TIMEOUT)
            self.assertNotIn(late, self.ledger.verdicts)
            await until(lambda late=late: late in self.ledger.verdicts, agent.run)  # type: ignore[misc]
            self.assertGreater(time.monotonic() - began, TIMEOUT - 3)
        self.assertEqual(jumps_in(agent), len(jumps))
        self.assertEqual(agent.log.count("): connected to "), 2, "a connection was given up")
        lates = {id: ["timed-out"] for id in self.ledger.offers if id.startswith("late")}
        self.assertEqual({id: self.ledger.verdicts[id] for id in lates}, lates)
        await self.check(times=len(jumps), duplicates=0, outcomes={"graded", "timed-out"}, dead=lates)
        self.assertEqual(agent.log.count("timed-out: "), len(lates))
        await agent.stop()
        self.assert_clean(agent)


def jumps_in(agent: AgentProcess) -> int:
    """How often an agent's log jumps by more than half an hour."""
    stamps = [datetime.fromisoformat(stamp).timestamp() for stamp in _STAMP.findall(agent.log)]
    return sum(abs(after - before) > HOUR / 2 for before, after in pairwise(stamps))
