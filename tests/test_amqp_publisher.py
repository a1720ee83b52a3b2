"""The confirming publisher on a real broker: every way that a publish can end."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, DeferredQueue, gatherResults
from zope.interface.verify import verifyObject

from edxagent.amqp.link import BrokerLink
from edxagent.amqp.publisher import ConfirmingPublisher
from edxagent.errors import BrokerError, BrokerUnreachable, MessageRefused, PublishFailed, Unroutable
from edxagent.interfaces import IPublisher
from tests.amqp_support import LinkTestCase, message


class ConfirmingPublisherTests(LinkTestCase):
    """Publishing by a link."""

    async def set_up(self) -> None:
        """A queue that takes one message, and one that takes many."""
        self.channel_for_queues = await self.channel()
        self.plenty = await self.queue(self.channel_for_queues)
        self.full = await self.queue(
            self.channel_for_queues, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
        )

    def publish(self, publisher: ConfirmingPublisher, *args: Any, **kwargs: Any) -> Deferred[None]:
        """Publish a message made of the arguments."""
        return Deferred.fromCoroutine(publisher.publish(message(*args, **kwargs)))

    async def test_it_provides_its_interface_and_confirms(self) -> None:
        """A thousand at once, through fewer turns, all arrive."""
        publisher = ConfirmingPublisher(self.link(), most=50)
        verifyObject(IPublisher, publisher)
        await gatherResults([self.publish(publisher, self.plenty, b"%d" % n) for n in range(1000)])
        info = await self.channel_for_queues.declare_queue(self.plenty, passive=True)
        self.assertEqual(info.messages, 1000)

    async def test_thousands_at_once(self) -> None:
        """More than turns, before there is a connection: all arrive. After the link's end: all fail at once."""
        link = self.link()
        publisher = ConfirmingPublisher(link)
        await gatherResults([self.publish(publisher, self.plenty) for _ in range(3000)])
        info = await self.channel_for_queues.declare_queue(self.plenty, passive=True)
        self.assertEqual(info.messages, 3000)
        failing = [self.publish(publisher, self.plenty) for _ in range(3000)]
        ends = gatherResults([self.assertFailure(publish, BrokerError) for publish in failing[1000:]])
        for publish in failing[:1000]:
            publish.addErrback(lambda failure: failure.trap(BrokerError))
        await link.stopService()
        await ends

    async def test_a_refused_message_fails_and_the_next_succeeds(self) -> None:
        """A nack fails its own publish only; what follows goes over a new channel."""
        publisher = ConfirmingPublisher(self.link())
        await self.publish(publisher, self.full)
        error = await self.assertFailure(self.publish(publisher, self.full), PublishFailed)
        self.assertNotIsInstance(error, Unroutable)
        await self.publish(publisher, self.plenty)

    async def test_what_nothing_is_bound_for_is_unroutable(self) -> None:
        """So are a routing key without a queue and an exchange that isn't there; both leave the publisher fit."""
        publisher = ConfirmingPublisher(self.link())
        await self.assertFailure(self.publish(publisher, self.unique("no")), Unroutable)
        await self.assertFailure(self.publish(publisher, "x", exchange=self.unique("no")), Unroutable)
        await self.publish(publisher, self.plenty)

    async def test_what_amqp_cannot_carry_is_refused(self) -> None:
        """Nothing was sent, and the publisher is as good as before."""
        publisher = ConfirmingPublisher(self.link())
        await self.assertFailure(self.publish(publisher, self.plenty, message_id="é" * 200), MessageRefused)
        await self.assertFailure(self.publish(publisher, self.plenty, headers={"x": "y" * 200_000}), MessageRefused)
        await self.assertFailure(self.publish(publisher, self.plenty, headers={"x": object()}), MessageRefused)
        await self.publish(publisher, self.plenty)

    async def test_without_a_connection_it_waits_and_then_fails(self) -> None:
        """The deadline covers the waiting for a connection."""
        closed = self.config(self.address, confirm_timeout=0.3)
        link = BrokerLink(
            reactor=self.channel_for_queues.client.clock,
            config=closed,
            purpose="publish",
            name="down",
            prepare=lambda session: Deferred(),
            on_refused=lambda refused: None,
        )
        link.startService()
        self.addCleanup(link.stopService)
        await self.assertFailure(self.publish(ConfirmingPublisher(link), self.plenty), BrokerUnreachable)

    async def test_a_lost_connection_fails_what_it_carried_and_heals(self) -> None:
        """Publishes during a reconnection wait for it."""
        link = self.link()
        publisher = ConfirmingPublisher(link)
        await self.publish(publisher, self.plenty)
        session = link.session
        await self.node.rabbitmqctl("close_all_connections", "test")
        await session.when_lost()
        await self.publish(publisher, self.plenty)
        self.assertEqual(link.session.generation, 2)

    async def test_a_blocked_broker_is_not_written_to(self) -> None:
        """While it is short of memory publishes wait, fail at their deadline, or succeed when it has recovered."""
        links = [self.link(self.config(confirm_timeout=1.0)), self.link()]
        hasty, patient = map(ConfirmingPublisher, links)
        await gatherResults([self.publish(publisher, self.plenty, b"before") for publisher in (hasty, patient)])
        told, recovered = [await self.watch(link) for link in links]
        await self.node.rabbitmqctl("set_vm_memory_high_watermark", "0.00001")
        try:
            # RabbitMQ tells a connection that it is blocked when it publishes.
            written = [self.publish(hasty, self.plenty, b"a"), self.publish(patient, self.plenty, b"b")]
            written[0].addErrback(lambda failure: None)
            self.assertEqual([await told.get(), await recovered.get()], ["low on memory"] * 2)
            error = await self.assertFailure(self.publish(hasty, self.plenty, b"never"), PublishFailed)
            waiting = self.publish(patient, self.plenty, b"c")
        finally:
            await self.node.rabbitmqctl("set_vm_memory_high_watermark", "absolute", "1GB")
        await gatherResults([*written, waiting])
        self.assertIsNone(await recovered.get())
        self.assertIn("takes no messages", str(error))
        found = set()
        while (delivery := await self.channel_for_queues.get(self.plenty)) is not None:
            found.add(delivery.body)
        self.assertEqual(found - {b"a"}, {b"before", b"b", b"c"})

    async def watch(self, link: BrokerLink) -> DeferredQueue[str | None]:
        """What the link's session says of being blocked."""
        news: DeferredQueue[str | None] = DeferredQueue()
        (await link.when_up()).watch_blocked(news.put)
        return news
