"""A link: one connection kept open over several broker addresses, for as long as the program runs."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any, cast

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, fail, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from edxagent.amqp.client import BrokerConnection, ConnectionFactory, Wishes
from edxagent.amqp.endpoints import endpoint_for
from edxagent.amqp.reconnecting import CLOSE_WITHIN, QuietClientService, SessionEndpoint, SessionFactory
from edxagent.amqp.session import Session
from edxagent.config.values import BrokerAddress, BrokerConfig
from edxagent.errors import BrokerError, BrokerRefused, BrokerUnreachable, plain_reason

__all__ = ["BrokerLink", "Session"]

HURRIED_CLOSE_WITHIN = 0.5
"""Seconds that the broker has to agree to the end of a connection when somebody is impatient."""
PREPARE_CALLS = 20
"""The preparation of a session may take so many times ``call_timeout`` in all."""


class BrokerLink(Service):
    """Keeps a session with one of the brokers. After each failure the next address gets its turn.

    The pauses between attempts double, with jitter, from ``retry_initial`` on, until those of a round of all addresses
    make up ``retry_max``. What can't heal by itself (:class:`BrokerRefused`) is reported. Before the link was ever up,
    it stops trying once every address has refused; afterwards it goes on with the longest pause, for a broker that is
    being rebuilt refuses for a while.

    :param reactor: provides ``IReactorTCP``, ``IReactorTime``, ``IReactorPluggableNameResolver``.
    :param purpose: ``consume`` or ``publish``; with ``name`` it is what the broker's list of connections shows.
    :param prepare: is awaited with each new session before the link counts as up, under a deadline.
    :param on_refused: is called with the last refusal when it stops trying.
    :ivar session: the session while the link is up, or ``None``.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        reactor: Any,
        config: BrokerConfig,
        purpose: str,
        name: str,
        prepare: Callable[[Session], Awaitable[None]],
        on_refused: Callable[[BrokerRefused], object],
    ) -> None:
        self.reactor = reactor
        self.config = config
        self.label = f"{name} ({purpose})"
        self.session: Session | None = None
        self._prepare = prepare
        self._on_refused = on_refused
        self._wishes = Wishes(name=self.label, heartbeat=config.heartbeat, call_timeout=config.call_timeout)
        self._waiters: list[Deferred[Session]] = []
        self._generation = 0
        self._turn = 0
        self._refusals: dict[BrokerAddress, BrokerRefused] = {}
        self._reported: set[str] = set()
        self._gave_up: BrokerRefused | None = None
        self._news: list[IDelayedCall] = []
        self._connection: BrokerConnection | None = None
        self._hurried = False
        self._service = QuietClientService(
            SessionEndpoint(self._connect), SessionFactory(), retryPolicy=self._pause, clock=reactor
        )

    def startService(self) -> None:
        """Begin to connect."""
        super().startService()
        self._gave_up = None
        self._hurried = False
        self._refusals.clear()
        self._service.startService()

    def stopService(self) -> Deferred[None]:
        """Close the connection in peace, or give the attempt up; fires when nothing is left of it."""
        super().stopService()
        while self._news:
            self._news.pop().cancel()
        self._fail_waiters(BrokerUnreachable(f"{self.label}: the link to the broker was stopped"))
        stopped = self._service.stopService()
        self._cut_short()
        return stopped

    def hurry(self) -> None:
        """Have the broker agree to an end soon, now or whenever it comes."""
        self._hurried = True
        self._cut_short()

    def _cut_short(self) -> None:
        if self._hurried and not self.running and self._connection is not None:
            self._connection.finish(HURRIED_CLOSE_WITHIN)

    def when_up(self) -> Deferred[Session]:
        """Fires with the session as soon as there is one. Cancelling stops the waiting only.

        Fails with :class:`BrokerRefused` if the link has given up, with :class:`BrokerUnreachable` if it is stopped.
        """
        if self.session is not None:
            return succeed(self.session)
        if self._gave_up is not None:
            return fail(self._gave_up)
        if not self.running:
            return fail(BrokerUnreachable(f"{self.label}: the link to the broker isn't running"))
        waiter: Deferred[Session] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        return waiter

    # One attempt

    async def _connect(self) -> Session:
        """Everything from the first packet to a prepared session; what doesn't succeed leaves nothing behind."""
        address = self.config.addresses[self._turn % len(self.config.addresses)]
        try:
            session = await self._open(address)
        except BrokerRefused as refused:
            self._failed(address, refused)
            self._report(refused)
            if not self._generation and len(self._refusals) == len(set(self.config.addresses)):
                self._give_up(refused)
                # Until stopService cancels it: a ClientService can't be told to stop trying from within.
                await Deferred()
            raise
        except BrokerError as error:
            self._failed(address)
            if self.running:
                self._log.warn("{link}: {reason}", link=self.label, reason=str(error))
            raise
        except CancelledError:
            raise
        except Exception:
            self._failed(address)
            self._log.failure("{link}: preparing the session failed.", link=self.label)
            raise
        self._up(session)
        return session

    async def _open(self, address: BrokerAddress) -> Session:
        connection = self._connection = await self._reach(address)
        session = Session(connection, self._generation + 1)
        preparing = ensureDeferred(_awaited(self._prepare(session)))
        connection.when_lost().addCallback(lambda reason: preparing.cancel())
        preparing.addTimeout(self.config.call_timeout * PREPARE_CALLS, self.reactor)
        try:
            await preparing
            if connection.reason is not None:
                raise connection.reason
        except Exception as error:
            loss = connection.reason
            await connection.finish(CLOSE_WITHIN)
            if loss is not None:
                raise loss from None
            if isinstance(error, DeferredTimeout):
                raise BrokerUnreachable(f"{address}: preparing the session took too long") from None
            raise
        return session

    async def _reach(self, address: BrokerAddress) -> BrokerConnection:
        """Connect and go through the handshake, all within ``connect_timeout``."""
        timeout = self.config.connect_timeout
        began = self.reactor.seconds()
        endpoint = endpoint_for(address, self.reactor, timeout)
        try:
            connection: Any = await endpoint.connect(ConnectionFactory(address, self._wishes, self.reactor))
        except CancelledError:
            raise
        except Exception as error:
            raise BrokerUnreachable(f"{address}: {plain_reason(error)}") from None
        opening = Deferred.fromCoroutine(connection.open())
        opening.addTimeout(max(0.0, timeout - (self.reactor.seconds() - began)), self.reactor)
        try:
            await opening
        except Exception as error:
            connection.abort(BrokerUnreachable(f"{address}: the connection was given up"))
            await connection.when_lost()
            if isinstance(error, DeferredTimeout):
                raise BrokerUnreachable(
                    f"{address}: something answers there, but no broker greeted us within {timeout:g} s"
                ) from None
            raise
        return cast(BrokerConnection, connection)

    # What follows from it

    def _failed(self, address: BrokerAddress, refused: BrokerRefused | None = None) -> None:
        self._turn += 1
        self._refusals.pop(address, None)
        if refused is not None:
            self._refusals[address] = refused

    def _up(self, session: Session) -> None:
        self._generation = session.generation
        self._refusals.clear()
        self._reported.clear()
        self._log.info("{link}: connected to {broker}", link=self.label, broker=session.address)
        session.when_ended().addCallback(self._down, session)
        self._tell(self._announce, session)

    def _announce(self, session: Session) -> None:
        if session.alive:
            self.session = session
            while self._waiters:
                self._waiters.pop(0).callback(session)

    def _down(self, reason: BrokerError, session: Session) -> None:
        self.session = None
        self._turn += 1
        if self.running:
            self._log.warn("{link}: {reason}", link=self.label, reason=str(reason))
        else:
            self._log.info("{link}: disconnected from {broker}", link=self.label, broker=session.address)

    def _report(self, refused: BrokerRefused) -> None:
        text = str(refused)
        if text in self._reported:
            return
        self._reported.add(text)
        self._log.error("{link}: {reason}", link=self.label, reason=text)

    def _give_up(self, refused: BrokerRefused) -> None:
        self._gave_up = refused
        self._log.error("{link}: this doesn't heal by itself; no more attempts", link=self.label)
        self._tell(self._on_refused, refused)
        self._tell(self._fail_waiters, refused)

    def _tell(self, function: Callable[[Any], object], news: object) -> None:
        """Call back a little later: the listener may stop this service, and an attempt can't be cancelled by itself."""

        def tell() -> None:
            self._news.remove(call)
            try:
                function(news)
            except Exception:
                self._log.failure("{link}: telling the news failed.", link=self.label)

        call = self.reactor.callLater(0, tell)
        self._news.append(call)

    def _fail_waiters(self, reason: BrokerError) -> None:
        while self._waiters:
            self._waiters.pop(0).errback(reason)

    def _pause(self, attempt: int) -> float:
        """Seconds before attempt number ``attempt`` in a row."""
        config = self.config
        count = len(config.addresses)
        address = config.addresses[self._turn % count]
        pause = longest = config.retry_max / count
        if address not in self._refusals:
            pause = min(config.retry_initial * 2.0 ** min((attempt - 1) // count, 60), longest)
        pause *= random.uniform(0.5, 1.0)
        self._log.info("{link}: next try in {pause:.1f} s at {broker}", link=self.label, pause=pause, broker=address)
        return pause


async def _awaited(awaitable: Awaitable[None]) -> None:
    await awaitable
