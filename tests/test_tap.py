"""Tests for :mod:`edxagent.tap`: what signals do to the real agent."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from twisted.internet.task import deferLater

from tests.agentprocess import POLL, AgentProcess, AgentTestCase
from tests.cli_process import start
from tests.outcomes import request

ENDLESS = {"agent": {"drain_timeout": 600}, "grader": {"kind": "sleep", "min": 590, "max": 590, "timeout": 600}}
SOON = 15.0
"""Seconds."""


class SignalTests(AgentTestCase):
    """TERM, INT, and those that are ignored."""

    async def busy(self, agent: AgentProcess) -> None:
        """Have ``agent`` grade something that won't end."""
        from twisted.internet import reactor

        await agent.ready()
        await self.publish(request())
        while await self.ready_in(self.requests):
            await deferLater(reactor, POLL)  # type: ignore[arg-type]

    async def ends_soon(self, agent: AgentProcess, *signals: int) -> None:
        """Send signals, one right after the other, and see the agent end in order."""
        began = time.monotonic()
        for number in signals:
            agent.send_signal(number)
        await agent.ended()
        self.assertLess(time.monotonic() - began, SOON)
        self.assert_clean(agent)

    async def test_two_at_once(self) -> None:
        """A second signal that comes before the first had its effect counts all the same."""
        agent = self.start_agent(**ENDLESS)
        await self.busy(agent)
        await self.ends_soon(agent, signal.SIGTERM, signal.SIGINT)

    async def test_ignored_from_the_start(self) -> None:
        """Who starts it in the background with INT ignored means it: INT does nothing, and TERM stops it."""
        twistd = Path(sys.executable).with_name("twistd")
        command = f"trap '' INT; exec {twistd} --nodaemon --pidfile= edxagent --config {self.write_config()}"
        agent = AgentProcess(start(self, "/bin/sh", "-c", command))
        await agent.ready()
        await self.ends_soon(agent, signal.SIGINT, signal.SIGTERM)
        self.assertEqual(agent.run.status, -signal.SIGTERM)
