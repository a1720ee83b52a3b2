"""What happens to a request, by the outcome of its submission: one table, no exceptions from it.

Every failing outcome has a single attempt. A ladder of retries would be one more column, ``retry_after``, read before
``dead_letter``; nothing else here would change.

No row requeues but ``cancelled``, so a poisonous request can't circle.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from edxagent.model import Outcome


@frozen(kw_only=True)
class Disposition:
    """What to do, in this order, each step confirmed before the next: dead letter, verdict, then settle.

    :ivar dead_letter: publish the request to its dead-letter queue.
    :ivar tell_learner: publish a verdict; for any outcome but ``graded`` one that says that it wasn't their fault.
    :ivar requeue: give it back to its queue; otherwise ack.
    """

    dead_letter: bool
    tell_learner: bool
    requeue: bool = False


_DONE = Disposition(dead_letter=False, tell_learner=True)
_BACK = Disposition(dead_letter=False, tell_learner=False, requeue=True)
_FAILED_AND_TOLD = Disposition(dead_letter=True, tell_learner=True)
_FAILED_QUIETLY = Disposition(dead_letter=True, tell_learner=False)

# A failure verdict is a 0 that closes the attempt, and the LMS ignores a later one; so where the fault is ours and a
# replay can still grade it, the learner isn't told.
DEFAULT_TABLE: Mapping[Outcome, Disposition] = {
    Outcome.GRADED: _DONE,
    Outcome.MALFORMED: _FAILED_AND_TOLD,
    Outcome.UNAVAILABLE: _FAILED_QUIETLY,
    Outcome.TIMED_OUT: _FAILED_AND_TOLD,
    Outcome.CRASHED: _FAILED_AND_TOLD,
    Outcome.BAD_REPLY: _FAILED_AND_TOLD,
    Outcome.QUARANTINED: _FAILED_QUIETLY,
    Outcome.CANCELLED: _BACK,
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
    return _FAILED_AND_TOLD if wanted and header_known else _FAILED_QUIETLY
