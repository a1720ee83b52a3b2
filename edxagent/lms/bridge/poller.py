"""Fetches submissions from one queue of an LMS: at once while there are any, ever more rarely while there are none."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from edxagent.config.lms_values import BridgeConfig
from edxagent.lms.bridge.client import Client, QueueTrouble
from edxagent.lms.bridge.intake import Intake, Stopped
from edxagent.lms.bridge.outstanding import Outstanding
from edxagent.lms.bridge.pause import GrowingPause, Naps, Uniform
from edxagent.lms.bridge.session import Trouble

LMS_PAUSE = (1.0, 60.0)
"""Seconds that an LMS in trouble is left alone: at first, and at most."""


class Peace:
    """While an LMS is in trouble none of its queues is polled."""

    def __init__(self, clock: IReactorTime, uniform: Uniform) -> None:
        self._clock = clock
        self._pause = GrowingPause(*LMS_PAUSE, uniform)
        self._until = 0.0

    @property
    def left(self) -> float:
        """For how many seconds more."""
        return self._until - self._clock.seconds()

    def trouble(self) -> float:
        """Leave the LMS alone for so long. Several troubles at one time are one."""
        if self.left <= 0:
            self._until = self._clock.seconds() + self._pause.next()
        return self.left

    def all_is_well(self) -> None:
        """It answered."""
        self._pause.reset()


class Poller:
    """One queue.

    One request at a time: what it brings is with the broker before the next one is sent. So nothing piles up here, and
    two requests never race for a submission that is handed out a second time.

    :param turns: bounds the requests to the LMS.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        queue: str,
        config: BridgeConfig,
        client: Client,
        intake: Intake,
        outstanding: Outstanding,
        turns: DeferredSemaphore,
        peace: Peace,
        naps: Naps,
        uniform: Uniform,
    ) -> None:
        self._queue = queue
        self._origin = config.origin
        self._client = client
        self._intake = intake
        self._outstanding = outstanding
        self._turns = turns
        self._peace = peace
        self._naps = naps
        self._idle = GrowingPause(config.poll_initial, config.poll_max, uniform)
        self._trouble = GrowingPause(*LMS_PAUSE, uniform)

    async def run(self) -> None:
        """Poll until the end."""
        while not self._naps.over:
            if self._intake.stuck or self._outstanding.full:
                await self._outstanding.changed()
            elif self._peace.left > 0:
                await self._naps.sleep(self._peace.left)
            else:
                await self._naps.sleep(await self._poll())

    async def _poll(self) -> float:
        """Take one submission in; returns for how long there is nothing to do now."""
        try:
            if await self._fetch():
                self._idle.reset()
                return 0.0
        except QueueTrouble as trouble:
            return self._report(trouble, self._trouble.next())
        except Trouble as trouble:
            return self._report(trouble, self._peace.trouble())
        except Stopped as stopped:
            self._log.warn("{bridge}: a submission will come again: {reason}", bridge=self._origin, reason=str(stopped))
        except CancelledError:
            raise
        except Exception:
            self._log.failure("{bridge}: polling {queue} failed", bridge=self._origin, queue=self._queue)
            return self._trouble.next()
        return self._idle.next()

    async def _fetch(self) -> bool:
        """Whether there was a new submission."""
        await self._turns.acquire()
        try:
            item = None if self._naps.over else await self._client.get_submission(self._queue)
        finally:
            self._turns.release()
        self._peace.all_is_well()
        self._trouble.reset()
        return item is not None and await self._intake.take(self._queue, item)

    def _report(self, trouble: Trouble, pause: float) -> float:
        self._log.warn(
            "{bridge}: {queue} can't be polled: {reason}; again in {pause:.1f} s",
            bridge=self._origin,
            queue=self._queue,
            reason=str(trouble),
            pause=pause,
        )
        return pause
