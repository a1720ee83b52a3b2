"""Tests for :mod:`edxagent.agent.probing`, on a clock that the tests turn."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from edxagent.agent.probing import Probing
from edxagent.agent.valve import Valve
from edxagent.errors import BrokerUnreachable
from edxagent.interfaces import IDelivery, IHeldDelivery
from edxagent.limits import FairSlots
from edxagent.tasks import Tasks
from edxagent.testing.memory import MemoryBroker, MemoryPort


class MemoryChannel:
    """A channel for any queue; closing it gives back what came over it and isn't settled."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self.closed = False

    async def get(self, queue: str) -> IDelivery | None:
        """The next request; one that comes when nobody waits for it any more goes back, as with the channel."""
        answer: Deferred[IDelivery | None] = Deferred()

        def arrived(delivery: IDelivery | None) -> None:
            if not answer.called:
                answer.callback(delivery)
            elif delivery is not None:
                delivery.requeue()

        Deferred.fromCoroutine(MemoryPort(self._broker, queue).get()).addCallbacks(arrived, answer.errback)
        return await answer

    async def close(self) -> None:
        """Give it up."""
        self.closed = True


class ProbingTests(SynchronousTestCase):
    """Which request is taken, and when the probe is over."""

    def setUp(self) -> None:
        """A broker with three queues, and a breaker that is open."""
        self.clock = Clock()
        self.broker = MemoryBroker(self.clock)
        self.broker.declare("a", "b", "c")
        self.slots = FairSlots(2, {})
        self.valve = Valve()
        self.connected = True
        self.channels: list[MemoryChannel] = []
        self.lives = Tasks()
        self.grading: Deferred[None] = Deferred()
        self.graded: list[str] = []
        self.probing = Probing(
            open_channel=self.open_channel,
            queues=lambda: ["a", "b", "c"],
            slots=self.slots,
            valve=self.valve,
            receive=lambda held: self.lives.launch(self.live(held), "a life"),
            clock=self.clock,
        )
        self.valve.shut("breaker", "the grader is down")

    async def open_channel(self) -> MemoryChannel:
        """A channel, where there is a connection."""
        if not self.connected:
            raise BrokerUnreachable("no connection")
        self.channels.append(MemoryChannel(self.broker))
        return self.channels[-1]

    async def live(self, held: IHeldDelivery) -> None:
        """Wait for a slot, grade, ack."""
        try:
            await self.slots.acquire(held.queue)
        except CancelledError:
            held.requeue()
            return
        held.begin()
        await self.grading
        self.slots.release()
        self.graded.append(held.queue)
        held.ack()

    def probe(self) -> Deferred[None]:
        """Try one request; look at once."""
        probed = self.probing.probe()
        self.run_for(0.1)
        return probed

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.pump([0.01] * round(seconds * 100))

    def assert_nothing_left(self) -> None:
        """Soon no channel is open, no slot held, nothing under way, nothing unsettled."""
        self.run_for(0.1)
        self.assertTrue(all(channel.closed for channel in self.channels))
        self.assertEqual((self.slots.free, self.slots.waiting, len(self.lives)), (2, 0, 0))
        self.assertEqual(sum(self.broker[queue].unsettled for queue in "abc"), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one(self) -> None:
        """A single request is taken through its life, however many there are; then it is over."""
        self.broker.put("b", b"1", b"2")
        probed = self.probe()
        self.assertNoResult(probed)
        self.run_for(60)
        self.assertEqual((self.graded, self.slots.busy), ([], 1))
        self.grading.callback(None)
        self.successResultOf(probed)
        self.run_for(60)
        self.assertEqual((self.graded, len(self.broker["b"].ready)), (["b"], 1))
        self.assert_nothing_left()

    def test_queues_in_turn(self) -> None:
        """No queue is tried more often than another."""
        self.grading.callback(None)
        for queue in "abc":
            self.broker.put(queue, *[b"x"] * 10)
        for _ in range(6):
            self.successResultOf(self.probe())
        self.assertEqual(sorted(self.graded), list("aabbcc"))

    def test_waits_for_one(self) -> None:
        """While every queue is empty it looks again each second."""
        self.grading.callback(None)
        probed = self.probe()
        self.run_for(9.5)
        self.assertNoResult(probed)
        self.assertIn(sum(self.broker[queue].gets for queue in "abc"), (27, 30))
        self.broker.put("c", b"1")
        self.run_for(1)
        self.successResultOf(probed)
        self.assertEqual(self.graded, ["c"])
        self.assert_nothing_left()

    def test_waits_for_a_connection(self) -> None:
        """Without one it looks again each second."""
        self.grading.callback(None)
        self.broker.put("a", b"1")
        self.connected = False
        probed = self.probe()
        self.run_for(5)
        self.assertNoResult(probed)
        self.connected = True
        self.run_for(1)
        self.successResultOf(probed)
        self.assert_nothing_left()

    def test_waits_for_a_slot(self) -> None:
        """With every slot busy none is taken that would only wait here."""
        self.grading.callback(None)
        self.broker.put("a", b"1")
        for _ in range(2):
            self.slots.acquire("x")
        probed = self.probe()
        self.run_for(5)
        self.assertEqual(len(self.channels), 0)
        self.slots.release()
        self.run_for(1)
        self.successResultOf(probed)
        self.slots.release()
        self.assert_nothing_left()

    def test_another_reason(self) -> None:
        """While its verdict couldn't be published either, no request is taken."""
        self.grading.callback(None)
        self.broker.put("a", b"1")
        self.valve.shut("publishing", "unroutable")
        probed = self.probe()
        self.run_for(5)
        self.assertEqual(len(self.channels), 0)
        self.valve.open("publishing")
        self.run_for(1)
        self.successResultOf(probed)

    def test_a_queue_is_missing(self) -> None:
        """The others have their turn all the same."""
        self.grading.callback(None)
        self.broker.delete("b")
        self.broker.put("a", b"1")
        self.broker.put("c", b"2")
        for _ in range(2):
            probed = self.probe()
            self.run_for(2)
            self.successResultOf(probed)
        self.assertEqual(sorted(self.graded), ["a", "c"])

    def test_valve_opens(self) -> None:
        """Then there is no need any more, before a request was found and after; what has begun is finished."""
        probed = self.probe()
        self.valve.open("breaker")
        self.successResultOf(probed)
        self.assert_nothing_left()
        self.valve.shut("breaker", "again")
        self.broker.put("a", b"1")
        probed = self.probe()
        self.valve.open("breaker")
        self.successResultOf(probed)
        self.assertEqual(self.graded, [])
        self.grading.callback(None)
        self.run_for(1)
        self.assertEqual(self.graded, ["a"])
        self.assert_nothing_left()

    def test_open_already(self) -> None:
        """It is over before it began."""
        self.valve.open("breaker")
        self.successResultOf(self.probing.probe())
        self.assertEqual(self.channels, [])

    def test_given_up_at_any_moment(self) -> None:
        """Cancelled or closed while it looks, or while the request waits here: that goes back, once."""
        for moment in range(12):
            for give_up in (lambda probed: probed.cancel(), lambda _: Deferred.fromCoroutine(self.probing.close())):
                self.setUp()
                self.broker.put("b", b"1")
                self.slots.acquire("x")
                probed = self.probing.probe()
                self.clock.pump([0.0005] * moment)
                if self.lives:
                    held = self.slots.busy == 2
                    self.assertTrue(held)
                give_up(probed)
                self.successResultOf(probed)
                self.grading.callback(None)
                self.run_for(3)
                self.slots.release()
                self.assertEqual(len(self.broker["b"].ready) + len(self.graded), 1)

    def test_gives_back_what_waits(self) -> None:
        """A request that lost its slot to another one doesn't stay here."""
        self.broker.put("b", b"1")
        self.slots.acquire("x")
        probed = self.probing.probe()
        self.clock.advance(0.0005)
        self.slots.acquire("x")
        self.run_for(0.1)
        self.assertEqual((self.slots.waiting, len(self.lives)), (1, 1))
        probed.cancel()
        self.successResultOf(probed)
        self.run_for(0.1)
        self.assertEqual((self.broker["b"].returned, len(self.broker["b"].ready)), (1, 1))
        self.slots.release()
        self.slots.release()
        self.assert_nothing_left()
