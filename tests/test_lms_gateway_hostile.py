"""Tests for clients that mean harm, over real connections."""

from __future__ import annotations

import resource
import time
from typing import Any
from urllib.parse import urlencode

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IPullProducer
from zope.interface import implementer

from edxagent.lms.gateway.door import MOST_CONNECTIONS
from edxagent.lms.gateway.passwords import PasswordHash
from tests.cli_process import until
from tests.gateway_support import BODY, PASSWORD, USER, Client, GatewayTestCase, header, multipart

GIGABYTE = 1 << 30
PIECE = 64 * 1024
FORM = "Content-Type: application/x-www-form-urlencoded"


@implementer(IPullProducer)
class Flood:
    """Sends the same bytes for as long as the other side takes them.

    :ivar sent: bytes.
    """

    def __init__(self, client: Client, piece: bytes, most: int = GIGABYTE) -> None:
        self._client = client
        self._piece = piece
        self._most = most
        self.sent = 0
        transport: Any = client.transport
        transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """Send some more."""
        if self.sent < self._most:
            self._client.say(self._piece)
            self.sent += len(self._piece)

    def stopProducing(self) -> None:
        """Enough."""
        self._most = 0


def memory() -> int:
    """The most bytes that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class UploadTests(GatewayTestCase):
    """Tests for uploads of a gigabyte."""

    async def flood(self, head: str, piece: bytes) -> tuple[Client, Flood]:
        """Send a gigabyte until cut off; it is noticed early, and held nowhere."""
        await self.start(files_folder=self.mktemp(), files_url="http://h/files/")
        cookie = await self.log_in()
        client = await self.client()
        before = memory()
        client.say(f"POST /xqueue/submit/ HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n{head}\r\n\r\n".encode())
        flood = Flood(client, piece)
        await until(lambda: client.lost, patience=20)
        self.assertLess(flood.sent, GIGABYTE // 50)
        self.assertLess(memory() - before, 20 * 1024 * 1024)
        self.assertEqual((await self.submit(cookie)).reply, (0, "1"))
        return client, flood

    async def test_announced_beyond_all_numbers(self) -> None:
        """A length of thousands of digits, which Python won't read, is refused without a traceback."""
        await self.start()
        client = await self.client()
        client.say(f"POST /xqueue/submit/ HTTP/1.1\r\nHost: a\r\nContent-Length: {'9' * 5000}\r\n\r\n".encode())
        await until(lambda: client.over, patience=10)
        self.assertEqual((await client.response()).status, 400)

    async def test_announced(self) -> None:
        """One that is announced is refused from its headers on."""
        kind = "Content-Type: multipart/form-data; boundary=b0undary"
        client, _ = await self.flood(f"{kind}\r\nContent-Length: {GIGABYTE}", b"x" * PIECE)
        self.assertTrue(client.received.startswith(b"HTTP/1.1 413 "))

    async def test_in_chunks(self) -> None:
        """One that isn't announced is cut off when it has passed the bound."""
        chunk = b"%x\r\n%s\r\n" % (PIECE, b"x" * PIECE)
        client, _ = await self.flood("Transfer-Encoding: chunked", chunk)
        self.assertTrue(client.received.startswith(b"HTTP/1.1 413 "))


class FormTests(GatewayTestCase):
    """Tests for forms that aren't what they seem."""

    async def test_a_header_of_100_kilobytes(self) -> None:
        """It has an invalid format."""
        await self.start()
        cookie = await self.log_in()
        for head in (header(more="x" * 100_000), "x" * 100_000, "[" * 60_000):
            response = await self.submit(cookie, xqueue_header=head)
            self.assertEqual((response.status, response.reply), (200, (1, "Queue request has invalid format")))
        self.assertEqual(self.publisher.published, [])

    async def test_malformed_multipart(self) -> None:
        """What can't be read as a form is a request with an invalid format, and the connection goes on."""
        await self.start(files_folder=self.mktemp(), files_url="http://h/files/")
        client, cookie = await self.client(), await self.log_in()
        good = multipart({"xqueue_header": header(), "xqueue_body": BODY}, {"a": b"1"})
        for body, kind in (
            (good, "multipart/form-data"),
            (good, "multipart/form-data; boundary=other"),
            (good[:-20], "multipart/form-data; boundary=b0undary"),
            (good.replace(b"form-data", b"attachment"), "multipart/form-data; boundary=b0undary"),
            (b"\r\n" * 1000, "multipart/form-data; boundary=b0undary"),
            (multipart({str(n): "" for n in range(2000)}, {}), "multipart/form-data; boundary=b0undary"),
            (good, "application/json"),
            (good, "\xff"),
            (b"&" * 50_000, FORM.partition(" ")[2]),
        ):
            headers = [f"Content-Type: {kind}", f"Cookie: {cookie}"]
            response = await self.ask("POST", "/xqueue/submit/", body, headers, client=client)
            self.assertEqual((response.status, response.reply), (200, (1, "Queue request has invalid format")), kind)
        self.assertEqual(self.publisher.published, [])

    async def test_hostile_hosts_and_paths(self) -> None:
        """Names of hosts and paths that upset a router upset nobody here."""
        await self.start()
        for host in ("x" * 300, "\xff\xfe", "a..b", "[::1", "a:b:c", "xn--\xff", ""):
            client = await self.client()
            client.say(f"GET /xqueue/status HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1"))
            response = await client.response()
            self.assertEqual((response.status, response.headers["location"]), (301, ["/xqueue/status/"]), host)
        for path in ("/%ff", "/xqueue/%c3%28/", "/files/%ff/%fe", "/" + "x" * 10_000, "/a?" + "&" * 9000):
            self.assertEqual((await self.ask("GET", path)).status, 404)
        self.assertEqual(self.flushLoggedErrors(), [])


class SilentTests(GatewayTestCase):
    """Tests for those who connect, and say nothing."""

    async def test_all_connections_taken(self) -> None:
        """However many connections somebody holds, an LMS gets in, uploads and is answered."""
        await self.start(files_folder=self.mktemp(), files_url="http://h/files/")
        held = [await self.client() for _ in range(MOST_CONNECTIONS + 20)]
        held[-1].say(b"POST /xqueue/submit/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
        cookie = await self.log_in()
        response = await self.submit(cookie, files={"a.txt": b"x" * 100_000})
        self.assertEqual(response.reply, (0, "1"))
        await until(lambda: sum(client.lost for client in held) >= 20)
        await gatherResults([Deferred.fromCoroutine(client.close()) for client in held])


class LoginTests(GatewayTestCase):
    """Tests for those who guess."""

    async def test_ten_thousand_logins(self) -> None:
        """Of 10,000 guesses over 20 connections ten are looked at; who comes from elsewhere gets in meanwhile."""
        await self.start(users={USER: str(PasswordHash.of(PASSWORD))})
        guess = urlencode({"username": USER, "password": "guess"}).encode()
        request = b"POST /xqueue/login/ HTTP/1.1\r\nHost: a\r\n%s\r\nContent-Length: %d\r\n\r\n%s"
        guesses = request % (FORM.encode(), len(guess), guess)
        statuses: list[int] = []

        async def try_often() -> None:
            client = await self.client()
            for _ in range(500):
                client.say(guesses)
                statuses.append((await client.response()).status)

        processor = time.process_time()
        trying = gatherResults([Deferred.fromCoroutine(try_often()) for _ in range(20)])
        await until(lambda: statuses.count(429) > 500)
        client = await Client.connect(self, self.port, source="127.0.0.2")
        login = await self.post("/xqueue/login/", {"username": USER, "password": PASSWORD}, client=client)
        self.assertEqual(login.reply, (0, "Logged in"))
        self.assertFalse(trying.called, "it came too late to tell anything")
        await trying
        self.assertEqual(len(statuses), 10_000)
        self.assertEqual(set(statuses), {200, 429})
        self.assertLessEqual(statuses.count(200), 10 + 20)
        self.assertLess(time.process_time() - processor, 40.0)

    async def test_told_when(self) -> None:
        """Who has to wait is told for how long, also with the right password now."""
        await self.start(login_failures=2)
        for _ in range(2):
            await self.post("/xqueue/login/", {"username": USER, "password": "x"})
        response = await self.post("/xqueue/login/", {"username": USER, "password": PASSWORD})
        self.assertEqual((response.status, response.headers["retry-after"]), (429, ["60"]))
        self.assertEqual(response.body, b'{"return_code": 1, "content": "Too many failed logins; try again in 60 s"}')

    async def test_sessions(self) -> None:
        """A forged or expired session, or another user's, is sent to log in."""
        await self.start()
        cookie = await self.log_in()
        other = cookie[:-1] + ("0" if cookie[-1] != "0" else "1")
        for forged in (cookie[:-1], other, "sessionid=", cookie.replace("bG1z", "cm9vdA==")):
            self.assertEqual((await self.submit(forged)).status, 302)
        self.now += 13 * 3600
        self.assertEqual((await self.submit(cookie)).status, 302)
        self.assertEqual(self.publisher.published, [])
