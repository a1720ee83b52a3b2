"""Cutting a stream into frames: any chunks, any garbage, bounded memory."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import frame as pamqp_frame
from twisted.trial.unittest import SynchronousTestCase

from edxagent.amqp.codec import Malformed
from edxagent.amqp.frames import BODY, FrameReader, pack_content, pack_frame

FRAMES = st.lists(st.tuples(st.sampled_from([1, 2, 3, 8]), st.integers(0, 65535), st.binary(max_size=64)), max_size=8)


class FrameReaderTests(SynchronousTestCase):
    """The reader."""

    @settings(deadline=None)
    @given(FRAMES, st.data())
    def test_frames_survive_any_cutting(self, frames: list[tuple[int, int, bytes]], data: st.DataObject) -> None:
        """However the network cuts the stream, the same frames come out."""
        stream = b"".join(pack_frame(*frame) for frame in frames)
        reader, found = FrameReader(64), []
        while stream:
            cut = data.draw(st.integers(1, len(stream)))
            found += reader.feed(stream[:cut])
            stream = stream[cut:]
        self.assertEqual(found, frames)

    @settings(deadline=None)
    @given(st.lists(st.binary(max_size=50), max_size=20))
    def test_garbage_is_malformed_or_waited_for(self, chunks: list[bytes]) -> None:
        """No bytes raise anything else, and what is kept is never more than a frame."""
        reader = FrameReader(64)
        try:
            for chunk in chunks:
                list(reader.feed(chunk))
                self.assertLessEqual(len(reader._kept), 64 + 8)
        except Malformed:
            return

    def test_a_frame_that_is_too_long_is_known_by_its_head(self) -> None:
        """None of its payload is waited for."""
        self.assertRaises(Malformed, list, FrameReader(64).feed(b"\x03\x00\x01\x00\x00\x00\x41\x00"))

    def test_strangers_are_told_apart(self) -> None:
        """Each of the usual mistakes has words of its own."""
        for first, word in {
            b"AMQP\x00\x01\x00\x00": "another version",
            b"HTTP/1.1 400 Bad Request": "web server",
            b"\x15\x03\x01\x00\x02\x02\x46": "amqps",
            b"SSH-2.0-OpenSSH": "no AMQP",
        }.items():
            with self.assertRaisesRegex(Malformed, word):
                list(FrameReader(64).feed(first))

    def test_a_large_frame_that_comes_byte_by_byte_costs_no_more(self) -> None:
        """Waiting for the rest of a frame copies nothing."""
        reader, data = FrameReader(1 << 20), pack_frame(BODY, 1, bytes(1 << 17))
        found = [frame for n in range(len(data)) for frame in reader.feed(data[n : n + 1])]
        self.assertEqual(len(found), 1)


class PackTests(SynchronousTestCase):
    """The writer."""

    @settings(deadline=None)
    @given(st.binary(max_size=100), st.integers(1, 40))
    def test_a_body_is_cut_to_the_frame_size(self, body: bytes, most: int) -> None:
        """The oracle puts it together again."""
        data = pack_content(7, b"", b"", body, most)[16:]
        parts = []
        while data:
            size, channel, part = pamqp_frame.unmarshal(data)
            self.assertEqual(channel, 7)
            self.assertTrue(0 < len(part.value) <= most)
            parts.append(part.value)
            data = data[size:]
        self.assertEqual(b"".join(parts), body)
