"""``edxagent grade``: one submission through the configured grader, without a broker."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click
from attrs import frozen
from rich.console import Console
from rich.table import Table
from twisted.application.service import IService
from twisted.internet.defer import CancelledError, maybeDeferred

from edxagent.cli.files import read_submission_file
from edxagent.cli.report import duration
from edxagent.cli.running import Status, run
from edxagent.config.agent import read_agent_config
from edxagent.config.values import AgentConfig
from edxagent.errors import ConfigError, GraderCrashed, GraderError, MalformedRequest
from edxagent.graders.registry import find_factory
from edxagent.interfaces import GraderTools, IGrader
from edxagent.limits import DeadlineGrader
from edxagent.model import GraderRequest, Outcome, Properties, Verdict
from edxagent.verdict import check_verdict
from edxagent.wire.request import decode_request, grader_request
from edxagent.words import shorten

SHOWN = 300


@frozen(kw_only=True)
class _Trial:
    """How it went. ``request`` is ``None`` when it couldn't be read, ``verdict`` when there is none."""

    request: GraderRequest | None
    outcome: Outcome
    reason: str | None = None
    verdict: Verdict | None = None
    seconds: float | None = None


@click.command()
@click.argument("file")
@click.option(
    "--config", "-c", default="etc/agent.ini", show_default=True, metavar="FILE", help="The agent's configuration."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def grade(file: str, config: str, as_json: bool) -> None:
    """Have the configured grader grade the submission in FILE (- is standard input), without a broker.

    FILE holds a request as the LMS queues it (xqueue_header, xqueue_body, xqueue_files), or a bare xqueue_body. The
    deadline and the limits are the configuration's.

    Exit status: 0 graded; 1 not graded: the outcome and the reason are shown; 2 wrong usage or configuration.
    """
    run(lambda reactor: _grade(reactor, file, config, as_json))


async def _grade(reactor: Any, file: str, path: str, as_json: bool) -> int:
    config = read_agent_config(path, environment=os.environ, find_factory=find_factory)
    queue = config.queues[0].name
    request = read_submission_file(file, queue).request
    trial = await _try(reactor, config, path, request, queue)
    if as_json:
        print(json.dumps(_as_json(trial), ensure_ascii=False))
    else:
        _show(trial, config)
    return Status.DONE if trial.outcome is Outcome.GRADED else Status.FAILED


async def _try(reactor: Any, config: AgentConfig, path: str, body: bytes, queue: str) -> _Trial:
    try:
        submission = decode_request(body, Properties(message_id="grade"), queue, config.max_request)
    except MalformedRequest as error:
        return _Trial(request=None, outcome=error.outcome, reason=str(error))
    request = grader_request(submission)
    grader = _build(reactor, config, path)
    service = IService(grader, None)
    if service is not None:
        await maybeDeferred(service.startService)
    began = reactor.seconds()
    try:
        response = await DeadlineGrader(grader, config.grader.timeout, reactor).grade(request)
        seconds = reactor.seconds() - began
        limits = config.results
        verdict = check_verdict(response.reply, max_size=limits.max_reply, max_score=limits.max_score)
    except GraderError as error:
        return _Trial(request=request, outcome=error.outcome, reason=str(error), seconds=reactor.seconds() - began)
    except CancelledError:
        raise
    except Exception as error:
        reason = f"the grader raised {type(error).__name__}: {error}"
        return _Trial(request=request, outcome=GraderCrashed.outcome, reason=reason, seconds=reactor.seconds() - began)
    finally:
        if service is not None:
            await maybeDeferred(service.stopService)
    return _Trial(request=request, outcome=Outcome.GRADED, verdict=verdict, seconds=seconds)


def _build(reactor: Any, config: AgentConfig, path: str) -> IGrader:
    factory = find_factory(config.grader.kind)
    tools = GraderTools(reactor=reactor, concurrency=1, max_reply=config.results.max_reply)
    try:
        return factory.build(config.grader.options, tools)
    except ValueError as error:
        raise ConfigError([f"{path} [grader]: {error}"]) from None


def _as_json(trial: _Trial) -> dict[str, Any]:
    verdict = trial.verdict
    return {
        "outcome": str(trial.outcome),
        "reason": trial.reason,
        "verdict": verdict and {"correct": verdict.correct, "score": verdict.score, "msg": verdict.msg},
        "seconds": None if trial.seconds is None else round(trial.seconds, 6),
    }


def _show(trial: _Trial, config: AgentConfig) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    if trial.request is not None:
        table.add_row("grader", f"{config.grader.kind}, {config.grader.timeout:g} s at most")
        table.add_row("response", _shown(trial.request.student_response))
        table.add_row("payload", _shown(trial.request.grader_payload))
        table.add_row("files", _shown(trial.request.files))
        table.add_row()
    table.add_row("outcome", str(trial.outcome))
    if trial.reason is not None:
        table.add_row("reason", trial.reason)
    if trial.verdict is not None:
        table.add_row("correct", "yes" if trial.verdict.correct else "no")
        table.add_row("score", f"{trial.verdict.score:g}")
        table.add_row("msg", trial.verdict.msg)
    if trial.seconds is not None:
        table.add_row("took", duration(trial.seconds))
    Console(file=sys.stdout, markup=False, highlight=False, emoji=False).print(table)


def _shown(text: str) -> str:
    """As much of a text as helps to recognise it, on one line."""
    line = shorten(text, SHOWN)
    return f"{line} … ({len(text)} characters)" if len(text) > SHOWN else line
