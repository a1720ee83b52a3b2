"""The programs of the demo, from an LMS to a grader and back: each a process, told where the others are.

::

    LMS stand-in ──▶ gateway ──▶ RabbitMQ ──▶ agent ──▶ grader
         ▲                          │  ▲       │
         └────────── updater ◀──────┘  └───────┘
                        └──▶ database
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as WaitedLongEnough
from twisted.internet.task import deferLater

import edxagent
from edxagent.amqp.session import Session
from edxagent.cli.children import Child, Children
from edxagent.errors import ChannelClosed, EdxagentError
from edxagent.lms.gateway.passwords import PasswordHash

HOST = "127.0.0.1"
QUEUE = "6002x-problems"
RESULTS = "grading.results"
USER = "lms"
READY_SECONDS = 30.0
POLL_SECONDS = 0.1
REPORT_SECONDS = 0.2
SEED = 6002


@frozen
class Checkout:
    """What of the project the demo needs beside the package."""

    root: Path
    twistd: str

    @classmethod
    def find(cls) -> Checkout:
        """:raises EdxagentError: something is missing."""
        root = Path(edxagent.__file__).resolve().parent.parent
        for file in ("examples/xserver.py", "examples/lms.py", "etc/agent.ini", "etc/lms.ini"):
            if not (root / file).exists():
                raise EdxagentError(f"the demo runs from a checkout of the project only: there is no {root / file}")
        beside = Path(sys.executable).with_name("twistd")
        twistd = str(beside) if beside.exists() else shutil.which("twistd")
        if twistd is None:
            raise EdxagentError(f"there is no twistd beside {sys.executable} or in PATH; install Twisted there")
        return cls(root, twistd)


class Circle:
    """The programs.

    :param broker: RabbitMQ's URL.
    :param ports: free ones, for the gateway, the LMS and the grader.
    :param folder: for databases, files and the journal; somebody else removes it.
    :param concurrency: submissions graded at once.
    :ivar gateway: its URL, as an LMS is told.
    :ivar database: the file with the scores.
    :ivar ledger: the file with what became of each submission.
    """

    def __init__(
        self,
        reactor: Any,
        children: Children,
        checkout: Checkout,
        *,
        broker: str,
        ports: Sequence[int],
        folder: Path,
        concurrency: int,
    ) -> None:
        self._reactor = reactor
        self._children = children
        self._checkout = checkout
        self._gateway_port, self._lms_port, self._grader_port = ports
        self._password = token_urlsafe(12)
        self._lms_scores = folder / "lms.scores"
        self.gateway = f"http://{HOST}:{self._gateway_port}/xqueue"
        self.database = folder / "scores.db"
        self.ledger = folder / "ledger.db"
        self._environment = {
            **os.environ,
            # So that twistd finds its plugins, and the examples the package, where nothing is installed.
            "PYTHONPATH": os.pathsep.join(filter(None, [str(checkout.root), os.environ.get("PYTHONPATH")])),
            "EDXAGENT_BROKER_URL": broker,
            "EDXAGENT_CONCURRENCY": str(concurrency),
            "EDXAGENT_JOURNAL": str(folder / "journal"),
            "EDXAGENT_GRADER_URL": f"http://{HOST}:{self._grader_port}/",
            "EDXAGENT_LMS_URL": f"http://{HOST}:{self._lms_port}",
            "EDXAGENT_LMS_PASSWORD_HASH": str(PasswordHash.of(self._password)),
            "EDXAGENT_FILES_FOLDER": str(folder / "files"),
            "EDXAGENT_FILES_URL": f"http://{HOST}:{self._gateway_port}/files/",
            "EDXAGENT_DATABASE_URL": f"sqlite:///{self.database}",
            "EDXAGENT_LEDGER_URL": f"sqlite:///{self.ledger}",
        }

    async def start(self, session: Session) -> None:
        """Start the grader, the agent and the LMS side; wait until they are at work.

        :param session: with the broker, to see whether somebody takes from its queues.
        :raises EdxagentError: it takes too long.
        """
        command = self._example("xserver.py", *_listen(self._grader_port))
        grader = self._children.start("grader", command, self._environment)
        agent = self._twistd("agent", "edxagent", "agent.ini")
        lms_side = self._twistd("LMS side", "edxagent-lms", "lms.ini", *_listen(self._gateway_port))
        signs = [
            (grader, grader.says("listening on ")),
            (lms_side, lms_side.says("listening at ")),
            (lms_side, lms_side.says("(publish): connected to ")),
        ]
        for child, sign in signs:
            await self._in_time(child, sign)
        for child, queue in ((agent, QUEUE), (lms_side, RESULTS)):
            await self._in_time(child, Deferred.fromCoroutine(self._served(session, queue)))

    def start_lms(self, count: int) -> Child:
        """Start the LMS, which lets ``count`` learners submit and ends when each has a score."""
        command = [
            *self._lms(count),
            f"--seed={SEED}",
            f"--scores={self._lms_scores}",
            f"--report-every={REPORT_SECONDS}",
            f"--deadline={120 + count / 5}",
        ]
        return self._children.start("LMS", command, {**self._environment, "LMS_PASSWORD": self._password}, ends=True)

    def lms_scores(self) -> str:
        """What the LMS wrote about each learner; see ``--scores`` of ``examples/lms.py``."""
        return self._lms_scores.read_text()

    def lms_command(self, count: int) -> str:
        """What to type to have more learners."""
        return f"LMS_PASSWORD={self._password} {shlex.join(self._lms(count))}"

    def _lms(self, count: int) -> list[str]:
        where = (f"--gateway={self.gateway}", f"--username={USER}", f"--queue={QUEUE}", *_listen(self._lms_port))
        return self._example("lms.py", *where, "--unreadable", f"--count={count}")

    def _example(self, program: str, *options: str) -> list[str]:
        return [sys.executable, str(self._checkout.root / "examples" / program), *options]

    def _twistd(self, name: str, program: str, config: str, *options: str) -> Child:
        file = self._checkout.root / "etc" / config
        command = [self._checkout.twistd, "--nodaemon", "--pidfile=", program, f"--config={file}", *options]
        return self._children.start(name, command, self._environment)

    async def _in_time(self, child: Child, ready: Deferred[Any]) -> None:
        try:
            await ready.addTimeout(READY_SECONDS, self._reactor)
        except WaitedLongEnough:
            raise EdxagentError(
                f"the {child.name} wasn't at work {READY_SECONDS:.0f} s after its start; its last words were:\n"
                f"{child.last_words()}"
            ) from None

    async def _served(self, session: Session, queue: str) -> None:
        """Wait until somebody takes from a queue."""
        channel = await session.open_channel()
        while True:
            try:
                if (await channel.declare_queue(queue, passive=True)).consumers:
                    await channel.close()
                    return
            except ChannelClosed:  # it isn't there yet
                channel = await session.open_channel()
            await deferLater(self._reactor, POLL_SECONDS)


def _listen(port: int) -> tuple[str]:
    return (f"--listen=tcp:{port}:interface={HOST}",)
