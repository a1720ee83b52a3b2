"""Tests for :mod:`edxagent.lms.gateway.agent_config`."""

from __future__ import annotations

import hashlib
import json

from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from edxagent.config.lms_values import AgentGrant
from edxagent.lms.contracts import IAgentConfig
from edxagent.lms.gateway.agent_config import AgentConfigAnswers

URL = "amqps://grader:hunter2@rabbit.example.org/"


def grant(key: str, **queues: int) -> AgentGrant:
    """A grant for a key."""
    return AgentGrant(
        name=f"grant-of-{key}", key_hash=hashlib.sha256(key.encode()).hexdigest(), broker_urls=(URL,), queues=queues
    )


class AgentConfigAnswersTests(SynchronousTestCase):
    """Who is told what."""

    def setUp(self) -> None:
        """Two grants."""
        self.answers: IAgentConfig = AgentConfigAnswers([grant("key-one", q=2), grant("key-two", r=1)])

    def test_each_key_its_own(self) -> None:
        """An agent gets the broker and the queues that go with its key, and no others."""
        for key, queues in (("key-one", {"q": {"weight": 2}}), ("key-two", {"r": {"weight": 1}})):
            status, body = self.answers.answer(f"Bearer {key}")
            self.assertEqual((status, json.loads(body)), (200, {"broker": {"urls": [URL]}, "queues": queues}))

    def test_scheme(self) -> None:
        """The scheme's case doesn't matter (RFC 9110 §11.1)."""
        self.assertEqual(self.answers.answer("bearer key-one")[0], 200)

    def test_refused(self) -> None:
        """Any other header, or none, is refused, and the answer tells nothing."""
        digest = hashlib.sha256(b"key-one").hexdigest()
        for header in (
            None, "", "Bearer", "Bearer ", "Basic key-one", "key-one", "Bearer key", "Bearer key-one2",
            "Bearer KEY-ONE", f"Bearer {digest}", "Bearer key-one key-two", "Bearer é\ud800", "Bearer " + "x" * 10_000,
        ):  # fmt: skip
            status, body = self.answers.answer(header)
            self.assertEqual((status, list(json.loads(body))), (401, ["error"]), header)

    def test_hash_of_nothing(self) -> None:
        """A grant whose hash is that of an empty key is for nobody."""
        answers = AgentConfigAnswers([grant("")])
        for header in (None, "", "Bearer", "Bearer "):
            self.assertEqual(answers.answer(header)[0], 401)

    def test_no_grants(self) -> None:
        """Without grants nobody is told anything."""
        self.assertEqual(AgentConfigAnswers([]).answer("Bearer key-one")[0], 401)

    def test_log(self) -> None:
        """The log tells the grant's name, and neither the key nor the broker's password."""
        with capturedLogs() as logged:
            self.answers.answer("Bearer key-one")
            self.answers.answer("Bearer key-three")
        self.assertEqual([event.get("grant") for event in logged], ["grant-of-key-one", None])
        for secret in ("hunter2", "key-three"):
            self.assertNotIn(secret, str(logged))
