"""The link's stopping, in each of its states: everything ends, nothing is left in the clock."""

from __future__ import annotations

from typing import Any

from pamqp import commands, frame
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.interfaces import IReactorPluggableNameResolver
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from edxagent.amqp.link import BrokerLink, Session
from edxagent.config.values import BrokerAddress, BrokerConfig
from edxagent.errors import BrokerRefused, BrokerUnreachable
from tests.amqp_support import nothing
from tests.scripted_broker import Wire


@implementer(IReactorPluggableNameResolver)
class LinkReactor(MemoryReactorClock):
    """A reactor in memory that knows every host's address at once."""

    def __init__(self) -> None:
        super().__init__()
        self.nameResolver = self

    def resolveHostName(self, receiver: Any, hostName: str, portNumber: int = 0, *args: Any, **kwargs: Any) -> Any:
        """See ``IHostnameResolver``."""
        receiver.resolutionBegan(self)
        receiver.addressResolved(IPv4Address("TCP", "127.0.0.1", portNumber))
        receiver.resolutionComplete()
        return self


class LinkTests(SynchronousTestCase):
    """A link over a network in memory."""

    def setUp(self) -> None:
        """A link to two addresses, started."""
        self.reactor = LinkReactor()
        self.refused: list[BrokerRefused] = []
        self.addresses = tuple(
            BrokerAddress(host=host, port=5672, username="u", password="p") for host in ("a.example", "b.example")
        )
        self.start(nothing)

    def start(self, prepare: Any) -> None:
        """Begin with another preparation."""
        self.link = BrokerLink(
            reactor=self.reactor,
            config=BrokerConfig(addresses=self.addresses),
            purpose="consume",
            name="t",
            prepare=prepare,
            on_refused=self.refused.append,
        )
        self.reactor.tcpClients.clear()
        self.reactor.connectors.clear()
        self.link.startService()
        self.reactor.advance(0)

    def accept(self) -> Wire:
        """The network connects the attempt that is under way."""
        factory = self.reactor.tcpClients[-1][2]
        client = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 5672))
        wire = Wire(client.connectionLost)
        self.say = lambda word, channel=0: client.dataReceived(frame.marshal(word, channel))
        client.makeConnection(wire)
        return wire

    def refuse_connection(self) -> None:
        """Nobody is there."""
        factory = self.reactor.tcpClients[-1][2]
        factory.clientConnectionFailed(self.reactor.connectors[-1], Failure(ConnectionRefusedError()))
        self.reactor.advance(0.3)  # HostnameEndpoint's pause between a host's addresses

    def greet(self) -> None:
        """The broker's side of the handshake."""
        self.say(commands.Connection.Start(0, 9, {}, "PLAIN", "en_US"))
        self.say(commands.Connection.Tune(0, 0, 0))
        self.say(commands.Connection.OpenOk())
        self.reactor.advance(0)

    def stop(self) -> Deferred[None]:
        """Stop the link; whoever waits is told."""
        waiter = self.link.when_up() if self.link.session is None else None
        stopped = self.link.stopService()
        if waiter is not None:
            self.failureResultOf(waiter, BrokerUnreachable)
        return stopped

    def assert_ended(self, stopped: Deferred[None]) -> None:
        """It is stopped, and nothing is left."""
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_while_connecting(self) -> None:
        """Before the network has answered."""
        self.assert_ended(self.stop())
        self.failureResultOf(self.link.when_up(), BrokerUnreachable)

    def test_while_greeting(self) -> None:
        """Before the broker has said a word."""
        self.accept()
        self.assert_ended(self.stop())

    def test_while_preparing(self) -> None:
        """The preparation is cancelled, the connection closed in peace."""
        self.stop()
        preparing: Deferred[None] = Deferred()
        self.start(lambda session: preparing)
        wire = self.accept()
        self.greet()
        stopped = self.stop()
        self.assertIn(b"\x00\x0a\x00\x32", wire.value())
        self.assertNoResult(stopped)
        self.say(commands.Connection.CloseOk())
        self.assert_ended(stopped)

    def test_while_up(self) -> None:
        """The connection is closed in peace."""
        self.accept()
        self.greet()
        session = self.successResultOf(self.link.when_up())
        stopped = self.stop()
        self.say(commands.Connection.CloseOk())
        self.assert_ended(stopped)
        self.assertIsNone(self.link.session)
        self.successResultOf(session.when_lost())

    def test_while_up_with_a_dead_peer(self) -> None:
        """It takes no longer than the bound."""
        self.accept()
        self.greet()
        stopped = self.stop()
        self.reactor.advance(5)
        self.assert_ended(stopped)

    def test_in_a_hurry(self) -> None:
        """A dead peer gets half a second, whether the link is told before its end or in the middle of it."""
        for hurry_first in (True, False):
            self.accept()
            self.greet()
            if hurry_first:
                self.link.hurry()
                self.assertTrue(self.successResultOf(self.link.when_up()).alive)
            stopped = self.stop()
            self.link.hurry()
            self.assertNoResult(stopped)
            self.reactor.advance(0.5)
            self.assert_ended(stopped)
            self.link.hurry()
            self.start(nothing)

    def test_in_the_moment_of_coming_up(self) -> None:
        """By the very one who waited for the link, or in its preparation's wake."""
        stopped: list[Deferred[None]] = []
        self.link.when_up().addCallback(lambda session: stopped.append(self.link.stopService()))
        self.accept()
        self.greet()
        self.say(commands.Connection.CloseOk())
        self.assert_ended(stopped[0])

    def test_while_waiting_to_try_again(self) -> None:
        """The next attempt isn't made."""
        self.refuse_connection()
        self.assert_ended(self.stop())

    def test_after_giving_up(self) -> None:
        """Those who wait are told why, as is whoever comes later."""
        waiter = self.link.when_up()
        for host in ("a.example", "b.example"):
            self.accept()
            self.say(commands.Connection.Start(0, 9, {}, "PLAIN", "en_US"))
            self.say(commands.Connection.Close(403, "ACCESS_REFUSED", 0, 0))
            self.reactor.advance(0)
            if host == "a.example":
                self.assertNoResult(waiter)
                self.assertEqual(self.refused, [])
                self.reactor.advance(0.5)  # the next address hasn't refused: it needn't wait for long
        (refused,) = self.refused
        self.assertIn("b.example", str(refused))
        self.failureResultOf(waiter, BrokerRefused)
        self.failureResultOf(self.link.when_up(), BrokerRefused)
        self.assert_ended(self.link.stopService())

    def test_it_can_start_again(self) -> None:
        """A stopped service is as good as new."""
        self.stop()
        self.link.startService()
        self.reactor.advance(0)
        self.accept()
        self.greet()
        self.assertEqual(self.successResultOf(self.link.when_up()).generation, 1)

    def test_a_broker_that_says_nothing_has_a_deadline(self) -> None:
        """Then the next address has its turn."""
        self.accept()
        self.reactor.advance(10)
        self.assertEqual(len(self.reactor.getDelayedCalls()), 1)
        self.reactor.advance(1)
        self.accept()
        self.greet()
        self.assertEqual(self.successResultOf(self.link.when_up()).address, self.addresses[1])

    def test_a_refusal_after_it_was_up_is_tried_again(self) -> None:
        """A broker that is being rebuilt refuses for a while: each address says so once, the pauses are long."""
        wire = self.accept()
        self.greet()
        self.reactor.advance(0)
        wire.loseConnection()
        with capturedLogs() as logged:
            for _ in range(4):
                self.reactor.advance(30)
                self.accept()
                self.say(commands.Connection.Start(0, 9, {}, "PLAIN", "en_US"))
                self.say(commands.Connection.Close(403, "ACCESS_REFUSED", 0, 0))
                self.reactor.advance(0)
        self.assertEqual([event["log_level"] for event in logged].count(LogLevel.error), 2)
        self.assertEqual(self.refused, [])
        (pause,) = [call.getTime() - self.reactor.seconds() for call in self.reactor.getDelayedCalls()]
        self.assertTrue(1.25 <= pause <= 2.5)

    def test_pauses_grow_to_the_longest(self) -> None:
        """Doubling with each round of all addresses, with jitter, until a round takes what was configured."""
        pauses = []
        for _ in range(12):
            self.refuse_connection()
            (call,) = self.reactor.getDelayedCalls()
            pauses.append(call.getTime() - self.reactor.seconds())
            self.reactor.advance(pauses[-1])
        for attempt, pause in enumerate(pauses):
            longest = min(0.5 * 2 ** (attempt // 2), 5 / 2)
            self.assertTrue(longest / 2 <= pause <= longest, (attempt, pause))

    def test_a_lost_connection_while_preparing_is_a_failed_attempt(self) -> None:
        """Nothing is logged as an error, and the next attempt follows."""
        self.stop()
        attempts: list[Session] = []

        def prepare(session: Session) -> Deferred[None]:
            attempts.append(session)
            return Deferred()

        self.start(prepare)
        wire = self.accept()
        self.greet()
        wire.connected = False
        wire._lost(Failure(ConnectionDone()))
        self.assertEqual(len(self.reactor.getDelayedCalls()), 1)
        self.assertEqual(len(attempts), 1)

    def test_a_connection_lost_at_the_end_of_preparing_is_a_failed_attempt(self) -> None:
        """So is one that is lost while it waits for no more than the end of a channel, which the loss is too."""
        self.stop()

        async def prepare(session: Session) -> None:
            await (await session.open_channel()).close()

        self.start(prepare)
        waiter = self.link.when_up()
        wire = self.accept()
        self.greet()
        self.say(commands.Channel.OpenOk(), 1)
        wire.loseConnection()
        self.reactor.advance(0)
        self.assertNoResult(waiter)
        self.assertEqual(len(self.reactor.getDelayedCalls()), 1)
        self.reactor.advance(0.5)
        self.accept()
        self.greet()
        self.say(commands.Channel.OpenOk(), 1)
        self.say(commands.Channel.CloseOk(), 1)
        self.reactor.advance(0)
        self.assertTrue(self.successResultOf(waiter).alive)
