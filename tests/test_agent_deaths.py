"""Tests for :mod:`edxagent.agent.deaths`."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from edxagent.agent.deaths import LONGEST_KEY, MEMORY, MOST, Deaths, key_of, read_deaths, updated, write_deaths

NOW = 1_700_000_000.0
ANY_TEXT = st.text(st.characters(), max_size=600)


class KeyTests(SynchronousTestCase):
    """A submission's id, as it is written down."""

    def test_plain(self) -> None:
        """An ordinary id stays as it is."""
        for submission in ("42", "a b", "übung", "x" * LONGEST_KEY):
            self.assertEqual(key_of(submission), submission)

    def test_hashed(self) -> None:
        """One that is empty, too long or doesn't fit on a line is hashed."""
        for submission in ("", "x" * (LONGEST_KEY + 1), "ü" * LONGEST_KEY, "a\nb", "a\0b", "a\u2028b", "\udc80"):
            self.assertRegex(key_of(submission), "^sha256:[0-9a-f]{64}$", repr(submission))

    @given(ANY_TEXT)
    def test_any(self, submission: str) -> None:
        """A key fits into its place, and is its own key."""
        key = key_of(submission)
        self.assertLessEqual(len(key.encode()), LONGEST_KEY)
        self.assertTrue(key.isprintable())
        self.assertEqual(key_of(key), key)


class UpdatedTests(SynchronousTestCase):
    """What is known after some died, and others ended."""

    def test_died(self) -> None:
        """Each death counts, though there be two at once."""
        before = {"a": Deaths(2, NOW - 10)}
        self.assertEqual(updated(before, ["a", "b", "b"], [], NOW), {"a": Deaths(3, NOW), "b": Deaths(2, NOW)})

    def test_ended(self) -> None:
        """What has ended is forgotten; what isn't there can end as well."""
        before = {"a": Deaths(2, NOW), "b": Deaths(1, NOW)}
        self.assertEqual(updated(before, [], ["a", "c"], NOW), {"b": Deaths(1, NOW)})

    def test_old(self) -> None:
        """What nobody has died of for a week is forgotten."""
        before = {"a": Deaths(2, NOW - MEMORY), "b": Deaths(1, NOW - MEMORY + 1)}
        self.assertEqual(list(updated(before, [], [], NOW)), ["b"])

    def test_clock_set_back(self) -> None:
        """Deaths in the future were just now, so that they are forgotten one day."""
        self.assertEqual(updated({"a": Deaths(2, NOW * 2)}, [], [], NOW), {"a": Deaths(2, NOW)})

    def test_many(self) -> None:
        """Those that nobody has died of for longest go first."""
        before = {str(number): Deaths(1, NOW - number) for number in range(MOST)}
        after = updated(before, ["new"], [], NOW)
        self.assertEqual(len(after), MOST)
        self.assertEqual({"new", "0"} - set(after), set())
        self.assertNotIn(str(MOST - 1), after)


class FileTests(SynchronousTestCase):
    """The file."""

    def setUp(self) -> None:
        """A folder for it."""
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.path = str(self.folder / "deaths")

    def test_again(self) -> None:
        """What was written can be read again, and nobody else can read it."""
        deaths = {"a": Deaths(1, NOW), "b c": Deaths(999_999, NOW), key_of("\n"): Deaths(3, NOW), "ü": Deaths(2, NOW)}
        write_deaths(self.path, deaths)
        write_deaths(self.path, deaths)
        self.assertEqual(read_deaths(self.path), deaths)
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)
        self.assertEqual(os.listdir(self.folder), ["deaths"])

    def test_missing(self) -> None:
        """Without a file nobody has died."""
        self.assertEqual(read_deaths(self.path), {})

    def test_killed_while_writing(self) -> None:
        """What an attempt left that was killed is in nobody's way."""
        Path(f"{self.path}.new").write_text("1 2")
        write_deaths(self.path, {"a": Deaths(1, NOW)})
        self.assertEqual(os.listdir(self.folder), ["deaths"])

    def test_lines(self) -> None:
        """A line that isn't one of ours counts for nothing; the others do."""
        good = f"3 {NOW:.0f} good"
        bad = ["", "x", "0 1 a", "-1 1 a", "1 1", "1 1 ", "9999999 1 a", "1 1e5 a", "1 nan a", "٣ ٣ a", "1 1 a\0b"]
        Path(self.path).write_text("\n".join([good, *bad, f"1 1 {'x' * 501}", f"{'9' * 5000} 1 a", "1 5 last"]))
        self.assertEqual(read_deaths(self.path), {"good": Deaths(3, NOW), "last": Deaths(1, 5)})

    @given(st.binary(max_size=300))
    def test_anything(self, data: bytes) -> None:
        """Whatever stands there, it is read, and what was read can be written."""
        Path(self.path).write_bytes(data)
        deaths = read_deaths(self.path)
        write_deaths(self.path, deaths)
        self.assertEqual(read_deaths(self.path), deaths)

    def test_huge(self) -> None:
        """Of a file without end only the beginning is read."""
        with open(self.path, "wb") as file:
            file.write(b"1 1 a\n")
            file.truncate(1 << 36)
        self.assertEqual(read_deaths(self.path), {"a": Deaths(1, 1)})

    def test_not_a_file(self) -> None:
        """A link, a folder, or a pipe that nobody writes to is no file of ours, and nobody waits for it."""
        for make in (
            lambda: os.symlink("/etc/passwd", self.path),
            lambda: os.mkdir(self.path),
        ):
            make()
            self.assertRaises(OSError, read_deaths, self.path)
            os.rename(self.path, self.mktemp())
        os.mkfifo(self.path)
        self.assertEqual(read_deaths(self.path), {})
