"""What a bridge asks of an LMS: against the real edx-submissions, and against servers that don't behave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twisted.internet import ssl
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from edxagent.config.lms_values import BridgeConfig
from edxagent.lms.bridge.client import Client, Put, QueueTrouble
from edxagent.lms.bridge.item import Item
from edxagent.lms.bridge.session import Session, Trouble
from edxagent.model import Verdict
from edxagent.testing.http_server import RogueServer, answering, saying_and_closing, saying_for_ever, silent
from tests.bridge_support import bridge_config, same
from tests.certificates import Authority
from tests.edx_submissions_lms import NOT_IN_THE_GROUP, PASSWORD, EdxSubmissionsLMS, Row

GOOD = Verdict(correct=True, score=1.0, msg="<p>Prächtig & <b>richtig</b></p>")
EMPTY = b'{"return_code": 1, "content": "Queue is empty"}'


class ClientTestCase(TestCase):
    """A test with clients."""

    timeout = 120.0

    def client(self, url: str, **changes: Any) -> Client:
        """A client of an LMS, closed after the test."""
        return self.client_of(bridge_config(url, **changes))

    def client_of(self, config: BridgeConfig) -> Client:
        """A client, closed after the test."""
        from twisted.internet import reactor

        session = Session(config, reactor, same)
        self.addCleanup(lambda: Deferred.fromCoroutine(session.close()))
        return Client(session)

    async def pull(self, client: Client, queue: str = "q1") -> Item:
        """A submission that is there."""
        item = await client.get_submission(queue)
        assert item is not None
        return item

    async def fails(self, awaitable: Any) -> Trouble:
        """The trouble that something ends in."""
        try:
            result = await awaitable
        except Trouble as trouble:
            self.assertNotIn("\n", str(trouble))
            self.assertNotIn(PASSWORD, str(trouble))
            return trouble
        raise AssertionError(f"it went well: {result}")


class EdxSubmissionsTests(ClientTestCase):
    """Against the real one."""

    def setUp(self) -> Deferred[None]:  # type: ignore[override]  # trial waits for it
        """Start an LMS."""
        return Deferred.fromCoroutine(self._start())

    async def _start(self) -> None:
        self.lms = await EdxSubmissionsLMS.start(self)

    async def row(self, number: int) -> Row:
        """A submission, as the LMS has it."""
        return next(row for row in await self.lms.rows() if row.id == number)

    async def test_fetches_and_answers(self) -> None:
        """A submission is fetched as it was written, and its verdict recorded as it was given."""
        [number] = await self.lms.create("q1", answer="print('ä')", points=4)
        client = self.client(self.lms.url)
        item = await self.pull(client)
        self.assertEqual(item.remote, number)
        body = json.loads(item.body)
        self.assertEqual(body["student_response"], "print('ä')")
        self.assertEqual(json.loads(body["grader_payload"]), {"grader": "grade.py"})
        self.assertEqual(json.loads(item.header), {"submission_id": number, "submission_key": item.key})
        self.assertIsNone(await client.get_submission("q1"))
        put, _ = await client.put_result(item.header, GOOD)
        self.assertIs(put, Put.RECORDED)
        row = await self.row(number)
        self.assertEqual((row.status, row.points), ("retired", [4]))
        self.assertEqual(json.loads(row.reply or ""), {"correct": True, "score": 1.0, "msg": GOOD.msg})

    async def test_logs_in_once(self) -> None:
        """However many ask at once, one logs in, and that lasts."""
        client = self.client(self.lms.url)
        await gatherResults([Deferred.fromCoroutine(client.get_submission("q1")) for _ in range(8)])
        self.assertEqual(await self.lms.count("POST login"), 1)
        self.assertEqual(await self.lms.count("GET get_submission"), 8)

    async def test_session_ends(self) -> None:
        """When the LMS doesn't know us any more, the one who finds out logs in again, and its request is done."""
        await self.lms.create("q1", 2)
        client = self.client(self.lms.url)
        first = await self.pull(client)
        await self.lms.end_sessions()
        second = await self.pull(client)
        await self.lms.end_sessions()
        puts = await gatherResults(
            [Deferred.fromCoroutine(client.put_result(item.header, GOOD)) for item in (first, second)]
        )
        self.assertEqual([put for put, _ in puts], [Put.RECORDED] * 2)
        self.assertEqual(await self.lms.count("POST login"), 3)
        self.assertEqual(await self.lms.statuses(), {"retired": 2})

    async def test_token_is_needed(self) -> None:
        """The LMS does ask for the CSRF token that we send: a session without one records nothing."""
        await self.lms.create("q1")
        client = self.client(self.lms.url)
        item = await self.pull(client)
        cookies = client.session._cookies
        assert cookies is not None
        del cookies["csrftoken"]
        self.assertIs((await client.put_result(item.header, GOOD))[0], Put.RECORDED)
        self.assertEqual(await self.lms.count("POST put_result"), 2)  # refused, logged in again, recorded

    async def test_https(self) -> None:
        """Over HTTPS, where Django asks for a referer too; and only if the certificate is to be trusted."""
        authority = Authority(Path(self.mktemp()))
        lms = await EdxSubmissionsLMS.start(self, tls=authority.issue(Path(self.mktemp()), "127.0.0.1"))
        await lms.create("q1")
        trouble = await self.fails(self.client(lms.url).get_submission("q1"))
        self.assertIn("certificate", str(trouble))
        self.assertEqual(await lms.count("GET login"), 0)
        client = self.client(lms.url, ca_file=authority.path)
        item = await self.pull(client)
        self.assertIs((await client.put_result(item.header, GOOD))[0], Put.RECORDED)

    async def test_wrong_password(self) -> None:
        """Wrong credentials are said in one line, and not tried again at once."""
        events: list[Any] = []
        observer: Any = events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        client = self.client(self.lms.url, password="another")
        for _ in range(3):
            self.assertIn("mend [bridge:lms] username, password", str(await self.fails(client.get_submission("q1"))))
        self.assertEqual(await self.lms.count("POST login"), 1)
        self.assertNotIn("another", str(events) + repr(client.session._config))

    async def test_not_in_the_group(self) -> None:
        """A user who may log in and nothing else is said to be so, and doesn't log in for each request."""
        client = self.client(self.lms.url, username=NOT_IN_THE_GROUP)
        for _ in range(3):
            self.assertIn("in the group xqueue", str(await self.fails(client.get_submission("q1"))))
        self.assertEqual(await self.lms.count("POST login"), 2)

    async def test_says_why_not(self) -> None:
        """Each answer to a verdict has its name."""
        numbers = await self.lms.create("q1", 2)
        client = self.client(self.lms.url)
        item = await self.pull(client)
        wrong = json.dumps({"submission_id": numbers[0], "submission_key": "another"})
        missing = json.dumps({"submission_id": 999, "submission_key": item.key})
        for header, expected in (
            (wrong, Put.WRONG_KEY),
            (missing, Put.REFUSED),
            ("[]", Put.REFUSED),
            (item.header, Put.RECORDED),
            (item.header, Put.FAILED),
        ):
            put, words = await client.put_result(header, GOOD)
            self.assertIs(put, expected, words)
            self.assertNotIn(item.key, words)
        self.assertEqual((await self.row(numbers[0])).points, [1])
        self.assertEqual(await self.lms.count("POST login"), 1)  # a wrong key is no reason to log in

    async def test_locked(self) -> None:
        """While somebody else posts it, the submission is locked."""
        await self.lms.create("q1")
        client = self.client(self.lms.url)
        item = await self.pull(client)
        body = json.dumps({"return_code": 1, "content": "Submission is currently being processed"})
        await self.lms.fault("put_result", status=409, body=body)
        await self.lms.fault("get_submission", status=409, body=body)
        self.assertIs((await client.put_result(item.header, GOOD))[0], Put.LOCKED)
        self.assertIsInstance(await self.fails(client.get_submission("q1")), QueueTrouble)
        self.assertTrue(client.well)

    async def test_failed_score(self) -> None:
        """A score that can't be recorded is answered like one that was, and handed out again under another key."""
        await self.lms.create("q1")
        client = self.client(self.lms.url)
        item = await self.pull(client)
        put, _ = await client.put_result(item.header, Verdict(correct=True, score=1e30, msg="<p>Very good</p>"))
        self.assertIs(put, Put.RECORDED)
        again = await self.pull(client)
        self.assertEqual(again.remote, item.remote)
        self.assertNotEqual(again.submission("lms"), item.submission("lms"))

    async def test_score_is_a_share(self) -> None:
        """A score counts as a share of the possible points: who grades in points records their multiple."""
        await self.lms.create("q1", 2, points=2)
        client = self.client(self.lms.url)
        for score in (0.5, 2.0):
            item = await self.pull(client)
            await client.put_result(item.header, Verdict(correct=True, score=score, msg="<p>Good</p>"))
        self.assertEqual([row.points for row in await self.lms.rows()], [[1], [4]])

    async def test_handed_out_again(self) -> None:
        """What wasn't answered comes again after 5 minutes, in front of newer ones, with the same id of ours."""
        await self.lms.create("q1")
        client = self.client(self.lms.url)
        item = await self.pull(client)
        await self.lms.age(301)
        await self.lms.create("q1")
        for _ in range(3):
            again = await self.pull(client)
            self.assertEqual(again.submission("lms"), item.submission("lms"))

    async def test_files(self) -> None:
        """Paths on the LMS's server become addresses."""
        await self.lms.create("q1", files={"prüfung.py": "print(1)"})
        files = json.loads((await self.pull(self.client(f"{self.lms.url}/"))).files)
        self.assertEqual(list(files), ["prüfung.py"])
        self.assertTrue(files["prüfung.py"].startswith(f"{self.lms.url}/media/q1/"), files)

    async def test_trouble(self) -> None:
        """What isn't the API's answer is trouble; only some of it leaves in doubt whether a verdict was recorded."""
        await self.lms.create("q1")
        client = self.client(self.lms.url)
        item = await self.pull(client)
        for status, unsure in (
            (502, True),
            (503, False),
            (504, True),
            (404, False),
            (400, False),
            (302, False),
            (200, True),
        ):
            await self.lms.fault("put_result", status=status)
            await self.lms.fault("get_submission", status=status)
            trouble = await self.fails(client.put_result(item.header, GOOD))
            self.assertEqual((trouble.unsure, client.well), (unsure, False), status)
            client.well = True
            trouble = await self.fails(client.get_submission("q1"))
            self.assertNotIsInstance(trouble, QueueTrouble)
            self.assertFalse(client.well)
        await self.lms.down()
        trouble = await self.fails(client.put_result(item.header, GOOD))
        self.assertFalse(trouble.unsure)
        await self.lms.up()
        self.assertIs((await client.put_result(item.header, GOOD))[0], Put.RECORDED)
        self.assertTrue(client.well)

    async def test_closed(self) -> None:
        """A closed session asks nothing; open again, it logs in anew."""
        client = self.client(self.lms.url)
        await client.get_submission("q1")
        await client.session.close()
        trouble = await self.fails(client.put_result("{}", GOOD))
        self.assertFalse(trouble.unsure)
        client.session.open()
        await client.get_submission("q1")
        self.assertEqual(await self.lms.count("POST login"), 2)
        self.assertEqual(await self.lms.count("POST put_result"), 0)

    async def test_posts_once(self) -> None:
        """A verdict that took effect, but whose answer was lost, isn't posted by itself again."""
        await self.lms.create("q1")
        client = self.client(self.lms.url)
        item = await self.pull(client)
        await self.lms.fault("put_result", then=504)
        self.assertTrue((await self.fails(client.put_result(item.header, GOOD))).unsure)
        self.assertEqual(await self.lms.count("POST put_result"), 1)
        self.assertEqual(await self.lms.statuses(), {"retired": 1})


class RogueTests(ClientTestCase):
    """Against servers that don't behave."""

    def setUp(self) -> Deferred[None]:  # type: ignore[override]  # trial waits for it
        """Start a server."""
        from twisted.internet import reactor

        self.server = RogueServer(silent)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.server.stop()))
        return Deferred.fromCoroutine(self.server.start(reactor))

    @property
    def url(self) -> str:
        """Where it is."""
        return self.server.url.removesuffix("/grade")

    def lets_in(self, behaviour: Any) -> None:
        """Log everybody in, then behave like this."""
        entry = answering(b'{"return_code": 0, "content": ""}', headers=["Set-Cookie: csrftoken=t; Path=/"])
        self.server.behaviour = lambda visit: (entry if "login" in visit.asked[-1].line else behaviour)(visit)

    async def test_silence(self) -> None:
        """A server that says nothing is left when its time is over; a verdict may have been recorded then."""
        trouble = await self.fails(self.client(self.url, timeout=0.2).get_submission("q1"))
        self.assertIn("didn't answer within 0.2 s", str(trouble))
        self.lets_in(silent)
        trouble = await self.fails(self.client(self.url, timeout=0.2).put_result("{}", GOOD))
        self.assertTrue(trouble.unsure)

    async def test_login_never_leaves_doubt(self) -> None:
        """A verdict that couldn't be sent, for want of a login, wasn't recorded."""
        trouble = await self.fails(self.client(self.url, timeout=0.2).put_result("{}", GOOD))
        self.assertFalse(trouble.unsure)

    async def test_no_redirects(self) -> None:
        """Nobody sends us, or a password, elsewhere."""
        self.server.behaviour = answering(b"", "302 Found", ["Location: /elsewhere"])
        await self.fails(self.client(self.url).get_submission("q1"))
        self.assertNotIn("elsewhere", "".join(asked.line for asked in self.server.asked))

    async def test_endless_body(self) -> None:
        """An answer without end is cut off."""
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
        self.lets_in(saying_for_ever(head, b" " * 65536))
        self.assertIn("longer than", str(await self.fails(self.client(self.url).get_submission("q1"))))

    async def test_not_http(self) -> None:
        """Something that isn't a web server is told from one."""
        self.lets_in(saying_and_closing(b"220 mail.example.org ESMTP\r\n"))
        self.assertIn("HTTP", str(await self.fails(self.client(self.url).get_submission("q1"))))

    async def test_unreadable_submissions(self) -> None:
        """A submission that can't be read is its queue's trouble, and isn't quoted."""
        client = self.client(self.url)
        envelope = {"xqueue_header": "{}", "xqueue_body": "secret", "xqueue_files": "{}"}
        long = {**envelope, "xqueue_header": json.dumps({"submission_id": 1, "submission_key": "x" * 100_000})}
        for content in ("", "[]", "secret", "[" * 100_000, json.dumps(envelope), json.dumps(long)):
            self.lets_in(answering(json.dumps({"return_code": 0, "content": content}).encode()))
            trouble = await self.fails(client.get_submission("q1"))
            self.assertIsInstance(trouble, QueueTrouble)
            self.assertNotIn("secret", str(trouble))
            self.assertLess(len(str(trouble)), 300)

    async def test_older_login(self) -> None:
        """An older edx-submissions knows no GET for the login, and is logged in at all the same."""

        def behave(visit: Any) -> None:
            if visit.asked[-1].line.startswith("GET /xqueue/login/"):
                answering(b'{"detail": "Method \\"GET\\" not allowed."}', "405 Method Not Allowed")(visit)
            else:
                answering(EMPTY if "get_submission" in visit.asked[-1].line else b'{"return_code":0,"content":""}')(
                    visit
                )

        self.server.behaviour = behave
        self.assertIsNone(await self.client(self.url).get_submission("q1"))

    async def test_many_cookies(self) -> None:
        """A server can't have us carry more than a few cookies, nor long ones."""
        cookies = [f"Set-Cookie: c{number}={number}" for number in range(500)]
        self.server.behaviour = answering(
            EMPTY.replace(b"1", b"0", 1), headers=["Set-Cookie: long=" + "x" * 5000, *cookies]
        )
        client = self.client(self.url)
        await self.fails(client.get_submission("q1"))
        sent = self.server.asked[-1].headers["cookie"]
        self.assertEqual(sent.count(";"), 19)
        self.assertNotIn("long", sent)

    async def test_session_and_csrf_headers(self) -> None:
        """A change carries the session's cookies, the token and a referer; a deleted cookie is gone."""
        self.lets_in(answering(EMPTY, headers=["Set-Cookie: csrftoken=new", "Set-Cookie: gone=1"]))
        client = self.client(self.url)
        await client.get_submission("q1")
        self.lets_in(answering(EMPTY, headers=['Set-Cookie: gone=""; Max-Age=0']))
        await client.get_submission("q1")
        await client.put_result("{}", GOOD)
        headers = self.server.asked[-1].headers
        self.assertEqual(headers["cookie"], "csrftoken=new")
        self.assertEqual(headers["x-csrftoken"], "new")
        self.assertEqual(headers["referer"], f"{self.url}/xqueue/")

    async def test_strangers_certificate(self) -> None:
        """Nothing, not even a name, is told a server with another one's certificate."""
        from twisted.internet import reactor

        authority = Authority(Path(self.mktemp()))
        pair = authority.issue(Path(self.mktemp()), "lms.example.org")
        server = RogueServer(answering(EMPTY))
        self.addCleanup(lambda: Deferred.fromCoroutine(server.stop()))
        await server.start(reactor, ssl.DefaultOpenSSLContextFactory(pair.key, pair.certificate))
        client = self.client(server.url.removesuffix("/grade"), ca_file=authority.path)
        await self.fails(client.get_submission("q1"))
        self.assertEqual(server.asked, [])
