"""Frames: what travels on the wire, cut out of a stream whose buffer never exceeds one frame (AMQP 0-9-1 §4.2.3)."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

from edxagent.amqp.codec import Malformed

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
OVERHEAD = 8
"""Bytes of a frame around its payload."""
HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"

_HEAD = Struct(">BHI")
_END = b"\xce"
_KINDS = frozenset((METHOD, HEADER, BODY, HEARTBEAT))


def pack_frame(kind: int, channel: int, payload: bytes) -> bytes:
    """One frame, ready to be written."""
    return _HEAD.pack(kind, channel, len(payload)) + payload + _END


def pack_content(channel: int, method: bytes, header: bytes, body: bytes, max_payload: int) -> bytes:
    """A method with its content: one string, so that it takes one write."""
    parts = [pack_frame(METHOD, channel, method), pack_frame(HEADER, channel, header)]
    for start in range(0, len(body), max_payload):
        parts.append(pack_frame(BODY, channel, body[start : start + max_payload]))
    return b"".join(parts)


class FrameReader:
    """Cuts a stream of bytes into frames.

    :ivar max_payload: the longest payload that the peer may send; may change between frames.
    """

    def __init__(self, max_payload: int) -> None:
        self.max_payload = max_payload
        self._kept = bytearray()
        self._wanted = OVERHEAD

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Each frame that ``data`` completes: type, channel, payload. Run it to its end before the next call.

        :raises Malformed: this is no AMQP, or a frame is longer than was agreed.
        """
        if self._kept:
            # Appending and waiting keeps a frame that comes byte by byte from being copied as often.
            self._kept += data
            if len(self._kept) < self._wanted:
                return
            data = bytes(self._kept)
            self._kept.clear()
        start, size = 0, len(data)
        self._wanted = OVERHEAD
        while size - start >= OVERHEAD:
            kind, channel, length = _HEAD.unpack_from(data, start)
            if kind not in _KINDS:
                raise Malformed(_stranger(data[start : start + OVERHEAD]))
            if length > self.max_payload:
                raise Malformed(f"a frame of {length} bytes, where {self.max_payload} were agreed")
            end = start + _HEAD.size + length
            if end >= size:
                self._wanted = length + OVERHEAD
                break
            if data[end] != 0xCE:
                raise Malformed("a frame without its end")
            yield kind, channel, data[start + _HEAD.size : end]
            start = end + 1
        self._kept += data[start:]
        if self._kept and self._kept[0] not in _KINDS:
            raise Malformed(_stranger(bytes(self._kept)))


def _stranger(first: bytes) -> str:
    if first.startswith(b"AMQP"):
        return "the broker speaks another version of AMQP than 0-9-1"
    if first.startswith(b"HTTP"):
        return "this is a web server; the port must be the broker's for AMQP, usually 5672"
    if first[:1] == b"\x15":
        return "this port wants TLS; write amqps:// instead of amqp://"
    return "this is no AMQP"
