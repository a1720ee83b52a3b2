"""Tests for :mod:`edxagent.config.sections` and :mod:`edxagent.config.keys`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from edxagent.config.keys import REQUIRED, Key
from edxagent.config.parsers import count_between, text, url
from edxagent.config.sections import LARGEST_SECRET, ConfigFile, option_name
from edxagent.errors import ConfigError

KEYS = (
    Key("slots", count_between(1, 9), 3),
    Key("url", url),
    Key("password", text, None, secret=True),
)


class SectionCase(SynchronousTestCase):
    """Reads one section of a file."""

    def setUp(self) -> None:
        """A file, a secret, an environment."""
        self.path = self.mktemp()
        self.secret = self.mktemp()
        self.write_secret(b"hunter2\n")
        self.environment = {"PW": "from-env", "URL": "http://env/"}

    def write_secret(self, secret: bytes, mode: int = 0o600) -> None:
        """Put a secret into the secret's file."""
        Path(self.secret).write_bytes(secret)
        os.chmod(self.secret, mode)

    def file(self, lines: str, **overrides: str) -> ConfigFile:
        """A file whose section ``[s]`` holds some lines."""
        Path(self.path).write_text(f"[s]\n{lines}")
        dotted = {f"s.{key}": value for key, value in overrides.items()}
        return ConfigFile(self.path, environment=self.environment, overrides=dotted)

    def read(self, lines: str, **overrides: str) -> dict[str, Any]:
        """The values of a section without problems."""
        file = self.file(lines, **overrides)
        values = file.section("s").read(KEYS)
        file.problems.raise_if_any()
        return values

    def problems(self, lines: str, **overrides: str) -> list[str]:
        """The problems of a section, without the file's name."""
        file = self.file(lines, **overrides)
        file.section("s").read(KEYS)
        error = self.assertRaises(ConfigError, file.problems.raise_if_any)
        return [problem.removeprefix(f"{self.path} ") for problem in error.problems]


class ValuesTests(SectionCase):
    """Keys become values."""

    def test_defaults(self) -> None:
        """A key that isn't there has its default."""
        self.assertEqual(self.read("url = http://h/"), {"slots": 3, "url": "http://h/", "password": None})

    def test_given(self) -> None:
        """A key that is there has what its parser made of it, environment variables put in."""
        self.assertEqual(self.read("slots = 9\nurl = ${URL}x"), {"slots": 9, "url": "http://env/x", "password": None})

    def test_override(self) -> None:
        """The command line wins over the file, mistakes in the file's line included."""
        self.assertEqual(self.read("url = ${NOPE}", url=" http://cli/ ", slots="1")["url"], "http://cli/")

    def test_override_is_taken_literally(self) -> None:
        """In the command line, ``${NAME}`` was the shell's business."""
        self.assertEqual(
            self.problems("", url="${URL}"), ["--s-url: expected a web address, such as http://127.0.0.1:8080/"]
        )

    def test_missing(self) -> None:
        """A required key that is missing is a problem that says what is expected."""
        self.assertEqual(
            self.problems(""), ["[s] url: is missing; expected a web address, such as http://127.0.0.1:8080/"]
        )

    def test_all_at_once(self) -> None:
        """Each bad key is a problem of its own, with its line."""
        self.assertEqual(
            self.problems("slots = 0\nulr = x\nurl = ${NOPE}"),
            [
                '[s] ulr: unknown key; did you mean "url"? (line 3)',
                "[s] slots: expected a whole number from 1 to 9, such as 9 (line 2)",
                "[s] url: the environment variable NOPE isn't set; set it, or write ${NOPE:-default} (line 4)",
            ],
        )

    def test_bad_override(self) -> None:
        """A bad value on the command line is reported under the option's name."""
        self.assertEqual(
            self.problems("url = http://h/", slots="many", colour="red"),
            ["--s-colour: unknown key", "--s-slots: expected a whole number from 1 to 9, such as 9"],
        )

    def test_missing_section(self) -> None:
        """A section that isn't there is one without keys."""
        values = self.file("").section("other").values(KEYS)
        self.assertEqual(values, {"slots": 3, "url": None, "password": None})


class SecretTests(SectionCase):
    """Keys whose values nobody should see."""

    def refused(self, lines: str, *, saying: str, **overrides: str) -> None:
        """Assert that there is one problem, and that it holds no secret."""
        (problem,) = self.problems(f"url = http://h/\n{lines}", **overrides)
        self.assertIn(saying, problem)
        self.assertNotIn("hunter2", problem)

    def test_file(self) -> None:
        """A secret comes from the file that ``NAME_file`` names, without one line end."""
        for content, secret in ((b"hunter2", "hunter2"), (b"hunter2\n", "hunter2"), (b" hunter2 \r\n", " hunter2 ")):
            self.write_secret(content)
            self.assertEqual(self.read(f"url = http://h/\npassword_file = {self.secret}")["password"], secret)

    def test_environment(self) -> None:
        """A secret may come from the environment."""
        self.assertEqual(self.read("url = http://h/\npassword = ${PW}")["password"], "from-env")

    def test_written_down(self) -> None:
        """A secret may be written neither into the file, nor as a default there, nor on the command line."""
        self.refused("password = hunter2", saying="[s] password: a secret isn't written down here; use password_file")
        self.refused("password = ${NOPE:-hunter2}", saying="a secret isn't written down here")
        self.refused("", password="hunter2", saying="--s-password: a secret isn't written down here")

    def test_both(self) -> None:
        """A secret that is given in two ways is a problem."""
        self.refused(f"password = ${{PW}}\npassword_file = {self.secret}", saying="password is given as well")

    def test_missing_file(self) -> None:
        """A file that isn't there, or isn't named, is a problem of the key that names it."""
        self.refused("password_file = /nope", saying="[s] password_file: there is no such file")
        for mistaken in ("hunter2", "hunter2=", "amqp://u:hunter2@h/", "hunter2" * 100, "/dev/null/hunter2"):
            self.refused(f"password_file = {mistaken}", saying="[s] password_file: ")  # refused() looks for hunter2
        self.refused("password_file =", saying="[s] password_file: expected the path of a file")
        self.refused("password_file = /dev/zero", saying="isn't a regular file")
        self.refused("password_file = ${NOPE}", saying="NOPE isn't set")

    def test_bad_content(self) -> None:
        """An empty secret, one of several lines, a binary or an endless one is a problem."""
        for content, saying in (
            (b"", "is empty"),
            (b"\n", "is empty"),
            (b"hunter2\nhunter3\n", "expected a line of text"),
            (b"hunter2\n\n", "expected a line of text"),
            (b"hunter2\xff", "isn't UTF-8"),
            (b"x" * (LARGEST_SECRET + 1), "larger than 64 KiB"),
        ):
            self.write_secret(content)
            self.refused(f"password_file = {self.secret}", saying=saying)

    def test_readable_by_everybody(self) -> None:
        """A secret that everybody may read is a warning that tells the remedy."""
        events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.read(f"url = http://h/\npassword_file = {self.secret}")
        self.assertEqual([event for event in events if "chmod" in event.get("log_format", "")], [])
        self.write_secret(b"hunter2", mode=0o644)
        self.read(f"url = http://h/\npassword_file = {self.secret}")
        (event,) = [event for event in events if "chmod" in event.get("log_format", "")]
        self.assertEqual(event["path"], self.secret)


class ConfigFileTests(SectionCase):
    """The file as a whole."""

    def test_unknown_sections(self) -> None:
        """A section of the file, or of the command line, that isn't known is a problem."""
        file = self.file("", key="x")
        file.refuse_other_sections(["ss", "t"])
        error = self.assertRaises(ConfigError, file.problems.raise_if_any)
        self.assertEqual(
            error.problems,
            (
                f'{self.path} [s]: unknown section; did you mean "ss"?',
                "--s-key: there is nothing of that name to be set",
            ),
        )

    def test_known_sections(self) -> None:
        """Known ones are none."""
        file = self.file("", key="x")
        file.refuse_other_sections(["s"])
        self.assertFalse(file.problems)

    def test_keys_in_the_order_of_the_file(self) -> None:
        """A section lists its keys in the file's order; those of the command line follow."""
        self.assertEqual(list(self.file("b = 1\na = 2", a="3", c="4").section("s")), ["b", "a", "c"])


class OptionNameTests(SynchronousTestCase):
    """What a key is called on the command line."""

    def test_names(self) -> None:
        """A key of ``[agent]`` stands alone; others are led by their section."""
        self.assertEqual(
            [option_name(key) for key in ("agent.drain_timeout", "broker.urls", "grader.url")],
            ["--drain-timeout", "--broker-urls", "--grader-url"],
        )


class KeyTests(SynchronousTestCase):
    """A key of a section."""

    def test_expectation(self) -> None:
        """A key can say what it expects, even one that accepts everything."""
        self.assertEqual(Key("a", count_between(1, 9)).expectation, "expected a whole number from 1 to 9, such as 9")
        self.assertEqual(Key("a", str).expectation, "expected a value")

    def test_required_by_default(self) -> None:
        """A key without a default must be given."""
        self.assertIs(Key("a", str).default, REQUIRED)
