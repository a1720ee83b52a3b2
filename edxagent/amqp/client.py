"""One connection to a broker: txamqp's client with a reader, a handshake, heartbeats and an end of its own."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from txamqp.factory import AMQFactory
from txamqp.protocol import AMQClient

from edxagent.amqp.channel import Channel
from edxagent.amqp.codec import Malformed
from edxagent.amqp.delegate import CHANNEL_MAX, ConnectionDelegate
from edxagent.amqp.frames import BODY, HEADER, HEARTBEAT, HEARTBEAT_FRAME, METHOD, OVERHEAD, FrameReader
from edxagent.amqp.gate import WriteGate
from edxagent.amqp.heartbeat import Heartbeat
from edxagent.amqp.spec import PROTOCOL_HEADER, load_spec
from edxagent.config.values import BrokerAddress
from edxagent.errors import BrokerError, BrokerRefused, BrokerUnreachable

_FIRST_FRAME_MAX = 8192
"""Before limits are agreed; RabbitMQ's introduction takes some 500 bytes."""
_LEAST_FRAME_MAX = 4096


@frozen(kw_only=True)
class Wishes:
    """What we bring to a handshake.

    :ivar name: shown in the broker's list of connections.
    :ivar heartbeat: seconds; 0 = none, whatever the broker proposes.
    :ivar call_timeout: seconds for each question.
    """

    name: str
    heartbeat: int
    call_timeout: float


class BrokerConnection(AMQClient):  # type: ignore[misc]  # txamqp has no types
    """A connection, from the first byte to the last. Made by :class:`ConnectionFactory`.

    :ivar blocked: why the broker takes no publishes at the moment, or ``None``.
    :ivar closing: whether either side has begun to end it.
    :ivar frame_max: the longest frame, in bytes, that both sides take.
    """

    channelClass = Channel
    closed: bool
    _log = Logger()

    def __init__(self, address: BrokerAddress, wishes: Wishes, clock: IReactorTime) -> None:
        super().__init__(ConnectionDelegate(), address.vhost, load_spec(), heartbeat=0, clock=clock)
        self.address = address
        self.wishes = wishes
        self.call_timeout = wishes.call_timeout
        self.frame_max = _FIRST_FRAME_MAX
        self.channel_max = CHANNEL_MAX
        self.closing = False
        self.reason: BrokerError | None = None
        self.blocked: str | None = None
        self.on_blocked: Callable[[str | None], None] = lambda reason: None
        self.tuned: Deferred[None] = Deferred()
        self._reader = FrameReader(_FIRST_FRAME_MAX - OVERHEAD)
        self._gate = WriteGate(self._flush)
        self._heartbeat: Heartbeat | None = None
        self._cut: IDelayedCall | None = None
        self._control: Channel = self.channelFactory(0, self.outgoing, self)
        self._hung_up = False
        self._lost_for: BrokerError | None = None
        self._lost_waiters: list[Deferred[BrokerError]] = []
        self._next_channel = 0

    def __str__(self) -> str:
        return str(self.address)

    # The start

    def connectionMade(self) -> None:
        """Introduce ourselves; the broker's answer goes to the delegate."""
        self.transport.registerProducer(self._gate, True)
        self.channels[0] = self._control
        self.write(PROTOCOL_HEADER)

    async def open(self) -> None:
        """Go through the handshake. It has no deadline of its own beyond that of each call.

        :raises BrokerRefused: the broker doesn't want us, or isn't one.
        :raises BrokerUnreachable: the connection was lost.
        """
        await self.tuned
        await self._control.connection_open(virtual_host=self.vhost)

    def tune(self, channel_max: int, frame_max: int, heartbeat: int) -> None:
        """Both sides' limits are settled.

        :raises Malformed: they were before, or are too low to work with (AMQP 0-9-1 §4.2.3: 4096 bytes a frame).
        """
        if self.tuned.called or frame_max < _LEAST_FRAME_MAX:
            raise Malformed("limits that can't be")
        self.channel_max = channel_max
        self.frame_max = frame_max
        self._reader.max_payload = frame_max - OVERHEAD
        if heartbeat:
            self._heartbeat = Heartbeat(self.clock, heartbeat, self._send_heartbeat, self._peer_dead)
        self.tuned.callback(None)

    async def open_channel(self) -> Channel:
        """A new channel. A broker that doesn't open one in time is of no use: the connection is cut, for a new one.

        :raises BrokerUnreachable: the connection is gone, or has no number left.
        """
        channel: Channel = self.channelFactory(self._free_number(), self.outgoing, self)
        self.channels[channel.id] = channel
        try:
            await channel.channel_open()
        except BrokerUnreachable as error:
            # One that blocks us doesn't read what we ask, and will go on.
            if self.blocked is None and not self.closing:
                self.abort(BrokerUnreachable(f"{self}: {error}"))
            raise
        return channel

    def forget(self, channel: Channel) -> None:
        """The channel's number may be used again."""
        self.channels.pop(channel.id, None)

    # What comes in

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the broker. Whatever is wrong with them ends this connection and nothing else."""
        if self.closed:
            return
        if self._heartbeat is not None:
            self._heartbeat.heard()
        try:
            for kind, number, payload in self._reader.feed(data):
                self._frame(kind, number, payload)
                if self.closed:
                    break
        except Malformed as error:
            self.abort(self._malformed(error))
        except Exception:
            self._log.failure("Reading from {broker} failed.", broker=self)
            self.abort(BrokerUnreachable(f"{self}: the connection was given up after an error of our own"))

    def _frame(self, kind: int, number: int, payload: bytes) -> None:
        if kind == HEARTBEAT:
            return
        channel = self.channels.get(number)
        if channel is None:
            raise Malformed(f"a frame for channel {number}, which isn't open")
        if kind == METHOD:
            channel.method_received(payload)
        elif kind == HEADER:
            channel.header_received(payload)
        elif kind == BODY:
            channel.body_received(payload)

    def _malformed(self, error: Malformed) -> BrokerError:
        if not self.tuned.called:
            return BrokerRefused(f"{self}: {error}; check the address in [broker] urls")
        return BrokerUnreachable(f"{self}: the broker sent what isn't AMQP: {error}")

    # What goes out

    @property
    def may_publish(self) -> bool:
        """Whether a publish may be written now."""
        return self._gate.open and self.blocked is None

    def write(self, data: bytes) -> None:
        """Write whole frames."""
        if self._heartbeat is not None:
            self._heartbeat.sent()
        self.transport.write(data)

    def set_blocked(self, reason: str | None) -> None:
        """The broker takes no publishes for ``reason``, or (``None``) takes them again."""
        self.blocked = reason
        self.on_blocked(reason)
        self._flush()

    def _flush(self, last: bool = False) -> None:
        for channel in list(self.channels.values()):
            channel.flush(last)

    def _send_heartbeat(self) -> None:
        self.transport.write(HEARTBEAT_FRAME)

    def _peer_dead(self) -> None:
        self.abort(BrokerUnreachable(f"{self}: the broker has been silent for two heartbeats"))

    # The end

    def finish(self, within: float) -> Deferred[BrokerError]:
        """Close the connection in peace: what was written arrives, the broker agrees.

        :param within: seconds; after them the connection is cut. Asked again, it may be sooner, but not later.
        :returns: fires when it is gone.
        """
        if not self.closing:
            self.closing = True
            self.reason = BrokerUnreachable(f"{self}: the connection was closed")
            if self.blocked is None:
                self._flush(last=True)
            self._cut_after(within)
            self._control.ask("connection", "close", 200, "", 0, 0).addBoth(lambda _: self._hang_up())
        elif self._cut is not None and self._cut.active() and self._cut.getTime() > self.clock.seconds() + within:
            self._cut_after(within)
        return self.when_lost()

    def abort(self, reason: BrokerError) -> None:
        """Cut the connection. Everybody who waits is told ``reason`` when it is gone, which is soon."""
        if self.closed:
            return
        self.closing = self.closed = True
        self.reason = self.reason or reason
        self.transport.abortConnection()

    def closed_by_broker(self, reason: BrokerError) -> None:
        """The broker ended the connection and was answered."""
        self.closing = self.closed = True
        self.reason = reason
        self._cut_after(self.call_timeout)
        self._hang_up()

    def when_lost(self) -> Deferred[BrokerError]:
        """Fires when the connection is gone, with the reason."""
        if self._lost_for is not None:
            return succeed(self._lost_for)
        self._lost_waiters.append(Deferred())
        return self._lost_waiters[-1]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is gone: tell everybody who waits for something from it."""
        self.closing = self.closed = self._hung_up = True
        self._gate.shut()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        self._cut_after(None)
        # Known before anybody is told: who only waited for the end of a channel may go on, and must see it.
        self.reason = error = self.reason or self.delegate.explain_loss(reason)
        self._lost_for = error
        if not self.tuned.called:
            self.tuned.errback(error)
        self.tuned.addErrback(lambda _: None)
        for channel in list(self.channels.values()):
            channel.do_close(error)
        self.channels.clear()
        waiters, self._lost_waiters = self._lost_waiters, []
        for waiter in waiters:
            waiter.callback(error)

    def _cut_after(self, seconds: float | None) -> None:
        if self._cut is not None and self._cut.active():
            self._cut.cancel()
        self._cut = None if seconds is None else self.clock.callLater(seconds, self.transport.abortConnection)

    def _hang_up(self) -> None:
        if self._hung_up:
            return
        self._hung_up = True
        # TLS sends its farewell only when no producer is left.
        self._gate.shut()
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _free_number(self) -> int:
        for _ in range(self.channel_max):
            self._next_channel = self._next_channel % self.channel_max + 1
            if self._next_channel not in self.channels:
                return self._next_channel
        raise BrokerUnreachable(f"{self}: all {self.channel_max} channels are in use")


class ConnectionFactory(AMQFactory):  # type: ignore[misc]  # txamqp has no types
    """Builds connections that have the protocol definition which txamqp lacks."""

    noisy = False

    def __init__(self, address: BrokerAddress, wishes: Wishes, clock: IReactorTime) -> None:
        # AMQFactory's own __init__ would look for a file that txamqp doesn't ship.
        self._address = address
        self._wishes = wishes
        self._clock = clock

    def buildProtocol(self, addr: IPv4Address | None) -> BrokerConnection:
        """See ``twisted.internet.interfaces.IProtocolFactory``."""
        return BrokerConnection(self._address, self._wishes, self._clock)
