"""One connection, word by word: handshake, limits, heartbeats, alarms, endings."""

from __future__ import annotations

import gc
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands, frame
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from edxagent.errors import BrokerError, BrokerRefused, BrokerUnreachable, ChannelClosed
from tests.amqp_support import message
from tests.scripted_broker import ScriptedBroker


class HandshakeTests(SynchronousTestCase):
    """From the first byte to an opened connection."""

    def test_the_whole_of_it(self) -> None:
        """We say who we are and what we understand, settle the limits and choose the virtual host."""
        broker = ScriptedBroker(heartbeat=30)
        self.assertEqual(broker.greeting, b"AMQP\x00\x00\x09\x01")
        opened = Deferred.fromCoroutine(broker.client.open())
        broker.start()
        (answer,) = broker.heard()
        self.assertEqual((answer.mechanism, answer.response), ("PLAIN", "\0grader\0s3cret"))
        self.assertEqual(answer.client_properties["connection_name"], "test")
        capabilities = answer.client_properties["capabilities"]
        for capability in ("publisher_confirms", "consumer_cancel_notify", "basic.nack", "connection.blocked"):
            self.assertIs(capabilities[capability], True)
        self.assertIs(capabilities["authentication_failure_close"], True)
        broker.tune(channel_max=0, frame_max=0, heartbeat=60)
        tuned, opening = broker.heard()
        self.assertEqual((tuned.channel_max, tuned.frame_max, tuned.heartbeat), (2047, 131072, 30))
        self.assertEqual(opening.virtual_host, "/")
        self.assertNoResult(opened)
        broker.say(commands.Connection.OpenOk(), channel=0)
        self.successResultOf(opened)

    def test_the_lower_limits_count(self) -> None:
        """Ours or the broker's; a heartbeat that we don't want is none, one that it doesn't propose is ours."""
        for ours, theirs, settled in ((30, 10, 10), (10, 30, 10), (0, 60, 0), (30, 0, 30)):
            broker = ScriptedBroker(heartbeat=ours)
            opened = Deferred.fromCoroutine(broker.client.open())
            broker.start()
            broker.heard()
            broker.tune(channel_max=5, frame_max=8192, heartbeat=theirs)
            tuned = broker.heard()[0]
            self.assertEqual((tuned.channel_max, tuned.frame_max, tuned.heartbeat), (5, 8192, settled))
            broker.wire.loseConnection()
            self.failureResultOf(opened, BrokerUnreachable)
            self.assertEqual(broker.clock.getDelayedCalls(), [])

    def test_refusals(self) -> None:
        """A login, a virtual host: refused. A limit, a shutdown: unreachable. None shows the password."""
        for code, text, expected in (
            (403, "ACCESS_REFUSED - Login was refused", BrokerRefused),
            (530, "NOT_ALLOWED - vhost x not found", BrokerRefused),
            (530, "NOT_ALLOWED - connection limit (5) is reached", BrokerUnreachable),
            (320, "CONNECTION_FORCED - broker forced connection closure", BrokerUnreachable),
        ):
            broker = ScriptedBroker()
            opened = Deferred.fromCoroutine(broker.client.open())
            broker.start()
            broker.say(commands.Connection.Close(code, text, 0, 0), channel=0)
            error = self.failureResultOf(opened, expected).value
            self.assertNotIn("s3cret", str(error))
            self.assertEqual(broker.names()[-1], "Connection.CloseOk")
            self.assertEqual(broker.clock.getDelayedCalls(), [])

    def test_a_broker_without_passwords_is_refused(self) -> None:
        """PLAIN is all that we can."""
        broker = ScriptedBroker()
        opened = Deferred.fromCoroutine(broker.client.open())
        broker.say(commands.Connection.Start(0, 9, {}, "EXTERNAL", "en_US"), channel=0)
        self.failureResultOf(opened, BrokerRefused)

    @settings(deadline=None)
    @given(st.lists(st.binary(max_size=60), max_size=10), st.booleans())
    def test_garbage_closes_this_connection_and_nothing_else(self, chunks: list[bytes], opened: bool) -> None:
        """Before and after the handshake no bytes raise; the connection is closed or waits for more."""
        broker = ScriptedBroker()
        if opened:
            broker.open()
        waiting = Deferred.fromCoroutine(broker.client.open()) if not opened else broker.client.when_lost()
        waiting.addErrback(lambda failure: failure.trap(BrokerError))
        for chunk in chunks:
            broker.client.dataReceived(chunk)
        broker.wire.loseConnection()
        self.successResultOf(waiting)
        self.assertEqual(broker.clock.getDelayedCalls(), [])

    @settings(deadline=None)
    @given(st.sampled_from([1, 2, 3]), st.integers(0, 2), st.binary(max_size=60))
    def test_frames_of_garbage_likewise(self, kind: int, channel: int, payload: bytes) -> None:
        """Whole frames with nonsense in them, on open channels and others."""
        broker = ScriptedBroker()
        broker.open()
        broker.open_channel()
        data = bytes((kind,)) + channel.to_bytes(2, "big") + len(payload).to_bytes(4, "big") + payload + b"\xce"
        broker.client.dataReceived(data)
        broker.wire.loseConnection()
        self.assertIsInstance(self.successResultOf(broker.client.when_lost()), BrokerError)
        self.assertEqual(self.flushLoggedErrors(), [])


class HeartbeatTests(SynchronousTestCase):
    """Signs of life, by the clock that was passed in."""

    def test_we_send_them_when_there_is_nothing_else(self) -> None:
        """Twice an interval, so that one may be late."""
        broker = ScriptedBroker(heartbeat=10)
        broker.open()
        for _ in range(4):
            broker.clock.advance(5)
            broker.say(frame.marshal(frame.heartbeat.Heartbeat(), 0))
        self.assertEqual(broker.names().count("Heartbeat"), 3)

    def test_a_peer_that_is_silent_is_dead_after_two_intervals(self) -> None:
        """Not before, and not half an interval later."""
        broker = ScriptedBroker(heartbeat=10)
        broker.open()
        lost = broker.client.when_lost()
        for _ in range(4):
            broker.clock.advance(5)
        self.assertNoResult(lost)
        broker.clock.advance(5)
        self.assertIn("silent", str(self.successResultOf(lost)))
        self.assertEqual(broker.clock.getDelayedCalls(), [])

    def test_anything_received_is_a_sign_of_life(self) -> None:
        """Half a frame will do."""
        broker = ScriptedBroker(heartbeat=10)
        broker.open()
        for _ in range(20):
            broker.clock.advance(5)
            broker.client.dataReceived(b"")
        self.assertNoResult(broker.client.when_lost())


class AlarmTests(SynchronousTestCase):
    """connection.blocked, and a transport that can't take more."""

    def test_nothing_is_published_while_blocked(self) -> None:
        """Publishes wait in their order; a cancelled one is never written."""
        broker = ScriptedBroker()
        broker.open()
        channel = broker.open_confirming()
        broker.say(commands.Connection.Blocked("low on memory"), channel=0)
        waiting = [channel.publish(message("q", body)) for body in (b"1", b"2", b"3")]
        waiting[1].cancel()
        self.failureResultOf(waiting[1])
        self.assertEqual((broker.names(), broker.client.blocked), ([], "low on memory"))
        broker.say(commands.Connection.Unblocked(), channel=0)
        self.assertEqual([item.value for item in broker.heard() if item.name == "ContentBody"], [b"1", b"3"])
        broker.say(commands.Basic.Ack(2, True))
        self.assertEqual([self.successResultOf(waiting[n]) for n in (0, 2)], [None, None])

    def test_nothing_is_published_while_the_transport_is_full(self) -> None:
        """It resumes when the buffer has emptied; acks go out all the same."""
        broker = ScriptedBroker()
        broker.open()
        channel = broker.open_confirming()
        broker.wire.producer.pauseProducing()
        channel.publish(message("q"))
        channel.ack(1)
        self.assertEqual(broker.names(), ["Basic.Ack"])
        broker.wire.producer.resumeProducing()
        self.assertEqual(broker.names()[0], "Basic.Publish")


class EndTests(SynchronousTestCase):
    """However a connection ends, everybody who waits is told, and nothing is left in the clock."""

    def everything_waiting(self, broker: ScriptedBroker) -> list[Any]:
        """A call, a confirm, a held publish and a consumer, and the list that each adds its end to."""
        ends: list[Any] = []
        channel = broker.open_confirming()
        consuming = Deferred.fromCoroutine(channel.consume("q", ends.append, ends.append, prefetch=1))
        broker.say(commands.Basic.QosOk(), commands.Basic.ConsumeOk("1.1"))
        self.successResultOf(consuming)
        channel.publish(message("q")).addErrback(lambda failure: ends.append(failure.value))
        Deferred.fromCoroutine(channel.get("q")).addErrback(lambda failure: ends.append(failure.value))
        broker.wire.producer.pauseProducing()
        channel.publish(message("q")).addErrback(lambda failure: ends.append(failure.value))
        channel.when_closed().addCallback(ends.append)
        return ends

    def test_a_lost_connection(self) -> None:
        """By the network."""
        broker = ScriptedBroker(heartbeat=10)
        broker.open()
        ends = self.everything_waiting(broker)
        broker.wire.connected = False
        broker.client.connectionLost(Failure(ConnectionDone()))
        self.assertEqual([type(end) for end in ends], [BrokerUnreachable] * 5)
        self.assertEqual(broker.clock.getDelayedCalls(), [])

    def test_a_connection_closed_by_the_broker(self) -> None:
        """With its reason in every ending."""
        broker = ScriptedBroker(heartbeat=10)
        broker.open()
        ends = self.everything_waiting(broker)
        broker.say(commands.Connection.Close(320, "CONNECTION_FORCED", 0, 0), channel=0)
        self.assertEqual(["320 CONNECTION_FORCED" in str(end) for end in ends], [True] * 5)
        self.assertEqual(broker.clock.getDelayedCalls(), [])

    def test_a_channel_closed_by_the_broker(self) -> None:
        """The others and the connection live on; the channel's number may be used again."""
        broker = ScriptedBroker()
        broker.open()
        ends = self.everything_waiting(broker)
        broker.heard()
        broker.say(commands.Channel.Close(406, "PRECONDITION_FAILED", 60, 70))
        self.assertEqual(broker.names(), ["Channel.CloseOk"])
        self.assertEqual([(type(end), end.code) for end in ends], [(ChannelClosed, 406)] * 5)
        self.assertEqual(broker.clock.getDelayedCalls(), [])
        self.assertNotIn(1, broker.client.channels)
        self.assertIsNone(broker.client.reason)

    def test_a_broker_that_opens_no_channel(self) -> None:
        """At the deadline the whole connection is cut: it would be of no use, though its heartbeats came."""
        broker = ScriptedBroker()
        broker.open()
        asked = Deferred.fromCoroutine(broker.client.open_channel())
        lost = broker.client.when_lost()
        broker.clock.advance(10)
        self.failureResultOf(asked, BrokerUnreachable)
        self.assertIn("didn't answer channel.open within 10 s", str(self.successResultOf(lost)))
        self.assertEqual(broker.clock.getDelayedCalls(), [])

    def test_a_broker_that_blocks_us_opens_no_channel(self) -> None:
        """It doesn't read what we ask, but it will: the connection stays."""
        broker = ScriptedBroker()
        broker.open()
        asked = Deferred.fromCoroutine(broker.client.open_channel())
        broker.say(commands.Connection.Blocked("low on memory"), channel=0)
        broker.clock.advance(10)
        self.failureResultOf(asked, BrokerUnreachable)
        self.assertIsNone(broker.client.reason)

    def test_a_peaceful_end(self) -> None:
        """What was held is written, the broker is asked, and the clock is empty when it agreed."""
        broker = ScriptedBroker(heartbeat=10)
        broker.open()
        ends = self.everything_waiting(broker)
        broker.heard()
        finished = broker.client.finish(5)
        self.assertEqual(broker.names()[-1], "Connection.Close")
        broker.say(commands.Basic.Ack(2, True))
        self.assertNoResult(finished)
        broker.say(commands.Connection.CloseOk(), channel=0)
        self.successResultOf(finished)
        self.assertEqual(len(ends), 3)
        self.assertEqual(broker.clock.getDelayedCalls(), [])

    def test_a_broker_that_does_not_agree_is_left(self) -> None:
        """After the time that was given."""
        broker = ScriptedBroker()
        broker.open()
        finished = broker.client.finish(5)
        broker.clock.advance(5)
        self.successResultOf(finished)
        self.assertEqual(broker.clock.getDelayedCalls(), [])

    def test_both_ends_close_at_once(self) -> None:
        """Each answers the other."""
        broker = ScriptedBroker()
        broker.open()
        finished = broker.client.finish(5)
        broker.say(commands.Connection.Close(320, "CONNECTION_FORCED", 0, 0), channel=0)
        self.successResultOf(finished)
        self.assertEqual(broker.clock.getDelayedCalls(), [])

    def test_a_method_on_a_channel_that_is_not_for_it(self) -> None:
        """The connection's methods belong to channel 0, and all others don't."""
        for method, channel in ((commands.Connection.Blocked("x"), 1), (commands.Channel.Flow(True), 0)):
            broker = ScriptedBroker()
            broker.open()
            broker.open_channel()
            broker.say(method, channel=channel)
            self.assertIn("a method on a channel that isn't for it", str(broker.client.reason))
            self.assertEqual(broker.names(), [])

    def test_what_asks_for_an_answer_gets_none_after_our_last_word(self) -> None:
        """A broker that greets us again, or has us pause, while it is asked to close: nothing is written or logged."""
        for late, channel in (
            (commands.Connection.Start(0, 9, {}, "PLAIN", "en_US"), 0),
            (commands.Connection.Tune(2047, 131072, 60), 0),
            (commands.Channel.Flow(False), 1),
        ):
            broker = ScriptedBroker()
            broker.open()
            broker.open_channel()
            finished = broker.client.finish(5)
            self.assertEqual(broker.names(), ["Connection.Close"])
            broker.say(late, channel=channel)
            self.assertEqual(broker.names(), [])
            self.assertNoResult(finished)
            gc.collect()
            self.assertEqual(self.flushLoggedErrors(), [])
            broker.say(commands.Connection.CloseOk(), channel=0)
            self.successResultOf(finished)

    def test_a_method_that_nobody_expects_is_logged(self) -> None:
        """It ends nothing."""
        broker = ScriptedBroker()
        broker.open()
        broker.open_channel()
        broker.say(commands.Basic.Recover())
        broker.say(commands.Connection.Secure("x"), channel=0)
        self.assertFalse(broker.client.closing)
