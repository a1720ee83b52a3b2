"""A grader that does to the agent what a submission's ``grader_payload`` says, for agents that are real processes.

The payload is a JSON object, in which everything may be missing: ``failures``, the number of attempts at which it is
unavailable; ``sleep``, seconds that it takes; ``do``, one of :data:`DEEDS`.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from typing import Any

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from zope.interface import implementer

from edxagent.errors import GraderUnavailable
from edxagent.graders.rehearsal import verdict
from edxagent.interfaces import GraderTools, IGrader, IGraderFactory
from edxagent.model import GraderRequest, GraderResponse

KIND = "tests.faults.graders:obedient"


async def _die() -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still here")


async def _raise() -> bytes:
    raise ZeroDivisionError("a bug in a grader")


async def _hang() -> bytes:
    while True:
        try:
            await Deferred()
        except CancelledError:
            continue  # it goes its own way


async def _overflow() -> bytes:
    return await _overflow()


async def _deep() -> bytes:
    return b"[" * 100_000


async def _not_utf8() -> bytes:
    return b'{"correct": true, "score": 1, "msg": "caf\xe9"}'


async def _not_json() -> bytes:
    return b"<html>It works!</html>"


DEEDS = {
    "die": _die,
    "raise": _raise,
    "hang": _hang,
    "overflow the stack": _overflow,
    "answer deeply": _deep,
    "answer no UTF-8": _not_utf8,
    "answer no JSON": _not_json,
}


def asking(**wishes: Any) -> str:
    """An ``xqueue_body`` whose payload says so."""
    return json.dumps({"student_response": "42", "grader_payload": json.dumps(wishes), "student_info": "{}"})


@implementer(IGrader)
@frozen
class ObedientGrader:
    """See the module."""

    clock: IReactorTime

    async def grade(self, request: GraderRequest) -> GraderResponse:
        """See :meth:`edxagent.interfaces.IGrader.grade`."""
        wishes = json.loads(request.grader_payload or "{}")
        if "sleep" in wishes:
            await deferLater(self.clock, wishes["sleep"])
        if request.attempt <= wishes.get("failures", 0):
            raise GraderUnavailable("a rehearsed outage")
        if "do" in wishes:
            return GraderResponse(reply=await DEEDS[wishes["do"]]())
        return GraderResponse(reply=verdict())


@implementer(IGraderFactory)
class ObedientFactory:
    """The kind :data:`KIND`."""

    kind = KIND
    keys = ()

    def build(self, options: Mapping[str, Any], tools: GraderTools) -> IGrader:
        """See :meth:`edxagent.interfaces.IGraderFactory.build`."""
        return ObedientGrader(tools.reactor)


obedient = ObedientFactory()
