"""Tests for what the gateway says over HTTP, to the byte."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from edxagent.errors import Unroutable
from edxagent.lms.contracts import Reply
from edxagent.lms.gateway.site import is_loopback
from tests.gateway_support import BODY, PASSWORD, USER, Client, GatewayTestCase, header

FORM = "Content-Type: application/x-www-form-urlencoded"


class XQueueTests(GatewayTestCase):
    """Tests for XQueue's answers (openedx/xqueue ``submission_queue/views.py``, ``lms_interface.py``)."""

    async def test_an_lms_submits(self) -> None:
        """The whole sequence of an LMS: sent to log in, asked to, logged in, taken."""
        await self.start()
        client = await self.client()
        fields = {"xqueue_header": header(), "xqueue_body": BODY}
        sent_away = await self.post("/xqueue/submit/", fields, client=client)
        self.assertEqual(sent_away.status, 302)
        self.assertEqual(sent_away.headers["location"], ["/xqueue/login/?next=/xqueue/submit/"])
        asked = await self.ask("GET", sent_away.headers["location"][0], client=client)
        self.assertEqual((asked.status, asked.body), (200, b'{"return_code": 1, "content": "login_required"}'))
        login = await self.post("/xqueue/login/", {"username": USER, "password": PASSWORD}, client=client)
        self.assertEqual((login.status, login.body), (200, b'{"return_code": 0, "content": "Logged in"}'))
        taken = await self.post("/xqueue/submit/", fields, cookie=login.cookie, client=client)
        self.assertEqual((taken.status, taken.body), (200, b'{"return_code": 0, "content": "1"}'))
        (message,) = self.publisher.published
        self.assertEqual(json.loads(message.body)["xqueue_body"], BODY)

    async def test_words(self) -> None:
        """Every answer of XQueue that needs no login, byte for byte."""
        await self.start()
        wrong = b"username=lms&password=x"
        for method, path, body, said in (
            ("GET", "/xqueue/status/", b"", '{"return_code": 0, "content": "OK"}'),
            ("POST", "/xqueue/status/", b"", '{"return_code": 0, "content": "OK"}'),
            ("GET", "/xqueue/logout/", b"", '{"return_code": 0, "content": "Goodbye"}'),
            ("GET", "/xqueue/login/", b"", '{"return_code": 1, "content": "login_required"}'),
            ("PUT", "/xqueue/login/", wrong, '{"return_code": 1, "content": "login_required"}'),
            ("POST", "/xqueue/login/", wrong, '{"return_code": 1, "content": "Incorrect login credentials"}'),
            ("POST", "/xqueue/login/", b"", '{"return_code": 1, "content": "Insufficient login info"}'),
            ("POST", "/xqueue/login/", b"username=lms", '{"return_code": 1, "content": "Insufficient login info"}'),
            ("POST", "/xqueue/login/", b"password=x", '{"return_code": 1, "content": "Insufficient login info"}'),
        ):
            response = await self.ask(method, path, body, [FORM])
            self.assertEqual((response.status, response.body.decode()), (200, said), (method, path, body))
            self.assertEqual(response.headers["content-type"], ["text/html; charset=utf-8"])
            self.assertEqual(response.headers["content-length"], [str(len(said))])

    async def test_words_for_users(self) -> None:
        """Those that need one."""
        await self.start()
        cookie = f"Cookie: {await self.log_in()}"
        for method, path, said in (
            ("GET", "/xqueue/submit/", "Queue requests should use HTTP POST"),
            ("POST", "/xqueue/submit/", "Queue request has invalid format"),
            ("GET", "/xqueue/put_result/", "'put_result' must use HTTP POST"),
            ("POST", "/xqueue/put_result/", "Incorrect reply format"),
            ("GET", "/xqueue/get_queuelen/", "'get_queuelen' must provide parameter 'queue_name'"),
            ("GET", "/xqueue/get_submission/", "'get_submission' must provide parameter 'queue_name'"),
        ):
            response = await self.ask(method, path, b"", [FORM, cookie])
            self.assertEqual((response.status, response.reply), (200, (1, said)), (method, path))

    async def test_unknown_queue(self) -> None:
        """A queue that there isn't is named in XQueue's words, and its name can do nothing in a browser."""
        await self.start()
        response = await self.submit(await self.log_in(), xqueue_header=header("<script>"))
        self.assertEqual(response.body, b'{"return_code": 1, "content": "Queue \'<script>\' not found"}')
        self.assertIn("sandbox", response.headers["content-security-policy"][0])
        self.assertEqual(response.headers["x-content-type-options"], ["nosniff"])

    async def test_logged_out(self) -> None:
        """Whoever isn't logged in is sent to do so, and nothing is asked of anybody."""
        await self.start()
        for method, path, page in (
            ("POST", "/xqueue/submit/", "/xqueue/submit/"),
            ("GET", "/xqueue/submit/", "/xqueue/submit/"),
            ("GET", "/xqueue/get_queuelen/?queue_name=q1", "/xqueue/get_queuelen/%3Fqueue_name%3Dq1"),
            ("GET", "/xqueue/get_submission/?queue_name=q1", "/xqueue/get_submission/%3Fqueue_name%3Dq1"),
            ("POST", "/xqueue/put_result/", "/xqueue/put_result/"),
        ):
            response = await self.ask(method, path, b"", ["Cookie: sessionid=1.bG1z.00"])
            self.assertEqual(response.status, 302)
            self.assertEqual(response.headers["location"], [f"/xqueue/login/?next={page}"])
        self.assertEqual((self.pull.asked, self.publisher.published), ([], []))

    async def test_missing_slashes(self) -> None:
        """A forgotten slash at the end is added, query and all."""
        await self.start()
        for path in ("login", "logout", "submit", "status", "get_queuelen", "get_submission", "put_result"):
            for method in ("GET", "POST"):
                response = await self.ask(method, f"/xqueue/{path}?a=b", b"", ["Host: evil.example.com"])
                self.assertEqual((response.status, response.headers["location"]), (301, [f"/xqueue/{path}/?a=b"]))

    async def test_anything_else(self) -> None:
        """There is nothing else, and it takes few words to say so."""
        await self.start()
        for path in (
            "/",
            "/xqueue/",
            "/files/",
            "/files/x",
            "/admin/",
            "/xqueue/status/x",
            "//xqueue//login/",
            "/%00",
            "*",
        ):
            response = await self.ask("GET", path)
            self.assertEqual((response.status, response.body), (404 if path != "*" else 405, response.body), path)
            self.assertLess(len(response.body), 30)

    async def test_head(self) -> None:
        """HEAD is GET without the body, and the connection goes on."""
        await self.start()
        client = await self.client()
        response = await self.ask("HEAD", "/xqueue/status/", client=client)
        self.assertEqual((response.status, response.headers["content-length"]), (200, ["35"]))
        self.assertEqual((await self.ask("GET", "/xqueue/status/", client=client)).reply, (0, "OK"))

    async def test_many_requests_over_one_connection(self) -> None:
        """Requests that come one right after the other are answered in their order."""
        await self.start()
        client = await self.client()
        client.say(b"GET /xqueue/status/ HTTP/1.1\r\nHost: a\r\n\r\nGET /nothing HTTP/1.1\r\nHost: a\r\n\r\n" * 20)
        for _ in range(20):
            self.assertEqual((await client.response()).status, 200)
            self.assertEqual((await client.response()).status, 404)

    async def test_a_refusal(self) -> None:
        """What can't be published is a refusal that the LMS understands."""
        await self.start()
        self.publisher.error = Unroutable("no queue")
        response = await self.submit(await self.log_in())
        self.assertEqual(
            (response.status, response.body), (200, b'{"return_code": 1, "content": "Queue \'q1\' not found"}')
        )

    async def test_log_out(self) -> None:
        """Logging out takes the cookie away."""
        await self.start()
        response = await self.ask("GET", "/xqueue/logout/", b"", [f"Cookie: {await self.log_in()}"])
        self.assertEqual(response.headers["set-cookie"], ["sessionid=; Max-Age=0; Path=/; SameSite=Lax"])

    async def test_no_csrf_token(self) -> None:
        """A request from another origin, without any token, is a request like any other."""
        await self.start()
        headers = [FORM, "Origin: http://lms:8000", "Referer: http://lms:8000/"]
        response = await self.ask("POST", "/xqueue/login/", b"username=lms&password=x", headers)
        self.assertEqual(response.status, 200)


class PullTests(GatewayTestCase):
    """Tests for what graders that poll say."""

    async def test_passed_on(self) -> None:
        """What they ask is passed on as it is, and so is the answer."""
        await self.start()
        cookie = await self.log_in()
        for path in ("get_queuelen", "get_submission"):
            response = await self.ask("GET", f"/xqueue/{path}/?queue_name=a%20b%C3%BC", b"", [f"Cookie: {cookie}"])
            self.assertEqual(response.body, b'{"return_code": 0, "content": 2}')
        self.pull.reply = Reply(0, "")
        response = await self.post("/xqueue/put_result/", {"xqueue_header": "ü", "xqueue_body": "{}"}, cookie=cookie)
        self.assertEqual(response.body, b'{"return_code": 0, "content": ""}')
        self.assertEqual(
            self.pull.asked, [("get_queuelen", "a bü"), ("get_submission", "a bü"), ("put_result", "ü", "{}")]
        )

    async def test_a_bug(self) -> None:
        """A failure within is logged with its traceback, of which the client sees nothing."""
        await self.start()
        self.pull.error = KeyError("s3cret")
        cookie = await self.log_in()
        response = await self.ask("GET", "/xqueue/get_submission/?queue_name=q1", b"", [f"Cookie: {cookie}"])
        self.assertEqual((response.status, response.body), (500, b"internal error\n"))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)


class FilesTests(GatewayTestCase):
    """Tests for learners' files, from the LMS to a grader."""

    async def files_of(self, **files: bytes) -> dict[str, str]:
        """Submit files; the paths where they are."""
        folder = self.mktemp()
        await self.start(files_folder=folder, files_url="https://grading.example.org/files/")
        response = await self.submit(await self.log_in(), files=files)
        self.assertEqual(response.reply, (0, "1"))
        urls = json.loads(json.loads(self.publisher.published[0].body)["xqueue_files"])
        return {name: url.removeprefix("https://grading.example.org") for name, url in urls.items()}

    async def test_fetched(self) -> None:
        """A grader fetches what a learner sent, as something to keep and not to show."""
        content = bytes(range(256)) * 700
        path = (await self.files_of(hello=content))["hello"]
        response = await self.ask("GET", path)
        self.assertEqual((response.status, response.body), (200, content))
        self.assertEqual(response.headers["content-type"], ["application/octet-stream"])
        self.assertEqual(response.headers["content-disposition"], ['attachment; filename="hello"'])
        self.assertEqual(response.headers["x-content-type-options"], ["nosniff"])
        self.assertEqual(response.headers["content-length"], [str(len(content))])
        head = await self.ask("HEAD", path)
        self.assertEqual((head.status, head.headers["content-length"]), (200, [str(len(content))]))
        self.assertEqual((await self.ask("POST", path)).status, 405)

    async def test_not_fetched(self) -> None:
        """Without the exact address, or too late, there is nothing."""
        path = (await self.files_of(hello=b"1"))["hello"]
        folder = path.rpartition("/")[0]
        for other in (
            f"{path}x", f"{path}/", folder, f"{folder}/", f"{folder}/..", f"{folder}/%2e%2e", f"{folder}/..%2f..%2fetc",
            f"{folder}/%00", "/files/../files", path.replace("/files/", "/files/9"), path.upper(),
        ):  # fmt: skip
            self.assertEqual((await self.ask("GET", other)).status, 404, other)
        self.now += 8 * 86400
        self.assertEqual((await self.ask("GET", path)).status, 404)

    async def test_a_client_that_leaves(self) -> None:
        """A client that goes in the middle of a file leaves nothing open."""
        path = (await self.files_of(hello=b"x" * 150_000))["hello"]
        client = await self.client()
        client.say(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        await client.close()
        self.assertEqual((await self.ask("GET", path)).status, 200)

    async def test_refused_without_a_folder(self) -> None:
        """Where no folder is configured, a submission with files is refused, one without is not."""
        await self.start()
        cookie = await self.log_in()
        response = await self.submit(cookie, files={"a": b"1"})
        self.assertEqual(response.reply, (1, "files can't be submitted to this grading system"))
        self.assertEqual((await self.submit(cookie)).reply, (0, "1"))


class LoopbackTests(SynchronousTestCase):
    """Who may be told credentials over plain HTTP."""

    def test_this_machine(self) -> None:
        """Addresses of this machine are, and nothing else is."""
        for address in ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"):
            self.assertTrue(is_loopback(address), address)
        for address in ("192.0.2.1", "10.0.0.1", "::ffff:192.0.2.1", "0.0.0.0", "localhost", "a local socket", ""):
            self.assertFalse(is_loopback(address), address)


class FakeAgentConfig:
    """Knows one key."""

    def answer(self, authorization: str | None) -> tuple[int, bytes]:
        """See ``IAgentConfig``."""
        return (200, b'{"queues": {}}') if authorization == "Bearer k" else (401, b'{"error": "no"}')


class AgentConfigTests(GatewayTestCase):
    """Tests for what agents are told."""

    async def test_told(self) -> None:
        """The header is passed on, and so is the answer."""
        config: Any = FakeAgentConfig()
        await self.start(agent_config=config)
        response = await self.ask("GET", "/agent/config", b"", ["Authorization: Bearer k"])
        self.assertEqual((response.status, response.body), (200, b'{"queues": {}}'))
        self.assertEqual(response.headers["content-type"], ["application/json"])
        self.assertEqual((await self.ask("GET", "/agent/config")).status, 401)
        self.assertEqual((await self.ask("POST", "/agent/config")).status, 405)

    async def test_over_plain_http(self) -> None:
        """Over a plain connection that isn't known to be this machine's nothing is told, unless a proxy has the TLS."""
        config: Any = FakeAgentConfig()
        for trusted, status in ((False, 403), (True, 200)):
            path = self.mktemp()
            await self.start(agent_config=config, listen=f"unix:{path}", behind_tls_proxy=trusted)
            client = await Client.connect_by_file(self, path)
            response = await self.ask("GET", "/agent/config", b"", ["Authorization: Bearer k"], client=client)
            self.assertEqual(response.status, status)

    async def test_none(self) -> None:
        """Where there is nothing to be told, there is no such page."""
        await self.start()
        self.assertEqual((await self.ask("GET", "/agent/config")).status, 404)
