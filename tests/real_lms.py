"""The LMS's own code as a process, for tests: submits to a gateway, and takes the callbacks.

::

    lms = await RealLMS.start(self, gateway="http://127.0.0.1:18040", password="secret", queue="q1")
    told = await lms.submit(1, "6.0", payload='{"kind": "number", "answer": 6}')
    await lms.until_graded(1)
    (await lms.state(1)).npoints
"""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from attrs import field, frozen
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from tests.cli_process import ROOT

PROGRAM = ROOT / "tests" / "real_lms_process.py"
PATIENCE = 120.0
POLL = 0.1


@frozen(kw_only=True)
class Told:
    """What the LMS told a learner who submitted.

    :ivar message: the queue's answer (its length), or the sentence with the reason.
    :ivar tries: how often they had to submit.
    """

    queued: bool
    message: str
    tries: int = 1


@frozen(kw_only=True)
class LearnerState:
    """A learner's problem.

    :ivar correctness: ``"correct"``, ``"incorrect"``, ``"incomplete"`` while it is graded, ``None`` after a refusal.
    :ivar npoints: ``None`` as long as there is no verdict.
    :ivar queued: whether they wait for a verdict.
    :ivar attempts: how often they submitted, successfully or not.
    """

    correctness: str | None
    npoints: float | None
    msg: str
    queued: bool
    attempts: int

    @property
    def graded(self) -> bool:
        """Whether their latest submission has its verdict."""
        return self.npoints is not None and not self.queued


@frozen(kw_only=True)
class Callbacks:
    """What became of the callbacks until now, in numbers.

    :ivar taken: changed a learner's score.
    :ivar repeated: had a key that was right once: duplicates.
    :ivar stale: had a key that was never right, or of an earlier submission that had no verdict.
    :ivar rejected: ``update_score`` couldn't read the reply, and so **wiped** the learner's attempt.
    :ivar raised: were answered 500, since the LMS's code raised something.
    :ivar missing: were answered 404.
    :ivar ordered: were answered as :meth:`RealLMS.answer_next` wanted it. Those that it let be recorded are in one of
        the other numbers too.
    :ivar troubles: a line about each of the latest that were rejected, raised or missing.
    """

    received: int = 0
    taken: int = 0
    repeated: int = 0
    stale: int = 0
    rejected: int = 0
    raised: int = 0
    missing: int = 0
    ordered: int = 0
    troubles: list[str] = field(factory=list)


@frozen(kw_only=True)
class Work:
    """What one learner submits. ``files`` replace the ``answer``, as in the LMS."""

    learner: int
    answer: str = ""
    payload: str = ""
    files: Mapping[str, bytes] = field(factory=dict)


class RealLMS(ProcessProtocol):
    """A running LMS. Made by :meth:`start`.

    :ivar url: where it listens.
    :ivar queue: where submissions go unless told otherwise.
    :ivar err: what it logged.
    """

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.url = ""
        self.err = ""
        self._line = b""
        self._last_id = 0
        self._asked: dict[int, Deferred[Any]] = {}
        self._ready: Deferred[None] = Deferred()
        self._gone: Deferred[None] = Deferred()

    @classmethod
    async def start(
        cls,
        case: Any,
        *,
        gateway: str,
        username: str = "lms",
        password: str,
        queue: str,
        callback_url: str | None = None,
        threads: int = 20,
    ) -> RealLMS:
        """Start one for the length of a test, and wait until it is ready, which takes it some seconds.

        :param gateway: the LMS's setting ``XQUEUE_INTERFACE["url"]``: without ``/xqueue``.
        :param callback_url: its setting ``XQUEUE_INTERFACE["callback_url"]``; by default, where it listens.
        :param threads: how many learners submit at once.
        """
        from twisted.internet import reactor

        lms = cls(queue)
        command = [sys.executable, str(PROGRAM)]
        reactor.spawnProcess(lms, command[0], command, env=None)  # type: ignore[attr-defined]
        case.addCleanup(lms.stop)
        lms._write(gateway=gateway, username=username, password=password, callback_url=callback_url, threads=threads)
        await lms._ready
        return lms

    def stop(self) -> Deferred[None]:
        """End it, at once. Fires when it is gone."""
        with suppress(ProcessExitedAlready):
            self._transport.signalProcess("KILL")
        gone: Deferred[None] = Deferred()
        self._gone.chainDeferred(gone)
        return gone

    # -- learners ------------------------------------------------------------------------------------------------------

    async def submit(
        self,
        learner: int,
        answer: str = "",
        *,
        payload: str = "",
        files: Mapping[str, bytes] | None = None,
        queue: str | None = None,
    ) -> Told:
        """Let a learner submit once.

        :param payload: the problem's ``grader_payload``.
        :param files: uploaded in place of the ``answer``.
        """
        return await self.submit_until_queued(learner, answer, payload=payload, files=files, queue=queue, patience=0)

    async def submit_until_queued(
        self,
        learner: int,
        answer: str = "",
        *,
        payload: str = "",
        files: Mapping[str, bytes] | None = None,
        queue: str | None = None,
        patience: float = 60.0,
        pause: float = 1.1,
    ) -> Told:
        """Let a learner submit, and again ``pause`` seconds later if they were told that it failed.

        A pause of more than a second makes for another key: the LMS makes it of the time in whole seconds.

        :param patience: seconds after which they give up.
        """
        told = await self._ask(
            "submit",
            learner=learner,
            answer=answer,
            payload=payload,
            files={name: b64encode(content).decode() for name, content in (files or {}).items()},
            queue=queue or self.queue,
            patience=patience,
            pause=pause,
        )
        return Told(**told)

    async def submit_all(self, work: Iterable[Work], *, patience: float = 60.0, pause: float = 1.1) -> list[Told]:
        """Let many learners submit until each is queued; ``threads`` of them do at once."""
        return await gatherResults(
            [
                Deferred.fromCoroutine(
                    self.submit_until_queued(
                        one.learner,
                        one.answer,
                        payload=one.payload,
                        files=one.files,
                        patience=patience,
                        pause=pause,
                    )
                )
                for one in work
            ],
            consumeErrors=True,
        )

    async def states(self) -> dict[int, LearnerState]:
        """The problems of all learners who ever submitted."""
        states = await self._ask("states")
        return {int(number): LearnerState(**state) for number, state in states.items()}

    async def state(self, learner: int) -> LearnerState:
        """One learner's problem."""
        return (await self.states())[learner]

    async def until_graded(self, *learners: int, patience: float = PATIENCE) -> dict[int, LearnerState]:
        """Wait until these learners, or all, have their verdicts. Returns the states of all."""
        from twisted.internet import reactor

        deadline = reactor.seconds() + patience  # type: ignore[attr-defined]
        while True:
            states = await self.states()
            waiting = [learner for learner in learners or states if not states[learner].graded]
            if not waiting:
                return states
            if reactor.seconds() > deadline:  # type: ignore[attr-defined]
                seen = await self.callbacks()
                raise AssertionError(
                    f"{len(waiting)} learners have no verdict within {patience:g} s, like {waiting[:10]}; {seen}"
                )
            await deferLater(reactor, POLL)  # type: ignore[arg-type]

    # -- callbacks -----------------------------------------------------------------------------------------------------

    async def callbacks(self) -> Callbacks:
        """What became of the callbacks until now."""
        return Callbacks(**await self._ask("callbacks"))

    async def answer_next(
        self, count: int, *, status: int = 200, delay: float = 0.0, body: str = "", record: bool = False
    ) -> None:
        """Let the LMS answer the next ``count`` callbacks out of order; a later call replaces what is left of it.

        :param count: 0 ends the outage.
        :param delay: seconds from the callback to its answer.
        :param record: whether they are taken all the same, before the delay.
        """
        await self._ask("answer_next", count=count, status=status, delay=delay, body=body, record=record)

    async def close(self) -> None:
        """Let the LMS hang up and refuse connections, until :meth:`open`. It can still submit."""
        await self._ask("close")

    async def open(self) -> None:
        """Let it listen again, where it did."""
        await self._ask("open")

    # -- the process ---------------------------------------------------------------------------------------------------

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Read its answers, keep its log."""
        if childFD == 2:
            self.err += data.decode(errors="replace")
            return
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._received(json.loads(line))

    def processEnded(self, reason: Failure) -> None:
        """It ended, and whoever waits for something learns that it won't come."""
        waiting = [*self._asked.values(), *([] if self.url else [self._ready])]
        self._asked.clear()
        for one in waiting:
            one.errback(AssertionError(f"the LMS ended:\n{self.err}"))
        self._gone.callback(None)

    def _received(self, line: Mapping[str, Any]) -> None:
        if "url" in line:
            self.url = line["url"]
            self._ready.callback(None)
        elif "problem" in line:
            self._asked.pop(line["id"]).errback(AssertionError(f"the LMS couldn't: {line['problem']}"))
        else:
            self._asked.pop(line["id"]).callback(line["answer"])

    def _ask(self, command: str, **arguments: object) -> Deferred[Any]:
        self._last_id += 1
        answered: Deferred[Any] = Deferred()
        self._asked[self._last_id] = answered
        self._write(id=self._last_id, command=command, arguments=arguments)
        return answered

    def _write(self, **line: object) -> None:
        self._transport.write(json.dumps(line).encode() + b"\n")

    @property
    def _transport(self) -> Any:
        return self.transport
