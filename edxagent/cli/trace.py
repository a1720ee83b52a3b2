"""``edxagent trace``: where a submission is, or what became of it, by the ledger."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from attrs import asdict
from rich.console import Console
from rich.table import Table

from edxagent.cli.running import Status, run
from edxagent.config.lms import read_lms_config
from edxagent.errors import ConfigError
from edxagent.lms.contracts import LedgerEntry
from edxagent.lms.sinks.registry import find_sink_factory
from edxagent.words import brief

if TYPE_CHECKING:
    from edxagent.lms.database import Database

DEFAULT_CONFIG = "etc/lms.ini"
LEDGER_VARIABLE = "EDXAGENT_LEDGER_URL"
MOST_SHOWN = 20


@click.command()
@click.argument("submission", metavar="ID")
@click.option("--config", "-c", metavar="FILE", help=f"The LMS side's configuration.  [default: {DEFAULT_CONFIG}]")
@click.option(
    "--ledger",
    metavar="URL",
    help=f"The ledger's database instead, such as sqlite:////path; one with a password belongs into {LEDGER_VARIABLE}.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def trace(submission: str, config: str | None, ledger: str | None, as_json: bool) -> None:
    """Tell where the submission ID is, or what became of it.

    ID is a submission's, as in logs and messages, or the one that an LMS with edx-submissions has for it; several LMSs
    may have the same. It is looked up in the ledger, also while edxagent-lms runs. Times are UTC.

    Exit status: 0 found; 1 unknown, or the ledger can't be read; 2 wrong usage or configuration.
    """
    run(lambda reactor: _trace(reactor, submission, _ledger(reactor, config, ledger), as_json))


async def _trace(reactor: Any, submission: str, database: Database, as_json: bool) -> int:
    from edxagent.lms import ledger_rows

    database.startService()
    try:
        found = await database.run(partial(ledger_rows.look_up, either_id=submission, most=MOST_SHOWN))
    finally:
        await database.stopService()
    if not found:
        print(f"edxagent: the ledger, {database}, knows no submission {brief(submission)}", file=sys.stderr)
        return Status.FAILED
    if as_json:
        print(json.dumps({"submissions": [as_dict(entry) for entry in found]}, ensure_ascii=False))
    else:
        show(found, time.time())
    return Status.DONE


def _ledger(reactor: Any, config: str | None, ledger: str | None) -> Database:
    """The database, not yet open; of what was told on the command line first, then of the environment."""
    from edxagent.lms.database import Database
    from edxagent.lms.engine import has_password

    url, source = (ledger, "--ledger") if ledger is not None else _configured(config)
    try:
        database = Database(url, reactor, read_only=True)
    except ValueError as error:
        raise ConfigError([f"{source}: {error}"]) from None
    if ledger is not None and has_password(ledger):
        raise click.UsageError(f"--ledger: everybody can read a password there; put the URL into {LEDGER_VARIABLE}")
    return database


def _configured(config: str | None) -> tuple[str, str]:
    """The ledger's URL, and where it is from."""
    if config is None and os.environ.get(LEDGER_VARIABLE):
        return os.environ[LEDGER_VARIABLE], LEDGER_VARIABLE
    path = config or DEFAULT_CONFIG
    ledger = read_lms_config(path, environment=os.environ, find_sink=find_sink_factory).ledger
    if ledger is None:
        raise ConfigError([f"{path}: there is no [ledger], so that nothing is written down about submissions"])
    return ledger.url, f"{path} [ledger] url"


def as_dict(entry: LedgerEntry) -> dict[str, Any]:
    """A row for a machine. Times are seconds since the epoch."""
    sinks = {
        sink: {"state": state, "time": when, "reason": reason} for sink, (state, when, reason) in entry.sinks.items()
    }
    return {**asdict(entry), "sinks": sinks}


def show(entries: Sequence[LedgerEntry], now: float) -> None:
    """Rows for a person."""
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False, soft_wrap=True)
    for position, entry in enumerate(entries):
        if position:
            console.print()
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in told(entry, now):
            table.add_row(name, value)
        console.print(table)


def told(entry: LedgerEntry, now: float) -> Iterator[tuple[str, str]]:
    """The lines about a submission, in the order of its life."""
    yield "submission", entry.submission
    if entry.remote is not None:
        yield "the LMS's id", entry.remote
    yield "came by", entry.origin or "another program"
    yield "queue", entry.queue
    yield "accepted", "not that the ledger knew" if entry.accepted is None else moment(entry.accepted)
    if entry.outcome is not None:
        yield from _graded(entry)
    for sink, (state, when, reason) in entry.sinks.items():
        yield f"sink {sink}", f"{state}, {moment(when)}" + (f": {reason}" if reason else "")
    yield "now", _now(entry, now)


def moment(seconds: float) -> str:
    """A time of day."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def span(seconds: float) -> str:
    """A length of time, roughly."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _graded(entry: LedgerEntry) -> Iterator[tuple[str, str]]:
    if entry.received is not None:
        yield "received", f"{moment(entry.received)} by agent {entry.agent}, attempt {entry.attempt}"
    if entry.started is not None:
        yield "started", f"{moment(entry.started)} by grader {entry.grader}"
    if entry.finished is not None:
        took = "" if entry.started is None else f", after {entry.finished - entry.started:.2f} s"
        yield "finished", moment(entry.finished) + took
    yield "outcome", str(entry.outcome)


def _now(entry: LedgerEntry, now: float) -> str:
    """Where it is, as far as the ledger knows."""
    if entry.outcome is None and not entry.sinks:
        since = "" if entry.accepted is None else f", for {span(now - entry.accepted)}"
        return f"in queue {entry.queue}, waiting or being graded{since}"
    states = {state for state, _, _ in entry.sinks.values()}
    if not states:
        return "its verdict is on the way to the LMS"
    if states == {"delivered"}:
        return "done"
    if "parked" in states or "possibly-recorded" in states:
        return "its verdict is parked: a person has to look at it"
    return "its verdict is being delivered, again and again until it is taken"
