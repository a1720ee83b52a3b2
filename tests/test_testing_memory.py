"""Tests for :mod:`edxagent.testing.memory`: the double behaves as a broker does."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from edxagent.errors import BrokerError, ChannelClosed, Unroutable
from edxagent.interfaces import IDelivery, IPublisher
from edxagent.model import Message, Properties
from edxagent.testing.memory import MemoryBroker, MemoryDelivery, MemoryPublisher


class MemoryBrokerTests(SynchronousTestCase):
    """Queues, consumers, settling and routing."""

    def setUp(self) -> None:
        """A broker with one queue."""
        self.clock = Clock()
        self.broker = MemoryBroker(self.clock, latency=1)
        self.broker.declare("q")
        self.taken: list[Any] = []
        self.ended: list[BrokerError] = []

    def consume(self) -> Deferred[str]:
        """Start a consumer."""
        return Deferred.fromCoroutine(self.broker.port("q").consume(self.taken.append, self.ended.append))

    def pass_time(self, seconds: int = 5) -> None:
        """Let everything that is under way arrive."""
        self.clock.pump([1] * seconds)

    def test_one_unsettled_a_consumer(self) -> None:
        """A consumer gets the next message when the one before is acked, in order."""
        self.consume()
        self.broker.put("q", b"1", b"2")
        self.pass_time()
        self.assertEqual([delivery.body for delivery in self.taken], [b"1"])
        self.taken[0].ack()
        self.pass_time()
        self.assertEqual([delivery.body for delivery in self.taken], [b"1", b"2"])
        self.assertEqual((self.broker["q"].acked, self.broker["q"].unsettled), (1, 1))

    def test_latency(self) -> None:
        """A word takes its time to the broker, and so does the answer."""
        started = self.consume()
        self.clock.advance(1)
        self.assertNoResult(started)
        self.clock.advance(1)
        self.successResultOf(started)

    def test_requeue(self) -> None:
        """What is given back comes again, first of all, marked and counted."""
        self.consume()
        self.broker.put("q", b"1", b"2")
        self.pass_time()
        self.assertFalse(self.taken[0].redelivered)
        self.taken[0].requeue()
        self.pass_time()
        again = self.taken[1]
        self.assertEqual(
            (again.body, again.redelivered, again.properties.headers), (b"1", True, {"x-delivery-count": 1})
        )

    def test_settled_once(self) -> None:
        """Settling twice is the caller's mistake."""
        self.consume()
        self.broker.put("q", b"1")
        self.pass_time()
        self.assertTrue(self.taken[0].ack())
        self.assertRaises(RuntimeError, self.taken[0].requeue)

    def test_lost_connection(self) -> None:
        """On a connection that is gone nothing can be settled."""
        self.consume()
        self.broker.put("q", b"1")
        self.pass_time()
        self.taken[0].lost = True
        self.assertFalse(self.taken[0].ack())

    def test_cancel(self) -> None:
        """A cancelled consumer gets no more."""
        started = self.consume()
        self.pass_time()
        Deferred.fromCoroutine(self.broker.port("q").cancel(self.successResultOf(started)))
        self.pass_time()
        self.broker.put("q", b"1")
        self.pass_time()
        self.assertEqual((self.taken, self.broker.bodies("q")), ([], [b"1"]))

    def test_get(self) -> None:
        """A get takes one message, or tells that there is none."""
        port = self.broker.port("q")
        self.broker.put("q", b"1")
        first, second = Deferred.fromCoroutine(port.get()), Deferred.fromCoroutine(port.get())
        self.pass_time()
        self.assertEqual((self.successResultOf(first).body, self.successResultOf(second)), (b"1", None))

    def test_deleted(self) -> None:
        """A deleted queue ends its consumers, and asking for it is an error."""
        self.consume()
        self.pass_time()
        self.broker.delete("q")
        self.pass_time()
        self.assertEqual(len(self.ended), 1)
        self.assertNotIn("q", self.broker)
        asked = Deferred.fromCoroutine(self.broker.port("q").get())
        self.pass_time()
        self.assertEqual(self.failureResultOf(asked, ChannelClosed).value.code, 404)

    def test_publish(self) -> None:
        """A publish is confirmed when the message is in its queue; where there is none it is unroutable."""
        self.broker.bind("grading.results", "key", "results")
        publisher = MemoryPublisher(self.broker)

        def publish(exchange: str, key: str) -> Deferred[None]:
            published = publisher.publish(
                Message(exchange=exchange, routing_key=key, body=b"x", properties=Properties())
            )
            self.pass_time()
            return published

        for exchange, key in (("grading.requests", "q"), ("", "q"), ("grading.results", "key")):
            self.successResultOf(publish(exchange, key))
        self.assertEqual((self.broker.bodies("q"), self.broker.bodies("results")), ([b"x", b"x"], [b"x"]))
        self.failureResultOf(publish("grading.results", "nowhere"), Unroutable)
        publisher.failures = [BrokerError("no")]
        self.failureResultOf(publish("", "q"), BrokerError)

    def test_interfaces(self) -> None:
        """The doubles keep the contracts."""
        self.consume()
        self.broker.put("q", b"1")
        self.pass_time()
        self.assertIsInstance(self.taken[0], MemoryDelivery)
        verifyObject(IDelivery, self.taken[0])
        verifyObject(IPublisher, MemoryPublisher(self.broker))
