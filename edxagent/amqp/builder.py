"""How exchanges, queues and bindings come to be: looked for first, made where missing and wanted, errors explained."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from edxagent.amqp.channel import Channel
from edxagent.amqp.session import Session
from edxagent.config.values import BrokerConfig
from edxagent.errors import BrokerRefused, ChannelClosed
from edxagent.model import DEAD_EXCHANGE, REQUESTS_EXCHANGE, RESULTS_EXCHANGE, dead_queue_of

DELIVERY_LIMIT = 1_000_000


class TopologyBuilder:
    """Looks and makes, on channels of its own: the broker closes one with every "no"."""

    def __init__(self, session: Session, config: BrokerConfig) -> None:
        self._session = session
        self._config = config
        self._open: Channel | None = None

    def safe_arguments(self) -> dict[str, Any]:
        """For a queue that keeps messages until somebody takes them."""
        if self._config.queue_type == "quorum":
            return {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}
        return {"x-queue-type": "classic"}

    async def exchange(self, name: str) -> None:
        """A direct exchange."""
        what = f"exchange {name!r}"
        channel = await self._channel()
        if await self._exists(channel.declare_exchange(name, "direct", passive=True), what):
            return
        channel = await self._channel()
        await explained(self._session, channel.declare_exchange(name, "direct"), f"declare {what}")

    async def delay(self, name: str, milliseconds: int, then: str) -> None:
        """A fanout exchange, and the queue behind it that moves each message to the exchange ``then``, in time.

        The routing key stays as it was. The queue is asked for with all its arguments, though it may be there: in one
        that has others, messages would wait for ever, or get lost on the way
        (https://www.rabbitmq.com/docs/quorum-queues#dead-lettering).
        """
        exchange, queue = f"exchange {name!r}", f"queue {name!r}"
        if not self._config.declare:
            channel = await self._channel()
            await self._exists(channel.declare_exchange(name, "fanout", passive=True), exchange)
            await self._exists(channel.declare_queue(name, passive=True), queue)
            return
        arguments = {
            "x-queue-type": "quorum",
            "x-message-ttl": milliseconds,
            "x-dead-letter-exchange": then,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
            "x-delivery-limit": DELIVERY_LIMIT,
        }
        channel = await self._channel()
        await explained(self._session, channel.declare_exchange(name, "fanout"), f"declare {exchange} for retries")
        asked = channel.declare_queue(name, arguments=arguments)
        await explained(self._session, asked, f"declare {queue} for retries")
        await explained(self._session, channel.bind_queue(name, name, ""), f"bind {queue} to {exchange}")

    async def request_queue(self, name: str) -> None:
        """A queue for requests, and the one for what ended without a verdict.

        Requests that the broker itself dead-letters keep their routing key, which is the queue's name.
        """
        arguments = {**self.safe_arguments(), "x-dead-letter-exchange": DEAD_EXCHANGE}
        if self._config.queue_type == "quorum":
            arguments |= {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
        await self.dead_queue(name)
        await self.bound_queue(name, REQUESTS_EXCHANGE, arguments)

    async def results_queue(self, name: str) -> None:
        """A queue for results."""
        await self.bound_queue(name, RESULTS_EXCHANGE, self.safe_arguments())

    async def dead_queue(self, name: str) -> None:
        """The queue for what a consumer of queue ``name`` couldn't do anything with."""
        await self.bound_queue(dead_queue_of(name), DEAD_EXCHANGE, self.safe_arguments(), routing_key=name)

    async def bound_queue(
        self, name: str, exchange: str, arguments: dict[str, Any], *, routing_key: str | None = None
    ) -> None:
        """A durable queue, bound with ``routing_key`` or its own name."""
        what = f"queue {name!r}"
        channel = await self._channel()
        if not await self._exists(channel.declare_queue(name, passive=True), what):
            channel = await self._channel()
            await explained(self._session, channel.declare_queue(name, arguments=arguments), f"declare {what}")
        if self._config.declare:
            channel = await self._channel()
            binding = channel.bind_queue(name, exchange, name if routing_key is None else routing_key)
            await explained(self._session, binding, f"bind {what} to exchange {exchange!r}")

    async def close(self) -> None:
        """Done."""
        if self._open is not None:
            await self._open.close()

    async def _channel(self) -> Channel:
        if self._open is None or self._open.closed:
            self._open = await self._session.open_channel()
        return self._open

    async def _exists(self, asked: Awaitable[object], what: str) -> bool:
        """Whether ``what`` is there; if not, it may be made."""
        try:
            await asked
        except ChannelClosed as closed:
            if closed.code != 404:
                raise _explanation(self._session, closed, f"use {what}") from None
            if not self._config.declare:
                raise BrokerRefused(
                    f"{self._session.address}: there is no {what}; create it, or write declare = yes into [broker]"
                ) from None
            return False
        return True


async def explained(session: Session, asked: Awaitable[Any], action: str) -> Any:
    """The broker's answer.

    :raises BrokerRefused: it was "no"; says what to do.
    """
    try:
        return await asked
    except ChannelClosed as closed:
        raise _explanation(session, closed, action) from None


def _explanation(session: Session, closed: ChannelClosed, action: str) -> BrokerRefused:
    remedy = {
        403: "grant the user that permission (rabbitmqctl set_permissions), or have it made and write declare = no",
        405: "it is exclusive to another connection; choose another name, or end that one",
        406: "it exists with other settings; delete it once it is empty, or change the configuration to match",
    }.get(closed.code, "see the broker's log")
    return BrokerRefused(f"{session.address}: can't {action} ({closed.code} {closed.text}); {remedy}")
