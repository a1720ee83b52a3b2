"""Takes submissions from the LMS: the files stored, the request published and confirmed, and only then a "yes".

The rules are XQueue's (``submission_queue/lms_interface.py``, ``submit``). Whatever goes wrong, the LMS hears of it
within the time that it waits, and so the learner does, whom it tells our reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol
from uuid import uuid4

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TimeIsOver
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from edxagent.config.lms_values import GatewayConfig
from edxagent.errors import DatabaseUnavailable, EdxagentError, MessageRefused, Unroutable
from edxagent.interfaces import IPublisher
from edxagent.lms.contracts import GATEWAY_ORIGIN, ILedger, Reply, Upload
from edxagent.lms.gateway.uploads import IUploadStore, Stored, UploadsUnavailable
from edxagent.tasks import Tasks
from edxagent.wire.envelope import UNREADABLE
from edxagent.wire.request import encode_request

LONGEST_HEADER = 4096
"""Characters; XQueue keeps 1024."""

LONGEST_MESSAGE = 16 * 1024 * 1024
"""Bytes: what RabbitMQ 4 takes, and an agent reads, unless they are told otherwise."""

BAD_FORMAT = "Queue request has invalid format"
NOT_NOW = "the grading system takes no submissions at the moment"
NO_FILES_NOW = "files can't be stored at the moment"
NO_FILES = "files can't be submitted to this grading system"
TOO_LARGE = "the submission is too large"


class IQueueLengths(Protocol):
    """Knows how long queues are."""

    async def of(self, queue: str) -> int | None:
        """How many submissions wait in a queue; ``None`` if that isn't known."""


class _Header(msgspec.Struct):
    lms_callback_url: str
    lms_key: str
    queue_name: str


class _TooLarge(EdxagentError):
    """The request is larger than brokers and agents take."""


_header = msgspec.json.Decoder(_Header)


class Submissions:
    """See :class:`edxagent.lms.contracts.ISubmissions`.

    :param publisher: need not keep our deadline, ``config.confirm_timeout``.
    :param store: for files; ``None`` = submissions with files are refused.
    :param wall_clock: seconds since the epoch.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        config: GatewayConfig,
        publisher: IPublisher,
        lengths: IQueueLengths,
        store: IUploadStore | None,
        ledger: ILedger | None,
        tasks: Tasks,
        clock: IReactorTime,
        wall_clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._publisher = publisher
        self._lengths = lengths
        self._store = store
        self._ledger = ledger
        self._tasks = tasks
        self._clock = clock
        self._wall_clock = wall_clock

    async def submit(self, header: str, body: str, files: Sequence[Upload]) -> Reply:
        """See :meth:`edxagent.lms.contracts.ISubmissions.submit`."""
        queue = _queue_of(header)
        if queue is None:
            return Reply(1, BAD_FORMAT)
        if queue not in self._config.queues:
            return Reply(1, f"Queue '{queue}' not found")
        if files and self._store is None:
            return Reply(1, NO_FILES)
        submission = uuid4().hex
        taking = Deferred.fromCoroutine(self._take(submission, queue, header, body, files))
        taking.addTimeout(self._config.confirm_timeout, self._clock)
        try:
            await taking
        except Exception as error:
            reason = self._refusal(error, submission, queue)
            return Reply(1, reason)
        self._log.info("{submission} taken for {queue}", submission=submission, queue=queue)
        length = await self._lengths.of(queue)
        if self._ledger is not None:
            self._tasks.launch(self._enter(self._ledger, submission, queue), "an entry in the ledger")
        return Reply(0, str(max(1, length or 1)))

    async def _take(self, submission: str, queue: str, header: str, body: str, files: Sequence[Upload]) -> None:
        """Returns when the broker has it; otherwise nothing of it stays here."""
        store = self._store
        stored = Stored(urls={}, token="") if store is None or not files else await store.store(files)
        try:
            message = encode_request(
                queue=queue,
                submission=submission,
                header=header,
                body=body,
                files=msgspec.json.encode(stored.urls).decode(),
                timestamp=int(self._wall_clock()),
                origin=GATEWAY_ORIGIN,
            )
            if len(message.body) > LONGEST_MESSAGE:
                raise _TooLarge(f"a request of {len(message.body)} bytes, where {LONGEST_MESSAGE} are allowed")
            await self._publisher.publish(message)
        except BaseException:
            if store is not None and stored.urls:
                store.discard(stored)
            raise

    def _refusal(self, error: Exception, submission: str, queue: str) -> str:
        """Log why it wasn't taken; returns what the LMS, and the learner, is told."""
        told: dict[type[Exception], str] = {
            Unroutable: f"Queue '{queue}' not found",
            MessageRefused: TOO_LARGE,
            _TooLarge: TOO_LARGE,
            UploadsUnavailable: NO_FILES_NOW,
        }
        if isinstance(error, TimeIsOver):
            reason = f"not confirmed within {self._config.confirm_timeout:g} s"
        elif isinstance(error, CancelledError):
            reason = "the gateway was stopped"
        else:
            reason = str(error)
        if isinstance(error, (EdxagentError, TimeIsOver, CancelledError)):
            self._log.error("a submission to {queue} is refused: {reason}", queue=queue, reason=reason)
        else:
            self._log.failure("a submission couldn't be taken", submission=submission, queue=queue)
        return told.get(type(error), NOT_NOW)

    async def _enter(self, ledger: ILedger, submission: str, queue: str) -> None:
        await deferLater(self._clock, 0)  # the LMS gets its answer first
        try:
            await ledger.accepted(submission, origin=GATEWAY_ORIGIN, queue=queue)
        except DatabaseUnavailable as error:
            self._log.error(
                "{submission} for {queue} isn't in the ledger: {reason}",
                submission=submission,
                queue=queue,
                reason=str(error),
            )


def _queue_of(header: str) -> str | None:
    """The queue that ``xqueue_header`` names, or ``None`` if it isn't what an LMS writes."""
    if len(header) > LONGEST_HEADER:
        return None
    try:
        return _header.decode(header).queue_name
    except UNREADABLE:
        return None
