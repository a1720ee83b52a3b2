"""Tests for the gateway as a service: where it listens, what it can't, and how it ends."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ClientEndpoint, connectProtocol
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates

from edxagent.errors import ConfigError
from edxagent.lms.contracts import Reply
from tests.certificates import Authority
from tests.cli_process import until
from tests.gateway_support import HOST, PASSWORD, USER, Client, GatewayTestCase


class ListeningTests(GatewayTestCase):
    """Tests for beginning to listen."""

    async def refusal(self, **changes: Any) -> str:
        """What is wrong, in one line."""
        error = await self.assertFailure(Deferred.fromCoroutine(self.start(**changes)), ConfigError)
        self.assertEqual(len(str(error).splitlines()), 1)
        return str(error)

    async def test_a_port_in_use(self) -> None:
        """A port that somebody else has is named, and nothing stays started."""
        await self.start()
        listen = f"tcp:{self.port}:interface={HOST}"
        self.assertEqual(
            await self.refusal(listen=listen),
            f"[gateway] listen: {listen} can't be listened at: Address already in use",
        )

    async def test_an_address_that_is_not_ours(self) -> None:
        """Neither can be listened at an address of another machine."""
        self.assertIn("Cannot assign requested address", await self.refusal(listen="tcp:0:interface=192.0.2.1"))

    async def test_no_endpoint(self) -> None:
        """What is no endpoint, or names a key that isn't there, is said so."""
        for listen in ("nonsense", "tcp:x", "ssl:0:privateKey=/nonexistent:certKey=/nonexistent"):
            self.assertIn(f"[gateway] listen: {listen}", await self.refusal(listen=listen))

    async def test_a_folder_that_cannot_be(self) -> None:
        """Where files can't be kept, it doesn't listen."""
        text = await self.refusal(files_folder="/proc/nothing", files_url="http://h/files/")
        self.assertIn("[gateway] files_folder: /proc/nothing", text)

    async def test_bad_hashes(self) -> None:
        """Hashes that are none are a configuration that can't be used."""
        self.assertIn("[users] lms", await self.refusal(users={"lms": "secret"}))

    async def test_over_tls(self) -> None:
        """An endpoint string makes it HTTPS; the cookie then stays there."""
        from twisted.internet import reactor

        folder = Path(self.mktemp())
        folder.mkdir()
        authority = Authority(folder / "authority")
        pair = authority.issue(folder / "gateway", HOST)
        await self.start(listen=f"ssl:0:privateKey={pair.key}:certKey={pair.certificate}:interface={HOST}")
        root = trustRootFromCertificates([Certificate.loadPEM(Path(authority.path).read_bytes())])
        endpoint = SSL4ClientEndpoint(reactor, HOST, self.port, optionsForClientTLS(HOST, root))  # type: ignore[arg-type]
        client: Client = await connectProtocol(endpoint, Client())
        self.addCleanup(client.close)
        login = await self.post("/xqueue/login/", {"username": USER, "password": PASSWORD}, client=client)
        self.assertEqual(login.reply, (0, "Logged in"))
        self.assertTrue(login.headers["set-cookie"][0].endswith("; Path=/; SameSite=Lax; Secure"))
        client.say(b"POST /xqueue/submit/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n")
        self.assertEqual((await client.response()).status, 413)
        await until(lambda: client.lost)


class StoppingTests(GatewayTestCase):
    """Tests for the end."""

    async def test_nothing_is_left(self) -> None:
        """When it has stopped, its port is closed, its connections are, and its threads have ended."""
        before = set(threading.enumerate())
        await self.start(files_folder=self.mktemp(), files_url="http://h/files/")
        cookie = await self.log_in()
        await self.submit(cookie, files={"a": b"1"})
        self.assertTrue(set(threading.enumerate()) - before)
        self.assertFalse([thread for thread in set(threading.enumerate()) - before if thread.daemon])
        client, port = await self.client(), self.port
        await self.gateway.stopService()
        self.assertEqual(set(threading.enumerate()) - before, set())
        await until(lambda: client.lost)
        await self.assertFailure(Deferred.fromCoroutine(Client.connect(self, port)), Exception)

    async def test_under_way(self) -> None:
        """A submission that is under way is answered before it ends."""
        await self.start()
        cookie = await self.log_in()
        confirm: Deferred[None] = Deferred()
        publish = self.publisher.publish

        async def slowly(message: Any) -> None:
            await confirm
            await publish(message)

        self.publisher.publish = slowly  # type: ignore[method-assign]
        submitting = Deferred.fromCoroutine(self.submit(cookie))
        await until(lambda: self.gateway.answering == 1)
        stopping = self.gateway.stopService()
        self.assertFalse(stopping.called)
        confirm.callback(None)
        response = await submitting
        self.assertEqual((response.reply, response.headers.get("connection")), ((0, "1"), None))
        await stopping

    async def test_a_client_that_has_left(self) -> None:
        """A submission is finished also when the LMS doesn't wait for the answer."""
        await self.start()
        cookie = await self.log_in()
        confirm: Deferred[Reply] = Deferred()
        self.pull.put_result = lambda header, body: confirm  # type: ignore[assignment, method-assign, return-value]
        client = await self.client()
        asking = Deferred.fromCoroutine(
            self.post("/xqueue/put_result/", {"xqueue_header": "h", "xqueue_body": "b"}, cookie=cookie, client=client)
        )
        await until(lambda: self.gateway.answering == 1)
        await client.close()
        await self.assertFailure(asking, Exception)
        stopping = self.gateway.stopService()
        self.assertEqual(self.gateway.answering, 1)
        confirm.callback(Reply(0, ""))
        await stopping
        self.assertEqual(self.gateway.answering, 0)

    async def test_before_it_listened(self) -> None:
        """It can be stopped at once."""
        await self.start(files_folder=self.mktemp(), files_url="http://h/files/")
        await self.gateway.stopService()
        self.gateway.startService()
        self.gateway.listening.addErrback(lambda failure: None)
        await self.gateway.stopService()
        self.assertIsNone(self.gateway.address)

    async def test_started_again(self) -> None:
        """It can be started again."""
        await self.start()
        await self.gateway.stopService()
        self.gateway.startService()
        await self.gateway.listening
        await self.log_in()

    async def test_old_files(self) -> None:
        """Files that became too old while it was down are deleted when it starts."""
        folder = self.mktemp()
        await self.start(files_folder=folder, files_url="http://h/files/")
        await self.submit(await self.log_in(), files={"a": b"1"})
        await self.gateway.stopService()
        self.assertEqual(len(list(Path(folder).iterdir())), 1)
        self.now += 8 * 86400
        await self.start(files_folder=folder, files_url="http://h/files/")
        await until(lambda: not list(Path(folder).iterdir()))
