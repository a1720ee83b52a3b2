"""Tests for ``edxagent demo``, as a real process with a real broker, grader and agent."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

from twisted.trial.unittest import TestCase

from tests.cli_process import ROOT, Run, processes_of, start, start_cli, until

MANY = "100000"


class DemoTests(TestCase):
    """Tests for the command ``demo``."""

    timeout = 180.0

    def setUp(self) -> None:
        """Have the demo keep its temporary files where we see them."""
        self.folder = Path(self.mktemp()).resolve()
        self.folder.mkdir(parents=True)

    def demo(self, *arguments: str) -> Run:
        """Start a demo."""
        return start_cli(self, "demo", *arguments, environment={"TMPDIR": str(self.folder)})

    async def nothing_is_left(self) -> None:
        """Wait until no process and no file of the demo is there; bounded."""
        await until(lambda: not processes_of(self.folder) and not list(self.folder.iterdir()), patience=20.0)

    def assert_gone(self) -> None:
        """The same, now."""
        self.assertEqual((processes_of(self.folder), list(self.folder.iterdir())), ([], []))

    async def test_forty(self) -> None:
        """Each of forty submissions, the large and the unreadable ones among them, ends as it must."""
        demo = self.demo("--count", "40")
        self.assertEqual(await demo.ends(), 0, demo.out + demo.err)
        self.assert_gone()
        for words in ("graded", "malformed", "p99", "of 40 submissions", "Every submission ended as it must", '"msg"'):
            self.assertIn(words, demo.out)
        self.assertNotIn("xqueue_header", demo.out)

    async def test_interrupted(self) -> None:
        """Ctrl-C in the middle tells how far it came, stops everything and leaves nothing."""
        demo = self.demo("--count", MANY)
        await demo.says(f"of {MANY} sent")
        demo.kill(signal.SIGINT)
        self.assertEqual(await demo.ends(), 130, demo.err)
        self.assertIn("were sent and", demo.err)
        self.assertNotIn("Traceback", demo.err)
        self.assert_gone()

    async def test_terminated_while_the_broker_boots(self) -> None:
        """So does TERM while the broker is still starting."""
        demo = self.demo()
        await until(lambda: list(self.folder.glob("*/broker.log")), demo)
        demo.kill(signal.SIGTERM)
        self.assertEqual(await demo.ends(), 143, demo.err)
        self.assertNotIn("Traceback", demo.err)
        self.assert_gone()

    async def test_killed(self) -> None:
        """Even KILL leaves nothing behind."""
        demo = self.demo("--count", MANY)
        await demo.says(f"of {MANY} sent")
        self.assertGreaterEqual(len(processes_of(self.folder)), 4)
        demo.kill(signal.SIGKILL)
        self.assertEqual(await demo.ends(), -signal.SIGKILL)
        await self.nothing_is_left()

    async def test_agent_dies(self) -> None:
        """When the agent dies, its last words are shown and everything is stopped."""
        demo = self.demo("--count", MANY)
        await demo.says(f"of {MANY} sent")
        (agent,) = self.agents()
        start(self, "/bin/kill", "-KILL", str(agent))
        self.assertEqual(await demo.ends(), 1)
        self.assertIn("the agent ended with signal 9; its last words were:", demo.err)
        self.assert_gone()

    async def test_keep(self) -> None:
        """With ``--keep`` it stays up and says how to send more, which works; Ctrl-C then is its ordinary end."""
        demo = self.demo("--count", "20", "--keep")
        await demo.says("Ctrl-C ends it")
        await demo.says("--count 100\n")
        broker, *command = demo.out.splitlines()[-1].split()
        name, _, url = broker.partition("=")
        self.assertEqual(name, "EDXAGENT_BROKER_URL")
        more = start(self, *command, "--json", environment={name: url})
        self.assertEqual(await more.ends(), 0, more.err)
        self.assertEqual(json.loads(more.out)["outcomes"], {"graded": 100})
        demo.kill(signal.SIGINT)
        self.assertEqual(await demo.ends(), 0, demo.err)
        self.assert_gone()

    async def test_outside_a_checkout(self) -> None:
        """Without the example and the configuration beside the package it says so in a line."""
        shutil.copytree(ROOT / "edxagent", self.folder / "edxagent")
        environment = {"PYTHONPATH": str(self.folder)}
        demo = start(self, sys.executable, "-m", "edxagent.cli", "demo", environment=environment)
        self.assertEqual(await demo.ends(), 1)
        self.assertIn("the demo runs from a checkout of the project only", demo.err)
        self.assertEqual(len(demo.err.splitlines()), 1)

    def agents(self) -> list[int]:
        """The process ids of the demo's agent."""
        return [pid for pid in processes_of(self.folder) if b"twistd" in Path(f"/proc/{pid}/cmdline").read_bytes()]
