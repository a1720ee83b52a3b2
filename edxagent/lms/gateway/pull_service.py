"""The pull side as a service: its connection to the broker, and in which order it starts and stops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import evolve
from twisted.application.service import Service
from twisted.internet.defer import Deferred

from edxagent.agent.ending import Announcer
from edxagent.agent.results import ResultPublisher
from edxagent.amqp.channel import Channel
from edxagent.amqp.link import BrokerLink, Session
from edxagent.amqp.topology import ensure_request_queue, ensure_topology
from edxagent.config.lms_values import GatewayConfig
from edxagent.config.values import BrokerConfig, FailureConfig
from edxagent.errors import BrokerRefused, BrokerUnreachable
from edxagent.interfaces import IPublisher
from edxagent.lms.contracts import Reply
from edxagent.lms.gateway.channels import Channels
from edxagent.lms.gateway.pull import GRADER, Pull


class PullService(Service):
    """See :class:`edxagent.lms.contracts.IPull`.

    Stop it when no grader can reach it any more, and before the publisher.

    :param name: the program's, for the header ``x-agent`` and the broker's list of connections.
    :param results: the routing key in ``grading.results`` of verdicts whose request names no ``reply_to``.
    :param publisher: for verdicts.
    :param obstacle: why nothing can be published at the moment, if so.
    :param on_refused: is called when every broker has refused us in a way that only a person can mend.
    :param wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        name: str,
        config: GatewayConfig,
        broker: BrokerConfig,
        failure: FailureConfig,
        results: str,
        publisher: IPublisher,
        reactor: Any,
        on_refused: Callable[[BrokerRefused], object],
        wall_clock: Callable[[], float],
        obstacle: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._name = name
        self._queues = config.queues
        self._results = results
        self._broker = broker
        self._publisher = publisher
        self._reactor = reactor
        self._link = BrokerLink(
            reactor=reactor,
            config=broker,
            purpose="pull",
            name=name,
            prepare=self._prepare,
            on_refused=on_refused,
        )
        self._pull = Pull(
            config=self._with_lease(config),
            channels=Channels(open_channel=self._open_channel, missing=self._missing, most=config.max_leases),
            announcer=self._announcer(failure),
            results=self._result_publisher(),
            clock=reactor,
            wall_clock=wall_clock,
            obstacle=obstacle,
        )

    def use(self, config: GatewayConfig, failure: FailureConfig, results: str) -> None:
        """Go by another configuration from now on. What is out with a grader may be answered as it was told."""
        self._queues = config.queues
        self._results = results
        self._pull.use(self._with_lease(config), self._announcer(failure), self._result_publisher())

    async def get_queuelen(self, queue: str) -> Reply:
        """See :meth:`IPull.get_queuelen`."""
        return await self._pull.get_queuelen(queue)

    async def get_submission(self, queue: str) -> Reply:
        """See :meth:`IPull.get_submission`."""
        return await self._pull.get_submission(queue)

    async def put_result(self, header: str, body: str) -> Reply:
        """See :meth:`IPull.put_result`."""
        return await self._pull.put_result(header, body)

    def startService(self) -> None:
        """Connect."""
        super().startService()
        self._pull.open()
        self._link.startService()

    def stopService(self) -> Deferred[None]:
        """Pass on the verdicts that are here, give the rest back, close; fires when all that is done."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    def hurry(self) -> None:
        """Cut a stop short."""
        self._pull.hurry()
        self._link.hurry()

    async def _stop(self) -> None:
        await self._pull.close()
        await self._link.stopService()

    def _with_lease(self, config: GatewayConfig) -> GatewayConfig:
        # Half, so that the broker never takes back what somebody is still at, publishing included.
        return evolve(config, lease=min(config.lease, self._broker.consumer_timeout / 2))

    def _announcer(self, failure: FailureConfig) -> Announcer:
        return Announcer(name=self._name, grader=GRADER, results=self._results, failure=failure)

    def _result_publisher(self) -> ResultPublisher:
        return ResultPublisher(self._publisher, self._results, self._reactor)

    async def _prepare(self, session: Session) -> None:
        await ensure_topology(session, self._broker, queues=self._queues, results=self._results)

    async def _open_channel(self) -> Channel:
        return await self._session.open_channel()

    async def _missing(self, queue: str) -> None:
        await ensure_request_queue(self._session, self._broker, queue)

    @property
    def _session(self) -> Session:
        """Not waited for: xqueue-watcher hangs up after a second, and would ask again at once."""
        session = self._link.session
        if session is None:
            raise BrokerUnreachable("there is no connection to the broker")
        return session
