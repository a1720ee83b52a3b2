"""A web server on loopback that does to its clients whatever a test wants: to see how one bears it.

A *behaviour* is a callable that gets a :class:`Visit` once a whole request is there::

    server = RogueServer(answering(b'{"correct": true, "score": 1, "msg": "ok"}'))
    await server.start(reactor)
    ... post to server.url ...
    await server.stop()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

LOOPBACK = "127.0.0.1"


@frozen(kw_only=True)
class Asked:
    """A request as it came: its first line, its headers with lower-case names, its body."""

    line: str
    headers: dict[str, str]
    body: bytes = field(repr=False)


class Visit(Protocol):
    """One client's connection.

    :ivar asked: the requests that came over it, the latest last.
    """

    def __init__(self, server: RogueServer) -> None:
        self._server = server
        self._buffer = b""
        self._lost = False
        self.asked: list[Asked] = []

    def send(self, data: bytes) -> None:
        """Say something, at once."""
        self._transport.write(data)

    def send_for_ever(self, data: bytes) -> None:
        """Say something over and over, as fast as the client takes it."""
        self._transport.registerProducer(_Echo(self._transport, data), True)

    def close(self) -> None:
        """Hang up, after what was said."""
        self._transport.loseConnection()

    def reset(self) -> None:
        """Hang up rudely, unless they are gone."""
        if not self._lost:
            self._transport.abortConnection()

    def connectionMade(self) -> None:
        """Somebody came."""
        self._server.visits.append(self)
        self._server.open += 1

    def dataReceived(self, data: bytes) -> None:
        """Collect requests, each with its length told."""
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            line, *lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (text.partition(":") for text in lines)}
            length = int(headers.get("content-length", "0"))
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            self.asked.append(Asked(line=line, headers=headers, body=rest[:length]))
            self._server.asked.append(self.asked[-1])
            self._server.behaviour(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """They left."""
        self._lost = True
        self._server.open -= 1

    @property
    def _transport(self) -> Any:
        return self.transport


class RogueServer(Factory):
    """The server.

    :ivar behaviour: may be changed at any time.
    :ivar asked: every request that came.
    :ivar visits: every connection that there was, and ``open``, how many there are.
    :ivar url: where it is, once started.
    """

    noisy = False

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.asked: list[Asked] = []
        self.visits: list[Visit] = []
        self.open = 0
        self.url = ""
        self._port: Any = None

    def buildProtocol(self, addr: object) -> Visit:
        """One visitor more."""
        return Visit(self)

    async def start(self, reactor: Any, context: Any = None) -> None:
        """Listen on a free port; over TLS when there is a ``context``."""
        if context is None:
            self._port = reactor.listenTCP(0, self, interface=LOOPBACK)
        else:
            self._port = reactor.listenSSL(0, self, context, interface=LOOPBACK)
        self.url = f"{'http' if context is None else 'https'}://{LOOPBACK}:{self._port.getHost().port}/grade"

    async def stop(self) -> None:
        """Listen no more, and hang up on everybody."""
        port, self._port = self._port, None
        if port is not None:
            stopping: Deferred[None] = port.stopListening()
            await stopping
        for visit in self.visits:
            visit.reset()


Behaviour = Callable[[Visit], None]


def response(body: bytes, status: str = "200 OK", headers: Sequence[str] = ()) -> bytes:
    """A response that keeps to the rules."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def answering(body: bytes, status: str = "200 OK", headers: Sequence[str] = ()) -> Behaviour:
    """A behaviour: a proper response."""
    return saying(response(body, status, headers))


def saying(data: bytes) -> Behaviour:
    """A behaviour: send just this, and keep the connection."""
    return lambda visit: visit.send(data)


def saying_and_closing(data: bytes) -> Behaviour:
    """A behaviour: send just this, and hang up."""

    def behave(visit: Visit) -> None:
        visit.send(data)
        visit.close()

    return behave


def saying_for_ever(head: bytes, data: bytes) -> Behaviour:
    """A behaviour: send ``head``, then ``data`` without end."""

    def behave(visit: Visit) -> None:
        visit.send(head)
        visit.send_for_ever(data)

    return behave


def silent(visit: Visit) -> None:
    """A behaviour: say nothing, ever."""


def resetting(visit: Visit) -> None:
    """A behaviour: reset the connection."""
    visit.reset()


@implementer(IPushProducer)
class _Echo:
    """Fills a transport whenever there is room."""

    def __init__(self, transport: Any, data: bytes) -> None:
        self._transport = transport
        self._data = data
        self._paused = False
        self.resumeProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        self._transport.reactor.callLater(0, self._more)

    def pauseProducing(self) -> None:
        self._paused = True

    def stopProducing(self) -> None:
        self._paused = True

    def _more(self) -> None:
        if not self._paused and self._transport.connected:
            self._transport.write(self._data)
            self._transport.reactor.callLater(0, self._more)
