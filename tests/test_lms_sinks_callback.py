"""Verdicts posted to an LMS, by real requests to servers that behave and servers that don't."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from twisted.internet.defer import Deferred
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from edxagent.errors import SinkError, SinkRefused, SinkUnavailable
from edxagent.interfaces import SinkTools
from edxagent.lms.sinks.callback import LONGEST_BODY, NOBODY, CallbackSink, factory, failure_of, origins
from edxagent.model import CheckedResult, Verdict
from edxagent.testing.http_server import (
    RogueServer,
    Visit,
    answering,
    resetting,
    response,
    saying,
    saying_for_ever,
    silent,
)
from edxagent.testing.sinks import (
    SECRET,
    FailingSinkContractTests,
    SinkContractTests,
    SlowSinkContractTests,
    make_result,
)
from tests.certificates import Authority

PATH = "/courses/course-v1:O+C+R/xqueue/7/block-v1:O+C+R+type@problem+block@abc/score_update"
EMPTY = answering(b"")


def build(hosts: str, reactor: Any, **options: Any) -> CallbackSink:
    """The factory's sink."""
    defaults = {key.name: key.default for key in factory.keys}
    tools = SinkTools(name="lms", reactor=reactor, concurrency=10, wall_clock=lambda: 0.0)
    return factory.build({**defaults, "hosts": origins(hosts), **options}, tools)


def result_for(url: str, **changes: Any) -> CheckedResult:
    """A result whose header names that address."""
    return make_result(header=json.dumps({"lms_callback_url": url, "lms_key": SECRET}), **changes)


class FailureTests(SynchronousTestCase):
    """``failure_of``."""

    def test_table(self) -> None:
        """Each status is a failure that heals, or one that doesn't; only a 200 is none."""
        for status in range(100, 600):
            failure = failure_of(status, 7.0, "http://lms")
            if status == 200:
                self.assertIsNone(failure)
            elif 300 <= status < 400 or status in (400, 404, 405, 406, 409, 410, 411, 413, 414, 415, 422, 431):
                self.assertIsInstance(failure, SinkRefused)
            else:
                self.assertIsInstance(failure, SinkUnavailable)
            if failure is not None:
                self.assertIn(f"http://lms answered {status}", str(failure))

    def test_retry_after(self) -> None:
        """What it asks us to wait is passed on."""
        failure = failure_of(503, 7.0, "http://lms")
        assert isinstance(failure, SinkUnavailable)
        self.assertEqual(failure.retry_after, 7.0)


class OptionsTests(SynchronousTestCase):
    """What may be configured."""

    def test_hosts(self) -> None:
        """Several origins, in any form, are read; others are refused with an example."""
        self.assertEqual(
            origins("https://LMS.example.org:443\n http://lms:8000/, http://[::1]"),
            {"https://lms.example.org", "http://lms:8000", "http://[::1]"},
        )
        for value in ("", " ", "lms", "https://lms/path", "*", "https://u:p@lms"):
            self.assertIn("such as https://lms.example.org", str(self.assertRaises(ValueError, origins, value)))

    def test_password_alone(self) -> None:
        """A password without a name is refused, and not repeated."""
        error = self.assertRaises(ValueError, build, "http://lms", MemoryReactorClock(), password="sesame")
        self.assertIn("username is missing", str(error))
        self.assertNotIn("sesame", str(error))

    def test_keys(self) -> None:
        """The allow-list must be given; the password is a secret."""
        self.assertEqual([key.name for key in factory.keys if key.secret], ["password"])
        self.assertTrue(all(key.help for key in factory.keys))


class TargetTests(SynchronousTestCase):
    """Whom a result is for, and whom we never ask."""

    def setUp(self) -> None:
        """A sink that can't reach anybody."""
        self.reactor = MemoryReactorClock()
        self.sink = build("https://lms.example.org http://127.0.0.1:8000", self.reactor)

    def test_origin(self) -> None:
        """The target is the LMS's origin, without path or key."""
        self.assertEqual(self.sink.target(result_for(f"https://LMS.example.org{PATH}")), "https://lms.example.org")

    def test_other_producers(self) -> None:
        """What another program has published is for the callback too; what a bridge fetched isn't."""
        self.assertEqual(
            self.sink.target(result_for("https://lms.example.org/x", origin=None)), "https://lms.example.org"
        )
        self.assertIsNone(self.sink.target(result_for("https://lms.example.org/x", origin="bridge:a")))

    def test_refused(self) -> None:
        """Nobody but a listed origin is asked; the reason names the host and neither path nor key."""
        for url, named in {
            f"http://localhost:8000{PATH}": "http://localhost:8000",
            f"http://127.0.0.1{PATH}": "http://127.0.0.1",
            f"http://127.0.0.1:8001{PATH}": "http://127.0.0.1:8001",
            f"https://127.0.0.1:8000{PATH}": "https://127.0.0.1:8000",
            f"http://[::1]:8000{PATH}": "http://[::1]:8000",
            f"http://0.0.0.0:8000{PATH}": "http://0.0.0.0:8000",
            f"http://2130706433:8000{PATH}": "http://2130706433:8000",
            "http://169.254.169.254/latest/meta-data/score_update": "http://169.254.169.254",
            f"http://lms.example.org{PATH}": "http://lms.example.org",
            f"https://lms.example.org.evil.example{PATH}": "https://lms.example.org.evil.example",
            f"https://evil-lms.example.org{PATH}": "https://evil-lms.example.org",
            f"https://lms.example.org.{PATH}": "https://lms.example.org.",
            f"https://lms.example.org@evil.example{PATH}": "credentials",
            f"https://u:p@lms.example.org{PATH}": "credentials",
            f"https://lms.example.org{PATH}#x": "fragment",
            f"ftp://lms.example.org{PATH}": "http or https",
            f"https://ｌms.example.org{PATH}": "no name of a host",
            "nonsense": "no plain web address",
        }.items():
            result = result_for(url)
            self.assertEqual(
                self.sink.target(result), NOBODY, "the number of targets must not be the submitters' to choose"
            )
            error = self.failureResultOf(Deferred.fromCoroutine(self.sink.deliver(result)), SinkRefused).value
            self.assertIn(named, str(error))
            self.assertNotIn("score_update", str(error))
            self.assertNotIn(SECRET, str(error))
        self.assertEqual((self.reactor.tcpClients, self.reactor.sslClients), ([], []))

    def test_unreadable(self) -> None:
        """A header that can't be read is refused, not left to nobody."""
        for header in ("", "{}", "[" * 9000, "x" * 100_000):
            result = make_result(header=header)
            self.assertEqual(self.sink.target(result), NOBODY)
            self.failureResultOf(Deferred.fromCoroutine(self.sink.deliver(result)), SinkRefused)


class CallbackTests(TestCase):
    """Against a real server."""

    timeout = 60.0

    async def setUp(self) -> None:
        """A server that takes everything."""
        self.server = await self.serve(EMPTY)

    async def serve(self, behaviour: Any, context: Any = None) -> RogueServer:
        """A server, for the length of the test."""
        from twisted.internet import reactor

        server = RogueServer(behaviour)
        await server.start(reactor, context)
        self.addCleanup(server.stop)
        return server

    def sink(self, server: RogueServer, **options: Any) -> CallbackSink:
        """A sink that may post to it."""
        from twisted.internet import reactor

        sink = build(server.url.removesuffix("/grade"), reactor, **options)
        sink.startService()
        self.addCleanup(sink.stopService)
        return sink

    def to(self, server: RogueServer, **changes: Any) -> CheckedResult:
        """A result for it."""
        return result_for(server.url.removesuffix("/grade") + PATH, **changes)

    async def failure_of(self, behaviour: Any, **options: Any) -> SinkError:
        """What the sink makes of a server's behaviour; one line that names the server, and neither path nor key."""
        self.server.behaviour = behaviour
        try:
            await self.sink(self.server, **options).deliver(self.to(self.server))
        except SinkError as error:
            self.assertEqual(len(str(error).splitlines()), 1)
            self.assertIn(self.server.url.removesuffix("/grade"), str(error))
            self.assertNotIn("score_update", str(error))
            self.assertNotIn(SECRET, str(error))
            return error
        raise AssertionError("it was delivered")

    async def test_request(self) -> None:
        """The LMS gets the header as it wrote it, and the verdict as JSON text, in a form; the path is untouched."""
        result = self.to(self.server, verdict=Verdict(correct=True, score=0.5, msg="<p>naïve & 数学 +</p>"))
        await self.sink(self.server).deliver(result)
        asked = self.server.asked[0]
        self.assertEqual(asked.line, f"POST {PATH} HTTP/1.1")
        self.assertEqual(asked.headers["content-type"], "application/x-www-form-urlencoded")
        self.assertNotIn("authorization", asked.headers)
        form = parse_qs(asked.body.decode("ascii"), strict_parsing=True)
        self.assertEqual(form.keys(), {"xqueue_header", "xqueue_body"})
        self.assertEqual(form["xqueue_header"], [result.header])
        self.assertEqual(
            json.loads(form["xqueue_body"][0]), {"correct": True, "score": 0.5, "msg": "<p>naïve & 数学 +</p>"}
        )

    async def test_password(self) -> None:
        """A proxy in front gets its name and password."""
        await self.sink(self.server, username="mé", password="sésame").deliver(self.to(self.server))
        scheme, _, token = self.server.asked[0].headers["authorization"].partition(" ")
        self.assertEqual((scheme, base64.b64decode(token).decode()), ("Basic", "mé:sésame"))

    async def test_statuses(self) -> None:
        """An LMS that is down or lets nobody in is tried again; one that won't have this verdict isn't."""
        for status, expected in {
            "500 Oops": SinkUnavailable,
            "502 Bad Gateway": SinkUnavailable,
            "401 Unauthorized": SinkUnavailable,
            "403 Forbidden": SinkUnavailable,
            "204 No Content": SinkUnavailable,
            "404 Not Found": SinkRefused,
            "400 Bad Request": SinkRefused,
        }.items():
            self.assertIsInstance(await self.failure_of(answering(b"<p>no</p>", status)), expected, status)

    async def test_redirect(self) -> None:
        """A redirect isn't followed, also not to a listed host; the remedy is told."""
        other = await self.serve(EMPTY)
        for status in ("301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"):
            for target in (other.url, self.server.url, "http://169.254.169.254/"):
                failure = await self.failure_of(answering(b"", status, [f"Location: {target}"]))
                self.assertIsInstance(failure, SinkRefused)
                self.assertIn("callback_url", str(failure))
        self.assertEqual(other.asked, [])
        self.assertEqual({asked.line.split()[1] for asked in self.server.asked}, {PATH})

    async def test_page(self) -> None:
        """A 200 with a page isn't the LMS's: it is tried again."""
        for page in (b"<!DOCTYPE html><title>Maintenance</title>", b"ok", b"{}"):
            failure = await self.failure_of(answering(page, headers=["Content-Type: text/html"]))
            self.assertIsInstance(failure, SinkUnavailable)
            self.assertIn("maintenance", str(failure))

    async def test_blank(self) -> None:
        """Blanks are nothing."""
        self.server.behaviour = answering(b"\r\n")
        await self.sink(self.server).deliver(self.to(self.server))

    async def test_huge(self) -> None:
        """An endless page isn't read to its end."""
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        endless = saying_for_ever(head, b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        self.assertIsInstance(await self.failure_of(endless), SinkUnavailable)
        announced = saying(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (LONGEST_BODY + 1))
        self.assertIsInstance(await self.failure_of(announced), SinkUnavailable)

    async def test_slow(self) -> None:
        """Within the deadline a slow LMS is waited for, beyond it not."""
        from twisted.internet import reactor

        def slowly(visit: Visit) -> None:
            reactor.callLater(0.5, visit.send, response(b""))  # type: ignore[attr-defined]

        self.server.behaviour = slowly
        await self.sink(self.server, timeout=10.0).deliver(self.to(self.server))
        failure = await self.failure_of(silent, timeout=0.3)
        self.assertIsInstance(failure, SinkUnavailable)
        self.assertIn("didn't answer within 0.3 s", str(failure))

    async def test_drip(self) -> None:
        """The deadline is for the whole, not for each packet."""
        dripping = saying_for_ever(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n", b"")
        self.assertIsInstance(await self.failure_of(dripping, timeout=0.3), SinkUnavailable)

    async def test_broken(self) -> None:
        """A server that hangs up or talks nonsense is tried again."""
        for behaviour in (resetting, saying(b"220 mail.example.org ESMTP\r\n\r\n")):
            self.assertIsInstance(await self.failure_of(behaviour), SinkUnavailable)

    async def test_refused_connection(self) -> None:
        """So is one that isn't there."""
        await self.server.stop()
        self.assertIsInstance(await self.failure_of(EMPTY), SinkUnavailable)

    async def test_tls(self) -> None:
        """Over https the certificate must be right."""
        folder = Path(self.mktemp())
        folder.mkdir()
        authority = Authority(folder / "ca")
        pair = authority.issue(folder / "server", "127.0.0.1")
        server = await self.serve(EMPTY, DefaultOpenSSLContextFactory(pair.key, pair.certificate))
        await self.sink(server, ca_file=authority.path).deliver(self.to(server))
        self.assertEqual(len(server.asked), 1)
        stranger = Authority(folder / "other")
        for ca_file in ("", stranger.path):
            try:
                await self.sink(server, ca_file=ca_file).deliver(self.to(server))
            except SinkUnavailable as error:
                self.assertIn("certificate", str(error))
            else:
                raise AssertionError("it was delivered")
        self.assertEqual(len(server.asked), 1, "nothing is told to a stranger")


class CallbackContractTests(SinkContractTests, SlowSinkContractTests, FailingSinkContractTests, TestCase):
    """What every sink must hold to."""

    timeout = 60.0

    async def setUp(self) -> None:
        """Servers that take everything, and nothing."""
        self.servers = {}
        for name, behaviour in (("taking", EMPTY), ("silent", silent), ("down", answering(b"", "503 Down"))):
            server = self.servers[name] = RogueServer(behaviour)
            await server.start(self.reactor)
            self.addCleanup(server.stop)
        self.server = self.servers["taking"]

    def sink_for(self, name: str) -> Any:
        """A sink for one of the servers, which results are for from now on."""
        self.server = self.servers[name]
        return build(self.server.url.removesuffix("/grade"), self.reactor)

    def make_result(self, submission: str, **changes: Any) -> CheckedResult:
        """See the suite."""
        return result_for(self.server.url.removesuffix("/grade") + PATH, submission=submission, **changes)

    def make_sink(self) -> Any:
        """See the suite."""
        return self.sink_for("taking")

    def make_slow_sink(self) -> Any:
        """See the suite."""
        self.seen = len(self.servers["silent"].asked)
        return self.sink_for("silent")

    def is_under_way(self) -> bool:
        """See the suite."""
        return len(self.servers["silent"].asked) >= self.seen + 5

    def make_failing_sinks(self) -> Any:
        """See the suite."""
        yield self.sink_for("down"), SinkUnavailable
        yield build("http://elsewhere", self.reactor), SinkRefused

    def make_foreign_results(self) -> Any:
        """See the suite."""
        return [self.make_result("submission-1", origin="bridge:a")]
