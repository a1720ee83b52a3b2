"""What the tests of bridges share: a ledger in memory, results, clients that play a part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred

from edxagent.config.lms_values import BridgeConfig
from edxagent.errors import DatabaseUnavailable
from edxagent.lms.bridge.client import Client, Put
from edxagent.lms.bridge.item import Item
from edxagent.lms.contracts import LedgerEntry
from edxagent.model import CheckedResult, Verdict
from tests.edx_submissions_lms import PASSWORD, USERNAME

RANKS = {"delivered": 2, "possibly-recorded": 1}


def bridge_config(url: str = "http://127.0.0.1:1", **changes: Any) -> BridgeConfig:
    """A bridge to an LMS that doesn't try one's patience."""
    config = BridgeConfig(
        name="lms", url=url, username=USERNAME, password=PASSWORD, queues=("q1",), poll_initial=0.05, poll_max=0.5
    )
    return evolve(config, **changes)


def same(least: float, most: float) -> float:
    """A lot that is no lot: pauses are as long as they can be."""
    return most


def half(least: float, most: float) -> float:
    """A lot that is no lot: pauses are as short as they can be."""
    return least


def item_of(number: int, key: str = "key", *, header: str | None = None, files: str = "{}") -> Item:
    """What an LMS hands out."""
    header = header or f'{{"submission_id": {number}, "submission_key": "{key}"}}'
    return Item(header=header, body=f'{{"number": {number}}}', files=files, remote=number, key=key)


def result_of(submission: str, header: str, *, outcome: str = "graded", score: float = 1.0) -> CheckedResult:
    """A verdict that came back from the broker."""
    verdict = Verdict(correct=score > 0, score=score, msg="<p>Müsli</p>")
    return CheckedResult(
        submission=submission, outcome=outcome, queue="q1", origin="bridge:lms", header=header, verdict=verdict
    )


class MemoryLedger:
    """A ledger that keeps its rows in ``rows``.

    :ivar away: how many of the next calls find the database away.
    :ivar refuse: which calls, by name and arguments, find it away as long as it is so.
    """

    def __init__(self, wall_clock: Callable[[], float] = lambda: 0.0) -> None:
        self.rows: dict[str, LedgerEntry] = {}
        self.sinks: dict[tuple[str, str], tuple[str, float, str]] = {}
        self.calls: list[tuple[object, ...]] = []
        self.away = 0
        self.refuse: Callable[..., bool] = lambda *call: False
        self._wall_clock = wall_clock

    async def accepted(self, submission: str, *, origin: str, queue: str, remote: str | None = None) -> bool:
        """See :class:`edxagent.lms.contracts.ILedger`."""
        self._called("accepted", submission)
        known = self.rows.get(submission)
        if known is None:
            known = LedgerEntry(submission=submission, origin=origin, queue=queue)
        elif known.accepted is not None:
            return False
        self.rows[submission] = evolve(known, accepted=self._wall_clock(), remote=remote)
        return True

    async def answered(self, result: CheckedResult) -> None:
        """See :class:`edxagent.lms.contracts.ILedger`."""
        self._called("answered", result.submission)
        entry = LedgerEntry(submission=result.submission, origin=result.origin or "", queue=result.queue)
        self.rows[result.submission] = evolve(self.rows.get(result.submission, entry), outcome=result.outcome)

    async def sink(self, submission: str, sink: str, state: str, reason: str = "") -> None:
        """See :class:`edxagent.lms.contracts.ILedger`."""
        self._called("sink", submission, state)
        old = self.sinks.get((submission, sink), ("", 0.0, ""))[0]
        if RANKS.get(state, 0) >= RANKS.get(old, 0):
            self.sinks[submission, sink] = (state, self._wall_clock(), reason)

    async def find(self, submission: str) -> LedgerEntry | None:
        """See :class:`edxagent.lms.contracts.ILedger`."""
        self._called("find", submission)
        row = self.rows.get(submission)
        return row and self._with_sinks(row)

    async def unanswered(self, origin: str, before: float) -> Sequence[LedgerEntry]:
        """See :class:`edxagent.lms.contracts.ILedger`."""
        self._called("unanswered", origin)
        rows = [self._with_sinks(row) for row in self.rows.values() if row.origin == origin and row.outcome is None]
        return [row for row in rows if row.accepted is not None and row.accepted < before]

    def state(self, submission: str) -> str | None:
        """How far the bridge's sink has come."""
        return self.sinks.get((submission, "put_result"), (None,))[0]

    def _with_sinks(self, row: LedgerEntry) -> LedgerEntry:
        return evolve(row, sinks={sink: state for (of, sink), state in self.sinks.items() if of == row.submission})

    def _called(self, *call: object) -> None:
        self.calls.append(call)
        if self.away:
            self.away -= 1
            raise DatabaseUnavailable("the ledger is away")
        if self.refuse(*call):
            raise DatabaseUnavailable("the ledger is away")


class PlayedClient(Client):
    """An LMS's part, played by a test.

    :ivar pulls: what ``get_submission`` answers next: an item, ``None``, an exception to raise or a Deferred of them;
        ``None`` for ever after.
    :ivar puts: what ``put_result`` answers next; recorded for ever after.
    :ivar asked: the queues that were asked for.
    :ivar posted: the headers and verdicts that were posted.
    """

    def __init__(self) -> None:
        self.well = True
        self.pulls: list[object] = []
        self.puts: list[object] = []
        self.asked: list[str] = []
        self.posted: list[tuple[str, Verdict]] = []

    async def get_submission(self, queue: str) -> Item | None:
        """See :class:`edxagent.lms.bridge.client.Client`."""
        self.asked.append(queue)
        return await _played(self.pulls.pop(0) if self.pulls else None)  # type: ignore[return-value]

    async def put_result(self, header: str, verdict: Verdict) -> tuple[Put, str]:
        """See :class:`edxagent.lms.bridge.client.Client`."""
        self.posted.append((header, verdict))
        put = await _played(self.puts.pop(0) if self.puts else Put.RECORDED)
        assert isinstance(put, Put)
        return put, f"the LMS says {put.value}"


async def _played(part: object) -> object:
    if isinstance(part, Deferred):
        part = await part
    if isinstance(part, Exception):
        raise part
    return part
