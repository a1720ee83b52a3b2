"""Channels against a real broker: every promise that only RabbitMQ can put to the test."""

from __future__ import annotations

from twisted.internet.defer import gatherResults

from edxagent.amqp.codec import Timestamp
from edxagent.errors import ChannelClosed, Unroutable
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
        """A publish to an exchange that isn't there closes the channel: its waiting publishes and consumers learn why."""
        channel = await self.channel(confirming=True)
        queue = await self.queue(channel)
        consumer = Consumer()
        await channel.consume(queue, consumer.receive, consumer.cancelled, prefetch=1)
        error = await self.assertFailure(channel.publish(message("x", exchange=self.unique("no"))), ChannelClosed)
        self.assertEqual(error.code, 404)
        self.assertIs(await consumer.ended, error)
        self.assertTrue(channel.closed)
