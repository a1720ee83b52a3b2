"""Channels against a real broker: every promise that only RabbitMQ can put to the test."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from edxagent.amqp.codec import Timestamp
from edxagent.errors import BrokerUnreachable, ChannelClosed, Unroutable
from tests.amqp_support import Consumer, LinkTestCase, message


class PublishingTests(LinkTestCase):
    """Confirms, returns, and what bodies may hold."""

    async def test_a_confirmed_message_is_in_the_queue(self) -> None:
        """A publish fires when the broker has the message, with all its properties and header types."""
        channel = await self.channel(confirming=True)
        queue = await self.queue(channel)
        headers = {
            "text": "é",
            "yes": True,
            "int": -5,
            "long": 1 << 40,
            "float": 0.5,
            "none": None,
            "bytes": b"\xff",
            "time": Timestamp(1_700_000_000),
            "list": [1, "two", {"three": [3]}],
            "table": {"a": {"b": "c"}},
        }
        await channel.publish(message(queue, "né".encode(), message_id="m1", type="t", headers=headers, timestamp=7))
        delivery = await channel.get(queue)
        self.assertEqual(delivery.body, "né".encode())
        self.assertEqual(delivery.properties.headers, headers)
        self.assertEqual(delivery.properties.delivery_mode, 2)
        self.assertEqual((delivery.properties.message_id, delivery.properties.timestamp), ("m1", 7))
        self.assertTrue(delivery.ack())

    async def test_only_the_unroutable_one_of_a_batch_fails(self) -> None:
        """Among ten publishes written at once the one that no queue is bound for fails, the others don't."""
        channel = await self.channel(confirming=True)
        queue = await self.queue(channel)
        keys = [queue] * 10
        keys[4] = self.unique("nowhere")
        results = await gatherResults(
            [
                channel.publish(message(key, message_id=str(n))).addErrback(lambda f: f.value)
                for n, key in enumerate(keys)
            ]
        )
        self.assertIsInstance(results[4], Unroutable)
        self.assertEqual([r for n, r in enumerate(results) if n != 4], [None] * 9)

    async def test_bodies_of_any_bytes_and_size_arrive_whole(self) -> None:
        """Empty, non-ASCII, one byte around the frame size, and many frames that turn from ASCII to binary."""
        channel = await self.channel(confirming=True)
        queue = await self.queue(channel)
        frame = 131072 - 8
        bodies = [
            b"",
            "é" * 10,
            b"a" * (frame - 1),
            b"a" * frame,
            b"a" * (frame + 1),
            b"a" * frame + b"\xff\x00" * frame,
        ]
        bodies = [body if isinstance(body, bytes) else body.encode() for body in bodies]
        consumer = Consumer()
        await channel.consume(queue, consumer.receive, consumer.cancelled, prefetch=1)
        for body in bodies:
            await channel.publish(message(queue, body))
        await consumer.when(len(bodies))
        self.assertEqual([d.body for d in consumer.deliveries], bodies)

    async def test_a_missing_exchange_tells_everybody(self) -> None:
        """A publish to an exchange that isn't there closes the channel; all who wait on it learn why."""
        channel = await self.channel(confirming=True)
        queue = await self.queue(channel)
        consumer = Consumer()
        await channel.consume(queue, consumer.receive, consumer.cancelled, prefetch=1)
        error = await self.assertFailure(channel.publish(message("x", exchange=self.unique("no"))), ChannelClosed)
        self.assertEqual(error.code, 404)
        self.assertIs(await consumer.ended, error)
        self.assertTrue(channel.closed)


class RefusedCallTests(LinkTestCase):
    """Whatever the broker closes a channel for reaches the one who asked."""

    async def assert_closed(self, code: int, asked: Coroutine[Any, Any, Any]) -> None:
        """The question fails with this code."""
        error = await self.assertFailure(Deferred.fromCoroutine(asked), ChannelClosed)
        self.assertEqual(error.code, code)

    async def test_each_code(self) -> None:
        """404 missing, 405 locked, 406 different, 403 reserved; the connection lives on through all of them."""
        link = self.link()
        session = await link.when_up()
        missing = self.unique("missing")
        await self.assert_closed(404, (await session.open_channel()).declare_queue(missing, passive=True))
        await self.assert_closed(404, (await session.open_channel()).get(missing))
        await self.assert_closed(404, (await session.open_channel()).consume(missing, print, print, prefetch=1))
        await self.assert_closed(404, (await session.open_channel()).bind_queue(missing, "amq.direct", "k"))
        await self.assert_closed(403, (await session.open_channel()).declare_queue("amq.mine"))
        await self.assert_closed(406, (await session.open_channel()).declare_exchange("amq.direct", "fanout"))
        exclusive = self.unique("exclusive")
        await (await self.channel()).declare_queue(exclusive, exclusive=True, durable=False)
        await self.assert_closed(405, (await session.open_channel()).declare_queue(exclusive, passive=True))
        channel = await session.open_channel()
        await channel.delete_queue(missing)
        self.assertIs(link.session, session)

    async def test_settling_twice_by_tag_is_told_to_the_consumer(self) -> None:
        """The broker closes the channel (406) with nobody asking: the consumer learns it."""
        channel = await self.channel()
        queue = await self.queue(channel)
        consumer = Consumer()
        await channel.consume(queue, consumer.receive, consumer.cancelled, prefetch=1)
        channel.ack(99)
        self.assertEqual((await consumer.ended).code, 406)


class ConsumerTests(LinkTestCase):
    """Consumers on a real queue."""

    async def test_a_deleted_queue_ends_its_consumer(self) -> None:
        """The broker's own cancel arrives; the channel is still good."""
        channel = await self.channel()
        queue = await self.queue(channel)
        consumer = Consumer()
        await channel.consume(queue, consumer.receive, consumer.cancelled, prefetch=1)
        await (await self.channel()).delete_queue(queue)
        self.assertIsInstance(await consumer.ended, BrokerUnreachable)
        self.assertFalse(channel.closed)

    async def test_prefetch_is_the_consumers_own(self) -> None:
        """Two consumers started at once on one channel hold what each was given."""
        channel = await self.channel(confirming=True)
        queues = [await self.queue(channel), await self.queue(channel)]
        await gatherResults([channel.publish(message(queue)) for queue in queues for _ in range(10)])
        consumers = [Consumer(ack=False), Consumer(ack=False)]
        await gatherResults(
            [
                Deferred.fromCoroutine(channel.consume(queue, c.receive, c.cancelled, prefetch=n))
                for queue, c, n in zip(queues, consumers, (2, 5), strict=True)
            ]
        )
        await gatherResults([consumers[0].when(2), consumers[1].when(5)])
        await channel.declare_queue(queues[0], passive=True)
        self.assertEqual([len(consumer.deliveries) for consumer in consumers], [2, 5])

    async def test_after_a_cancel_nothing_comes_and_what_came_can_be_settled(self) -> None:
        """Messages that the consumer holds stay its own."""
        channel = await self.channel(confirming=True)
        queue = await self.queue(channel)
        consumer = Consumer(ack=False)
        tag = await channel.consume(queue, consumer.receive, consumer.cancelled, prefetch=1)
        await gatherResults([channel.publish(message(queue)) for _ in range(3)])
        await consumer.when(1)
        await channel.cancel(tag)
        self.assertTrue(consumer.deliveries[0].ack())
        self.assertEqual((await channel.declare_queue(queue, passive=True)).messages, 2)
        self.assertEqual((len(consumer.deliveries), consumer.reasons), (1, []))

    async def test_a_requeued_message_comes_again(self) -> None:
        """Marked as delivered before."""
        channel = await self.channel(confirming=True)
        queue = await self.queue(channel)
        await channel.publish(message(queue))
        first = await channel.get(queue)
        self.assertFalse(first.redelivered)
        first.requeue()
        self.assertTrue((await channel.get(queue)).redelivered)
        self.assertIsNone(await channel.get(queue))
