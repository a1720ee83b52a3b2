"""Tests for :mod:`edxagent.agent.taking`, against the shared broker, with lives that end when the test says so."""

from __future__ import annotations

from collections import Counter
from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TimeIsOver
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs

from edxagent.agent.blocked import BlockedBroker
from edxagent.agent.taking import Taking
from edxagent.agent.valve import Valve
from edxagent.amqp.publisher import ConfirmingPublisher
from edxagent.config.values import AgentConfig, GraderConfig, QueueConfig, ResultsConfig, RetryConfig
from edxagent.errors import BrokerRefused
from edxagent.interfaces import IHeldDelivery
from edxagent.limits import FairSlots
from edxagent.model import REQUESTS_RETRY, dead_queue_of, retry_name
from edxagent.tasks import Tasks
from tests.agentprocess import AgentTestCase
from tests.amqp_support import message
from tests.cli_process import until
from tests.faults.proxy import FaultProxy

SOON = 1.0
"""Seconds within which no consumer is left when the valve was shut."""


class TakingTestCase(AgentTestCase):
    """A test with a :class:`Taking` of its own.

    :ivar began: id → how often its grading began.
    :ivar returned: id → how often it went back.
    :ivar acks: what ``ack`` said of each that was graded, in order.
    :ivar gates: id → fires to end its grading. While :attr:`gated` is false, grading takes no time.
    """

    async def set_up(self) -> None:
        """Names, and nothing begun yet."""
        await super().set_up()
        self.slots = FairSlots(2, {})
        self.valve = Valve()
        self.lives = Tasks()
        self.began: Counter[str] = Counter()
        self.returned: Counter[str] = Counter()
        self.acks: list[bool] = []
        self.gates: dict[str, Deferred[None]] = {}
        self.gated = False
        self.refusals: list[BrokerRefused] = []

    def agent_config(self, *queues: str, **broker: Any) -> AgentConfig:
        """A configuration with these queues, :attr:`requests` by default."""
        return AgentConfig(
            name="taking",
            broker=evolve(self.config(), **broker),
            queues=tuple(QueueConfig(name=name) for name in queues or (self.requests,)),
            grader=GraderConfig(kind="fixed"),
            results=ResultsConfig(queue=self.results),
        )

    def start(self, config: AgentConfig | None = None) -> Taking:
        """Take requests."""
        from twisted.internet import reactor

        taking = Taking(
            config=config or self.agent_config(),
            reactor=reactor,
            slots=self.slots,
            valve=self.valve,
            receive=lambda held: self.lives.launch(self.live(held), "a life"),
            on_refused=self.refusals.append,
        )
        taking.startService()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.stop(taking)))
        return taking

    async def stop(self, taking: Taking) -> None:
        """Take no more, end what runs, and disconnect."""
        await taking.close()
        self.open_gates()
        await self.lives.when_idle()
        await taking.stopService()

    async def started(self, config: AgentConfig | None = None) -> Taking:
        """One that is taking requests already."""
        taking = self.start(config)
        await until(lambda: taking.consuming)
        return taking

    async def live(self, held: IHeldDelivery) -> None:
        """Wait for a slot, grade, ack."""
        from twisted.internet import reactor

        name = str(held.properties.message_id)
        try:
            await self.slots.acquire(held.queue).addTimeout(10, reactor)  # type: ignore[arg-type]
        except (CancelledError, TimeIsOver):
            self.returned[name] += 1
            held.requeue()
            return
        held.begin()
        self.began[name] += 1
        if self.gated:
            await self.gates.setdefault(name, Deferred())
        self.slots.release()
        self.acks.append(held.ack())

    def open_gates(self) -> None:
        """Let all that is being graded end, and what comes later take no time."""
        self.gated = False
        for gate in self.gates.values():
            if not gate.called:
                gate.callback(None)

    async def fill(self, *names: str, queue: str | None = None) -> None:
        """Publish requests with these ids."""
        for name in names:
            await self.publish(b"{}", queue, message_id=name)

    async def consumers(self, queue: str | None = None) -> int:
        """How many consumers a queue has."""
        return (await self.broker.declare_queue(queue or self.requests, passive=True)).consumers

    async def until_consumers(self, low: int, high: int, seconds: float = 10.0) -> None:
        """Wait until there are so many consumers."""
        from twisted.internet import reactor

        deadline = reactor.seconds() + seconds  # type: ignore[attr-defined]
        while not low <= (count := await self.consumers()) <= high:
            if reactor.seconds() > deadline:  # type: ignore[attr-defined]
                raise AssertionError(f"{count} consumers after {seconds:g} s")

    async def is_consumed(self, queue: str) -> bool:
        """Whether a queue has consumers, other than cancelled ones that hold unsettled messages."""
        return queue in await self.node.rabbitmqctl("list_consumers", "queue_name")

    async def no_consumers(self, taking: Taking) -> None:
        """Wait, not for long, until the broker has said that no consumers are left, and see that it is true."""
        await until(lambda: taking._intake is None, patience=SOON)
        self.assertFalse(await self.is_consumed(self.requests))

    async def rest(self, seconds: float) -> None:
        """Let some time pass."""
        from twisted.internet import reactor

        await deferLater(reactor, seconds)  # type: ignore[arg-type]

    def channels(self, taking: Taking) -> int:
        """How many channels its connection has open, beside the one for the connection itself."""
        session: Any = taking._session
        return len(session._connection.channels) - 1


class ValveTests(TakingTestCase):
    """The valve decides whether requests are taken."""

    async def test_shut_and_open(self) -> None:
        """Shut, consumers go within a second, what is held goes back once, what is being graded is finished and acked.

        Open again, requests are taken over the same connection.
        """
        self.gated = True
        taking = await self.started()
        session = taking._session
        await self.fill("1", "2", "3", "4")
        await until(lambda: len(self.began) == 2 and len(self.lives) == 3)
        self.valve.shut("publishing", "unroutable")
        self.assertFalse(taking.consuming)
        await self.no_consumers(taking)
        await until(lambda: len(self.lives) == 2)
        self.assertEqual((len(self.began), sum(self.returned.values())), (2, 1))
        self.assertEqual(await self.held_in(self.requests), 4)
        self.assertEqual(await self.ready_in(self.requests), 2)
        self.open_gates()
        await until(lambda: len(self.acks) == 2)
        self.assertEqual(self.acks, [True, True])
        await self.rest(0.5)
        self.assertEqual((await self.consumers(), await self.held_in(self.requests)), (0, 2))
        self.valve.open("publishing")
        await until(lambda: len(self.acks) == 4)
        await until(lambda: taking.consuming)
        self.assertIs(taking._session, session)
        self.assertEqual(set(self.began.values()), {1})
        await self.until_settled()
        await until(lambda: self.channels(taking) == 1)

    async def test_opened_while_grading(self) -> None:
        """What was begun before it was shut is acked on its old channel, which is closed then."""
        self.gated = True
        taking = await self.started()
        await self.fill("1")
        await until(lambda: bool(self.gates))
        self.valve.shut("blocked", "memory")
        await self.no_consumers(taking)
        self.valve.open("blocked")
        await until(lambda: taking.consuming)
        self.assertEqual(self.channels(taking), 2)
        self.open_gates()
        await until(lambda: self.acks == [True])
        await until(lambda: self.channels(taking) == 1)
        self.assertEqual(self.began, {"1": 1})
        await self.until_settled()

    async def test_shut_from_the_start(self) -> None:
        """A session that comes up while it is shut takes nothing until it opens."""
        self.valve.shut("breaker", "the grader is down")
        taking = self.start()
        await until(lambda: taking._session is not None)
        await self.fill("1")
        await self.rest(0.3)
        self.assertFalse(taking.consuming)
        self.assertEqual((await self.consumers(), self.began), (0, {}))
        self.valve.open("breaker")
        await until(lambda: self.acks == [True])
        self.assertTrue(taking.consuming)

    async def test_flapping(self) -> None:
        """However often and quickly it goes to and fro, nothing is begun twice, and no channel or consumer stays."""
        taking = await self.started()
        names = [str(number) for number in range(100)]
        await self.fill(*names[:50])
        for number in range(300):
            self.valve.shut("blocked", "memory")
            if number % 3:
                await self.rest(0.002 * (number % 5))
            self.valve.open("blocked")
            if number % 4:
                await self.rest(0.002 * (number % 7))
            if number % 6 == 0:
                await self.fill(names[50 + number // 6])
        await until(lambda: len(self.acks) == 100)
        self.assertEqual(self.began, Counter(names))
        self.assertTrue(all(self.acks))
        await self.until_settled()
        await until(lambda: taking.consuming)
        await until(lambda: self.channels(taking) == 1)
        await self.until_consumers(1, 3)
        self.assertEqual((self.slots.free, self.slots.waiting), (2, 0))

    async def test_two_reasons(self) -> None:
        """It opens when the last reason is gone."""
        taking = await self.started()
        self.valve.shut("blocked", "memory")
        self.valve.shut("breaker", "the grader is down")
        self.valve.open("blocked")
        await self.rest(0.3)
        self.assertFalse(taking.consuming)
        self.valve.open("breaker")
        await until(lambda: taking.consuming)

    async def test_closed_while_shut(self) -> None:
        """An agent that stops doesn't begin again because the valve opens."""
        taking = await self.started()
        self.valve.shut("breaker", "the grader is down")
        await taking.close()
        self.valve.open("breaker")
        await self.rest(0.2)
        self.assertEqual((await self.consumers(), taking.consuming), (0, False))

    async def test_blocked_broker(self) -> None:
        """While RabbitMQ is short of memory nothing is taken; the connection lives, for longer than two heartbeats."""
        taking = await self.started()
        publishing = self.link(self.config(heartbeat=1), prepare=BlockedBroker(self.valve).attend, purpose="publish")
        session = await publishing.when_up()
        publisher = ConfirmingPublisher(publishing)
        await self.node.rabbitmqctl("set_vm_memory_high_watermark", "0.0000001")
        try:
            stuck = Deferred.fromCoroutine(publisher.publish(message(self.results)))  # the broker tells those who try
            await until(lambda: "blocked" in self.valve.reasons)
            self.assertFalse(taking.consuming)
            await self.no_consumers(taking)
            await self.rest(4)
            self.assertIn("blocked", self.valve.reasons)
        finally:
            await self.node.rabbitmqctl("set_vm_memory_high_watermark", "0.4")
        await until(lambda: self.valve.is_open)
        await stuck
        self.assertIs(publishing.session, session)
        await until(lambda: taking.consuming)

    async def test_blocked_connection_lost(self) -> None:
        """A blocked connection that goes is no reason any more."""
        link = self.link(prepare=BlockedBroker(self.valve).attend, purpose="publish")
        session: Any = await link.when_up()
        session._connection.set_blocked("low on disk")
        self.assertEqual(self.valve.reasons, {"blocked": "the broker takes no verdicts: low on disk"})
        await link.stopService()
        self.assertTrue(self.valve.is_open)


class ConsumingTests(TakingTestCase):
    """``consuming`` tells the truth."""

    async def test_truth(self) -> None:
        """Not before the broker has agreed, for each queue; nor without a connection, or after the end."""
        proxy = FaultProxy.start(self)
        other = self.unique("other")
        await self.broker.declare_queue(other)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.broker.delete_queue(other)))
        self.addCleanup(lambda: Deferred.fromCoroutine(self.broker.delete_queue(dead_queue_of(other))))
        address = evolve(self.address, port=proxy.port)
        taking = self.start(self.agent_config(self.requests, other, addresses=(address,)))
        self.assertFalse(taking.consuming)
        await until(lambda: taking.consuming)
        self.assertEqual([await self.consumers(), await self.consumers(other)], [1, 1])
        await self.broker.delete_queue(other)
        await until(lambda: not taking.consuming)
        await until(lambda: taking.consuming)
        self.assertEqual([await self.consumers(), await self.consumers(other)], [1, 1])
        await proxy.refuse()
        proxy.reset()
        await until(lambda: not taking.consuming)
        proxy.accept()
        await until(lambda: taking.consuming)
        await self.until_consumers(1, 1)
        await taking.close()
        self.assertFalse(taking.consuming)


class LostConnectionTests(TakingTestCase):
    """What becomes of requests whose connection went."""

    async def test_stale_ack(self) -> None:
        """A request of a lost connection isn't acked on the next one, which goes on; it comes again."""
        proxy = FaultProxy.start(self)
        self.gated = True
        taking = await self.started(self.agent_config(addresses=(evolve(self.address, port=proxy.port),)))
        await self.fill("1", "2", "3")
        await until(lambda: len(self.gates) == 2)
        proxy.reset()
        await until(lambda: taking._session is None)
        await until(lambda: taking.consuming or len(self.lives) > 2)
        session = taking._session
        self.open_gates()
        await until(lambda: sum(self.acks) == 3)
        self.assertEqual((self.acks.count(False), self.began["1"], self.began["2"]), (2, 2, 2))
        await self.until_settled()
        self.assertIs(taking._session, session)
        self.assertEqual(proxy.did["reset"], 1)


class OtherConfigurationTests(TakingTestCase):
    """``use``."""

    async def set_up(self) -> None:
        """Names of another queue and another delay."""
        await super().set_up()
        self.other = self.unique("other")
        self.rung = 7000.0 + int(self.other[-3:], 16)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.remove()))

    async def remove(self) -> None:
        """Take the queues away again."""
        for name in (self.other, dead_queue_of(self.other), retry_name(REQUESTS_RETRY, self.rung)):
            await self.broker.delete_queue(name)

    async def test_other_queues(self) -> None:
        """What is new is declared, requests come from it; those of an old queue that are being graded are acked."""
        self.gated = True
        taking = await self.started()
        session = taking._session
        await self.fill("1", "2", "3", "4")
        await until(lambda: len(self.gates) == 2 and len(self.lives) == 3)
        await taking.use(evolve(self.agent_config(self.other), retry=RetryConfig(delays=(self.rung,))))
        await until(lambda: len(self.lives) == 2)
        self.assertFalse(await self.is_consumed(self.requests))
        await self.broker.declare_queue(retry_name(REQUESTS_RETRY, self.rung), passive=True)
        self.open_gates()
        await until(lambda: self.acks == [True, True])
        await self.fill("5", queue=self.other)
        await until(lambda: self.began["5"] == 1)
        self.assertEqual((await self.held_in(self.requests), sum(self.returned.values())), (2, 1))
        await until(lambda: taking.consuming)
        await until(lambda: self.channels(taking) == 1)
        self.assertIs(taking._session, session)

    async def test_a_queue_that_stays(self) -> None:
        """Its consumers aren't touched, and what it holds isn't given back."""
        self.gated = True
        taking = await self.started()
        await self.fill("1", "2", "3")
        await until(lambda: len(self.gates) == 2 and len(self.lives) == 3)
        for queues in ((self.requests, self.other), (self.requests,), (self.other, self.requests)):
            await taking.use(self.agent_config(*queues))
        await until(lambda: taking.consuming)
        self.open_gates()
        await until(lambda: len(self.acks) == 3)
        self.assertEqual((self.returned, set(self.began.values())), ({}, {1}))
        await until(lambda: self.channels(taking) == 2)

    async def test_refused(self) -> None:
        """A queue that the broker doesn't let us have is an error for the caller; nothing changes."""
        taking = await self.started()
        retry = retry_name(REQUESTS_RETRY, self.rung)
        await self.broker.declare_queue(retry)
        wanted = evolve(self.agent_config(self.other), retry=RetryConfig(delays=(self.rung,)))
        error = await self.assertFailure(Deferred.fromCoroutine(taking.use(wanted)), BrokerRefused)
        self.assertIn(retry, str(error))
        await self.fill("1")
        await until(lambda: self.acks == [True])
        self.assertEqual((taking.consuming, await self.consumers(self.other)), (True, 0))

    async def test_without_a_connection(self) -> None:
        """The next one begins with it."""
        proxy = FaultProxy.start(self)
        address = evolve(self.address, port=proxy.port)
        taking = await self.started(self.agent_config(addresses=(address,)))
        await proxy.refuse()
        proxy.reset()
        await until(lambda: taking._session is None)
        await taking.use(self.agent_config(self.other))
        proxy.accept()
        await until(lambda: taking.consuming)
        self.assertEqual((await self.consumers(), await self.consumers(self.other)), (0, 1))

    async def test_connection_lost_meanwhile(self) -> None:
        """In the middle of it as well."""
        proxy = FaultProxy.start(self)
        address = evolve(self.address, port=proxy.port)
        taking = await self.started(self.agent_config(addresses=(address,)))
        proxy.stall()
        used = Deferred.fromCoroutine(taking.use(self.agent_config(self.other)))
        await self.rest(0.1)
        proxy.on_connection = lambda connection: None
        proxy.reset()
        await used
        await until(lambda: taking.consuming)
        self.assertEqual((await self.consumers(), await self.consumers(self.other)), (0, 1))


class ProbeTests(TakingTestCase):
    """``probe``."""

    async def test_one_request(self) -> None:
        """While the valve is shut a single request is taken; no more come until it opens."""
        self.valve.shut("breaker", "the grader is down")
        taking = self.start()
        probed = taking.probe()
        await until(lambda: taking._session is not None)
        await self.fill("1", "2", "3")
        await probed
        self.assertEqual((self.began, self.acks), ({"1": 1}, [True]))
        await self.rest(0.3)
        self.assertEqual((await self.consumers(), await self.held_in(self.requests)), (0, 2))
        await until(lambda: self.channels(taking) == 0)
        self.valve.open("breaker")
        await until(lambda: len(self.acks) == 3)

    async def test_close(self) -> None:
        """An agent that stops gives up looking; afterwards there is no probe."""
        self.valve.shut("breaker", "the grader is down")
        taking = self.start()
        await until(lambda: taking._session is not None)
        probed = taking.probe()
        await taking.close()
        await probed
        await self.fill("1")
        await taking.probe()
        self.assertEqual(self.began, {})


class MissingQueueTests(TakingTestCase):
    """A queue that vanishes where nothing may be declared."""

    async def test_deleted(self) -> None:
        """It is reported once, tried again and again, and taken from when it is there again; the others go on."""
        other = self.unique("other")
        self.addCleanup(lambda: Deferred.fromCoroutine(self.remove(other)))
        both = self.agent_config(self.requests, other)
        first = await self.started(both)
        await self.stop(first)
        with capturedLogs() as logged:
            taking = await self.started(evolve(both, broker=evolve(both.broker, declare=False)))
            await self.broker.delete_queue(other)
            await until(lambda: not taking.consuming)
            await self.rest(5)
            await self.fill("1")
            await until(lambda: self.acks == [True])
            await self.broker.declare_queue(other)
            await until(lambda: taking.consuming, patience=10)
        events = [event for event in logged if event.get("queue") == other]
        self.assertEqual([event["log_level"].name for event in events], ["warn", "warn", "info"])
        self.assertIn("declare = yes", events[1]["reason"])
        await self.fill("2", queue=other)
        await until(lambda: self.acks == [True, True])

    async def test_missing_after_a_reconnection(self) -> None:
        """It holds up nobody but itself."""
        proxy = FaultProxy.start(self)
        other = self.unique("other")
        self.addCleanup(lambda: Deferred.fromCoroutine(self.remove(other)))
        both = self.agent_config(self.requests, other, addresses=(evolve(self.address, port=proxy.port),))
        await self.stop(await self.started(both))
        taking = await self.started(evolve(both, broker=evolve(both.broker, declare=False)))
        await proxy.refuse()
        proxy.reset()
        await self.broker.delete_queue(other)
        proxy.accept()
        await self.fill("1")
        await until(lambda: self.acks == [True])
        self.assertFalse(taking.consuming)
        await self.broker.declare_queue(other)
        await until(lambda: taking.consuming, patience=10)

    async def remove(self, queue: str) -> None:
        """Take a queue away again."""
        for name in (queue, dead_queue_of(queue)):
            await self.broker.delete_queue(name)
