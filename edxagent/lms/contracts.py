"""What the parts of the LMS side know of each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from attrs import field, frozen

from edxagent.model import CheckedResult

GATEWAY_ORIGIN = "gateway"
"""``x-origin`` of what came in through the gateway."""

BRIDGE_ORIGIN = "bridge:"
"""How the ``x-origin`` of what a bridge fetched begins; the bridge's name follows. Only that one can answer it."""


@frozen
class Reply:
    """XQueue's answer, ``{"return_code": …, "content": …}`` (``xqueue/queue/util.py:compose_reply``)."""

    return_code: int
    content: str | int = field(repr=False)


@frozen(kw_only=True)
class Upload:
    """A file that came with a submission.

    :ivar name: as the LMS gave it; hostile.
    """

    name: str
    content: bytes = field(repr=False)


class ISubmissions(Protocol):
    """Takes submissions from the LMS (:mod:`edxagent.lms.gateway.submissions`)."""

    async def submit(self, header: str, body: str, files: Sequence[Upload]) -> Reply:
        """Publish a submission; return code 0 only after the broker has confirmed it."""


class IPull(Protocol):
    """Hands submissions to graders that poll (:mod:`edxagent.lms.gateway.pull`)."""

    async def get_queuelen(self, queue: str) -> Reply:
        """How many submissions wait."""

    async def get_submission(self, queue: str) -> Reply:
        """The next submission, under a lease."""

    async def put_result(self, header: str, body: str) -> Reply:
        """The verdict on a leased submission."""


class IAgentConfig(Protocol):
    """Tells agents their configuration (:mod:`edxagent.lms.gateway.agent_config`)."""

    def answer(self, authorization: str | None) -> tuple[int, bytes]:
        """HTTP status and JSON body for a request with that ``Authorization`` header."""


@frozen(kw_only=True)
class LedgerEntry:
    """A row of the ledger: where a submission is, or what became of it. Times are seconds since the epoch.

    :ivar remote: the id that the LMS has for it, if it came by a bridge.
    :ivar sinks: sink → ``(state, when, reason)``; the states are ``delivered``, ``retrying``, ``parked``, ``posting``
        (an attempt began, and its end isn't known) and ``possibly-recorded``.
    """

    submission: str
    origin: str
    queue: str
    accepted: float | None = None
    remote: str | None = None
    outcome: str | None = None
    agent: str | None = None
    grader: str | None = None
    attempt: int | None = None
    received: float | None = None
    started: float | None = None
    finished: float | None = None
    sinks: dict[str, tuple[str, float, str]] = field(factory=dict)


class ILedger(Protocol):
    """One row a submission (:mod:`edxagent.lms.ledger`); holds no bodies, no header, no key.

    Every method raises :class:`~edxagent.errors.DatabaseUnavailable` when the database can't be used now.
    """

    async def accepted(self, submission: str, *, origin: str, queue: str, remote: str | None = None) -> bool:
        """A submission was taken from the LMS; false if it was known already (nothing is changed then)."""

    async def answered(self, result: CheckedResult) -> None:
        """A verdict arrived from the broker."""

    async def sink(self, submission: str, sink: str, state: str, reason: str = "") -> None:
        """What a sink did with the verdict."""

    async def find(self, submission: str) -> LedgerEntry | None:
        """The row of a submission."""

    async def unanswered(self, origin: str, before: float) -> Sequence[LedgerEntry]:
        """At most 1,000 submissions from ``origin`` accepted before then, oldest first, with no verdict delivered."""
