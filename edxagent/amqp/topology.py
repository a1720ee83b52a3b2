"""The exchanges, queues and bindings that grading needs: looked for first, made where missing and wanted.

What exists is taken as it is, whatever its type and arguments. Queues of our making drop no message by themselves: they
have a high delivery limit, because RabbitMQ 4 otherwise drops at the twentieth delivery, and what the broker moves
arrives at least once (https://www.rabbitmq.com/docs/quorum-queues#dead-lettering).
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any

from edxagent.amqp.channel import Channel
from edxagent.amqp.session import Session
from edxagent.config.values import AgentConfig, BrokerConfig
from edxagent.errors import BrokerRefused, ChannelClosed
from edxagent.model import DEAD_EXCHANGE, REQUESTS_EXCHANGE, RESULTS_EXCHANGE, dead_queue_of

DELIVERY_LIMIT = 1_000_000
EXCHANGES = (REQUESTS_EXCHANGE, DEAD_EXCHANGE, RESULTS_EXCHANGE)


async def ensure_agent_topology(session: Session, config: AgentConfig) -> None:
    """See to everything that an agent needs: exchanges, request and dead-letter queues, the results queue.

    :raises BrokerRefused: something is missing and ``declare`` is off, or the broker doesn't let us; says what to do.
    :raises BrokerUnreachable: the session was lost, or the broker didn't answer in time.
    """
    queues = [queue.name for queue in config.queues]
    await ensure_topology(session, config.broker, queues=queues, results=config.results.queue)


async def ensure_topology(session: Session, config: BrokerConfig, *, queues: Iterable[str], results: str) -> None:
    """See to the exchanges, some request queues with their dead-letter queues, and a results queue; raises as above."""
    builder = _Builder(session, config)
    try:
        for exchange in EXCHANGES:
            await builder.exchange(exchange)
        await builder.bound_queue(results, RESULTS_EXCHANGE, builder.safe_arguments())
        for queue in queues:
            await builder.request_queue(queue)
    finally:
        await builder.close()


async def ensure_request_queue(session: Session, config: BrokerConfig, queue: str) -> None:
    """See to one request queue and its dead-letter queue, as when somebody deleted them; raises as above."""
    builder = _Builder(session, config)
    try:
        for exchange in (REQUESTS_EXCHANGE, DEAD_EXCHANGE):
            await builder.exchange(exchange)
        await builder.request_queue(queue)
    finally:
        await builder.close()


async def open_reply_queue(session: Session, config: BrokerConfig) -> tuple[Channel, str]:
    """See to the exchanges, and make a private queue for results; raises as above.

    :returns: the channel to consume it on, and its name, which is its routing key in ``grading.results`` too. The queue
        goes with its connection.
    """
    builder = _Builder(session, config)
    try:
        for exchange in EXCHANGES:
            await builder.exchange(exchange)
    finally:
        await builder.close()
    channel = await session.open_channel()
    asked = channel.declare_queue("", durable=False, exclusive=True, auto_delete=True)
    queue = (await _explained(session, asked, "make a private queue for results")).name
    await _explained(session, channel.bind_queue(queue, RESULTS_EXCHANGE, queue), f"bind {queue!r}")
    return channel, queue


class _Builder:
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
        await _explained(self._session, channel.declare_exchange(name, "direct"), f"declare {what}")

    async def request_queue(self, name: str) -> None:
        """A queue for requests, and the one for what ended without a verdict.

        Requests that the broker itself dead-letters keep their routing key, which is the queue's name.
        """
        arguments = {**self.safe_arguments(), "x-dead-letter-exchange": DEAD_EXCHANGE}
        if self._config.queue_type == "quorum":
            arguments |= {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
        await self.bound_queue(dead_queue_of(name), DEAD_EXCHANGE, self.safe_arguments(), routing_key=name)
        await self.bound_queue(name, REQUESTS_EXCHANGE, arguments)

    async def bound_queue(
        self, name: str, exchange: str, arguments: dict[str, Any], *, routing_key: str | None = None
    ) -> None:
        """A durable queue, bound with ``routing_key`` or its own name."""
        what = f"queue {name!r}"
        channel = await self._channel()
        if not await self._exists(channel.declare_queue(name, passive=True), what):
            channel = await self._channel()
            await _explained(self._session, channel.declare_queue(name, arguments=arguments), f"declare {what}")
        if self._config.declare:
            channel = await self._channel()
            binding = channel.bind_queue(name, exchange, name if routing_key is None else routing_key)
            await _explained(self._session, binding, f"bind {what} to exchange {exchange!r}")

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


async def _explained(session: Session, asked: Awaitable[Any], action: str) -> Any:
    try:
        return await asked
    except ChannelClosed as closed:
        raise _explanation(session, closed, action) from None


def _explanation(session: Session, closed: ChannelClosed, action: str) -> BrokerRefused:
    remedy = {
        403: "grant the user that permission (rabbitmqctl set_permissions), or have it made and write declare = no",
        405: "it is exclusive to another connection; choose another name, or end that one",
        406: "it exists with other settings; delete it, or change the configuration to match",
    }.get(closed.code, "see the broker's log")
    return BrokerRefused(f"{session.address}: can't {action} ({closed.code} {closed.text}); {remedy}")
