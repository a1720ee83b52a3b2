"""How a submission ended, and the messages that say so: the same for every program that settles requests."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from edxagent.agent.retries import RetryPolicy
from edxagent.config.values import FailureConfig
from edxagent.disposition import dispose
from edxagent.interfaces import IDelivery
from edxagent.model import Message, Outcome, Verdict
from edxagent.verdict import failure_verdict
from edxagent.wire.dead_letter import encode_dead_letter
from edxagent.wire.request import submission_id
from edxagent.wire.result import Phases, encode_result
from edxagent.wire.retry import Attempts, encode_retry, read_attempts


@frozen(kw_only=True)
class Ending:
    """How an attempt ended.

    :ivar verdict: the grader's when it is ``graded``.
    :ivar header: the LMS's, if known.
    :ivar retry_after: seconds that the grader asked us to wait, if it did.
    """

    outcome: Outcome
    reason: str = ""
    verdict: Verdict | None = None
    header: str | None = field(default=None, repr=False)
    retry_after: float | None = None


@frozen(kw_only=True)
class Sequel:
    """What has to be published before the request may be acked, in order.

    :ivar again_in: seconds until the next attempt; ``None`` = there is none.
    """

    messages: tuple[Message, ...] = ()
    again_in: float | None = None


@frozen(kw_only=True)
class Announcer:
    """Turns endings into messages.

    :ivar name: who graded, for the header ``x-agent``.
    :ivar grader: with what, for ``x-grader``.
    :ivar results: the routing key in ``grading.results`` of verdicts whose request names no ``reply_to``.
    :ivar retries: ``None`` = every failure is the last.
    """

    name: str
    grader: str
    results: str
    failure: FailureConfig
    retries: RetryPolicy | None = None

    def messages(self, delivery: IDelivery, ending: Ending, phases: Phases, now: float) -> tuple[Message, ...]:
        """The messages of :meth:`sequel`."""
        return self.sequel(delivery, ending, phases, now).messages

    def sequel(self, delivery: IDelivery, ending: Ending, phases: Phases, now: float) -> Sequel:
        """What follows from an attempt's end.

        :param now: seconds since the epoch.
        """
        attempts = Attempts()
        if ending.outcome is not Outcome.GRADED:
            before = read_attempts(delivery.properties)
            attempts = before.failed(ending.outcome, reason=ending.reason, agent=self.name, now=now)
        if self.retries is not None:
            delay = self.retries.delay(ending.outcome, attempts, now=now, retry_after=ending.retry_after)
            if delay is not None:
                return Sequel(messages=(_retry(delivery, attempts, delay),), again_in=delay)
        return Sequel(messages=self._last_messages(delivery, ending, attempts, phases, now))

    def _last_messages(
        self, delivery: IDelivery, ending: Ending, attempts: Attempts, phases: Phases, now: float
    ) -> tuple[Message, ...]:
        row = dispose(ending.outcome, tell_learner=self.failure.tell_learner, header_known=ending.header is not None)
        common: dict[str, Any] = {
            "outcome": ending.outcome,
            "agent": self.name,
            "grader": self.grader,
            "queue": delivery.queue,
            "request": delivery.properties,
            "submission": submission_id(delivery.body, delivery.properties),
        }
        messages = []
        if row.dead_letter:
            messages.append(
                encode_dead_letter(
                    body=delivery.body,
                    reason=ending.reason,
                    attempts=attempts,
                    told_learner=row.tell_learner,
                    time=now,
                    **common,
                )
            )
        if row.tell_learner and ending.header is not None:
            messages.append(
                encode_result(
                    routing_key=delivery.properties.reply_to or self.results,
                    header=ending.header,
                    verdict=ending.verdict or failure_verdict(ending.outcome, self.failure.messages),
                    phases=phases,
                    **common,
                )
            )
        return tuple(messages)


def _retry(delivery: IDelivery, attempts: Attempts, delay: float) -> Message:
    return encode_retry(
        queue=delivery.queue,
        body=delivery.body,
        request=delivery.properties,
        submission=submission_id(delivery.body, delivery.properties),
        attempts=attempts,
        delay=delay,
    )
