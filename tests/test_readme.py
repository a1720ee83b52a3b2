"""Everything that the README tells a newcomer to type, typed."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.protocol import ServerFactory
from twisted.web.client import Agent, readBody

from edxagent.testing.broker import BrokerTestCase
from tests.cli_process import ROOT, Run, start

README = (ROOT / "README.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
EXPORTS = [line for line in LINES if line.startswith("export ")]
COMMANDS = [line for line in LINES if line not in EXPORTS]


def free_port() -> int:
    """A port that nobody listens on just now."""
    port = reactor.listenTCP(0, ServerFactory(), interface="127.0.0.1")  # type: ignore[attr-defined]
    number: int = port.getHost().port
    port.stopListening()
    return number


def words_of(command: str) -> list[str]:
    """A command as a list, with this environment's programs in the place of ``.venv``'s."""
    program, *arguments = shlex.split(command)
    if program == ".venv/bin/edxagent":
        return [sys.executable, "-m", "edxagent.cli", *arguments]
    if program == ".venv/bin/python":
        return [sys.executable, *arguments]
    if program == ".venv/bin/twistd":
        return [str(Path(sys.executable).with_name("twistd")), "--pidfile=", *arguments]
    raise AssertionError(f"the README tells to run {program}")


class ReadmeTests(BrokerTestCase):
    """The commands, in the order of the text."""

    async def set_up(self) -> None:
        """Choose ports that don't clash."""
        self.grader, self.campus, self.gateway, self.lms = (free_port() for _ in range(4))
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        self.environment = {
            "EDXAGENT_BROKER_URL": self.node.url,
            "EDXAGENT_GRADER_URL": f"http://127.0.0.1:{self.grader}/",
            "EDXAGENT_LMS_URL": f"http://127.0.0.1:{self.lms}",
            "EDXAGENT_DATABASE_URL": f"sqlite:///{folder}/scores.db",
            "EDXAGENT_LEDGER_URL": f"sqlite:///{folder}/ledger.db",
            "EDXAGENT_FILES_FOLDER": f"{folder}/files",
            "EDXAGENT_JOURNAL": f"{folder}/journal",
            "CAMPUS_LISTEN": f"tcp:{self.campus}:interface=127.0.0.1",
        }
        self.left = list(COMMANDS)

    def start(self, beginning: str, changes: Mapping[str, str] | None = None) -> Run:
        """Run the README's next command that begins so."""
        command = next(line for line in self.left if line.startswith(beginning))
        self.left.remove(command)
        for old, new in (changes or {}).items():
            self.assertIn(old, command)
            command = command.replace(old, new)
        return start(self, *words_of(command), environment=self.environment, folder=ROOT)

    async def export(self) -> None:
        """Set what the README has its reader set."""
        self.assertEqual(len(EXPORTS), 2)
        own = shlex.join([sys.executable, "-m", "edxagent.cli"])
        script = "\n".join(["set -e", *(line.replace(".venv/bin/edxagent", own) for line in EXPORTS)])
        for name in ("LMS_PASSWORD", "EDXAGENT_LMS_PASSWORD_HASH"):
            shell = start(self, "/bin/bash", "-c", f"{script}\nprintenv {name}", environment={}, folder=ROOT)
            self.assertEqual(await shell.ends(), 0, shell.err)
            self.environment[name] = shell.out.strip()

    async def test_commands(self) -> None:
        """Each command does what the README says; none is left out."""
        agent = self.start(".venv/bin/twistd -n edxagent")
        await agent.says("(consume): connected")
        await agent.says("(publish): connected")
        grader = self.start(".venv/bin/python examples/xserver.py", {"tcp:8080": f"tcp:{self.grader}"})
        await grader.says("listening on")
        for what in ("send", "send", "grade"):
            run = self.start(f".venv/bin/edxagent {what}")
            self.assertEqual(await run.ends(), 0, run.out + run.err)
        await self.export()
        lms_side = self.start(
            ".venv/bin/twistd -n --pidfile= edxagent-lms",
            {"etc/lms.ini": f"etc/lms.ini --listen tcp:{self.gateway}:interface=127.0.0.1"},
        )
        await lms_side.says("listening at")
        await lms_side.says("(publish): connected")
        changes = {"18040": str(self.gateway), "tcp:8000": f"tcp:{self.lms}"}
        lms = self.start(".venv/bin/python examples/lms.py", changes)
        self.assertEqual(await lms.ends(), 0, lms.out + lms.err + lms_side.out)
        for program in (lms_side, agent):
            program.kill(15)
            self.assertEqual(await program.ends(), -15)
        embedded = self.start(".venv/bin/twistd -n -y")
        await embedded.says("(consume): connected")
        response = await Agent(reactor).request(b"GET", b"http://127.0.0.1:%d/" % self.campus)
        self.assertEqual(await readBody(response), b"Welcome to the campus.\n")
        again = start(
            self, *words_of(".venv/bin/edxagent send -c etc/agent.ini -n 5"), environment=self.environment, folder=ROOT
        )
        self.assertEqual(await again.ends(), 0, again.out + again.err)
        embedded.kill(15)
        self.assertEqual(await embedded.ends(), -15)
        for run in (agent, lms_side, embedded):
            self.assertNotIn("Traceback", run.out + run.err)
        # These two run this test, and what tests.test_cli_demo tests.
        self.assertEqual(self.left, ["make demo", "make test"])

    def test_embedding(self) -> None:
        """The code that the README shows is the example's."""
        (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        self.assertIn(code, (ROOT / "examples" / "embedded.py").read_text())

    def test_links(self) -> None:
        """Every file that the README links to is there."""
        for target in re.findall(r"\]\(([^)#]+)\)", README):
            self.assertTrue((ROOT / target).exists(), target)
