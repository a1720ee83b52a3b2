"""A message on its way in: announced by a method, described by a header, carried by any number of body frames."""

from __future__ import annotations

from typing import Any

from edxagent.amqp.codec import Malformed
from edxagent.model import Properties

MAX_BODY = 512 * 1024 * 1024
"""The greatest body, in bytes, that is kept unless a consumer says less: the most that RabbitMQ's ``max_message_size``
can be set to (https://www.rabbitmq.com/docs/configure), so that no request is lost for its size."""

_CRUMB = 4096


class Content:
    """What has arrived of a message so far.

    :ivar announced: the method that it belongs to, decoded.
    :ivar properties: ``None`` until the header is here.
    :ivar size: the body's size, in bytes, by the header.
    """

    __slots__ = ("_chunks", "_keep", "_missing", "announced", "properties", "size")

    def __init__(self, announced: Any) -> None:
        self.announced = announced
        self.properties: Properties | None = None
        self.size = 0
        self._missing = 0
        self._keep = False
        self._chunks: list[bytes | bytearray] = []

    def begin(self, size: int, properties: Properties, limit: int) -> None:
        """The header is here; a body that is larger than ``limit`` won't be kept."""
        self.size = self._missing = size
        self.properties = properties
        self._keep = size <= limit

    def add(self, chunk: bytes) -> bool:
        """More of the body; whether that was the last of it.

        :raises Malformed: it is longer than announced.
        """
        self._missing -= len(chunk)
        if self._missing < 0:
            raise Malformed("a body that is longer than announced")
        if self._keep:
            self._append(chunk)
        return not self._missing

    @property
    def body(self) -> bytes:
        """The body; empty if it wasn't kept."""
        return bytes(self._chunks[0]) if len(self._chunks) == 1 else b"".join(self._chunks)

    def _append(self, chunk: bytes) -> None:
        # Small chunks are put together at once, for one by one they would take many times their size.
        if len(chunk) >= _CRUMB or len(chunk) == self.size:
            self._chunks.append(chunk)
        elif self._chunks and isinstance(self._chunks[-1], bytearray):
            self._chunks[-1] += chunk
        else:
            self._chunks.append(bytearray(chunk))
