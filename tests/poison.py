"""A grader for agents that are real processes, which writes down what it does, and dies of some submissions.

The answer says what it does: ``poison`` kills the agent; ``slow`` takes seconds; ``stubborn`` never ends, cancelled or
not; anything else is right after a moment.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from zope.interface import implementer

from edxagent.config.keys import REQUIRED, Key
from edxagent.config.parsers import path
from edxagent.graders.rehearsal import verdict
from edxagent.interfaces import GraderTools, IGrader, IGraderFactory
from edxagent.model import GraderRequest, GraderResponse

KIND = "tests.poison:factory"
MOMENT = 0.05
SLOW = 3.0


@implementer(IGrader)
@frozen
class PoisonedGrader:
    """See the module.

    :ivar diary: a file that gets a line, ``PID begins ID`` or ``PID ends ID``, for all that it does.
    """

    clock: Any
    diary: str

    async def grade(self, request: GraderRequest) -> GraderResponse:
        """See :meth:`edxagent.interfaces.IGrader.grade`."""
        self._write("begins", request)
        try:
            await deferLater(self.clock, SLOW if request.student_response == "slow" else MOMENT)
            if request.student_response == "poison":
                os.kill(os.getpid(), signal.SIGKILL)
            while request.student_response == "stubborn":
                await _until_cancelled()
        finally:
            self._write("ends", request)
        return GraderResponse(reply=verdict())

    def _write(self, what: str, request: GraderRequest) -> None:
        with open(self.diary, "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {what} {request.submission}\n")


async def _until_cancelled() -> None:
    try:
        await Deferred()
    except CancelledError:
        return


@implementer(IGraderFactory)
class PoisonedFactory:
    """The kind :data:`KIND`."""

    kind = KIND
    keys = (Key("diary", path, REQUIRED, "The file that gets a line for all that it does."),)

    def build(self, options: Mapping[str, Any], tools: GraderTools) -> IGrader:
        """See :meth:`edxagent.interfaces.IGraderFactory.build`."""
        return PoisonedGrader(tools.reactor, options["diary"])


factory = PoisonedFactory()


class Diary:
    """What the graders of all agents of a test wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def lines(self) -> list[tuple[str, str, str]]:
        """Process, ``begins`` or ``ends``, submission."""
        found = [line.split() for line in self.path.read_text().splitlines()]
        return [(process, what, submission) for process, what, submission in found]

    def starts(self, submission: str) -> int:
        """How often it was begun."""
        return sum(line[1:] == ("begins", submission) for line in self.lines())

    def being_graded(self, submission: str) -> bool:
        """Whether the last that was done with it is that it was begun."""
        return [what for _, what, one in self.lines() if one == submission][-1:] == ["begins"]

    def neighbours(self) -> dict[str, set[str]]:
        """Submission → those that the same process graded while it graded it, since agents had died of it."""
        lines = self.lines()
        processes = list(dict.fromkeys(process for process, _, _ in lines))
        suspects: set[str] = set()
        found: dict[str, set[str]] = {}
        for process in processes:
            running: set[str] = set()
            for one, what, submission in lines:
                if one != process:
                    continue
                if what == "ends":
                    running.discard(submission)
                    suspects.discard(submission)
                    continue
                running.add(submission)
                for each in running & suspects:
                    found.setdefault(each, set()).update(running - {each})
            suspects |= running
        return found
