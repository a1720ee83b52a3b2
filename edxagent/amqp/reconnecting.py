"""What Twisted's ``ClientService`` needs to keep a session as if it were a plain connection."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, cast

from twisted.application.internet import ClientService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import ILogObserver, Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from edxagent.amqp.session import Session

CLOSE_WITHIN = 5.0
"""Seconds that the broker has to agree to the end of a connection."""


@implementer(ILogObserver)
def _unseen(event: Any) -> None:
    pass


class QuietClientService(ClientService):
    """``ClientService`` logs each attempt by its endpoint's repr; the link says the same in words."""

    _log = Logger(observer=_unseen)


class SessionFactory(Factory):
    """What ``ClientService`` calls a protocol: something that it is told the loss of, and no more."""

    noisy = False
    protocol = Protocol


class _SessionTransport:
    """What ``ClientService`` calls a transport: something that it can end."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def loseConnection(self) -> None:
        """Close the connection in peace."""
        self._session.close(CLOSE_WITHIN)


@implementer(IStreamClientEndpoint)
class SessionEndpoint:
    """Connecting, as ``ClientService`` understands it, that is done when the session is prepared.

    ``ClientService`` has a hook for preparations of its own, but loses track of a connection that goes during them.
    """

    def __init__(self, connect: Callable[[], Coroutine[Any, Any, Session]]) -> None:
        self._connect = connect

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See ``IStreamClientEndpoint``."""
        return Deferred.fromCoroutine(self._connected(protocolFactory))

    async def _connected(self, factory: IProtocolFactory) -> IProtocol:
        session = await self._connect()
        protocol: Any = cast(Any, factory).buildProtocol(session.address)
        protocol.makeConnection(_SessionTransport(session))
        session.when_ended().addCallback(lambda reason: protocol.connectionLost(Failure(reason)))
        return cast(IProtocol, protocol)
