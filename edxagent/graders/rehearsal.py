"""Graders that look at nothing: to rehearse load (``sleep``), verdicts (``fixed``) and trouble (``failing``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from attrs import field, frozen
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from zope.interface import implementer

from edxagent.config import parsers
from edxagent.config.keys import Key
from edxagent.errors import BadReply, GraderCrashed, GraderError, GraderTimedOut, GraderUnavailable
from edxagent.interfaces import GraderTools, IGrader, IGraderFactory
from edxagent.model import GraderRequest, GraderResponse

FAILURES: dict[str, type[GraderError]] = {
    str(error.outcome): error for error in (GraderUnavailable, GraderTimedOut, GraderCrashed, BadReply)
}


def verdict(correct: bool = True, score: float = 1.0, msg: str = "<p>A rehearsal: nobody looked at this.</p>") -> bytes:
    """A reply as the LMS wants it."""
    return json.dumps({"correct": correct, "score": score, "msg": msg}).encode()


def lot(submission: str) -> float:
    """A number from 0 up to 1, evenly spread over submissions, and always the same for the same one."""
    return int.from_bytes(sha256(submission.encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48


@implementer(IGrader)
@frozen(kw_only=True)
class SleepGrader:
    """Lets a time pass, then says correct. How long depends on the submission's id alone."""

    clock: IReactorTime
    shortest: float
    longest: float

    async def grade(self, request: GraderRequest) -> GraderResponse:
        """See :meth:`edxagent.interfaces.IGrader.grade`."""
        seconds = self.shortest + lot(request.submission) * (self.longest - self.shortest)
        await deferLater(self.clock, seconds)
        return GraderResponse(reply=verdict())


@implementer(IGrader)
@frozen(kw_only=True)
class FixedGrader:
    """Gives everybody the same verdict."""

    reply: bytes = field(repr=False)

    async def grade(self, request: GraderRequest) -> GraderResponse:
        """See :meth:`edxagent.interfaces.IGrader.grade`."""
        return GraderResponse(reply=self.reply)


@implementer(IGrader)
@frozen(kw_only=True)
class FailingGrader:
    """Fails a share of the submissions, the same ones each time they come, and says correct to the others."""

    error: type[GraderError]
    share: float

    async def grade(self, request: GraderRequest) -> GraderResponse:
        """See :meth:`edxagent.interfaces.IGrader.grade`."""
        if lot(request.submission) < self.share:
            raise self.error("a rehearsed failure: this grader is of kind failing")
        return GraderResponse(reply=verdict())


_pause = parsers.seconds_between(0, parsers.LONGEST_TIME)


@implementer(IGraderFactory)
class SleepFactory:
    """Kind ``sleep``."""

    kind = "sleep"
    keys = (
        Key("min", _pause, 0.1, "the shortest time that a submission takes, in seconds"),
        Key("max", _pause, 0.1, "the longest time that one takes; not below min"),
    )

    def build(self, options: Mapping[str, Any], tools: GraderTools) -> IGrader:
        """See :meth:`edxagent.interfaces.IGraderFactory.build`."""
        if options["max"] < options["min"]:
            raise ValueError("max is below min: raise max, or lower min")
        return SleepGrader(clock=tools.reactor, shortest=options["min"], longest=options["max"])


@implementer(IGraderFactory)
class FixedFactory:
    """Kind ``fixed``."""

    kind = "fixed"
    keys = (
        Key("correct", parsers.boolean, True, "whether everybody is right"),
        Key("score", parsers.number, 1.0, "the points for everybody"),
        Key("msg", parsers.text, "<p>A rehearsal: nobody looked at this.</p>", "what learners see, as HTML"),
    )

    def build(self, options: Mapping[str, Any], tools: GraderTools) -> IGrader:
        """See :meth:`edxagent.interfaces.IGraderFactory.build`."""
        return FixedGrader(reply=verdict(options["correct"], options["score"], options["msg"]))


@implementer(IGraderFactory)
class FailingFactory:
    """Kind ``failing``."""

    kind = "failing"
    keys = (
        Key("outcome", parsers.choice(*FAILURES), "crashed", f"how submissions fail: {', '.join(FAILURES)}"),
        Key("share", parsers.share, 1.0, "which share of them does, from 0 to 1"),
    )

    def build(self, options: Mapping[str, Any], tools: GraderTools) -> IGrader:
        """See :meth:`edxagent.interfaces.IGraderFactory.build`."""
        return FailingGrader(error=FAILURES[options["outcome"]], share=options["share"])


sleep = SleepFactory()
fixed = FixedFactory()
failing = FailingFactory()
