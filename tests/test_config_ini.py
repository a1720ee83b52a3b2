"""Tests for :mod:`edxagent.config.ini`."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from edxagent.config.ini import (
    LARGEST_FILE,
    MOST_PROBLEMS,
    Entry,
    Expanded,
    Problems,
    expand,
    parse_ini,
    read_small_file,
    read_text,
    shown,
)
from edxagent.errors import ConfigError

ENVIRONMENT = {"USER": "me", "EMPTY": "", "URL": "amqp://u:p@h/", "NESTED": "${USER} $$"}


class ParseIniTests(SynchronousTestCase):
    """The text of a file, as sections of entries."""

    def parse(self, text: str) -> dict[str, dict[str, str]]:
        """Parse a text that has no problems."""
        problems = Problems("x.ini")
        parsed = parse_ini(text, problems)
        problems.raise_if_any()
        return {section: {key: entry.value for key, entry in entries.items()} for section, entries in parsed.items()}

    def problems(self, text: str) -> list[str]:
        """The problems of a text."""
        problems = Problems("x.ini")
        parse_ini(text, problems)
        return list(self.assertRaises(ConfigError, problems.raise_if_any).problems)

    def test_queue_names(self) -> None:
        """Keys keep their case, colons, percent and plus signs."""
        text = "[queues]\nCourse-v1:MITx+6.00x%2F = weight=2\nplain=\n"
        self.assertEqual(self.parse(text), {"queues": {"Course-v1:MITx+6.00x%2F": "weight=2", "plain": ""}})

    def test_comments(self) -> None:
        """Comment lines, and comments behind a blank, vanish; a semicolon within a word stays."""
        text = "# one\n; two\n[a] ; three\n  # four\nb = c;d #e ; five\nf = ; six\n\t;seven\n"
        self.assertEqual(self.parse(text), {"a": {"b": "c;d #e", "f": ""}})

    def test_lines_of_one_value(self) -> None:
        """Indented lines go on with the value above them; blank lines and comments between don't end it."""
        text = "[a]\nb =\n  one\n\n  # no\n\ttwo = 2 ; no\nc = three\n  four\n"
        self.assertEqual(self.parse(text), {"a": {"b": "one\ntwo = 2", "c": "three\nfour"}})

    def test_windows_line_ends(self) -> None:
        """Windows' line ends are as good."""
        self.assertEqual(self.parse("[a]\r\nb = c\r\n d\r\n"), {"a": {"b": "c\nd"}})

    def test_line_numbers(self) -> None:
        """An entry knows the line that it begins in."""
        parsed = parse_ini("\n[a]\nb = 1\nc = 2\n  3\nd = 4", Problems("x.ini"))
        self.assertEqual(
            parsed["a"],
            {"b": Entry(value="1", line=3), "c": Entry(value="2\n3", line=4), "d": Entry(value="4", line=6)},
        )

    def test_every_problem(self) -> None:
        """All mistakes are told, in their order, each with its place; what belongs to a bad line isn't another."""
        text = "a = 1\n  more\n[b]\nc\n  more\n= 2\nd = 1\nd = 2\n  more = 3\n[b]\n[]\n[e\n"
        self.assertEqual(
            self.problems(text),
            [
                "x.ini: expected a section first, such as [agent] (line 1)",
                "x.ini [b]: expected a line such as key = value (line 4)",
                "x.ini [b]: expected a line such as key = value (line 6)",
                "x.ini [b] d: this key is there twice; it is in line 7 too (line 8)",
                "x.ini [b]: this section is there twice; join the two (line 10)",
                "x.ini [b]: expected a line such as key = value (line 11)",
                "x.ini [b]: expected a line such as key = value (line 12)",
            ],
        )

    def test_endless_problems(self) -> None:
        """A file of nothing but mistakes makes a report of bounded length."""
        problems = self.problems("[a]\n" + "x\n" * 10_000)
        self.assertEqual(len(problems), MOST_PROBLEMS + 1)
        self.assertEqual(problems[-1], f"… and {10_000 - MOST_PROBLEMS} more problems")

    def test_hostile_names(self) -> None:
        """A section's or key's name can't break the report's lines or make it endless."""
        problems = self.problems("[a\x1b]\nb\x85b = 1\nb\x85b = 2\n" + "k" * 1000 + " = 1\n" + "k" * 1000 + " = 2\n")
        self.assertIn(r"[a\x1b] b\x85b:", problems[0])
        self.assertLess(len(problems[1]), 200)

    @settings(deadline=None)
    @given(st.text(alphabet=st.one_of(st.sampled_from("[]=;# \n\tab"), st.characters())))
    def test_any_text(self, text: str) -> None:
        """Whatever the text, it is read, or its problems are collected."""
        problems = Problems("x.ini")
        for entries in parse_ini(text, problems).values():
            for key, entry in entries.items():
                self.assertTrue(key and entry.line >= 1)
        try:
            problems.raise_if_any()
        except ConfigError as error:
            self.assertTrue(error.problems)


class ExpandTests(SynchronousTestCase):
    """Environment variables in values."""

    def check(self, value: str, text: str, literal: str) -> None:
        """Assert what a value becomes."""
        self.assertEqual(expand(value, ENVIRONMENT), Expanded(text=text, literal=literal))

    def test_nothing_to_do(self) -> None:
        """A text without ``${`` stays as it is, dollar signs too."""
        self.check("100 $ %(x)s $x", "100 $ %(x)s $x", "100 $ %(x)s $x")

    def test_variable(self) -> None:
        """A variable is put in, and doesn't count as written."""
        self.check("a${USER}b", "ameb", "ab")
        self.check("${USER}${URL}", "meamqp://u:p@h/", "")

    def test_default(self) -> None:
        """A default stands in for a variable that is unset or empty, and counts as written."""
        self.check("${NOPE:-x:y%2F}!", "x:y%2F!", "x:y%2F!")
        self.check("${EMPTY:-x}", "x", "x")
        self.check("${USER:-x}", "me", "")
        self.check("${NOPE:-}", "", "")

    def test_empty(self) -> None:
        """A variable that is set but empty is as good as any."""
        self.check("a${EMPTY}", "a", "a")

    def test_dollar(self) -> None:
        """Two dollar signs are one."""
        self.check("$$ $${USER}", "$ ${USER}", "$ ${USER}")

    def test_no_second_round(self) -> None:
        """What a variable holds isn't expanded again."""
        self.check("${NESTED}", "${USER} $$", "")

    def test_unset(self) -> None:
        """An unset variable without a default is a problem that names it."""
        error = self.assertRaises(ValueError, expand, "${NOPE}", ENVIRONMENT)
        self.assertEqual(str(error), "the environment variable NOPE isn't set; set it, or write ${NOPE:-default}")

    def test_not_understood(self) -> None:
        """A ``${`` that isn't understood is a problem."""
        for value in ("${", "${}", "${a b}", "${1}", "${A-b}", "${A:-${USER}}", "x${USER"):
            error = self.assertRaises(ValueError, expand, value, ENVIRONMENT)
            self.assertIn("expected ${NAME} or ${NAME:-default}", str(error))

    def test_bomb(self) -> None:
        """A small file can't grow without bound."""
        error = self.assertRaises(ValueError, expand, "${BIG}" * 100, {"BIG": "x" * 100_000})
        self.assertIn("too long", str(error))

    @settings(deadline=None)
    @given(st.text(alphabet="${}:-AB b"))
    def test_any_text(self, value: str) -> None:
        """Whatever the value, it is expanded or refused with ``ValueError``."""
        try:
            expanded = expand(value, {"A": "1"})
        except ValueError:
            return
        self.assertLessEqual(len(expanded.literal), len(expanded.text))


class ReadTextTests(SynchronousTestCase):
    """A file that is there, or is none."""

    def setUp(self) -> None:
        """A name for a file."""
        self.path = self.mktemp()

    def refused(self, *, saying: str) -> None:
        """Assert that there is one problem, in one line that names the file."""
        (problem,) = self.assertRaises(ConfigError, read_text, self.path).problems
        self.assertIn(saying, problem)
        self.assertTrue(problem.startswith(f"{self.path}: "), problem)
        self.assertNotIn("\n", problem)

    def test_text(self) -> None:
        """UTF-8 is read, with a byte order mark or without."""
        Path(self.path).write_bytes("\ufeff[é]".encode())
        self.assertEqual(read_text(self.path), "[é]")

    def test_missing(self) -> None:
        """A missing file is a problem."""
        self.refused(saying="there is no such file")

    def test_folder(self) -> None:
        """A folder is a problem."""
        os.mkdir(self.path)
        self.refused(saying="isn't a regular file")

    def test_fifo(self) -> None:
        """A FIFO is a problem, and not an endless wait."""
        os.mkfifo(self.path)
        self.refused(saying="isn't a regular file")

    def test_way_through_a_file(self) -> None:
        """A path that leads through a file is a problem."""
        Path(self.path).write_text("x")
        self.path += "/x"
        self.refused(saying="can't be read: Not a directory")

    def test_binary(self) -> None:
        """What isn't UTF-8 is a problem with its line."""
        Path(self.path).write_bytes(b"[a]\nb = \xff\n")
        self.refused(saying="isn't UTF-8 text (line 2)")

    def test_large(self) -> None:
        """A file beyond the limit is a problem; one at the limit isn't."""
        Path(self.path).write_bytes(b"#" * LARGEST_FILE)
        self.assertEqual(len(read_text(self.path)), LARGEST_FILE)
        Path(self.path).write_bytes(b"#" * (LARGEST_FILE + 1))
        self.refused(saying="larger than 1024 KiB")

    def test_nul_in_the_name(self) -> None:
        """A name that can't be one is a problem."""
        (problem,) = self.assertRaises(ConfigError, read_text, "a\0b").problems
        self.assertIn(r"a\x00b: ", problem)


class ReadSmallFileTests(SynchronousTestCase):
    """A file whose name the caller tells."""

    def test_limit(self) -> None:
        """The caller sets the limit."""
        path = self.mktemp()
        Path(path).write_text("x" * 2048)
        self.assertEqual(read_small_file(path, 2048), "x" * 2048)
        self.assertIn("larger than 1 KiB", str(self.assertRaises(ValueError, read_small_file, path, 1024)))


class ShownTests(SynchronousTestCase):
    """Words of a file in a report."""

    def test_plain(self) -> None:
        """A harmless word stays as it is."""
        self.assertEqual(shown("tïmeout"), "tïmeout")

    def test_hostile(self) -> None:
        """A long one is cut, and control characters are escaped."""
        self.assertEqual(shown("x" * 100), "x" * 80 + "…")
        self.assertEqual(shown("a\nb"), r"a\nb")
