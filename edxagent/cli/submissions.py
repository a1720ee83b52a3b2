"""Sample submissions, the same ones for the same seed, each with the outcome that it must have.

They are what the LMS would queue for a course like 6.002x, made for the grader in ``examples/xserver.py``; and, where
that is wanted, a share whose body no one can read, broken in as many ways.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import evolve, field, frozen

from edxagent.model import Message, Outcome
from edxagent.wire.request import encode_request

MEBIBYTE = 1024 * 1024


@frozen(kw_only=True)
class Expectation:
    """What must become of a sample."""

    outcome: Outcome
    score: float


@frozen(kw_only=True)
class Sample:
    """Something to send.

    :ivar sort: a word or two on what is special about it, or the file that it came from.
    :ivar request: the body of the AMQP message.
    :ivar expected: ``None`` where nobody can know, as for a person's own files.
    """

    submission: str
    sort: str
    request: bytes = field(repr=False)
    expected: Expectation | None = None

    def message(self, *, queue: str, reply_to: str | None, timestamp: int) -> Message:
        """What to publish: a verdict comes back under the routing key ``reply_to``, or to the usual place."""
        message = encode_request(
            queue=queue, submission=self.submission, header="", body="", timestamp=timestamp, reply_to=reply_to
        )
        return evolve(message, body=self.request)


def generate(*, queue: str, run: str, seed: int, unreadable: bool) -> Iterator[Sample]:
    """Samples without end: first one of every sort, then by their weights.

    :param run: begins every id, so that two runs are never mistaken for each other.
    :param unreadable: whether some are malformed.
    """
    rng = random.Random(seed)
    weights = {sort: weight for sort, (weight, _) in _READABLE.items()}
    if unreadable:
        weights |= dict.fromkeys(_UNREADABLE, 1)
    for number, sort in enumerate(_sorts(rng, weights), 1):
        yield _sample(rng, sort, queue, f"{run}-{number:06d}")


def _sorts(rng: random.Random, weights: Mapping[str, int]) -> Iterator[str]:
    yield from weights
    while True:
        yield from rng.choices(list(weights), list(weights.values()), k=100)


def _sample(rng: random.Random, sort: str, queue: str, submission: str) -> Sample:
    header = lms_header(queue, submission, key=f"{rng.getrandbits(128):032x}")
    if sort in _UNREADABLE:
        request = envelope(header, _UNREADABLE[sort](_body(rng, _right_number(rng))))
        expected = Expectation(outcome=Outcome.MALFORMED, score=0.0)
        return Sample(submission=submission, sort=sort, request=request, expected=expected)
    answer = _READABLE[sort][1](rng)
    files = {name: f"https://lms.example.org/files/{submission}/{name}" for name in answer.files}
    request = envelope(header, _body(rng, answer), json.dumps(files))
    expected = Expectation(outcome=Outcome.GRADED, score=answer.score)
    return Sample(submission=submission, sort=sort, request=request, expected=expected)


def lms_header(queue: str, submission: str, key: str) -> str:
    """An ``xqueue_header`` like those of the LMS (``capa/xqueue_interface.py:make_xheader``)."""
    course = "https://lms.example.org/courses/course-v1:MITx+6.002x+2026"
    block = f"block-v1:MITx+6.002x+2026+type@problem+block@{submission}"
    callback = f"{course}/xqueue/7/{block}/score_update"
    return json.dumps({"lms_callback_url": callback, "lms_key": key, "queue_name": queue})


def envelope(header: str, body: str, files: str = "{}") -> bytes:
    """The body of a request."""
    return encode_request(queue="", submission="", header=header, body=body, files=files, timestamp=0).body


# -- submissions that can be graded: sort → weight, and an answer with its score -------------------------------------


@frozen
class _Answer:
    payload: Mapping[str, Any]
    response: str
    score: float
    files: tuple[str, ...] = ()


def _body(rng: random.Random, answer: _Answer) -> str:
    student = {
        "anonymous_student_id": f"{rng.getrandbits(128):032x}",
        "submission_time": "20261123180554",
        "random_seed": 1,
    }
    body = {
        "student_info": json.dumps(student),
        "grader_payload": json.dumps(answer.payload, ensure_ascii=False),
        "student_response": answer.response,
    }
    return json.dumps(body, ensure_ascii=False)


def _voltage_divider(rng: random.Random, error: float, score: float) -> _Answer:
    """The voltage over the lower one of two resistors, read off by ``error`` volts."""
    upper, lower = rng.choice([1000, 2200, 4700]), rng.choice([1000, 3300, 6800])
    volts = round(rng.choice([5, 9, 12]) * lower / (upper + lower), 3)
    payload = {"kind": "number", "answer": volts, "tolerance": 0.01, "points": 2}
    return _Answer(payload, f"{volts + error:.3f}", score)


def _right_number(rng: random.Random) -> _Answer:
    return _voltage_divider(rng, 0.0, 2.0)


def _wrong_number(rng: random.Random) -> _Answer:
    return _voltage_divider(rng, rng.choice([-1.5, 0.7, 42.0]), 0.0)


def _close_number(rng: random.Random) -> _Answer:
    return _voltage_divider(rng, rng.choice([-0.05, 0.05]), 1.0)


def _some_parts(rng: random.Random) -> _Answer:
    parts = ["R1", "R2", "C1", "L1"]
    named = rng.sample(parts, rng.randint(1, 3))
    return _Answer({"kind": "list", "answer": parts, "points": 4}, ", ".join(named), float(len(named)))


def _other_script(rng: random.Random) -> _Answer:
    words = rng.choice(["Kirchhoffs Gesetz: Σ I = 0 Ω⁻¹", "le théorème de Thévenin", "закон Ома", "基尔霍夫定律 ⚡"])
    return _Answer({"kind": "text", "answer": words}, words, 1.0)


def _upload(rng: random.Random) -> _Answer:
    wanted = ["amplifier.cir", "Übertragung.csv"]
    sent = tuple(wanted[: rng.randint(1, 2)])
    return _Answer({"kind": "files", "answer": wanted, "points": 2}, "", float(len(sent)), sent)


def _one_mebibyte(rng: random.Random) -> _Answer:
    """The right words are the first and the last, so only the whole text gets full marks."""
    filling = "a resistor of no use, " * (MEBIBYTE // 22 + 1)
    return _Answer({"kind": "list", "answer": ["R1", "C1"], "points": 2}, f"R1, {filling}C1", 2.0)


_READABLE: Mapping[str, tuple[int, Callable[[random.Random], _Answer]]] = {
    "correct": (45, _right_number),
    "wrong": (20, _wrong_number),
    "partial": (15, _close_number),
    "a part of a list": (10, _some_parts),
    "not ASCII": (8, _other_script),
    "with files": (8, _upload),
    "1 MiB": (0, _one_mebibyte),
}


# -- submissions that can't be read: sort → how to spoil a body ------------------------------------------------------

_UNREADABLE: Mapping[str, Callable[[str], str]] = {
    "not JSON": lambda body: "print(1)",
    "not an object": lambda body: "[1, 2, 3]",
    "nested 10,000 deep": lambda body: "[" * 10_000 + "]" * 10_000,
    "cut off": lambda body: body[:-20],
    "empty": lambda body: "",
    "NaN": lambda body: '{"student_response": NaN, "grader_payload": "{}"}',
    "a number as payload": lambda body: '{"student_response": "6", "grader_payload": 6}',
    "a list as response": lambda body: '{"student_response": ["6"], "grader_payload": "{}"}',
    "no response": lambda body: '{"grader_payload": "{}", "student_info": "{}"}',
}
