"""Whatever lies in a request queue: the real agent brings it to one visible end, and grades its neighbours."""

from __future__ import annotations

import json
from typing import Any

from tests.outcomes import HEADER, INNER, LEARNER, LMS_KEY, Case, OutcomeTestCase, request, without


class BadBodyTests(OutcomeTestCase):
    """Bodies that are no requests, and odd ones that are."""

    async def test_no_json(self) -> None:
        """What is no JSON ends as a dead letter that nobody is told of."""
        deep = b"[" * 10_000 + b"]" * 10_000
        bodies = {
            "empty": b"",
            "blank": b" \n",
            "words": LEARNER.encode(),
            "half": request()[:-1],
            "two": request() * 2,
            "NaN": request().replace(b"42", b"NaN").replace(b'"{}"', b"NaN"),
            "infinite": b'{"xqueue_header": -Infinity}',
            "utf-16": request().decode().encode("utf-16"),
            "byte order mark": b"\xef\xbb\xbf" + request(),
            "binary": bytes(range(256)) * 100,
            "zeros": b"\0" * 1000,
            "lone surrogate": request().replace(b"no JSON", b"\\ud800"),
            "surrogate in header": request().replace(b"submission_id", b"\\ud800"),
        }
        cases = {name: Case(body=body, error="", told=False) for name, body in bodies.items()}
        cases["deep"] = Case(body=deep, error="", told=False)
        await self.check(cases)

    async def test_another_shape(self) -> None:
        """JSON that is no request ends as a dead letter; the learner is told if the header can be read."""
        bodies: dict[str, Any] = {
            "null": None, "number": 1e308, "text": LEARNER, "list": [LEARNER], "pairs": [["xqueue_header", HEADER]],
            "nothing": {}, "null header": {"xqueue_header": None}, "header object": {"xqueue_header": {"a": LMS_KEY}},
            "header list": {"xqueue_header": [HEADER]}, "header number": {"xqueue_header": 10**400},
            "no header": {"xqueue_body": "{}"}, "capitals": {"XQUEUE_HEADER": HEADER},
        }  # fmt: skip
        encoded = {name: json.dumps(body).encode() for name, body in bodies.items()}
        cases = {name: Case(body=body, error="the request", told=False) for name, body in encoded.items()}
        cases["empty header"] = Case(body=request(header=""), error="xqueue_header is empty", told=False)
        told = {
            "header only": json.dumps({"xqueue_header": HEADER}).encode(),
            "body object": request(xqueue_body=INNER),
            "body null": request(xqueue_body=None),
            "body number": request(xqueue_body=10**400),
            "files object": request(xqueue_files={}),
            "files null": request(xqueue_files=None),
            "latin-1": request().replace(b"no JSON", b"caf\xe9"),
            "overlong": request().replace(b"no JSON", b"\xc0\x80"),
            "deep beside": request(xqueue_files=json.loads("[" * 900 + "]" * 900)),
        }
        cases |= {name: Case(body=body, error="the request") for name, body in told.items()}
        await self.check(cases)

    async def test_bad_inner_body(self) -> None:
        """An ``xqueue_body`` that can't be read ends as a dead letter, and the learner is told."""
        inner: dict[str, Any] = {
            "empty": "", "words": LEARNER, "list": "[]", "null": "null", "number": "1", "NaN": '{"student_info": NaN}',
            "deep": "[" * 10_000 + "]" * 10_000, "deep object": '{"a":' * 10_000 + "1" + "}" * 10_000,
            "no response": without("student_response", INNER), "no payload": without("grader_payload", INNER),
            "response number": {**INNER, "student_response": 10**400},
            "response null": {**INNER, "student_response": None},
            "payload object": {**INNER, "grader_payload": {}}, "info object": {**INNER, "student_info": {}},
        }  # fmt: skip
        await self.check({name: Case(body=request(inner=each), error="xqueue_body") for name, each in inner.items()})

    async def test_odd_but_legal(self) -> None:
        """What is unusual but can be read is graded."""
        odd = "\x00\x1b[2J\u202e\U0001f600 \ufffe \x7f" + LEARNER
        bodies = {
            "payload no JSON": request(inner={**INNER, "grader_payload": "{'not': JSON"}),
            "payload NaN": request(inner={**INNER, "grader_payload": "NaN"}),
            "empty texts": request(inner={"student_response": "", "grader_payload": ""}),
            "no info": request(inner=without("student_info", INNER)),
            "no files": json.dumps({"xqueue_header": HEADER, "xqueue_body": json.dumps(INNER)}).encode(),
            "files no JSON": request(xqueue_files="<files/>"),
            "empty files": request(xqueue_files=""),
            "other keys": request(inner={**INNER, "extra": [1, {"a": None}]}, extra={"b": 10**400}),
            "odd texts": request(header=HEADER + odd, inner={**INNER, "student_response": odd, "grader_payload": odd}),
            "header no JSON": request(header=odd),
            "deep payload": request(inner={**INNER, "grader_payload": "[" * 10_000}),
            "1 MiB": request(inner={**INNER, "student_response": LEARNER + "é" * (1 << 19)}),
            "blanks around": b"\n " + request() + b" \r\n",
        }
        await self.check({name: Case(body=body) for name, body in bodies.items()})

    async def test_large(self) -> None:
        """A body above ``max_request`` isn't looked into; 50 MB of it arrive among the dead letters."""
        huge = request(inner={**INNER, "student_response": "x" * 50_000_000})
        just_fits = request().ljust(1 << 20)
        cases = {
            "50 MB": Case(body=huge, error="more than 1048576 bytes", told=False),
            "one too many": Case(body=just_fits + b" ", error="more than 1048576 bytes", told=False),
            "just fits": Case(body=just_fits),
        }
        await self.check(cases, agent={"max_request": "1 MiB"})
