"""``edxagent send``: puts submissions into a queue, as the LMS would, and waits for their verdicts."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from itertools import cycle, islice
from secrets import token_hex
from typing import Any

import click
from attrs import frozen
from rich.console import Console
from twisted.internet.defer import CancelledError

from edxagent.cli.broker import connected, open_exchange
from edxagent.cli.exchange import Exchange
from edxagent.cli.files import read_submission_files
from edxagent.cli.progress import progress
from edxagent.cli.report import Statistics, as_json, as_table, statistics
from edxagent.cli.running import Status, run
from edxagent.cli.submissions import Sample, generate
from edxagent.config.agent import read_agent_config
from edxagent.config.broker_url import broker_address, refuse_written_password
from edxagent.config.ini import read_small_file
from edxagent.config.queues import queue_name
from edxagent.config.values import BrokerConfig, TLSConfig
from edxagent.graders.registry import find_factory
from edxagent.model import dead_queue_of

DEFAULT_BROKER = "amqp://guest@127.0.0.1:5672/%2F"
DEFAULT_COUNT = 100
MOST = 1_000_000


@frozen(kw_only=True)
class _Order:
    """What the command line says."""

    paths: tuple[str, ...]
    queue: str | None
    count: int | None
    rate: float | None
    broker: str | None
    password_file: str | None
    config: str | None
    timeout: float
    wait: bool
    concurrency: int
    seed: int
    as_json: bool


class _Number(click.FloatRange):
    """A range that NaN isn't in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See :meth:`click.ParamType.convert`."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is no number", param, ctx)
        return number


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--queue", "-q", help="The queue to send to; with --config its first one unless given.")
@click.option(
    "--count",
    "-n",
    type=click.IntRange(1, MOST),
    help=f"How many; files are sent over and over. [default: each file once, or {DEFAULT_COUNT}]",
)
@click.option("--rate", type=_Number(0.001, 1e6), metavar="R", help="At most so many a second. [default: no limit]")
@click.option(
    "--broker",
    metavar="URL",
    help=f"Where RabbitMQ is; holds no password. [default: $EDXAGENT_BROKER_URL, or {DEFAULT_BROKER}]",
)
@click.option("--password-file", metavar="FILE", help="Holds the password for the broker.")
@click.option("--config", "-c", metavar="FILE", help="Take the broker and the queue from an agent's configuration.")
@click.option(
    "--timeout",
    type=_Number(0.1, 86400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for each verdict.",
)
@click.option("--wait/--no-wait", default=True, help="--no-wait: verdicts go where an LMS's would. [default: wait]")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    metavar="N",
    help="How many may be unanswered at once.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Another seed makes other submissions.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def send(**options: Any) -> None:
    """Send submissions to a queue and wait for the verdicts.

    Each PATH is a JSON file (a request as the LMS queues it, or a bare xqueue_body), a folder of such files, or - for
    standard input. Without a PATH, submissions for the grader in examples/xserver.py are made up.

    Exit status: 0 each got a verdict; 1 some got none; 2 wrong usage or configuration; 3 the broker refused, has no
    such queue, or can't be reached; 130 after Ctrl-C.
    """
    order = _Order(**options)
    run(lambda reactor: _send(reactor, order))


async def _send(reactor: Any, order: _Order) -> int:
    broker, queue = _where_to(order)
    samples, total = _what(order, queue)
    async with connected(reactor, broker, "edxagent send") as session:
        exchange = await open_exchange(
            session,
            reactor=reactor,
            wall_clock=time.time,
            config=broker,
            queue=queue,
            unanswered=order.concurrency,
            timeout=order.timeout if order.wait else None,
        )
        try:
            with progress(reactor, exchange, total, "answered" if order.wait else "confirmed"):
                await exchange.run(samples, order.rate)
        except CancelledError:
            print(f"edxagent: stopped; {_so_far(exchange)}", file=sys.stderr)
            raise
    return _report(order, queue, statistics(exchange.records, seconds=exchange.seconds, repeated=exchange.repeated))


def _so_far(exchange: Exchange) -> str:
    verdicts = sum(record.score is not None for record in exchange.records)
    return f"{exchange.sent} were sent and {verdicts} verdicts received until then"


def _report(order: _Order, queue: str, figures: Statistics) -> int:
    if not order.wait:
        figures_sent = {"sent": figures.sent, "seconds": round(figures.seconds, 3)}
        print(json.dumps(figures_sent) if order.as_json else f"{figures.sent} sent in {figures.seconds:.2f} s")
        return Status.DONE
    if order.as_json:
        print(json.dumps({"queue": queue, **as_json(figures)}))
    else:
        Console(file=sys.stdout).print(as_table(figures, f"{figures.sent} submissions to {queue}"))
    if not figures.without_verdict:
        return Status.DONE
    print(
        f"edxagent: {figures.without_verdict} got no verdict within {order.timeout:g} s; see whether an agent serves "
        f"{queue}, and what is in {dead_queue_of(queue)}",
        file=sys.stderr,
    )
    return Status.FAILED


def _where_to(order: _Order) -> tuple[BrokerConfig, str]:
    queue = order.queue
    if order.config is not None:
        config = read_agent_config(order.config, environment=os.environ, find_factory=find_factory)
        if config.lms is not None:
            raise click.UsageError(f"{order.config} leaves it to an LMS; give --broker URL and --queue NAME instead")
        queue = queue or config.queues[0].name
        broker = config.broker if order.broker is None else _broker(order)
    else:
        broker = _broker(order)
    if queue is None:
        raise click.UsageError("which queue? Give --queue NAME, or --config FILE to take an agent's first one")
    try:
        return broker, queue_name(queue)
    except ValueError as error:
        raise click.UsageError(f"--queue: {error}") from None


def _broker(order: _Order) -> BrokerConfig:
    url = order.broker or os.environ.get("EDXAGENT_BROKER_URL") or DEFAULT_BROKER
    source = "--broker" if order.broker else "EDXAGENT_BROKER_URL"
    try:
        if order.broker is not None:
            refuse_written_password(order.broker)
        address = broker_address(url, tls=TLSConfig(), password=_password(order.password_file))
    except ValueError as error:
        raise click.UsageError(f"{source}: {error}") from None
    return BrokerConfig(addresses=(address,))


def _password(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        password = read_small_file(path, 4096).removesuffix("\n").removesuffix("\r")
    except ValueError as error:
        raise click.UsageError(f"--password-file {path}: {error}") from None
    if not password:
        raise click.UsageError(f"--password-file {path}: is empty")
    return password


def _what(order: _Order, queue: str) -> tuple[Iterator[Sample], int]:
    """The samples, and how many that is."""
    name = f"send-{token_hex(6)}"
    if not order.paths:
        total = order.count or DEFAULT_COUNT
        samples = generate(queue=queue, run=name, seed=order.seed, unreadable=False)
        return islice(samples, total), total
    files = read_submission_files(order.paths, queue)
    total = order.count or len(files)
    numbered = enumerate(islice(cycle(files), total), 1)
    return (Sample(submission=f"{name}-{n:06d}", sort=file.name, request=file.request) for n, file in numbered), total
