"""Kind ``http``, against servers that behave and servers that don't."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from ipaddress import ip_address
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from twisted.internet.defer import CancelledError, ensureDeferred
from twisted.internet.ssl import PrivateCertificate
from twisted.trial.unittest import SynchronousTestCase, TestCase

from edxagent.errors import BadReply, GraderCrashed, GraderError, GraderUnavailable
from edxagent.graders import http
from edxagent.model import GraderResponse
from edxagent.testing.graders import CORRECT, build, make_request, until
from edxagent.testing.http_server import (
    Behaviour,
    RogueServer,
    Visit,
    answering,
    resetting,
    response,
    saying,
    saying_and_closing,
    saying_for_ever,
    silent,
)
from edxagent.web.retry_after import retry_after_seconds

WHERE = "http://grader/"
HEAD = b"HTTP/1.1 200 OK\r\n"


class StatusTests(SynchronousTestCase):
    """``failure_of``, row by row."""

    def test_table(self) -> None:
        """Every status has its failure, and only 200 none."""
        rows: list[tuple[type[GraderError] | None, list[int]]] = [
            (None, [200]),
            (BadReply, [201, 202, 204, 206, 299]),
            (GraderCrashed, [400, 413, 422]),
            (GraderUnavailable, [300, 301, 302, 303, 307, 308]),
            (GraderUnavailable, [401, 402, 403, 404, 405, 406, 408, 409, 410, 411, 414, 415, 418, 421, 431, 451, 499]),
            (GraderUnavailable, [429, 500, 501, 502, 503, 504, 511, 599]),
            (GraderUnavailable, [0, 99, 600, 999]),
        ]
        for expected, statuses in rows:
            for status in statuses:
                failure = http.failure_of(status, None, WHERE)
                self.assertIs(None if failure is None else type(failure), expected, status)

    def test_words(self) -> None:
        """A failure names the place and the status, and a remedy where it's ours to mend."""
        self.assertIn("answered 302", str(http.failure_of(302, None, WHERE)))
        self.assertIn("mend [grader] url", str(http.failure_of(302, None, WHERE)))
        self.assertIn("password", str(http.failure_of(401, None, WHERE)))

    def test_retry_after(self) -> None:
        """A server that can't now is asked again when it says; one that is misconfigured isn't believed."""
        for status, expected in ((429, 7.0), (503, 7.0), (404, None)):
            failure = http.failure_of(status, 7.0, WHERE)
            assert isinstance(failure, GraderUnavailable)
            self.assertEqual(failure.retry_after, expected)


class RetryAfterTests(SynchronousTestCase):
    """``retry_after_seconds``."""

    def test_forms(self) -> None:
        """Seconds and dates are read; too long is an hour; a past date is now; nonsense is nothing."""
        now = datetime(2026, 7, 5, 12, 0, 0, tzinfo=timezone.utc)
        rows: list[tuple[str | None, float | None]] = [
            (None, None),
            ("0", 0.0),
            ("120", 120.0),
            (" 120 ", 120.0),
            ("86400", 3600.0),
            ("9" * 99, 3600.0),
            ("9" * 101, None),
            ("-5", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
            ("²", None),
            (format_datetime(now + timedelta(seconds=90), usegmt=True), 90.0),
            (format_datetime(now - timedelta(days=1), usegmt=True), 0.0),
            (format_datetime(now + timedelta(days=400), usegmt=True), 3600.0),
            ("Sun, 05 Jul 2026 12:01:30", 90.0),
            ("Sun, 99 Jul 2026 12:01:30 GMT", None),
        ]
        for value, expected in rows:
            self.assertEqual(retry_after_seconds(value, now.timestamp()), expected, value)


class ServerTests(TestCase):
    """What all tests here need: a server, and a grader that asks it."""

    def setUp(self) -> None:
        """Have the reactor."""
        from twisted.internet import reactor

        self.reactor: Any = reactor

    async def server(self, behaviour: Behaviour, context: Any = None) -> RogueServer:
        """A server, until the test ends."""
        server = RogueServer(behaviour)
        await server.start(self.reactor, context)
        self.addCleanup(server.stop)
        return server

    def grader(self, url: str, **options: Any) -> http.HTTPGrader:
        """A grader, until the test ends."""
        grader: http.HTTPGrader = build(http.factory, self.reactor, url=url, **options)
        grader.startService()
        self.addCleanup(grader.stopService)
        return grader

    async def failure(self, behaviour: Behaviour, **options: Any) -> GraderError:
        """How grading fails with such a server, which must find itself alone afterwards."""
        server = await self.server(behaviour)
        failure = await self.assertFailure(
            ensureDeferred(self.grader(server.url, **options).grade(make_request())), GraderError
        )
        await until(lambda: server.open == 0, "the connection to be closed", self.reactor)
        self.assertEqual(len(str(failure).splitlines()), 1)
        return failure  # type: ignore[no-any-return]


class ProtocolTests(ServerTests):
    """XQueue's push protocol."""

    async def test_request(self) -> None:
        """The request is XQueue's: both texts verbatim in a JSON object, and no Content-Type."""
        server = await self.server(answering(CORRECT))
        body, files = '{"student_response": "na\\u00efve"}', '{"hello.c": "http://files/1"}'
        answer = await self.grader(server.url).grade(make_request(body=body, files=files))
        self.assertEqual(answer, GraderResponse(reply=CORRECT))
        [asked] = server.asked
        self.assertEqual(asked.line, "POST /grade HTTP/1.1")
        self.assertEqual(json.loads(asked.body), {"xqueue_body": body, "xqueue_files": files})
        self.assertEqual(set(asked.headers), {"host", "user-agent", "content-length"})

    async def test_content_type(self) -> None:
        """A Content-Type is sent when there's one in the configuration."""
        server = await self.server(answering(CORRECT))
        await self.grader(server.url, content_type="application/json").grade(make_request())
        self.assertEqual(server.asked[0].headers["content-type"], "application/json")

    async def test_basic_authentication(self) -> None:
        """Name and password go into an Authorization header, and into no text for people."""
        server = await self.server(answering(b"", "401 Unauthorized"))
        grader = self.grader(server.url, username="xqueue", password="sesame")
        failure = await self.assertFailure(ensureDeferred(grader.grade(make_request())), GraderUnavailable)
        self.assertEqual(server.asked[0].headers["authorization"], "Basic " + b64encode(b"xqueue:sesame").decode())
        self.assertNotIn("sesame", f"{failure}{vars(grader)}")

    async def test_reply_is_not_judged(self) -> None:
        """A 200's body is passed on whatever it is; whether it's a verdict is decided elsewhere."""
        for body in (b"<html>oops</html>", b"", b"\xff\x00", b"[]"):
            server = await self.server(answering(body))
            self.assertEqual((await self.grader(server.url).grade(make_request())).reply, body)

    async def test_chunks(self) -> None:
        """A reply may come in chunks."""
        server = await self.server(saying(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"))
        self.assertEqual((await self.grader(server.url).grade(make_request())).reply, b"{}")

    async def test_end_of_connection(self) -> None:
        """A reply without length or chunks ends with the connection, as in HTTP/1.0."""
        server = await self.server(saying_and_closing(b"HTTP/1.0 200 OK\r\n\r\n" + CORRECT))
        self.assertEqual((await self.grader(server.url).grade(make_request())).reply, CORRECT)

    async def test_cookies(self) -> None:
        """A cookie isn't taken."""
        server = await self.server(answering(CORRECT, headers=["Set-Cookie: a=b"]))
        grader = self.grader(server.url)
        for _ in range(2):
            await grader.grade(make_request())
        self.assertNotIn("cookie", server.asked[1].headers)


class ConnectionTests(ServerTests):
    """Connections are kept, and their loss costs nobody anything."""

    async def test_kept(self) -> None:
        """Submissions one after the other share a connection."""
        server = await self.server(answering(CORRECT))
        grader = self.grader(server.url)
        for _ in range(5):
            await grader.grade(make_request())
        self.assertEqual(len(server.visits), 1)

    async def test_closed_meanwhile(self) -> None:
        """A server that closes the connection after each reply is asked on new ones."""
        server = await self.server(saying_and_closing(response(CORRECT)))
        grader = self.grader(server.url)
        for _ in range(5):
            self.assertEqual((await grader.grade(make_request())).reply, CORRECT)

    async def test_closed_on_arrival(self) -> None:
        """A kept connection that is closed just when the next request comes costs that one nothing."""

        def only_the_first(visit: Visit) -> None:
            if len(visit.asked) == 1:
                visit.send(response(CORRECT))
            else:
                visit.reset()

        server = await self.server(only_the_first)
        grader = self.grader(server.url)
        for _ in range(5):
            self.assertEqual((await grader.grade(make_request())).reply, CORRECT)

    async def test_asked_again_once_only(self) -> None:
        """A server that always closes is asked on one new connection, not over and over."""
        server = await self.server(answering(CORRECT))
        grader = self.grader(server.url)
        await grader.grade(make_request())
        server.behaviour = resetting
        await self.assertFailure(ensureDeferred(grader.grade(make_request())), GraderUnavailable)
        self.assertEqual(len(server.asked), 3)

    async def test_new_connection_is_not_retried(self) -> None:
        """A new connection that is closed without a word isn't tried again: the submission may have done that."""
        server = await self.server(resetting)
        await self.assertFailure(ensureDeferred(self.grader(server.url).grade(make_request())), GraderUnavailable)
        self.assertEqual(len(server.asked), 1)

    async def test_half_a_response_is_not_retried(self) -> None:
        """A kept connection that breaks amid a response isn't tried again: the submission was looked at."""
        server = await self.server(answering(CORRECT))
        grader = self.grader(server.url)
        await grader.grade(make_request())
        server.behaviour = saying_and_closing(b"HTTP/1.1 200")
        await self.assertFailure(ensureDeferred(grader.grade(make_request())), GraderUnavailable)
        self.assertEqual(len(server.asked), 2)

    async def test_stop(self) -> None:
        """Stopping closes the kept connections."""
        server = await self.server(answering(CORRECT))
        grader = self.grader(server.url)
        await grader.grade(make_request())
        await grader.stopService()
        await until(lambda: server.open == 0, "the connection to be closed", self.reactor)

    async def test_many(self) -> None:
        """As many connections are kept as there are slots."""
        server = await self.server(answering(CORRECT))
        grader = self.grader(server.url)
        for _ in range(3):
            work = [ensureDeferred(grader.grade(make_request())) for _ in range(10)]
            for each in work:
                await each
        self.assertEqual(len(server.visits), 10)


class TroubleTests(ServerTests):
    """Servers that don't behave: each ends in a named failure, and with its connection closed."""

    async def test_refused(self) -> None:
        """Nobody listens."""
        server = await self.server(silent)
        await server.stop()
        work = ensureDeferred(self.grader(server.url).grade(make_request()))
        failure = await self.assertFailure(work, GraderUnavailable)
        self.assertIn("refused", str(failure))

    async def test_unknown_host(self) -> None:
        """The host name can't be resolved."""
        work = ensureDeferred(self.grader("http://grader.invalid/").grade(make_request()))
        self.assertIn("grader.invalid", str(await self.assertFailure(work, GraderUnavailable)))

    async def test_reset(self) -> None:
        """The connection is reset at once."""
        self.assertIsInstance(await self.failure(resetting), GraderUnavailable)

    async def test_reset_in_the_middle(self) -> None:
        """The connection closes amid the body."""
        behaviour = saying_and_closing(HEAD + b'Content-Length: 1000\r\n\r\n{"correct"')
        self.assertIsInstance(await self.failure(behaviour), GraderUnavailable)

    async def test_statuses(self) -> None:
        """A status that isn't 200 has its failure, and its body isn't waited for."""
        for status, expected in (
            ("500 A", GraderUnavailable),
            ("404 B", GraderUnavailable),
            ("422 C", GraderCrashed),
        ):
            behaviour = saying_for_ever(f"HTTP/1.1 {status}\r\n\r\n".encode(), b"x" * 1000)
            self.assertIsInstance(await self.failure(behaviour), expected)

    async def test_redirect(self) -> None:
        """A redirect isn't followed."""
        other = await self.server(answering(CORRECT))
        failure = await self.failure(answering(b"", "307 Elsewhere", [f"Location: {other.url}"]))
        self.assertIsInstance(failure, GraderUnavailable)
        self.assertEqual(other.asked, [])

    async def test_nowhere(self) -> None:
        """An address of the new kind is understood; a host name that can't be one is our mistake."""
        for url in ("http://[::1]:1/", "http://no_host/", "http://a..b/"):
            work = ensureDeferred(self.grader(url).grade(make_request()))
            failure = await self.assertFailure(work, GraderUnavailable)
            self.assertIn("can't be reached", str(failure))

    async def test_busy(self) -> None:
        """A busy server's Retry-After is passed on."""
        failure = await self.failure(answering(b"", "429 Busy", ["Retry-After: 17"]))
        assert isinstance(failure, GraderUnavailable)
        self.assertEqual(failure.retry_after, 17.0)

    async def test_no_verdict(self) -> None:
        """A 204 is no verdict."""
        self.assertIsInstance(await self.failure(saying(b"HTTP/1.1 204 Nothing\r\n\r\n")), BadReply)

    async def test_too_long(self) -> None:
        """A body that is, or says that it is, longer than allowed isn't read; one that just fits is."""
        for behaviour in (
            answering(b"x" * 101),
            saying(HEAD + b"Content-Length: 999999999999\r\n\r\n"),
            saying_for_ever(HEAD + b"\r\n", b"x" * 1000),
            saying_for_ever(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        ):
            failure = await self.failure(behaviour, max_reply=100)
            self.assertIsInstance(failure, BadReply)
            self.assertIn("longer than 100 bytes", str(failure))
        server = await self.server(answering(b"x" * 100))
        self.assertEqual(len((await self.grader(server.url, max_reply=100).grade(make_request())).reply), 100)

    async def test_bomb(self) -> None:
        """A compressed body, which wasn't asked for, isn't unpacked."""
        bomb = answering(gzip.compress(b"x" * 10_000_000), headers=["Content-Encoding: gzip"])
        failure = await self.failure(bomb)
        self.assertIsInstance(failure, BadReply)
        self.assertIn("encoding", str(failure))

    async def test_broken_chunks(self) -> None:
        """A body in chunks that are none is a bad reply."""
        for chunk in (b"zz\r\n", b"-1\r\n", b"1" * 2000, b"2\r\n{}{}{}\r\n"):
            failure = await self.failure(saying(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk))
            self.assertIsInstance(failure, BadReply, chunk)

    async def test_no_http(self) -> None:
        """A server that speaks something else is our mistake."""
        for data in (
            b"SSH-2.0-OpenSSH_9.2p1\r\n",
            b"\x15\x03\x01\x00\x02\x02\x16\n",
            HEAD + b"no colon\r\n\r\n",
            HEAD + b"Content-Length: many\r\n\r\n",
            HEAD + b"Content-Length: -1\r\n\r\n",
            HEAD + b"Transfer-Encoding: carrier-pigeon\r\n\r\n",
        ):
            self.assertIsInstance(await self.failure(saying(data)), GraderUnavailable, data)

    async def test_endless_headers(self) -> None:
        """Headers without end are cut off."""
        for line in (b"X-More: " + b"x" * 1000 + b"\r\n", b" continued\r\n"):
            failure = await self.failure(saying_for_ever(HEAD + b"X-First: 1\r\n", line))
            self.assertIsInstance(failure, BadReply, line)
        await self.failure(saying_for_ever(HEAD + b"X-First: ", b"x" * 1000))

    async def test_endless_interim_responses(self) -> None:
        """A server that has us wait for ever is cut off too."""
        self.assertIsInstance(await self.failure(saying_for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n")), BadReply)

    async def test_cancelled(self) -> None:
        """Cancelling closes the connection, wherever the server had got to."""
        for behaviour in (silent, saying(b"HTTP/1."), saying(HEAD), saying(HEAD + b"Content-Length: 9\r\n\r\n{")):
            server = await self.server(behaviour)
            work = ensureDeferred(self.grader(server.url).grade(make_request(body="x" * 2**20)))
            await until(lambda server=server: bool(server.asked), "the request to arrive", self.reactor)  # type: ignore[misc]
            work.cancel()
            await self.assertFailure(work, CancelledError)
            await until(lambda server=server: server.open == 0, "the connection to be closed", self.reactor)  # type: ignore[misc]


class TLSTests(ServerTests):
    """Over ``https``."""

    def make_certificate(self, address: str) -> tuple[PrivateCertificate, str]:
        """A certificate for an address, and the name of a file with it."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "grader")])
        now = datetime.now(timezone.utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
            .public_bytes(Encoding.PEM)
        )
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        name = self.mktemp()
        with open(name, "wb") as file:
            file.write(certificate)
        return PrivateCertificate.loadPEM(certificate + secret), name

    async def test_trusted(self) -> None:
        """A certificate from a trusted authority, for that host, will do; its connection is kept too."""
        certificate, file = self.make_certificate("127.0.0.1")
        server = await self.server(answering(CORRECT), certificate.options())
        grader = self.grader(server.url, ca_file=file)
        for _ in range(2):
            self.assertEqual((await grader.grade(make_request())).reply, CORRECT)
        self.assertEqual(len(server.visits), 1)

    async def test_untrusted(self) -> None:
        """A certificate from an unknown authority, or for another host, won't."""
        certificate, _ = self.make_certificate("127.0.0.1")
        other, other_file = self.make_certificate("192.0.2.1")
        for context, ca_file in ((certificate, ""), (other, other_file)):
            server = await self.server(answering(CORRECT), context.options())
            work = ensureDeferred(self.grader(server.url, ca_file=ca_file).grade(make_request()))
            await self.assertFailure(work, GraderUnavailable)
            self.assertEqual(server.asked, [])

    async def test_endless(self) -> None:
        """An endless body is cut off, also where closing politely would mean to wait for the other side."""
        certificate, file = self.make_certificate("127.0.0.1")
        server = await self.server(saying_for_ever(HEAD + b"\r\n", b"x" * 1000), certificate.options())
        await self.assertFailure(ensureDeferred(self.grader(server.url, ca_file=file).grade(make_request())), BadReply)
        await until(lambda: server.open == 0, "the connection to be closed", self.reactor)
