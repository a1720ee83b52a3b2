"""One HTTP request over a kept connection: bounded while it is read, cut off when cancelled, and asked again on a new
connection when the kept one turns out to be closed.

It leaves out what a grader's reply has no need of: redirects, cookies, content encodings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

from attrs import field, frozen
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IConsumer, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone, ResponseNeverReceived
from twisted.web.http import OK, PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

LONGEST_HEADERS = 64 * 1024
"""Bytes of headers, give or take one packet: Twisted bounds each line, but not their number."""


class TooLong(Exception):
    """The response's headers or body are longer than allowed, or encoded so that nobody could say."""


@frozen(kw_only=True)
class Answer:
    """What the server said. ``body`` is that of a 200 only; ``retry_after`` is the header's text."""

    status: int
    retry_after: str | None
    body: bytes = field(repr=False)


@frozen(kw_only=True)
class Server:
    """Whom to ask, and how.

    :ivar headers: of each request.
    :ivar auth: name and password for basic authentication.
    :ivar connect_timeout: seconds.
    :ivar max_reply: bytes of a response's body.
    :ivar kept: how many connections are kept open.
    """

    url: str
    headers: Mapping[str, str]
    auth: tuple[str, str] | None = field(repr=False)
    policy: IPolicyForHTTPS
    connect_timeout: float
    max_reply: int
    kept: int


class Exchanges:
    """Requests to one server, at once and one after the other."""

    def __init__(self, server: Server, reactor: Any) -> None:
        self._server = server
        self._reactor = reactor
        self._wires: WeakSet[_Wire] = WeakSet()
        self._kept = HTTPConnectionPool(reactor, persistent=True)
        self._kept.maxPersistentPerHost = server.kept
        self._kept.retryAutomatically = False  # it never would for a POST, and wraps the connection for it
        self._single = HTTPConnectionPool(reactor, persistent=False)

    async def post(self, body: bytes) -> Answer:
        """Send ``body``; cancelling cuts the connection.

        :raises TooLong: the answer is longer than allowed.
        :raises Exception: whatever Twisted has to say about a connection that fails.
        """
        line = _Line(self._kept, self._wires)
        try:
            return await self._ask(line, body)
        except ResponseNeverReceived:
            if not line.reused:
                raise
        # The server had closed a connection that we kept: that is no failure of this request.
        return await self._ask(_Line(self._single, self._wires), body)

    async def close(self) -> None:
        """Cut all connections; done when they are."""
        closed = self._kept.closeCachedConnections()
        for wire in list(self._wires):
            wire.abort()
        await closed

    async def _ask(self, line: _Line, body: bytes) -> Answer:
        server = self._server
        agent = Agent(self._reactor, server.policy, server.connect_timeout, pool=line)
        client = HTTPClient(_PlainAgent(agent, line), data_to_body_producer=_Whole)
        try:
            asking = client.post(
                server.url,
                data=body,
                headers=Headers({name: [value] for name, value in server.headers.items()}),
                auth=server.auth,
                allow_redirects=False,
                unbuffered=True,
                reactor=self._reactor,
            )
            response = await _cancellable(asking)
        except Exception:
            line.abort()
            if line.overrun:
                raise TooLong("the response's headers are too long") from None
            raise
        line.headers_are_over()
        if response.code != OK:
            line.abort()
            retry_after = response.headers.getRawHeaders("retry-after", [None])[0]
            return Answer(status=response.code, retry_after=retry_after, body=b"")
        if response.length is not UNKNOWN_LENGTH and response.length > server.max_reply:
            line.abort()
            raise TooLong(f"the reply is longer than {server.max_reply} bytes")
        collector = _Collector(server.max_reply, line)
        response.deliverBody(collector)
        return Answer(status=OK, retry_after=None, body=await collector.finished)


def _cancellable(work: Deferred[Any]) -> Deferred[Any]:
    """``work``, failing with ``CancelledError`` when cancelled: the steps of a request have other words for it."""

    def cancel(outer: Deferred[Any]) -> None:
        outer.errback(CancelledError())
        work.cancel()

    outer: Deferred[Any] = Deferred(cancel)
    work.addBoth(lambda result: None if outer.called else outer.callback(result))
    return outer


class _Wire(ProtocolWrapper):
    """Beneath Twisted's HTTP client: counts what comes in while headers are read, and can be cut."""

    used = False
    lost = False
    left: int | None = None

    def dataReceived(self, data: bytes) -> None:
        if self.left is not None:
            if self.left <= 0:
                self.abort()
                return
            self.left -= len(data)
        super().dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True
        super().connectionLost(reason)

    def abort(self) -> None:
        transport: Any = self.transport
        if not self.lost:  # Twisted's TLS can't bear to be told twice
            transport.abortConnection()


@implementer(IStreamClientEndpoint)
@frozen
class _WiredEndpoint:
    """An endpoint with a :class:`_Wire` put beneath whatever connects through it."""

    endpoint: IStreamClientEndpoint
    wires: WeakSet[_Wire]

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        factory = WrappingFactory(protocolFactory)
        factory.protocol = _Wire
        factory.noisy = False
        connecting: Deferred[Any] = self.endpoint.connect(factory)
        return connecting.addCallback(self._connected)

    def _connected(self, wire: Any) -> Any:
        self.wires.add(wire)
        return wire.wrappedProtocol


class _Line:
    """Stands in for the pool in one request, so that we know which connection that one got.

    :ivar reused: whether another request had used that before.
    """

    def __init__(self, pool: HTTPConnectionPool, wires: WeakSet[_Wire]) -> None:
        self.persistent = pool.persistent
        self.reused = False
        self._pool = pool
        self._wires = wires
        self._wire: _Wire | None = None

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


@implementer(IAgent)
@frozen
class _PlainAgent:
    """An agent without what treq adds to each request: the offer and decoding of gzip, and a reading of cookies."""

    agent: IAgent
    line: _Line

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        plain = headers.copy() if headers is not None else Headers()
        plain.removeHeader(b"accept-encoding")
        return self.agent.request(method, uri, plain, bodyProducer).addCallback(self._plain)

    def _plain(self, response: IResponse) -> IResponse:
        if response.headers.hasHeader("content-encoding"):
            self.line.abort()
            raise TooLong("the response has a content encoding, though none was asked for")
        response.headers.removeHeader(b"set-cookie")
        return response


@implementer(IBodyProducer)
class _Whole:
    """A request's body, written at once; treq's own producer would use the global reactor."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        pass

    def resumeProducing(self) -> None:
        pass

    def stopProducing(self) -> None:
        pass


class _Collector(Protocol):
    """Takes in a body of at most ``max_reply`` bytes. ``finished`` may be cancelled."""

    def __init__(self, max_reply: int, line: _Line) -> None:
        self._max_reply = max_reply
        self._line = line
        self._body = bytearray()
        self.finished: Deferred[bytes] = Deferred(lambda _: line.abort())

    def dataReceived(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > self._max_reply:
            self._body.clear()
            self._line.abort()
            self._finish(Failure(TooLong(f"the reply is longer than {self._max_reply} bytes")))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        # Without a length and without chunks (HTTP/1.0), the end of the connection is the end of the body.
        self._finish(bytes(self._body) if reason.check(ResponseDone, PotentialDataLoss) else reason)

    def _finish(self, result: bytes | Failure) -> None:
        if not self.finished.called:
            self.finished.callback(result)
