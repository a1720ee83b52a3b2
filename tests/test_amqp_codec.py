"""AMQP's values and methods: pamqp's examples, limits, and chance. Any values: :mod:`tests.test_amqp_oracle`."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands, encode, frame, header
from pamqp.base import Frame
from twisted.trial.unittest import SynchronousTestCase

from edxagent.amqp.codec import (
    MAX_DEPTH,
    Malformed,
    Timestamp,
    decode_short_string,
    decode_table,
    encode_short_string,
    encode_table,
)
from edxagent.amqp.methods import (
    decode_deliver,
    decode_header,
    decode_method,
    encode_header,
    encode_method,
    encode_publish,
)
from edxagent.amqp.spec import load_spec
from edxagent.errors import MessageRefused
from edxagent.model import Outcome, Properties

OUR_NAMES = {"message_type": "type", "exchange_type": "type", "global_": "global"}
"""Where pamqp says a field's name in its own words."""

SHORT = st.text(max_size=60)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.none(),
    st.binary(),
    st.integers(0, (1 << 64) - 1).map(Timestamp),
    st.builds(lambda number, scale: Decimal(number).scaleb(-scale), st.integers(0, (1 << 32) - 1), st.integers(0, 20)),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SHORT, inner, max_size=4))
TABLES = st.dictionaries(SHORT, VALUES, max_size=6)


class SpecTests(SynchronousTestCase):
    """Our protocol definition says what pamqp's says."""

    def test_every_method_field_and_number(self) -> None:
        """Same methods, same numbers, same fields of the same types in the same order, same answers."""
        ours = {
            klass.id << 16 | method.id: (
                [(field.name.replace("-", "_"), field.type) for field in method.fields],
                bool(method.synchronous),
                sorted(answer.name.replace("-", "") for answer in method.responses),
            )
            for klass in load_spec().classes
            for method in klass.methods
        }
        theirs = {
            number: (
                [(OUR_NAMES.get(name, name), method.amqp_type(name)) for name in method.attributes()],
                method.synchronous,
                sorted(answer.split(".")[1].lower() for answer in method.valid_responses),
            )
            for number, method in commands.INDEX_MAPPING.items()
        }
        self.assertEqual(ours.keys(), theirs.keys())
        for number, method in ours.items():
            self.assertEqual(method, theirs[number], hex(number))

    def test_every_property(self) -> None:
        """The properties of a message, in the order of their flags."""
        ours = [(field.name.replace("-", "_"), field.type) for field in load_spec().classes.byname["basic"].fields]
        properties = commands.Basic.Properties
        theirs = [(name, properties.amqp_type(name)) for name in properties.attributes()]
        self.assertEqual(ours, [(OUR_NAMES.get(name, name), kind) for name, kind in theirs])


class TableTests(SynchronousTestCase):
    """Field tables."""

    @settings(deadline=None)
    @given(TABLES)
    def test_a_table_comes_back_as_it_went(self, table: dict[str, Any]) -> None:
        """With every type kept, too: a boolean stays one, a time stays a time."""
        data = encode_table(table)
        back, end = decode_table(data, 0)
        self.assertEqual(end, len(data))
        self.assertEqual(_typed(back), _typed(table))

    def test_we_read_what_pamqp_writes(self) -> None:
        """Every type that the oracle can write, among them the small ones that we never send."""
        table = {
            "b": 1, "s": -300, "u": 65535, "I": -70000, "i": 4_000_000_000, "l": 1 << 40, "t": True, "f": 0.5,
            "D": Decimal("1.5"), "S": "é", "A": [1, "x", [None]], "F": {"a": {"b": 1}},
            "V": None, "x": bytearray(b"\xff"),
        }  # fmt: skip
        self.assertEqual(decode_table(encode.field_table(table), 0)[0], table)

    def test_every_letter_of_rabbitmq(self) -> None:
        """Each type by its bytes."""
        for data, value in {
            b"t\x01": True, b"b\xff": -1, b"B\xff": 255, b"s\xff\xff": -1, b"u\xff\xff": 65535,
            b"I\xff\xff\xff\xfb": -5, b"i\xff\xff\xff\xff": (1 << 32) - 1,
            b"l" + b"\xff" * 8: -1, b"L" + b"\xff" * 8: -1,
            b"f\x3f\x80\x00\x00": 1.0, b"d\x3f\xf0" + bytes(6): 1.0, b"D\x02\x00\x00\x00\x7b": Decimal("1.23"),
            b"S\x00\x00\x00\x02\xc3\xa9": "é", b"S\x00\x00\x00\x01\xff": b"\xff", b"A\x00\x00\x00\x02t\x00": [False],
            b"T" + bytes(7) + b"\x07": Timestamp(7), b"F\x00\x00\x00\x03\x01kV": {"k": None}, b"V": None,
            b"x\x00\x00\x00\x01\xff": b"\xff",
        }.items():  # fmt: skip
            with self.subTest(data):
                body = b"\x01n" + data
                table, _ = decode_table(len(body).to_bytes(4, "big") + body, 0)
                self.assertEqual(_typed(table), _typed({"n": value}))

    def test_a_word_that_is_an_enum_is_text(self) -> None:
        """Outcome words go into headers as they are."""
        self.assertEqual(decode_table(encode_table({"o": Outcome.GRADED}), 0)[0], {"o": "graded"})

    def test_what_has_no_type_is_refused(self) -> None:
        """So are numbers, texts and depths beyond AMQP's."""
        endless: list[Any] = []
        endless.append(endless)
        for value in (
            object(), {1: 2}, {"k" * 256: 1}, 1 << 63, -(1 << 63) - 1, float("nan"), float("inf"), "\ud800", endless,
            Decimal(-1), Decimal("NaN"), Decimal(1 << 32), Decimal("1e3"), Timestamp(-1), Timestamp(1 << 64), {1, 2},
            datetime.datetime.now(datetime.timezone.utc),
        ):  # fmt: skip
            with self.subTest(repr(type(value))):
                self.assertRaises(MessageRefused, encode_table, {"h": value})

    def test_a_deep_table_stays_encoded_beyond_the_limit(self) -> None:
        """Ten thousand levels cost no recursion, and go out again as bytes."""
        data = b""
        for _ in range(10_000):
            data = b"\x01dF" + len(data).to_bytes(4, "big") + data
        value, _ = decode_table(len(data).to_bytes(4, "big") + data, 0)
        depth = 0
        while isinstance(value, dict):
            value, depth = value["d"], depth + 1
        self.assertEqual((depth, type(value)), (MAX_DEPTH, bytes))

    @settings(deadline=None)
    @given(st.binary(max_size=300))
    def test_garbage_is_malformed_at_worst(self, data: bytes) -> None:
        """No bytes make the decoder do anything but return or say so."""
        for prefix in (b"", len(data).to_bytes(4, "big")):
            try:
                decode_table(prefix + data, 0)
            except Malformed:
                continue

    @settings(deadline=None)
    @given(TABLES, st.data())
    def test_a_cut_table_is_malformed(self, table: dict[str, Any], data: st.DataObject) -> None:
        """However little is missing."""
        whole = encode_table(table)
        cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
        self.assertRaises(Malformed, decode_table, cut, 0)


class ShortStringTests(SynchronousTestCase):
    """Strings of up to 255 bytes."""

    @settings(deadline=None)
    @given(st.binary(max_size=255))
    def test_any_bytes_come_back(self, raw: bytes) -> None:
        """What isn't UTF-8 survives the way in and out again."""
        text, end = decode_short_string(bytes((len(raw),)) + raw, 0)
        self.assertEqual(end, len(raw) + 1)
        self.assertEqual(encode_short_string(text, "t")[1:], raw)

    def test_bytes_count(self) -> None:
        """255 bytes are allowed, however few characters they make."""
        self.assertEqual(len(encode_short_string("a" + "é" * 127, "t")), 256)
        self.assertRaises(MessageRefused, encode_short_string, "é" * 128, "t")


class MethodTests(SynchronousTestCase):
    """Method payloads, for every method there is."""

    def test_every_method_both_ways(self) -> None:
        """The oracle reads ours, and we read the oracle's; bits among other fields are packed alike."""
        for klass in load_spec().classes:
            for method in klass.methods:
                with self.subTest(f"{klass.name}.{method.name}"):
                    args = [_example(field.type, n) for n, field in enumerate(method.fields)]
                    payload = encode_method(method, args)
                    theirs: Frame = commands.INDEX_MAPPING[klass.id << 16 | method.id]()
                    theirs.unmarshal(payload[4:])
                    values = [getattr(theirs, name) for name in theirs.attributes()]
                    self.assertEqual([_text(value) for value in values], [_text(arg) for arg in args])
                    found, decoded = decode_method(payload)
                    self.assertIs(found, method)
                    self.assertEqual([_text(value) for value in decoded], [_text(arg) for arg in args])

    def test_the_fast_paths_agree_with_the_definition(self) -> None:
        """publish and deliver, written and read without it."""
        basic = load_spec().classes.byname["basic"].methods.byname
        self.assertEqual(encode_publish("é", "k"), encode_method(basic["publish"], [0, "é", "k", True, False]))
        args = ("tag", 1 << 40, True, "é", "key")
        self.assertEqual(tuple(decode_deliver(encode_method(basic["deliver"], args))), args)

    @settings(deadline=None)
    @given(st.binary(max_size=40), st.sampled_from(sorted(commands.INDEX_MAPPING)))
    def test_garbage_is_malformed_at_worst(self, data: bytes, number: int) -> None:
        """Whatever follows a method's number."""
        for decoder in (decode_method, decode_deliver, decode_header):
            try:
                decoder(number.to_bytes(4, "big") + data)
            except Malformed:
                continue


def _example(kind: str, number: int) -> Any:
    numbers = {"octet": 7, "short": 300, "long": 70_000, "longlong": 1 << 40}
    return {"bit": number % 3 != 0, "shortstr": f"né{number}", "longstr": "long é", "table": {"k": [True, "v"]}}.get(
        kind, numbers.get(kind)
    )


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


class HeaderTests(SynchronousTestCase):
    """Content headers."""

    WHOLE = Properties(
        message_id="é1", type="grading.request", content_type="application/json", correlation_id="c", reply_to="r",
        timestamp=1_700_000_000, delivery_mode=2, headers={"x-attempt": 2},
    )  # fmt: skip

    def test_pamqp_reads_ours(self) -> None:
        """All properties, and the body's size."""
        theirs = header.ContentHeader()
        theirs.unmarshal(encode_header(self.WHOLE, 42))
        found = theirs.properties
        self.assertEqual(theirs.body_size, 42)
        self.assertEqual(
            (found.message_id, found.message_type, found.content_type, found.correlation_id, found.reply_to),
            ("é1", "grading.request", "application/json", "c", "r"),
        )
        self.assertEqual((found.delivery_mode, found.headers), (2, {"x-attempt": 2}))
        self.assertEqual(found.timestamp.timestamp(), 1_700_000_000)

    def test_ours_come_back(self) -> None:
        """With all, with none, and with some."""
        for properties in (self.WHOLE, Properties(delivery_mode=None), Properties(type="t", headers={"a": None})):
            self.assertEqual(decode_header(encode_header(properties, 7)), (7, properties))

    def test_properties_that_we_do_not_know_are_skipped(self) -> None:
        """Those of other producers don't shift ours."""
        theirs = commands.Basic.Properties(
            content_encoding="utf-8",
            priority=3,
            expiration="60000",
            user_id="u",
            app_id="a",
            message_id="m",
            message_type="t",
        )
        payload = frame.marshal(header.ContentHeader(0, 5, theirs), 1)[7:-1]
        size, properties = decode_header(payload)
        self.assertEqual((size, properties.message_id, properties.type), (5, "m", "t"))

    def test_what_does_not_fit_is_refused(self) -> None:
        """Before anything is sent."""
        for properties in (
            Properties(message_id="x" * 256), Properties(timestamp=-1), Properties(delivery_mode=256),
            Properties(reply_to=7), Properties(headers={"x": object()}), Properties(type="\ud800"),
        ):  # fmt: skip
            self.assertRaises(MessageRefused, encode_header, properties, 0)


def _typed(value: Any) -> Any:
    """A value with its type, all the way down."""
    if isinstance(value, dict):
        return {name: _typed(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner) for inner in value]
    return type(value), value
