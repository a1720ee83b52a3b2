"""What a broker can make us keep: a frame, and the body that was asked for, however it announces and cuts them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from typing import Any

from pamqp import body, commands, frame, header
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.scripted_broker import ScriptedBroker

LIMIT = 128 * 1024
"""The greatest body that the consumer of these tests wants."""
SLACK = 64 * 1024
"""Bytes that a connection may take for other things."""
FRAME_MAX = 131072


class MemoryTests(SynchronousTestCase):
    """A consumer's connection while a message comes."""

    def setUp(self) -> None:
        """An open channel with a consumer."""
        self.broker = ScriptedBroker()
        self.broker.open(frame_max=FRAME_MAX)
        self.channel = self.broker.open_channel()
        self.received: list[Any] = []
        consuming = Deferred.fromCoroutine(
            self.channel.consume("q", self.received.append, lambda reason: None, prefetch=1, max_body=LIMIT)
        )
        self.broker.say(commands.Basic.QosOk(), commands.Basic.ConsumeOk("1.1"))
        self.successResultOf(consuming)

    def announce(self, size: int, headers: dict[str, Any] | None = None) -> None:
        """A delivery up to its header."""
        properties = commands.Basic.Properties(headers=headers)
        deliver = commands.Basic.Deliver("1.1", 1, False, "", "q")
        self.broker.say(deliver, header.ContentHeader(0, size, properties))

    def most_kept(self, data: Iterable[bytes]) -> int:
        """How many bytes the connection took at most for what it heard."""
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for piece in data:
                self.broker.client.dataReceived(piece)
            return tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()

    def test_empty_frames(self) -> None:
        """A body in which an endless row of empty frames comes takes no more for that."""
        self.announce(LIMIT)
        empty = frame.marshal(body.ContentBody(b""), 1) * 1000
        self.assertLess(self.most_kept(empty for _ in range(30)), SLACK)

    def test_crumbs(self) -> None:
        """A body that comes two bytes at a time takes little more than its size, and is whole."""
        self.announce(LIMIT)
        crumb = frame.marshal(body.ContentBody(b"ab"), 1)
        kept = self.most_kept(crumb * 64 for _ in range(LIMIT // 128))
        self.assertLess(kept, 3 * LIMIT + SLACK)
        self.assertEqual(self.received[0].body, b"ab" * (LIMIT // 2))

    def test_a_body_beyond_the_limit(self) -> None:
        """None of it is kept, whatever size was announced."""
        for size in (LIMIT + 1, 1 << 40, (1 << 64) - 1):
            self.setUp()
            self.announce(size)
            piece = frame.marshal(body.ContentBody(bytes(8192)), 1)
            self.assertLess(self.most_kept(piece for _ in range(100)), SLACK)

    def test_an_announced_body_takes_nothing_until_it_comes(self) -> None:
        """A size is no more than a word."""
        self.broker.say(commands.Basic.Return(312, "NO_ROUTE", "", "q"))
        said = frame.marshal(header.ContentHeader(0, 512 * 1024 * 1024, commands.Basic.Properties()), 1)
        self.assertLess(self.most_kept([said]), SLACK)

    def test_a_frame_that_never_ends(self) -> None:
        """No more of it is kept than was agreed, and one that announces more isn't begun."""
        head = b"\x03\x00\x01" + (FRAME_MAX - 8).to_bytes(4, "big")
        self.announce(FRAME_MAX)
        kept = self.most_kept([head, *(bytes(1024) for _ in range(FRAME_MAX // 1024 - 1))])
        self.assertLess(kept, 3 * FRAME_MAX + SLACK)
        self.assertFalse(self.broker.client.closed)
        for size in (FRAME_MAX - 7, 1 << 31, (1 << 32) - 1):
            self.setUp()
            self.broker.client.dataReceived(b"\x03\x00\x01" + size.to_bytes(4, "big") + b"x")
            self.assertTrue(self.broker.client.closed)

    def test_tables(self) -> None:
        """A frame full of the smallest of values takes a fixed multiple of its size, and no recursion."""
        names = b"".join(b"\x02" + n.to_bytes(2, "big") + b"V" for n in range(30_000))
        arrays = b"\x00A" + (5 * 25_000).to_bytes(4, "big") + b"A\0\0\0\0" * 25_000
        nested = b""
        for _ in range(20_000):
            nested = b"\x00F" + len(nested).to_bytes(4, "big") + nested
        for table in (names, arrays, nested):
            self.setUp()
            self.broker.say(commands.Basic.Deliver("1.1", 1, False, "", "q"))
            payload = b"\x00\x3c" + bytes(10) + b"\x20\x00" + len(table).to_bytes(4, "big") + table
            data = b"\x02\x00\x01" + len(payload).to_bytes(4, "big") + payload + b"\xce"
            self.assertLess(self.most_kept([data]), 32 * FRAME_MAX)
            self.assertEqual(len(self.received), 1)
