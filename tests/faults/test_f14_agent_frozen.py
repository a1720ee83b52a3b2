"""F14: of two agents one is frozen for minutes, as by a machine that swaps; then it goes on as if nothing had been."""

from __future__ import annotations

import time
from signal import SIGCONT, SIGSTOP
from typing import Any

from twisted.internet.task import deferLater

from tests.agentprocess import AgentProcess
from tests.cli_process import until
from tests.faults.case import FULL, FaultTestCase
from tests.faults.processes import state

CONCURRENCY = 10
HEARTBEAT = 10 if FULL else 1
FROZEN = 180.0 if FULL else 5.0
"""Seconds. The broker takes a silent client for dead after two or three heartbeats."""


class AgentFrozenTests(FaultTestCase):
    """``SIGSTOP``, ``SIGCONT``."""

    fault = "F14"

    async def test_frozen(self) -> None:
        """The other one gets what it held; it settles nothing of that any more, and grades again by itself."""
        from twisted.internet import reactor

        sections: dict[str, Any] = {
            "agent": {"concurrency": CONCURRENCY},
            "broker": {"heartbeat": HEARTBEAT},
            "grader": {"kind": "sleep", "min": 0.05, "max": 0.5},
        }
        frozen, other = await self.agent(**sections), await self.agent(**sections)
        await self.begin()
        self.producer.keep_up(100)
        await until(lambda: len(self.ledger.verdicts) > 100)
        began = time.monotonic()
        frozen.send_signal(SIGSTOP)
        await until(lambda: state(frozen.pid) == "T")
        there = set(self.ledger.confirmed)
        while time.monotonic() - began < FROZEN:
            await deferLater(reactor, 0.2)  # type: ignore[arg-type]  # zope's interface, mypy's module
        self.assertEqual(state(frozen.pid), "T")
        self.assertFalse(there & self.ledger.missing, "jobs didn't move to the other one")
        settled = graded_by(frozen)
        frozen.send_signal(SIGCONT)
        thawed = time.monotonic()
        await until(lambda: graded_by(frozen) > settled + 2 * CONCURRENCY, frozen.run)
        recovery = time.monotonic() - thawed
        await self.producer.stop()
        count = await self.check(times=1, duplicates=CONCURRENCY + 1, recovery=recovery)
        self.assertLessEqual(set(self.ledger.duplicates.values()), {1})
        self.assertEqual(count.sent, len(self.ledger.verdicts))
        for agent in (frozen, other):
            # A delivery tag of a connection that is gone would be unknown to the next one, which RabbitMQ closes then.
            self.assertNotIn("unknown delivery tag", agent.log)
            self.assertNotIn("PRECONDITION_FAILED", agent.log)
            await agent.stop()
            self.assert_clean(agent)


def graded_by(agent: AgentProcess) -> int:
    """How many it says it graded."""
    return agent.log.count("graded: ")
