"""A grader at work: what a configuration makes of it, and the submissions that it is grading or about to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger

from edxagent.agent.grader_breaker import GraderBreaker
from edxagent.agent.life import SubmissionLife
from edxagent.agent.quarantine import Quarantine
from edxagent.agent.results import ResultPublisher
from edxagent.config.values import AgentConfig
from edxagent.errors import ConfigError, plain_reason
from edxagent.graders.registry import find_factory
from edxagent.interfaces import GraderTools, IGrader, IHeldDelivery
from edxagent.limits import DeadlineGrader, FairSlots
from edxagent.tasks import Tasks


def configured_grader(config: AgentConfig, reactor: Any) -> IGrader:
    """Make the grader that a configuration names.

    :raises ConfigError: the grader's options don't fit each other.
    """
    tools = GraderTools(reactor=reactor, concurrency=config.concurrency, max_reply=config.results.max_reply)
    try:
        return find_factory(config.grader.kind).build(config.grader.options, tools)
    except ValueError as error:
        raise ConfigError([f"[grader] {error}"]) from None


def same_grader(old: AgentConfig, new: AgentConfig) -> bool:
    """Whether :func:`configured_grader` would make the same of both."""

    def ingredients(config: AgentConfig) -> tuple[Any, ...]:
        return config.grader.kind, config.grader.options, config.concurrency, config.results.max_reply

    return ingredients(old) == ingredients(new)


class Grading:
    """One grader, from its start until its last submission has ended.

    :param grader: is started and stopped if it is a service.
    :param wall_clock: seconds since the epoch; ``clock`` may be a monotonic one.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        config: AgentConfig,
        grader: IGrader,
        slots: FairSlots,
        results: ResultPublisher,
        breaker: GraderBreaker,
        quarantine: Quarantine,
        clock: Any,
        wall_clock: Callable[[], float],
    ) -> None:
        self._grader = grader
        self._slots = slots
        self._results = results
        self._breaker = breaker
        self._quarantine = quarantine
        self._clock = clock
        self._wall_clock = wall_clock
        self._started = False
        self._lives = Tasks()
        self._ends = Tasks()
        self._life = self._make_life(config)

    @property
    def count(self) -> int:
        """How many submissions haven't ended yet."""
        return len(self._lives)

    def use(self, config: AgentConfig) -> None:
        """Treat the submissions that come from now on by another configuration, with the same grader."""
        self._life = self._make_life(config)

    def start(self) -> None:
        """Start the grader.

        :raises ConfigError: it doesn't start.
        """
        if IService.providedBy(self._grader):
            try:
                self._grader.startService()
            except Exception as error:
                self._log.failure("the grader didn't start")
                raise ConfigError([f"[grader] it doesn't start: {plain_reason(error)}"]) from error
        self._started = True

    def receive(self, delivery: IHeldDelivery) -> Deferred[None]:
        """Take a submission through its life; fires when that has ended. Cancelling gives it back to its queue."""
        return self._lives.launch(self._life.handle(delivery), "a submission's life")

    def cancel(self) -> None:
        """Give everything back that hasn't ended yet."""
        self._lives.cancel()

    def when_idle(self) -> Deferred[None]:
        """Fires when every submission has ended; cancelling stops the waiting only."""
        return self._lives.when_idle()

    def stop(self) -> Deferred[None]:
        """Stop the grader, unless that was done; fires when it has stopped. Cancelling stops the waiting only."""
        if self._started:
            self._started = False
            self._ends.launch(self._stop_grader(), "stopping the grader")
        return self._ends.when_idle()

    async def _stop_grader(self) -> None:
        if IService.providedBy(self._grader):
            await maybeDeferred(self._grader.stopService)

    def _make_life(self, config: AgentConfig) -> SubmissionLife:
        return SubmissionLife(
            config=config,
            grader=DeadlineGrader(self._grader, config.grader.timeout, self._clock),
            slots=self._slots,
            results=self._results,
            breaker=self._breaker,
            quarantine=self._quarantine,
            clock=self._clock,
            wall_clock=self._wall_clock,
        )
