"""Tests for ``edxagent demo``, as a real process with a real broker, and all that is between an LMS and a grader."""

from __future__ import annotations

import json
import os
import re
import shlex
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

    def demo(self, *arguments: str, **environment: str) -> Run:
        """Start a demo."""
        return start_cli(self, "demo", *arguments, environment={"TMPDIR": str(self.folder), **environment})

    def changed_demo(self, file: str, old: str, new: str) -> Run:
        """Start a small demo from a checkout with a change."""
        for part in ("edxagent", "examples", "etc", "twisted"):
            shutil.copytree(ROOT / part, self.folder / part)
        path = self.folder / file
        text = path.read_text()
        self.assertIn(old, text)
        path.write_text(text.replace(old, new))
        return self.demo("--count", "20", PYTHONPATH=str(self.folder))

    async def nothing_is_left(self) -> None:
        """Wait until no process and no file of the demo is there; bounded."""
        await until(lambda: not processes_of(self.folder) and not list(self.folder.iterdir()), patience=20.0)

    def assert_gone(self) -> None:
        """The same, now."""
        self.assertEqual((processes_of(self.folder), list(self.folder.iterdir())), ([], []))

    async def test_forty(self) -> None:
        """Forty learners, with large answers, files and nonsense, get their scores in the LMS and the database."""
        demo = self.demo("--count", "40")
        self.assertEqual(await demo.ends(), 0, demo.out + demo.err)
        self.assert_gone()
        for words in (
            "graded",
            "malformed",
            "p99",
            "of 40 submissions",
            "Every submission ended as it must",
            "40 scores in the LMS, the same in the database",
            "msg: <p>",
        ):
            self.assertIn(words, demo.out)
        for secret in ("xqueue_header", "lms_key"):
            self.assertNotIn(secret, demo.out + demo.err)

    async def test_wrong_scores(self) -> None:
        """A grader that gives each score twice makes it fail, and say whose score is wrong."""
        demo = self.changed_demo("examples/xserver.py", '"score": points *', '"score": 2 * points *')
        self.assertEqual(await demo.ends(), 1, demo.out + demo.err)
        self.assertIn("expected score 2, the LMS has 4", demo.out)
        self.assertIn("not every submission ended as it must", demo.err)

    async def test_refused(self) -> None:
        """When the gateway takes nothing, the reason is told at once, and Ctrl-C ends it as ever."""
        demo = self.changed_demo("etc/lms.ini", "    6002x-problems\n", "")
        await demo.says("couldn't submit: Queue '6002x-problems' not found")
        demo.kill(signal.SIGINT)
        self.assertEqual(await demo.ends(), 130, demo.err)
        self.assertEqual(demo.err.count("couldn't submit"), 1)

    async def test_interrupted(self) -> None:
        """Ctrl-C in the middle tells how far it came, stops everything and leaves nothing."""
        demo = self.demo("--count", MANY)
        await demo.says(f"of {MANY} sent")
        demo.kill(signal.SIGINT)
        self.assertEqual(await demo.ends(), 130, demo.err)
        self.assertIn("were submitted and", demo.err)
        self.assertNotIn("couldn't submit", demo.err)
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
        self.assertGreaterEqual(len(processes_of(self.folder)), 8)
        demo.kill(signal.SIGKILL)
        self.assertEqual(await demo.ends(), -signal.SIGKILL)
        await self.nothing_is_left()

    async def test_agent_dies(self) -> None:
        """When the agent dies, its last words are shown and everything is stopped."""
        self.assertIn("the agent ended with signal 9; its last words were:", await self.dies(1, b"etc/agent.ini"))

    async def test_lms_side_dies(self) -> None:
        """So it is when the LMS side dies."""
        self.assertIn("the LMS side ended with signal 9; its last words were:", await self.dies(1, b"etc/lms.ini"))

    async def test_lms_dies(self) -> None:
        """So it is when the LMS dies, which may only end by itself."""
        self.assertIn("the LMS ended with signal 9; its last words were:", await self.dies(1, b"examples/lms.py"))

    async def test_broker_dies(self) -> None:
        """When RabbitMQ dies, that is the status."""
        await self.dies(3, b"/beam.smp")

    async def dies(self, status: int, program: bytes) -> str:
        """Kill one of the demo's programs in the middle; what is said, after it has ended with ``status``."""
        demo = self.demo("--count", MANY)
        await demo.says(f"of {MANY} sent")
        (victim,) = [pid for pid in processes_of(self.folder) if program in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(victim, signal.SIGKILL)
        self.assertEqual(await demo.ends(), status, demo.err)
        self.assertNotIn("Traceback", demo.err)
        self.assert_gone()
        return demo.err

    async def test_keep(self) -> None:
        """With ``--keep`` it stays up and says what to type, which works; Ctrl-C then is its ordinary end."""
        demo = self.demo("--count", "20", "--keep")
        await demo.says("Ctrl-C ends it")
        await demo.says("send --queue 6002x-problems --count 100\n")
        trace, learners, more = (line.strip() for line in demo.out.splitlines()[-3:])
        run = await self.types(trace)
        self.assertIn("done", run.out)
        run = await self.types(learners)
        self.assertEqual(json.loads(run.out.splitlines()[-1])["right"], 100)
        run = await self.types(f"{more} --json")
        self.assertEqual(json.loads(run.out)["outcomes"], {"graded": 100})
        demo.kill(signal.SIGINT)
        self.assertEqual(await demo.ends(), 0, demo.err)
        self.assert_gone()

    async def types(self, line: str) -> Run:
        """Run a line as a shell would; it succeeds."""
        words = shlex.split(line)
        variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
        run = start(self, *words[len(variables) :], environment=variables)
        self.assertEqual(await run.ends(), 0, run.out + run.err)
        return run

    async def test_outside_a_checkout(self) -> None:
        """Without the example and the configuration beside the package it says so in a line."""
        shutil.copytree(ROOT / "edxagent", self.folder / "edxagent")
        environment = {"PYTHONPATH": str(self.folder)}
        demo = start(self, sys.executable, "-m", "edxagent.cli", "demo", environment=environment)
        self.assertEqual(await demo.ends(), 1)
        self.assertIn("the demo runs from a checkout of the project only", demo.err)
        self.assertEqual(len(demo.err.splitlines()), 1)
