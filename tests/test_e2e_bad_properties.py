"""Whatever a message's properties and headers are, the real agent brings it to one visible end."""

from __future__ import annotations

import struct
from decimal import Decimal

from edxagent.amqp.channel import Channel
from edxagent.amqp.codec import Timestamp
from edxagent.amqp.frames import OVERHEAD, pack_content
from edxagent.amqp.methods import encode_publish
from tests.outcomes import SECRETS, Case, OutcomeTestCase, not_utf8, request


class BadPropertiesTests(OutcomeTestCase):
    """Message properties that a producer got wrong, or left out."""

    async def test_ids(self) -> None:
        """Any ``message_id`` comes back with the outcome; without one it is the body's SHA-256."""
        nameless = {"message_id": None}
        cases = {
            "none": Case(body=request() + b" ", properties=nameless),
            "none, malformed": Case(body=b"none", properties=nameless, error="", told=False),
            "empty": Case(body=request() + b"  ", properties={"message_id": ""}),
            "longest": Case(properties={"message_id": "i" * 255}),
            "longest, malformed": Case(properties={"message_id": "m" * 255}, body=b"", error="", told=False),
            "bytes": Case(properties={"message_id": not_utf8(b"\xff\xfe\x00\x80" * 60)}),
            "bytes, malformed": Case(properties={"message_id": not_utf8(b"\xc3\x28")}, body=b"", error="", told=False),
            "forged line": Case(properties={"message_id": "a\r\n2030-01-01T00:00:00.000Z info  forged"}),
            "steering": Case(properties={"message_id": "\x1b[2J\u202e\u2028{0}{1.__class__}%s"}),
        }
        await self.check(cases)

    async def test_duplicate_ids(self) -> None:
        """Two requests with the same id have each an outcome of their own."""
        agent = await self.agent()
        for _ in range(2):
            await self.send(Case(), "twin")
        await self.send(Case(body=b""), "twin")
        for queue, outcomes in ((self.results, ["graded"] * 2), (self.dead, ["malformed"])):
            found = await self.collect(queue, len(outcomes))
            self.assertEqual([each.properties.headers["x-outcome"] for each in found], outcomes)
        await self.outcomes(agent, {})

    async def test_type(self) -> None:
        """A message of another ``type`` is malformed; one without ``type`` is graded."""
        cases = {
            "none": Case(properties={"type": None}),
            "result": Case(properties={"type": "grading.result"}, error="type"),
            "longest": Case(properties={"type": "t" * 255}, error="type"),
            "bytes": Case(properties={"type": not_utf8(b"\xff")}, error="type"),
            "no JSON either": Case(properties={"type": "x"}, body=b"", error="type", told=False),
        }
        await self.check(cases)

    async def test_reply_to(self) -> None:
        """A verdict whose ``reply_to`` leads nowhere goes to the configured queue and says where it was wanted."""
        nowhere = ["nobody", "r" * 255, not_utf8(b"\xff\xfe"), "#", "*", "grading.results.dead", "a\nb"]
        cases = {f"graded {number}": Case(properties={"reply_to": key}) for number, key in enumerate(nowhere)}
        cases["malformed"] = Case(properties={"reply_to": "nobody"}, body=request(inner=""), error="xqueue_body")
        cases["empty"] = Case(properties={"reply_to": ""})
        verdicts = await self.check(cases)
        for number, key in enumerate(nowhere):
            shown = verdicts[f"graded {number}"].properties.headers["x-reply-to"]
            self.assertEqual(shown if isinstance(shown, str) else not_utf8(shown), key)
        self.assertEqual(verdicts["malformed"].properties.headers["x-reply-to"], "nobody")
        self.assertNotIn("x-reply-to", verdicts["empty"].properties.headers)

    async def test_correlation_and_attempt(self) -> None:
        """A ``correlation_id`` comes back byte by byte, and an ``x-attempt`` of no sense counts as the first."""
        cases = {
            "longest": Case(properties={"correlation_id": "c" * 255}),
            "bytes": Case(properties={"correlation_id": not_utf8(b"\xff\x00\xfe")}),
            "malformed": Case(properties={"correlation_id": not_utf8(b"\xff\x00")}, body=b"", error="", told=False),
        }
        nonsense = ("two", -1, 0, 1 << 62, 1.5, True, None, b"\xff", [1], {"a": 1}, Decimal("1.5"), Timestamp(3))
        for number, attempt in enumerate(nonsense):
            properties = {"headers": {"x-attempt": attempt}}
            cases[f"attempt {number}"] = Case(properties=properties)
            cases[f"attempt {number}, malformed"] = Case(properties=properties, body=b"", error="", told=False)
        verdicts = await self.check(cases)
        for number in range(len(nonsense)):
            self.assertEqual(verdicts[f"attempt {number}"].properties.headers["x-attempt"], 1)


def sized(data: bytes) -> bytes:
    """Data with its length, as in tables and long texts."""
    return struct.pack(">I", len(data)) + data


def short(text: str) -> bytes:
    """A short text, as in tables and properties."""
    return bytes([len(text.encode())]) + text.encode()


def nested(depth: int) -> bytes:
    """Arrays within each other."""
    return b"V" if not depth else b"A" + sized(nested(depth - 1))


TABLE_VALUES = {
    "text": b"S" + sized(b"\xff\xfe"),
    "empty text": b"S" + sized(b""),
    "just fitting text": b"S" + sized(b"h" * 130_950),
    "bytes": b"x" + sized(b"\xff\xfe"),
    "nothing": b"V",
    "true": b"t\x07",
    "byte": b"b\x80",
    "unsigned byte": b"B\x00",
    "short": b"s\x80\x00",
    "unsigned short": b"u\x00\x00",
    "int": b"I\x80\x00\x00\x00",
    "unsigned int": b"i\xff\xff\xff\xff",
    "long": b"l\x80" + b"\x00" * 7,
    "unsigned long": b"L" + b"\xff" * 8,
    "float": b"f" + struct.pack(">f", 1.5),
    "double": b"d" + struct.pack(">d", 1e308),
    "decimal": b"D\xff\xff\xff\xff\xff",
    "time": b"T" + b"\xff" * 8,
    "array": b"A" + sized(b"VVt\x00"),
    "deep": nested(60),
    "table": b"F" + sized(b"\x00V\x02\xff\xfeI\x00\x00\x00\x01"),
}
"""Every type of value, encoded (https://www.rabbitmq.com/amqp-0-9-1-errata, section 3)."""


class BadHeadersTests(OutcomeTestCase):
    """Message headers of every type."""

    async def publish_raw(self, channel: Channel, name: str, body: bytes, table: bytes) -> None:
        """Publish with a header table of just these bytes."""
        properties = sized(table) + short(name)
        header = struct.pack(">HHQH", 60, 0, len(body), 0x2080) + properties
        publish = encode_publish("", self.requests)
        channel.client.write(pack_content(channel.id, publish, header, body, channel.client.frame_max - OVERHEAD))

    async def check_header(self, *names: str) -> None:
        """Have an agent take requests with headers of these names and every type of value."""
        agent, channel = await self.agent(), await self.channel()
        expected = {}
        for header in names:
            for kind, value in TABLE_VALUES.items():
                for case in (Case(), Case(body=b"no JSON", error="", told=False, properties={"type": None})):
                    name = f"{header} {kind} {case.told}"
                    expected[name] = case
                    await self.publish_raw(channel, name, case.body, short(header) + value)
        await self.outcomes(agent, expected)
        self.assert_clean(agent, SECRETS)

    async def test_foreign(self) -> None:
        """A header that nobody knows stops nothing, whatever its type."""
        await self.check_header("foreign", "x-death", "\u00e9" * 10)

    async def test_our_own(self) -> None:
        """Nor does a header of ours with a value that we'd never give it."""
        await self.check_header("x-attempt", "x-origin", "x-history", "x-delivery-count", "x-outcome", "traceparent")
