"""Tests for ``edxagent grade``, as a real process with real graders."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from twisted.trial.unittest import TestCase

from tests.cli_process import ROOT, Run, start, start_cli, until

SUBMISSIONS = ROOT / "examples" / "submissions"


class GradeTests(TestCase):
    """Tests for the command ``grade``."""

    timeout = 60.0

    def grade(self, *arguments: str, grader: str = "kind = fixed", timeout: float = 30) -> Run:
        """Start it with a configuration that has such a grader."""
        config = Path(self.mktemp())
        config.write_text(
            f"[agent]\nname = test\n[broker]\nurls = amqp://guest@127.0.0.1:1/\n[queues]\nq =\n"
            f"[grader]\n{grader}\ntimeout = {timeout}\n"
        )
        return start_cli(self, "grade", *arguments, "--config", str(config))

    async def test_graded(self) -> None:
        """The submission, the verdict and the time are shown; the header isn't."""
        run = self.grade(str(SUBMISSIONS / "files-whole-request.json"), grader="kind = fixed\nscore = 0.5")
        self.assertEqual(await run.ends(), 0, run.err)
        for words in ("amplifier.cir", "graded", "0.5", "took"):
            self.assertIn(words, run.out)
        self.assertNotIn("lms_key", run.out)

    async def test_json(self) -> None:
        """``--json`` prints one object and nothing else."""
        run = self.grade("--json", str(SUBMISSIONS / "number-wrong.json"), grader="kind = fixed\nmsg = <p>é</p>")
        self.assertEqual(await run.ends(), 0, run.err)
        reply = json.loads(run.out)
        self.assertGreaterEqual(reply.pop("seconds"), 0)
        self.assertEqual(
            reply,
            {"outcome": "graded", "reason": None, "verdict": {"correct": True, "score": 1.0, "msg": "<p>é</p>"}},
        )
        self.assertEqual(run.err, "")

    async def test_example_grader(self) -> None:
        """The shipped configuration and the example grader grade a sample as its name tells."""
        grader = start(
            self, sys.executable, str(ROOT / "examples" / "xserver.py"), "--listen", "tcp:0:interface=127.0.0.1"
        )
        await grader.says("/\n")
        url = grader.out.removeprefix("listening on ").strip()
        arguments = [str(SUBMISSIONS / "number-close.json"), "--json", "--config", str(ROOT / "etc" / "agent.ini")]
        run = start_cli(self, "grade", *arguments, environment={"EDXAGENT_GRADER_URL": url})
        self.assertEqual(await run.ends(), 0, run.err)
        self.assertEqual(json.loads(run.out)["verdict"]["score"], 1.0)

    async def test_unavailable(self) -> None:
        """A grader that isn't there is an outcome with a reason, and status 1."""
        run = self.grade(str(SUBMISSIONS / "number-close.json"), grader="kind = http\nurl = http://127.0.0.1:1/")
        self.assertEqual(await run.ends(), 1, run.err)
        self.assertIn("unavailable", run.out)
        self.assertIn("can't be reached", " ".join(run.out.split()))

    async def test_timed_out(self) -> None:
        """The configured deadline holds here too."""
        run = self.grade(str(SUBMISSIONS / "number-close.json"), grader="kind = sleep\nmin = 60\nmax = 60", timeout=0.2)
        self.assertEqual(await run.ends(), 1, run.err)
        self.assertIn("timed-out", run.out)

    async def test_interrupted(self) -> None:
        """Ctrl-C stops it without a word."""
        run = self.grade(str(SUBMISSIONS / "number-close.json"), grader="kind = sleep\nmin = 60\nmax = 60", timeout=90)
        await until_catching(run)
        run.kill(signal.SIGINT)
        self.assertEqual(await run.ends(), 130)
        self.assertEqual((run.out, run.err), ("", ""))

    async def test_malformed(self) -> None:
        """A request that the agent couldn't read is an outcome too."""
        file = Path(self.mktemp())
        file.write_text('{"xqueue_header": "h", "xqueue_body": "print(1)"}')
        run = self.grade("--json", str(file))
        self.assertEqual(await run.ends(), 1, run.err)
        self.assertEqual(json.loads(run.out)["outcome"], "malformed")

    async def test_long_texts(self) -> None:
        """Long texts are shortened, and what looks like markup or a terminal's command is only shown."""
        file = Path(self.mktemp())
        response = "[red]\x1b[31m" + "x" * 10_000
        file.write_text(json.dumps({"student_response": response, "grader_payload": "p"}))
        run = self.grade(str(file))
        self.assertEqual(await run.ends(), 0, run.err)
        self.assertIn("[red]", run.out)
        self.assertNotIn("\x1b", run.out)
        self.assertIn("(10010 characters)", " ".join(run.out.split()))
        self.assertLess(len(run.out), 2000)


async def until_catching(run: Run) -> None:
    """Wait until the program handles signals itself, which Python by itself does with INT only."""

    def catches() -> bool:
        process = Path(f"/proc/{run.transport.pid}")  # type: ignore[union-attr]
        lines = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
        is_ours = b"edxagent.cli" in (process / "cmdline").read_bytes()  # and not trial still, before exec
        return is_ours and bool(int(lines["SigCgt"], 16) & 1 << (signal.SIGTERM - 1))

    await until(catches, run)
