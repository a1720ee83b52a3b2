"""Who may answer for which submission, and until when: the leases of graders that poll."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from hmac import compare_digest

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from edxagent.errors import EdxagentError
from edxagent.interfaces import IDelivery

ID_BITS = 48
KEY_BYTES = 16


class NoSuchLease(EdxagentError):
    """There is no such lease: it expired, it was answered or is being answered, or it never was."""


class WrongKey(EdxagentError):
    """The lease is somebody else's."""


@define(eq=False, kw_only=True)
class Lease:
    """A submission that is out with a grader.

    :ivar id: ``submission_id``, an integer as XQueue's is; random, so that one from before a restart names no other.
    :ivar key: ``submission_key``.
    :ivar header: the LMS's ``xqueue_header``; stays here.
    :ivar received: when it was given out, in seconds since the epoch.
    :ivar seconds: how long it lasts.
    :ivar lost: whether the broker took the submission back.
    """

    id: int
    key: str = field(repr=False)
    delivery: IDelivery
    header: str = field(repr=False)
    received: float
    seconds: float
    lost: bool = False
    _until: float
    _timer: IDelayedCall | None = field(default=None, repr=False)


class Leases:
    """The leases that run.

    :param seconds: how long each lasts.
    :param expired: is called with a lease whose time is over; it is out of here by then.
    """

    def __init__(self, *, seconds: float, clock: IReactorTime, expired: Callable[[Lease], object]) -> None:
        self.seconds = seconds
        self._clock = clock
        self._expired = expired
        self._running: dict[int, Lease] = {}

    def __len__(self) -> int:
        return len(self._running)

    def grant(self, delivery: IDelivery, *, header: str, received: float) -> Lease:
        """Begin a lease."""
        lease = Lease(
            id=self._new_id(),
            key=secrets.token_hex(KEY_BYTES),
            delivery=delivery,
            header=header,
            received=received,
            seconds=self.seconds,
            until=self._clock.seconds() + self.seconds,
        )
        self._run(lease)
        return lease

    def claim(self, id: int, key: str) -> Lease:
        """End a lease because there is an answer: nobody else can answer it now, and it doesn't expire.

        :raises NoSuchLease: no lease with that id runs.
        :raises WrongKey: that isn't its key.
        """
        lease = self._running.get(id)
        if lease is None:
            raise NoSuchLease("no such lease runs")
        if not compare_digest(lease.key.encode(), key.encode(errors="replace")):
            raise WrongKey("that isn't the lease's key")
        self._end(lease)
        return lease

    def restore(self, lease: Lease) -> None:
        """Let a claimed lease run on to where it would have ended, unless it was lost meanwhile."""
        if not lease.lost:
            self._run(lease)

    def lose(self, lease: Lease) -> None:
        """The broker took the submission back: nobody may answer any more."""
        lease.lost = True
        self._end(lease)

    def end_all(self) -> list[Lease]:
        """End every lease; returns those that ran."""
        leases = list(self._running.values())
        for lease in leases:
            self._end(lease)
        return leases

    def _new_id(self) -> int:
        while (id := secrets.randbits(ID_BITS)) in self._running:
            pass
        return id

    def _run(self, lease: Lease) -> None:
        self._running[lease.id] = lease
        left = max(0.0, lease._until - self._clock.seconds())
        lease._timer = self._clock.callLater(left, self._expire, lease)

    def _expire(self, lease: Lease) -> None:
        lease._timer = None
        self._end(lease)
        self._expired(lease)

    def _end(self, lease: Lease) -> None:
        self._running.pop(lease.id, None)
        timer, lease._timer = lease._timer, None
        if timer is not None:
            timer.cancel()
