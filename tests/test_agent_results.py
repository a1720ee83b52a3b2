"""Tests for :mod:`edxagent.agent.results`: what is stuck, and the valve."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from edxagent.agent.results import LONGEST_PAUSE, ResultPublisher
from edxagent.agent.valve import Valve
from edxagent.errors import BrokerUnreachable, MessageRefused, PublishFailed
from edxagent.model import DEAD_EXCHANGE, RESULTS_EXCHANGE, Message, Properties
from edxagent.testing.memory import MemoryBroker, MemoryPublisher


class StuckTests(SynchronousTestCase):
    """No request is taken while something can't be published."""

    def setUp(self) -> None:
        """A broker where verdicts and dead letters have a place."""
        self.clock = Clock()
        self.broker = MemoryBroker(self.clock)
        self.broker.bind(RESULTS_EXCHANGE, "results", "results")
        self.broker.bind(DEAD_EXCHANGE, "q", "q.dead")
        self.publisher = MemoryPublisher(self.broker)
        self.valve = Valve()
        self.results = ResultPublisher(self.publisher, "results", self.clock, self.valve)

    def publish(self, key: str = "results", exchange: str = RESULTS_EXCHANGE) -> Deferred[None]:
        """Publish a message; the broker has a moment."""
        message = Message(exchange=exchange, routing_key=key, body=b"", properties=Properties(message_id="s-1"))
        publishing = Deferred.fromCoroutine(self.results.publish(message))
        self.clock.pump([0.001] * 4)
        return publishing

    def test_shut(self) -> None:
        """The valve is shut at the first failure, and says what, where and why; it opens at the success."""
        for failure in (PublishFailed("the broker refused it"), BrokerUnreachable("gone")):
            self.publisher.failures = [failure]
            publishing = self.publish()
            self.assertEqual(
                self.valve.reasons,
                {"publishing": f"grading.results can't be reached with the key results: {failure}"},
            )
            self.clock.pump([0.5, 0.001, 0.001])
            self.successResultOf(publishing)
            self.assertTrue(self.valve.is_open)

    def test_soon(self) -> None:
        """When it works again, that is noticed within seconds, however long it hasn't."""
        self.broker.delete("results")
        publishing = self.publish()
        self.clock.pump([0.1] * 6000)
        self.assertNoResult(publishing)
        self.broker.declare("results")
        self.clock.pump([0.1] * int(10 * LONGEST_PAUSE + 2))
        self.successResultOf(publishing)
        self.assertTrue(self.valve.is_open)

    def test_several(self) -> None:
        """It opens when nothing is stuck any more; a success elsewhere isn't enough."""
        self.broker.delete("results")
        first = self.publish()
        self.clock.advance(0.3)
        second = self.publish()
        self.successResultOf(self.publish("q", DEAD_EXCHANGE))
        self.assertFalse(self.valve.is_open)
        self.broker.declare("results")
        self.clock.pump([0.2, 0.001, 0.001])
        self.successResultOf(first)
        self.assertFalse(self.valve.is_open)
        self.clock.pump([0.3, 0.001, 0.001])
        self.successResultOf(second)
        self.assertTrue(self.valve.is_open)

    def test_bad_reply_to(self) -> None:
        """A place that only its producer named is no reason."""
        self.successResultOf(self.publish("nowhere"))
        self.assertEqual(len(self.broker.bodies("results")), 1)
        self.assertTrue(self.valve.is_open)

    def test_bad_reply_to_and_no_other(self) -> None:
        """But if the configured place is missing as well, that is one."""
        self.broker.delete("results")
        publishing = self.publish("nowhere")
        self.assertIn("with the key results: ", self.valve.reasons["publishing"])
        self.broker.declare("results")
        self.clock.pump([0.5, 0.001, 0.001])
        self.successResultOf(publishing)

    def test_given_up(self) -> None:
        """One that is cancelled, or turns out to be none that AMQP can carry, is stuck no more."""
        self.publisher.failures = [PublishFailed("refused")]
        publishing = self.publish()
        publishing.addErrback(lambda failure: None)
        publishing.cancel()
        self.assertTrue(self.valve.is_open)
        self.publisher.failures = [PublishFailed("refused"), MessageRefused("too long")]
        publishing = self.publish()
        self.assertFalse(self.valve.is_open)
        self.clock.advance(0.5)
        self.failureResultOf(publishing, MessageRefused)
        self.assertTrue(self.valve.is_open)

    def test_another_place(self) -> None:
        """What is stuck goes to the place that is configured meanwhile."""
        self.broker.delete("results")
        publishing = self.publish()
        self.broker.bind(RESULTS_EXCHANGE, "elsewhere", "elsewhere")
        self.results.default_key = "elsewhere"
        self.clock.pump([0.5, 0.001, 0.001, 0.001, 0.001])
        self.successResultOf(publishing)
        self.assertEqual((len(self.broker.bodies("elsewhere")), self.valve.is_open), (1, True))
