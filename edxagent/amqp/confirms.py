"""Which publishes of a channel the broker hasn't answered yet, and what its answers mean for each."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from edxagent.errors import BrokerError, PublishFailed, Unroutable
from edxagent.model import Message, Properties


class _Unconfirmed:
    __slots__ = ("deferred", "message", "returned")

    def __init__(self, message: Message, deferred: Deferred[None]) -> None:
        self.message = message
        self.deferred = deferred
        self.returned: str | None = None


class Confirms:
    """The publishes of one channel in confirm mode, by the number that the broker counts them with."""

    def __init__(self) -> None:
        self._published = 0
        self._waiting: dict[int, _Unconfirmed] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def published(self, message: Message, deferred: Deferred[None]) -> None:
        """``message`` was written just now; ``deferred`` fires with what becomes of it."""
        self._published += 1
        self._waiting[self._published] = _Unconfirmed(message, deferred)

    def returned(self, text: str, exchange: str, routing_key: str, properties: Properties, body: bytes) -> bool:
        """The broker gave a message back (``basic.return``); its confirm follows and settles it.

        The broker doesn't say which publish it was. Returns keep the order of their publishes, so it is the oldest
        that looks the same.

        :returns: whether there was one.
        """
        for entry in self._waiting.values():
            message = entry.message
            if (
                entry.returned is None
                and message.routing_key == routing_key
                and message.exchange == exchange
                and message.properties.message_id == properties.message_id
                and message.properties.correlation_id == properties.correlation_id
                and message.body == body
            ):
                entry.returned = text
                return True
        return False

    def settle(self, tag: int, multiple: bool, taken: bool) -> None:
        """The broker's ``basic.ack`` (``taken``) or ``basic.nack``, for ``tag`` or for all up to it."""
        if not multiple:
            entry = self._waiting.pop(tag, None)
            if entry is not None:
                _fire(entry, taken)
            return
        last = tag or self._published
        settled = []
        for number in self._waiting:
            if number > last:
                break
            settled.append(number)
        # All leave before the first one is told: whoever is told may publish or close.
        for entry in [self._waiting.pop(number) for number in settled]:
            _fire(entry, taken)

    def fail_all(self, reason: BrokerError) -> None:
        """No answers will come any more."""
        entries, self._waiting = self._waiting, {}
        for entry in entries.values():
            if not entry.deferred.called:
                entry.deferred.errback(reason)


def _fire(entry: _Unconfirmed, taken: bool) -> None:
    message = entry.message
    if entry.deferred.called:  # cancelled: nobody waits for it any more
        return
    if entry.returned is not None:
        entry.deferred.errback(
            Unroutable(
                f"no queue is bound to exchange {message.exchange!r} for routing key {message.routing_key!r}"
                f" (the broker said {entry.returned})"
            )
        )
    elif taken:
        entry.deferred.callback(None)
    else:
        entry.deferred.errback(
            PublishFailed(f"the broker refused a message for {message.exchange!r}, routing key {message.routing_key!r}")
        )
