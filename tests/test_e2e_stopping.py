"""How the real agent ends when it is told to: in order, in time, without losing or repeating anything."""

from __future__ import annotations

from shlex import quote
from signal import SIGINT, SIGTERM
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from edxagent.testing.graders import CORRECT
from edxagent.testing.http_server import RogueServer, Visit, response, silent
from tests.agentprocess import AgentProcess, AgentTestCase
from tests.cli_process import until
from tests.faults.proxy import FaultProxy
from tests.outcomes import SECRETS, request

AT_ONCE = 3.0
"""Seconds."""

CLOSING = 8.0
"""Seconds; a broker that says nothing any more gets five to agree to the end."""


class StoppingTestCase(AgentTestCase):
    """A test that stops agents."""

    async def stops(self, agent: AgentProcess, number: int = SIGTERM, within: float = AT_ONCE) -> None:
        """Send a signal, and see that the agent ends by it, in order and in time."""
        from twisted.internet import reactor

        began = reactor.seconds()  # type: ignore[attr-defined]
        self.assertEqual(await agent.stop(number), -number)
        self.assertLess(reactor.seconds() - began, within)  # type: ignore[attr-defined]
        self.assert_clean(agent, SECRETS)


class AtWorkTests(StoppingTestCase):
    """With a grader that answers when the test says so."""

    async def set_up(self) -> None:
        """Start the grader."""
        from twisted.internet import reactor

        await super().set_up()
        self.server = RogueServer(silent)
        await self.server.start(reactor)
        self.addCleanup(self.server.stop)

    async def busy_agent(self, submissions: int, **sections: Any) -> AgentProcess:
        """An agent that is grading."""
        grader = {"kind": "http", "url": self.server.url, "timeout": 100}
        agent = await self.agent(grader=grader, **sections)
        for number in range(submissions):
            await self.publish(request(), message_id=str(number))
        await until(lambda: len(self.server.asked) == min(submissions, 4), agent.run)
        return agent

    def answer(self) -> None:
        """Answer what was asked, and from now on at once."""

        def answer(visit: Visit) -> None:
            visit.send(response(CORRECT))

        self.server.behaviour = answer
        for visit in self.server.visits:
            answer(visit)

    async def test_what_is_being_graded_is_finished(self) -> None:
        """TERM waits for the verdicts of what is being graded; what waits for a slot stays in its queue."""
        agent = await self.busy_agent(7)
        agent.send_signal(SIGTERM)
        await agent.says("waiting for 4 submissions")
        self.answer()
        self.assertEqual(await agent.ended(), -SIGTERM)
        self.assert_clean(agent, SECRETS)
        self.assertEqual(len(await self.collect(self.results, 4)), 4)
        self.assertEqual(await self.held_in(self.requests), 3)
        waiting = await self.collect(self.requests, 3)
        self.assertEqual(sorted(str(each.properties.message_id) for each in waiting), ["4", "5", "6"])
        await self.until_settled()
        self.assertEqual((await self.ready_in(self.results), len(self.server.asked)), (0, 4))

    async def test_what_takes_too_long_goes_back(self) -> None:
        """After ``drain_timeout`` a request goes back to its queue, once, and the next agent grades it."""
        agent = await self.busy_agent(1, agent={"drain_timeout": 0.5})
        await self.stops(agent)
        self.assertIn("1 submissions go back to their queues", agent.log)
        self.assertEqual((await self.held_in(self.requests), await self.ready_in(self.results)), (1, 0))
        self.answer()
        second = await self.agent(grader={"kind": "http", "url": self.server.url})
        await self.collect(self.results, 1)
        await self.until_settled()
        self.assertEqual((await self.ready_in(self.results), await self.ready_in(self.dead)), (0, 0))
        self.assertEqual(len(self.server.asked), 2)
        await self.stops(second)

    async def test_it_goes_back_once(self) -> None:
        """The broker has counted one return, no more."""
        await self.stops(await self.busy_agent(1, agent={"drain_timeout": 0.5}))
        (returned,) = await self.collect(self.requests, 1)
        self.assertEqual((returned.redelivered, returned.properties.headers["x-delivery-count"]), (True, 1))

    async def test_second_signal(self) -> None:
        """A second TERM or INT waits for nothing, and loses nothing."""
        for number, signals in enumerate(((SIGTERM, SIGTERM), (SIGTERM, SIGINT), (SIGINT, SIGINT)), 1):
            self.server.asked.clear()
            agent = await self.busy_agent(1, agent={"drain_timeout": 100})
            agent.send_signal(signals[0])
            await agent.says("waiting for 1 submissions")
            await self.hurries(agent, *signals)
            self.assertEqual(len(await self.collect(self.requests, 1)), 1, number)
            await self.until_settled()

    async def hurries(self, agent: AgentProcess, first: int, second: int) -> None:
        """Send a second signal, and see that the agent ends by the first, at once."""
        from twisted.internet import reactor

        began = reactor.seconds()  # type: ignore[attr-defined]
        agent.send_signal(second)
        self.assertEqual(await agent.ended(), -first)
        self.assertLess(reactor.seconds() - began, AT_ONCE)  # type: ignore[attr-defined]
        self.assert_clean(agent, SECRETS)

    async def test_stubborn_command(self) -> None:
        """A second TERM kills a command that doesn't listen."""
        stubborn = "trap '' TERM; while :; do sleep 99; done"
        agent = await self.agent(
            agent={"drain_timeout": 100},
            grader={"kind": "command", "command": f"sh -c {quote(stubborn)}", "kill_after": 1},
        )
        await self.publish(request(), message_id="1")
        await until(lambda: self.child_of(agent), agent.run)
        agent.send_signal(SIGTERM)
        await agent.says("waiting for 1 submissions")
        await self.hurries(agent, SIGTERM, SIGTERM)
        self.assertEqual(len(await self.collect(self.requests, 1)), 1)

    def child_of(self, agent: AgentProcess) -> bool:
        """Whether an agent has a child process."""
        with open(f"/proc/{agent.pid}/task/{agent.pid}/children") as children:
            return bool(children.read())

    async def test_broker_gone_while_grading(self) -> None:
        """Without a broker the verdict can't be told: ``drain_timeout`` ends the agent, and the request is kept."""
        proxy = FaultProxy.start(self)
        agent = await self.busy_agent(1, agent={"drain_timeout": 1}, broker={"urls": proxy.url})
        proxy.stop()
        await agent.says("next try in")
        self.answer()
        await self.stops(agent, within=1 + AT_ONCE)
        (returned,) = await self.collect(self.requests, 1)
        self.assertTrue(returned.redelivered)
        self.assertEqual(await self.ready_in(self.results), 0)

    async def test_frozen_broker(self) -> None:
        """A broker that says nothing any more can't hold up a second TERM."""
        proxy = FaultProxy.start(self)
        agent = await self.busy_agent(1, agent={"drain_timeout": 100}, broker={"urls": proxy.url, "heartbeat": 0})
        proxy.stall()
        agent.send_signal(SIGTERM)
        await agent.says("Received SIGTERM")
        await self.hurries(agent, SIGTERM, SIGTERM)


class IdleTests(StoppingTestCase):
    """With nothing to grade."""

    async def test_idle(self) -> None:
        """TERM and INT end it at once, by that signal, as a shell sees in status 143 and 130."""
        for number in (SIGTERM, SIGINT):
            agent = await self.agent()
            await self.stops(agent, number)
            self.assertEqual(agent.log.count("disconnected from"), 2)

    async def test_at_the_very_start(self) -> None:
        """TERM may come before anything is up."""
        agent = self.start_agent()
        await agent.says("starting up")
        await self.stops(agent)

    async def test_nobody_listens(self) -> None:
        """TERM ends it between two attempts to connect."""
        agent = self.start_agent(broker={"urls": "amqp://guest@127.0.0.1:1/", "retry_initial": 50, "retry_max": 100})
        await agent.says("next try", times=2)
        await self.stops(agent)

    async def test_nobody_speaks(self) -> None:
        """TERM ends it in the middle of an attempt."""
        from twisted.internet import reactor

        greeted: list[Protocol] = []

        class Mute(Protocol):
            def connectionMade(self) -> None:
                greeted.append(self)

        factory = Factory.forProtocol(Mute)
        factory.noisy = False
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        url = f"amqp://guest@127.0.0.1:{port.getHost().port}/"
        agent = self.start_agent(broker={"urls": url, "connect_timeout": 100})
        await until(lambda: len(greeted) == 2, agent.run)
        await self.stops(agent)

    async def test_frozen_while_preparing(self) -> None:
        """TERM ends it while it waits for the broker's answers about its queues."""
        for size in (600, 1500):
            await self.stops_silenced(size)

    async def stops_silenced(self, size: int) -> None:
        """Start an agent and stop it when its broker has fallen silent, after so many bytes."""
        proxy = FaultProxy.start(self)
        proxy.on_connection = lambda connection: connection.to_broker.stall_at(size)
        agent = self.start_agent(broker={"urls": proxy.url, "heartbeat": 0})
        await until(lambda: proxy.did["stalled"], agent.run)
        await self.stops(agent, within=CLOSING)

    async def test_broker_starts(self) -> None:
        """TERM ends it while the broker is down, and while it comes up."""
        agent, another = await self.agent(), await self.agent()
        await self.node.kill()
        for each in (agent, another):
            await each.says("next try", times=2)
        await self.stops(agent)
        starting = Deferred.fromCoroutine(self.node.start())
        await self.stops(another)
        await starting
