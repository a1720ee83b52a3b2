"""How a submission ended, and the messages that say so: the same for every program that settles requests."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from edxagent.config.values import FailureConfig
from edxagent.disposition import dispose
from edxagent.interfaces import IDelivery
from edxagent.model import Message, Outcome, Verdict
from edxagent.verdict import failure_verdict
from edxagent.wire.dead_letter import encode_dead_letter
from edxagent.wire.request import submission_id
from edxagent.wire.result import Phases, encode_result


@frozen(kw_only=True)
class Ending:
    """How a submission ended. ``verdict`` is the grader's when it is ``graded``; ``header`` is the LMS's, if known."""

    outcome: Outcome
    reason: str = ""
    verdict: Verdict | None = None
    header: str | None = field(default=None, repr=False)


@frozen(kw_only=True)
class Announcer:
    """Turns endings into messages.

    :ivar name: who graded, for the header ``x-agent``.
    :ivar grader: with what, for ``x-grader``.
    :ivar results: the routing key in ``grading.results`` of verdicts whose request names no ``reply_to``.
    """

    name: str
    grader: str
    results: str
    failure: FailureConfig

    def messages(self, delivery: IDelivery, ending: Ending, phases: Phases, now: float) -> list[Message]:
        """What has to be published before the request may be acked, in order.

        :param now: seconds since the epoch.
        """
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
                    body=delivery.body, reason=ending.reason, told_learner=row.tell_learner, time=now, **common
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
        return messages
