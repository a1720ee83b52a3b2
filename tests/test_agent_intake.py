"""Tests for :mod:`edxagent.agent.intake` and :mod:`edxagent.agent.lane`, on a clock that the tests turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TimeIsOver
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from edxagent.agent.held import HeldDelivery
from edxagent.agent.intake import Intake
from edxagent.errors import ChannelClosed, MessageRefused
from edxagent.interfaces import IDelivery, IHeldDelivery
from edxagent.limits import FairSlots
from edxagent.tasks import Tasks
from edxagent.testing.memory import MemoryBroker, MemoryDelivery, MemoryPort

HOLD_LIMIT = 10.0


class Agent:
    """An intake whose submissions take a while and do nothing else.

    :ivar seconds: queue → how long one of its submissions takes.
    """

    def __init__(
        self, clock: Clock, broker: MemoryBroker, weights: Mapping[str, int], concurrency: int, seconds: float
    ) -> None:
        self.clock = clock
        self.broker = broker
        self.make_port = broker.port
        self.seconds = dict.fromkeys(weights, seconds)
        self.slots = FairSlots(concurrency, weights)
        self.lives = Tasks()
        self.graded: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self.held: Counter[str] = Counter()
        self.most_held = 0
        self.most_running: Counter[str] = Counter()
        self.intake = Intake(
            open_port=self.open_port,
            slots=self.slots,
            receive=lambda held: self.lives.launch(self.live(held), "a life"),
            clock=clock,
        )

    async def open_port(self, queue: str, failed: bool) -> MemoryPort:
        """A port for a queue."""
        self.broker.declare(queue)
        return self.make_port(queue)

    async def live(self, delivery: IHeldDelivery) -> None:
        """The shape of :meth:`edxagent.agent.life.SubmissionLife.handle`."""
        queue = delivery.queue
        self.held[queue] += 1
        self.most_held = max(self.most_held, self.held[queue])
        waiting = self.slots.acquire(queue)
        try:
            if not waiting.called:
                waiting.addTimeout(HOLD_LIMIT, self.clock)
            await waiting
        except (CancelledError, TimeIsOver):
            self.held[queue] -= 1
            delivery.requeue()
            return
        self.held[queue] -= 1
        self.running[queue] += 1
        self.most_running[queue] = max(self.most_running[queue], self.running[queue])
        delivery.begin()
        await deferLater(self.clock, self.seconds[queue])
        self.running[queue] -= 1
        self.graded[queue] += 1
        self.slots.release()
        delivery.ack()


class IntakeTests(SynchronousTestCase):
    """Which requests are taken."""

    def setUp(self) -> None:
        """A clock and a broker one millisecond away."""
        self.clock = Clock()
        self.broker = MemoryBroker(self.clock, latency=0.001)

    def agent(self, weights: Mapping[str, int], *, concurrency: int = 10, seconds: float = 0.1) -> Agent:
        """An agent that takes requests."""
        self.broker.declare(*weights)
        agent = Agent(self.clock, self.broker, weights, concurrency, seconds)
        agent.intake.take_from(weights)
        return agent

    def run_for(self, seconds: float) -> None:
        """Let time pass, half a millisecond at a time."""
        self.clock.pump([0.0005] * round(seconds / 0.0005))

    def fill(self, queue: str, count: int) -> None:
        """Put requests into a queue."""
        self.broker.declare(queue)
        self.broker.put(queue, *(b"%d" % number for number in range(count)))

    def test_one_busy_among_ten(self) -> None:
        """One busy queue among ten gets all slots, and soon."""
        agent = self.agent({f"q{number}": 1 for number in range(10)})
        self.fill("q3", 100)
        self.run_for(0.1)
        self.assertEqual(agent.running["q3"], 10)
        self.run_for(1.3)
        self.assertEqual(agent.graded["q3"], 100)

    def test_shares_follow_weights(self) -> None:
        """When all queues are busy their shares follow the weights within 10 %."""
        weights = {"a": 5, "b": 3, "c": 1, "d": 1}
        for queue in weights:
            self.fill(queue, 2000)
        agent = self.agent(weights, seconds=0.05)
        self.run_for(0.5)
        before = agent.graded.copy()
        while sum((agent.graded - before).values()) < 1000:
            self.run_for(0.01)
        done = agent.graded - before
        for queue, weight in weights.items():
            self.assertApproximates(done[queue], 100 * weight, 10 * weight)

    def test_shares_on_a_slow_connection(self) -> None:
        """Where the broker's answers take as long as grading does, shares follow the weights all the same."""
        self.broker = MemoryBroker(self.clock, latency=0.01)
        weights = {"a": 5, "b": 3, "c": 1, "d": 1}
        for queue in weights:
            self.fill(queue, 2000)
        agent = self.agent(weights, concurrency=8, seconds=0.02)
        self.run_for(1)
        before = agent.graded.copy()
        while sum((agent.graded - before).values()) < 1000:
            self.run_for(0.01)
        done = agent.graded - before
        for queue, weight in weights.items():
            self.assertApproximates(done[queue], 100 * weight, 10 * weight)

    def test_shares_on_a_fast_grader(self) -> None:
        """Even where grading takes no longer than a word to the broker, no queue starves and no slot idles."""
        for queue in "ab":
            self.fill(queue, 4000)
        agent = self.agent({"a": 3, "b": 1}, concurrency=4, seconds=0.002)
        self.run_for(1)
        self.assertGreater(sum(agent.graded.values()), 700)
        self.assertGreater(agent.graded["b"], 150)
        self.assertGreater(agent.graded["a"], 1.5 * agent.graded["b"])

    def test_holds_one_a_queue(self) -> None:
        """With every slot busy at most one request a queue waits here; the rest is left for others."""
        agent = self.agent({"a": 1, "b": 1, "c": 1}, concurrency=2, seconds=60)
        for queue in "abc":
            self.fill(queue, 50)
        self.run_for(5)
        self.assertEqual(agent.most_held, 1)
        self.assertEqual(sum(self.broker[queue].unsettled for queue in "abc"), 2 + 3)

    def test_bursts_hold_one_a_queue(self) -> None:
        """However the requests come in, spare consumers don't make the agent hoard."""
        agent = self.agent({"a": 1, "b": 1, "c": 1}, concurrency=4, seconds=0.013)
        for wave in range(40):
            for number, queue in enumerate("abc"):
                self.fill(queue, (wave * 7 + number * 5) % 9)
            self.run_for(0.011)
        self.run_for(2)
        self.assertEqual(sum(len(self.broker[queue].ready) + self.broker[queue].unsettled for queue in "abc"), 0)
        self.assertLessEqual(agent.most_held, 2)

    def test_held_no_longer_than_the_limit(self) -> None:
        """What waited too long goes back and isn't fetched again before a slot is ours."""
        agent = self.agent({"a": 1, "b": 1}, concurrency=1, seconds=65)
        self.fill("a", 5)
        self.fill("b", 5)
        self.run_for(8)
        self.assertEqual(sum(agent.held.values()), 2)
        self.run_for(52)
        self.assertEqual(sum(agent.held.values()), 0)
        self.assertEqual([self.broker[queue].returned for queue in "ab"], [1, 1])
        self.assertEqual(sum(self.broker[queue].unsettled for queue in "ab"), 1)

    def test_rested_queue_gets_its_turn(self) -> None:
        """Though nothing can be held long enough, each queue is served in turn."""
        agent = self.agent({"a": 1, "b": 1}, concurrency=1, seconds=15)
        self.fill("a", 5)
        self.fill("b", 5)
        self.run_for(100)
        self.assertEqual(sum(agent.graded.values()), 6)
        self.assertEqual(sorted(agent.graded.values()), [3, 3])
        self.assertLessEqual(sum(self.broker[queue].returned for queue in "ab"), 8)

    def test_second_agent_gets_work(self) -> None:
        """A second agent gets what the first can't begin, at once."""
        first = self.agent({"a": 1}, concurrency=2, seconds=60)
        self.fill("a", 4)
        self.run_for(1)
        second = self.agent({"a": 1}, concurrency=2, seconds=60)
        self.run_for(0.1)
        self.assertEqual((first.running["a"], second.running["a"]), (2, 1))
        self.run_for(HOLD_LIMIT)
        self.assertEqual(second.running["a"], 2)

    def test_one_queue_pays_nothing(self) -> None:
        """A single busy queue runs on the acks alone: no get, and no more consumers than slots and one."""
        agent = self.agent({"a": 1}, concurrency=4, seconds=0.01)
        self.fill("a", 1000)
        self.run_for(3)
        self.assertEqual(agent.graded["a"], 1000)
        self.assertLessEqual(self.broker["a"].started_consumers, 6)
        self.assertLessEqual(self.broker["a"].gets, 3)

    def test_trickle_makes_no_consumers(self) -> None:
        """One request now and then needs no new consumer each time."""
        agent = self.agent({"a": 1, "b": 1}, concurrency=4, seconds=0.01)
        for _ in range(100):
            self.fill("a", 1)
            self.run_for(0.02)
        self.assertEqual(agent.graded["a"], 100)
        self.assertLessEqual(self.broker["a"].started_consumers, 3)

    def test_close(self) -> None:
        """After ``close`` nothing more is taken, what is held goes back once, what runs may end."""
        agent = self.agent({"a": 1, "b": 1}, concurrency=2, seconds=5)
        self.fill("a", 10)
        self.fill("b", 10)
        self.run_for(1)
        closed = Deferred.fromCoroutine(agent.intake.close())
        self.run_for(0.1)
        self.successResultOf(closed)
        self.assertEqual(sum(self.broker[queue].returned for queue in "ab"), 2)
        self.run_for(10)
        self.assertEqual(sum(agent.graded.values()), 2)
        self.assertEqual(sum(len(self.broker[queue].ready) for queue in "ab"), 18)
        self.assertEqual(len(agent.lives), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_close_at_any_moment(self) -> None:
        """Closed while consumers are being made, requests are on their way or a queue rests: all of it comes back."""
        for moment in range(60):
            self.setUp()
            agent = self.agent({"a": 1, "b": 1}, concurrency=2, seconds=0.004)
            self.fill("a", 10)
            self.fill("b", 10)
            self.run_for(moment * 0.0005)
            closed = Deferred.fromCoroutine(agent.intake.close())
            self.run_for(1)
            self.successResultOf(closed)
            left = sum(len(self.broker[queue].ready) for queue in "ab")
            self.assertEqual(left + sum(agent.graded.values()), 20)
            self.assertEqual(sum(self.broker[queue].unsettled for queue in "ab"), 0)
            self.assertEqual(sum(len(self.broker[queue].consumers) for queue in "ab"), 0)

    def test_goes_back_once(self) -> None:
        """Closed at any moment, no request is given back twice, though the broker takes the cancels one by one."""

        class OneByOne(MemoryPort):
            """Asks the next question when the one before is answered, as a channel does."""

            cancelled: Deferred[None] | None = None

            async def cancel(self, tag: str) -> None:
                """End a consumer."""
                before, self.cancelled = self.cancelled, Deferred()
                answered = self.cancelled
                if before is not None:
                    await before
                await super().cancel(tag)
                answered.callback(None)

        for moment in range(40):
            self.setUp()
            self.broker.port = lambda queue: OneByOne(self.broker, queue)  # type: ignore[method-assign]
            agent = self.agent({"a": 1}, concurrency=6, seconds=0.009)
            for number in range(10):
                self.fill("a", 5)
                self.run_for(0.0005 * number)
            self.run_for(moment * 0.0005)
            closed = Deferred.fromCoroutine(agent.intake.close())
            self.run_for(1)
            self.successResultOf(closed)
            self.assertLessEqual(max(stored.deliveries for stored in self.broker["a"].ready), 1, moment)
            self.assertEqual(len(self.broker["a"].ready) + agent.graded["a"], 50)
            self.assertEqual(self.broker["a"].unsettled, 0)

    def test_other_queues(self) -> None:
        """A queue that is wanted no more is left, one that is new is taken from, one that stays isn't touched."""
        agent = self.agent({"a": 1, "b": 1}, concurrency=2, seconds=5)
        self.broker.declare("c")
        agent.seconds["c"] = 5
        for queue in "abc":
            self.fill(queue, 10)
        self.run_for(1)
        self.assertEqual((agent.running["a"], agent.running["b"], agent.held["a"], agent.held["b"]), (1, 1, 1, 1))
        agent.intake.take_from("bc")
        self.run_for(1)
        self.assertEqual((agent.held["a"], agent.held["b"], agent.held["c"]), (0, 1, 1))
        self.assertEqual([self.broker[queue].returned for queue in "abc"], [1, 0, 0])
        self.run_for(100)
        self.assertEqual((agent.graded["a"], agent.graded["b"], agent.graded["c"]), (1, 10, 10))
        self.assertEqual((self.broker["a"].unsettled, len(self.broker["a"].consumers)), (0, 0))

    def test_alone_when_others_are_left(self) -> None:
        """A queue that is the last one is no more in company: it runs on acks alone, without a get."""
        agent = self.agent({"a": 1, "b": 1}, concurrency=2, seconds=0.01)
        for queue in "ab":
            self.fill(queue, 1000)
        self.run_for(1)
        agent.intake.take_from("a")
        self.run_for(0.5)
        gets = self.broker["a"].gets
        self.run_for(1)
        self.assertEqual(self.broker["a"].gets, gets)
        self.assertGreater(agent.graded["a"], 300)

    def test_consuming(self) -> None:
        """It says so while the broker lets us have the requests of every queue."""
        agent = self.agent({"a": 1, "b": 1})
        self.assertFalse(agent.intake.consuming)
        self.run_for(0.1)
        self.assertTrue(agent.intake.consuming)
        self.broker.delete("b")
        self.run_for(0.1)
        self.assertFalse(agent.intake.consuming)
        self.run_for(2)
        self.assertTrue(agent.intake.consuming)
        Deferred.fromCoroutine(agent.intake.close())
        self.assertFalse(agent.intake.consuming)

    def test_deleted_queue_comes_back(self) -> None:
        """A queue that is deleted and made again is consumed again."""
        agent = self.agent({"a": 1}, concurrency=2, seconds=0.01)
        self.run_for(0.1)
        self.broker.delete("a")
        self.run_for(3)
        self.fill("a", 5)
        self.run_for(1)
        self.assertEqual(agent.graded["a"], 5)

    def test_broken_channel_is_given_up(self) -> None:
        """A channel whose consumer the broker ended is closed, but not before what came over it is settled."""
        agent = self.agent({"a": 1}, concurrency=2, seconds=10)
        ports: list[MemoryPort] = []

        def make_port(queue: str) -> MemoryPort:
            ports.append(self.broker.port(queue))
            return ports[-1]

        agent.make_port = make_port
        for _ in range(2):  # the first one broke a port that was made before
            self.broker.delete("a")
            self.run_for(5)
        self.assertEqual([port.closed for port in ports], [True, False])
        self.fill("a", 1)
        self.run_for(1)
        self.broker.delete("a")
        self.run_for(6)
        self.assertEqual((agent.running["a"], [port.closed for port in ports]), (1, [True, False, False]))
        self.run_for(4)
        self.assertEqual((agent.graded["a"], [port.closed for port in ports]), (1, [True, True, False]))

    def test_pauses_grow(self) -> None:
        """A queue that the broker lets nobody consume isn't asked for every second."""

        class Forbidden(MemoryPort):
            """A queue that can't be read."""

            async def consume(self, receive: Any, ended: Any) -> str:
                """Say no."""
                attempts.append(clock.seconds())
                raise ChannelClosed(403, "ACCESS_REFUSED")

        clock, attempts = self.clock, list[float]()
        agent = self.agent({"a": 1})
        self.clock.advance(0)
        agent.make_port = lambda queue: Forbidden(self.broker, queue)
        self.broker.delete("a")
        self.clock.pump([0.1] * 1000)
        self.assertIn(len(attempts), range(20, 25))

    def test_life_that_settles_nothing(self) -> None:
        """A life that failed before its turn, and left its request unsettled, doesn't stop its queue."""
        agent = self.agent({"a": 1}, concurrency=1, seconds=0.01)
        live = agent.live

        async def fails_once(delivery: IHeldDelivery) -> None:
            agent.live = live  # type: ignore[method-assign]
            raise MessageRefused("too long")

        agent.live = fails_once  # type: ignore[method-assign]
        self.fill("a", 3)
        self.run_for(1)
        self.assertEqual(agent.graded["a"], 2)
        self.assertEqual(len(self.flushLoggedErrors(MessageRefused)), 1)

    def test_abandon(self) -> None:
        """When the session is lost, what is held and not begun is let go; what runs may end."""
        agent = self.agent({"a": 1}, concurrency=1, seconds=5)
        self.fill("a", 3)
        self.run_for(1)
        agent.intake.abandon()
        self.assertEqual((agent.held["a"], agent.running["a"]), (0, 1))
        self.run_for(4.5)
        self.assertEqual((agent.graded["a"], agent.running["a"]), (1, 0))

    @settings(phases=(Phase.explicit, Phase.generate), max_examples=100, deadline=None)
    @given(
        weights=st.lists(st.integers(1, 9), min_size=1, max_size=4),
        concurrency=st.integers(1, 5),
        seconds=st.sampled_from([0.001, 0.004, 0.03, 12.0]),
        waves=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(1, 60)), max_size=8),
        deleted=st.booleans(),
    )
    def test_nothing_leaks(
        self, weights: list[int], concurrency: int, seconds: float, waves: list[tuple[int, int, int]], deleted: bool
    ) -> None:
        """Whatever comes when, everything is graded, every slot is free in the end and nobody waits for one."""
        self.clock = Clock()
        self.broker = MemoryBroker(self.clock, latency=0.001)
        queues = {f"q{number}": weight for number, weight in enumerate(weights)}
        agent = self.agent(queues, concurrency=concurrency, seconds=seconds)
        sent = 0
        for number, count, steps in waves:
            queue = f"q{number % len(weights)}"
            if deleted and count == 7 and queue in self.broker:
                sent -= len(self.broker[queue].ready) + self.broker[queue].unsettled
                self.broker.delete(queue)
            self.fill(queue, count)
            sent += count
            self.clock.pump([0.0005] * steps)
        step = min(max(seconds / 4, 0.002), 0.05)
        self.clock.pump([step] * round(((seconds + 0.3) * sent + 15) / step))
        if not deleted:
            self.assertEqual(sum(agent.graded.values()), sent)
        self.assertEqual((agent.slots.free, agent.slots.waiting), (concurrency, 0))
        self.assertLessEqual(max((len(self.broker[queue].ready) for queue in queues), default=0), 0)
        closed = Deferred.fromCoroutine(agent.intake.close())
        self.run_for(0.1)
        self.successResultOf(closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_interfaces(self) -> None:
        """The double and the held delivery keep their contracts."""
        self.broker.declare("a")
        taken: list[IDelivery] = []
        Deferred.fromCoroutine(self.broker.port("a").consume(taken.append, lambda reason: None))
        self.fill("a", 1)
        self.run_for(0.1)
        self.assertIsInstance(taken[0], MemoryDelivery)
        verifyObject(IDelivery, taken[0])
        verifyObject(
            IHeldDelivery, HeldDelivery(taken[0], begun=lambda held: None, settling=lambda held, returning: None)
        )
        held = HeldDelivery(taken[0], begun=lambda held: None, settling=lambda held, returning: None)
        verifyObject(IHeldDelivery, held)
