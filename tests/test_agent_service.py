"""Tests for :mod:`edxagent.agent.service`: stopping, in this process and against the shared broker."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from edxagent.agent import AgentService, make_agent_service
from edxagent.config.agent import read_agent_config
from edxagent.config.values import (
    AgentConfig,
    BrokerAddress,
    BrokerConfig,
    GraderConfig,
    QuarantineConfig,
    QueueConfig,
)
from edxagent.graders.registry import find_factory
from edxagent.model import GraderRequest, GraderResponse
from edxagent.testing.graders import StubGrader
from tests.agentprocess import AgentTestCase
from tests.amqp_support import silenced
from tests.cli_process import until
from tests.outcomes import request

CLOSING = 5.0
"""Seconds that the agent gives a broker that doesn't answer for the end of each of its two connections."""


class ServiceGrader(Service):
    """A grader that is a service as well, of the plain kind: its ``stopService`` returns nothing."""

    async def grade(self, request: GraderRequest) -> GraderResponse:
        """See ``IGrader``."""
        raise NotImplementedError

    def stopService(self) -> None:  # type: ignore[override]  # IService allows it
        """Stop."""
        super().stopService()


class StopTests(SynchronousTestCase):
    """``stopService`` where no broker is."""

    def test_plain_service(self) -> None:
        """A grader whose ``stopService`` returns no Deferred is stopped like any other."""
        reactor: Any = MemoryReactorClock()
        address = BrokerAddress(host="127.0.0.1", port=5672, username="guest", password="guest")
        config = AgentConfig(
            name="agent",
            broker=BrokerConfig(addresses=(address,)),
            queues=(QueueConfig(name="q"),),
            grader=GraderConfig(kind="stub"),
            quarantine=QuarantineConfig(journal=None),
        )
        grader = ServiceGrader()
        service = make_agent_service(config, reactor, grader=grader)  # type: ignore[arg-type]
        service.startService()
        self.assertTrue(grader.running)
        self.successResultOf(service.stopService())
        self.assertFalse(grader.running)


class SilentBrokerTests(AgentTestCase):
    """``stopService`` while the broker says nothing any more."""

    async def working_agent(self, drain_timeout: float) -> tuple[AgentService, StubGrader]:
        """An agent whose grader is at work on a request and won't end by itself."""
        from twisted.internet import reactor

        path = self.write_config(
            agent={"concurrency": 1, "drain_timeout": drain_timeout}, broker={"call_timeout": 60, "heartbeat": 0}
        )
        config = read_agent_config(path, environment={}, find_factory=find_factory)
        grader = StubGrader(None)
        service = make_agent_service(config, reactor, grader=grader)
        service.startService()
        self.addCleanup(lambda: service.stopService() if service.running else None)
        await until(lambda: service.consuming)
        await self.publish(request())
        await until(lambda: bool(grader.hanging))
        return service, grader

    async def stopped(self, service: AgentService, hurry: bool) -> float:
        """Freeze the broker, stop the agent, and return how long that took, in seconds."""
        from twisted.internet import reactor

        clock: Any = reactor
        async with silenced(self.node):
            began = clock.seconds()
            stopping: Deferred[None] = service.stopService()
            if hurry:
                service.hurry()
            await stopping
            return float(clock.seconds() - began)

    async def test_hurry(self) -> None:
        """Told to hurry at once, it doesn't wait for the broker's word that no more requests come."""
        service, grader = await self.working_agent(drain_timeout=60)
        self.assertLess(await self.stopped(service, hurry=True), 2 * CLOSING + 5)
        self.assertEqual(len(grader.cancelled), 1)

    async def test_drain_timeout(self) -> None:
        """``drain_timeout`` is for all of the drain, the broker's word that no more requests come among it."""
        service, grader = await self.working_agent(drain_timeout=1)
        self.assertLess(await self.stopped(service, hurry=False), 1 + 2 * CLOSING + 5)
        self.assertEqual(len(grader.cancelled), 1)
