"""The shipped files as people might spoil them: read, or refused in words that name the place and no secret."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from edxagent.config.agent import read_agent_config
from edxagent.config.ini import shown
from edxagent.config.lms import read_lms_config
from edxagent.errors import ConfigError
from edxagent.graders.registry import find_factory
from edxagent.lms.sinks.registry import find_sink_factory
from tests.shipped import ETC, in_force
from tests.test_config_lms import HASH

SECRET = "hunter2"
"""Part of every secret, of those in the environment, in a file, and of those that somebody wrote down."""
SECRETS = (
    "hunter2-hunter2-hunter2",
    "amqp://u:hunter2@h/",
    "hunter2=",
    "hunter2",
    "${hunter2",
    "a = hunter2",
    "[hunter2",
    "${SECRET}",
    "${URL}",
    "${KEY}",
    "${BELL}",
    "${LONG}",
)
NONSENSE = ("", "0", "-1", "yes", "1e999", "9" * 400, "\n  x", "${NOPE}", "${", "x" * 9000)
SETTING = re.compile(r"#?(?!kind )\S+ =")
"""A key and its value. The kind of a grader or sink is told in problems; nobody takes it for a secret."""
PLACES = re.compile(r" \[|\(line \d+\)$")
NO_KEY = ("expected a section first", "expected a line such as", "this section is there twice", "unknown section")

Lines = list[str]


def _anywhere(random: Random, lines: Sequence[object]) -> int:
    return random.randrange(len(lines))


def drop(random: Random, lines: Lines) -> None:
    """A line is gone, or some are."""
    at = _anywhere(random, lines)
    del lines[at : at + random.choice((1, 1, 5))]


def repeat(random: Random, lines: Lines) -> None:
    """Lines are there twice, here or elsewhere."""
    at, to = _anywhere(random, lines), _anywhere(random, lines)
    lines[to:to] = lines[at : at + random.choice((1, 1, 10))]


def uncomment(random: Random, lines: Lines) -> None:
    """Settings are taken into force."""
    at = _anywhere(random, lines)
    lines[at : at + 10] = in_force("\n".join(lines[at : at + 10])).split("\n")


def misspell(random: Random, lines: Lines) -> None:
    """A character is another, more or less; no secret is near."""
    at = _anywhere(random, lines)
    if SECRET not in lines[at] and "_file" not in lines[at]:
        to = random.randrange(len(lines[at]) + 1)
        lines[at] = lines[at][:to] + random.choice("[]=;# \t\0\x85é${}:x\ud800") + lines[at][to + random.randrange(2) :]


def write_value(random: Random, lines: Lines) -> None:
    """A key has another value, which is a secret or nonsense."""
    keys = [at for at, line in enumerate(lines) if SETTING.match(line)]
    if keys:
        at = random.choice(keys)
        lines[at] = f"{lines[at].partition('=')[0].lstrip('#')}= {random.choice((*SECRETS, *NONSENSE))}"


SPOILERS: tuple[Callable[[Random, Lines], None], ...] = (drop, repeat, uncomment, misspell, write_value, write_value)


def spoilt(random: Random, ini: str) -> str:
    """A file with some things wrong."""
    lines = ini.split("\n")
    for _ in range(random.choice((1, 1, 2, 5, 20))):
        random.choice(SPOILERS)(random, lines)
    return "\n".join(lines)


class SpoiltFilesTests(SynchronousTestCase):
    """``etc/agent.ini`` and ``etc/lms.ini``."""

    def setUp(self) -> None:
        """A place for a file, and a file with a secret."""
        self.path = "spoilt.ini"
        Path(f"{self.path}.secret").write_text("hunter2-hunter2-hunter2\n")
        self.environment = {
            "SECRET": "hunter2-hunter2-hunter2",
            "URL": "amqp://u:hunter2@h/",
            "KEY": "hunter2=hunter2",
            "BELL": "hunter2\a",
            "LONG": "hunter2" * 3000,
            "EDXAGENT_LMS_PASSWORD_HASH": HASH,
        }

    def check(self, read: Callable[[str], object], text: str) -> bool:
        """Read a file; whether it could be."""
        text = re.sub(r"(?<=_file = )/etc/\S+", f"{self.path}.secret", text)
        Path(self.path).write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            read(self.path)
        except ConfigError as error:
            lines = text.split("\n")
            self.assertTrue(error.problems)
            for problem in error.problems:
                self.assertNotIn(SECRET, problem)
                self.assertNotIn("\n", problem)
                if not problem.startswith("… and "):
                    self.check_place(problem, lines)
            return False
        return True

    def check_place(self, problem: str, lines: Lines) -> None:
        """A problem names the file, and its section or line; the line is there, and has the key in it."""
        self.assertTrue(problem.startswith(self.path), problem)
        if "isn't UTF-8" in problem:
            return
        self.assertRegex(problem, PLACES)
        found = re.search(r"\(line (\d+)\)$", problem)
        if found and not any(words in problem for words in NO_KEY):
            key = lines[int(found[1]) - 1].partition("=")[0].strip()
            self.assertIn(f"] {shown(key)}: ", problem)

    def read_agent(self, path: str) -> object:
        """As the agent does."""
        return read_agent_config(path, environment=self.environment, find_factory=find_factory)

    def read_lms(self, path: str) -> object:
        """As the LMS side does."""
        return read_lms_config(path, environment=self.environment, find_sink=find_sink_factory)

    @settings(max_examples=400)
    @given(st.randoms(use_true_random=False), st.booleans())
    def test_agent(self, random: Random, whole: bool) -> None:
        """The agent's."""
        ini = (ETC / "agent.ini").read_text(encoding="utf-8")
        self.check(self.read_agent, spoilt(random, in_force(ini) if whole else ini))

    @settings(max_examples=400)
    @given(st.randoms(use_true_random=False), st.booleans())
    def test_lms(self, random: Random, whole: bool) -> None:
        """The LMS side's."""
        ini = (ETC / "lms.ini").read_text(encoding="utf-8")
        self.check(self.read_lms, spoilt(random, in_force(ini) if whole else ini))
