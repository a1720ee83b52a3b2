"""Tests for the command line's manners: help, versions, and one line for each mistake."""

from __future__ import annotations

import sys
from pathlib import Path

from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase, TestCase

from edxagent.cli.main import edxagent
from tests.cli_process import ROOT, start, start_cli


def invoke(*arguments: str) -> Result:
    """Run the command line in this process, up to the reactor."""
    return CliRunner().invoke(edxagent, arguments, prog_name="edxagent")


class UsageTests(SynchronousTestCase):
    """Tests for what is answered before anything is started."""

    def assert_refused(self, *arguments: str, words: str) -> None:
        """It is wrong usage, and one line says why."""
        result = invoke(*arguments)
        self.assertEqual(result.exit_code, 2, result.output)
        self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
        self.assertTrue(result.stderr.startswith("edxagent: "), result.stderr)
        self.assertIn(words, result.stderr)

    def test_help(self) -> None:
        """Help names the commands, and each command's help its exit statuses."""
        self.assertEqual(invoke().output, invoke("--help").output)
        for command in ("demo", "grade", "send"):
            self.assertIn(f"\n  {command} ", invoke("--help").output)
            self.assertIn("Exit status: 0", invoke(command, "-h").output)

    def test_manual(self) -> None:
        """The manual has every command."""
        manual = (ROOT / "docs" / "commands.md").read_text()
        for command in edxagent.commands:
            self.assertIn(f"| `edxagent {command}", manual)

    def test_version(self) -> None:
        """``--version`` names the program."""
        result = invoke("--version")
        self.assertEqual(result.exit_code, 0)
        self.assertTrue(result.output.startswith("edxagent"))

    def test_unknown_command(self) -> None:
        """An unknown command gets a hint: the one that was meant, or all there are."""
        self.assert_refused("sned", words='did you mean "send"?')
        self.assert_refused("xyz", words="there are api-key, dead, demo, grade, password, send")

    def test_unknown_option(self) -> None:
        """An unknown option is named, and where its command's help is."""
        self.assert_refused("send", "--qeue", "q", words="--qeue")
        self.assert_refused("send", "--qeue", "q", words="edxagent send --help tells more")

    def test_numbers_out_of_range(self) -> None:
        """Counts, rates and times are bounded."""
        for option in ("--count=0", "--count=1000001", "--rate=0", "--rate=nan", "--timeout=0", "--concurrency=0"):
            self.assert_refused("send", "--queue=q", option, words=option.partition("=")[0])
        self.assert_refused("demo", "--count=many", words="--count")

    def test_file_missing(self) -> None:
        """``grade`` needs a file."""
        self.assert_refused("grade", words="FILE")


class ProcessTests(TestCase):
    """Tests for mistakes that are found while the reactor runs."""

    timeout = 60.0

    async def assert_refused(self, *arguments: str, words: str) -> None:
        """It is wrong usage, and one line says why."""
        run = start_cli(self, *arguments)
        self.assertEqual(await run.ends(), 2, run.err)
        self.assertEqual(len(run.err.splitlines()), 1, run.err)
        self.assertIn(words, run.err)

    async def test_no_queue(self) -> None:
        """``send`` wants to know where to."""
        await self.assert_refused("send", words="which queue?")

    async def test_queue_name(self) -> None:
        """A name that no request queue can have is refused."""
        await self.assert_refused("send", "--queue", "6002x.dead", words="--queue: names that end with")

    async def test_password_in_the_url(self) -> None:
        """A password doesn't belong on a command line, and isn't repeated."""
        run = start_cli(self, "send", "--queue", "q", "--broker", "amqp://me:sesame@rabbit.example.org/")
        self.assertEqual(await run.ends(), 2)
        self.assertIn("a password doesn't belong here", run.err)
        self.assertNotIn("sesame", run.err)

    async def test_password_file(self) -> None:
        """A password file that isn't there, or is empty, is named."""
        send = ("send", "--queue", "q", "--broker", "amqp://me@rabbit.example.org/", "--password-file")
        await self.assert_refused(*send, "/nowhere", words="--password-file /nowhere: there is no such file")
        empty = self.mktemp()
        Path(empty).write_text("\n")
        await self.assert_refused(*send, empty, words="is empty")

    async def test_files(self) -> None:
        """A file that is missing, no JSON or no submission is named; so is a folder without any."""
        folder = Path(self.mktemp())
        folder.mkdir()
        await self.assert_refused("send", "--queue=q", str(folder), words="there is no *.json in the folder")
        file = folder / "a.json"
        await self.assert_refused("send", "--queue=q", str(file), words=f"can't read {file}: No such file")
        for content, words in (
            ("[1]", "isn't a JSON object"),
            ("[" * 100_000, "isn't a JSON object"),
            ('{"a": 1}', "is no submission"),
        ):
            file.write_text(content)
            await self.assert_refused("send", "--queue=q", str(file), words=words)

    async def test_configuration(self) -> None:
        """Each problem of a configuration is one line."""
        file = Path(self.mktemp())
        file.write_text("[agent]\nconcurency = 3\n[grader]\nkind = fixed\n")
        run = start_cli(self, "grade", "-", "--config", str(file))
        self.assertEqual(await run.ends(), 2)
        lines = run.err.splitlines()
        self.assertGreater(len(lines), 1)
        self.assertTrue(all(line.startswith(f"edxagent: {file}") for line in lines), run.err)
        self.assertNotIn("Traceback", run.err)

    async def test_debug(self) -> None:
        """``--debug`` shows the traceback that is kept back otherwise."""
        run = start_cli(self, "--debug", "grade", "-", "--config", "/nowhere")
        self.assertEqual(await run.ends(), 2)
        self.assertIn("Traceback", run.err)

    async def test_closed_output(self) -> None:
        """A reader that has gone away is no reason for a traceback on standard output."""
        shell = f"{sys.executable} -m edxagent.cli --help | true"
        run = start(self, "/bin/sh", "-c", shell)
        self.assertEqual(await run.ends(), 0)
        self.assertNotIn("Traceback", run.err)
