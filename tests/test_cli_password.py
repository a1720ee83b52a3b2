"""Tests for ``edxagent password`` and ``edxagent api-key``."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase, TestCase

from edxagent.cli.main import edxagent
from edxagent.lms.gateway.passwords import LONGEST_PASSWORD, PasswordHash
from tests.cli_process import ROOT, Run, until


def invoke(command: str, stdin: str | bytes = "") -> Result:
    """Run a command in this process; its standard input is no terminal."""
    return CliRunner().invoke(edxagent, [command], input=stdin, prog_name="edxagent")


class PipedPasswordTests(SynchronousTestCase):
    """Tests for a password that comes through a pipe."""

    def test_hashed(self) -> None:
        """The first line is the password; the hash, which knows it, is all that is printed."""
        for stdin in ("pâss wörd", "pâss wörd\n", "pâss wörd\r\n", "pâss wörd\nand more\n"):
            result = invoke("password", stdin)
            self.assertEqual((result.exit_code, result.stderr), (0, ""))
            self.assertEqual(len(result.stdout.splitlines()), 1)
            self.assertTrue(PasswordHash.read(result.stdout.strip()).matches("pâss wörd"), stdin)

    def test_none(self) -> None:
        """Without a password there is no hash, but one line that says why; nor for one that no gateway lets in."""
        for stdin in ("", "\n", b"\xff\n", "x" * (LONGEST_PASSWORD + 1)):
            result = invoke("password", stdin)
            self.assertEqual((result.exit_code, result.stdout), (2, ""))
            self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)


class TypedPasswordTests(TestCase):
    """Tests for a password that is typed at a terminal."""

    timeout = 60.0

    def type(self, *lines: str) -> Typist:
        """The command at a terminal, where somebody types these lines, each when asked."""
        from twisted.internet import reactor

        typist = Typist(list(lines))
        command = (sys.executable, "-m", "edxagent.cli", "password")
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
        reactor.spawnProcess(typist, command[0], command, env=environment, usePTY=True)  # type: ignore[attr-defined]
        return typist

    async def test_twice(self) -> None:
        """It is asked for twice, and not shown."""
        typist = self.type("s3cret", "s3cret")
        await until(lambda: typist.status is not None)
        self.assertEqual((typist.status, typist.lines), (0, []), typist.said)
        self.assertNotIn("s3cret", typist.said)
        self.assertTrue(PasswordHash.read(typist.said.split()[-1]).matches("s3cret"))

    async def test_a_slip(self) -> None:
        """Two different ones are refused."""
        typist = self.type("s3cret", "secret")
        await until(lambda: typist.status is not None)
        self.assertEqual(typist.status, 2)
        self.assertIn("two different passwords", typist.said)
        self.assertNotIn("scrypt$", typist.said)


class Typist(Run):
    """Sits at a terminal, and types the next line at each question.

    :ivar said: what the terminal shows.
    """

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines
        self.said = ""

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Something is shown; perhaps a question."""
        self.said += data.decode()
        transport: Any = self.transport
        if self.lines and self.said.endswith(": "):
            transport.write(self.lines.pop(0).encode() + b"\n")


class ApiKeyTests(SynchronousTestCase):
    """Tests for ``edxagent api-key``."""

    def test_a_new_one(self) -> None:
        """Each time there is another key, with its SHA-256."""
        keys = set()
        for _ in range(5):
            result = invoke("api-key")
            self.assertEqual((result.exit_code, result.stderr), (0, ""))
            said = dict(line.split(": ") for line in result.stdout.splitlines())
            self.assertEqual(hashlib.sha256(said["key"].encode()).hexdigest(), said["key_hash"])
            self.assertGreaterEqual(len(said["key"]), 40)
            keys.add(said["key"])
        self.assertEqual(len(keys), 5)
