"""A grader at work: what a configuration makes of it, and the submissions that it is grading or about to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred, maybeDeferred

from edxagent.agent.life import SubmissionLife
from edxagent.agent.results import ResultPublisher
from edxagent.config.values import AgentConfig
from edxagent.errors import ConfigError
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


class Grading:
    """One grader, from its start until its last submission has ended.

    :param grader: is started and stopped if it is a service.
    :param wall_clock: seconds since the epoch; ``clock`` may be a monotonic one.
    """

    def __init__(
        self,
        *,
        config: AgentConfig,
        grader: IGrader,
        slots: FairSlots,
        results: ResultPublisher,
        clock: Any,
        wall_clock: Callable[[], float],
    ) -> None:
        self._grader = grader
        self._lives = Tasks()
        self._life = SubmissionLife(
            config=config,
            grader=DeadlineGrader(grader, config.grader.timeout, clock),
            slots=slots,
            results=results,
            clock=clock,
            wall_clock=wall_clock,
        )

    def __len__(self) -> int:
        """How many submissions haven't ended yet."""
        return len(self._lives)

    def start(self) -> None:
        """Start the grader."""
        if IService.providedBy(self._grader):
            self._grader.startService()

    def receive(self, delivery: IHeldDelivery) -> Deferred[None]:
        """Take a submission through its life; fires when that has ended. Cancelling gives it back to its queue."""
        return self._lives.launch(self._life.handle(delivery), "a submission's life")

    def cancel(self) -> None:
        """Give everything back that hasn't ended yet."""
        self._lives.cancel()

    def when_idle(self) -> Deferred[None]:
        """Fires when every submission has ended; cancelling stops the waiting only."""
        return self._lives.when_idle()

    async def stop(self) -> None:
        """Stop the grader."""
        if IService.providedBy(self._grader):
            await maybeDeferred(self._grader.stopService)
