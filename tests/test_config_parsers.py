"""Tests for :mod:`edxagent.config.parsers`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from edxagent.config import parsers
from edxagent.config.parsers import did_you_mean, has_control_characters

# Parser → texts with their values, and texts that are refused.
TABLE: dict[Callable[[str], Any], tuple[dict[str, Any], list[str]]] = {
    parsers.text: ({"xserver": "xserver", "é ü": "é ü"}, ["", "a\nb", "\x1b[0m", "\x9b", "\ud800", "x" * 9000]),
    parsers.seconds: (
        {"30": 30.0, "0.5": 0.5, ".5": 0.5, "604800": 604800.0},
        ["", "0", "0.0", "-1", "nan", "inf", "1e3", "604801", "30s", "1_0", "١", "9" * 400],
    ),
    parsers.seconds_between(0, 60): ({"0": 0.0, "60": 60.0}, ["60.1", "-0.1", "nan", ""]),
    parsers.size: (
        {"1": 1, "65536": 65536, "16 KiB": 16384, "1MiB": 1024**2, "16 GiB": 16 * 1024**3, "12 bytes": 12},
        ["", "0", "0 KiB", "17 GiB", "1.5 MiB", "1 MB", "1 kib", "-1", "KiB", "1 KiB\n"],
    ),
    parsers.count: ({"1": 1, "1000000": 1_000_000, "007": 7}, ["", "0", "-1", "1000001", "1.0", "+1", "x"]),
    parsers.count_between(0, 3): ({"0": 0, "3": 3}, ["4", "-1"]),
    parsers.number: ({"0": 0.0, "2.5": 2.5}, ["", "-1", "nan", "inf", "1000000001"]),
    parsers.share: ({"0": 0.0, "1": 1.0, "0.25": 0.25}, ["1.01", "-0.1", "nan", "25%", ""]),
    parsers.boolean: (
        {"yes": True, "True": True, "ON": True, "no": False, "false": False, "off": False},
        ["", "1", "0", "y", "maybe"],
    ),
    parsers.choice("quorum", "classic"): ({"quorum": "quorum"}, ["", "Quorum", "quorum ", "stream"]),
    parsers.path: ({"/etc/x": "/etc/x", "a b": "a b"}, ["", "a\0b", "a\nb", "x" * 5000]),
    parsers.command_line: (
        {"grade 'a b' c": ("grade", "a b", "c"), "grade\n--fast": ("grade", "--fast"), "grade ''": ("grade", "")},
        ["", "  ", "'a", "a\\", "'' a", "a\0b", "x " * 1001],
    ),
    parsers.url: (
        {
            "http://127.0.0.1:8080/": "http://127.0.0.1:8080/",
            "https://h/x?y=1": "https://h/x?y=1",
            "http://[::1]/": "http://[::1]/",
        },
        [
            "",
            "h:80",
            "ftp://h/",
            "http://",
            "http:///x",
            "http://u:p@h/",
            "http://u@h/",
            "http://h:0/",
            "http://h:99999/",
            "http://h:x/",
            "http://[::1/",
            "http://h/#x",
            "http://h/ x",
            "http://h/\n",
            "http://é/",
            "http://h/" + "x" * 3000,
        ],
    ),
    parsers.name_list: (
        {"": (), "LANG, TZ": ("LANG", "TZ"), "a\nb a": ("a", "b")},
        ["a\0", "x" * 256, " ".join(map(str, range(1001)))],
    ),
}


class ParserTests(SynchronousTestCase):
    """Each parser's values and refusals."""

    def test_understood(self) -> None:
        """What is understood has the value that it looks like, and the value's type."""
        for parse, (understood, _) in TABLE.items():
            for text, value in understood.items():
                self.assertEqual((parse(text), type(parse(text))), (value, type(value)))

    def test_refused(self) -> None:
        """What isn't understood, or is out of bounds, is refused with what was expected."""
        for parse, (_, refused) in TABLE.items():
            for text in refused:
                error = self.assertRaises(ValueError, parse, text)
                self.assertEqual(str(error)[:9], "expected ", (parse, text))

    def test_nothing_secret_in_an_error(self) -> None:
        """A refused text isn't repeated: it may be a secret in the wrong place."""
        for parse in TABLE:
            error = self.assertRaises(ValueError, parse, "hunter2\0")
            self.assertNotIn("hunter2", str(error))

    @settings(deadline=None)
    @given(st.text())
    def test_any_text(self, text: str) -> None:
        """Whatever the text, a parser returns or raises ``ValueError``."""
        for parse in TABLE:
            try:
                parse(text)
            except ValueError:
                continue

    def test_credentials_in_a_web_address(self) -> None:
        """Credentials in an address are refused by name."""
        error = self.assertRaises(ValueError, parsers.url, "http://me:secret@example.org/")
        self.assertIn("a name and password don't belong into it", str(error))

    def test_misspelt_choice(self) -> None:
        """A choice that is nearly right is told which one is."""
        error = self.assertRaises(ValueError, parsers.choice("quorum", "classic"), "clasic")
        self.assertEqual(str(error), 'expected quorum or classic; did you mean "classic"?')


class DidYouMeanTests(SynchronousTestCase):
    """The hint for a misspelt word."""

    def test_near(self) -> None:
        """The nearest known word is offered, whatever the case."""
        self.assertEqual(did_you_mean("Concurency", ["name", "concurrency"]), '; did you mean "concurrency"?')

    def test_far(self) -> None:
        """Where no word is near, nothing is offered."""
        self.assertEqual(did_you_mean("xyzzy", ["name", "concurrency"]), "")

    def test_long(self) -> None:
        """A very long word takes no time."""
        self.assertEqual(did_you_mean("x" * 1_000_000, ["name"]), "")


class HasControlCharactersTests(SynchronousTestCase):
    """What could break a line."""

    def test_all_kinds(self) -> None:
        """C0, DEL, C1, the line separators and lone surrogates count; other letters don't."""
        for character in "\0\t\n\r\x1b\x7f\x80\x85\x9f\u2028\u2029\ud800\udfff":
            self.assertTrue(has_control_characters(f"a{character}b"), ascii(character))
        self.assertFalse(has_control_characters("aé ü–\u200b😀"))
