"""The connection beneath one HTTP request: known by name, bounded while headers are read, and cut when we say so.

Twisted's pool keeps its connections to itself; a :class:`Line` stands in for the pool during one request.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import HTTPConnectionPool
from zope.interface import implementer

LONGEST_HEADERS = 64 * 1024
"""Bytes of headers, give or take one packet: Twisted bounds each line, but not their number."""


class Wire(ProtocolWrapper):
    """Beneath Twisted's HTTP client: counts what comes in while headers are read, and can be cut.

    :ivar used: whether a request went over it before.
    :ivar left: how many bytes of headers may still come; ``None`` when they are over.
    """

    used = False
    lost = False
    left: int | None = None

    def dataReceived(self, data: bytes) -> None:
        """Pass it on, unless it is too much."""
        if self.left is not None:
            if self.left <= 0:
                self.abort()
                return
            self.left -= len(data)
        super().dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It can't be cut any more."""
        self.lost = True
        super().connectionLost(reason)

    def abort(self) -> None:
        """Cut it, unless it is."""
        transport: Any = self.transport
        if not self.lost:  # Twisted's TLS can't bear to be told twice
            transport.abortConnection()


@implementer(IStreamClientEndpoint)
@frozen
class _WiredEndpoint:
    """An endpoint with a :class:`Wire` put beneath whatever connects through it."""

    endpoint: IStreamClientEndpoint
    wires: WeakSet[Wire]

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        factory = WrappingFactory(protocolFactory)
        factory.protocol = Wire
        factory.noisy = protocolFactory.noisy = False
        connecting: Deferred[Any] = self.endpoint.connect(factory)
        return connecting.addCallback(self._connected)

    def _connected(self, wire: Any) -> Any:
        self.wires.add(wire)
        return wire.wrappedProtocol


class Line:
    """Stands in for the pool in one request, so that we know which connection that one got.

    :ivar reused: whether another request had used that before.
    """

    def __init__(self, pool: HTTPConnectionPool, wires: WeakSet[Wire]) -> None:
        self.persistent = pool.persistent
        self.reused = False
        self._pool = pool
        self._wires = wires
        self._wire: Wire | None = None

    def getConnection(self, key: Any, endpoint: IStreamClientEndpoint) -> Deferred[Any]:
        """What ``Agent`` calls."""
        return self._pool.getConnection(key, _WiredEndpoint(endpoint, self._wires)).addCallback(self._got)

    def _got(self, connection: Any) -> Any:
        wire = self._wire = connection.transport
        self.reused, wire.used = wire.used, True
        wire.left = LONGEST_HEADERS
        return connection

    @property
    def overrun(self) -> bool:
        """Whether the headers were too long."""
        return self._wire is not None and self._wire.left is not None and self._wire.left <= 0

    def headers_are_over(self) -> None:
        """From now on it's the body."""
        if self._wire is not None:
            self._wire.left = None

    def abort(self) -> None:
        """Cut the connection."""
        if self._wire is not None:
            self._wire.abort()
