"""Reads a form while it arrives, piece by piece: what has arrived is decoded, and nothing is kept twice.

Formats: ``application/x-www-form-urlencoded`` (https://url.spec.whatwg.org/#application/x-www-form-urlencoded) and
``multipart/form-data`` (RFC 7578). As in Django, which XQueue runs on, the last of several values with one name counts,
what isn't UTF-8 is replaced, and a part is a file when it has a file name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import unquote_to_bytes

from attrs import field, frozen
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from edxagent.lms.contracts import Upload

MOST_PARTS = 100
"""Fields and files of one form."""

LONGEST_PART_HEADER = 4096
MOST_PART_HEADERS = 8

_begun_escape = re.compile(rb"%[0-9A-Fa-f]?\Z")


@frozen(kw_only=True)
class Form:
    """What a request's body says.

    :ivar files: in the order of the form; ``name`` is the part's, which is where an LMS puts the file's name.
    """

    fields: Mapping[str, str] = field(factory=dict, repr=False)
    files: tuple[Upload, ...] = ()


class BadForm(Exception):
    """It breaks the format's rules, or has too many parts."""


class FormReader(Protocol):
    """Something that is fed a body."""

    def feed(self, data: bytes) -> None:
        """Some of the body; :raises BadForm: it can't be read, and needs no more feeding."""

    def finish(self) -> Form:
        """The body is complete; :raises BadForm: or so they say."""


def reader_for(content_type: str) -> FormReader | None:
    """A reader for a body of that ``Content-Type``, or ``None`` if it is no form.

    :raises BadForm: there can't be one.
    """
    kind, options = parse_options_header(content_type)
    if kind == "application/x-www-form-urlencoded":
        return UrlencodedReader()
    if kind == "multipart/form-data":
        return MultipartReader(options.get("boundary", ""))
    return None


class UrlencodedReader:
    """``name=value&name=value``, with ``+`` for a blank and ``%XX`` for a byte."""

    def __init__(self) -> None:
        self._pairs: list[tuple[bytearray, bytearray]] = [(bytearray(), bytearray())]
        self._in_value = False
        self._cut = b""

    def feed(self, data: bytes) -> None:
        """See :meth:`FormReader.feed`."""
        data = self._cut + data
        begun = _begun_escape.search(data[-2:])
        self._cut = begun[0] if begun else b""
        data = data.removesuffix(self._cut)
        first, *others = data.split(b"&", MOST_PARTS)
        self._add(first)
        for pair in others:
            if len(self._pairs) == MOST_PARTS:
                raise BadForm(f"it has more than {MOST_PARTS} fields")
            self._pairs.append((bytearray(), bytearray()))
            self._in_value = False
            self._add(pair)

    def finish(self) -> Form:
        """See :meth:`FormReader.finish`."""
        self._add(self._cut)
        return Form(fields={_text(name): _text(value) for name, value in self._pairs if name or value})

    def _add(self, data: bytes) -> None:
        name, value = self._pairs[-1]
        if not self._in_value:
            head, equals, data = data.partition(b"=")
            name += _unquoted(head)
            self._in_value = bool(equals)
        value += _unquoted(data)


class MultipartReader:
    """Parts with headers of their own, between lines that repeat the ``boundary``."""

    def __init__(self, boundary: str) -> None:
        try:
            self._parser = PushMultipartParser(
                boundary.encode(errors="replace"),
                max_header_size=LONGEST_PART_HEADER,
                max_header_count=MOST_PART_HEADERS,
                max_segment_count=MOST_PARTS,
            )
        except MultipartError as error:
            raise BadForm(str(error)) from None
        self._part: MultipartSegment | None = None
        self._content = bytearray()
        self._fields: dict[str, str] = {}
        self._files: dict[str, Upload] = {}

    def feed(self, data: bytes) -> None:
        """See :meth:`FormReader.feed`."""
        if self._parser.closed or not data:
            return
        try:
            for event in self._parser.parse(data):
                if isinstance(event, MultipartSegment):
                    self._part = event
                elif event is None:
                    self._keep()
                else:
                    self._content += event
        except MultipartError as error:
            raise BadForm(str(error)) from None

    def finish(self) -> Form:
        """See :meth:`FormReader.finish`."""
        try:
            self._parser.close()
        except MultipartError as error:
            raise BadForm(str(error)) from None
        return Form(fields=self._fields, files=tuple(self._files.values()))

    def _keep(self) -> None:
        part, content = self._part, self._content
        self._part, self._content = None, bytearray()
        assert part is not None and part.name is not None
        if part.filename is None:
            self._fields[part.name] = _text(content)
        elif part.filename:  # a browser's empty file field has an empty one
            self._files[part.name] = Upload(name=part.name, content=bytes(content))


def _unquoted(data: bytes) -> bytes:
    return unquote_to_bytes(data.replace(b"+", b" "))


def _text(data: bytearray) -> str:
    return data.decode("utf-8", "replace")
