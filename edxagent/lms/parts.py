"""What the LMS side is made of, by its configuration.

Each part is imported only when it is configured: a gateway alone needs no database, an updater alone no web server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen
from twisted.application.service import IService

from edxagent.amqp.link import BrokerLink, Session
from edxagent.amqp.publisher import ConfirmingPublisher
from edxagent.amqp.topology import ensure_topology
from edxagent.config.lms_values import BridgeConfig, GatewayConfig, LedgerConfig, LMSConfig, SinkConfig, UpdaterConfig
from edxagent.errors import BrokerRefused, ConfigError
from edxagent.interfaces import IPublisher, IResultSink, SinkTools
from edxagent.lms.contracts import BRIDGE_ORIGIN, IAgentConfig

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

    :ivar publishing: the connection that all of them publish on, with ``publisher``.
    :ivar sinks: name → sink, but for those of bridges.
    :ivar bridges: name → bridge.
    """

    publishing: BrokerLink
    publisher: IPublisher
    ledger: Ledger | None
    sinks: Mapping[str, IResultSink]
    bridges: Mapping[str, Bridge]
    updater: Updater | None
    pull: PullService | None
    gateway: Gateway | None

    @property
    def sink_services(self) -> dict[str, IService]:
        """Name → sink, of those that want to be started and stopped."""
        return {name: IService(sink) for name, sink in self.sinks.items() if IService.providedBy(sink)}

    @property
    def answering(self) -> dict[str, IResultSink]:
        """Name → whoever takes verdicts, bridges too."""
        return {**self.sinks, **{f"{BRIDGE_ORIGIN}{name}": bridge.sink for name, bridge in self.bridges.items()}}


class PartsMaker:
    """Makes the parts, none of them started.

    :param sinks: name → sink, in the place of the configured ones.
    :ivar config: what they are made by, and what each new session of :attr:`Parts.publishing` sees to.
    :ivar own_sinks: the parameter ``sinks``.
    """

    def __init__(
        self,
        config: LMSConfig,
        reactor: Any,
        *,
        on_refused: Callable[[BrokerRefused], None],
        on_stuck: Callable[[], object],
        wall_clock: Callable[[], float],
        sinks: Mapping[str, IResultSink] | None,
    ) -> None:
        self.config = config
        self.own_sinks = sinks
        self._reactor = reactor
        self._on_refused = on_refused
        self._on_stuck = on_stuck
        self._wall_clock = wall_clock

    def make(self) -> Parts:
        """Make them.

        :raises ConfigError: what is configured doesn't fit together, or can't be used.
        """
        config = self.config
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
        sinks = self.own_sinks
        parts = Parts(
            publishing=publishing,
            publisher=publisher,
            ledger=ledger,
            sinks={sink.name: self.sink(sink, config) for sink in config.sinks} if sinks is None else sinks,
            bridges={bridge.name: self.bridge(bridge, config, publisher, ledger) for bridge in config.bridges},
            updater=None,
            pull=None,
            gateway=None,
        )
        if config.gateway is not None:
            pull = self._pull(config.gateway, publishing, publisher)
            parts = evolve(parts, pull=pull, gateway=self._gateway(config.gateway, publishing, pull, ledger))
        if config.updater is not None:
            parts = evolve(parts, updater=self._updater(config.updater, parts.answering, publisher, ledger))
        return parts

    async def _prepare(self, session: Session) -> None:
        """See to the queues that submissions are published to."""
        config = None
        while config is not self.config:
            config = self.config
            await ensure_submission_queues(session, config)

    def _ledger(self, config: LedgerConfig) -> Ledger:
        from edxagent.lms.database import Database
        from edxagent.lms.ledger import Ledger

        with blamed("ledger", "url: "):
            database = Database(config.url, self._reactor)
        return Ledger(database, keep=config.keep, reactor=self._reactor, wall_clock=self._wall_clock)

    def bridge(self, config: BridgeConfig, whole: LMSConfig, publisher: IPublisher, ledger: Ledger | None) -> Bridge:
        """Make a bridge, by a configuration that ``whole`` has it in.

        :raises ConfigError: it can't be used.
        """
        from edxagent.lms.bridge.service import Bridge

        if ledger is None:
            raise ConfigError([f"[{config.origin}] a bridge must know what it has fetched already; write [ledger]"])
        with blamed(config.origin):
            return Bridge(config, publisher, ledger, self._reactor, self._wall_clock, messages=whole.failure.messages)

    def sink(self, config: SinkConfig, whole: LMSConfig) -> IResultSink:
        """Make a sink; as :meth:`bridge`."""
        from edxagent.lms.sinks.registry import find_sink_factory

        tools = SinkTools(
            name=config.name,
            reactor=self._reactor,
            concurrency=(whole.updater or UpdaterConfig()).concurrency,
            wall_clock=self._wall_clock,
        )
        with blamed(f"sink:{config.name}"):
            return find_sink_factory(config.kind).build(config.options, tools)

    def _updater(
        self, config: UpdaterConfig, sinks: Mapping[str, IResultSink], publisher: IPublisher, ledger: Ledger | None
    ) -> Updater:
        from edxagent.lms.updater.service import Updater

        return Updater(
            config=config,
            broker=self.config.broker,
            name=self.config.name,
            sinks=sinks,
            publisher=publisher,
            ledger=ledger,
            reactor=self._reactor,
            wall_clock=self._wall_clock,
            drain_timeout=self.config.drain_timeout,
            on_refused=self._on_refused,
            on_stuck=self._on_stuck,
        )

    def _pull(self, config: GatewayConfig, link: BrokerLink, publisher: IPublisher) -> PullService:
        from edxagent.lms.gateway.pull_service import PullService

        return PullService(
            name=self.config.name,
            config=config,
            broker=self.config.broker,
            failure=self.config.failure,
            results=results_key(self.config),
            publisher=publisher,
            reactor=self._reactor,
            on_refused=self._on_refused,
            wall_clock=self._wall_clock,
            obstacle=partial(_obstacle, link),
        )

    def _gateway(
        self, config: GatewayConfig, publishing: BrokerLink, pull: PullService, ledger: Ledger | None
    ) -> Gateway:
        from edxagent.lms.gateway.service import Gateway

        return Gateway(
            config=config,
            link=publishing,
            pull=pull,
            agent_config=agent_answers(self.config),
            ledger=ledger,
            reactor=self._reactor,
            wall_clock=self._wall_clock,
        )


def agent_answers(config: LMSConfig) -> IAgentConfig | None:
    """What agents are told; ``None`` if none may ask."""
    if not config.grants:
        return None
    from edxagent.lms.gateway.agent_config import AgentConfigAnswers

    return AgentConfigAnswers(config.grants)


def results_key(config: LMSConfig) -> str:
    """The routing key of verdicts whose request names no other."""
    return RESULTS if config.updater is None else config.updater.queue


async def ensure_submission_queues(session: Session, config: LMSConfig) -> None:
    """See to the queues that submissions are published to; raises as
    :func:`edxagent.amqp.topology.ensure_agent_topology`.
    """
    queues = [queue for part in (config.gateway, *config.bridges) if part is not None for queue in part.queues]
    if queues:
        await ensure_topology(session, config.broker, queues=dict.fromkeys(queues), results=results_key(config))


@contextmanager
def blamed(section: str, key: str = "") -> Iterator[None]:
    """Have a ``ValueError`` say where it comes from, as :class:`ConfigError`."""
    try:
        yield
    except ValueError as error:
        raise ConfigError([f"[{section}] {key}{error}"]) from None


def _obstacle(link: BrokerLink) -> str | None:
    """Why nothing can be published at the moment, if so."""
    if link.session is None:
        return "there is no connection to the broker"
    return link.session.blocked
