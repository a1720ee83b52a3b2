"""The connections: how many, for how long, and how one is refused that asks for too much.

Twisted bounds each line of a request's headers, their number and the silence between two packets. What it leaves open
is bounded here: the number of connections, the time that a request may take to arrive, and that of an answer.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimeIsOver
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.server import Request, Site

MOST_CONNECTIONS = 500
"""With so many, who has asked for nothing for longest makes room: whoever just holds them mustn't keep an LMS out."""

IDLE = 60.0
"""Seconds of silence, within a request or between two."""

NEXT_WITHIN = 120.0
"""Seconds from the connection's beginning, or from the last answer, until the next request must be there as a whole."""

ANSWERED_WITHIN = 300.0
"""Seconds that an answer may take, until the client has read all but the last of it."""

LINGER = 1.0
"""Seconds for a client to see why it was refused, before its connection is cut."""


class Door(HTTPChannel):
    """One connection.

    :ivar refused: whether nothing that still comes over it counts.
    """

    maxHeaders = 100
    factory: DoorSite

    def __init__(self) -> None:
        super().__init__()
        self.refused = False
        self._leaving = False
        self._deadline: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Let them in, unless there are too many who wait for an answer."""
        if len(self.factory.doors) >= MOST_CONNECTIONS and not self.factory.make_room():
            self.refused = True
            self._transport.abortConnection()
            return
        self.factory.doors.add(self)
        super().connectionMade()
        self._await_request()

    def dataReceived(self, data: bytes) -> None:
        """Some of a request, or of several."""
        if not self.refused:
            super().dataReceived(data)

    def lineReceived(self, line: bytes) -> None:
        """A line of a request's headers."""
        if not self.refused:
            super().lineReceived(line)

    def headerReceived(self, line: bytes) -> bool:
        """A whole header; where it is a bad one, the client has been told so."""
        try:
            taken: bool = super().headerReceived(line)
        except ValueError:  # a Content-Length of more digits than Python reads
            self.refuse(HTTPStatus.BAD_REQUEST, "Content-Length is too long")
            return False
        self.refused = self.refused or not taken
        return taken

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        """Whether another request may follow."""
        if self._leaving:
            request.setHeader(b"Connection", b"close")
            return False
        return bool(super().checkPersistence(request, version))

    def allContentReceived(self) -> None:
        """A request is here as a whole."""
        if not self.refused:
            self.factory.silent.pop(self, None)
            self._cut_after(ANSWERED_WITHIN)
            super().allContentReceived()

    def requestDone(self, request: Request) -> None:
        """It is answered."""
        self._await_request()
        super().requestDone(request)

    def refuse(self, status: HTTPStatus, reason: str) -> None:
        """Answer a request that is only just arriving, and read no more of it."""
        self.refused = True
        transport = self._transport
        transport.pauseProducing()
        body = f"{reason}\n".encode()
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain\r\nConnection: close\r\n"
        transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        if not self.isSecure():
            transport.loseWriteConnection()
        # Closed at once, what was sent to us and not read would have the client's system throw the answer away.
        self._cut_after(LINGER)

    def leave_when_answered(self) -> None:
        """Take no request after the one that is being answered, if there is one."""
        self._leaving = True
        self.persistent = 0
        if not self.requests:
            self.cut()

    def cut(self) -> None:
        """End it now."""
        self.refused = True
        self._transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is over."""
        self.refused = True
        self._cut_after(None)
        super().connectionLost(reason)
        self.factory.left(self)

    def _await_request(self) -> None:
        self.factory.silent[self] = None
        self._cut_after(NEXT_WITHIN)

    def _cut_after(self, seconds: float | None) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.factory.reactor.callLater(seconds, self.cut)

    @property
    def _transport(self) -> Any:
        return self.transport


class DoorSite(Site):
    """A web site behind such doors.

    :ivar doors: the connections that there are.
    :ivar silent: those of them over which no whole request has come yet, or none since the last answer; who has waited
        longest comes first.
    """

    _log = Logger()
    noisy = False
    protocol: Any = Door
    doors: set[Door]

    def __init__(self, resource: Any, request_factory: Any, reactor: Any) -> None:
        super().__init__(resource, request_factory, timeout=IDLE, reactor=reactor)
        self.doors = set()
        self.silent: dict[Door, None] = {}
        self._empty: Deferred[None] | None = None

    async def close(self, within: float) -> None:
        """Let the requests under way be answered for ``within`` seconds; then there are no connections any more."""
        for door in list(self.doors):
            door.leave_when_answered()
        try:
            await self._when_empty().addTimeout(within, self.reactor)
        except TimeIsOver:
            self._log.warn("{count} HTTP connections are cut", count=len(self.doors))
            for door in list(self.doors):
                door.cut()
            await self._when_empty()

    def make_room(self) -> bool:
        """Cut the connection that can be spared most, if one can."""
        door = next(iter(self.silent), None)
        if door is None:
            return False
        del self.silent[door]
        door.cut()
        return True

    def left(self, door: Door) -> None:
        """A connection is over."""
        self.doors.discard(door)
        self.silent.pop(door, None)
        if not self.doors and self._empty is not None:
            empty, self._empty = self._empty, None
            empty.callback(None)

    def startFactory(self) -> None:
        """No access log: addresses of files, which may be fetched by whoever knows them, would be in it."""

    def stopFactory(self) -> None:
        """See :meth:`startFactory`."""

    def log(self, request: Any) -> None:
        """See :meth:`startFactory`."""

    def _when_empty(self) -> Deferred[None]:
        empty: Deferred[None] = Deferred()
        if self.doors:
            self._empty = empty
        else:
            empty.callback(None)
        return empty
