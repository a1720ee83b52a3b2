"""The life of one submission, from the broker's delivery to its ack. Begin with :meth:`SubmissionLife.handle`."""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve
from twisted.internet.defer import CancelledError
from twisted.internet.defer import TimeoutError as TimeIsOver
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from edxagent.agent.ending import Announcer, Ending, Sequel
from edxagent.agent.grader_breaker import GraderBreaker
from edxagent.agent.quarantine import Quarantine
from edxagent.agent.results import ResultPublisher
from edxagent.agent.retries import RetryPolicy
from edxagent.agent.returns import returned_often
from edxagent.config.values import AgentConfig
from edxagent.errors import GraderError, GraderUnavailable, MalformedRequest
from edxagent.interfaces import IGrader, IHeldDelivery
from edxagent.limits import FairSlots
from edxagent.model import Outcome, Submission
from edxagent.verdict import check_verdict
from edxagent.wire.request import decode_request, grader_request, requeued_request, submission_id
from edxagent.wire.result import Phases
from edxagent.words import shorten


class SubmissionLife:
    """Takes each delivery through its life.

    :param grader: has its deadline around it already.
    :param breaker: hears how the grader does.
    :param quarantine: knows what agents died of.
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
        clock: IReactorTime,
        wall_clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._grader = grader
        self._slots = slots
        self._results = results
        self._breaker = breaker
        self._quarantine = quarantine
        self._announcer = Announcer(
            name=config.name,
            grader=config.grader.kind,
            results=config.results.queue,
            failure=config.failure,
            retries=RetryPolicy(config.retry),
        )
        self._clock = clock
        self._wall_clock = wall_clock

    async def handle(self, delivery: IHeldDelivery) -> None:
        """Decode → wait for a slot → grade, with a deadline → publish what follows, confirmed → ack.

        What follows is the verdict; or a retry, which is the request on its way to a retry queue; or a dead letter, and
        perhaps a verdict that says so. The slot is kept until the broker has it: while that can't be published, the
        agent fills up and takes no more. Cancelling gives the request back to its queue.
        """
        phases = Phases(received=self._wall_clock())
        has_slot = False
        sequel = Sequel()
        try:
            try:
                submission = decode_request(
                    delivery.body, delivery.properties, delivery.queue, self._config.max_request
                )
                await self._wait_for_slot(delivery)
                has_slot = True
                delivery.begin()
                phases = evolve(phases, started=self._wall_clock())
                ending = await self._grade(submission)
            except MalformedRequest as error:
                ending = Ending(outcome=error.outcome, reason=str(error), header=error.header)
            phases = evolve(phases, finished=self._wall_clock())
            sequel = self._announcer.sequel(delivery, ending, phases, self._wall_clock())
            for message in sequel.messages:
                await self._results.publish(message)
            done_with = True
        except (CancelledError, TimeIsOver):
            ending, sequel = Ending(outcome=Outcome.CANCELLED, reason="it goes back to its queue"), Sequel()
            done_with = await self._give_back_as_new(delivery)
        finally:
            if has_slot:
                self._slots.release()
        settled = delivery.ack() if done_with else delivery.requeue()
        if ending.outcome is Outcome.QUARANTINED and settled:
            self._quarantine.forget(submission.id)  # one that comes again, not settled, mustn't be graded after all
        self._report(delivery, ending, phases, sequel, settled)

    async def _wait_for_slot(self, delivery: IHeldDelivery) -> None:
        # Alone, so that no neighbour is there to be suspected too, should the agent die of this one.
        alone = self._quarantine.is_suspect(delivery)
        waiting = self._slots.acquire(delivery.queue, alone=alone)
        if not waiting.called:
            # When its turn has come, all who have slots still have theirs; and nobody gets another meanwhile.
            neighbours = self._config.grader.timeout if alone else 0.0
            waiting.addTimeout(self._config.hold_limit + neighbours, self._clock)
        await waiting

    async def _grade(self, submission: Submission) -> Ending:
        """Have it graded, unless agents died of it too often. The breaker hears how that went."""
        if self._quarantine.is_convicted(submission.id):
            reason = "agents died while they graded it, so often that it isn't graded any more"
            return Ending(outcome=Outcome.QUARANTINED, reason=reason, header=submission.header)
        era = self._breaker.era
        with self._quarantine.watch(submission.id):
            ending = await self._ask(submission)
        if self._breaker.report(ending.outcome, ending.reason, era=era) or ending.outcome is Outcome.UNAVAILABLE:
            return ending
        # The grader fails at any submission just now, so this isn't held against the one that it failed at.
        reason = f"{ending.outcome}, as others before it: {ending.reason}"
        return evolve(ending, outcome=Outcome.UNAVAILABLE, reason=reason)

    async def _ask(self, submission: Submission) -> Ending:
        try:
            response = await self._grader.grade(grader_request(submission))
            limits = self._config.results
            verdict = check_verdict(response.reply, max_size=limits.max_reply, max_score=limits.max_score)
        except GraderError as error:
            return Ending(
                outcome=error.outcome,
                reason=str(error),
                header=submission.header,
                retry_after=error.retry_after if isinstance(error, GraderUnavailable) else None,
            )
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

    def _report(self, delivery: IHeldDelivery, ending: Ending, phases: Phases, sequel: Sequel, settled: bool) -> None:
        now = self._wall_clock()
        report = self._log.info if ending.outcome in (Outcome.GRADED, Outcome.CANCELLED) else self._log.warn
        then = "" if sequel.again_in is None else f"; tried again in {sequel.again_in:g} s"
        then += "" if settled else "; its connection is gone, so it will come again"
        report(
            "{outcome}: {submission} from {queue} in {seconds:.3f} s, {waited:.3f} of them waiting{because}{then}",
            outcome=str(ending.outcome),
            submission=shorten(submission_id(delivery.body, delivery.properties), 255),
            queue=delivery.queue,
            seconds=round(now - phases.received, 6),
            waited=round((phases.started or now) - phases.received, 6),
            because=f": {shorten(ending.reason)}" if ending.reason else "",
            then=then,
        )
