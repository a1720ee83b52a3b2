"""The whole circle, for end-to-end tests: real LMS → gateway → broker → agent → grader → updater → real LMS.

Every program is a process of its own, but for the grader, a web server in the test's own: so a test says with a
function how is graded, and sees what was.
"""

from __future__ import annotations

import json
import socket
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from edxagent.lms.gateway.passwords import PasswordHash
from edxagent.model import RESULTS_RETRY, dead_queue_of, retry_name
from edxagent.testing.http_server import RogueServer, Visit, response
from tests.agentprocess import PATIENCE, AgentProcess, Sections
from tests.amqp_support import known_to_the_disk
from tests.cli_process import until
from tests.gateway_support import HOST
from tests.lmsprocess import PASSWORD, USER, LMSProcess, LMSTestCase
from tests.real_lms import LearnerState, RealLMS

GATEWAY = ("gateway", "users")
RETRY_DELAYS = (0.2, 0.5, 1.0)
UPDATER = ("updater", "sink:lms", "sink:scores")
T = TypeVar("T", bound=AgentProcess)
SECRETS = ("lms_key", PASSWORD)
"""What no log may hold."""


@frozen(kw_only=True)
class Asked:
    """What the grader was asked.

    :ivar files: name → URL.
    :ivar told: the request as it came.
    """

    answer: str
    payload: str | None
    files: Mapping[str, str] = field(factory=dict)
    told: str = field(repr=False)

    @classmethod
    def read(cls, told: bytes) -> Asked:
        """Read a request."""
        outer = json.loads(told)
        body = json.loads(outer["xqueue_body"])
        return cls(
            answer=body["student_response"],
            payload=body["grader_payload"],
            files=json.loads(outer["xqueue_files"]),
            told=told.decode(),
        )


class Grader:
    """A grader.

    :ivar grade: returns the reply: bytes as they are, anything else as JSON. May be changed at any time.
    :ivar asked: what it was asked until now.
    """

    _log = Logger()

    def __init__(self, grade: Callable[[Asked], Awaitable[object]]) -> None:
        self.grade = grade
        self.asked: list[Asked] = []
        self._server = RogueServer(self._visited)

    async def start(self, case: Any) -> str:
        """Work for the length of a test. Returns the URL."""
        from twisted.internet import reactor

        await self._server.start(reactor)
        case.addCleanup(lambda: Deferred.fromCoroutine(self._server.stop()))
        return self._server.url

    def _visited(self, visit: Visit) -> None:
        answering = Deferred.fromCoroutine(self._answer(visit, Asked.read(visit.asked[-1].body)))
        answering.addErrback(lambda failure: self._log.failure("the test's grader failed", failure))

    async def _answer(self, visit: Visit, asked: Asked) -> None:
        self.asked.append(asked)
        reply = await self.grade(asked)
        visit.send(response(reply if isinstance(reply, bytes) else json.dumps(reply).encode()))


@frozen(kw_only=True)
class Score:
    """A row of the database that the scores are written into.

    :ivar learner: their number.
    """

    submission: str
    learner: int
    outcome: str
    correct: bool
    score: float
    msg: str


class CircleTestCase(LMSTestCase):
    """A test with a whole circle, whose parts it starts by :meth:`close_circle`, or one by one.

    :ivar learners: the LMS, that they sit in front of.
    :ivar grader: replies what :meth:`grade` returns.
    :ivar processes: every process of ours that was started.
    """

    timeout = 300.0
    learners: RealLMS
    grader: Grader

    async def set_up(self) -> None:
        """Start the LMS and the grader, choose where everything is."""
        await super().set_up()
        self.processes: list[AgentProcess] = []
        self.grader = Grader(self.grade)
        self.grader_url = await self.grader.start(self)
        self.gateway_port = free_port()
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.learners = await RealLMS.start(
            self,
            gateway=f"http://{HOST}:{self.gateway_port}",
            username=USER,
            password=PASSWORD,
            queue=self.requests,
        )

    async def grade(self, asked: Asked) -> object:
        """How is graded unless a test says otherwise: the answer is the score, 1 is all, 0 or a part of it is wrong."""
        score = float(asked.answer)
        return {"correct": score == 1, "score": score, "msg": f"<p>{asked.answer}</p>"}

    # -- the parts -----------------------------------------------------------------------------------------------------

    async def close_circle(self, agent: Mapping[str, Sections] | None = None, **sections: Sections) -> None:
        """Start what is missing: an LMS side, with ``sections``, and an agent, with those in ``agent``."""
        lms = self.start_part(*GATEWAY, *UPDATER, **sections)
        grading = self.start_grading(self.grading_config(**(agent or {})))
        await lms.ready("publish", "results")
        await lms.port()
        await grading.ready()

    def start_part(self, *parts: str, **sections: Sections) -> LMSProcess:
        """Start an LMS side of some ``parts``, sections that by themselves fit into the circle; it isn't ready yet."""
        return self.start_again(self.part_config(*parts, **sections))

    def part_config(self, *parts: str, **sections: Sections) -> str:
        """The configuration file of an LMS side."""
        defaults: dict[str, Sections] = {
            "gateway": {
                "listen": f"tcp:{self.gateway_port}:interface={HOST}",
                "files_folder": self.folder / "files",
                "files_url": f"http://{HOST}:{self.gateway_port}/files/",
            },
            "users": {USER: PasswordHash.of(PASSWORD)},
            "updater": {"queue": self.results, "retry_delays": " ".join(map(str, RETRY_DELAYS)), "breaker_pause": 0.5},
            "sink:lms": {"kind": "callback", "hosts": self.learners.url},
            "sink:scores": {"kind": "database", "url": f"sqlite:///{self.folder / 'scores.db'}"},
            "ledger": {"url": self.ledger_url},
        }
        wanted = (*parts, "ledger", *sections)
        merged = {name: {**defaults.get(name, {}), **sections.get(name, {})} for name in wanted}
        return self.write_lms_config(*(name for name in GATEWAY if name not in wanted), **merged)

    def start_again(self, config: str) -> LMSProcess:
        """Start an LMS side."""
        return self._started(self.start_lms(config))

    def start_grading(self, config: str) -> AgentProcess:
        """Start an agent; it isn't ready yet."""
        return self._started(self.start_agent(config))

    def grading_config(self, **sections: Sections) -> str:
        """The configuration file of an agent whose grader is ours."""
        return self.write_config(**{"grader": {"kind": "http", "url": self.grader_url}, **sections})

    def _started(self, process: T) -> T:
        self.processes.append(process)
        return process

    # -- what came of it -----------------------------------------------------------------------------------------------

    @property
    def ledger_url(self) -> str:
        """Where it is written down what becomes of each submission."""
        return f"sqlite:///{self.folder / 'ledger.db'}"

    def scores(self) -> list[Score]:
        """What is in the database."""
        path = self.folder / "scores.db"
        if not path.exists():
            return []
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database, suppress(sqlite3.OperationalError):
            rows = database.execute("SELECT submission, student, outcome, correct, score, msg FROM edxagent_scores")
            return [
                Score(
                    submission=row[0],
                    learner=int(row[1]),
                    outcome=row[2],
                    correct=bool(row[3]),
                    score=row[4],
                    msg=row[5],
                )
                for row in rows
            ]
        return []  # the table isn't there yet

    async def until_scores(self, count: int) -> list[Score]:
        """Wait until so many submissions have a row in the database."""
        await until(lambda: len(self.scores()) >= count)
        return self.scores()

    async def until_quiet(self) -> None:
        """Wait until nothing is under way any more: no request, and no result, wherever it waits."""
        waiting = [retry_name(RESULTS_RETRY, delay) for delay in RETRY_DELAYS]
        deadline = time.monotonic() + PATIENCE
        while held := await self.held_in(self.requests, self.results, *waiting):
            self.assertLess(time.monotonic(), deadline, f"{held} requests and results are still under way")

    def known_to_the_disk(self) -> bool:
        """Whether RabbitMQ may be killed without losing queues."""
        retries = (retry_name(RESULTS_RETRY, delay) for delay in RETRY_DELAYS)
        return known_to_the_disk(self.node, self.requests, self.results, *retries)

    async def dead_letters(self) -> tuple[int, int]:
        """How many requests and how many results are in the dead-letter queues."""
        return await self.ready_in(self.dead), await self.ready_in(dead_queue_of(self.results))

    async def assert_nothing_odd(self, secrets: Iterable[str] = ()) -> None:
        """Fail if the LMS ever saw something that it can't take, or one of our logs holds what it shouldn't."""
        seen = await self.learners.callbacks()
        self.assertEqual((seen.rejected, seen.raised, seen.missing), (0, 0, 0), seen)
        for process in self.processes:
            self.assert_clean(process, (*SECRETS, *secrets))


def graded(correct: bool, points: float, msg: str, attempts: int = 1) -> LearnerState:
    """What a learner sees once they have their verdict."""
    correctness = "correct" if correct else "incorrect"
    return LearnerState(correctness=correctness, npoints=points, msg=msg, queued=False, attempts=attempts)


def verdict_on(learner: int) -> tuple[bool, float, str]:
    """A verdict that can't pass for another learner's: whether they are right, their points, what they read."""
    return learner % 3 == 0, learner / 8, f"<p>Learner {learner}</p>"


def free_port() -> int:
    """A port where nobody listens, for a program that is killed and must listen there again."""
    with closing(socket.socket()) as taken:
        taken.bind((HOST, 0))
        return int(taken.getsockname()[1])


def pause(seconds: float) -> Deferred[None]:
    """Between two tries."""
    from twisted.internet import reactor

    return deferLater(reactor, seconds)
