"""``edxagent dead``: what ended without a verdict; looked at, sent round again, or thrown away."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from twisted.internet.defer import CancelledError

from edxagent.amqp.delivery import Delivery
from edxagent.cli.dead_letters import OUTCOMES, Letter, Selection, read_letter
from edxagent.cli.dead_queue import DeadQueue, Sweep
from edxagent.cli.dead_report import Listing, as_dict, listings_as_dict, show_letters, show_listings
from edxagent.cli.dead_work import Drop, Order, Replay, Work
from edxagent.cli.running import Status, run
from edxagent.config.agent import read_agent_config
from edxagent.config.queues import queue_name
from edxagent.config.values import AgentConfig
from edxagent.errors import BrokerError
from edxagent.graders.registry import find_factory
from edxagent.model import dead_queue_of
from edxagent.words import brief

MOST_SHOWN = 20
MOST = 1_000_000

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group(invoke_without_command=True)
@click.pass_context
def dead(ctx: click.Context) -> None:
    """Look at dead letters, send them round again, or throw them away.

    A submission that ended without a verdict lies in its queue's dead letters, and so does a verdict that can't be
    handed over. Looking changes nothing.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _queue_names(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(queue_name(value) for value in values))
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


_config = click.option(
    "--config", "-c", default="etc/agent.ini", show_default=True, metavar="FILE", help="The agent's configuration."
)
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")


def _queues(default: str) -> Callable[[Command], Command]:
    words = f"Whose dead letters; may be given several times. [default: {default}]"
    return click.option("--queue", "-q", "queues", metavar="QUEUE", multiple=True, callback=_queue_names, help=words)


_outcome = click.option(
    "--outcome",
    type=click.Choice(OUTCOMES),
    metavar="WORD",
    help=f"Only those that ended so: {', '.join(OUTCOMES)}.",
)
_id = click.option("--id", "id_", metavar="ID", help="Only this submission.")
_most = click.option("--max", "most", type=click.IntRange(1, MOST), metavar="N", help="At most so many.")
_dry_run = click.option("--dry-run", is_flag=True, help="Only tell how many it would be.")


@dead.command("list")
@click.argument("queues", nargs=-1, metavar="[QUEUE]...", callback=_queue_names)
@_config
@click.option(
    "--max",
    "most",
    type=click.IntRange(0, MOST),
    default=MOST_SHOWN,
    show_default=True,
    metavar="N",
    help="Show at most so many a queue; all are counted.",
)
@_json
def list_(queues: tuple[str, ...], config: str, most: int, as_json: bool) -> None:
    """Tell what lies in the dead letters of each QUEUE; by default, of all that the configuration names.

    Exit status: 0 listed; 2 wrong usage or configuration; 3 the broker refused or can't be reached.
    """
    run(lambda reactor: _list(reactor, queues, config, most, as_json))


@dead.command()
@click.argument("id_", metavar="ID")
@_queues("all that the configuration names")
@_config
@_json
def show(id_: str, queues: tuple[str, ...], config: str, as_json: bool) -> None:
    """Tell all about the dead letter of the submission ID, but for what is in it.

    Exit status: 0 found; 1 there is none; 2 wrong usage or configuration; 3 the broker refused or can't be reached.
    """
    run(lambda reactor: _show(reactor, id_, queues, config, as_json))


@dead.command()
@_queues("the configuration's [queues]")
@_outcome
@_id
@_most
@click.option("--force", is_flag=True, help="Also where the learner was told; the LMS ignores the new verdict, though.")
@_dry_run
@_config
@_json
def replay(id_: str | None, outcome: str | None, most: int | None, force: bool, dry_run: bool, **options: Any) -> None:
    """Have dead letters graded again, with all attempts before them.

    A learner who was told of a failure has a score of 0, which the LMS doesn't replace; so that submission stays where
    it is. A verdict that couldn't be handed over (--queue is the results queue's name then) is offered again.

    Exit status: 0 all were sent round again; 1 some stay because their learners were told, or there is no such ID; 2
    wrong usage or configuration; 3 the broker refused or can't be reached; 130 after Ctrl-C.
    """
    order = Order(selection=Selection(id=id_, outcome=outcome), most=most, force=force, dry_run=dry_run)
    run(lambda reactor: _settle(reactor, Replay(order), **options))


@dead.command()
@_queues("the configuration's [queues]")
@_outcome
@_id
@_most
@click.option("--yes", is_flag=True, help="Do it: they are gone for good.")
@_dry_run
@_config
@_json
def drop(id_: str | None, outcome: str | None, most: int | None, yes: bool, dry_run: bool, **options: Any) -> None:
    """Throw dead letters away, for good.

    Exit status: 0 done; 1 there is no such ID; 2 wrong usage or configuration; 3 the broker refused or can't be
    reached; 130 after Ctrl-C.
    """
    if not yes and not dry_run:
        raise click.UsageError("they would be gone for good: add --yes, or see with --dry-run how many it would be")
    order = Order(selection=Selection(id=id_, outcome=outcome), most=most, force=True, dry_run=dry_run)
    run(lambda reactor: _settle(reactor, Drop(order), **options))


async def _list(reactor: Any, queues: tuple[str, ...], path: str, most: int, as_json: bool) -> int:
    config = _read(path)
    listings = {queue: Listing(queue) for queue in queues or _all_queues(config)}

    async def look(letters: DeadQueue, delivery: Delivery) -> None:
        listings[letters.queue].add(read_letter(delivery, letters.queue), most)
        await letters.keep(delivery)

    sweep = Sweep(reactor, config.broker, "edxagent dead list")
    await sweep.run(tuple(listings), look, must_exist=bool(queues))
    if as_json:
        print(json.dumps(listings_as_dict(listings.values()), ensure_ascii=False))
    else:
        show_listings(listings.values())
    return Status.DONE


async def _show(reactor: Any, id_: str, queues: tuple[str, ...], path: str, as_json: bool) -> int:
    config = _read(path)
    searched = queues or _all_queues(config)
    found: list[Letter] = []

    async def look(letters: DeadQueue, delivery: Delivery) -> None:
        letter = read_letter(delivery, letters.queue)
        if letter.id == id_ and len(found) < MOST_SHOWN:
            found.append(letter)
        await letters.keep(delivery)

    await Sweep(reactor, config.broker, "edxagent dead show").run(searched, look, must_exist=bool(queues))
    if not found:
        return _unknown(id_, searched)
    if as_json:
        print(json.dumps({"letters": [as_dict(letter) for letter in found]}, ensure_ascii=False))
    else:
        show_letters(found)
    return Status.DONE


async def _settle(reactor: Any, work: Work, queues: tuple[str, ...], config: str, as_json: bool) -> int:
    agent = _read(config)
    work.results = agent.results.queue
    searched = queues or tuple(queue.name for queue in agent.queues)
    sweep = Sweep(reactor, agent.broker, f"edxagent dead {work.name}")
    try:
        await sweep.run(searched, work.settle, must_exist=bool(queues), enough=work.is_enough)
    except (CancelledError, BrokerError):
        print(f"edxagent: stopped; {work.total} were {work.participle} until then", file=sys.stderr)
        raise
    if as_json:
        print(json.dumps(work.as_dict()))
    else:
        print(work.summary())
    if work.kept_back:
        print(
            f"edxagent: {work.kept_back} stay: their learners were told of a failure, and the LMS ignores what comes "
            "later; --force replays them all the same",
            file=sys.stderr,
        )
        return Status.FAILED
    id_ = work.order.selection.id
    return Status.DONE if work.total or id_ is None else _unknown(id_, searched)


def _read(path: str) -> AgentConfig:
    config = read_agent_config(path, environment=os.environ, find_factory=find_factory)
    if config.lms is not None:
        raise click.UsageError(f"{path} leaves broker and queues to an LMS; name a file that has them with --config")
    return config


def _all_queues(config: AgentConfig) -> tuple[str, ...]:
    return (*(queue.name for queue in config.queues), config.results.queue)


def _unknown(id_: str, queues: Sequence[str]) -> int:
    places = brief(", ".join(map(dead_queue_of, queues)))
    print(f"edxagent: there is no dead letter of {brief(id_)} in {places}", file=sys.stderr)
    return Status.FAILED
