"""Tests for :mod:`edxagent.config.lms_answer` and ``[lms-config]``: what the LMS side tells an agent."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from edxagent.config.lms_answer import LARGEST_ANSWER, parse_answer
from edxagent.config.lms_values import AgentGrant
from edxagent.config.values import (
    AgentConfig,
    BrokerConfig,
    GraderConfig,
    LMSSourceConfig,
    QueueConfig,
    TLSConfig,
)
from edxagent.errors import BadAnswer
from edxagent.lms.gateway.agent_config import answer_for
from tests.test_config_agent import AgentConfigCase

TLS = TLSConfig(ca_file="/etc/ca.pem")
CONFIG = AgentConfig(
    name="agent-1",
    broker=BrokerConfig(addresses=(), heartbeat=7),
    queues=(),
    grader=GraderConfig(kind="fixed"),
    lms=LMSSourceConfig(url="https://lms/agent/config", api_key="k", tls=TLS, broker_password="from-the-file"),
)
URL = "amqps://grader:hunter2@rabbit.example.org/exam"
KEY = "0123456789abcdef"


def answer(urls: Any = (URL,), queues: Any = None, **more: Any) -> bytes:
    """An answer, good by default."""
    return json.dumps({"broker": {"urls": urls}, "queues": {"q": {}} if queues is None else queues, **more}).encode()


class ParseAnswerTests(SynchronousTestCase):
    """The answer."""

    def test_good(self) -> None:
        """Addresses and queues are the answer's, everything else is the file's."""
        told = parse_answer(answer([URL, "amqp://u@10.0.0.1"], {"6002x:%": {"weight": 2}, "b": {}}), CONFIG)
        first, second = told.broker.addresses
        self.assertEqual(
            (first.host, first.password, first.vhost, first.tls), ("rabbit.example.org", "hunter2", "exam", TLS)
        )
        self.assertEqual((second.host, second.password, second.tls), ("10.0.0.1", "from-the-file", None))
        self.assertEqual(told.queues, (QueueConfig(name="6002x:%", weight=2), QueueConfig(name="b")))
        self.assertEqual((told.broker.heartbeat, told.grader, told.lms), (7, CONFIG.grader, CONFIG.lms))

    def test_of_a_grant(self) -> None:
        """What the LMS side answers is understood."""
        grant = AgentGrant(name="g", key_hash="", broker_urls=(URL,), queues={"q": 3})
        told = parse_answer(answer_for(grant), CONFIG)
        self.assertEqual(told.queues, (QueueConfig(name="q", weight=3),))

    def test_newer(self) -> None:
        """Keys that a later LMS side may add don't matter."""
        told = parse_answer(answer(queues={"q": {"weight": 2, "colour": "red"}}, more=[1]), CONFIG)
        self.assertEqual(told.queues, (QueueConfig(name="q", weight=2),))

    def test_bad(self) -> None:
        """Whatever is wrong is said, and no part of it quoted."""
        for bad, saying in (
            (b"", "isn't JSON"),
            (b"<html>hunter2</html>", "isn't JSON"),
            (b"\xff", "isn't JSON"),
            (answer()[:-1] + b', "more": "\xff"}', "isn't JSON"),
            (b"[" * 100_000, "isn't"),
            (b"[]", "Expected `object`"),
            (b"{}", "missing required field"),
            (answer(urls=URL), "Expected `array`"),
            (answer(urls=[]), "0 broker URLs"),
            (answer(urls=[URL] * 33), "33 broker URLs"),
            (answer(urls=[5]), "Expected `str`"),
            (answer(urls=[URL, "http://hunter2"]), "broker URL 2"),
            (answer(urls=["amqp://hunter2\n@rabbit/"]), "broker URL 1"),
            (answer(urls=["amqp://" + "x" * 3000]), "broker URL 1"),
            (answer(queues=[]), "Expected `object`"),
            (answer(queues={}), "0 queues"),
            (answer(queues={str(number): {} for number in range(1001)}), "1001 queues"),
            (answer(queues={"hunter2\n": {}}), "queue 1"),
            (answer(queues={"": {}}), "queue 1"),
            (answer(queues={"amq.hunter2": {}}), "queue 1"),
            (answer(queues={"hunter2.dead": {}}), "queue 1"),
            (answer(queues={"x" * 201: {}}), "queue 1"),
            (answer(queues={"q": {"weight": 0}}), "weight is 0"),
            (answer(queues={"q": {"weight": 1001}}), "weight is 1001"),
            (answer(queues={"q": {"weight": "2"}}), "Expected `int`"),
            (answer(queues={"q": 1}), "Expected `object`"),
            (answer(queues={"grading.results": {}}), "verdicts would be graded"),
            (answer() + b" " * LARGEST_ANSWER, "more than"),
        ):
            error = self.assertRaises(BadAnswer, parse_answer, bad, CONFIG)
            self.assertIn(saying, str(error))
            self.assertNotIn("hunter2", str(error))
            self.assertNotIn("\n", str(error))

    @given(st.binary() | st.recursive(st.none() | st.text(), st.lists).map(lambda x: json.dumps(x).encode()))
    def test_anything(self, data: bytes) -> None:
        """Nothing but ``BadAnswer`` comes of what isn't an answer."""
        self.assertRaises(BadAnswer, parse_answer, data, CONFIG)


class SectionTests(AgentConfigCase):
    """``[lms-config]`` in the file."""

    def setUp(self) -> None:
        """A key in the environment."""
        super().setUp()
        self.environment["KEY"] = KEY

    def section(self, **changes: Any) -> dict[str, Any]:
        """The rest of the file, with this section in the place of URLs and queues."""
        section = {"url": "https://lms.example.org/agent/config", "api_key": "${KEY}", **changes}
        return {"broker": {"urls": ...}, "queues": {"6002x-exam": ...}, "lms-config": section}

    def test_values(self) -> None:
        """URLs and queues may be left out then; TLS and the password for what is told come from [broker]."""
        config = self.read(**self.section())
        self.assertEqual((config.broker.addresses, config.queues), ((), ()))
        self.assertEqual(config.lms, LMSSourceConfig(url="https://lms.example.org/agent/config", api_key=KEY))
        sections = self.section()
        sections["broker"] |= {"password": "${PW}", "tls_verify": "no"}
        config = self.read(**sections)
        assert config.lms is not None
        self.assertEqual((config.lms.broker_password, config.lms.tls), ("hunter2", TLSConfig(verify=False)))

    def test_empty_section(self) -> None:
        """A section with nothing in it changes nothing, as it is in the file that is shipped."""
        self.assertIsNone(self.read(**{"lms-config": {}}).lms)

    def test_both(self) -> None:
        """What the LMS tells can't be given as well, in the file or on the command line."""
        sections = self.section()
        self.refused(saying="the LMS tells the queues", **{**sections, "queues": {}})
        self.refused(saying="the LMS tells them", **{**sections, "broker": {}})
        self.overrides = {"broker.urls": "amqp://guest@127.0.0.1"}
        self.refused(saying="the LMS tells them", **sections)

    def test_url(self) -> None:
        """The answer holds passwords: it must come over TLS, or from this machine."""
        for good in ("https://lms/agent/config", "http://127.0.0.1:1/a", "http://[::1]/a", "http://localhost/a"):
            self.read(**self.section(url=good))
        for bad in ("http://lms.example.org/", "http://127.0.0.1.example.org/", "ftp://lms/", "https://u:hunter2@lms/"):
            self.refused(saying="expected", **self.section(url=bad))
        self.refused(saying="is missing", **self.section(url=...))

    def test_key(self) -> None:
        """The key is a secret, and fit for a header."""
        self.refused(saying="isn't written down here", **self.section(api_key=KEY))
        self.refused(saying="is missing", **self.section(api_key=...))
        for bad in ("short", "0123456789abcde\n", "0123456789 abcdef", "0123456789abcdé-"):
            self.environment["KEY"] = bad
            self.refused(saying="expected a key", **self.section())
