"""Files that a submission names, fetched from servers that behave and servers that don't."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.ssl import Certificate, PrivateCertificate, trustRootFromCertificates
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import BrowserLikePolicyForHTTPS

from edxagent.errors import GraderError, GraderUnavailable, MalformedSubmission
from edxagent.graders import command
from edxagent.graders.files import FileFetcher, FileRules, failure_of
from edxagent.testing.graders import build, make_request, until
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
from edxagent.web.exchange import Answer, Ask, Exchanges
from tests.certificates import Authority

HEAD = b"HTTP/1.1 200 OK\r\n"
SECRET = "Signature=secret"


class FailureOfTests(SynchronousTestCase):
    """``failure_of``, row by row."""

    def test_table(self) -> None:
        """Only a 200 is a file; only a 404 and a 410 say that there is none."""
        for status, expected in (
            *((200, type(None)), (404, MalformedSubmission), (410, MalformedSubmission)),
            *(
                (status, GraderUnavailable)
                for status in (201, 204, 206, 301, 302, 307, 400, 401, 403, 408, 429, 500, 503)
            ),
        ):
            self.assertIs(type(failure_of(Answer(status=status, retry_after=7.0), "x")), expected, status)

    def test_retry_after(self) -> None:
        """A busy server's Retry-After is passed on."""
        failure = failure_of(Answer(status=503, retry_after=7.0), "file 1 of 1: a:80")
        assert isinstance(failure, GraderUnavailable)
        self.assertEqual((str(failure), failure.retry_after), ("file 1 of 1: a:80 answered 503", 7.0))


def by_name(files: Mapping[str, bytes]) -> Behaviour:
    """A behaviour: the file that was asked for, whatever the query; or a 404."""

    def behave(visit: Visit) -> None:
        name = visit.asked[-1].line.split()[1].partition("?")[0].lstrip("/")
        visit.send(response(files[name]) if name in files else response(b"no", "404 Not Found"))

    return behave


class FileTests(TestCase):
    """What all tests here need: servers, and folders."""

    def setUp(self) -> None:
        """Have the reactor and a folder."""
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.base = os.path.abspath(self.mktemp())
        os.mkdir(self.base, 0o700)

    async def server(self, behaviour: Behaviour, context: Any = None) -> RogueServer:
        """A server, until the test ends."""
        server = RogueServer(behaviour)
        await server.start(self.reactor, context)
        self.addCleanup(server.stop)
        return server

    def host(self, server: RogueServer) -> str:
        """Its ``host:port``."""
        return server.url.split("/")[2]

    def address(self, server: RogueServer, name: str = "a.c") -> str:
        """Where a file of it is."""
        return f"{server.url.rpartition('/')[0]}/{name}?{SECRET}"


class FileFetcherTests(FileTests):
    """``FileFetcher``."""

    def fetcher(self, *servers: RogueServer, policy: Any = None, **rules: Any) -> FileFetcher:
        """One that may ask these servers, until the test ends."""
        hosts = tuple(self.host(server) for server in servers)
        standard = FileRules(hosts=hosts, most=20, size=10_000, timeout=60.0)
        exchanges = Exchanges(
            policy=policy or BrowserLikePolicyForHTTPS(), connect_timeout=5.0, kept=10, reactor=self.reactor
        )
        fetcher = FileFetcher(evolve(standard, **rules), exchanges, self.reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(fetcher.close()))
        return fetcher

    def fetch(self, fetcher: FileFetcher, files: Mapping[str, str]) -> Deferred[dict[str, str]]:
        """Start to fetch files."""
        return ensureDeferred(fetcher.fetch(json.dumps(files), self.base))

    async def failure(self, fetcher: FileFetcher, files: Mapping[str, str]) -> GraderError:
        """How fetching fails: told in one line, without what only the servers should see, and every file closed."""
        failure = await self.assertFailure(self.fetch(fetcher, files), GraderError)
        self.assertEqual(len(str(failure).splitlines()), 1)
        self.assertNotIn("secret", str(failure))
        self.assertNotIn("a.c", str(failure))
        self.assertEqual(self.open_files(), [])
        return failure  # type: ignore[no-any-return]

    async def failure_with(self, behaviour: Behaviour, **rules: Any) -> GraderError:
        """How fetching a file from such a server fails; it must find itself alone afterwards."""
        server = await self.server(behaviour)
        failure = await self.failure(self.fetcher(server, **rules), {"a.c": self.address(server)})
        await until(lambda: server.open == 0, "the connection to be closed", self.reactor)
        return failure

    def kept(self) -> dict[str, bytes]:
        """The files that were fetched."""
        found = {}
        for name in os.listdir(f"{self.base}/files"):
            with open(f"{self.base}/files/{name}", "rb") as file:
                found[name] = file.read()
        return found

    async def test_good(self) -> None:
        """Files are fetched, one after the other over one connection, and kept for our user only."""
        content = {"a.c": b"int main;", "empty": b"", "all": bytes(range(256))}
        server = await self.server(by_name(content))
        fetched = await self.fetch(self.fetcher(server), {name: self.address(server, name) for name in content})
        self.assertEqual(fetched, {name: f"files/{name}" for name in content})
        self.assertEqual(self.kept(), content)
        self.assertEqual(server.asked[0].line, f"GET /a.c?{SECRET} HTTP/1.1")
        self.assertEqual(len(server.visits), 1)
        self.assertEqual(stat.S_IMODE(os.stat(f"{self.base}/files").st_mode), 0o700)
        self.assertEqual(stat.S_IMODE(os.stat(f"{self.base}/files/a.c").st_mode), 0o600)

    async def test_headers(self) -> None:
        """A server learns nothing about us: no cookie, no encoding, no credentials."""
        server = await self.server(answering(b"x", headers=["Set-Cookie: a=b"]))
        await self.fetch(self.fetcher(server), {"1": self.address(server), "2": self.address(server)})
        for asked in server.asked:
            self.assertEqual(set(asked.headers), {"host", "user-agent"})

    async def test_none(self) -> None:
        """A submission without files leaves no folder."""
        self.assertEqual(await self.fetch(self.fetcher(), {}), {})
        self.assertEqual(os.listdir(self.base), [])

    async def test_names(self) -> None:
        """Names that climb, clash or aren't ASCII become safe ones."""
        files = {"../../a.c": b"1", "b/a.c": b"2", "a.c": b"3", "naïve 数.c": b"4", ".profile": b"5"}
        server = await self.server(by_name({str(number): content for number, content in enumerate(files.values())}))
        addresses = {name: self.address(server, str(number)) for number, name in enumerate(files)}
        self.assertEqual(
            await self.fetch(self.fetcher(server), addresses),
            {
                "../../a.c": "files/a.c",
                "b/a.c": "files/a-2.c",
                "a.c": "files/a-3.c",
                "naïve 数.c": "files/na_ve__.c",
                ".profile": "files/profile",
            },
        )
        expected = {"a.c": b"1", "a-2.c": b"2", "a-3.c": b"3", "na_ve__.c": b"4", "profile": b"5"}
        self.assertEqual(self.kept(), expected)
        self.assertEqual(os.listdir(self.base), ["files"])

    async def test_address_without_ascii(self) -> None:
        """An address that isn't ASCII is asked for as browsers do."""
        server = await self.server(by_name({"n%C3%A9": b"x"}))
        await self.fetch(self.fetcher(server), {"a": self.address(server, "né")})
        self.assertEqual(self.kept(), {"a": b"x"})

    async def test_missing(self) -> None:
        """A file that isn't there is the submission's fault; which one is told by its number."""
        server = await self.server(by_name({"1": b"x"}))
        files = {"b": self.address(server, "1"), "a.c": self.address(server, "2")}
        failure = await self.failure(self.fetcher(server), files)
        self.assertIsInstance(failure, MalformedSubmission)
        self.assertEqual(str(failure), f"file 2 of 2: {self.host(server)} answered 404: the file isn't there")

    async def test_broken_servers(self) -> None:
        """A server that is broken, gone or gibbering is nobody's fault."""
        for behaviour in (
            answering(b"x", "500 Oops"),
            answering(b"x", "403 No"),
            answering(b"x", "206 Half"),
            resetting,
            saying_and_closing(b""),
            saying_and_closing(HEAD + b"Content-Length: 9\r\n\r\nx"),
            saying_and_closing(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"),
            saying(b"SSH-2.0-OpenSSH_9.2p1\r\n"),
            saying(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
            saying(HEAD + b"Content-Encoding: gzip\r\nContent-Length: 9\r\n\r\n"),
            saying_for_ever(HEAD, b"X-More: x\r\n"),
        ):
            self.base = os.path.abspath(self.mktemp())
            os.mkdir(self.base)
            self.assertIsInstance(await self.failure_with(behaviour), GraderUnavailable)

    async def test_nobody_there(self) -> None:
        """So is one that isn't there at all."""
        server = await self.server(silent)
        fetcher, address = self.fetcher(server), self.address(server)
        await server.stop()
        self.assertIsInstance(await self.failure(fetcher, {"a.c": address}), GraderUnavailable)

    async def test_redirect(self) -> None:
        """A redirect isn't followed, not even to a host that is allowed."""
        other = await self.server(answering(b"x"))
        server = await self.server(answering(b"", "302 Elsewhere", [f"Location: {self.address(other)}"]))
        failure = await self.failure(self.fetcher(server, other), {"a.c": self.address(server)})
        self.assertIsInstance(failure, GraderUnavailable)
        self.assertEqual(other.visits, [])

    async def test_other_host(self) -> None:
        """A host that isn't allowed isn't asked, and nor is any other for that submission."""
        allowed, other = await self.server(answering(b"x")), await self.server(answering(b"x"))
        files = {"b": self.address(allowed), "a.c": self.address(other)}
        failure = await self.failure(self.fetcher(allowed), files)
        self.assertIsInstance(failure, MalformedSubmission)
        self.assertIn(f"file 2 of 2: its host {self.host(other)} isn't one of", str(failure))
        self.assertEqual(allowed.visits + other.visits, [])

    async def test_too_many(self) -> None:
        """Of a hundred files none is fetched."""
        server = await self.server(answering(b"x"))
        files = {f"{number}": self.address(server) for number in range(100)}
        failure = await self.failure(self.fetcher(server), files)
        self.assertIsInstance(failure, MalformedSubmission)
        self.assertEqual(server.visits, [])

    async def test_too_long(self) -> None:
        """A file that is, or says that it is, longer than allowed is cut off; no more than allowed is kept."""
        for behaviour in (
            answering(b"x" * 10_001),
            saying(HEAD + b"Content-Length: 10001\r\n\r\n"),
            saying_for_ever(HEAD + b"\r\n", b"x" * 1000),
            saying_for_ever(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        ):
            self.base = os.path.abspath(self.mktemp())
            os.mkdir(self.base)
            failure = await self.failure_with(behaviour)
            self.assertIsInstance(failure, MalformedSubmission)
            self.assertEqual(str(failure), "file 1 of 1 is too long: [grader] max_file_size allows 10000 bytes in all")
            self.assertLessEqual(len(self.kept()["a.c"]), 10_000)

    async def test_too_long_together(self) -> None:
        """The limit is for all files together: what just fits is kept, one byte more isn't."""
        server = await self.server(by_name({"1": b"x" * 4000, "2": b"x" * 6000, "3": b"x"}))
        files = {name: self.address(server, name) for name in "12"}
        await self.fetch(self.fetcher(server), files)
        self.base = os.path.abspath(self.mktemp())
        os.mkdir(self.base)
        failure = await self.failure(self.fetcher(server), {**files, "3": self.address(server, "3")})
        self.assertIn("file 3 of 3 is too long", str(failure))

    async def test_stalled(self) -> None:
        """A server that takes too long is given up."""
        for behaviour in (silent, saying(HEAD + b"Content-Length: 9\r\n\r\nx")):
            self.base = os.path.abspath(self.mktemp())
            os.mkdir(self.base)
            failure = await self.failure_with(behaviour, timeout=0.1)
            self.assertIsInstance(failure, GraderUnavailable)
            self.assertEqual(str(failure), "its files took longer than 0.1 s to fetch")

    async def test_cancelled(self) -> None:
        """Cancelling closes the connection and the file, wherever the server had got to."""
        for behaviour in (silent, saying(HEAD), saying(HEAD + b"Content-Length: 9\r\n\r\nx")):
            self.base = os.path.abspath(self.mktemp())
            os.mkdir(self.base)
            server = await self.server(behaviour)
            work = self.fetch(self.fetcher(server), {"a.c": self.address(server), "b.c": self.address(server)})
            await until(lambda server=server: bool(server.asked), "the request to arrive", self.reactor)  # type: ignore[misc]
            work.cancel()
            await self.assertFailure(work, CancelledError)
            await until(lambda server=server: server.open == 0, "the connection to be closed", self.reactor)  # type: ignore[misc]
            self.assertEqual(self.open_files(), [])
            self.assertEqual(len(server.asked), 1)

    def open_files(self) -> list[str]:
        """What is open in our folder."""
        links = []
        for name in os.listdir("/proc/self/fd"):
            try:
                links.append(os.readlink(f"/proc/self/fd/{name}"))
            except OSError:  # the one that listed them
                continue
        return [link for link in links if link.startswith(self.base)]

    async def test_link_in_the_way(self) -> None:
        """What lies in the way is neither followed nor overwritten, and our fault."""
        server = await self.server(answering(b"x"))
        outside = os.path.abspath(self.mktemp())
        os.mkdir(outside)
        os.symlink(outside, f"{self.base}/files")
        failure = await self.failure(self.fetcher(server), {"a.c": self.address(server)})
        self.assertIsInstance(failure, GraderUnavailable)
        self.assertIn("mend [grader] work_dir", str(failure))
        self.assertEqual(os.listdir(outside), [])

    async def test_full_disk(self) -> None:
        """What goes wrong when a piece is written ends the request at once."""

        def write(data: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        server = await self.server(saying_for_ever(HEAD + b"\r\n", b"x"))
        exchanges = Exchanges(policy=BrowserLikePolicyForHTTPS(), connect_timeout=5.0, kept=10, reactor=self.reactor)
        ask = Ask(method="GET", url=server.url, headers={}, longest=10**9)
        failure = await self.assertFailure(ensureDeferred(exchanges.ask(ask, write)), OSError)
        self.assertEqual(failure.errno, errno.ENOSPC)
        await until(lambda: server.open == 0, "the connection to be closed", self.reactor)

    async def test_tls(self) -> None:
        """Over https the certificate must be a trusted authority's, for that host."""
        folder = Path(self.base)
        ours, other = Authority(folder / "ours"), Authority(folder / "other")
        policy = BrowserLikePolicyForHTTPS(trustRootFromCertificates([Certificate.loadPEM(_bytes(ours.path))]))
        for number, (authority, name, expected) in enumerate(
            ((ours, "127.0.0.1", dict), (ours, "192.0.2.1", GraderUnavailable), (other, "127.0.0.1", GraderUnavailable))
        ):
            pair = authority.issue(folder / f"server-{number}", name)
            context = PrivateCertificate.loadPEM(_bytes(pair.certificate) + _bytes(pair.key)).options()
            server = await self.server(answering(b"x"), context)
            work = self.fetch(self.fetcher(server, policy=policy), {"a.c": self.address(server)})
            result = await work.addErrback(lambda failure: failure.value)
            self.assertIsInstance(result, expected)
            self.assertEqual(len(server.asked), int(expected is dict))


def _bytes(path: str) -> bytes:
    return Path(path).read_bytes()


class CommandTests(FileTests):
    """Kind ``command`` with files."""

    def grader(self, server: RogueServer, script: str, **options: Any) -> command.CommandGrader:
        """A grader that runs a shell script, until the test ends."""
        grader: command.CommandGrader = build(
            command.factory,
            self.reactor,
            command=("/bin/sh", "-c", script),
            work_dir=self.base,
            **{"file_hosts": (self.host(server),), **options},
        )
        grader.startService()
        self.addCleanup(grader.stopService)
        return grader

    async def until_clean(self) -> None:
        """Wait until no working folder is left."""
        await until(
            lambda: not any(os.listdir(f"{self.base}/{run}") for run in os.listdir(self.base)),
            "working folders to go",
            self.reactor,
        )

    async def test_graded(self) -> None:
        """A program finds the files in its folder, and their places on standard input; all is gone afterwards."""
        server = await self.server(by_name({"a": b"int main;", "b": b"second"}))
        files = json.dumps({"../main.c": self.address(server, "a"), "main.c": self.address(server, "b")})
        grader = self.grader(server, "{ cat; cat files/main.c files/main-2.c; ls -A . files; } >&3")
        reply = (await grader.grade(make_request(files=files))).reply.decode()
        line, _, rest = reply.partition("\n")
        document = json.loads(line)
        self.assertEqual(document["files"], {"../main.c": "files/main.c", "main.c": "files/main-2.c"})
        self.assertEqual(document["xqueue_files"], files)
        self.assertEqual(rest, "int main;second.:\nfiles\n\nfiles:\nmain-2.c\nmain.c\n")
        await self.until_clean()

    async def test_not_wanted(self) -> None:
        """Without hosts nothing is fetched, or even read: the program gets the text."""
        server = await self.server(answering(b"x"))
        grader = self.grader(server, "{ cat; ls; } >&3", file_hosts=())
        for files in (json.dumps({"a": self.address(server)}), "no JSON"):
            document = json.loads((await grader.grade(make_request(files=files))).reply)
            self.assertEqual((document["files"], document["xqueue_files"]), ({}, files))
        self.assertEqual(server.visits, [])

    async def test_not_started(self) -> None:
        """Where a file can't be had the program isn't started."""
        mark = os.path.abspath(self.mktemp())
        server = await self.server(by_name({"a": b"x"}))
        grader = self.grader(server, f"touch {mark}; echo {{}} >&3", max_files=2)
        for files in (
            json.dumps({"a": self.address(server, "a"), "b": self.address(server, "b")}),
            json.dumps({name: self.address(server, "a") for name in "abc"}),
            json.dumps({"a": "http://192.0.2.1/a"}),
            "no JSON",
        ):
            await self.assertFailure(ensureDeferred(grader.grade(make_request(files=files))), MalformedSubmission)
        await self.until_clean()
        self.assertFalse(os.path.exists(mark))

    async def test_cancelled(self) -> None:
        """Cancelling while files are fetched leaves neither a connection nor a folder."""
        server = await self.server(saying(HEAD + b"Content-Length: 9\r\n\r\nx"))
        grader = self.grader(server, "echo {} >&3")
        work = ensureDeferred(grader.grade(make_request(files=json.dumps({"a.c": self.address(server)}))))
        await until(lambda: bool(server.asked), "the request to arrive", self.reactor)
        work.cancel()
        await self.assertFailure(work, CancelledError)
        await until(lambda: server.open == 0, "the connection to be closed", self.reactor)
        await self.until_clean()

    async def test_stopped(self) -> None:
        """A stopped grader keeps no connection open."""
        server = await self.server(by_name({"a": b"x"}))
        grader = self.grader(server, "echo {} >&3")
        await grader.grade(make_request(files=json.dumps({"a": self.address(server, "a")})))
        self.assertEqual(server.open, 1)
        await grader.stopService()
        await until(lambda: server.open == 0, "the connection to be closed", self.reactor)
