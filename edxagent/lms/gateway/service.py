"""The gateway as one Twisted service: where it listens, and in which order it starts and stops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from edxagent.amqp.link import BrokerLink
from edxagent.config.lms_values import GatewayConfig
from edxagent.errors import ConfigError
from edxagent.interfaces import IPublisher
from edxagent.lms.contracts import IAgentConfig, ILedger, IPull
from edxagent.lms.gateway.door import DoorSite
from edxagent.lms.gateway.interior import FINISH_WITHIN, Interior
from edxagent.words import brief


class Gateway(Service):
    """Listens, from ``startService`` until the Deferred of ``stopService`` has fired.

    :param link: for publishing; somebody else starts and stops it.
    :param publisher: ``None`` = one of our own over ``link``, with ``confirm_timeout``.
    :param ledger: ``None`` = there is none.
    :param agent_config: ``None`` = ``/agent/config`` isn't there.
    :param wall_clock: seconds since the epoch.
    :raises ConfigError: the configuration can't be used.
    :ivar listening: of the latest start. Fires with ``None`` when it listens; fails with :class:`ConfigError`, in one
        line, if it can't. Whoever starts the service waits for it.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        config: GatewayConfig,
        link: BrokerLink,
        publisher: IPublisher | None = None,
        pull: IPull,
        agent_config: IAgentConfig | None,
        ledger: ILedger | None,
        reactor: Any,
        wall_clock: Callable[[], float],
    ) -> None:
        self._listen = config.listen
        self._reactor = reactor
        self._port: IListeningPort | None = None
        self._opening: Deferred[None] | None = None
        self.listening: Deferred[None] = Deferred()
        self._interior = Interior(
            config=config,
            link=link,
            publisher=publisher,
            pull=pull,
            agent_config=agent_config,
            ledger=ledger,
            reactor=reactor,
            wall_clock=wall_clock,
        )
        self._site = DoorSite(self._interior.resource, self._interior.request, reactor)

    @property
    def address(self) -> Any:
        """Where it listens, while it does: an ``IAddress``."""
        return None if self._port is None else self._port.getHost()

    @property
    def answering(self) -> int:
        """How many requests are being answered."""
        return self._interior.answering

    def startService(self) -> None:
        """Begin to listen; see :attr:`listening`."""
        super().startService()
        self._interior.start()
        self.listening = Deferred()
        self._opening = Deferred.fromCoroutine(self._open())
        self._opening.addCallbacks(self.listening.callback, self.listening.errback)

    def stopService(self) -> Deferred[None]:
        """Listen no more, answer what was asked, close; fires when nothing is left of it."""
        super().stopService()
        return Deferred.fromCoroutine(self._close())

    def hurry(self) -> None:
        """Cut a stop short that is under way: who wasn't answered yet finds the connection closed."""
        for door in list(self._site.doors):
            door.cut()
        self._interior.hurry()

    async def prepared(self, config: GatewayConfig, agent_config: IAgentConfig | None) -> Callable[[], None]:
        """See that it can go by another configuration, but for ``listen``; returns what has it do so. It goes on
        listening all the time, and who is being answered is answered by the configuration that there was.

        :raises ConfigError: it can't.
        """
        furnish = await self._interior.prepared(config, agent_config)

        def change() -> None:
            self._site.resource = furnish()

        return change

    async def _open(self) -> None:
        await self._interior.open()
        listen = self._listen
        try:
            self._port = await serverFromString(self._reactor, listen).listen(self._site)
        except CannotListenError as error:
            reason = getattr(error.socketError, "strerror", None) or str(error)
            raise ConfigError([f"[gateway] listen: {listen} can't be listened at: {brief(reason)}"]) from None
        except CancelledError:
            raise
        except Exception as error:  # whatever makes up endpoints, plugins among it, may raise anything
            raise ConfigError([f"[gateway] listen: {listen}: {brief(str(error) or type(error).__name__)}"]) from None
        self._log.info("listening at {address}", address=_shown(self._port.getHost()))

    async def _close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
        await self._site.close(FINISH_WITHIN)
        await self._interior.close()


def _shown(address: Any) -> str:
    host, port = getattr(address, "host", None), getattr(address, "port", None)
    if host is None or port is None:
        return str(address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
