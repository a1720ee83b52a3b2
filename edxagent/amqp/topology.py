"""The exchanges, queues and bindings that grading needs: looked for first, made where missing and wanted.

What exists is taken as it is, whatever its type and arguments. Queues of our making drop no message by themselves: they
have a high delivery limit, because RabbitMQ 4 otherwise drops at the twentieth delivery, and what the broker moves
arrives at least once (https://www.rabbitmq.com/docs/quorum-queues#dead-lettering).
"""

from __future__ import annotations

from collections.abc import Iterable

from edxagent.amqp.builder import TopologyBuilder, explained
from edxagent.amqp.channel import Channel
from edxagent.amqp.session import Session
from edxagent.config.values import AgentConfig, BrokerConfig
from edxagent.model import (
    DEAD_EXCHANGE,
    REQUESTS_EXCHANGE,
    REQUESTS_RETRY,
    RESULTS_EXCHANGE,
    RESULTS_RETRY,
    milliseconds,
    retry_name,
)

EXCHANGES = (REQUESTS_EXCHANGE, DEAD_EXCHANGE, RESULTS_EXCHANGE)


async def ensure_agent_topology(session: Session, config: AgentConfig) -> None:
    """See to everything that an agent needs: exchanges, queues for requests, dead letters, results and retries.

    :raises BrokerRefused: something is missing and ``declare`` is off, or a retry queue is there with other arguments,
        or the broker doesn't let us; says what to do.
    :raises BrokerUnreachable: the session was lost, or the broker didn't answer in time.
    """
    queues = [queue.name for queue in config.queues]
    await ensure_topology(session, config.broker, queues=queues, results=config.results.queue)
    # Last, because requests that wait in one that is there already go back only to queues that are bound.
    await ensure_retry_queues(session, config.broker, REQUESTS_EXCHANGE, REQUESTS_RETRY, config.retry.delays)


async def ensure_topology(session: Session, config: BrokerConfig, *, queues: Iterable[str], results: str) -> None:
    """See to the exchanges, some request queues with their dead-letter queues, and a results queue; raises as above."""
    builder = TopologyBuilder(session, config)
    try:
        for exchange in EXCHANGES:
            await builder.exchange(exchange)
        await builder.results_queue(results)
        for queue in queues:
            await builder.request_queue(queue)
    finally:
        await builder.close()


async def ensure_request_queue(session: Session, config: BrokerConfig, queue: str) -> None:
    """See to one request queue and its dead-letter queue, as when somebody deleted them; raises as above."""
    builder = TopologyBuilder(session, config)
    try:
        for exchange in (REQUESTS_EXCHANGE, DEAD_EXCHANGE):
            await builder.exchange(exchange)
        await builder.request_queue(queue)
    finally:
        await builder.close()


async def ensure_updater_topology(session: Session, config: BrokerConfig, queue: str, delays: Iterable[float]) -> None:
    """See to everything that the updater needs: a results queue, its retry queues, and one for what is parked.

    :param delays: in seconds.
    :raises BrokerRefused: also if a retry queue is there with other arguments; else as above.
    """
    builder = TopologyBuilder(session, config)
    try:
        for exchange in (RESULTS_EXCHANGE, DEAD_EXCHANGE):
            await builder.exchange(exchange)
        await builder.results_queue(queue)
        await builder.dead_queue(queue)
    finally:
        await builder.close()
    await ensure_retry_queues(session, config, RESULTS_EXCHANGE, RESULTS_RETRY, delays)


async def ensure_retry_queues(
    session: Session, config: BrokerConfig, work_exchange: str, prefix: str, delays: Iterable[float]
) -> None:
    """See to an exchange and a queue for each delay, where messages wait before they go back to ``work_exchange``.

    They go back with the routing key that they were published with. Until a queue is bound for it there they stay.

    :param prefix: the names are those of :func:`edxagent.model.retry_name`.
    :raises BrokerRefused: also if one is there with other arguments; else as above.
    """
    builder = TopologyBuilder(session, config)
    try:
        for delay in delays:
            await builder.delay(retry_name(prefix, delay), milliseconds(delay), work_exchange)
    finally:
        await builder.close()


async def open_reply_queue(session: Session, config: BrokerConfig) -> tuple[Channel, str]:
    """See to the exchanges, and make a private queue for results; raises as above.

    :returns: the channel to consume it on, and its name, which is its routing key in ``grading.results`` too. The queue
        goes with its connection.
    """
    builder = TopologyBuilder(session, config)
    try:
        for exchange in EXCHANGES:
            await builder.exchange(exchange)
    finally:
        await builder.close()
    channel = await session.open_channel()
    asked = channel.declare_queue("", durable=False, exclusive=True, auto_delete=True)
    queue = (await explained(session, asked, "make a private queue for results")).name
    await explained(session, channel.bind_queue(queue, RESULTS_EXCHANGE, queue), f"bind {queue!r}")
    return channel, queue
