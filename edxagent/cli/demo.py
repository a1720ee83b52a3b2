"""``edxagent demo``: everything on one machine, started, tried out, checked and taken down again."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from secrets import token_hex
from typing import Any

import click
from attrs import frozen
from rich.console import Console
from rich.text import Text
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

import edxagent
from edxagent.amqp.session import Session
from edxagent.cli.broker import connected, open_exchange
from edxagent.cli.children import Child, Children
from edxagent.cli.exchange import Exchange
from edxagent.cli.progress import progress
from edxagent.cli.report import Statistics, as_table, statistics
from edxagent.cli.running import Status, run
from edxagent.cli.submissions import generate
from edxagent.config.broker_url import broker_address
from edxagent.config.values import BrokerConfig, TLSConfig
from edxagent.errors import ChannelClosed, EdxagentError
from edxagent.model import dead_queue_of
from edxagent.privatenode import PrivateNode
from edxagent.wire.result import Result

QUEUE = "6002x-problems"
READY_SECONDS = 30.0
POLL_SECONDS = 0.1
ANSWER_SECONDS = 20.0
SEED = 6002


@click.command()
@click.option(
    "--count", "-n", type=click.IntRange(1, 1_000_000), default=500, show_default=True, help="How many submissions."
)
@click.option(
    "--concurrency", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many are graded at once."
)
@click.option("--keep", is_flag=True, help="Stay up until Ctrl-C, and say how to talk to it.")
def demo(count: int, concurrency: int, keep: bool) -> None:
    """Watch submissions being graded through a RabbitMQ that is there for the demo only.

    Starts a private RabbitMQ, the grader in examples/xserver.py and the agent, as processes of their own; sends
    submissions of every sort, also ones that nobody can read; and checks what became of each. Afterwards nothing is
    left of it. It runs from a checkout, with Debian's package rabbitmq-server installed.

    Exit status: 0 each submission ended as it must; 1 one didn't, or something couldn't be started; 2 wrong usage; 130
    after Ctrl-C.
    """
    run(lambda reactor: _Demo(reactor, _checkout(), count, concurrency, keep).run())


@frozen
class _Checkout:
    grader: Path
    config: Path
    root: Path
    twistd: str


def _checkout() -> _Checkout:
    root = Path(edxagent.__file__).resolve().parent.parent
    grader, config = root / "examples" / "xserver.py", root / "etc" / "agent.ini"
    for file in (grader, config):
        if not file.exists():
            raise EdxagentError(f"the demo runs from a checkout of the project only: there is no {file}")
    beside = Path(sys.executable).with_name("twistd")
    twistd = str(beside) if beside.exists() else shutil.which("twistd")
    if twistd is None:
        raise EdxagentError(f"there is no twistd beside {sys.executable} or in PATH; install Twisted there")
    return _Checkout(grader, config, root, twistd)


class _Demo:
    """One demo, from the broker's start to its end."""

    def __init__(self, reactor: Any, checkout: _Checkout, count: int, concurrency: int, keep: bool) -> None:
        self._reactor = reactor
        self._count = count
        self._concurrency = concurrency
        self._keep = keep
        self._checkout = checkout
        self._node = PrivateNode(reactor)

    async def run(self) -> int:
        """Start everything, send, report; leave nothing."""
        children = None
        try:
            _say("starting a private RabbitMQ; this takes some ten seconds …")
            await self._node.start()
            # Their logs are in the node's folder: its keeper removes that even if we are killed.
            children = Children(self._reactor, self._node.folder)
            return await children.guard(self._run(children))
        finally:
            if children is not None:
                await children.stop()
            await self._node.stop()

    async def _run(self, children: Children) -> int:
        config = BrokerConfig(addresses=(broker_address(self._node.url, tls=TLSConfig()),))
        async with connected(self._reactor, config, "edxagent demo") as session:
            agent = await self._start_programs(children, session)
            exchange = await open_exchange(
                session,
                reactor=self._reactor,
                wall_clock=time.time,
                config=config,
                queue=QUEUE,
                unanswered=2 * self._concurrency,
                timeout=ANSWER_SECONDS,
                dead_letters=True,
            )
            await self._send(exchange)
        figures = statistics(exchange.records, seconds=exchange.seconds, repeated=exchange.repeated)
        status = self._report(figures, exchange.example)
        if self._keep:
            await self._stay(agent)
        return status

    async def _start_programs(self, children: Children, session: Session) -> Child:
        _say("starting the grader and the agent …")
        here = self._checkout
        environment = {**os.environ, "PYTHONPATH": _with_path(os.environ, here.root)}
        grader = children.start(
            "grader", [sys.executable, str(here.grader), "--listen", "tcp:0:interface=127.0.0.1"], environment
        )
        url = await grader.says("listening on ")
        settings = {
            "EDXAGENT_BROKER_URL": self._node.url,
            "EDXAGENT_GRADER_URL": url,
            "EDXAGENT_CONCURRENCY": str(self._concurrency),
        }
        command = [here.twistd, "--nodaemon", "--pidfile=", "edxagent", "--config", str(here.config)]
        agent = children.start("agent", command, environment | settings)
        await self._until_served(session)
        return agent

    async def _until_served(self, session: Session) -> None:
        """Wait until the agent takes from its queue."""
        deadline = self._reactor.seconds() + READY_SECONDS
        channel = await session.open_channel()
        while self._reactor.seconds() < deadline:
            try:
                if (await channel.declare_queue(QUEUE, passive=True)).consumers:
                    await channel.close()
                    return
            except ChannelClosed:  # it isn't there yet
                channel = await session.open_channel()
            await deferLater(self._reactor, POLL_SECONDS)
        raise EdxagentError(f"the agent took nothing from {QUEUE} within {READY_SECONDS:.0f} s of its start")

    async def _send(self, exchange: Exchange) -> None:
        samples = generate(queue=QUEUE, run=f"demo-{token_hex(4)}", seed=SEED, unreadable=True)
        try:
            with progress(self._reactor, exchange, self._count):
                await exchange.run(islice(samples, self._count))
        except CancelledError:
            _say(f"stopped; {exchange.sent} were sent and {len(exchange.records)} answered until then")
            raise

    def _report(self, figures: Statistics, example: Result | None) -> int:
        console = Console(file=sys.stdout, highlight=False)
        if example is not None:
            console.print(Text("One verdict in full", style="bold"))
            console.print(Text(_in_full(example)), soft_wrap=True)
            console.print()
        console.print(as_table(figures, f"{figures.sent} submissions to {QUEUE}"))
        if figures.nothing or figures.surprised or figures.repeated:
            _say("not every submission ended as it must")
            return Status.FAILED
        console.print("Every submission ended as it must.")
        return Status.DONE

    async def _stay(self, agent: Child) -> None:
        print(
            f"""
It is still running; Ctrl-C ends it.

  broker            {self._node.url}
  queue             {QUEUE}
  dead letters      {dead_queue_of(QUEUE)}
  the agent's log   {agent.log}

  EDXAGENT_BROKER_URL={self._node.url} {_own_name()} send --queue {QUEUE} --count 100""",
            flush=True,
        )
        try:
            await Deferred()
        except CancelledError:
            _say("ending it …")


def _in_full(result: Result) -> str:
    headers = "".join(f"  {name}: {value}\n" for name, value in sorted(result.headers.items()))
    return f"  submission: {result.submission}\n{headers}  {json.dumps(result.verdict, ensure_ascii=False)}"


def _with_path(environment: Mapping[str, str], root: Path) -> str:
    """``PYTHONPATH`` with the checkout, so that ``twistd`` finds the plugin where nothing is installed."""
    return os.pathsep.join(filter(None, [str(root), environment.get("PYTHONPATH")]))


def _own_name() -> str:
    """What to type to run this program once more."""
    return sys.argv[0] if Path(sys.argv[0]).name == "edxagent" else f"{sys.executable} -m edxagent.cli"


def _say(text: str) -> None:
    print(f"edxagent: {text}", file=sys.stderr, flush=True)
