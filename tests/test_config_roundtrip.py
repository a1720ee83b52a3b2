"""What is written into an INI file is what is read from it; configparser, whose dialect it is, agrees."""

from __future__ import annotations

from configparser import RawConfigParser

from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from edxagent.config.ini import Problems, expand, parse_ini

LETTERS = st.characters(exclude_categories=["C", "Z"], exclude_characters="[]=;#")
WORDS = st.text(LETTERS, min_size=1, max_size=8)
NAMES = st.lists(WORDS, min_size=1, max_size=3).map(" ".join)
VALUES = st.lists(
    st.lists(WORDS | st.sampled_from(["a=b", "=", "[x]", "a;b", "#", "%(x)s", "$"]), min_size=1, max_size=3).map(
        " ".join
    ),
    min_size=1,
    max_size=3,
).map(lambda lines: [line.lstrip("#[ ") or "x" for line in lines])
"""Each the lines of one value. A line that begins with a # would be a comment."""
FILES = st.dictionaries(NAMES, st.dictionaries(NAMES, st.just([""]) | VALUES, max_size=4), max_size=4)
FILLING = st.lists(st.sampled_from(["", "  ", "# [a]", "; b = c", "   # d", "\t; e"]), max_size=2)


@define
class Layout:
    """A file under construction, laid out by chance.

    :ivar starts: section and key → the line of the key, from 1.
    """

    data: st.DataObject
    lines: list[str] = field(factory=list)
    starts: dict[tuple[str, str], int] = field(factory=dict)

    def write(self, line: str) -> None:
        """A line, with things around it that mean nothing."""
        self.lines += self.data.draw(FILLING)
        self.lines.append(line + self.data.draw(st.sampled_from(["", " ", " ; why", "\t;[a]"])))

    def write_value(self, section: str, key: str, value: list[str]) -> None:
        """A key, with the first line of its value behind it or below."""
        space = st.sampled_from(["", " ", "\t "])
        first, rest = (value[0], value[1:]) if value == [""] or self.data.draw(st.booleans()) else ("", value)
        self.write(f"{key}{self.data.draw(space)}={self.data.draw(space)}{first}")
        self.starts[section, key] = len(self.lines)
        for line in rest:
            self.write(f"{self.data.draw(st.sampled_from([' ', chr(9), '    ']))}{line}")

    def text(self) -> str:
        """The whole file."""
        return self.data.draw(st.sampled_from(["\n", "\r\n"])).join([*self.lines, ""])


class RoundTripTests(SynchronousTestCase):
    """Files without a mistake."""

    @settings(max_examples=60)
    @given(FILES, st.data())
    def test_what_was_written_is_read(self, sections: dict[str, dict[str, list[str]]], data: st.DataObject) -> None:
        """However it is laid out: blanks, comments, line ends, values on lines of their own."""
        layout = Layout(data)
        for section, keys in sections.items():
            layout.write(f"[{section}]")
            for key, value in keys.items():
                layout.write_value(section, key, value)
        problems = Problems("x.ini")
        found = parse_ini(layout.text(), problems)
        problems.raise_if_any()
        read = {
            section: {key: (entry.value, entry.line) for key, entry in keys.items()} for section, keys in found.items()
        }
        written = {
            section: {key: ("\n".join(value), layout.starts[section, key]) for key, value in keys.items()}
            for section, keys in sections.items()
        }
        self.assertEqual(read, written)
        theirs = RawConfigParser(delimiters=["="], inline_comment_prefixes=[";"], default_section="\0", strict=True)
        theirs.optionxform = str  # type: ignore[assignment, method-assign]
        theirs.read_string(layout.text())
        self.assertEqual(
            {
                # It keeps the empty lines within a value.
                section: {key: "\n".join(filter(None, theirs[section][key].split("\n"))) for key in theirs[section]}
                for section in theirs.sections()
            },
            {section: {key: entry.value for key, entry in keys.items()} for section, keys in found.items()},
        )

    @given(st.text() | st.text("${}:-V"), st.text())
    def test_dollars(self, text: str, secret: str) -> None:
        """A text whose ``${`` are written ``$${`` is that text again, and what a variable holds is put in verbatim."""
        written = text.replace("$", "$$")
        expanded = expand(f"{written}${{V}}", {"V": secret})
        self.assertEqual((expanded.text, expanded.literal), (text + secret, text))
