"""AMQP's values, methods and headers as pamqp has them, for any values."""

from __future__ import annotations

import datetime
import struct
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, decode, header
from pamqp.base import Frame
from twisted.trial.unittest import SynchronousTestCase

from edxagent.amqp.codec import Timestamp, decode_table, encode_table
from edxagent.amqp.methods import decode_header, decode_method, encode_header, encode_method
from edxagent.amqp.spec import methods_by_id
from edxagent.model import Properties
from tests.test_amqp_codec import TABLES

# Decimals beyond 31 bits are left out: pamqp takes them for negative, RabbitMQ and we don't.
SIZES = {b"t": 1, b"b": 1, b"B": 1, b"s": 2, b"u": 2, b"I": 4, b"i": 4, b"l": 8, b"L": 8, b"f": 4, b"d": 8}
SHORT = st.text(max_size=60)
TIMES = st.integers(0, (1 << 32) - 1)
"""Beyond these pamqp takes seconds for milliseconds."""


def sized(data: bytes) -> bytes:
    """With its length before it."""
    return len(data).to_bytes(4, "big") + data


NAMES = st.text(max_size=20).map(lambda name: bytes((len(name.encode()),)) + name.encode())
PLAIN = st.one_of(
    *(st.binary(min_size=size, max_size=size).map(letter.__add__) for letter, size in SIZES.items()),
    TIMES.map(lambda seconds: b"T" + seconds.to_bytes(8, "big")),
    st.tuples(st.integers(0, 255), st.integers(0, (1 << 31) - 1)).map(lambda both: b"D" + struct.pack(">BI", *both)),
    st.just(b"V"),
    st.tuples(st.sampled_from([b"S", b"x"]), st.binary(max_size=20) | st.text().map(str.encode)).map(
        lambda both: both[0] + sized(both[1])
    ),
)
ENCODED = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: b"A" + sized(b"".join(items))),
        st.lists(st.tuples(NAMES, inner).map(b"".join), max_size=4).map(lambda items: b"F" + sized(b"".join(items))),
    ),
    max_leaves=20,
)
"""Every type that RabbitMQ knows, with any value, in tables and arrays."""

ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "bit": st.booleans(),
    "octet": st.integers(0, 255),
    "short": st.integers(0, 65535),
    "long": st.integers(0, (1 << 32) - 1),
    "longlong": st.integers(0, (1 << 63) - 1),
    "shortstr": SHORT,
    "longstr": SHORT,
    "table": st.dictionaries(SHORT, st.booleans() | SHORT | st.integers(-(1 << 63), (1 << 63) - 1), max_size=4),
}


class OracleTests(SynchronousTestCase):
    """What one writes the other reads."""

    @given(TABLES)
    def test_pamqp_reads_our_tables(self, table: dict[str, Any]) -> None:
        """Every name and value, but for times that only we can hold."""
        table = _in_reach(table)
        data = encode_table(table)
        self.assertEqual(_ours(decode.field_table(data)), _ours((len(data), table)))

    @given(st.lists(st.tuples(NAMES, ENCODED).map(b"".join), max_size=6).map(b"".join).map(sized))
    def test_both_read_the_same(self, data: bytes) -> None:
        """Whoever wrote it, in whichever of AMQP's types."""
        table, end = decode_table(data + b"more", 0)
        self.assertEqual(_ours((end, table)), _ours(decode.field_table(data)))

    @given(st.data())
    def test_methods(self, data: st.DataObject) -> None:
        """Each method with any arguments: pamqp reads what we write, and so do we."""
        number = data.draw(st.sampled_from(sorted(commands.INDEX_MAPPING)), "method")
        method = methods_by_id()[number.to_bytes(4, "big")]
        args = [data.draw(ARGUMENTS[field.type], field.name) for field in method.fields]
        theirs: Frame = commands.INDEX_MAPPING[number]()
        payload = encode_method(method, args)
        theirs.unmarshal(payload[4:])
        found = [_text(value) for _, value in theirs]
        self.assertEqual(found, args)
        decoded, values = decode_method(payload)
        self.assertIs(decoded, method)
        self.assertEqual([_text(value) for value in values], args)

    @given(
        st.builds(
            Properties,
            message_id=st.none() | st.text(min_size=1, max_size=60),
            type=st.none() | st.text(min_size=1, max_size=60),
            content_type=st.none() | st.text(min_size=1, max_size=60),
            correlation_id=st.none() | st.text(min_size=1, max_size=60),
            reply_to=st.none() | st.text(min_size=1, max_size=60),
            timestamp=st.none() | TIMES,
            delivery_mode=st.none() | st.integers(0, 255),
            headers=ARGUMENTS["table"],
        ),
        st.integers(0, (1 << 64) - 1),
    )
    def test_headers(self, properties: Properties, size: int) -> None:
        """A content header with any properties, both ways, and with those that we skip; pamqp writes no empty ones."""
        theirs = header.ContentHeader()
        theirs.unmarshal(encode_header(properties, size))
        found = theirs.properties
        self.assertEqual(theirs.body_size, size)
        for name in ("message_id", "content_type", "correlation_id", "reply_to", "delivery_mode"):
            self.assertEqual(getattr(found, name), getattr(properties, name), name)
        self.assertEqual(found.message_type, properties.type)
        self.assertEqual(found.headers or {}, properties.headers)
        self.assertEqual(found.timestamp and int(found.timestamp.timestamp()), properties.timestamp)
        for name, value in {"content_encoding": "gzip", "priority": 9, "expiration": "1", "user_id": "u"}.items():
            setattr(found, name, value)
        found.app_id, found.cluster_id = "a", ""
        self.assertEqual(decode_header(theirs.marshal()), (size, properties))


def _in_reach(value: Any) -> Any:
    """The same with times and decimals that pamqp understands."""
    if isinstance(value, dict):
        return {name: _in_reach(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_in_reach(inner) for inner in value]
    if isinstance(value, Decimal):
        return min(value, Decimal((1 << 31) - 1).scaleb(int(value.as_tuple().exponent)))
    return Timestamp(value % (1 << 32)) if isinstance(value, Timestamp) else value


def _ours(value: Any) -> Any:
    """A value with its type, in our types; NaN equals NaN."""
    if isinstance(value, dict):
        return {name: _ours(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_ours(inner) for inner in value]
    if isinstance(value, datetime.datetime):
        return Timestamp, int(value.timestamp())
    if isinstance(value, (bytes, bytearray)):
        return bytes, bytes(value)
    return type(value), repr(value) if isinstance(value, float) else value


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
