"""A grader that polls, over HTTP: the gateway's front door with the pull side behind it, on a real broker."""

from __future__ import annotations

import json
from urllib.parse import quote

from twisted.internet.defer import CancelledError, Deferred

from edxagent.lms.contracts import Reply
from tests.cli_process import until
from tests.gateway_support import FakePull, GatewayTestCase
from tests.outcomes import INNER, LMS_KEY, request
from tests.test_lms_pull_broker import GOOD, PullTestCase, pause


class SlowPull(FakePull):
    """Never has an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.given_up = False

    async def get_submission(self, queue: str) -> Reply:
        """See ``IPull``."""
        self.asked.append(("get_submission", queue))
        try:
            return await Deferred()
        except CancelledError:
            self.given_up = True
            raise


class HangingUpTests(GatewayTestCase):
    """Who hangs up before the answer is there; xqueue-watcher does after a second."""

    async def test_get_submission(self) -> None:
        """Nobody gets a submission who isn't there to take it."""
        pull = SlowPull()
        await self.start(pull=pull)
        client = await self.client()
        head = f"GET /xqueue/get_submission/?queue_name=q1 HTTP/1.1\r\nHost: x\r\nCookie: {await self.log_in()}\r\n\r\n"
        client.say(head.encode())
        await until(lambda: pull.asked)
        client.transport.abortConnection()  # type: ignore[union-attr]
        await until(lambda: pull.given_up)


class PollingTests(GatewayTestCase, PullTestCase):
    """The whole conversation, byte by byte as a grader that polls hears it."""

    timeout = 90.0

    async def test_conversation(self) -> None:
        """Sent to the login first; then length, submission, verdict; then nothing is left."""
        pull = self.pull_side()
        await self.start(pull=pull, queues=(self.requests,))
        path = f"/xqueue/get_submission/?queue_name={quote(self.requests)}"
        self.assertEqual((await self.ask("GET", path)).status, 302)
        cookie = [f"Cookie: {await self.log_in()}"]
        empty = json.dumps({"return_code": 1, "content": f"Queue '{self.requests}' is empty"}).encode()
        while (await self.ask("GET", path, headers=cookie)).body != empty:
            await pause(0.05)
        await self.publish(request(), message_id="s-1")
        length = await self.ask("GET", path.replace("get_submission", "get_queuelen"), headers=cookie)
        self.assertEqual(length.body, b'{"return_code": 0, "content": 1}')
        code, content = (await self.ask("GET", path, headers=cookie)).reply
        self.assertEqual(code, 0)
        self.assertNotIn(LMS_KEY, content)
        submission = json.loads(content)
        self.assertEqual(json.loads(submission["xqueue_body"]), INNER)
        self.assertEqual(submission["xqueue_files"], "{}")
        ticket = json.loads(submission["xqueue_header"])
        self.assertIsInstance(ticket["submission_id"], int)
        fields = {"xqueue_header": submission["xqueue_header"], "xqueue_body": GOOD}
        for expected in ((0, ""), (1, "Submission does not exist")):
            answered = await self.post("/xqueue/put_result/", fields, cookie=cookie[0].removeprefix("Cookie: "))
            self.assertEqual((answered.status, answered.reply), (200, expected))
        await self.collect(self.results, 1)
        await self.until_settled()
