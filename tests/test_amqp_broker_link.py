"""Links against real brokers: refusals, fail-over, TLS, dead peers, restarts."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from edxagent.amqp.session import Session
from edxagent.config.values import BrokerAddress, TLSConfig
from edxagent.errors import BrokerError, BrokerRefused, BrokerUnreachable
from edxagent.privatenode import PrivateNode, TlsFiles
from tests.amqp_support import Consumer, LinkTestCase, message, silenced
from tests.certificates import Authority


class RefusalTests(LinkTestCase):
    """What only a person can mend is told at once, in one line that says how, and not tried again."""

    async def refusal(self, address: BrokerAddress, **options: Any) -> str:
        """What a link says that can't come up, before a second has passed."""
        told: list[BrokerRefused] = []
        link = self.link(self.config(address), on_refused=told.append, **options)
        began = link.reactor.seconds()
        error = await self.assertFailure(link.when_up(), BrokerRefused)
        self.assertLess(link.reactor.seconds() - began, 1.0)
        self.assertEqual(told, [error])
        await link.stopService()
        return str(error)

    async def test_a_wrong_password(self) -> None:
        """The remedy names the password, the message doesn't hold it."""
        text = await self.refusal(evolve(self.address, password="wr0ng"))
        self.assertIn("password_file", text)
        self.assertNotIn("wr0ng", text)

    async def test_a_virtual_host_that_is_not_there(self) -> None:
        """The remedy names the virtual host."""
        self.assertIn("nowhere", await self.refusal(evolve(self.address, vhost="nowhere")))

    async def test_something_that_is_no_broker(self) -> None:
        """A web server's answer is recognised."""
        answer = Protocol()
        answer.connectionMade = lambda: answer.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.assertIn("web server", await self.refusal(self.listen(lambda: answer)))

    async def test_a_preparation_that_is_refused(self) -> None:
        """What the preparation of a session raises counts like a refusal by the broker."""

        async def refuse(session: Session) -> None:
            raise BrokerRefused("there is no queue; make one")

        self.assertEqual(await self.refusal(self.address, prepare=refuse), "there is no queue; make one")

    def listen(self, build: Any) -> BrokerAddress:
        """Something on a port of its own."""
        from twisted.internet import reactor

        port = reactor.listenTCP(0, Factory.forProtocol(build), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return evolve(self.address, port=port.getHost().port)


class HealingTests(LinkTestCase):
    """What heals by itself is waited for."""

    async def test_the_next_address_has_its_turn(self) -> None:
        """With nothing behind the first address, and a wrong password for the second, the third serves."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            nobody = evolve(self.address, port=free.getsockname()[1])
        wrong = evolve(self.address, password="wrong")
        session = await self.link(self.config(nobody, wrong, self.address)).when_up()
        self.assertEqual((session.address, session.generation), (self.address, 1))

    async def test_a_preparation_that_loses_its_connection_is_tried_again(self) -> None:
        """Nothing is logged as lost track of, and the next attempt succeeds."""
        attempts: list[int] = []

        async def prepare(session: Session) -> None:
            attempts.append(session.generation)
            if len(attempts) == 1:
                session._connection.transport.abortConnection()
                await Deferred()

        session = await self.link(prepare=prepare).when_up()
        self.assertEqual(attempts, [1, 1])
        self.assertEqual(session.generation, 1)

    async def test_a_preparation_that_fails_is_logged_and_tried_again(self) -> None:
        """An unexpected error has its traceback in the log."""
        attempts: list[Session] = []

        async def prepare(session: Session) -> None:
            attempts.append(session)
            if len(attempts) == 1:
                raise ZeroDivisionError

        await self.link(prepare=prepare).when_up()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_a_killed_broker_is_found_again(self) -> None:
        """After a kill and a restart the link is up again, with a higher generation; consumers were told."""
        node = await self.own_node()
        address = evolve(self.address, port=node.port)
        link = self.link(self.config(address))
        first = await link.when_up()
        channel = await first.open_channel()
        await channel.declare_queue("q")
        consumer = Consumer()
        await channel.consume("q", consumer.receive, consumer.cancelled, prefetch=1)
        await node.kill()
        self.assertIsInstance(await consumer.ended, BrokerUnreachable)
        await first.when_lost()
        self.assertIsNone(link.session)
        await node.start()
        self.assertEqual((await link.when_up()).generation, 2)

    async def test_a_silent_broker_is_taken_for_dead(self) -> None:
        """A stopped process keeps its sockets open; two heartbeats later it counts as lost."""
        node = await self.own_node()
        link = self.link(self.config(evolve(self.address, port=node.port), heartbeat=1))
        session = await link.when_up()
        began = link.reactor.seconds()
        async with silenced(node):
            reason: BrokerError = await session.when_ended()
        self.assertIn("silent", str(reason))
        self.assertTrue(1.5 <= link.reactor.seconds() - began <= 4)

    async def test_an_idle_link_stays_up(self) -> None:
        """Both sides' heartbeats keep a connection that carries nothing else."""
        link = self.link(self.config(heartbeat=1))
        session = await link.when_up()
        lost = session.when_lost().addTimeout(4, link.reactor)
        await self.assertFailure(lost, Exception)
        self.assertIs(link.session, session)

    async def own_node(self, **options: Any) -> PrivateNode:
        """A node that a test may hurt."""
        from twisted.internet import reactor

        node = PrivateNode(reactor, **options)
        self.addCleanup(lambda: Deferred.fromCoroutine(node.stop()))
        await node.start()
        return node


class StoppingTests(LinkTestCase):
    """A stop ends everything in peace."""

    async def test_acks_arrive_before_the_end(self) -> None:
        """Of a thousand messages acked right before the stop none is delivered again."""
        channel = await self.channel(confirming=True)
        queue = await self.queue(channel)
        last = [channel.publish(message(queue)) for _ in range(1000)][-1]
        await last
        link = self.link()
        consuming = await self.channel(link)
        consumer = Consumer(ack=False)
        await consuming.consume(queue, consumer.receive, consumer.cancelled, prefetch=0)
        await consumer.when(1000)
        self.assertTrue(all(delivery.ack() for delivery in consumer.deliveries))
        await link.stopService()
        self.assertEqual((await channel.declare_queue(queue, passive=True)).messages, 0)
        self.assertIsNone(await channel.get(queue))

    async def test_publishes_arrive_before_the_end(self) -> None:
        """Two thousand publishes, then at once a stop: all are in the queue, each waiting one was answered."""
        link = self.link()
        channel = await self.channel(link, confirming=True)
        other = await self.channel()
        queue = await self.queue(other)
        answers: list[Any] = []
        for _ in range(2000):
            channel.publish(message(queue, b"x" * 1024)).addBoth(answers.append)
        await link.stopService()
        self.assertEqual(len(answers), 2000)
        consumer = Consumer()
        await other.consume(queue, consumer.receive, consumer.cancelled, prefetch=100)
        await consumer.when(2000)

    async def test_a_delivery_of_a_lost_connection_is_not_settled(self) -> None:
        """ack and requeue say so, and still only once each."""
        link = self.link()
        channel = await self.channel(link, confirming=True)
        queue = await self.queue(channel)
        await channel.publish(message(queue))
        delivery = await channel.get(queue)
        await link.stopService()
        self.assertFalse(delivery.ack())
        self.assertRaises(RuntimeError, delivery.requeue)


class TLSTests(LinkTestCase):
    """amqps:// with a private authority."""

    async def set_up(self) -> None:
        """A node that wants to see a certificate."""
        from twisted.internet import reactor

        folder = Path(self.mktemp())
        folder.mkdir()
        self.authority = Authority(folder / "ca")
        self.stranger = Authority(folder / "stranger")
        server = self.authority.issue(folder / "server", "127.0.0.1")
        client = self.authority.issue(folder / "client", "grader")
        self.tls = TLSConfig(ca_file=self.authority.path, certificate_file=client.certificate, key_file=client.key)
        files = TlsFiles(
            certificate=server.certificate,
            key=server.key,
            authority=self.authority.path,
            require_client_certificate=True,
        )
        self.tls_node = PrivateNode(reactor, tls=files)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.tls_node.stop()))
        await self.tls_node.start()

    def tls_address(self, **changes: Any) -> BrokerAddress:
        """The node's address over TLS."""
        assert self.tls_node.tls_port is not None
        return evolve(self.address, port=self.tls_node.tls_port, tls=evolve(self.tls, **changes))

    async def refusal(self, address: BrokerAddress) -> str:
        """Why a link can't come up."""
        link = self.link(self.config(address))
        error = await self.assertFailure(link.when_up(), BrokerRefused)
        await link.stopService()
        return str(error)

    async def test_the_whole_of_it(self) -> None:
        """With authority and certificate messages travel, and the end is as peaceful as ever; the rest is refused."""
        link = self.link(self.config(self.tls_address()))
        channel = await self.channel(link, confirming=True)
        await channel.declare_queue("q")
        await channel.publish(message("q", b"x" * 300_000))
        self.assertEqual((await channel.get("q")).size, 300_000)
        await link.stopService()

        unverified = self.link(self.config(self.tls_address(ca_file=None, verify=False)))
        await unverified.when_up()

        self.assertIn("certificate verify failed", await self.refusal(self.tls_address(ca_file=self.stranger.path)))
        self.assertIn("TLS failed", await self.refusal(self.tls_address(certificate_file=None, key_file=None)))
        self.assertIn("localhost", await self.refusal(evolve(self.tls_address(), host="localhost")))
        self.assertIn("amqps", await self.refusal(evolve(self.tls_address(), tls=None)))
        self.assertIn("TLS failed", await self.refusal(evolve(self.tls_address(), port=self.tls_node.port)))
        self.assertIn("nowhere.pem can't be read", await self.refusal(self.tls_address(ca_file="nowhere.pem")))
        self.assertIn("doesn't fit", await self.refusal(self.tls_address(key_file=self.stranger.key_path)))
