"""F8: the agent is told to stop at random moments of its work: what it began is finished or goes back, once."""

from __future__ import annotations

import re
import time
from signal import SIGINT, SIGTERM

from twisted.internet.task import deferLater

from edxagent.wire.request import requeued_request
from tests.agentprocess import AgentProcess
from tests.cli_process import until
from tests.faults.case import FaultTestCase
from tests.faults.proxy import FaultProxy

CONCURRENCY = 10
GRACE = 2.0
"""Seconds that a stop waits for what is being graded; a third of it takes longer."""
AT_ONCE = 2.0
"""Seconds that an end may take besides."""
GRADER = {"kind": "sleep", "min": 0.02, "max": 3}
IDLE, BUSY, TWICE = "idle", "busy", "twice"

_CANCELLED = re.compile(r"\bcancelled: (\S+) from ")
_GRADED = re.compile(r"\bgraded: (\S+) from ")


class StoppingTests(FaultTestCase):
    """``TERM`` and ``INT``; each ends the process by that very signal, which a shell shows as 143 and 130."""

    async def set_up(self) -> None:
        """Stop nothing yet."""
        await super().set_up()
        self.longest = 0.0

    async def test_stopped(self) -> None:
        """Stopped in whatever it is doing, it grades or gives back, once, all that it has; and it ends in time."""
        self.fault = "F8"
        config = self.write_config(agent={"concurrency": CONCURRENCY, "drain_timeout": GRACE}, grader=GRADER)
        await self.begin()
        ways = self.sized([BUSY, TWICE, BUSY, IDLE], [*[BUSY, BUSY, TWICE] * 16, IDLE, IDLE])
        graded_in_grace, hurried = 0, set()
        for way in ways:
            agent = self.start_agent(config)
            await agent.ready()
            if way is IDLE:
                await self.until_ended()
                await self.until_settled()
            else:
                await self.be_busy(agent)
            before = len(_GRADED.findall(agent.log))
            await self.end(agent, way)
            cancelled = _CANCELLED.findall(agent.log)
            if way is TWICE:
                hurried |= set(cancelled)
            graded_in_grace += len(_GRADED.findall(agent.log)) - before
            await self.see_what_went_back(cancelled)
        self.assertGreater(graded_in_grace, 0, "nothing was finished after the signal")
        self.assertTrue(hurried, "nothing was cut short")
        last = await self.agent(agent={"concurrency": 50}, grader=GRADER)
        await self.check(times=len(ways))
        # Only a second signal doesn't even wait for the confirm of a verdict.
        self.assertLessEqual(self.ledger.duplicates.keys(), hurried)
        self.assertLessEqual(set(self.ledger.duplicates.values()), {1})
        await last.stop()
        print(f"the longest end took {self.longest:.1f} s, {GRACE:g} of them granted")

    async def test_reconnecting(self) -> None:
        """Stopped while it has no connection, it ends in time; the broker has all that it had."""
        self.fault = "F8 reconnecting"
        proxy = FaultProxy.start(self)
        config = self.write_config(
            agent={"concurrency": CONCURRENCY, "drain_timeout": GRACE}, grader=GRADER, broker={"urls": proxy.url}
        )
        await self.begin()
        stops = self.sized(2, 50)
        for _ in range(stops):
            proxy.accept()
            agent = self.start_agent(config)
            await agent.ready()
            await self.be_busy(agent)
            await proxy.refuse()
            proxy.reset()
            await agent.says("next try in", times=2)
            await self.pause(self.random.uniform(0, 1))
            await self.end(agent, BUSY)
        last = await self.agent(agent={"concurrency": 50}, grader=GRADER)
        # What was published or acked just when the connection went is graded again.
        await self.check(times=stops, duplicates=2 * CONCURRENCY * stops)
        await last.stop()

    async def be_busy(self, agent: AgentProcess) -> None:
        """Have it in the middle of its work, at a random moment, with more to do than it can."""
        await self.producer.send_many(max(0, 3 * CONCURRENCY - len(self.ledger.missing)))
        enough = len(self.ledger.verdicts) + self.random.randrange(1, CONCURRENCY)
        await until(lambda: len(self.ledger.verdicts) >= enough, agent.run)
        await self.pause(self.random.uniform(0, 0.3))

    async def end(self, agent: AgentProcess, way: str) -> None:
        """Tell it to stop, and see that it does, by that signal and in time."""
        first, second = self.random.choices((SIGTERM, SIGINT), k=2)
        began, granted = time.monotonic(), GRACE
        agent.send_signal(first)
        if way is TWICE:
            await agent.says("waiting for ")
            await self.pause(self.random.uniform(0, GRACE / 2))
            self.assertTrue(agent.alive)
            began, granted = time.monotonic(), 0.0
            agent.send_signal(second)
        elif way is IDLE:
            granted = 0.0
        self.assertEqual(await agent.ended(), -first)
        took = time.monotonic() - began
        self.longest = max(self.longest, took)
        self.assertLess(took, granted + AT_ONCE, way)
        self.assert_clean(agent)

    async def see_what_went_back(self, cancelled: list[str]) -> None:
        """What an agent gave back is in the queue, and was returned once; put all back as if nothing had been."""
        self.assertEqual(len(cancelled), len(set(cancelled)), "something went back twice")
        found = await self.collect(self.requests, await self.held_in(self.requests))
        returns = {
            str(each.properties.message_id): each.properties.headers.get("x-delivery-count", 0) for each in found
        }
        self.assertEqual(len(returns), len(found))
        self.assertEqual({id: returns.get(id) for id in cancelled}, dict.fromkeys(cancelled, 1))
        self.assertLessEqual(set(returns.values()), {0, 1})
        for each in found:
            await self.broker.publish(requeued_request(self.requests, each.body, each.properties))

    async def pause(self, seconds: float) -> None:
        """Let a random time pass: the moment is what is tested."""
        from twisted.internet import reactor

        await deferLater(reactor, seconds)  # type: ignore[arg-type]  # zope's interface, mypy's module
