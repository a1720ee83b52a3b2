"""A message that the broker handed to us, and the one chance to settle it."""

from __future__ import annotations

from typing import Protocol

from zope.interface import implementer

from edxagent.interfaces import IDelivery
from edxagent.model import Properties


class Settles(Protocol):
    """The part of a channel that a delivery needs."""

    def ack(self, tag: int, multiple: bool = False) -> bool:
        """Settle a delivery; false if the channel is gone."""

    def nack(self, tag: int, requeue: bool = True) -> bool:
        """Give a delivery back; false if the channel is gone."""


@implementer(IDelivery)
class Delivery:
    """See :class:`edxagent.interfaces.IDelivery`.

    :ivar size: the body's size in bytes. A body beyond the consumer's ``max_body`` was thrown away while it arrived:
        then ``body`` is empty and ``size`` isn't 0.
    :ivar exchange: where it was published to.
    :ivar routing_key: with which routing key.
    """

    __slots__ = (
        "__provides__", "_channel", "_settled", "_tag", "body", "exchange", "properties", "queue", "redelivered",
        "routing_key", "size",
    )  # fmt: skip

    def __init__(
        self,
        *,
        channel: Settles,
        tag: int,
        queue: str,
        body: bytes,
        size: int,
        properties: Properties,
        redelivered: bool,
        exchange: str,
        routing_key: str,
    ) -> None:
        self._channel = channel
        self._tag = tag
        self._settled = False
        self.queue = queue
        self.body = body
        self.size = size
        self.properties = properties
        self.redelivered = redelivered
        self.exchange = exchange
        self.routing_key = routing_key

    def ack(self) -> bool:
        """See :meth:`IDelivery.ack`."""
        self._settle()
        return self._channel.ack(self._tag)

    def requeue(self) -> bool:
        """See :meth:`IDelivery.requeue`."""
        self._settle()
        return self._channel.nack(self._tag, requeue=True)

    def reject(self) -> bool:
        """Have the broker dead-letter the message where its queue has a dead-letter exchange, or else **drop** it."""
        self._settle()
        return self._channel.nack(self._tag, requeue=False)

    def _settle(self) -> None:
        if self._settled:
            raise RuntimeError("a delivery can be settled only once")
        self._settled = True
