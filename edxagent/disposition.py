"""What happens to a request, by the outcome of its submission: one table, no exceptions from it.

A failure that may be tried again is published to a retry queue until its limit is reached; only then its row counts.
No row requeues but ``cancelled``, so a poisonous request can't circle.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from attrs import evolve, frozen

from edxagent.model import Outcome


class Limit(Enum):
    """The key of ``[retry]`` that says when a submission that fails so isn't tried again."""

    TIMEOUTS = "timeout_attempts"
    CRASHES = "crash_attempts"
    TIME = "give_up_after"


@frozen(kw_only=True)
class Disposition:
    """What to do, in this order, each step confirmed before the next: dead letter, verdict, then settle.

    :ivar dead_letter: publish the request to its dead-letter queue.
    :ivar tell_learner: publish a verdict; for any outcome but ``graded`` one that says that it wasn't their fault.
    :ivar requeue: give it back to its queue; otherwise ack.
    :ivar retried_until: before all that: publish it to a retry queue and ack, until this is reached; ``None`` = never.
    """

    dead_letter: bool
    tell_learner: bool
    requeue: bool = False
    retried_until: Limit | None = None


def _failed(*, told: bool, retried_until: Limit | None = None) -> Disposition:
    return Disposition(dead_letter=True, tell_learner=told, retried_until=retried_until)


# A failure verdict is a 0 that closes the attempt, and the LMS ignores a later one; so where the fault is ours and a
# replay can still grade it, the learner isn't told.
DEFAULT_TABLE: Mapping[Outcome, Disposition] = {
    Outcome.GRADED: Disposition(dead_letter=False, tell_learner=True),
    Outcome.MALFORMED: _failed(told=True),
    Outcome.UNAVAILABLE: _failed(told=False, retried_until=Limit.TIME),
    Outcome.TIMED_OUT: _failed(told=True, retried_until=Limit.TIMEOUTS),
    Outcome.CRASHED: _failed(told=True, retried_until=Limit.CRASHES),
    Outcome.BAD_REPLY: _failed(told=True, retried_until=Limit.CRASHES),
    Outcome.QUARANTINED: _failed(told=False),
    Outcome.CANCELLED: Disposition(dead_letter=False, tell_learner=False, requeue=True),
}


def dispose(outcome: Outcome, *, tell_learner: Mapping[str, bool], header_known: bool = True) -> Disposition:
    """The row for ``outcome``.

    :param tell_learner: outcome word → whether the operator wants the learner told, for the failing outcomes.
    :param header_known: without the LMS's header there is nobody to tell.
    """
    row = DEFAULT_TABLE[outcome]
    if not row.dead_letter:
        return row
    wanted = tell_learner.get(str(outcome), row.tell_learner)
    return evolve(row, tell_learner=wanted and header_known)
