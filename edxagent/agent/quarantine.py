"""Submissions that agents die of: suspects are graded alone, and convicts not at all.

A submission is a *suspect* when an agent died while it graded it, perhaps of a neighbour, or when the broker has
delivered it often. It is *convicted* when so many agents have died so as ``[quarantine] max_starts`` says. Only what
they have written down themselves can convict: the broker also counts deliveries that nobody began to grade.

What the other agents of this machine died of is read when an agent starts, and not again: one that doesn't know yet
will, at the latest, when it has died of it itself and been started again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from edxagent.agent.deaths import key_of
from edxagent.agent.journal import Journal, JournalFolder
from edxagent.agent.returns import returned_often
from edxagent.config.values import QuarantineConfig
from edxagent.interfaces import IDelivery
from edxagent.tasks import Tasks
from edxagent.wire.request import submission_id
from edxagent.words import shorten

MOST_TOLD = 10_000
BEING_GRADED = "what is being graded"
DIED_OF = "what agents died of"


class Quarantine:
    """What an agent knows of the submissions that agents died of; it knows nothing before :meth:`open`.

    :param config: without a ``journal``, all that is known is what the broker says.
    :param reactor: provides ``IReactorThreads``.
    :param concurrency: how many submissions are graded at once, about.
    :param wall_clock: seconds since the epoch.
    """

    _log = Logger()

    def __init__(
        self, config: QuarantineConfig, reactor: Any, *, concurrency: int, wall_clock: Callable[[], float]
    ) -> None:
        self._max_starts = config.max_starts
        self._reactor = reactor
        self._concurrency = concurrency
        self._wall_clock = wall_clock
        self._folder = JournalFolder(config.journal) if config.journal is not None else None
        self._journal: Journal | None = None
        self._starts: dict[str, int] = {}
        self._died: list[str] = []
        self._ended: set[str] = set()
        self._told: set[tuple[str, str]] = set()
        self._failing: set[str] = set()
        self._work = Tasks()

    def open(self) -> Deferred[None]:
        """Read what agents died of, and get ready to write; fires when that is done, and never fails.

        Cancelling stops the waiting only.
        """
        if self._folder is not None:
            self._work.launch(self._open(self._folder), "opening the journal")
        return self._work.when_idle()

    async def close(self) -> None:
        """Strike out what is still being graded: it goes back to its queue, and nobody died of it."""
        await self._work.when_idle()
        journal, self._journal = self._journal, None
        if self._folder is None or journal is None:
            return
        if self._died or self._ended:
            await self._update(self._folder)
        try:
            await self._in_thread(journal.close)
        except OSError as error:
            self._failed(BEING_GRADED, error)

    def use(self, config: QuarantineConfig) -> None:
        """Go by another ``max_starts`` from now on; the journal stays where it is."""
        self._max_starts = config.max_starts

    def starts(self, submission: str) -> int:
        """How many agents died while they graded it."""
        return self._starts.get(key_of(submission), 0) if self._starts else 0

    def is_suspect(self, delivery: IDelivery) -> bool:
        """Whether it has to be graded alone."""
        starts = self.starts(submission_id(delivery.body, delivery.properties)) if self._starts else 0
        if starts >= self._max_starts:
            return False  # it isn't graded at all
        if not (starts or returned_often(delivery)):
            return False
        submission = submission_id(delivery.body, delivery.properties)
        if self._is_news(submission, "suspect"):
            self._log.warn(
                "{submission} is graded alone: agents that died while they graded it: {starts}; "
                "returns to its queue: {returns}",
                submission=shorten(submission, 255),
                starts=starts,
                returns=delivery.properties.headers.get("x-delivery-count", 0),
            )
        return True

    def is_convicted(self, submission: str) -> bool:
        """Whether so many agents died of it that it mustn't be graded any more."""
        starts = self.starts(submission)
        if starts < self._max_starts:
            return False
        if self._is_news(submission, "convict"):
            self._log.error(
                "{submission} isn't graded any more but becomes a dead letter: agents that died while they graded it: "
                "{starts}; find out why before you replay it",
                submission=shorten(submission, 255),
                starts=starts,
            )
        return True

    @contextmanager
    def watch(self, submission: str) -> Iterator[None]:
        """Have it written down that it is being graded, until the context ends or we die.

        If it ends without an exception, the agents that died of it before are forgotten.
        """
        slot = self._begin(submission)
        try:
            yield
        finally:
            if slot is not None:
                self._end(slot)
        self.forget(submission)

    def forget(self, submission: str) -> None:
        """It was graded, or is a dead letter that somebody may replay: it starts with a clean record again."""
        if not (self._starts or self._told):
            return
        key = key_of(submission)
        self._told -= {(key, "suspect"), (key, "convict")}
        if self._starts.pop(key, None) and self._folder is not None and self._journal is not None:
            self._ended.add(key)
            if not self._work:
                self._work.launch(self._catch_up(self._folder), "writing down what has ended")

    def _begin(self, submission: str) -> int | None:
        if self._journal is None:
            return None
        try:
            slot = self._journal.begin(key_of(submission))
        except OSError as error:
            self._failed(BEING_GRADED, error)
            return None
        if self._failing:
            self._works(BEING_GRADED)
        return slot

    def _end(self, slot: int) -> None:
        if self._journal is None:
            return
        try:
            self._journal.end(slot)
        except OSError as error:
            self._failed(BEING_GRADED, error)

    async def _open(self, folder: JournalFolder) -> None:
        try:
            self._journal, self._died = await self._in_thread(folder.open, self._concurrency)
        except OSError as error:
            self._log.error(
                "the journal in {folder} can't be used: {reason}; without it nobody knows what agents die of: mend "
                "[quarantine] journal and start the agent again",
                folder=folder.path,
                reason=str(error.strerror),
            )
            return
        self._starts = dict(Counter(self._died))
        if self._died:
            self._log.warn(
                "{count} submissions were being graded when an agent died; they will be graded alone",
                count=len(self._starts),
            )
        await self._update(folder)

    async def _catch_up(self, folder: JournalFolder) -> None:
        while self._ended and await self._update(folder):
            pass

    async def _update(self, folder: JournalFolder) -> bool:
        """Write down what changed, and hear of what the other agents did; what fails is done with the next change."""
        died, self._died = self._died, []
        ended, self._ended = self._ended, set()
        try:
            deaths = await self._in_thread(folder.update, died, ended, self._wall_clock())
        except OSError as error:
            self._died += died
            self._ended |= ended
            self._failed(DIED_OF, error)
            return False
        self._starts = {key: one.count for key, one in deaths.items() if key not in self._ended}
        self._works(DIED_OF)
        return True

    def _is_news(self, submission: str, what: str) -> bool:
        if len(self._told) >= MOST_TOLD:
            self._told.clear()
        news = (key_of(submission), what)
        if news in self._told:
            return False
        self._told.add(news)
        return True

    def _failed(self, what: str, error: OSError) -> None:
        """Complain, though not about each submission."""
        if what not in self._failing:
            self._failing.add(what)
            self._log.warn(
                "the journal in {folder} can't take {what}: {reason}; grading goes on, but nobody may know what agents "
                "die of meanwhile",
                what=what,
                folder=self._folder.path if self._folder else "",
                reason=str(error.strerror),
            )

    def _works(self, what: str) -> None:
        if what in self._failing:
            self._failing.discard(what)
            self._log.info("the journal takes {what} again", what=what)

    def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function, *arguments)
