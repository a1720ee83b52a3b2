"""The real edx-submissions, in an LMS of its own, as a process for tests.

::

    lms = await EdxSubmissionsLMS.start(self)
    ids = await lms.create("q1", 3)
    ... have a bridge poll lms.url ...
    await lms.until_all_are("retired")
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from tests.certificates import Pair
from tests.cli_process import ROOT

PROGRAM = ROOT / "tests" / "edx_submissions_process.py"
USERNAME, PASSWORD = "bridge", "pässword"
NOT_IN_THE_GROUP = "learner"
PATIENCE = 120.0
POLL = 0.05


@frozen(kw_only=True)
class Row:
    """A submission, as the LMS has it.

    :ivar status: ``pending``, ``pulled``, ``retired``, ``failed`` or ``retry``.
    :ivar key: under which it was handed out.
    :ivar reply: the verdict that was recorded: JSON text.
    :ivar points: the points of each score that was recorded.
    """

    id: int
    queue: str
    status: str
    key: str | None
    reply: str | None
    failures: int
    points: list[int]


class EdxSubmissionsLMS(ProcessProtocol):
    """A running LMS. Made by :meth:`start`.

    :ivar url: its root.
    :ivar err: what it logged.
    """

    def __init__(self, scheme: str) -> None:
        self.url = ""
        self.err = ""
        self._scheme = scheme
        self._line = b""
        self._last_id = 0
        self._asked: dict[int, Deferred[Any]] = {}
        self._gone: Deferred[None] = Deferred()

    @classmethod
    async def start(
        cls, case: Any, *, stale: float = 300.0, latency: float = 0.0, tls: Pair | None = None
    ) -> EdxSubmissionsLMS:
        """Start one for the length of a test, and wait until it listens, which takes it some seconds.

        :param stale: seconds after which what was pulled is handed out again: upstream's 5 minutes.
        :param latency: seconds that each request takes at least.
        """
        from twisted.internet import reactor

        folder = Path(case.mktemp()).absolute()
        folder.mkdir()
        lms = cls("http" if tls is None else "https")
        command = [sys.executable, str(PROGRAM)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        reactor.spawnProcess(lms, command[0], command, env=environment)  # type: ignore[attr-defined]
        case.addCleanup(lms.stop)
        settings: dict[str, Any] = {"folder": str(folder), "stale": stale, "latency": latency}
        if tls is not None:
            settings.update(certificate=tls.certificate, key=tls.key)
        listening: Deferred[int] = Deferred()
        lms._asked[0] = listening
        lms._write(settings)
        lms.url = f"{lms._scheme}://127.0.0.1:{await listening}"
        return lms

    def stop(self) -> Deferred[None]:
        """End it; fires when it is gone."""
        transport: Any = self.transport
        with suppress(ProcessExitedAlready):
            transport.signalProcess("KILL")
        return self._gone

    async def create(self, queue: str, count: int = 1, **more: Any) -> list[int]:
        """Have learners submit; returns the submissions' ids.

        :param more: ``files`` (name → text), ``points`` (how many are possible), ``answer``.
        """
        ids: list[int] = await self._do("create", queue=queue, count=count, **more)
        return ids

    async def rows(self) -> list[Row]:
        """Every submission."""
        return [Row(**row) for row in await self._do("rows")]

    async def statuses(self) -> dict[str, int]:
        """Status → how many submissions have it."""
        statuses: dict[str, int] = await self._do("statuses")
        return statuses

    async def events(self) -> list[dict[str, Any]]:
        """The scores that the LMS's courseware was told of: ``id``, ``points``, ``reply``."""
        events: list[dict[str, Any]] = await self._do("events")
        return events

    async def count(self, request: str) -> int:
        """How many requests there were, such as ``"POST put_result"``; ``"at once"`` is the most at one time."""
        counts: dict[str, int] = await self._do("counts")
        return counts.get(request, 0)

    async def fault(self, word: str, times: int = 1, **fault: Any) -> None:
        """Treat the next requests for a path, named by its last word, in a special way.

        :param fault: ``status`` (and ``body``) = answer that at once; ``delay`` = wait so many seconds first; ``then``
            = answer with that status after the request has taken effect.
        """
        await self._do("fault", word=word, times=times, **fault)

    async def no_faults(self) -> None:
        """Treat requests well from now on."""
        await self._do("no_faults")

    async def fail_signals(self, times: int) -> None:
        """Have the courseware raise so often when it is told of a score."""
        await self._do("fail_signals", times=times)

    async def end_sessions(self) -> None:
        """Log everybody out."""
        await self._do("end_sessions")

    async def age(self, seconds: float) -> None:
        """Make every submission's last change of status older."""
        await self._do("age", seconds=seconds)

    async def down(self) -> None:
        """Listen no more."""
        await self._do("down")

    async def up(self) -> None:
        """Listen again, where it did before."""
        await self._do("up")

    async def until_all_are(self, status: str, patience: float = PATIENCE) -> None:
        """Poll until every submission has that status."""
        from twisted.internet import reactor

        deadline = reactor.seconds() + patience  # type: ignore[attr-defined]
        while set(statuses := await self.statuses()) != {status}:
            if reactor.seconds() > deadline:  # type: ignore[attr-defined]
                raise AssertionError(f"not all became {status} within {patience:g} s: {statuses}\n{self.err}")
            await deferLater(reactor, POLL)  # type: ignore[arg-type]

    def outReceived(self, data: bytes) -> None:
        """Answers."""
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            self._asked.pop(answer["id"]).callback(answer["result"])

    def errReceived(self, data: bytes) -> None:
        """Its log."""
        self.err += data.decode(errors="replace")

    def processEnded(self, reason: Failure) -> None:
        """It is gone."""
        asked, self._asked = self._asked, {}
        for waiter in asked.values():
            waiter.errback(AssertionError(f"the LMS ended:\n{self.err}"))
        self._gone.callback(None)

    async def _do(self, what: str, **arguments: Any) -> Any:
        self._last_id += 1
        asked: Deferred[Any] = Deferred()
        self._asked[self._last_id] = asked
        self._write({"id": self._last_id, "do": what, "with": arguments})
        return await asked

    def _write(self, message: dict[str, Any]) -> None:
        transport: Any = self.transport
        transport.write(json.dumps(message).encode() + b"\n")
