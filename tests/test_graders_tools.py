"""What graders are handed by those who build them: the agent and ``edxagent grade``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from edxagent.agent import make_agent_service
from edxagent.config.values import (
    AgentConfig,
    BrokerAddress,
    BrokerConfig,
    GraderConfig,
    QueueConfig,
    ResultsConfig,
)
from edxagent.interfaces import GraderTools, IGrader, IGraderFactory
from edxagent.testing.graders import StubGrader
from tests.cli_process import ROOT, start_cli


@implementer(IGraderFactory)
class Recorder:
    """A factory that remembers its tools."""

    kind = "recorder"
    keys = ()

    def __init__(self) -> None:
        self.tools: list[GraderTools] = []

    def build(self, options: Mapping[str, Any], tools: GraderTools) -> IGrader:
        """A grader that says correct."""
        self.tools.append(tools)
        return StubGrader()


recorder = Recorder()


class AgentTests(SynchronousTestCase):
    """``make_agent_service``."""

    def test_tools(self) -> None:
        """A grader gets the agent's reactor, its concurrency and its limit on replies."""
        config = AgentConfig(
            name="test",
            concurrency=7,
            broker=BrokerConfig(
                addresses=(BrokerAddress(host="127.0.0.1", port=1, username="guest", password="guest"),)
            ),
            queues=(QueueConfig(name="q"),),
            grader=GraderConfig(kind=f"{__name__}:recorder"),
            results=ResultsConfig(max_reply=2048),
        )
        reactor = MemoryReactorClock()
        make_agent_service(config, reactor)
        self.assertEqual(recorder.tools, [GraderTools(reactor=reactor, concurrency=7, max_reply=2048)])


class GradeCommandTests(TestCase):
    """``edxagent grade``."""

    timeout = 60.0

    async def test_max_reply(self) -> None:
        """``[results] max_reply`` cuts a grader off there too."""
        config = Path(self.mktemp())
        config.write_text(
            "[agent]\nname = test\n[broker]\nurls = amqp://guest@127.0.0.1:1/\n[queues]\nq =\n[results]\n"
            "max_reply = 2 KiB\n[grader]\nkind = command\ncommand = /bin/sh -c 'head -c 2049 /dev/zero >&3'\n"
            f"work_dir = {Path(self.mktemp()).absolute()}\n"
        )
        submission = ROOT / "examples" / "submissions" / "number-close.json"
        run = start_cli(self, "grade", "--json", str(submission), "--config", str(config))
        self.assertEqual(await run.ends(), 1, run.err)
        reply = json.loads(run.out)
        self.assertEqual(reply["outcome"], "bad-reply")
        self.assertEqual(reply["reason"], "the command wrote more than [results] max_reply on descriptor 3")
