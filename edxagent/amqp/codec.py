"""AMQP's elementary values both ways: strings, and field tables of every type that RabbitMQ knows.

Types and their letters are RabbitMQ's, not the specification's: https://www.rabbitmq.com/amqp-0-9-1-errata §3.
Lengths count bytes. What can't be encoded is refused before anything is sent. Bytes that aren't UTF-8 stop nothing: a
short string keeps them as surrogate escapes, so that they go out again as they came in; a long one stays ``bytes``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from struct import Struct
from struct import error as StructError
from typing import Any

from edxagent.errors import MessageRefused

MAX_DEPTH = 16
"""Tables and arrays within each other, at most: deeper ones stay encoded when read, and are refused when written."""


class Malformed(Exception):
    """Bytes from the broker that aren't AMQP 0-9-1."""


class Timestamp(int):
    """Whole seconds since the epoch as a table value (type ``T``); a plain ``int`` is sent as a number."""


LONG = Struct(">I")
LONGLONG = Struct(">Q")
_SIGNED_LONG = Struct(">i")
_SIGNED_LONGLONG = Struct(">q")
_DOUBLE = Struct(">d")
_DECIMAL = Struct(">BI")
_NUMBERS = {
    ord(letter): Struct(f">{form}")
    for letter, form in {
        "b": "b", "B": "B", "s": "h", "u": "H", "I": "i", "i": "I", "l": "q", "L": "q", "f": "f", "d": "d",
    }.items()
}  # fmt: skip


def encode_short_string(text: str, what: str) -> bytes:
    """A string of up to 255 bytes, with its length. ``what`` names it in the error.

    :raises MessageRefused: it is longer, or holds lone surrogates.
    """
    if not isinstance(text, str):
        raise MessageRefused(f"{what} must be text, not {type(text).__name__}")
    data = _utf8(text, what)
    if len(data) > 255:
        raise MessageRefused(f"{what} is {len(data)} bytes long; AMQP takes 255")
    return bytes((len(data),)) + data


def decode_short_string(data: bytes, offset: int) -> tuple[str, int]:
    """The string at ``offset`` and the offset after it.

    :raises Malformed: it ends beyond ``data``.
    """
    try:
        start = offset + 1
        end = start + data[offset]
    except IndexError:
        raise Malformed("a string's length is missing") from None
    if end > len(data):
        raise Malformed("a string ends beyond its frame")
    return data[start:end].decode("utf-8", "surrogateescape"), end


def encode_table(table: Mapping[str, Any], what: str = "a table") -> bytes:
    """A field table with its length.

    ``bool`` → t, ``int`` → I or l by size, ``float`` → d, ``Decimal`` → D, ``str`` → S, ``bytes`` → x,
    ``Timestamp`` → T, ``None`` → V, list or tuple → A, mapping → F.

    :raises MessageRefused: a value has no AMQP type or is too large, or the nesting too deep.
    """
    return _encode_table(table, what, 1)


def decode_table(data: bytes, offset: int, end: int | None = None, depth: int = 1) -> tuple[dict[str, Any], int]:
    """The table at ``offset`` and the offset after it.

    Texts that aren't UTF-8 become ``bytes``; so do tables and arrays nested deeper than :data:`MAX_DEPTH`.

    :raises Malformed: it is cut short, or holds a type that RabbitMQ doesn't know.
    """
    start, stop = _extent(data, offset, len(data) if end is None else end)
    table = {}
    while start < stop:
        name, start = decode_short_string(data, start)
        table[name], start = _decode_value(data, start, stop, depth)
    return table, stop


def _encode_table(table: Mapping[str, Any], what: str, depth: int) -> bytes:
    if not isinstance(table, Mapping):
        raise MessageRefused(f"{what} must be a mapping, not {type(table).__name__}")
    parts = []
    for name, value in table.items():
        parts.append(encode_short_string(name, f"a name in {what}"))
        parts.append(_encode_value(value, f"{what}[{name!r}]", depth))
    data = b"".join(parts)
    return LONG.pack(len(data)) + data


def _encode_value(value: Any, what: str, depth: int) -> bytes:
    if isinstance(value, str):
        return _sized(b"S", _utf8(value, what))
    if isinstance(value, bool):
        return b"t\x01" if value else b"t\x00"
    if isinstance(value, int):
        return _encode_int(value, what)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise MessageRefused(f"{what} is {value}; RabbitMQ takes finite numbers only")
        return b"d" + _DOUBLE.pack(value)
    if value is None:
        return b"V"
    if isinstance(value, (bytes, bytearray)):
        return _sized(b"x", bytes(value))
    if isinstance(value, Decimal):
        return _encode_decimal(value, what)
    if isinstance(value, (Mapping, list, tuple)):
        if depth >= MAX_DEPTH:
            raise MessageRefused(f"{what} is nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, Mapping):
            return b"F" + _encode_table(value, what, depth + 1)
        return _sized(b"A", b"".join(_encode_value(item, what, depth + 1) for item in value))
    raise MessageRefused(f"{what} is a {type(value).__name__}, which AMQP has no type for")


def _encode_int(value: int, what: str) -> bytes:
    if isinstance(value, Timestamp):
        if not 0 <= value < 1 << 64:
            raise MessageRefused(f"{what} is no time that AMQP can carry")
        return b"T" + LONGLONG.pack(value)
    if -(1 << 31) <= value < 1 << 31:
        return b"I" + _SIGNED_LONG.pack(value)
    if -(1 << 63) <= value < 1 << 63:
        return b"l" + _SIGNED_LONGLONG.pack(value)
    raise MessageRefused(f"{what} needs more than 64 bits")


def _encode_decimal(value: Decimal, what: str) -> bytes:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int) or sign or not -255 <= exponent <= 0:
        raise MessageRefused(f"{what} is no decimal that AMQP can carry")
    number = int("".join(map(str, digits)))
    if number >= 1 << 32:
        raise MessageRefused(f"{what} is no decimal that AMQP can carry")
    return b"D" + _DECIMAL.pack(-exponent, number)


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise MessageRefused(f"{what} isn't valid text") from None


def _sized(letter: bytes, data: bytes) -> bytes:
    return letter + LONG.pack(len(data)) + data


def _extent(data: bytes, offset: int, end: int) -> tuple[int, int]:
    """Where the value lies that begins with its length at ``offset`` and must not reach beyond ``end``."""
    start = offset + 4
    if start > end:
        raise Malformed("a length is missing")
    stop: int = start + LONG.unpack_from(data, offset)[0]
    if stop > end:
        raise Malformed("a value ends beyond its frame or table")
    return start, stop


def _decode_value(data: bytes, offset: int, end: int, depth: int) -> tuple[Any, int]:
    if offset >= end:
        raise Malformed("a value is missing")
    letter = data[offset]
    decode = _DECODERS.get(letter)
    if decode is not None:
        return decode(data, offset + 1, end, depth)
    form = _NUMBERS.get(letter)
    if form is None:
        raise Malformed(f"a value of the unknown type {chr(letter)!r}")
    return _decode_number(form, data, offset + 1, end)[0], offset + 1 + form.size


def _decode_number(form: Struct, data: bytes, offset: int, end: int) -> tuple[Any, ...]:
    if offset + form.size > end:
        raise Malformed("a number is cut short")
    try:
        return form.unpack_from(data, offset)
    except StructError:
        raise Malformed("a number is cut short") from None


def _decode_text(data: bytes, offset: int, end: int, depth: int) -> tuple[Any, int]:
    start, stop = _extent(data, offset, end)
    raw = data[start:stop]
    try:
        return raw.decode("utf-8"), stop
    except UnicodeDecodeError:
        return raw, stop


def _decode_bytes(data: bytes, offset: int, end: int, depth: int) -> tuple[bytes, int]:
    start, stop = _extent(data, offset, end)
    return data[start:stop], stop


def _decode_array(data: bytes, offset: int, end: int, depth: int) -> tuple[Any, int]:
    if depth >= MAX_DEPTH:
        return _decode_bytes(data, offset, end, depth)
    start, stop = _extent(data, offset, end)
    items = []
    while start < stop:
        item, start = _decode_value(data, start, stop, depth + 1)
        items.append(item)
    return items, stop


def _decode_nested_table(data: bytes, offset: int, end: int, depth: int) -> tuple[Any, int]:
    if depth >= MAX_DEPTH:
        return _decode_bytes(data, offset, end, depth)
    return decode_table(data, offset, end, depth + 1)


def _decode_bool(data: bytes, offset: int, end: int, depth: int) -> tuple[bool, int]:
    if offset >= end:
        raise Malformed("a boolean is missing")
    return data[offset] != 0, offset + 1


def _decode_timestamp(data: bytes, offset: int, end: int, depth: int) -> tuple[Timestamp, int]:
    return Timestamp(_decode_number(LONGLONG, data, offset, end)[0]), offset + 8


def _decode_decimal(data: bytes, offset: int, end: int, depth: int) -> tuple[Decimal, int]:
    scale, number = _decode_number(_DECIMAL, data, offset, end)
    return Decimal(number).scaleb(-scale), offset + 5


def _decode_void(data: bytes, offset: int, end: int, depth: int) -> tuple[None, int]:
    return None, offset


_DECODERS: dict[int, Callable[[bytes, int, int, int], tuple[Any, int]]] = {
    ord("t"): _decode_bool,
    ord("S"): _decode_text,
    ord("x"): _decode_bytes,
    ord("A"): _decode_array,
    ord("F"): _decode_nested_table,
    ord("T"): _decode_timestamp,
    ord("D"): _decode_decimal,
    ord("V"): _decode_void,
}
