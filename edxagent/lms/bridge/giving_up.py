"""The end of what waits too long for its verdict: the learner is told that it failed, and may submit again."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen
from twisted.logger import Logger

from edxagent.config.lms_values import BridgeConfig
from edxagent.errors import SinkRefused, SinkUnavailable
from edxagent.lms.bridge.outstanding import Outstanding, Waiting
from edxagent.lms.bridge.pause import Naps
from edxagent.lms.bridge.sink import PutResultSink
from edxagent.model import CheckedResult, Outcome
from edxagent.verdict import failure_verdict

LOOKS = 60
"""How often within ``give_up_after`` we look."""


@frozen(kw_only=True)
class GivingUp:
    """Looks for them.

    :ivar messages: outcome word → what learners are told instead of our own words.
    """

    _log = Logger()

    config: BridgeConfig
    sink: PutResultSink
    outstanding: Outstanding
    naps: Naps
    messages: Mapping[str, str]

    async def run(self) -> None:
        """Look until the end."""
        while not self.naps.over:
            await self.naps.sleep(self.config.give_up_after / LOOKS)
            for waiting in self.outstanding.older_than(self.config.give_up_after):
                if self.naps.over or not await self._give_up(waiting):
                    break

    async def _give_up(self, waiting: Waiting) -> bool:
        """Have one end; false if the LMS can't be told now."""
        if waiting.header is not None:
            try:
                await self.sink.give_up(self._failure(waiting, waiting.header))
            except SinkUnavailable as error:
                self._log.warn(
                    "{submission} can't be given up: {reason}", submission=waiting.submission, reason=str(error)
                )
                return False
            except SinkRefused as error:
                self._log.error("{submission} is given up: {reason}", submission=waiting.submission, reason=str(error))
        # Without its header it can't be answered. When the LMS hands it out again, it can: for that there must be room.
        self.outstanding.forget(waiting.submission)
        return True

    def _failure(self, waiting: Waiting, header: str) -> CheckedResult:
        outcome = Outcome.UNAVAILABLE
        return CheckedResult(
            submission=waiting.submission,
            outcome=str(outcome),
            queue=waiting.queue,
            origin=self.config.origin,
            header=header,
            verdict=failure_verdict(outcome, self.messages),
        )
