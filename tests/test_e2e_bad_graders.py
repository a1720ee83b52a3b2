"""Whatever a grader does, the real agent brings each submission to one visible end, and grades the others."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from twisted.internet.protocol import Factory

from edxagent.testing.graders import CORRECT
from edxagent.testing.http_server import (
    Behaviour,
    RogueServer,
    Visit,
    answering,
    resetting,
    saying,
    saying_and_closing,
    saying_for_ever,
    silent,
)
from tests.outcomes import INNER, Case, OutcomeTestCase, request

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

BAD_REPLIES: Mapping[str, tuple[bytes, str]] = {
    "list": (b"[]", "Expected `object`, got `array`"),
    "null": (b"null", "Expected `object`, got `null`"),
    "words": (b"correct", "isn't JSON"),
    "two": (CORRECT * 2, "isn't JSON"),
    "half": (CORRECT[:-1], "isn't JSON"),
    "nothing": (b"{}", "missing required field `correct`"),
    "text for correct": (b'{"correct": "true", "score": 1, "msg": "m"}', "Expected `bool`, got `str` - at `$.correct`"),
    "text for score": (b'{"correct": true, "score": "1", "msg": "m"}', "Expected `float`, got `str` - at `$.score`"),
    "bool for score": (b'{"correct": true, "score": true, "msg": "m"}', "Expected `float`, got `bool` - at `$.score`"),
    "no score": (b'{"correct": true, "msg": "m"}', "missing required field `score`"),
    "NaN": (b'{"correct": true, "score": NaN, "msg": "m"}', "isn't JSON"),
    "infinite": (b'{"correct": true, "score": 1e999, "msg": "m"}', "the grader's reply"),
    "negative": (b'{"correct": true, "score": -1, "msg": "m"}', "score must be"),
    "too many points": (b'{"correct": true, "score": 999999, "msg": "m"}', "score is greater than 1"),
    "empty msg": (b'{"correct": true, "score": 1, "msg": ""}', "msg is empty"),
    "blank msg": (b'{"correct": true, "score": 1, "msg": " \\n"}', "msg is empty"),
    "null msg": (b'{"correct": true, "score": 1, "msg": null}', "Expected `str`, got `null` - at `$.msg`"),
    "control character": (b'{"correct": true, "score": 1, "msg": "\\u0000"}', "control character"),
    "lone surrogate": (b'{"correct": true, "score": 1, "msg": "\\ud800"}', "the grader's reply"),
    "latin-1": (b'{"correct": true, "score": 1, "msg": "caf\xe9"}', "isn't JSON"),
    "deep": (b"[" * 10_000, "Expected `object`, got `array`"),
    "HTML": (b"<html><body>It works!</body></html>", "isn't JSON"),
}


def saying_and_resetting(data: bytes) -> Behaviour:
    """A behaviour: send just this, and hang up rudely when it has gone out."""

    def behave(visit: Visit) -> None:
        visit.send(data)
        visit.transport.reactor.callLater(0.1, visit.reset)  # type: ignore[union-attr]

    return behave


def asking_for(behaviour: str) -> bytes:
    """A request whose grader should behave so."""
    return request(inner={**INNER, "grader_payload": behaviour})


def failing(name: str, failure: str, error: str) -> Case:
    """A submission whose grader fails: the learner is told unless the fault is ours."""
    return Case(body=asking_for(name), failure=failure, error=error, told=failure != "unavailable")


class BadWebGraderTests(OutcomeTestCase):
    """Kind ``http``, and a server that does to each submission what its payload says."""

    grader = "http"

    async def check_server(self, behaviours: Mapping[str, Behaviour], cases: Mapping[str, Case]) -> None:
        """Have an agent take cases, a good one around each."""
        from twisted.internet import reactor

        def behave(visit: Visit) -> None:
            asked = json.loads(json.loads(visit.asked[-1].body)["xqueue_body"])
            behaviours.get(asked["grader_payload"], answering(CORRECT))(visit)

        server = RogueServer(behave)
        await server.start(reactor)
        self.addCleanup(server.stop)
        grader = {"kind": "http", "url": server.url, "timeout": 3}
        await self.check(cases, grader=grader, results={"max_score": 1, "max_reply": 100_000})

    async def test_replies(self) -> None:
        """A reply that the LMS would choke on never gets there."""
        behaviours = {name: answering(reply) for name, (reply, _) in BAD_REPLIES.items()}
        cases = {name: failing(name, "bad-reply", error) for name, (_, error) in BAD_REPLIES.items()}
        await self.check_server(behaviours, cases)

    async def test_statuses(self) -> None:
        """A status that isn't 200 says whether the server, we or the submission is at fault."""
        outcomes = {
            "500 Oops": "unavailable", "503 Later": "unavailable", "429 Slower": "unavailable", "404 No": "unavailable",
            "302 There": "unavailable", "401 Who": "unavailable", "204 Nothing": "bad-reply", "400 Bad": "crashed",
            "413 Large": "crashed",
        }  # fmt: skip
        headers = ("Retry-After: 1", "Location: http://127.0.0.1:1/")
        behaviours = {status: answering(CORRECT, status, headers) for status in outcomes}
        cases = {status: failing(status, outcome, f"answered {status[:3]}") for status, outcome in outcomes.items()}
        await self.check_server(behaviours, cases)

    async def test_wire(self) -> None:
        """A server that breaks off, stalls, never ends or doesn't speak HTTP holds nothing up beyond ``timeout``."""
        endless = saying_for_ever(OK + b"\r\n", b"x" * 10_000)
        behaviours: dict[str, tuple[Behaviour, str, str]] = {
            "reset": (resetting, "unavailable", "broke off"),
            "reset in body": (saying_and_resetting(OK + b"Content-Length: 1000\r\n\r\n{"), "unavailable", "broke off"),
            "closing": (saying_and_closing(b""), "unavailable", ""),
            "short body": (saying_and_closing(OK + b"Content-Length: 9\r\n\r\n{"), "unavailable", ""),
            "stalling": (silent, "timed-out", "no verdict within 3 s"),
            "stalling in headers": (saying(OK + b"X-A: 1"), "timed-out", "no verdict within 3 s"),
            "stalling in body": (saying(OK + b"Content-Length: 9\r\n\r\n{"), "timed-out", "no verdict within 3 s"),
            "endless body": (endless, "bad-reply", "longer than 100000 bytes"),
            "endless chunks": (
                saying_for_ever(CHUNKED, b"3e8\r\n" + b"x" * 1000 + b"\r\n"),
                "bad-reply",
                "longer than",
            ),
            "endless headers": (saying_for_ever(OK, b"X-A: 1\r\n" * 100), "bad-reply", "too long"),
            "too long": (answering(b"x" * 100_001), "bad-reply", "longer than 100000 bytes"),
            "bad chunks": (saying_and_closing(CHUNKED + b"zz\r\n"), "bad-reply", ""),
            "no HTTP": (saying_and_closing(b"220 smtp.example.org ESMTP\r\n"), "unavailable", "doesn't answer in HTTP"),
            "gzip": (answering(CORRECT, headers=["Content-Encoding: gzip"]), "bad-reply", "content encoding"),
        }
        cases = {name: failing(name, outcome, error) for name, (_, outcome, error) in behaviours.items()}
        await self.check_server({name: behaviour for name, (behaviour, _, _) in behaviours.items()}, cases)

    async def test_refused(self) -> None:
        """With nobody listening a submission is kept and no learner gets a 0."""
        from twisted.internet import reactor

        port = reactor.listenTCP(0, Factory(), interface="127.0.0.1")  # type: ignore[attr-defined]
        url = f"http://127.0.0.1:{port.getHost().port}/"
        await port.stopListening()
        await self.check_all_fail("unavailable", "can't be reached", {"kind": "http", "url": url})


class BadCommandTests(OutcomeTestCase):
    """Kind ``command``, and a program that does what the submission's payload says."""

    grader = "command"
    SCRIPT = r"""#!/bin/sh
read -r line
reply='{"correct": true, "score": 1, "msg": "<p>ok</p>"}'
case "$line" in
*do-exit-1*) echo "$reply" >&3; echo complaint >&2; exit 1;;
*do-kill*) kill -KILL $$;;
*do-segfault*) kill -SEGV $$;;
*do-hang*) sleep 1000;;
*do-ignore-term*) trap '' TERM; while :; do sleep 1000; done;;
*do-stdout*) echo "$reply"; exit 0;;
*do-flood-stdout*) head -c 30000000 /dev/zero; head -c 30000000 /dev/zero >&2; exit 7;;
*do-flood-verdict*) cat /dev/zero >&3;;
*do-nothing*) exit 0;;
*do-close*) exec 3>&-; sleep 0.1; exit 0;;
*do-list*) echo '[]' >&3; exit 0;;
*do-orphan*) sleep 1000 & exit 3;;
esac
echo "$reply" >&3
"""

    async def test_program(self) -> None:
        """However the program ends, it ends, and so does the submission."""
        script = Path(self.mktemp()).absolute()
        script.write_text(self.SCRIPT)
        script.chmod(0o700)
        outcomes = {
            "do-exit-1": ("crashed", "exit status 1: complaint"),
            "do-kill": ("crashed", "signal 9 (Killed)"),
            "do-segfault": ("crashed", "signal 11 (Segmentation fault)"),
            "do-hang": ("timed-out", "no verdict within 3 s"),
            "do-ignore-term": ("timed-out", "no verdict within 3 s"),
            "do-stdout": ("bad-reply", "no verdict on descriptor 3"),
            "do-flood-stdout": ("crashed", "exit status 7"),
            "do-flood-verdict": ("bad-reply", "max_reply on descriptor 3"),
            "do-nothing": ("bad-reply", "no verdict on descriptor 3"),
            "do-close": ("bad-reply", "no verdict on descriptor 3"),
            "do-list": ("bad-reply", "Expected `object`"),
            "do-orphan": ("crashed", "exit status 3"),
        }
        cases = {name: failing(name, outcome, error) for name, (outcome, error) in outcomes.items()}
        command = {"kind": "command", "command": shlex.quote(str(script)), "timeout": 3, "kill_after": 0.3}
        await self.check(cases, grader={**command, "work_dir": str(Path(self.mktemp()).absolute())})

    async def test_missing(self) -> None:
        """A program that isn't there, or can't be run, is our fault: no learner gets a 0."""
        text = Path(self.mktemp()).absolute()
        text.write_text("no program")
        errors = {"/nowhere/grader": "", "no-such-grader": "", str(text): "denied"}
        for command, error in errors.items():
            await self.check_all_fail("unavailable", error, {"kind": "command", "command": command})


class FailingGraderTests(OutcomeTestCase):
    """Kind ``failing``, which rehearses what the others do."""

    grader = "failing"

    async def test_outcomes(self) -> None:
        """Each outcome ends as it should."""
        for outcome in ("unavailable", "timed-out", "crashed", "bad-reply"):
            await self.check_all_fail(outcome, "rehearsed", {"kind": "failing", "outcome": outcome})
