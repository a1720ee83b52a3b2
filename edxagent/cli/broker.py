"""One connection to a broker for as long as a command runs: no second attempt, and what goes wrong ends the command."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as WaitedLongEnough
from zope.interface import implementer

from edxagent.amqp.channel import Channel
from edxagent.amqp.client import BrokerConnection, ConnectionFactory, Wishes
from edxagent.amqp.delivery import Delivery
from edxagent.amqp.endpoints import endpoint_for
from edxagent.amqp.session import Session
from edxagent.amqp.topology import open_reply_queue
from edxagent.cli.exchange import Exchange
from edxagent.config.values import BrokerAddress, BrokerConfig
from edxagent.errors import BrokerError, BrokerRefused, BrokerUnreachable, PublishFailed, Unroutable
from edxagent.interfaces import IPublisher
from edxagent.model import Message

CLOSE_WITHIN = 2.0
PREFETCH = 200


@asynccontextmanager
async def connected(reactor: Any, config: BrokerConfig, name: str) -> AsyncIterator[Session]:
    """A session with the first of the brokers that takes us, closed at the end of the block.

    :param name: shown in the broker's list of connections.
    :raises BrokerError: none takes us; says why the last one doesn't.
    """
    wishes = Wishes(name=name, heartbeat=config.heartbeat, call_timeout=config.call_timeout)
    connection = await _first_that_opens(reactor, config, wishes)
    try:
        yield Session(connection, generation=1)
    finally:
        await connection.finish(CLOSE_WITHIN)


async def open_exchange(
    session: Session,
    *,
    reactor: Any,
    wall_clock: Callable[[], float],
    config: BrokerConfig,
    queue: str,
    unanswered: int,
    timeout: float | None,
) -> Exchange:
    """An exchange whose verdicts come back to a private queue; for the parameters see :class:`Exchange`."""
    publishing = await session.open_channel()
    await publishing.confirm_select()
    replies, reply_to = None, None
    if timeout is not None:
        replies, reply_to = await open_reply_queue(session, config)
    exchange = Exchange(
        clock=reactor,
        wall_clock=wall_clock,
        publisher=ChannelPublisher(publishing, session.address, config.confirm_timeout, reactor),
        queue=queue,
        reply_to=reply_to,
        unanswered=unanswered,
        timeout=timeout,
    )
    session.when_ended().addCallback(exchange.fail)
    if replies is not None and reply_to is not None:

        def result_arrived(delivery: Delivery) -> None:
            exchange.result_arrived(delivery.body, delivery.properties)
            delivery.ack()

        await replies.consume(reply_to, result_arrived, exchange.fail, prefetch=PREFETCH)
    return exchange


@implementer(IPublisher)
class ChannelPublisher:
    """Publishes on one channel, with a deadline."""

    def __init__(self, channel: Channel, address: BrokerAddress, timeout: float, reactor: Any) -> None:
        self._channel = channel
        self._address = address
        self._timeout = timeout
        self._reactor = reactor

    async def publish(self, message: Message) -> None:
        """See :meth:`edxagent.interfaces.IPublisher.publish`."""
        try:
            await self._channel.publish(message).addTimeout(self._timeout, self._reactor)
        except WaitedLongEnough:
            raise PublishFailed(
                f"{self._address}: no confirm within {self._timeout:g} s; the broker may be short of memory or disk"
            ) from None
        except Unroutable:
            raise BrokerRefused(
                f"{self._address}: there is no queue {message.routing_key!r}; check its name, or start the agent that "
                "serves it: it makes its queues"
            ) from None


async def _first_that_opens(reactor: Any, config: BrokerConfig, wishes: Wishes) -> BrokerConnection:
    for address in config.addresses[:-1]:
        try:
            return await _open(reactor, config, address, wishes)
        except BrokerError:
            continue  # the last one's error is told
    return await _open(reactor, config, config.addresses[-1], wishes)


async def _open(reactor: Any, config: BrokerConfig, address: BrokerAddress, wishes: Wishes) -> BrokerConnection:
    endpoint = endpoint_for(address, reactor, config.connect_timeout)
    try:
        connection: Any = await endpoint.connect(ConnectionFactory(address, wishes, reactor))
    except CancelledError:
        raise
    except Exception as error:
        raise BrokerUnreachable(f"can't reach the broker {address}: {error}") from None
    opening = Deferred.fromCoroutine(connection.open())
    try:
        await opening.addTimeout(config.connect_timeout, reactor)
    except WaitedLongEnough:
        connection.abort(BrokerUnreachable(f"{address}: no greeting"))
        raise BrokerUnreachable(
            f"something answers at {address}, but no broker greeted us within {config.connect_timeout:g} s"
        ) from None
    except BaseException:
        connection.abort(BrokerUnreachable(f"{address}: the connection was given up"))
        raise
    return connection  # type: ignore[no-any-return]  # the endpoint can't tell what its factory builds
