"""The life of one submission, from the broker's delivery to its ack. Begin with :meth:`SubmissionLife.handle`."""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve
from twisted.internet.defer import CancelledError
from twisted.internet.defer import TimeoutError as TimeIsOver
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from edxagent.agent.ending import Announcer, Ending
from edxagent.agent.results import ResultPublisher
from edxagent.config.values import AgentConfig
from edxagent.errors import GraderError, MalformedRequest
from edxagent.interfaces import IDelivery, IGrader, IHeldDelivery
from edxagent.limits import FairSlots
from edxagent.model import Outcome, Submission
from edxagent.verdict import check_verdict
from edxagent.wire.request import decode_request, grader_request, requeued_request, submission_id
from edxagent.wire.result import Phases
from edxagent.words import shorten

MANY_RETURNS = 10
"""From this ``x-delivery-count`` on a request goes back as a new message: a broker drops one that was returned too
often (RabbitMQ's quorum queues count each return towards ``x-delivery-limit``, 20 by default from 4.0 on)."""


def returned_often(delivery: IDelivery) -> bool:
    """Whether a request shouldn't be returned once more as it is."""
    returns = delivery.properties.headers.get("x-delivery-count")
    return type(returns) is int and returns >= MANY_RETURNS


class SubmissionLife:
    """Takes each delivery through its life.

    :param grader: has its deadline around it already.
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
        clock: IReactorTime,
        wall_clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._grader = grader
        self._slots = slots
        self._results = results
        self._announcer = Announcer(
            name=config.name, grader=config.grader.kind, results=config.results.queue, failure=config.failure
        )
        self._clock = clock
        self._wall_clock = wall_clock

    async def handle(self, delivery: IHeldDelivery) -> None:
        """Decode → wait for a slot → grade, with a deadline → publish, confirmed → ack.

        The slot is kept until the broker has the verdict: when it can't be published, the agent fills up and takes no
        more. Cancelling gives the request back to its queue.
        """
        phases = Phases(received=self._wall_clock())
        has_slot = False
        try:
            try:
                submission = decode_request(
                    delivery.body, delivery.properties, delivery.queue, self._config.max_request
                )
                await self._wait_for_slot(submission.queue)
                has_slot = True
                delivery.begin()
                phases = evolve(phases, started=self._wall_clock())
                ending = await self._grade(submission)
            except MalformedRequest as error:
                ending = Ending(outcome=error.outcome, reason=str(error), header=error.header)
            phases = evolve(phases, finished=self._wall_clock())
            for message in self._announcer.messages(delivery, ending, phases, self._wall_clock()):
                await self._results.publish(message)
            done_with = True
        except (CancelledError, TimeIsOver):
            ending = Ending(outcome=Outcome.CANCELLED, reason="it goes back to its queue")
            done_with = await self._give_back_as_new(delivery)
        finally:
            if has_slot:
                self._slots.release()
        settled = delivery.ack() if done_with else delivery.requeue()
        self._report(delivery, ending, phases, settled)

    async def _wait_for_slot(self, queue: str) -> None:
        waiting = self._slots.acquire(queue)
        if not waiting.called:
            waiting.addTimeout(self._config.hold_limit, self._clock)
        await waiting

    async def _grade(self, submission: Submission) -> Ending:
        try:
            response = await self._grader.grade(grader_request(submission))
            limits = self._config.results
            verdict = check_verdict(response.reply, max_size=limits.max_reply, max_score=limits.max_score)
        except GraderError as error:
            return Ending(outcome=error.outcome, reason=str(error), header=submission.header)
        except CancelledError:
            raise
        except (Exception, SystemExit) as error:
            self._log.failure("the grader raised what it must not", submission=submission.id, queue=submission.queue)
            reason = f"the grader raised {type(error).__name__}"
            return Ending(outcome=Outcome.CRASHED, reason=reason, header=submission.header)
        return Ending(outcome=Outcome.GRADED, verdict=verdict, header=submission.header)

    async def _give_back_as_new(self, delivery: IHeldDelivery) -> bool:
        """Publish a request that was returned often as a new message; whether the broker has it."""
        if not returned_often(delivery):
            return False
        return await self._results.publish_once(requeued_request(delivery.queue, delivery.body, delivery.properties))

    def _report(self, delivery: IHeldDelivery, ending: Ending, phases: Phases, settled: bool) -> None:
        now = self._wall_clock()
        report = self._log.info if ending.outcome in (Outcome.GRADED, Outcome.CANCELLED) else self._log.warn
        report(
            "{outcome}: {submission} from {queue} in {seconds:.3f} s, {waited:.3f} of them waiting{because}{again}",
            outcome=str(ending.outcome),
            submission=shorten(submission_id(delivery.body, delivery.properties), 255),
            queue=delivery.queue,
            seconds=round(now - phases.received, 6),
            waited=round((phases.started or now) - phases.received, 6),
            because=f": {shorten(ending.reason)}" if ending.reason else "",
            again="" if settled else "; its connection is gone, so it will come again",
        )
