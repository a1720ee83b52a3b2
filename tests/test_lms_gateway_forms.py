"""Tests for reading forms while they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from urllib.parse import parse_qsl, quote_plus, urlencode

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from edxagent.lms.gateway.forms import MOST_PARTS, BadForm, Form, reader_for
from tests.gateway_support import multipart

URLENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=b0undary"


def read(content_type: str, *pieces: bytes) -> Form:
    """What a reader makes of a body that arrives in pieces."""
    reader = reader_for(content_type)
    assert reader is not None
    for piece in pieces:
        reader.feed(piece)
    return reader.finish()


def cut(body: bytes, places: Sequence[int]) -> list[bytes]:
    """``body`` in pieces."""
    ends = sorted({place % (len(body) + 1) for place in places} | {0, len(body)})
    return [body[begin:end] for begin, end in pairwise(ends)]


PLACES = st.lists(st.integers(0, 5000), max_size=20)


class UrlencodedTests(SynchronousTestCase):
    """Tests for ``name=value`` forms."""

    def test_as_an_lms_sends_it(self) -> None:
        """Blanks, signs and letters of all alphabets come through."""
        fields = {"xqueue_header": '{"a": "+&=%"}', "xqueue_body": "größe 日本\n"}
        self.assertEqual(read(URLENCODED, urlencode(fields).encode()).fields, fields)

    def test_wherever_it_is_cut(self) -> None:
        """It doesn't matter where one packet ends and the next begins: not within ``%C3%BC`` either."""
        body = b"a=%C3%BC&b=1"
        for place in range(len(body)):
            self.assertEqual(read(URLENCODED, body[:place], body[place:]).fields, {"a": "ü", "b": "1"})

    def test_what_is_no_escape(self) -> None:
        """A percent sign just before the end of a value, of a name or of everything is only that."""
        self.assertEqual(read(URLENCODED, b"a=%&b=%", b"&%=%4&c=%").fields, {"a": "%", "b": "%", "%": "%4", "c": "%"})

    @given(st.text("ab&=%+é4 ", max_size=60), PLACES)
    def test_like_the_standard_library(self, text: str, places: list[int]) -> None:
        """Broken escapes, empty names and repeated ones mean what they mean to Python."""
        told = dict(parse_qsl(text, keep_blank_values=True))
        fields = dict(read(URLENCODED, *cut(text.encode(), places)).fields)
        fields.pop("", None)
        told.pop("", None)
        self.assertEqual(fields, told)

    def test_what_is_not_utf_8(self) -> None:
        """It is replaced, as Django does."""
        self.assertEqual(read(URLENCODED, b"a=%ff").fields, {"a": "\ufffd"})

    def test_too_many_fields(self) -> None:
        """There is a bound on fields, and it is noticed while they arrive."""
        body = "&".join(["a=1"] * MOST_PARTS)
        self.assertEqual(read(URLENCODED, body.encode()).fields, {"a": "1"})
        reader = reader_for(URLENCODED)
        assert reader is not None
        reader.feed(body.encode())
        with self.assertRaises(BadForm):
            reader.feed(b"&")


class MultipartTests(SynchronousTestCase):
    """Tests for forms with files."""

    def test_as_an_lms_sends_it(self) -> None:
        """Files keep their names and bytes; fields are text."""
        body = multipart({"xqueue_body": "ü"}, {"a b.py": b"\x00\xff--b0undary", "größe.txt": b""})
        form = read(MULTIPART, body)
        self.assertEqual(form.fields, {"xqueue_body": "ü"})
        self.assertEqual(
            [(file.name, file.content) for file in form.files], [("a b.py", b"\x00\xff--b0undary"), ("größe.txt", b"")]
        )

    @given(st.dictionaries(st.text("abc", min_size=1), st.binary(max_size=200), max_size=5), PLACES)
    def test_wherever_it_is_cut(self, files: dict[str, bytes], places: list[int]) -> None:
        """It doesn't matter where one packet ends and the next begins."""
        form = read(MULTIPART, *cut(multipart({"f": "v"}, files), places))
        self.assertEqual({file.name: file.content for file in form.files}, files)
        self.assertEqual(form.fields, {"f": "v"})

    def test_a_file_twice(self) -> None:
        """The last one of a name counts."""
        twice = multipart({}, {"a": b"1"}).replace(b"--b0undary--\r\n", b"") + multipart({}, {"a": b"2"})
        self.assertEqual([file.content for file in read(MULTIPART, twice).files], [b"2"])

    def test_an_empty_file_field(self) -> None:
        """A browser's file field that nothing was chosen for is no file."""
        body = multipart({}, {"a": b""}).replace(b'filename="a"', b'filename=""')
        self.assertEqual(read(MULTIPART, body), Form())

    def test_malformed(self) -> None:
        """What breaks the rules is a bad form, whatever it is."""
        good = multipart({"f": "v"}, {"a": b"1"})
        for body in (
            b"",
            b"x",
            good[:-10],
            b"--b0undary\r\nX: y\r\n\r\n1\r\n--b0undary--\r\n",
            b"--b0undary\r\nno header\r\n\r\n1\r\n--b0undary--\r\n",
            b"--b0undary\nContent-Disposition: form-data; name=a\n\n1\n--b0undary--\n",
            b"--b0undary\r\nContent-Disposition: form-data; name=\xff\r\n\r\n1\r\n--b0undary--\r\n",
            b"--b0undary\r\nContent-Disposition: " + b"x" * 5000,
            b"--b0undary\r\n" + b"A: b\r\n" * 20,
            multipart({str(number): "" for number in range(MOST_PARTS + 1)}, {}),
        ):
            with self.assertRaises(BadForm, msg=repr(body[:60])):
                read(MULTIPART, body)

    @given(st.binary(max_size=300), PLACES)
    def test_any_bytes(self, body: bytes, places: list[int]) -> None:
        """Nothing but a bad form can come of anything."""
        try:
            read(MULTIPART, *cut(b"--b0undary\r\n" + body, places))
        except BadForm:
            return

    def test_boundaries(self) -> None:
        """A form without a usable boundary is a bad one."""
        for content_type in ("multipart/form-data", 'multipart/form-data; boundary=""'):
            with self.assertRaises(BadForm):
                reader_for(content_type)

    def test_no_form(self) -> None:
        """JSON, for one, is no form."""
        self.assertIsNone(reader_for("application/json"))
        self.assertIsNone(reader_for(""))


class LargeTests(SynchronousTestCase):
    """Tests that a long form takes time in proportion, and that nothing is kept twice."""

    def test_a_long_value(self) -> None:
        """A value in a thousand packets is put together."""
        value = "x%&" * 20_000
        body = f"a={quote_plus(value)}".encode()
        self.assertEqual(read(URLENCODED, *cut(body, range(0, len(body), 137))).fields, {"a": value})
