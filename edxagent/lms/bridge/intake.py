"""What was fetched from the LMS goes to the broker, and the ledger remembers it: in this order.

The id of a message is made of the bridge's name, the LMS's id of the submission, and the key that it was handed out
under: whoever publishes it again publishes the same id. What can happen between two steps:

============================  =================================================================================
the bridge ends, or loses     the LMS, which hands out again after 5 minutes what isn't answered, makes it good
touch, after …
============================  =================================================================================
the LMS marked it pulled, and nobody knows of it: it comes again, and is new.
we never heard
it was fetched                as above.
the broker took it, and we    it comes again, the ledger doesn't know it, and it is **published again** with the
never heard of the confirm    same id. If it was graded meanwhile, there is a verdict in the ledger, and it isn't.
the broker confirmed it, and  as above: at least once. The sink posts only one of two verdicts.
the ledger wasn't written
the ledger was written        it comes again if nobody is quick enough, and is known: not published. Our own word
                              for a failure follows after ``give_up_after``, so that it ends in any case, even
                              where the broker lost everything.
its verdict was parked as     the LMS hands it out again only if it has no verdict: it is published again.
possibly recorded
============================  =================================================================================

While the broker or the ledger can't be used, whoever has something in hand waits here for it, and nothing more is
fetched from the LMS.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from edxagent.config.lms_values import BridgeConfig
from edxagent.errors import BrokerError, DatabaseUnavailable, MessageRefused
from edxagent.interfaces import IPublisher
from edxagent.lms.bridge.item import Item
from edxagent.lms.bridge.outstanding import Outstanding, Waiting
from edxagent.lms.bridge.pause import GrowingPause, Naps, Uniform
from edxagent.lms.bridge.sink import POSSIBLY, state_of
from edxagent.lms.contracts import ILedger, LedgerEntry
from edxagent.wire.request import encode_request

T = TypeVar("T")

PAUSE = (0.5, 30.0)
"""Seconds until the broker or the ledger is tried again: the first time, and the longest."""


class Stopped(Exception):
    """The service ends while the broker or the ledger is away."""


class Intake:
    """Takes in what the pollers of one LMS fetch.

    :param wall_clock: seconds since the epoch.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        config: BridgeConfig,
        publisher: IPublisher,
        ledger: ILedger,
        outstanding: Outstanding,
        naps: Naps,
        clock: IReactorTime,
        wall_clock: Callable[[], float],
        uniform: Uniform,
    ) -> None:
        self._config = config
        self._publisher = publisher
        self._ledger = ledger
        self._outstanding = outstanding
        self._naps = naps
        self._clock = clock
        self._wall_clock = wall_clock
        self._uniform = uniform
        self._stuck = 0

    @property
    def stuck(self) -> bool:
        """Whether the broker or the ledger is away."""
        return self._stuck > 0

    async def remember(self) -> None:
        """Learn from the ledger what an earlier life has published and nobody has answered.

        :raises Stopped: the service ends before the ledger could be read.
        """
        now = self._wall_clock()
        for entry in await self._insist(lambda: self._ledger.unanswered(self._config.origin, now)):
            if entry.submission not in self._outstanding:
                self._outstanding.add(self._known(entry, header=None))

    async def take(self, queue: str, item: Item) -> bool:
        """Publish a submission, unless that was done; whether it was new.

        :raises Stopped: the service ends before the broker has it.
        """
        submission = item.submission(self._config.name)
        if submission in self._outstanding:
            self._outstanding.found(submission, item.header)
            return False
        entry = await self._insist(lambda: self._ledger.find(submission))
        if entry is not None and state_of(entry) != POSSIBLY:
            if entry.outcome is None:
                self._outstanding.add(self._known(entry, item.header))
            return False
        # It waits before it is published: the verdict may be faster than the broker's confirm.
        waiting = Waiting(submission=submission, queue=queue, header=item.header, since=self._clock.seconds())
        self._outstanding.add(waiting)
        message = encode_request(
            queue=queue,
            submission=submission,
            header=item.header,
            body=item.body,
            files=item.files,
            timestamp=int(self._wall_clock()),
            origin=self._config.origin,
        )
        try:
            await self._insist(lambda: self._publisher.publish(message))
        except BaseException:
            self._outstanding.forget(submission)
            raise
        remote = str(item.remote)
        await self._insist(
            lambda: self._ledger.accepted(submission, origin=self._config.origin, queue=queue, remote=remote)
        )
        return True

    def _known(self, entry: LedgerEntry, header: str | None) -> Waiting:
        """Something that the ledger knows: it waits since the wall clock said so."""
        waited = max(0.0, self._wall_clock() - (entry.accepted or self._wall_clock()))
        return Waiting(
            submission=entry.submission, queue=entry.queue, header=header, since=self._clock.seconds() - waited
        )

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Try until it works.

        :raises Stopped: the service ends, and it doesn't.
        """
        pause = GrowingPause(*PAUSE, self._uniform)
        stuck = False
        try:
            while True:
                try:
                    return await call()
                except MessageRefused:
                    raise
                except (BrokerError, DatabaseUnavailable) as error:
                    if not stuck:
                        self._stuck += 1
                        stuck = True
                    if self._naps.over:
                        raise Stopped(str(error)) from error
                    seconds = pause.next()
                    self._log.warn(
                        "{bridge}: nothing more is fetched until this works ({reason}); again in {pause:.1f} s",
                        bridge=self._config.origin,
                        reason=str(error),
                        pause=seconds,
                    )
                await self._naps.sleep(seconds)
        finally:
            if stuck:
                self._stuck -= 1
                self._outstanding.wake()
