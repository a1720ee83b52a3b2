"""The gateway as one Twisted service: what it is made of, and in which order it starts and stops."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.defer import TimeoutError as TimeIsOver
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from edxagent.amqp.link import BrokerLink
from edxagent.amqp.publisher import ConfirmingPublisher
from edxagent.config.lms_values import GatewayConfig
from edxagent.errors import ConfigError
from edxagent.interfaces import IPublisher
from edxagent.lms.contracts import IAgentConfig, ILedger, IPull
from edxagent.lms.gateway.accounts import CHECKS_AT_ONCE, Accounts
from edxagent.lms.gateway.door import DoorSite
from edxagent.lms.gateway.queue_length import QueueLengths
from edxagent.lms.gateway.request import BodyRules, Budget, FormRequest
from edxagent.lms.gateway.sessions import Sessions
from edxagent.lms.gateway.site import FrontDoor
from edxagent.lms.gateway.submissions import Submissions
from edxagent.lms.gateway.threads import Threads
from edxagent.lms.gateway.uploads import FolderStore
from edxagent.tasks import Tasks
from edxagent.words import brief

HELD_AT_ONCE = 8
"""All requests together may hold so many times ``max_upload``."""

LENGTH_WITHIN = 0.9
"""Seconds for the queue's length, when a submission is already safe."""

FINISH_WITHIN = 6.0
"""Seconds that a stop waits for requests under way: a little longer than a submission takes."""

CLEAN_EVERY = 3600.0
"""Seconds between two looks for uploads that are too old; for shorter lifetimes, a quarter of those."""

FILE_THREADS = 4


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
        self._config = config
        self._reactor = reactor
        self._answering = Tasks()
        self._afterwards = Tasks()
        self._logins = Threads(reactor, "logins", CHECKS_AT_ONCE)
        self._disk = Threads(reactor, "files", FILE_THREADS)
        self._port: IListeningPort | None = None
        self._opening: Deferred[None] | None = None
        self.listening: Deferred[None] = Deferred()
        self._store = self._file_store(wall_clock)
        self._cleaning: LoopingCall | None = None
        accounts = Accounts(config.users, login_failures=config.login_failures, threads=self._logins, clock=reactor)
        sessions = Sessions(
            secret=config.session_secret,
            lifetime=config.session_lifetime,
            known=accounts.known,
            wall_clock=wall_clock,
        )
        submissions = Submissions(
            config=config,
            publisher=publisher or ConfirmingPublisher(link, timeout=config.confirm_timeout),
            lengths=QueueLengths(link, LENGTH_WITHIN),
            store=self._store,
            ledger=ledger,
            tasks=self._afterwards,
            clock=reactor,
            wall_clock=wall_clock,
        )
        front = FrontDoor(
            accounts=accounts,
            sessions=sessions,
            submissions=submissions,
            pull=pull,
            files=self._store,
            agent_config=agent_config,
            behind_tls_proxy=config.behind_tls_proxy,
            threads=self._disk,
            tasks=self._answering,
        )
        rules = BodyRules(
            most=config.max_upload,
            budget=Budget(HELD_AT_ONCE * config.max_upload),
            knows=lambda request: front.user_of(request) is not None,
        )
        self._site = DoorSite(front.app.resource(), partial(FormRequest, rules), reactor)

    @property
    def address(self) -> Any:
        """Where it listens, while it does: an ``IAddress``."""
        return None if self._port is None else self._port.getHost()

    def startService(self) -> None:
        """Begin to listen; see :attr:`listening`."""
        super().startService()
        self._logins.start()
        self._disk.start()
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
        for tasks in (self._answering, self._afterwards):
            tasks.cancel()

    async def _open(self) -> None:
        if self._store is not None:
            await self._store.prepare()
            self._cleaning = LoopingCall(self._clean, self._store)
            self._cleaning.clock = self._reactor
            self._cleaning.start(min(CLEAN_EVERY, self._config.files_lifetime / 4))
        listen = self._config.listen
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
        if self._cleaning is not None and self._cleaning.running:
            self._cleaning.stop()
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
        await self._site.close(FINISH_WITHIN)
        for tasks in (self._answering, self._afterwards):
            try:
                await tasks.when_idle().addTimeout(FINISH_WITHIN, self._reactor)
            except TimeIsOver:
                tasks.cancel()
                await tasks.when_idle()
        await self._logins.stop()
        await self._disk.stop()

    def _clean(self, store: FolderStore) -> None:
        self._afterwards.launch(store.clean(), "deleting old uploads")

    def _file_store(self, wall_clock: Callable[[], float]) -> FolderStore | None:
        config = self._config
        if config.files_folder is None or config.files_url is None:
            return None
        return FolderStore(
            config.files_folder,
            url=config.files_url,
            lifetime=config.files_lifetime,
            threads=self._disk,
            wall_clock=wall_clock,
        )


def _shown(address: Any) -> str:
    host, port = getattr(address, "host", None), getattr(address, "port", None)
    if host is None or port is None:
        return str(address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
