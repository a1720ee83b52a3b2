"""One HTTP request over a kept connection: bounded while it is read, cut off when cancelled, and asked again on a new
connection when the kept one turns out to be closed.

It leaves out what nobody here has need of: redirects and content encodings. Cookies are told, not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from time import time
from typing import Any
from weakref import WeakSet

from attrs import field, frozen
from hyperlink import URL
from OpenSSL import SSL
from service_identity import VerificationError
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectError, ConnectionAborted, ConnectionClosed, DNSLookupError
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import (
    Agent,
    HTTPConnectionPool,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http import OK, PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

from edxagent.errors import plain_reason
from edxagent.web.connection import Line, Wire
from edxagent.web.retry_after import retry_after_seconds
from edxagent.words import brief

_NETWORK = (ConnectError, ConnectionClosed, ConnectionAborted, DNSLookupError, SSL.Error, VerificationError)


class ExchangeFailed(Exception):
    """There is no whole answer. ``str()`` says why, in words that go on from the server's name."""


class Unreachable(ExchangeFailed):
    """No connection was made, or it broke."""


class NotConnected(Unreachable):
    """No connection was made: the server has seen nothing of the request."""


class NotHTTP(ExchangeFailed):
    """What the server says isn't HTTP."""


class BadResponse(ExchangeFailed):
    """The response is HTTP, but none that we could take: endless headers, an encoding, a body that breaks the rules."""


class TooLong(BadResponse):
    """The body is longer than allowed."""


@frozen(kw_only=True)
class Ask:
    """A request.

    :ivar auth: name and password for basic authentication.
    :ivar longest: bytes that the body of the response may have.
    :ivar read: the statuses whose body is of interest; what comes with another one isn't read.
    :ivar once: never ask again, not even when it may be that a kept connection was closed before the server saw the
        request: for what mustn't be done twice. Takes a connection of its own.
    """

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str]
    auth: tuple[str, str] | None = field(repr=False, default=None)
    body: bytes | None = field(repr=False, default=None)
    longest: int
    read: Collection[int] = (OK,)
    once: bool = False


@frozen(kw_only=True)
class Answer:
    """What the server said.

    :ivar retry_after: seconds, from the header of that name.
    :ivar set_cookies: the headers of that name, as they came.
    """

    status: int
    retry_after: float | None
    set_cookies: Sequence[str] = field(repr=False, default=())


class Exchanges:
    """Requests, at once and one after the other.

    :param connect_timeout: seconds.
    :param kept: how many connections to each host are kept open.
    """

    def __init__(self, *, policy: IPolicyForHTTPS, connect_timeout: float, kept: int, reactor: Any) -> None:
        self._policy = policy
        self._connect_timeout = connect_timeout
        self._reactor = reactor
        self._wires: WeakSet[Wire] = WeakSet()
        self._kept = HTTPConnectionPool(reactor, persistent=True)
        self._kept.maxPersistentPerHost = kept
        self._kept.retryAutomatically = False  # it never would for a POST, and wraps the connection for it
        self._single = HTTPConnectionPool(reactor, persistent=False)

    async def ask(self, ask: Ask, write: Callable[[bytes], object]) -> Answer:
        """Ask a server; cancelling cuts the connection.

        :param write: gets the body, if the answer's status is in ``ask.read``, piece by piece. What it raises ends the
            request.
        :raises ExchangeFailed: there is no whole answer.
        """
        line = Line(self._single if ask.once else self._kept, self._wires)
        try:
            try:
                return await self._ask(line, ask, write)
            except ResponseNeverReceived:
                if not line.reused:
                    raise
            # The server had closed a connection that we kept: that is no failure of this request.
            return await self._ask(Line(self._single, self._wires), ask, write)
        except (*_NETWORK, ValueError) as error:  # which Twisted raises for what can't be the name of a host
            raise NotConnected(f"can't be reached: {brief(plain_reason(error))}") from error
        except (RequestGenerationFailed, RequestTransmissionFailed, ResponseFailed) as error:
            raise _explained(error) from error

    async def close(self) -> None:
        """Cut all connections; done when they are."""
        for wire in list(self._wires):
            wire.abort()
        # One that is telling us of its last response right now goes back to the pool only when it is done with that.
        await deferLater(self._reactor, 0)
        await self._kept.closeCachedConnections()

    async def _ask(self, line: Line, ask: Ask, write: Callable[[bytes], object]) -> Answer:
        agent = Agent(self._reactor, self._policy, self._connect_timeout, pool=line)
        plain = _PlainAgent(agent, line)
        client = HTTPClient(plain, data_to_body_producer=_Whole)
        try:
            asking = client.request(
                ask.method,
                _Verbatim.from_text(ask.url),
                data=ask.body,
                headers=Headers({name: [value] for name, value in ask.headers.items()}),
                auth=ask.auth,
                allow_redirects=False,
                unbuffered=True,
                reactor=self._reactor,
            )
            response = await _cancellable(asking)
        except Exception:
            line.abort()
            if line.overrun:
                raise BadResponse("sent headers that are too long") from None
            raise
        line.headers_are_over()
        if response.code not in ask.read:
            line.abort()
        else:
            if response.length is not UNKNOWN_LENGTH and response.length > ask.longest:
                line.abort()
                raise _too_long(ask.longest)
            collector = _Collector(ask.longest, write, line)
            response.deliverBody(collector)
            await collector.finished
        retry_after = response.headers.getRawHeaders("retry-after", [None])[0]
        return Answer(
            status=response.code,
            retry_after=retry_after_seconds(retry_after, time()),
            set_cookies=tuple(plain.set_cookies),
        )


def _explained(error: RequestGenerationFailed | RequestTransmissionFailed | ResponseFailed) -> ExchangeFailed:
    network = next((reason.value for reason in error.reasons if isinstance(reason.value, _NETWORK)), None)
    if network is not None:
        return Unreachable(f"broke off: {brief(str(network))}")
    if getattr(error, "response", None) is not None:
        return BadResponse("sent a body that breaks the rules of HTTP")
    return NotHTTP("doesn't answer in HTTP")


def _too_long(longest: int) -> TooLong:
    return TooLong(f"sent a body that is longer than {longest} bytes")


def _cancellable(work: Deferred[Any]) -> Deferred[Any]:
    """``work``, failing with ``CancelledError`` when cancelled: the steps of a request have other words for it."""

    def cancel(outer: Deferred[Any]) -> None:
        outer.errback(CancelledError())
        work.cancel()

    outer: Deferred[Any] = Deferred(cancel)
    work.addBoth(lambda result: None if outer.called else outer.callback(result))
    return outer


class _Verbatim(URL):
    """A URL that is ASCII already, and no business of hyperlink's, which can't encode an IPv6 address."""

    def to_uri(self) -> _Verbatim:
        return self


@implementer(IAgent)
@frozen
class _PlainAgent:
    """An agent without what treq adds to each request: the offer and decoding of gzip, and a reading of cookies."""

    agent: IAgent
    line: Line
    set_cookies: list[str] = field(factory=list)

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        plain = headers.copy() if headers is not None else Headers()
        plain.removeHeader(b"accept-encoding")
        return self.agent.request(method, uri, plain, bodyProducer).addCallback(self._plain)

    def _plain(self, response: IResponse) -> IResponse:
        if response.headers.hasHeader("content-encoding"):
            self.line.abort()
            raise BadResponse("sent a content encoding, though none was asked for")
        for cookie in response.headers.getRawHeaders(b"set-cookie", []):
            self.set_cookies.append(cookie.decode("latin-1"))
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
    """Passes on a body of at most ``longest`` bytes. ``finished`` may be cancelled."""

    def __init__(self, longest: int, write: Callable[[bytes], object], line: Line) -> None:
        self._longest = self._left = longest
        self._write = write
        self._line = line
        self.finished: Deferred[None] = Deferred(lambda _: line.abort())

    def dataReceived(self, data: bytes) -> None:
        if self.finished.called:
            return
        self._left -= len(data)
        try:
            if self._left < 0:
                raise _too_long(self._longest)
            self._write(data)
        except Exception:
            self._line.abort()
            self.finished.errback(Failure())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        # Without a length and without chunks (HTTP/1.0), the end of the connection is the end of the body.
        if not self.finished.called:
            self.finished.callback(None if reason.check(ResponseDone, PotentialDataLoss) else reason)
