"""Sends messages of any sort to the real agent, and sees what becomes of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from attrs import field, frozen

from edxagent.amqp.delivery import Delivery
from edxagent.verdict import check_verdict
from tests.agentprocess import AgentProcess, AgentTestCase

LMS_KEY = "key-of-the-lms-5d1f"
LEARNER = "text-of-the-learner-8ac2"
SECRETS = (LMS_KEY, LEARNER)
HEADER = json.dumps({"submission_id": 42, "submission_key": LMS_KEY})
INNER = {"student_response": LEARNER, "grader_payload": "no JSON", "student_info": "{}"}


def request(header: Any = HEADER, inner: Any = INNER, **changes: Any) -> bytes:
    """A request as the LMS makes them, or with changes."""
    body = inner if isinstance(inner, str) else json.dumps(inner)
    return json.dumps({"xqueue_header": header, "xqueue_body": body, "xqueue_files": "{}", **changes}).encode()


def without(key: str, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping without a key."""
    return {name: value for name, value in mapping.items() if name != key}


def not_utf8(data: bytes) -> str:
    """Bytes as a property that goes out just so."""
    return data.decode("utf-8", "surrogateescape")


IMPATIENT: Mapping[str, Mapping[str, object]] = {
    "retry": {"delays": 0.2, "crash_attempts": 1, "give_up_after": 1},
    "breaker": {"failures": 1000},
}
"""Sections for an agent that soon gives up."""


@frozen(kw_only=True)
class Case:
    """A message and what should become of it.

    :ivar error: words of the dead letter's ``x-error``; ``None`` = it is graded.
    :ivar failure: its outcome word when it isn't graded.
    :ivar told: whether the learner gets a verdict.
    """

    body: bytes = field(repr=False, factory=request)
    error: str | None = None
    failure: str = "malformed"
    told: bool = True
    properties: Mapping[str, Any] = field(factory=dict)

    @property
    def outcome(self) -> str:
        """The outcome word."""
        return "graded" if self.error is None else self.failure


class OutcomeTestCase(AgentTestCase):
    """Sends messages, between good ones, through a real agent.

    :ivar grader: the kind of grader that the agent has.
    """

    grader = "fixed"

    async def agent(self, **sections: Mapping[str, object]) -> AgentProcess:
        """An agent that is at work, and impatient."""
        return await super().agent(**{**IMPATIENT, **sections})

    async def send(self, case: Case, name: str) -> str:
        """Publish a case; returns the id that its outcome will have."""
        properties = {"message_id": name, "type": "grading.request", **case.properties}
        await self.publish(case.body, **properties)
        return properties["message_id"] or sha256(case.body).hexdigest()

    async def check(self, cases: Mapping[str, Case], **sections: Mapping[str, object]) -> dict[str, Delivery]:
        """Have an agent take cases with good ones around each; returns the verdicts by submission."""
        agent = await self.agent(**sections)
        await self.send(Case(), "good before")
        expected = {"good before": Case()}
        for number, (name, case) in enumerate(cases.items()):
            expected[await self.send(case, name)] = case
            expected[await self.send(Case(), f"good {number}")] = Case()
        verdicts = await self.outcomes(agent, expected)
        self.assertEqual(await agent.stop(), -15)
        self.assert_clean(agent, SECRETS)
        return verdicts

    async def check_all_fail(self, failure: str, error: str, grader: Mapping[str, object]) -> None:
        """Have an agent with a certain grader take a few good requests, and fail at each."""
        agent = await self.agent(grader=grader)
        case = Case(failure=failure, error=error, told=failure != "unavailable")
        await self.outcomes(agent, {await self.send(case, str(number)): case for number in range(3)})
        self.assertEqual(await agent.stop(), -15)
        self.assert_clean(agent, SECRETS)

    async def outcomes(self, agent: AgentProcess, expected: Mapping[str, Case]) -> dict[str, Delivery]:
        """See that each message has the end that it should have, one and no more; returns the verdicts."""
        told = {name: case for name, case in expected.items() if case.told}
        failed = {name: case for name, case in expected.items() if case.error is not None}
        dead = {str(each.properties.message_id): each for each in await self.collect(self.dead, len(failed))}
        verdicts = {str(each.properties.message_id): each for each in await self.collect(self.results, len(told))}
        self.assertEqual(set(dead), set(failed))
        self.assertEqual(set(verdicts), set(told))
        for name, case in failed.items():
            self.check_dead_letter(dead[name], case)
        for name, case in told.items():
            self.check_result(verdicts[name], case)
        await self.until_settled()
        self.assertEqual((await self.ready_in(self.dead), await self.ready_in(self.results)), (0, 0))
        self.assertTrue(agent.alive)
        return verdicts

    def check_dead_letter(self, letter: Delivery, case: Case) -> None:
        """A dead letter holds the request as it was, and says why it is there."""
        headers = dict(letter.properties.headers)
        self.assertTrue(letter.body == case.body, "the body isn't verbatim")
        self.assertIn(case.error, headers.pop("x-error"), letter.properties.message_id)
        self.assertIsInstance(headers.pop("x-time"), float)
        attempt = headers.pop("x-attempt")
        self.assertEqual(attempt > 1, case.outcome == "unavailable")
        self.assertEqual((len(headers.pop("x-history")), headers.pop("x-failures")), (attempt, {case.outcome: attempt}))
        told = {"x-outcome": case.outcome, "x-agent": "e2e", "x-told-learner": case.told}
        self.assertEqual(headers, {**headers, **told, "x-queue": self.requests, "x-grader": self.grader})
        for name in ("type", "correlation_id", "reply_to"):
            self.assertEqual(getattr(letter.properties, name), {"type": "grading.request", **case.properties}.get(name))

    def check_result(self, result: Delivery, case: Case) -> None:
        """A result is one that the LMS takes, and answers the request."""
        body = json.loads(result.body)
        verdict = check_verdict(body["xqueue_body"].encode(), max_size=1 << 20)
        self.assertIn(json.dumps(body["xqueue_header"]).encode(), case.body)
        self.assertEqual((verdict.correct, verdict.score), (True, 1.0) if case.error is None else (False, 0.0))
        self.assertEqual(result.properties.headers["x-outcome"], case.outcome)
        self.assertEqual(result.properties.correlation_id, case.properties.get("correlation_id"))
