"""A stand-in for an LMS, to try a gateway with: it submits for many learners, and keeps the score of each.

What an LMS and XQueue say to each other is little. To submit, the LMS posts a form to ``/xqueue/submit/``, with

- ``xqueue_header``: JSON text with ``lms_callback_url``, where the verdict has to be posted; ``lms_key``, a secret that
  the verdict has to bring back; and ``queue_name``;
- ``xqueue_body``: JSON text with ``student_response``, ``grader_payload`` and ``student_info``, all of them texts;
- one more part for each uploaded file.

Whoever isn't logged in is redirected to ``/xqueue/login/``, which says ``login_required``; the LMS logs in there, and
submits again. It keeps no session: each submission begins so. Every answer is JSON like
``{"return_code": 0, "content": "3"}``: 0 means that it is queued, for anything else the learner is told to try again.

The verdict comes as a form to ``lms_callback_url``: ``xqueue_header`` as it was, and as ``xqueue_body`` the grader's
``{"correct": true, "score": 2, "msg": "<p>Well done.</p>"}``. The LMS answers 200 with nothing, also when it ignores
the verdict because the key isn't, or is no more, the one that the learner waits for. Run it with::

    LMS_PASSWORD=... python examples/lms.py --gateway http://127.0.0.1:18040/xqueue --count 500

The submissions are for the grader in ``examples/xserver.py``; with ``--unreadable`` there are some that no grader can
read, whose learners have to be told so, with 0 points. At the end it prints what it counted as a line of JSON; its exit
status is 0 when each learner has the score that they should have. ``--scores FILE`` gets a line of JSON a learner.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping
from contextlib import suppress
from io import BytesIO
from itertools import islice
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import unquote

from attrs import define
from treq.client import HTTPClient
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import LoopingCall, deferLater, react
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.http import INTERNAL_SERVER_ERROR, NOT_FOUND, Request
from twisted.web.resource import Resource
from twisted.web.server import Site

from edxagent.cli.submissions import Sample, generate

COURSE = "course-v1:MITx+6.002x+2026"
BLOCK = "block-v1:MITx+6.002x+2026+type@problem+block@divider"
CALLBACK = re.compile(rf"/courses/{re.escape(COURSE)}/xqueue/(\d+)/{re.escape(BLOCK)}/score_update")
CONNECT_SECONDS, ANSWER_SECONDS = 3.05, 10.0  # no LMS waits longer for its queue
AGAIN_SECONDS = 1.1  # how soon a learner tries once more

Form, Files = Mapping[str, str], Mapping[str, bytes]


class Refused(Exception):
    """The submission wasn't queued: the text says why, for the learner."""


@define(kw_only=True)
class Learner:
    """A learner, and what the LMS stores about their problem.

    :ivar key: the ``lms_key`` whose verdict they wait for; ``scored_key``, that of their score.
    :ivar seconds: from submitting to the score.
    """

    number: int
    sample: Sample
    key: str | None = None
    scored_key: str | None = None
    submitted: float = 0.0
    seconds: float = 0.0
    correct: bool = False
    score: float | None = None


class LMS:
    """What the LMS knows; ``all_scored`` fires when every learner has a score."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self.learners = {number: Learner(number=number, sample=sample) for number, sample in enumerate(samples, 1)}
        self.counts = dict.fromkeys(("submitted", "refused", "answered", "duplicates", "stale", "invalid"), 0)
        self.all_scored: Deferred[None] = Deferred()

    def record(self, number: int, key: str, reply: str) -> None:
        """Take a verdict. Raises :exc:`KeyError` if there is no such learner."""
        learner = self.learners[number]
        try:
            verdict = json.loads(reply)
            correct, score, message = bool(verdict["correct"]), float(verdict["score"]), str(verdict["msg"] or "")
        except (ValueError, TypeError, KeyError, RecursionError):
            message = ""
        if not message:  # a real LMS forgets the learner's submission now, whatever the key
            self.counts["invalid"] += 1
        elif key == learner.scored_key:
            self.counts["duplicates"] += 1
        elif key != learner.key:
            self.counts["stale"] += 1
        else:
            learner.key, learner.scored_key = None, key
            learner.correct, learner.score = correct, score
            learner.seconds = time.monotonic() - learner.submitted
            self.counts["answered"] += 1
            if self.counts["answered"] == len(self.learners) and not self.all_scored.called:
                self.all_scored.callback(None)

    def summary(self) -> dict[str, Any]:
        """All that was counted; ``right`` is a score that is what it should be, ``wrong`` also a missing one."""
        learners = self.learners.values()
        seconds = sorted(round(learner.seconds, 3) for learner in learners if learner.scored_key)
        shares = {f"p{share}": seconds[len(seconds) * share // 100] if seconds else None for share in (50, 99)}
        right = sum(learner.score == learner.sample.expected.score for learner in learners)
        correct = sum(learner.correct for learner in learners)
        return {**self.counts, "correct": correct, "right": right, "wrong": len(learners) - right, **shares}

    def scores(self) -> str:
        """A line of JSON for each learner; ``submitted`` and ``seconds`` are ``null`` as ``score`` is: none came."""
        lines = []
        for learner in self.learners.values():
            expected, has_score = learner.sample.expected, learner.scored_key is not None
            fields = {
                "learner": learner.number,
                "sort": learner.sample.sort,
                "expected": {"outcome": expected.outcome, "score": expected.score},
                "score": learner.score,
                "submitted": learner.submitted if has_score else None,
                "seconds": learner.seconds if has_score else None,
            }
            lines.append(json.dumps(fields) + "\n")
        return "".join(lines)


class Callback(Resource):
    """Where verdicts are posted."""

    isLeaf = True

    def __init__(self, lms: LMS) -> None:
        super().__init__()
        self._lms = lms

    def render_POST(self, request: Request) -> bytes:
        """Answer with nothing: 404 for what is no callback, 500 for what the LMS would choke on, else 200."""
        try:
            number = CALLBACK.fullmatch(unquote(request.path.decode("ascii")))[1]
            header, reply = (request.args[name][0].decode() for name in (b"xqueue_header", b"xqueue_body"))
            self._lms.record(int(number), json.loads(header)["lms_key"], reply)
        except (KeyError, TypeError):
            request.setResponseCode(NOT_FOUND)
        except (ValueError, RecursionError):
            request.setResponseCode(INTERNAL_SERVER_ERROR)
        return b""


class Queue:
    """The gateway, as the LMS knows it; ``url`` ends with ``/xqueue``."""

    def __init__(self, reactor: Any, url: str, username: str, password: str) -> None:
        self._reactor = reactor
        self._url = url
        self._credentials = {"username": username, "password": password}
        self._agent = Agent(reactor, connectTimeout=CONNECT_SECONDS, pool=HTTPConnectionPool(reactor))

    async def send(self, form: Form, files: Files) -> None:
        """Submit, or raise :exc:`Refused`."""
        session = HTTPClient(self._agent)  # remembers cookies
        return_code, content = await self._post(session, "/submit/", form, files)
        if (return_code, content) == (1, "login_required"):
            return_code, content = await self._post(session, "/login/", self._credentials, {})
            if return_code == 0:
                return_code, content = await self._post(session, "/submit/", form, files)
        if return_code != 0:
            raise Refused(content)

    async def _post(self, session: HTTPClient, path: str, form: Form, files: Files) -> tuple[Any, Any]:
        parts = {name: (name, "application/octet-stream", BytesIO(content)) for name, content in files.items()}
        try:
            response = await session.post(
                self._url + path,
                data=dict(form),
                files=parts or None,
                browser_like_redirects=True,  # they lead to a GET
                timeout=ANSWER_SECONDS,
                reactor=self._reactor,
            )
            answer = await response.json()
            return answer["return_code"], answer["content"]
        except Exception as problem:  # no connection, no answer, or none that is XQueue's
            raise Refused(f"{type(problem).__name__}: {problem}") from None


async def submit_until_queued(reactor: Any, lms: LMS, queue: Queue, learner: Learner, options: Namespace) -> None:
    """What one learner does: submit, and again when it failed."""
    request = json.loads(learner.sample.request)
    files = {name: f"the content of {name}\n".encode() for name in json.loads(request["xqueue_files"])}
    callback_url = f"{options.url}/courses/{COURSE}/xqueue/{learner.number}/{BLOCK}/score_update"
    while learner.scored_key is None:
        # The LMS makes its key of the learner and the time. The verdict may come sooner than the queue's answer.
        learner.key, learner.submitted = token_hex(16), time.monotonic()
        header = {"lms_callback_url": callback_url, "lms_key": learner.key, "queue_name": options.queue}
        try:
            await queue.send({"xqueue_header": json.dumps(header), "xqueue_body": request["xqueue_body"]}, files)
        except Refused as reason:
            learner.key = None
            lms.counts["refused"] += 1
            say(f"learner {learner.number} couldn't submit: {reason}")
            await deferLater(reactor, AGAIN_SECONDS)
        else:
            lms.counts["submitted"] += 1
            return


async def main(reactor: Any, lms: LMS, options: Namespace) -> None:
    """Let everybody submit, and wait for their scores."""
    port = await serverFromString(reactor, options.listen).listen(Site(Callback(lms)))
    options.url = f"http://{port.getHost().host}:{port.getHost().port}"
    print(f"listening on {options.url}/", flush=True)
    queue = Queue(reactor, options.gateway.rstrip("/"), options.username, options.password)
    waiting = iter(lms.learners.values())

    async def submit_one_by_one() -> None:
        for learner in waiting:
            await submit_until_queued(reactor, lms, queue, learner, options)

    counts = lms.counts
    progress = LoopingCall(lambda: say(f"{counts['submitted']} submitted, {counts['answered']} have their score"))
    progress.start(options.report_every)
    workers = [Deferred.fromCoroutine(submit_one_by_one()) for _ in range(options.concurrency)]
    await gatherResults([lms.all_scored, *workers]).addTimeout(options.deadline, reactor, lambda *late: None)
    progress.stop()
    await deferLater(reactor, 0.5)  # so that the last callback gets its answer


def say(text: str) -> None:
    """Tell a person."""
    print(f"lms: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    parser = ArgumentParser(description="A stand-in for an LMS.", epilog="Without --password-file: $LMS_PASSWORD.")
    parser.add_argument("--gateway", required=True, metavar="URL", help="with /xqueue at its end")
    parser.add_argument("--username", default="lms", metavar="NAME")
    parser.add_argument("--password-file", metavar="FILE")
    parser.add_argument("--listen", default="tcp:0:interface=127.0.0.1", help="an endpoint string (%(default)s)")
    parser.add_argument("--queue", default="6002x-problems", metavar="NAME")
    parser.add_argument("--count", type=int, default=500, help="how many learners there are (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=10, help="how many submit at once (%(default)s)")
    parser.add_argument("--seed", type=int, default=6002, help="another one makes other submissions (%(default)s)")
    parser.add_argument("--unreadable", action="store_true", help="let some submissions be ones that nobody can read")
    parser.add_argument("--deadline", type=float, default=300, help="seconds until it stops waiting (%(default)s)")
    parser.add_argument("--report-every", type=float, default=2, metavar="SECONDS", help="(%(default)s)")
    parser.add_argument("--scores", metavar="FILE", help="write each learner's score there at the end")
    chosen = parser.parse_args()
    file = chosen.password_file  # on the command line, everybody on the machine could read the password
    chosen.password = Path(file).read_text().partition("\n")[0] if file else os.environ.get("LMS_PASSWORD", "")
    samples = generate(queue=chosen.queue, run="lms", seed=chosen.seed, unreadable=chosen.unreadable)
    course = LMS(islice(samples, chosen.count))
    with suppress(SystemExit):  # whatever ended it, Ctrl-C too: the status tells about the scores
        react(main, [course, chosen])
    if chosen.scores:
        Path(chosen.scores).write_text(course.scores())
    print(json.dumps(course.summary()), flush=True)
    sys.exit(1 if course.summary()["wrong"] else 0)
