"""A channel, word by word: calls and their answers, contents, confirms, returns, consumers."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from pamqp import body, commands, header
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from edxagent.errors import BrokerUnreachable, ChannelClosed, MessageRefused, PublishFailed, Unroutable
from edxagent.interfaces import IDelivery
from tests.amqp_support import message
from tests.scripted_broker import ScriptedBroker


def begin(coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
    """Run a coroutine."""
    return Deferred.fromCoroutine(coroutine)


class ChannelTestCase(SynchronousTestCase):
    """A test with an open channel in confirm mode."""

    def setUp(self) -> None:
        """Open it."""
        self.broker = ScriptedBroker()
        self.broker.open()
        self.channel = self.broker.open_confirming()


class CallTests(ChannelTestCase):
    """Questions and answers."""

    def test_answers_go_to_their_questions_in_order(self) -> None:
        """One is asked at a time, for RabbitMQ may answer a consume after what was asked later."""
        first, second = begin(self.channel.declare_queue("a")), begin(self.channel.declare_queue("b"))
        self.assertEqual(self.broker.names(), ["Queue.Declare"])
        self.broker.say(commands.Queue.DeclareOk("a", 3, 1))
        self.assertEqual(self.broker.names(), ["Queue.Declare"])
        self.broker.say(commands.Queue.DeclareOk("b", 0, 0))
        self.assertEqual((self.successResultOf(first).name, self.successResultOf(second).name), ("a", "b"))
        self.assertEqual(self.broker.clock.getDelayedCalls(), [])

    def test_a_late_answer_is_never_the_next_ones(self) -> None:
        """At its deadline a call closes its channel, whose number isn't used again before the broker agreed."""
        asked = begin(self.channel.declare_queue("a"))
        self.broker.heard()
        self.broker.clock.advance(10)
        self.assertIn("queue.declare", str(self.failureResultOf(asked, BrokerUnreachable).value))
        self.assertEqual(self.broker.names(), ["Channel.Close"])
        self.failureResultOf(begin(self.channel.declare_queue("b")), BrokerUnreachable)
        self.broker.say(commands.Queue.DeclareOk("a", 0, 0))
        self.assertIn(1, self.broker.client.channels)
        self.broker.say(commands.Channel.CloseOk())
        self.assertNotIn(1, self.broker.client.channels)
        self.assertIsNone(self.broker.client.reason)
        self.assertEqual(self.broker.clock.getDelayedCalls(), [])

    def test_a_broker_that_never_agrees_keeps_the_number(self) -> None:
        """Nothing waits for ever, and the connection lives on."""
        closed = begin(self.channel.close())
        self.broker.clock.advance(10)
        self.successResultOf(closed)
        self.assertIn(1, self.broker.client.channels)
        self.assertEqual(self.broker.clock.getDelayedCalls(), [])

    def test_a_cancelled_call_closes_the_channel_too(self) -> None:
        """For the same reason."""
        asked, behind = begin(self.channel.get("a")), begin(self.channel.get("b"))
        self.broker.heard()
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.failureResultOf(behind, BrokerUnreachable)
        self.assertEqual(self.broker.names(), ["Channel.Close"])
        self.broker.say(commands.Basic.GetEmpty(), commands.Channel.CloseOk())
        self.assertIsNone(self.broker.client.reason)

    def test_a_call_that_was_not_sent_yet_is_just_dropped(self) -> None:
        """Nobody will answer it, so it endangers nothing."""
        asked, behind = begin(self.channel.get("a")), begin(self.channel.get("b"))
        behind.cancel()
        self.failureResultOf(behind, CancelledError)
        self.broker.say(commands.Basic.GetEmpty())
        self.assertIsNone(self.successResultOf(asked))
        self.assertEqual(self.broker.names(), ["Basic.Get"])
        self.assertEqual(self.broker.clock.getDelayedCalls(), [])

    def test_both_ends_close_at_once(self) -> None:
        """We answer the broker and wait for its answer."""
        closed = begin(self.channel.close())
        self.broker.say(commands.Channel.Close(404, "NOT_FOUND", 0, 0))
        self.assertNoResult(closed)
        self.broker.say(commands.Channel.CloseOk())
        self.successResultOf(closed)
        self.assertEqual(self.broker.names(), ["Channel.Close", "Channel.CloseOk"])

    def test_a_refused_argument_sends_nothing(self) -> None:
        """The channel stays fit, and so does the connection."""
        self.failureResultOf(begin(self.channel.declare_queue("é" * 200)), MessageRefused)
        self.failureResultOf(begin(self.channel.declare_queue("q", arguments={"x": object()})), MessageRefused)
        self.failureResultOf(begin(self.channel.get("q" * 256)), MessageRefused)
        self.failureResultOf(begin(self.channel.consume("q" * 256, print, print, prefetch=1)), MessageRefused)
        self.assertEqual(self.broker.names(), ["Basic.Qos"])
        self.broker.say(commands.Basic.QosOk())
        asked = begin(self.channel.get("q"))
        self.broker.say(commands.Basic.GetEmpty())
        self.assertIsNone(self.successResultOf(asked))

    def test_calls_without_answer_do_not_wait(self) -> None:
        """txamqp looked for the flag under another name, and waited for ever."""
        self.successResultOf(self.channel.queue_declare(queue="q", nowait=True))

    def test_an_answer_to_nothing_is_a_broken_protocol(self) -> None:
        """The connection ends, everybody knows why."""
        self.broker.say(commands.Queue.BindOk())
        self.assertIn("queue.bind-ok", str(self.successResultOf(self.broker.client.when_lost())))

    def test_numbers_are_used_again(self) -> None:
        """A connection outlives more channels than it may have at once."""
        broker = ScriptedBroker()
        broker.open(channel_max=2)
        for _ in range(5):
            channel = broker.open_channel()
            closed = begin(channel.close())
            broker.say(commands.Channel.CloseOk(), channel=channel.id)
            self.successResultOf(closed)
        broker.open_channel()
        broker.open_channel()
        self.failureResultOf(begin(broker.client.open_channel()), BrokerUnreachable)


class ConfirmTests(ChannelTestCase):
    """What became of a publish."""

    def publish(self, *keys: str) -> list[Deferred[None]]:
        """Publish a message to each."""
        return [self.channel.publish(message(key, message_id=key)) for key in keys]

    def test_one_and_many(self) -> None:
        """Acks and nacks, single and multiple, each settle what they name and no more."""
        a, b, c, d, e = self.publish(*"abcde")
        self.broker.say(commands.Basic.Ack(2, False))
        self.assertNoResult(a)
        self.successResultOf(b)
        self.broker.say(commands.Basic.Ack(3, True))
        self.successResultOf(a)
        self.successResultOf(c)
        self.assertNoResult(d)
        self.broker.say(commands.Basic.Nack(0, True))
        self.failureResultOf(d, PublishFailed)
        self.failureResultOf(e, PublishFailed)
        self.assertEqual(self.channel.unconfirmed, 0)

    def test_a_returned_message_fails_alone(self) -> None:
        """The return comes before its ack; only the ack decides."""
        a, b, c = self.publish("a", "b", "c")
        self.broker.content(commands.Basic.Return(312, "NO_ROUTE", "", "b"), b"{}", message_id="b")
        self.assertNoResult(b)
        self.broker.say(commands.Basic.Ack(3, True))
        self.successResultOf(a)
        self.assertIn("'b'", str(self.failureResultOf(b, Unroutable).value))
        self.successResultOf(c)

    def test_a_return_of_nothing_is_logged(self) -> None:
        """It ends nothing."""
        self.broker.content(commands.Basic.Return(312, "NO_ROUTE", "", "b"), b"{}")
        self.assertFalse(self.broker.client.closing)

    def test_confirms_for_what_nobody_waits(self) -> None:
        """A cancelled publish keeps its number, so that the next one's isn't shifted."""
        a, b = self.publish("a", "b")
        a.cancel()
        self.failureResultOf(a, CancelledError)
        self.broker.say(commands.Basic.Ack(1, False), commands.Basic.Ack(99, False))
        self.assertNoResult(b)
        self.broker.say(commands.Basic.Ack(2, False))
        self.successResultOf(b)

    def test_without_confirm_mode_there_is_no_publishing(self) -> None:
        """It would never be answered."""
        self.assertRaises(RuntimeError, self.broker.open_channel().publish, message("q"))

    def test_bodies_are_cut_to_what_was_agreed(self) -> None:
        """Frames of the agreed size, which the oracle puts together."""
        broker = ScriptedBroker()
        broker.open(frame_max=4096)
        broker.open_confirming().publish(message("q", b"x" * 10_000))
        sizes = [len(item.value) for item in broker.heard() if isinstance(item, body.ContentBody)]
        self.assertEqual(sizes, [4088, 4088, 1824])


class ConsumerTests(ChannelTestCase):
    """Deliveries, and their end."""

    def setUp(self) -> None:
        """Start a consumer."""
        super().setUp()
        self.deliveries: list[Any] = []
        self.reasons: list[Any] = []
        started = begin(self.channel.consume("q", self.receive, self.reasons.append, prefetch=5, max_body=100_000))
        (qos,) = self.broker.heard()
        self.broker.say(commands.Basic.QosOk())
        (consume,) = self.broker.heard()
        self.assertEqual((qos.prefetch_count, qos.global_, consume.no_ack), (5, False, False))
        self.broker.say(commands.Basic.ConsumeOk(consume.consumer_tag))
        self.tag = self.successResultOf(started)

    def receive(self, delivery: Any) -> None:
        """Keep it; a body of ``b"bad"`` is too much."""
        self.deliveries.append(delivery)
        if delivery.body == b"bad":
            raise ZeroDivisionError

    def deliver(self, content: bytes, number: int = 1, **properties: Any) -> None:
        """Have the broker deliver a message."""
        self.broker.content(commands.Basic.Deliver(self.tag, number, True, "x", "k"), content, **properties)

    def test_a_delivery_is_whole(self) -> None:
        """With what it says of itself; ack and requeue go to the broker, once."""
        self.deliver("é".encode(), 7, message_id="m", headers={"x-death": [{"count": 1}]})
        self.deliver(b"", 8)
        first, second = self.deliveries
        verifyObject(IDelivery, first)
        self.assertEqual((first.queue, first.body, first.redelivered), ("q", "é".encode(), True))
        self.assertEqual(first.properties.headers, {"x-death": [{"count": 1}]})
        self.assertTrue(first.ack())
        self.assertTrue(second.requeue())
        ack, nack = self.broker.heard()
        self.assertEqual((ack.delivery_tag, ack.multiple), (7, False))
        self.assertEqual((nack.delivery_tag, nack.multiple, nack.requeue), (8, False, True))
        self.assertRaises(RuntimeError, first.requeue)
        self.assertRaises(RuntimeError, second.ack)

    def test_a_body_beyond_the_limit_is_not_kept(self) -> None:
        """Fifty megabytes cost no memory, and can still be settled."""
        self.deliver(b"x" * 1_000_000)
        self.deliver(b"y")
        big, small = self.deliveries
        self.assertEqual((big.body, big.size, small.body, small.size), (b"", 1_000_000, b"y", 1))

    def test_headers_of_no_text_end_nothing(self) -> None:
        """Bytes that aren't UTF-8 in names and values are carried along."""
        raw = (
            b"\x00\x3c\x00\x00"
            + bytes(8)
            + b"\x20\x80"
            + b"\x00\x00\x00\x08\x01\xffS\x00\x00\x00\x01\xfe"
            + b"\x01\xff"
        )
        self.broker.say(commands.Basic.Deliver(self.tag, 1, False, "", "q"))
        self.broker.say(b"\x02\x00\x01" + len(raw).to_bytes(4, "big") + raw + b"\xce")
        (delivery,) = self.deliveries
        self.assertEqual(delivery.properties.headers, {"\udcff": b"\xfe"})
        self.assertEqual(delivery.properties.message_id, "\udcff")

    def test_a_callback_that_raises_ends_nothing(self) -> None:
        """It is logged, and the next delivery comes."""
        self.deliver(b"bad")
        self.deliver(b"good")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.deliveries[1].body, b"good")

    def test_the_brokers_cancel_is_told_once(self) -> None:
        """The channel lives on."""
        self.broker.say(commands.Basic.Cancel(self.tag, True))
        self.broker.say(commands.Channel.Close(404, "NOT_FOUND", 0, 0))
        self.assertEqual([type(reason) for reason in self.reasons], [BrokerUnreachable])

    def test_our_own_cancel_lets_those_on_the_way_arrive(self) -> None:
        """Afterwards none comes, and no end is told."""
        cancelled = begin(self.channel.cancel(self.tag))
        self.deliver(b"on its way")
        self.broker.say(commands.Basic.CancelOk(self.tag))
        self.successResultOf(cancelled)
        self.assertEqual(len(self.deliveries), 1)
        self.broker.heard()
        self.deliver(b"stray", 9)
        self.assertEqual(len(self.deliveries), 1)
        self.assertEqual([(item.name, item.delivery_tag) for item in self.broker.heard()], [("Basic.Nack", 9)])
        self.broker.wire.loseConnection()
        self.assertEqual(self.reasons, [])

    def test_our_own_close_tells_no_end(self) -> None:
        """Deliveries can't be settled any more."""
        self.deliver(b"{}")
        begin(self.channel.close())
        self.assertEqual(self.reasons, [])
        self.assertFalse(self.deliveries[0].ack())

    def test_a_consumer_that_could_not_start_is_told_by_its_exception_only(self) -> None:
        """A missing queue closes the channel; the other consumer learns it by its callback."""
        reasons: list[Any] = []
        started = begin(self.channel.consume("missing", print, reasons.append, prefetch=1))
        self.broker.say(commands.Basic.QosOk(), commands.Channel.Close(404, "NOT_FOUND - no queue 'missing'", 60, 20))
        self.assertEqual(self.failureResultOf(started, ChannelClosed).value.code, 404)
        self.assertEqual((reasons, [reason.code for reason in self.reasons]), ([], [404]))

    def test_broken_contents_end_the_connection(self) -> None:
        """A body that is longer than announced, a header without its method, a method within a content."""
        deliver = commands.Basic.Deliver("1.1", 1, False, "", "q")
        head = header.ContentHeader(0, 1, commands.Basic.Properties())
        for words in (
            [deliver, head, body.ContentBody(b"xx")],
            [head],
            [body.ContentBody(b"x")],
            [deliver, deliver],
            [deliver, head, head],
        ):
            broker = ScriptedBroker()
            broker.open()
            broker.open_channel()
            broker.say(*words)
            self.assertIn("isn't AMQP", str(self.successResultOf(broker.client.when_lost())))
