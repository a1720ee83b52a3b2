"""Tests for connections: bounded in number, in time, and in what is read of those who ask for too much."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from edxagent.lms.gateway.door import ANSWERED_WITHIN, IDLE, LINGER, MOST_CONNECTIONS, NEXT_WITHIN, Door, DoorSite
from edxagent.lms.gateway.request import STRANGERS_FORM, BodyRules, Budget, FormRequest

MOST = 100_000
FORM = b"Content-Type: application/x-www-form-urlencoded\r\n"


class Line(StringTransport):
    """A transport that tells whether it was cut, and whether half of it was closed."""

    half_closed = False

    def abortConnection(self) -> None:
        """Cut."""
        if not self.disconnected:
            self.disconnected = True
            self.door.connectionLost(Failure(ConnectionAborted()))  # type: ignore[attr-defined]

    def loseWriteConnection(self) -> None:
        """Close one half."""
        self.half_closed = True


class Page(Resource):
    """Answers at once, or never.

    :ivar seen: the requests.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.answers = True

    def render(self, request: Any) -> Any:
        """Answer."""
        self.seen.append(request)
        return request.answer(b"ok") if self.answers else NOT_DONE_YET


class DoorTestCase(SynchronousTestCase):
    """A test with a site in memory."""

    def setUp(self) -> None:
        """Make it."""
        self.clock = Clock()
        self.page = Page()
        self.known = False
        self.budget = Budget(8 * MOST)
        rules = BodyRules(most=MOST, budget=self.budget, knows=lambda request: self.known)
        self.site = DoorSite(self.page, partial(FormRequest, rules), self.clock)

    def connect(self) -> tuple[Door, Line]:
        """A connection."""
        door, line = self.site.buildProtocol(None), Line()
        line.door = door  # type: ignore[attr-defined]
        door.makeConnection(line)
        return door, line

    def say(self, *pieces: bytes) -> Line:
        """Send something over a new connection."""
        door, line = self.connect()
        for piece in pieces:
            door.dataReceived(piece)
        return line

    def status(self, line: Line) -> bytes:
        """The status of the first answer."""
        return line.value().partition(b"\r\n")[0]

    def form(self) -> dict[str, str]:
        """The form of the one request that there was."""
        (request,) = self.page.seen
        return dict(request.form.fields)


class ReadingTests(DoorTestCase):
    """Tests for forms, and for what is too much."""

    def post(self, body: bytes, *, length: int | None = None, more: bytes = b"") -> bytes:
        """A request with a form."""
        told = len(body) if length is None else length
        return b"POST / HTTP/1.1\r\n%s%sContent-Length: %d\r\n\r\n%s" % (FORM, more, told, body)

    def test_in_pieces(self) -> None:
        """A form may come in any number of packets."""
        self.say(*(bytes([byte]) for byte in self.post(b"a=1&b=%C3%BC")))
        self.assertEqual(self.form(), {"a": "1", "b": "ü"})

    def test_chunked(self) -> None:
        """It may come in chunks too."""
        self.say(b"POST / HTTP/1.1\r\n%sTransfer-Encoding: chunked\r\n\r\n3\r\na=1\r\n2\r\n23\r\n0\r\n\r\n" % FORM)
        self.assertEqual(self.form(), {"a": "123"})

    def test_too_long_by_its_length(self) -> None:
        """A gigabyte that is announced is refused before its first byte, and not waited for."""
        line = self.say(self.post(b"", length=1 << 30, more=b"Expect: 100-continue\r\n"))
        self.assertEqual(self.status(line), b"HTTP/1.1 413 Request Entity Too Large")
        self.assertNotIn(b"100 Continue", line.value())
        self.assertEqual((line.half_closed, line.producerState, self.page.seen), (True, "paused", []))
        self.clock.advance(LINGER)
        self.assertTrue(line.disconnected)
        self.assertEqual(self.site.doors, set())

    def test_too_long_in_chunks(self) -> None:
        """One that isn't announced is cut off when it passes the bound; nothing of it is kept."""
        self.known = True
        door, line = self.connect()
        door.dataReceived(b"POST / HTTP/1.1\r\n%sTransfer-Encoding: chunked\r\n\r\n" % FORM)
        chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
        read = 0
        while not line.value() and read < 2 * MOST:
            door.dataReceived(chunk)
            read += 0x4000
        self.assertEqual(self.status(line), b"HTTP/1.1 413 Request Entity Too Large")
        self.assertLess(read, MOST + 2 * 0x4000)
        self.assertTrue(self.budget.take(8 * MOST), "something is still held")

    def test_once_refused(self) -> None:
        """What else comes over a connection that was refused doesn't count, be it a whole request."""
        line = self.say(self.post(b"", length=1 << 30) + self.post(b"a=1"), self.post(b"a=1"))
        self.assertEqual((line.value().count(b"HTTP/1.1"), self.page.seen), (1, []))

    def test_a_stranger_s_form(self) -> None:
        """Of a form from somebody who isn't logged in little is kept; the request is answered all the same."""
        line = self.say(self.post(b"a=" + b"x" * STRANGERS_FORM))
        self.assertEqual((self.status(line), self.form()), (b"HTTP/1.1 200 OK", {}))

    def test_all_together(self) -> None:
        """Beyond what all may hold together, whoever sends more is asked to come back later."""
        self.known = True
        head, part = self.post(b"", length=MOST), b"a" * (MOST - 1)
        lines = [self.say(head, part) for _ in range(9)]
        statuses = [self.status(line) for line in lines]
        self.assertEqual(statuses, [b""] * 8 + [b"HTTP/1.1 503 Service Unavailable"])
        for line in lines:
            line.abortConnection()
        self.assertTrue(self.budget.take(8 * MOST), "something is still held")

    def test_given_back(self) -> None:
        """What was held is free again when the request is answered."""
        self.known = True
        self.say(self.post(b"a=" + b"x" * 50_000))
        self.assertTrue(self.budget.take(8 * MOST))

    def test_malformed(self) -> None:
        """A form that can't be read is an empty one."""
        body = b"--b\r\nnonsense"
        line = self.say(
            b"POST / HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n%s"
            % (len(body), body)
        )
        self.assertEqual((self.status(line), self.form()), (b"HTTP/1.1 200 OK", {}))


class HostileHeaderTests(DoorTestCase):
    """Tests for requests that break the rules of HTTP."""

    def test_refused(self) -> None:
        """They are refused, and never handled, wherever in the headers the fault is."""
        for bad in (
            b"Content-Length: 3\r\nContent-Length: 3\r\n",
            b"Content-Length: 3\r\nContent-Length: 30\r\n",
            b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
            b"Transfer-Encoding: gzip, chunked\r\n",
            b"Content-Length: -3\r\n",
            b"Content-Length: 3, 3\r\n",
            b"Content-Length: 0x3\r\n",
            b"Bad Name: x\r\n",
            b"no colon\r\n",
            b"X: a\0b\r\n",
            b"X: " + b"x" * 20_000 + b"\r\n",
            b"X: x\r\n" * 200,
        ):
            for more in (b"", b"Accept: */*\r\n"):
                line = self.say(b"POST / HTTP/1.1\r\n%s%s%s\r\na=1" % (FORM, bad, more))
                self.assertIn(self.status(line), (b"HTTP/1.1 400 Bad Request", b""), bad[:60])
                self.assertEqual(self.page.seen, [], bad[:60])

    def test_strange_lines(self) -> None:
        """What is hardly a request gets an answer of a few words, and no traceback."""
        for first, status in (
            (b"FOO / HTTP/1.1", b"501"),
            (b"GET /%ff%fe HTTP/1.1", b"404"),
            (b"GET \xff\xfe HTTP/1.1", b"400"),
            (b"GET HTTP/1.1", b"400"),
            (b"\x16\x03\x01 / x", b"400"),
            (b"GET / HTTP/1.1\r\nHost: " + b"x" * 300, b"200"),
            (b"GET / HTTP/1.1\r\nHost: \xff\xfe", b"200"),
        ):
            line = self.say(first + b"\r\n\r\n")
            self.assertEqual(self.status(line).split()[1], status, first)
        self.assertEqual(self.flushLoggedErrors(), [])


class TimeTests(DoorTestCase):
    """Tests for clients that take their time."""

    def after(self, seconds: float, drip: Callable[[], object] = lambda: None, every: float = 10.0) -> None:
        """Let time pass, with something done every now and then."""
        while seconds > 0:
            self.clock.advance(min(every, seconds))
            seconds -= every
            drip()

    def test_silence(self) -> None:
        """A connection on which nobody says anything is closed."""
        _, line = self.connect()
        self.after(IDLE)
        self.assertTrue(line.disconnecting)

    def test_a_slow_request(self) -> None:
        """A request that comes a byte at a time has to be here in the end."""
        for start in (b"GET", b"POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n"):
            door, line = self.connect()
            door.dataReceived(start)
            self.after(NEXT_WITHIN - 1, lambda door=door: door.dataReceived(b"x"))  # type: ignore[misc]
            self.assertFalse(line.disconnected)
            self.clock.advance(1)
            self.assertTrue(line.disconnected)

    def test_one_after_the_other(self) -> None:
        """A client that asks something now and then is served for as long as it likes."""
        door, line = self.connect()
        for _ in range(50):
            door.dataReceived(b"GET / HTTP/1.1\r\n\r\n")
            self.after(IDLE - 1)
        self.assertEqual((line.disconnected, len(self.page.seen)), (False, 50))

    def test_a_slow_answer(self) -> None:
        """A client that doesn't take its answer isn't waited for without end."""
        self.page.answers = False
        line = self.say(b"GET / HTTP/1.1\r\n\r\n")
        self.after(ANSWERED_WITHIN - 1)
        self.assertFalse(line.disconnected)
        self.clock.advance(1)
        self.assertTrue(line.disconnected)

    def test_too_many(self) -> None:
        """There is a bound on connections: who comes next takes the place of who has asked for nothing for longest."""
        connections = [self.connect() for _ in range(MOST_CONNECTIONS)]
        connections[0][0].dataReceived(b"GET / HTTP/1.1\r\n\r\n")
        connections[2][0].dataReceived(b"GET / HTTP/1.1\r\n")
        newcomers = [self.connect()[1] for _ in range(5)]
        cut = [number for number, (_, line) in enumerate(connections) if line.disconnected]
        self.assertEqual(cut, [1, 2, 3, 4, 5])
        self.assertFalse([line for line in newcomers if line.disconnected])
        self.assertEqual(len(self.site.doors), MOST_CONNECTIONS)

    def test_too_many_requests(self) -> None:
        """Nobody who waits for an answer gives way; there is room again when one has it."""
        self.page.answers = False
        lines = [self.say(b"GET / HTTP/1.1\r\n\r\n") for _ in range(MOST_CONNECTIONS)]
        self.assertTrue(self.connect()[1].disconnected)
        self.assertFalse([line for line in lines if line.disconnected])
        request = self.page.seen[7]
        request.write(request.answer(b"ok"))
        request.finish()
        self.assertFalse(self.connect()[1].disconnected)
        self.assertEqual([number for number, line in enumerate(lines) if line.disconnected], [7])


class ClosingTests(DoorTestCase):
    """Tests for the end."""

    def test_idle_connections(self) -> None:
        """Connections that nobody waits on are cut at once."""
        _, line = self.connect()
        self.successResultOf(Deferred.fromCoroutine(self.site.close(5.0)))
        self.assertTrue(line.disconnected)

    def test_under_way(self) -> None:
        """A request under way is answered, and its connection closed then."""
        self.page.answers = False
        line = self.say(b"GET / HTTP/1.1\r\n\r\n")
        closing = Deferred.fromCoroutine(self.site.close(5.0))
        self.assertNoResult(closing)
        (request,) = self.page.seen
        request.write(request.answer(b"ok"))
        request.finish()
        self.assertTrue(line.disconnecting)
        line.abortConnection()
        self.successResultOf(closing)

    def test_not_for_ever(self) -> None:
        """It isn't waited for longer than allowed, and nothing is left."""
        self.page.answers = False
        line = self.say(b"GET / HTTP/1.1\r\n\r\n")
        closing = Deferred.fromCoroutine(self.site.close(5.0))
        self.clock.advance(5.0)
        self.successResultOf(closing)
        self.assertTrue(line.disconnected)
        self.assertEqual(self.clock.getDelayedCalls(), [])
