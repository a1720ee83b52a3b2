"""What the LMS side is made of, by its configuration.

Each part is imported only when it is configured: a gateway alone needs no database, an updater alone no web server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attrs import frozen
from twisted.application.service import IService

from edxagent.amqp.link import BrokerLink, Session
from edxagent.amqp.publisher import ConfirmingPublisher
from edxagent.amqp.topology import ensure_topology
from edxagent.config.lms_values import BridgeConfig, GatewayConfig, LedgerConfig, LMSConfig, UpdaterConfig
from edxagent.errors import BrokerRefused, ConfigError
from edxagent.interfaces import IPublisher, IResultSink, SinkTools
from edxagent.lms.contracts import IAgentConfig

if TYPE_CHECKING:
    from edxagent.lms.bridge.service import Bridge
    from edxagent.lms.gateway.pull_service import PullService
    from edxagent.lms.gateway.service import Gateway
    from edxagent.lms.ledger import Ledger
    from edxagent.lms.updater.service import Updater

RESULTS = UpdaterConfig().queue
"""Where verdicts go when the updater is somebody else's."""


@frozen(kw_only=True)
class Parts:
    """The parts; one that isn't configured is ``None``, or isn't there.

    :ivar publishing: the connection that all of them publish on.
    """

    publishing: BrokerLink
    ledger: Ledger | None
    sinks: tuple[IService, ...]
    bridges: tuple[Bridge, ...]
    updater: Updater | None
    pull: PullService | None
    gateway: Gateway | None


class PartsMaker:
    """Makes the parts, none of them started.

    :param sinks: name → sink, in the place of the configured ones.
    """

    def __init__(
        self,
        config: LMSConfig,
        reactor: Any,
        *,
        on_refused: Callable[[BrokerRefused], None],
        wall_clock: Callable[[], float],
        sinks: Mapping[str, IResultSink] | None,
    ) -> None:
        self._config = config
        self._reactor = reactor
        self._on_refused = on_refused
        self._wall_clock = wall_clock
        self._own_sinks = sinks
        self._results = RESULTS if config.updater is None else config.updater.queue

    def make(self) -> Parts:
        """Make them.

        :raises ConfigError: what is configured doesn't fit together, or can't be used.
        """
        config = self._config
        publishing = BrokerLink(
            reactor=self._reactor,
            config=config.broker,
            purpose="publish",
            name=config.name,
            prepare=self._prepare,
            on_refused=self._on_refused,
        )
        publisher = ConfirmingPublisher(publishing)
        ledger = None if config.ledger is None else self._ledger(config.ledger)
        bridges = tuple(self._bridge(bridge, publisher, ledger) for bridge in config.bridges)
        sinks = self._sinks() if self._own_sinks is None else self._own_sinks
        answering = {
            **sinks,
            **{bridge.origin: made.sink for bridge, made in zip(config.bridges, bridges, strict=True)},
        }
        pull = gateway = None
        if config.gateway is not None:
            pull = self._pull(config.gateway, publisher)
            gateway = self._gateway(config.gateway, publishing, pull, ledger)
        return Parts(
            publishing=publishing,
            ledger=ledger,
            sinks=tuple(sink for sink in sinks.values() if IService.providedBy(sink)),
            bridges=bridges,
            updater=None if config.updater is None else self._updater(config.updater, answering, publisher, ledger),
            pull=pull,
            gateway=gateway,
        )

    async def _prepare(self, session: Session) -> None:
        """See to the queues that submissions are published to."""
        config = self._config
        queues = [queue for part in (config.gateway, *config.bridges) if part is not None for queue in part.queues]
        if queues:
            await ensure_topology(session, config.broker, queues=dict.fromkeys(queues), results=self._results)

    def _ledger(self, config: LedgerConfig) -> Ledger:
        from edxagent.lms.database import Database
        from edxagent.lms.ledger import Ledger

        with _blamed("ledger", "url: "):
            database = Database(config.url, self._reactor)
        return Ledger(database, keep=config.keep, reactor=self._reactor, wall_clock=self._wall_clock)

    def _bridge(self, config: BridgeConfig, publisher: IPublisher, ledger: Ledger | None) -> Bridge:
        from edxagent.lms.bridge.service import Bridge

        if ledger is None:
            raise ConfigError([f"[{config.origin}] a bridge must know what it has fetched already; write [ledger]"])
        with _blamed(config.origin):
            return Bridge(
                config, publisher, ledger, self._reactor, self._wall_clock, messages=self._config.failure.messages
            )

    def _sinks(self) -> dict[str, IResultSink]:
        from edxagent.lms.sinks.registry import find_sink_factory

        made: dict[str, IResultSink] = {}
        for sink in self._config.sinks:
            tools = SinkTools(
                name=sink.name,
                reactor=self._reactor,
                concurrency=(self._config.updater or UpdaterConfig()).concurrency,
                wall_clock=self._wall_clock,
            )
            with _blamed(f"sink:{sink.name}"):
                made[sink.name] = find_sink_factory(sink.kind).build(sink.options, tools)
        return made

    def _updater(
        self, config: UpdaterConfig, sinks: Mapping[str, IResultSink], publisher: IPublisher, ledger: Ledger | None
    ) -> Updater:
        from edxagent.lms.updater.service import Updater

        return Updater(
            config=config,
            broker=self._config.broker,
            name=self._config.name,
            sinks=sinks,
            publisher=publisher,
            ledger=ledger,
            reactor=self._reactor,
            wall_clock=self._wall_clock,
            drain_timeout=self._config.drain_timeout,
            on_refused=self._on_refused,
        )

    def _pull(self, config: GatewayConfig, publisher: IPublisher) -> PullService:
        from edxagent.lms.gateway.pull_service import PullService

        return PullService(
            name=self._config.name,
            config=config,
            broker=self._config.broker,
            failure=self._config.failure,
            results=self._results,
            publisher=publisher,
            reactor=self._reactor,
            on_refused=self._on_refused,
            wall_clock=self._wall_clock,
        )

    def _gateway(
        self, config: GatewayConfig, publishing: BrokerLink, pull: PullService, ledger: Ledger | None
    ) -> Gateway:
        from edxagent.lms.gateway.service import Gateway

        return Gateway(
            config=config,
            link=publishing,
            pull=pull,
            agent_config=self._agent_config(),
            ledger=ledger,
            reactor=self._reactor,
            wall_clock=self._wall_clock,
        )

    def _agent_config(self) -> IAgentConfig | None:
        if not self._config.grants:
            return None
        from edxagent.lms.gateway.agent_config import AgentConfigAnswers

        return AgentConfigAnswers(self._config.grants)


@contextmanager
def _blamed(section: str, key: str = "") -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ConfigError([f"[{section}] {key}{error}"]) from None
