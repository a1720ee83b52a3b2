"""What answers behind the gateway's door, by one configuration after another: the door stays open meanwhile.

Who is being answered when the configuration changes is answered by the one that there was.
"""

from __future__ import annotations

from collections.abc import Callable
from secrets import token_hex
from typing import Any

from twisted.internet.defer import TimeoutError as TimeIsOver
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from edxagent.amqp.link import BrokerLink
from edxagent.amqp.publisher import ConfirmingPublisher
from edxagent.config.lms_values import GatewayConfig
from edxagent.interfaces import IPublisher
from edxagent.lms.contracts import IAgentConfig, ILedger, IPull
from edxagent.lms.gateway.accounts import CHECKS_AT_ONCE, Accounts, read_users
from edxagent.lms.gateway.queue_length import QueueLengths
from edxagent.lms.gateway.request import BodyRules, Budget, FormRequest
from edxagent.lms.gateway.sessions import Sessions
from edxagent.lms.gateway.site import FrontDoor
from edxagent.lms.gateway.submissions import Submissions
from edxagent.lms.gateway.threads import Threads
from edxagent.lms.gateway.uploads import FolderStore
from edxagent.tasks import Tasks

HELD_AT_ONCE = 8
"""All requests together may hold so many times ``max_upload``."""

LENGTH_WITHIN = 0.9
"""Seconds for the queue's length, when a submission is already safe."""

FINISH_WITHIN = 6.0
"""Seconds that an end waits for requests under way: a little longer than a submission takes."""

CLEAN_EVERY = 3600.0
"""Seconds between two looks for uploads that are too old; for shorter lifetimes, a quarter of those."""

FILE_THREADS = 4


class Interior:
    """See :class:`~edxagent.lms.gateway.service.Gateway`, whose arguments these are.

    Logins outlive a change, and so do files that were stored: a grader may still have to fetch them.

    :raises ConfigError: the configuration can't be used.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        config: GatewayConfig,
        link: BrokerLink,
        publisher: IPublisher | None,
        pull: IPull,
        agent_config: IAgentConfig | None,
        ledger: ILedger | None,
        reactor: Any,
        wall_clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._link = link
        self._publisher = publisher
        self._pull = pull
        self._ledger = ledger
        self._reactor = reactor
        self._wall_clock = wall_clock
        self._secret = token_hex(32)
        self._lengths = QueueLengths(link, LENGTH_WITHIN)
        self._answering = Tasks()
        self._afterwards = Tasks()
        self._logins = Threads(reactor, "logins", CHECKS_AT_ONCE)
        self._disk = Threads(reactor, "files", FILE_THREADS)
        self._cleaning = LoopingCall(self._clean)
        self._cleaning.clock = reactor
        self._accounts = Accounts(
            config.users, login_failures=config.login_failures, threads=self._logins, clock=reactor
        )
        self._store = self._new_store(config)
        self._budget = Budget(HELD_AT_ONCE * config.max_upload)
        self._own_publisher = ConfirmingPublisher(link, timeout=config.confirm_timeout)
        self._furnish(config, agent_config)

    @property
    def answering(self) -> int:
        """How many requests are being answered."""
        return len(self._answering)

    def request(self, *args: Any) -> FormRequest:
        """What a connection makes of the next request."""
        return FormRequest(self._rules, *args)

    # From one configuration to another

    async def prepared(self, config: GatewayConfig, agent_config: IAgentConfig | None) -> Callable[[], Any]:
        """See that everything can be as another configuration says; returns what makes it so. Nothing has changed yet.

        :raises ConfigError: it can't.
        """
        users = read_users(config.users)
        same_files = _files_of(config) == _files_of(self._config)
        store = None if same_files else self._new_store(config)
        if store is not None:
            await store.prepare()

        def change() -> Any:
            self._accounts.use(users, config.login_failures)
            if store is not None:
                if self._store is not None:
                    store.take_over(self._store)
                self._store = store
                self._clean_regularly(config)
            if config.max_upload != self._config.max_upload:
                self._budget = Budget(HELD_AT_ONCE * config.max_upload)
            if config.confirm_timeout != self._config.confirm_timeout:
                self._own_publisher = ConfirmingPublisher(self._link, timeout=config.confirm_timeout)
            self._config = config
            return self._furnish(config, agent_config)

        return change

    def _furnish(self, config: GatewayConfig, agent_config: IAgentConfig | None) -> Any:
        """Have what is asked from now on answered by this configuration; returns the new site's resource."""
        sessions = Sessions(
            secret=config.session_secret or self._secret,
            lifetime=config.session_lifetime,
            known=self._accounts.known,
            wall_clock=self._wall_clock,
        )
        submissions = Submissions(
            config=config,
            publisher=self._publisher or self._own_publisher,
            lengths=self._lengths,
            store=None if _files_of(config) is None else self._store,
            ledger=self._ledger,
            tasks=self._afterwards,
            clock=self._reactor,
            wall_clock=self._wall_clock,
        )
        front = FrontDoor(
            accounts=self._accounts,
            sessions=sessions,
            submissions=submissions,
            pull=self._pull,
            files=self._store,
            agent_config=agent_config,
            behind_tls_proxy=config.behind_tls_proxy,
            threads=self._disk,
            tasks=self._answering,
        )
        self._rules = BodyRules(
            most=config.max_upload, budget=self._budget, knows=lambda request: front.user_of(request) is not None
        )
        self.resource = front.app.resource()
        return self.resource

    # Beginning and end

    def start(self) -> None:
        """Have threads."""
        self._logins.start()
        self._disk.start()

    async def open(self) -> None:
        """See to the folder for files.

        :raises ConfigError: it can't be used.
        """
        if self._store is not None:
            await self._store.prepare()
            self._clean_regularly(self._config)

    def hurry(self) -> None:
        """Answer nobody any more."""
        for tasks in (self._answering, self._afterwards):
            tasks.cancel()

    async def close(self) -> None:
        """Bring to an end what is under way, within a few seconds; then no thread is left."""
        if self._cleaning.running:
            self._cleaning.stop()
        for tasks in (self._answering, self._afterwards):
            try:
                await tasks.when_idle().addTimeout(FINISH_WITHIN, self._reactor)
            except TimeIsOver:
                tasks.cancel()
                await tasks.when_idle()
        await self._logins.stop()
        await self._disk.stop()

    # Files

    def _clean_regularly(self, config: GatewayConfig) -> None:
        if self._cleaning.running:
            self._cleaning.stop()
        self._cleaning.start(min(CLEAN_EVERY, config.files_lifetime / 4))

    def _clean(self) -> None:
        if self._store is not None:
            self._afterwards.launch(self._store.clean(), "deleting old uploads")

    def _new_store(self, config: GatewayConfig) -> FolderStore | None:
        files = _files_of(config)
        if files is None:
            return None
        folder, url, lifetime = files
        return FolderStore(folder, url=url, lifetime=lifetime, threads=self._disk, wall_clock=self._wall_clock)


def _files_of(config: GatewayConfig) -> tuple[str, str, float] | None:
    """Folder, address and lifetime of files, if there may be any."""
    if config.files_folder is None or config.files_url is None:
        return None
    return config.files_folder, config.files_url, config.files_lifetime
