"""A fault proxy between a program and its broker: it passes bytes on, and does to them what networks do.

It knows nothing of AMQP, so TLS goes through it as well. It counts what it did, for a test to see that its fault
really happened.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from edxagent.privatenode import free_ports
from tests.faults.stream import Stream

HOST = "127.0.0.1"

_ABORTIVE = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends a RST


class ProxiedConnection:
    """A connection of a program, and the one that was made for it to the broker.

    :ivar to_broker: what the program says.
    :ivar from_broker: what the broker says.
    :ivar broker_sees: the port that it comes from, as the broker's list of connections shows it (``peer_port``).
    """

    def __init__(self, proxy: FaultProxy) -> None:
        self.to_broker = Stream(proxy.reactor, proxy.did, self.close)
        self.from_broker = Stream(proxy.reactor, proxy.did, self.close)
        self.broker_sees = 0
        self._proxy = proxy
        self._ends: list[Any] = []
        self._over = False

    def joined(self, transport: Any) -> None:
        """One of the two ends is there, the program's first."""
        transport.setTcpNoDelay(True)
        self._ends.append(transport)
        if self._over:
            transport.loseConnection()
        elif len(self._ends) == 2:
            program, broker = self._ends
            self.broker_sees = broker.getHost().port
            self.to_broker.connect(program, broker)
            self.from_broker.connect(broker, program)
            self._proxy.on_connection(self)

    def close(self) -> None:
        """End it in order."""
        self._end(lambda transport: transport.loseConnection())

    def reset(self) -> None:
        """End it with a RST to both."""
        self._proxy.did["reset"] += 1
        self._end(_reset)

    def _end(self, how: Callable[[Any], object]) -> None:
        self._over = True
        self._proxy.connections.pop(self, None)
        for stream in (self.to_broker, self.from_broker):
            stream.stop()
        for transport in self._ends:
            how(transport)


def _reset(transport: Any) -> None:
    if transport.connected:
        transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORTIVE)
        transport.abortConnection()


class _End(Protocol):
    """One end of a proxied connection: what it says enters ``stream``."""

    def __init__(self, connection: ProxiedConnection, stream: Stream) -> None:
        self._connection = connection
        self._stream = stream

    def connectionMade(self) -> None:
        self._connection.joined(self.transport)

    def dataReceived(self, data: bytes) -> None:
        self._stream.enter(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stream.enter(None)


class _ToBroker(ClientFactory):
    noisy = False

    def __init__(self, connection: ProxiedConnection) -> None:
        self._connection = connection

    def buildProtocol(self, addr: Any) -> Protocol:
        return _End(self._connection, self._connection.from_broker)

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self._connection.reset()


class FaultProxy(Factory):
    """Listens on a port of its own, which stays the same when it refuses for a while.

    :ivar connections: those that are there, in the order in which they were made.
    :ivar did: what it did to connections → how often.
    :ivar on_connection: is called with each new one before anything went through, to do something to it.
    """

    noisy = False

    def __init__(self, host: str, port: int, reactor: Any) -> None:
        self.reactor = reactor
        self.connections: dict[ProxiedConnection, None] = {}
        self.did: Counter[str] = Counter()
        self.on_connection: Callable[[ProxiedConnection], object] = lambda connection: None
        self._broker = (host, port)
        (self.port,) = free_ports(1)
        self._listening: Any = None

    @classmethod
    def start(cls, case: Any, *, port: int | None = None, to: int | None = None) -> FaultProxy:
        """An entrance to the test's node, until the test ends.

        :param port: to listen on; by default it chooses one.
        :param to: another port of the node's, such as that for TLS.
        """
        from twisted.internet import reactor

        proxy = cls(case.node.host, case.node.port if to is None else to, reactor)
        proxy.port = port or proxy.port
        proxy.accept()
        case.addCleanup(proxy.stop)
        return proxy

    @property
    def url(self) -> str:
        """Its address, as a broker's."""
        return f"amqp://guest@{HOST}:{self.port}/"

    def accept(self) -> None:
        """Listen (again)."""
        if self._listening is None:
            self._listening = self.reactor.listenTCP(self.port, self, interface=HOST)

    def refuse(self) -> Deferred[None]:
        """Listen no more; fires when a connection would be refused. Those that are there stay."""
        self.did["refused"] += 1
        listening, self._listening = self._listening, None
        return Deferred.fromCoroutine(_stopped(listening))

    def reset(self) -> None:
        """Reset every connection."""
        for connection in list(self.connections):
            connection.reset()

    def stall(self) -> None:
        """Pass nothing on to the broker any more, on any connection; what it says still gets through."""
        self.on_connection = lambda connection: connection.to_broker.stall()
        for connection in self.connections:
            connection.to_broker.stall()

    def stop(self) -> Deferred[None]:
        """Go: reset every connection, listen no more."""
        self.reset()
        return self.refuse()

    def buildProtocol(self, addr: Any) -> Protocol:
        """A connection more."""
        self.did["connections"] += 1
        connection = ProxiedConnection(self)
        self.connections[connection] = None
        self.reactor.connectTCP(*self._broker, _ToBroker(connection))
        return _End(connection, connection.to_broker)


async def _stopped(listening: Any) -> None:
    if listening is not None:
        await listening.stopListening()
