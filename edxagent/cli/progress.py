"""A progress bar on standard error; plain lines, now and then, where that is no terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from twisted.internet.task import LoopingCall

BAR_SECONDS = 0.1
LINE_SECONDS = 5.0


class ICounts(Protocol):
    """What is counted."""

    @property
    def sent(self) -> int:
        """Submissions that were sent."""

    @property
    def answered(self) -> int:
        """Those that are done with."""


@contextmanager
def progress(reactor: Any, counts: ICounts, total: int, verb: str = "answered") -> Iterator[None]:
    """Show how far it is, for as long as the block lasts.

    :param verb: what a submission is when it is done with.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task(verb, total=total, sent=0)
            with _every(reactor, BAR_SECONDS, lambda: _move(bar, task, counts)):
                yield
    else:
        with _every(reactor, LINE_SECONDS, lambda: _print(console, counts, total, verb)):
            yield


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.fields[sent]} sent, {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        auto_refresh=False,  # that would be a thread
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _move(bar: Progress, task: Any, counts: ICounts) -> None:
    bar.update(task, completed=counts.answered, sent=counts.sent)
    bar.refresh()


def _print(console: Console, counts: ICounts, total: int, verb: str) -> None:
    if counts.sent:
        console.print(f"{counts.sent} of {total} sent, {counts.answered} {verb}", highlight=False)


@contextmanager
def _every(reactor: Any, seconds: float, show: Any) -> Iterator[None]:
    loop = LoopingCall(show)
    loop.clock = reactor
    loop.start(seconds, now=False).addErrback(lambda _: None)  # no progress then; the work goes on
    try:
        yield
    finally:
        if loop.running:
            loop.stop()
            show()
