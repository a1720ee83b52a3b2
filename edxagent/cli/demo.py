"""``edxagent demo``: everything on one machine, started, tried out, checked and taken down again."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from attrs import define
from rich.console import Console
from rich.text import Text
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from edxagent.amqp.session import Session
from edxagent.cli.audit import TABLE, Learner, Row, count_rows, duration_of, read_learners, read_rows, records
from edxagent.cli.broker import connected
from edxagent.cli.children import Child, Children
from edxagent.cli.circle import QUEUE, Checkout, Circle
from edxagent.cli.progress import progress
from edxagent.cli.report import as_table, statistics
from edxagent.cli.running import Status, run
from edxagent.config.broker_url import broker_address
from edxagent.config.values import BrokerConfig, TLSConfig
from edxagent.errors import EdxagentError
from edxagent.model import Outcome, dead_queue_of
from edxagent.privatenode import PrivateNode, free_ports

SETTLE_SECONDS = 15.0
POLL_SECONDS = 0.1

_PROGRESS = re.compile(r"lms: (\d+) submitted, (\d+) have their score")
_REFUSAL = re.compile(r"lms: (learner \d+ couldn't submit: .+)")


@click.command()
@click.option(
    "--count", "-n", type=click.IntRange(1, 1_000_000), default=500, show_default=True, help="How many submissions."
)
@click.option(
    "--concurrency", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many are graded at once."
)
@click.option("--keep", is_flag=True, help="Stay up until Ctrl-C, and say how to talk to it.")
def demo(count: int, concurrency: int, keep: bool) -> None:
    """Watch learners' submissions go from an LMS to a grader, and their scores come back.

    Starts a private RabbitMQ, the LMS side, the agent, the grader in examples/xserver.py and the LMS in
    examples/lms.py, as processes of their own. Learners submit, some of them what nobody can read; what became of each
    is checked, in the LMS and in a database. Afterwards nothing is left of it. It runs from a checkout, with Debian's
    package rabbitmq-server installed.

    Exit status: 0 each learner has the right score; 1 one hasn't, or something couldn't be started, or died; 2 wrong
    usage; 3 the private RabbitMQ was lost; 130 after Ctrl-C.
    """
    run(lambda reactor: _Demo(reactor, Checkout.find(), count, concurrency, keep).run())


@define
class _Counts:
    """How far the LMS is, by its own words; the first one that says that a learner couldn't submit is told at once."""

    sent: int = 0
    answered: int = 0
    told: bool = False

    def read(self, line: str) -> None:
        """Take in a line of the LMS's output."""
        if match := _PROGRESS.fullmatch(line):
            self.answered = int(match[2])
            self.sent = max(int(match[1]), self.answered)  # a verdict may be there before the submission is answered
        elif not self.told and (match := _REFUSAL.fullmatch(line)):
            self.told = True
            _say(f"{match[1]} (learners try again)")


class _Demo:
    """One demo, from the broker's start to its end."""

    def __init__(self, reactor: Any, checkout: Checkout, count: int, concurrency: int, keep: bool) -> None:
        self._reactor = reactor
        self._checkout = checkout
        self._count = count
        self._concurrency = concurrency
        self._keep = keep
        self._node = PrivateNode(reactor)

    async def run(self) -> int:
        """Start everything, let the LMS submit, check, report; leave nothing."""
        children = None
        try:
            _say("starting a private RabbitMQ; this takes some ten seconds …")
            await self._node.start()
            # Logs and databases are in the node's folder: its keeper removes that even if we are killed.
            children = Children(self._reactor, self._node.folder)
            config = BrokerConfig(addresses=(broker_address(self._node.url, tls=TLSConfig()),))
            async with connected(self._reactor, config, "edxagent demo") as session:
                session.when_ended().addCallback(children.fail)
                return await children.guard(self._run(children, session))
        finally:
            if children is not None:
                await children.stop()
            await self._node.stop()

    async def _run(self, children: Children, session: Session) -> int:
        circle = Circle(
            self._reactor,
            children,
            self._checkout,
            broker=self._node.url,
            ports=free_ports(3),
            folder=self._node.folder,
            concurrency=self._concurrency,
        )
        _say("starting the grader, the agent and the LMS side …")
        await circle.start(session)
        _say("starting an LMS, where learners submit …")
        lms = circle.start_lms(self._count)
        summary = await self._summary_of(lms)
        learners = read_learners(circle.lms_scores())
        await self._until_all_are_in(circle.database)
        wrong = await self._wrong_queues(sum(learner.outcome != Outcome.GRADED for learner in learners))
        rows = read_rows(circle.database)
        status = self._report(learners, rows, summary, wrong)
        if self._keep:
            await self._stay(circle, rows)
        return status

    async def _summary_of(self, lms: Child) -> dict[str, Any]:
        """Watch the LMS to its end; what it counted."""
        counts, said = _Counts(), lms.says('{"submitted": ')
        lms.on_line(counts.read)
        try:
            with progress(self._reactor, counts, self._count, "with a score"):
                await lms.ended()
        except CancelledError:
            counts.told = True  # who can't submit from now on can't because we end it
            _say(f"stopped; {counts.sent} were submitted and {counts.answered} had their score until then")
            raise
        if not said.called:
            raise EdxagentError(f"the LMS failed; its last words were:\n{lms.last_words()}")
        summary: dict[str, Any] = json.loads('{"submitted": ' + await said)
        return summary

    async def _until_all_are_in(self, database: Path) -> None:
        """Wait, not for ever, until the database has every score; it may get them a little later than the LMS."""
        deadline = self._reactor.seconds() + SETTLE_SECONDS
        while count_rows(database) < self._count and self._reactor.seconds() < deadline:
            await deferLater(self._reactor, POLL_SECONDS)

    async def _wrong_queues(self, failures: int) -> list[str]:
        """Wait, not for ever, until there is nothing in any queue but the dead letters of so many failures.

        :returns: a line for each queue that holds something else.
        """
        expected = {dead_queue_of(QUEUE): failures}
        deadline = self._reactor.seconds() + SETTLE_SECONDS
        while True:
            # Only RabbitMQ's own tool counts what is under way, too.
            listed = json.loads(await self._node.rabbitmqctl("list_queues", "--formatter=json", "name", "messages"))
            wrong = {
                queue["name"]: queue["messages"]
                for queue in listed
                if queue["messages"] != expected.get(queue["name"], 0)
            }
            if not wrong or self._reactor.seconds() > deadline:
                return [f"{name} holds {count} messages, not {expected.get(name, 0)}" for name, count in wrong.items()]
            await deferLater(self._reactor, POLL_SECONDS)

    def _report(
        self, learners: Sequence[Learner], rows: Sequence[Row], summary: dict[str, Any], wrong_queues: Sequence[str]
    ) -> int:
        figures = statistics(
            records(learners, rows),
            seconds=duration_of(learners),
            repeated=summary["duplicates"] + summary["stale"],
        )
        console = Console(file=sys.stdout, highlight=False)
        if example := next((row for row in rows if row["outcome"] == Outcome.GRADED), None):
            console.print(Text("One score in full, as it is in the database", style="bold"))
            console.print(Text(_in_full(example)), soft_wrap=True)
            console.print()
        console.print(as_table(figures, f"{figures.sent} submissions to {QUEUE}"))
        for problem in wrong_queues:
            _say(problem)
        if figures.nothing or figures.surprised or wrong_queues or summary["wrong"] or summary["invalid"]:
            _say("not every submission ended as it must")
            return Status.FAILED
        print(
            f"Every submission ended as it must: {len(rows)} scores in the LMS, the same in the database.", flush=True
        )
        return Status.DONE

    async def _stay(self, circle: Circle, rows: Sequence[Row]) -> None:
        print(
            f"""
It is still running; Ctrl-C ends it.

  gateway        {circle.gateway}
  scores         {circle.database}, table {TABLE}
  broker         {self._node.url}
  queue          {QUEUE}
  dead letters   {dead_queue_of(QUEUE)}
  logs           {self._node.folder}/*.log

What became of a submission; more learners in the LMS; submissions that don't come from there:

  {_own_name()} trace --ledger sqlite:///{circle.ledger} {rows[-1]["submission"] if rows else "ID"}
  {circle.lms_command(100)}
  EDXAGENT_BROKER_URL={self._node.url} {_own_name()} send --queue {QUEUE} --count 100""",
            flush=True,
        )
        try:
            await Deferred()
        except CancelledError:
            _say("ending it …")


def _in_full(row: Row) -> str:
    return "\n".join(f"  {name}: {value}" for name, value in row.items())


def _own_name() -> str:
    """What to type to run this program once more."""
    return sys.argv[0] if Path(sys.argv[0]).name == "edxagent" else f"{sys.executable} -m edxagent.cli"


def _say(text: str) -> None:
    print(f"edxagent: {text}", file=sys.stderr, flush=True)
