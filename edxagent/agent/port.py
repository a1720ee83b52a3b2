"""A channel that serves one queue, as a lane wants it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from edxagent.amqp.channel import Channel
from edxagent.errors import BrokerError
from edxagent.interfaces import IDelivery


class QueuePort(Protocol):
    """What a lane needs of a channel: one queue, one request a consumer."""

    async def consume(self, receive: Callable[[IDelivery], None], ended: Callable[[BrokerError], None]) -> str:
        """Begin to consume; returns the tag. ``ended`` is called once if the broker ends it."""
        ...

    async def cancel(self, tag: str) -> None:
        """End a consumer."""
        ...

    async def get(self) -> IDelivery | None:
        """The next request, if there is one."""
        ...

    async def close(self) -> None:
        """Give the channel up; the broker takes back what isn't settled."""
        ...


class ChannelPort:
    """A real one."""

    def __init__(self, channel: Channel, queue: str) -> None:
        self._channel = channel
        self._queue = queue

    async def consume(self, receive: Callable[[IDelivery], None], ended: Callable[[BrokerError], None]) -> str:
        """See :class:`QueuePort`."""
        return await self._channel.consume(self._queue, receive, ended, prefetch=1)

    async def cancel(self, tag: str) -> None:
        """See :class:`QueuePort`."""
        await self._channel.cancel(tag)

    async def get(self) -> IDelivery | None:
        """See :class:`QueuePort`."""
        return await self._channel.get(self._queue)

    async def close(self) -> None:
        """See :class:`QueuePort`."""
        await self._channel.close()
