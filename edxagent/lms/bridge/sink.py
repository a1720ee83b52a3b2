"""Verdicts go back to the LMS that their submissions were fetched from, each once.

``put_result`` takes a verdict only once: a second one is answered 500, and so is a failure of the LMS, which has
recorded nothing then (the view is one transaction). Which it is, only the ledger can tell, where this sink keeps
whether an earlier attempt may have succeeded:

=======================  =====================================  ===============================================
the ledger says          because                                a 500 means
=======================  =====================================  ===============================================
nothing, ``retrying``,   no attempt can have succeeded          the LMS failed: again, later
or ``parked``
``posting``              an attempt began and its end isn't     it was recorded then, unless the LMS isn't well
                         known: the connection broke, or this   at all: possibly recorded
                         program ended
``possibly-recorded``,   it was so when it was parked, or       the same
or the row isn't there   nothing is known
``delivered``            the LMS has a verdict                  nothing is posted any more
=======================  =====================================  ===============================================

What the LMS has recorded stays: no verdict replaces another there, not even ``graded`` a failure.

The score goes verbatim. edx-submissions 4.0.2 takes it for a share, from 0 to 1, of the problem's points, and hands the
reply to CAPA as it came.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from twisted.internet.defer import DeferredLock, DeferredSemaphore
from zope.interface import implementer

from edxagent.errors import DatabaseUnavailable, PossiblyRecorded, SinkRefused, SinkUnavailable
from edxagent.interfaces import IResultSink
from edxagent.lms.bridge.client import Client, Put
from edxagent.lms.bridge.outstanding import Outstanding
from edxagent.lms.bridge.session import Trouble
from edxagent.lms.contracts import ILedger, LedgerEntry
from edxagent.model import CheckedResult

LEDGER_NAME = "put_result"
"""What the ledger calls this sink."""
DELIVERED, POSTING, POSSIBLY, RETRYING, PARKED = "delivered", "posting", "possibly-recorded", "retrying", "parked"


def state_of(entry: LedgerEntry | None) -> str | None:
    """How far this sink has come with a submission."""
    state = entry.sinks.get(LEDGER_NAME) if entry is not None else None
    return state[0] if state is not None else None


@implementer(IResultSink)
class PutResultSink:
    """Takes the results whose origin is ``origin``.

    :param root: the LMS's address.
    :param turns: bounds the requests to the LMS.
    """

    def __init__(
        self,
        *,
        origin: str,
        root: str,
        client: Client,
        ledger: ILedger,
        outstanding: Outstanding,
        turns: DeferredSemaphore,
    ) -> None:
        self._origin = origin
        self._root = root
        self._client = client
        self._ledger = ledger
        self._outstanding = outstanding
        self._turns = turns
        self._locks: dict[str, DeferredLock] = {}
        self._unwritten: set[str] = set()

    def use(self, *, root: str, client: Client, turns: DeferredSemaphore) -> None:
        """Post in another way from now on; who has a turn already posts in the one that there was."""
        self._root = root
        self._client = client
        self._turns = turns

    def target(self, result: CheckedResult) -> str | None:
        """See :meth:`edxagent.interfaces.IResultSink.target`."""
        return self._root if result.origin == self._origin else None

    async def deliver(self, result: CheckedResult) -> None:
        """See :meth:`edxagent.interfaces.IResultSink.deliver`.

        :raises PossiblyRecorded: as the table above says.
        """
        async with self._alone(result.submission):
            try:
                await self._deliver(result, await self._find(result.submission))
            except SinkRefused:
                self._outstanding.forget(result.submission)
                raise
            self._outstanding.answered(result.submission)

    async def give_up(self, failure: CheckedResult) -> None:
        """Post our own word for a failure, unless there is a verdict, delivered or on its way.

        :raises SinkUnavailable: not now.
        :raises SinkRefused: the LMS won't have it.
        """
        async with self._alone(failure.submission):
            entry = await self._find(failure.submission)
            if state_of(entry) == DELIVERED or (entry is not None and entry.outcome is not None):
                return
            await self._deliver(failure, entry)
            with suppress(DatabaseUnavailable):  # what counts is written
                await self._ledger.answered(failure)

    async def _deliver(self, result: CheckedResult, entry: LedgerEntry | None) -> None:
        submission = result.submission
        if state_of(entry) == DELIVERED:
            return
        if submission not in self._unwritten:
            turns, client = self._turns, self._client
            await turns.acquire()
            try:
                await self._post(client, result, unsure=entry is None or state_of(entry) in (POSTING, POSSIBLY))
            finally:
                turns.release()
            self._unwritten.add(submission)
        await self._write(submission, DELIVERED)
        self._unwritten.discard(submission)

    async def _post(self, client: Client, result: CheckedResult, *, unsure: bool) -> None:
        """Have the verdict recorded.

        :param unsure: whether it may have been, before.
        """
        submission = result.submission
        await self._write(submission, POSTING)
        try:
            put, reason = await client.put_result(result.header, result.verdict)
        except Trouble as trouble:
            if not (unsure or trouble.unsure):
                await self._note(submission, RETRYING, str(trouble))
            raise SinkUnavailable(str(trouble)) from trouble
        if put is Put.RECORDED:
            return
        if put in (Put.REFUSED, Put.WRONG_KEY):
            await self._note(submission, PARKED, reason)
            raise SinkRefused(reason)
        if not unsure:
            await self._note(submission, RETRYING, reason)
        elif put is Put.FAILED and client.well:
            reason = f"{reason}; an earlier attempt may have been recorded: look the submission up there"
            await self._note(submission, POSSIBLY, reason)
            raise PossiblyRecorded(reason)
        raise SinkUnavailable(reason)

    async def _find(self, submission: str) -> LedgerEntry | None:
        try:
            return await self._ledger.find(submission)
        except DatabaseUnavailable as error:
            raise SinkUnavailable(str(error)) from error

    async def _write(self, submission: str, state: str) -> None:
        try:
            await self._ledger.sink(submission, LEDGER_NAME, state)
        except DatabaseUnavailable as error:
            raise SinkUnavailable(str(error)) from error

    async def _note(self, submission: str, state: str, reason: str) -> None:
        """Write what makes the next attempt surer; without it, that is only more careful than it need be."""
        with suppress(DatabaseUnavailable):
            await self._ledger.sink(submission, LEDGER_NAME, state, reason)

    @asynccontextmanager
    async def _alone(self, submission: str) -> AsyncIterator[None]:
        """One verdict on a submission at a time: our own and the grader's may come together."""
        lock = self._locks.setdefault(submission, DeferredLock())
        await lock.acquire()
        try:
            yield
        finally:
            lock.release()
            if not lock.locked:
                self._locks.pop(submission, None)
