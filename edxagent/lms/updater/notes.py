"""Tells the ledger what happens, without waiting for it: no verdict is held up or lost by a ledger that fails."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from edxagent.errors import DatabaseUnavailable
from edxagent.lms.contracts import ILedger
from edxagent.model import CheckedResult
from edxagent.tasks import Tasks


class Notes:
    """Around a ledger, or none."""

    _log = Logger()

    def __init__(self, ledger: ILedger | None) -> None:
        self._ledger = ledger
        self._writing = Tasks()

    def answered(self, result: CheckedResult) -> None:
        """See :meth:`edxagent.lms.contracts.ILedger.answered`."""
        if self._ledger is not None:
            self._write(self._ledger.answered(result), result.submission)

    def sink(self, submission: str, sink: str, state: str, reason: str = "") -> None:
        """See :meth:`edxagent.lms.contracts.ILedger.sink`."""
        if self._ledger is not None:
            self._write(self._ledger.sink(submission, sink, state, reason), submission)

    def when_written(self) -> Deferred[None]:
        """Fires when the ledger has, or has refused, what it was told until now."""
        return self._writing.when_idle()

    def cancel(self) -> None:
        """Give up what isn't written yet."""
        self._writing.cancel()

    def _write(self, writing: Coroutine[Any, Any, None], submission: str) -> None:
        self._writing.launch(self._written(writing, submission), "a note in the ledger")

    async def _written(self, writing: Coroutine[Any, Any, None], submission: str) -> None:
        try:
            await writing
        except CancelledError:
            raise
        except DatabaseUnavailable as error:
            self._log.warn("the ledger misses news of {submission}: {reason}", submission=submission, reason=str(error))
