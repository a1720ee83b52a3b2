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
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


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
        self.grader = free_port()
        self.campus = free_port()
        self.environment = {
            "EDXAGENT_BROKER_URL": self.node.url,
            "EDXAGENT_GRADER_URL": f"http://127.0.0.1:{self.grader}/",
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
        agent.kill(15)
        self.assertEqual(await agent.ends(), -15)
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
        for run in (agent, embedded):
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
