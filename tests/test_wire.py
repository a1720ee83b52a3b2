"""Tests for :mod:`edxagent.wire`."""

from __future__ import annotations

import hashlib
import json

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from edxagent.errors import MalformedRequest
from edxagent.model import Message, Outcome, Properties, Verdict
from edxagent.wire.dead_letter import encode_dead_letter
from edxagent.wire.request import attempt_of, decode_request, encode_request, grader_request, requeued_request
from edxagent.wire.result import Phases, Result, decode_result, encode_result
from edxagent.wire.retry import Attempts
from edxagent.words import MAX_REASON, shorten

HEADER = '{"lms_callback_url": "http://lms/", "lms_key": "secret", "queue_name": "q"}'
INNER = {"student_info": "{}", "grader_payload": "not json", "student_response": "prínt(1)"}
LIMIT = 10_000
PLAIN = Properties()


def request(**changes: object) -> bytes:
    """A request's body with some of its three texts changed or, for ``None``, left out."""
    envelope = {"xqueue_header": HEADER, "xqueue_body": json.dumps(INNER), "xqueue_files": "{}", **changes}
    return json.dumps({key: value for key, value in envelope.items() if value is not None}).encode()


def inner(**changes: object) -> str:
    """An ``xqueue_body`` with some of its keys changed or left out."""
    return json.dumps({key: value for key, value in {**INNER, **changes}.items() if value is not None})


class DecodeRequestTests(SynchronousTestCase):
    """What is a request, and what is malformed."""

    def refused(self, body: bytes, properties: Properties = PLAIN) -> MalformedRequest:
        """The error for a body that must not be accepted."""
        return self.assertRaises(MalformedRequest, decode_request, body, properties, "q", LIMIT)

    def test_verbatim(self) -> None:
        """The LMS's three strings come through as they were."""
        submission = decode_request(request(), Properties(message_id="1"), "q", LIMIT)
        self.assertEqual((submission.header, json.loads(submission.body)), (HEADER, INNER))
        self.assertEqual(submission.files, "{}")

    def test_inner_texts(self) -> None:
        """The body's own three strings are at hand; a grader_payload that is no JSON is legal."""
        submission = decode_request(request(), Properties(message_id="1"), "q", LIMIT)
        self.assertEqual(submission.student_response, "prínt(1)")
        self.assertEqual(submission.grader_payload, "not json")

    def test_without_message_id(self) -> None:
        """A producer that gives no id gets the body's SHA-256, so that a duplicate has the same."""
        submission = decode_request(request(), Properties(), "q", LIMIT)
        self.assertEqual(submission.id, hashlib.sha256(request()).hexdigest())

    def test_type_may_be_absent(self) -> None:
        """No type, or ours, is accepted."""
        for kind in (None, "grading.request"):
            self.assertEqual(decode_request(request(), Properties(type=kind), "q", LIMIT).queue, "q")

    def test_another_type(self) -> None:
        """Another type is malformed, and yet the learner can be told."""
        self.assertEqual(self.refused(request(), Properties(type="grading.result")).header, HEADER)

    def test_files_may_be_missing(self) -> None:
        """Files are optional, or an empty text; they are never ``None`` inside."""
        for files in (None, ""):
            submission = decode_request(request(xqueue_files=files), Properties(), "q", LIMIT)
            self.assertEqual(submission.files, "{}")

    def test_not_json(self) -> None:
        """Bytes that are no JSON at all leave nobody to tell."""
        for body in (b"", b"\x00", b"hello", b'{"xqueue_header":', b"\xff\xfe{}", b"NaN"):
            self.assertIsNone(self.refused(body).header)

    def test_other_shapes(self) -> None:
        """JSON that isn't an object with the right texts is refused."""
        for body in (b"[]", b"1", b'"x"', b"null", b"{}", request(xqueue_header=None), request(xqueue_header="")):
            self.assertIsNone(self.refused(body).header)

    def test_wrong_types_with_header(self) -> None:
        """When only the header can be read, the error holds it."""
        for change in ({"xqueue_body": 1}, {"xqueue_body": None}, {"xqueue_files": []}):
            self.assertEqual(self.refused(request(**change)).header, HEADER)

    def test_inner_of_other_shape(self) -> None:
        """An xqueue_body that isn't what the LMS writes is refused; the header is known."""
        for text in (
            "",
            "[]",
            "nope",
            '{"student_response": NaN}',
            inner(student_response=None),
            inner(student_response=1),
            inner(grader_payload=None),
            inner(grader_payload={}),
            inner(student_info=7),
        ):
            self.assertEqual(self.refused(request(xqueue_body=text)).header, HEADER)

    def test_an_empty_payload(self) -> None:
        """An empty ``<grader_payload/>`` of a course is null in what the LMS writes: an empty text for the grader."""
        body = json.dumps({**INNER, "grader_payload": None})
        self.assertEqual(decode_request(request(xqueue_body=body), Properties(), "q", LIMIT).grader_payload, "")

    def test_student_info_may_be_missing(self) -> None:
        """student_info is for graders that want it."""
        self.assertEqual(
            decode_request(request(xqueue_body=inner(student_info=None)), Properties(), "q", LIMIT).student_info, "{}"
        )

    def test_too_large(self) -> None:
        """A body beyond the limit isn't even parsed."""
        self.assertIn("10000 bytes", str(self.refused(request(xqueue_files="x" * LIMIT))))

    def test_deep_nesting(self) -> None:
        """Ten thousand brackets neither crash nor stop us, outside or inside."""
        deep = "[" * 10_000 + "]" * 10_000
        body = b'{"xqueue_header": "h", "xqueue_body": "{}", "more": ' + deep.encode() + b"}"
        error = self.assertRaises(MalformedRequest, decode_request, body, Properties(), "q", 10**6)
        self.assertIn("nested", str(error))
        error = self.assertRaises(
            MalformedRequest, decode_request, request(xqueue_body=f'{{"a": {deep}}}'), Properties(), "q", 10**6
        )
        self.assertEqual(error.header, HEADER)

    def test_lone_surrogate(self) -> None:
        """Half a character, which UTF-8 can't hold, is malformed."""
        self.refused(request(xqueue_body='{"student_response": "\\ud800", "grader_payload": ""}'))

    def test_reasons_quote_nothing(self) -> None:
        """No reason holds what the learner wrote or the LMS's key."""
        for body in (request(xqueue_body=inner(student_response=["my answer"])), request(xqueue_files=["my answer"])):
            self.assertNotIn("answer", str(self.refused(body)))
            self.assertNotIn("secret", str(self.refused(body)))

    def test_repr_shows_no_secret(self) -> None:
        """What might end in a log holds neither header nor answer."""
        submission = decode_request(request(), Properties(message_id="1"), "q", LIMIT)
        for value in (submission, grader_request(submission)):
            self.assertNotIn("secret", repr(value))
            self.assertNotIn("prínt", repr(value))
        result = Result(submission="1", outcome="graded", header="secret", verdict={"msg": "prínt"}, headers={})
        self.assertNotIn("secret", repr(result))
        self.assertNotIn("prínt", repr(result))

    def test_grader_sees_no_header(self) -> None:
        """A grader gets everything but the header."""
        seen = grader_request(decode_request(request(), Properties(message_id="1"), "q", LIMIT))
        self.assertFalse(any("secret" in str(getattr(seen, name)) for name in seen.__slots__ if name[0] != "_"))

    def test_round_trip(self) -> None:
        """What ``encode_request`` writes is read back."""
        message = encode_request(
            queue="q", submission="7", header=HEADER, body=inner(), files='{"a": "u"}', timestamp=1
        )
        submission = decode_request(message.body, message.properties, "q", LIMIT)
        self.assertEqual((submission.id, submission.header, submission.files), ("7", HEADER, '{"a": "u"}'))
        self.assertEqual((message.exchange, message.routing_key), ("grading.requests", "q"))
        self.assertEqual(message.properties.delivery_mode, 2)


class AttemptTests(SynchronousTestCase):
    """The header ``x-attempt``."""

    def test_attempt(self) -> None:
        """A sound number counts; anything else is the first attempt."""
        for value, expected in ((3, 3), (0, 1), (-1, 1), (True, 1), ("2", 1), (2.0, 1), (10**9, 1), (None, 1)):
            self.assertEqual(attempt_of(Properties(headers={"x-attempt": value})), expected)


class EncodeResultTests(SynchronousTestCase):
    """A verdict as the LMS side gets it."""

    def message(self, request: Properties = PLAIN) -> Message:
        """A result for a request with such properties."""
        return encode_result(
            routing_key="grading.results",
            header=HEADER,
            verdict=Verdict(correct=True, score=0.5, msg="<p>ü</p>"),
            outcome=Outcome.GRADED,
            agent="a",
            grader="http",
            queue="q",
            request=request,
            submission="7",
            phases=Phases(received=1.0, started=2.0, finished=3.5),
        )

    def test_body(self) -> None:
        """The header is verbatim; the body is JSON text with the three keys and no other."""
        body = json.loads(self.message().body)
        self.assertEqual(body["xqueue_header"], HEADER)
        self.assertEqual(json.loads(body["xqueue_body"]), {"correct": True, "score": 0.5, "msg": "<p>ü</p>"})

    def test_properties(self) -> None:
        """The id is the request's; headers say by whom, from where, when and how it ended."""
        properties = self.message(
            Properties(correlation_id="c", headers={"x-origin": "bridge:a", "x-attempt": 2, "x-death": []})
        ).properties
        self.assertEqual((properties.message_id, properties.type), ("7", "grading.result"))
        self.assertEqual((properties.correlation_id, properties.timestamp), ("c", 3))
        self.assertEqual(
            properties.headers,
            {
                "x-outcome": "graded",
                "x-agent": "a",
                "x-grader": "http",
                "x-queue": "q",
                "x-attempt": 2,
                "x-origin": "bridge:a",
                "x-received": 1.0,
                "x-started": 2.0,
                "x-finished": 3.5,
            },
        )

    def test_read_back(self) -> None:
        """``decode_result`` reads it."""
        message = self.message()
        result = decode_result(message.body, message.properties)
        self.assertEqual((result.submission, result.outcome, result.verdict["score"]), ("7", "graded", 0.5))

    def test_not_a_result(self) -> None:
        """Anything else is a ``ValueError``."""
        for body in (b"", b"[]", b"{}", b'{"xqueue_header": "", "xqueue_body": "[]"}', b"[" * 100_000):
            self.assertRaises(ValueError, decode_result, body, Properties())


class EncodeDeadLetterTests(SynchronousTestCase):
    """A request that got no verdict."""

    def message(self, reason: str = "why", **headers: object) -> Message:
        """The dead letter of a request."""
        known = {"x-origin": "o", "x-death": [{}], "x-attempt": 4}
        return encode_dead_letter(
            queue="q",
            body=b"\xff",
            request=Properties(reply_to="r", type="t", headers={**known, **headers}),
            submission="7",
            outcome=Outcome.CRASHED,
            reason=reason,
            agent="a",
            grader="http",
            attempts=Attempts(attempt=4, failures={"crashed": 2}, first_failed=7.5, history=("3 …", "4 …")),
            told_learner=False,
            time=12.5,
        )

    def test_verbatim(self) -> None:
        """Body and reply address stay, for a replay."""
        message = self.message()
        self.assertEqual((message.body, message.properties.reply_to, message.properties.type), (b"\xff", "r", "t"))
        self.assertEqual((message.exchange, message.routing_key), ("grading.dead", "q"))

    def test_headers(self) -> None:
        """Headers say why, who, when and after which attempts; the broker's own are gone."""
        self.assertEqual(
            self.message().properties.headers,
            {
                "x-origin": "o",
                "x-outcome": "crashed",
                "x-error": "why",
                "x-agent": "a",
                "x-grader": "http",
                "x-queue": "q",
                "x-attempt": 4,
                "x-failures": {"crashed": 2},
                "x-first-failed": 7.5,
                "x-history": ["3 …", "4 …"],
                "x-told-learner": False,
                "x-time": 12.5,
            },
        )

    def test_reason_fits_a_frame(self) -> None:
        """However long the reason, the header stays small."""
        reason = self.message(reason="ü\n" * 5000).properties.headers["x-error"]
        self.assertLessEqual(len(reason.encode()), MAX_REASON)
        self.assertNotIn("\n", reason)

    def test_foreign_headers_fit_a_frame(self) -> None:
        """What a producer wrote comes along only where it is a short text."""
        self.assertEqual(self.message(traceparent="00-ab").properties.headers["traceparent"], "00-ab")
        for value in ("x" * 256, 1, None, [], {"a": "b"}):
            headers = self.message(**{"x-origin": value, "traceparent": value}).properties.headers
            self.assertNotIn("x-origin", headers)
            self.assertNotIn("traceparent", headers)


class RequeuedRequestTests(SynchronousTestCase):
    """A request that goes back as a new message."""

    def test_same_request(self) -> None:
        """It goes straight to its queue, and no other, with all it had but for the broker's count."""
        past = Attempts(attempt=2, failures={"crashed": 1}, first_failed=7.5, history=("1 …",)).headers()
        properties = Properties(message_id="1", headers={"x-delivery-count": 12, "CC": ["other"], "BCC": ["q"], **past})
        message = requeued_request("q", b"body", properties)
        self.assertEqual((message.exchange, message.routing_key, message.body), ("", "q", b"body"))
        self.assertEqual(message.properties, evolve(properties, headers=past))


class ShortenTests(SynchronousTestCase):
    """Text from outside, made fit for one line."""

    def test_no_control_characters(self) -> None:
        """Line breaks and escapes become spaces."""
        self.assertEqual(shorten("a\nb\x1b[31mc"), "a b [31mc")

    def test_whole_characters(self) -> None:
        """The limit counts bytes and cuts no character in two."""
        self.assertEqual(shorten("üü", 3), "ü")

    def test_surrogates(self) -> None:
        """Halves of characters don't raise."""
        self.assertEqual(shorten("a\ud800b"), "a b")
