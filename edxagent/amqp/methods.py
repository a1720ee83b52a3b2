"""What is inside the frames: method arguments by the protocol definition, content headers for our ``Properties``.

The methods that come once a message (publish, deliver, ack) have a path of their own, without the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from struct import error as StructError
from typing import Any, NamedTuple

from edxagent.amqp.codec import (
    LONG,
    LONGLONG,
    Malformed,
    decode_short_string,
    decode_table,
    encode_short_string,
    encode_table,
)
from edxagent.amqp.spec import methods_by_id
from edxagent.errors import MessageRefused
from edxagent.model import Properties

DELIVER = b"\x00\x3c\x00\x3c"
ACK = b"\x00\x3c\x00\x50"
NACK = b"\x00\x3c\x00\x78"

_OCTET = Struct(">B")
_SHORT = Struct(">H")
_NUMBERS = {"octet": _OCTET, "short": _SHORT, "long": LONG, "longlong": LONGLONG, "timestamp": LONGLONG}
_ACKED = Struct(">4sQB")
_HEADER = Struct(">HHQH")
_BASIC = 60

_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS, _DELIVERY_MODE = 1 << 15, 1 << 14, 1 << 13, 1 << 12
_PRIORITY, _CORRELATION_ID, _REPLY_TO, _EXPIRATION = 1 << 11, 1 << 10, 1 << 9, 1 << 8
_MESSAGE_ID, _TIMESTAMP, _TYPE = 1 << 7, 1 << 6, 1 << 5


def encode_method(method: Any, args: Sequence[Any]) -> bytes:
    """The payload of a method frame; ``method`` is txamqp's description of it.

    :raises MessageRefused: an argument doesn't fit its field.
    """
    parts = [_SHORT.pack(method.klass.id), _SHORT.pack(method.id)]
    bits: list[bool] = []
    for field, value in zip(method.fields, args, strict=True):
        if field.type == "bit":
            bits.append(bool(value))
            continue
        if bits:
            parts.append(_pack_bits(bits))
            bits = []
        parts.append(_encode_field(field.type, value, f"{method.klass.name}.{method.name} {field.name}"))
    if bits:
        parts.append(_pack_bits(bits))
    return b"".join(parts)


def decode_method(payload: bytes) -> tuple[Any, tuple[Any, ...]]:
    """txamqp's description of the method, and its arguments.

    :raises Malformed: the method is unknown or its arguments are cut short.
    """
    method = methods_by_id().get(payload[:4])
    if method is None:
        raise Malformed(f"an unknown method {payload[:4].hex()}")
    args: list[Any] = []
    offset, bit = 4, 8
    for field in method.fields:
        if field.type == "bit":
            if bit == 8:
                bit, offset = 0, offset + 1
            if offset > len(payload):
                raise Malformed("a method is cut short")
            args.append(bool(payload[offset - 1] >> bit & 1))
            bit += 1
        else:
            bit = 8
            value, offset = _decode_field(field.type, payload, offset)
            args.append(value)
    return method, tuple(args)


class Deliver(NamedTuple):
    """The arguments of ``basic.deliver``."""

    consumer_tag: str
    delivery_tag: int
    redelivered: bool
    exchange: str
    routing_key: str


def decode_deliver(payload: bytes) -> Deliver:
    """:func:`decode_method` for ``basic.deliver``."""
    consumer_tag, offset = decode_short_string(payload, 4)
    try:
        delivery_tag = LONGLONG.unpack_from(payload, offset)[0]
        redelivered = payload[offset + 8]
    except (StructError, IndexError):
        raise Malformed("a delivery is cut short") from None
    exchange, offset = decode_short_string(payload, offset + 9)
    routing_key, offset = decode_short_string(payload, offset)
    return Deliver(consumer_tag, delivery_tag, bool(redelivered & 1), exchange, routing_key)


def encode_publish(exchange: str, routing_key: str) -> bytes:
    """The payload of a mandatory ``basic.publish``."""
    exchange_name = encode_short_string(exchange, "the exchange's name")
    return b"\x00\x3c\x00\x28\x00\x00" + exchange_name + encode_short_string(routing_key, "the routing key") + b"\x01"


def encode_ack(delivery_tag: int, multiple: bool = False) -> bytes:
    """The payload of ``basic.ack``."""
    return _ACKED.pack(ACK, delivery_tag, multiple)


def encode_nack(delivery_tag: int, requeue: bool) -> bytes:
    """The payload of ``basic.nack`` for one delivery."""
    return _ACKED.pack(NACK, delivery_tag, requeue << 1)


def decode_ack(payload: bytes) -> tuple[int, bool]:
    """Tag and ``multiple`` of the broker's ``basic.ack`` or ``basic.nack``."""
    try:
        _, tag, bits = _ACKED.unpack_from(payload)
    except StructError:
        raise Malformed("a confirm is cut short") from None
    return tag, bool(bits & 1)


def encode_header(properties: Properties, size: int) -> bytes:
    """The payload of a content header frame, for a body of ``size`` bytes (AMQP 0-9-1 §4.2.6.1).

    :raises MessageRefused: a property doesn't fit.
    """
    flags, parts = 0, []
    if properties.content_type is not None:
        flags |= _CONTENT_TYPE
        parts.append(encode_short_string(properties.content_type, "content_type"))
    if properties.headers:
        flags |= _HEADERS
        parts.append(encode_table(properties.headers, "headers"))
    if properties.delivery_mode is not None:
        flags |= _DELIVERY_MODE
        parts.append(_encode_field("octet", properties.delivery_mode, "delivery_mode"))
    if properties.correlation_id is not None:
        flags |= _CORRELATION_ID
        parts.append(encode_short_string(properties.correlation_id, "correlation_id"))
    if properties.reply_to is not None:
        flags |= _REPLY_TO
        parts.append(encode_short_string(properties.reply_to, "reply_to"))
    if properties.message_id is not None:
        flags |= _MESSAGE_ID
        parts.append(encode_short_string(properties.message_id, "message_id"))
    if properties.timestamp is not None:
        flags |= _TIMESTAMP
        parts.append(_encode_field("timestamp", properties.timestamp, "timestamp"))
    if properties.type is not None:
        flags |= _TYPE
        parts.append(encode_short_string(properties.type, "type"))
    return _HEADER.pack(_BASIC, 0, size, flags) + b"".join(parts)


def decode_header(payload: bytes) -> tuple[int, Properties]:
    """The size that the body will have, and the properties that we know; the others are skipped.

    :raises Malformed: it is cut short or of another class.
    """
    try:
        klass, _, size, flags = _HEADER.unpack_from(payload)
    except StructError:
        raise Malformed("a content header is cut short") from None
    if klass != _BASIC or flags & 1:
        raise Malformed("a content header of an unknown class or with unknown properties")
    values: dict[str, Any] = {"delivery_mode": None}
    offset = _HEADER.size
    for flag, name, kind in _PROPERTIES:
        if flags & flag:
            value, offset = _decode_field(kind, payload, offset)
            if name:
                values[name] = value
    return size, Properties(**values)


_PROPERTIES = (
    (_CONTENT_TYPE, "content_type", "shortstr"),
    (_CONTENT_ENCODING, "", "shortstr"),
    (_HEADERS, "headers", "table"),
    (_DELIVERY_MODE, "delivery_mode", "octet"),
    (_PRIORITY, "", "octet"),
    (_CORRELATION_ID, "correlation_id", "shortstr"),
    (_REPLY_TO, "reply_to", "shortstr"),
    (_EXPIRATION, "", "shortstr"),
    (_MESSAGE_ID, "message_id", "shortstr"),
    (_TIMESTAMP, "timestamp", "timestamp"),
    (_TYPE, "type", "shortstr"),
)


def _pack_bits(bits: list[bool]) -> bytes:
    return sum(bit << place for place, bit in enumerate(bits)).to_bytes((len(bits) + 7) // 8, "little")


def _encode_field(kind: str, value: Any, what: str) -> bytes:
    if kind == "shortstr":
        return encode_short_string(value, what)
    if kind == "table":
        return encode_table(value, what)
    if kind == "longstr":
        data = value if isinstance(value, bytes) else value.encode("utf-8")
        return LONG.pack(len(data)) + data
    try:
        return _NUMBERS[kind].pack(value)
    except StructError:
        raise MessageRefused(f"{what} is no number that AMQP can carry") from None


def _decode_field(kind: str, data: bytes, offset: int) -> tuple[Any, int]:
    if kind == "shortstr":
        return decode_short_string(data, offset)
    if kind == "table":
        return decode_table(data, offset)
    form = LONG if kind == "longstr" else _NUMBERS[kind]
    try:
        number = form.unpack_from(data, offset)[0]
    except StructError:
        raise Malformed("a number is cut short") from None
    offset += form.size
    if kind != "longstr":
        return number, offset
    if offset + number > len(data):
        raise Malformed("a string ends beyond its frame")
    return data[offset : offset + number], offset + number
