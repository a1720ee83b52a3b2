"""The kinds of submissions in the load: most are easy, the grader takes its time or misbehaves at some."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from tests.faults.graders import asking

TIMEOUT = 3
"""Seconds that the grader has."""


@frozen(kw_only=True)
class Kind:
    """A kind.

    :ivar body: what is sent.
    :ivar outcome: the word on the verdict, and on the dead letter.
    :ivar dead: whether it becomes a dead letter, too.
    :ivar share: how many of 10,000 are of this kind.
    """

    body: str
    outcome: str = "graded"
    dead: bool = False
    share: int


KINDS: Mapping[str, Kind] = {
    "easy": Kind(body=asking(), share=9600),
    "slow": Kind(body=asking(sleep=0.2), share=250),
    "retried": Kind(body=asking(failures=1), share=100),
    "mumbled": Kind(body=asking(do="answer no JSON"), outcome="bad-reply", dead=True, share=48),
    "late": Kind(body=asking(sleep=3600), outcome="timed-out", dead=True, share=2),
}
"""An id's part before the number → its kind. None of them kills the agent or hangs for ever: F10 does that."""
