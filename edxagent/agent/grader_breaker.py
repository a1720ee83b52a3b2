"""The breaker around the agent's grader: one that fails again and again gets no submissions for a while, then one.

*Closed*: submissions are taken. After ``[breaker] failures`` in a row it is *open*: the valve is shut, and they stay
in their queues, for other agents. When the pause is over it is *half-open*: one submission is taken and tried. If the
grader fails at that too, the next pause is twice as long; any other answer of its closes the breaker.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from edxagent.agent.valve import Valve
from edxagent.breaker import Breaker
from edxagent.config.values import BreakerConfig
from edxagent.model import Outcome
from edxagent.tasks import Tasks
from edxagent.words import shorten

CLOSED = "closed"
OPEN = "open"
HALF_OPEN = "half-open"

ANOTHER_AFTER = 1.0
"""Seconds until another submission is tried when one has told us nothing about the grader."""

_REASON = "breaker"
_GRADER = "grader"
_TELL_NOTHING = frozenset({Outcome.MALFORMED, Outcome.CANCELLED, Outcome.QUARANTINED})


class GraderBreaker:
    """See the module.

    Who asks the grader remembers :attr:`era` when it begins, and tells :meth:`report` how it went. What began in
    another era says nothing any more about this one.

    :param wall_clock: seconds since the epoch; ``clock`` may be a monotonic one.
    :ivar probe: takes one submission through its life, although the valve is shut; fires when it has ended, or when
        there will be none.
    :ivar state: ``closed``, ``open`` or ``half-open``.
    :ivar reason: why it isn't closed.
    :ivar since: when it came into this state, in seconds since the epoch.
    :ivar era: the number of changes of state until now.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        config: BreakerConfig,
        valve: Valve,
        clock: IReactorTime,
        wall_clock: Callable[[], float],
        probe: Callable[[], Deferred[None]] | None = None,
    ) -> None:
        self._valve = valve
        self._clock = clock
        self._wall_clock = wall_clock
        self._probes = Tasks()
        self._timer: IDelayedCall | None = None
        self.probe = probe
        self.state = CLOSED
        self.reason = ""
        self.since = wall_clock()
        self.era = 0
        self._go_by(config)

    @property
    def charges(self) -> bool:
        """Whether the grader's failures are held against submissions: not while it is known to fail at any."""
        return self.state == CLOSED

    def use(self, config: BreakerConfig) -> None:
        """Begin anew: with other settings, with another grader, or after :meth:`stop`."""
        self._go_by(config)
        self._enter(CLOSED, "")
        self._valve.open(_REASON)

    def stop(self) -> None:
        """Try none any more; the valve stays as it is."""
        self._enter(CLOSED, "")

    def report(self, outcome: Outcome, reason: str, *, era: int) -> bool:
        """How it went.

        :param reason: why, if it failed.
        :param era: the one in which the grader was asked.
        :returns: whether it may be held against the submission if it failed.
        """
        counts = outcome in self._counts
        charged = self.charges or not counts
        if era == self.era and outcome not in _TELL_NOTHING:
            if counts:
                self._failed(reason)
            else:
                self._answered()
        return charged

    def _go_by(self, config: BreakerConfig) -> None:
        self._counts = config.counts
        self._failures = config.failures
        self._breaker = Breaker(
            failures=config.failures,
            pause=config.pause,
            longest_pause=config.longest_pause,
            seconds=self._clock.seconds,
        )

    # Changes of state

    def _failed(self, reason: str) -> None:
        opened = self._breaker.failed(_GRADER)
        if opened or self.state == HALF_OPEN:
            often = f"{self._failures} times in a row" if self._failures > 1 else "once"
            self._open(f"the grader failed {often if opened else 'again'}: {shorten(reason)}")

    def _open(self, failure: str) -> None:
        pause = self._breaker.remaining(_GRADER)
        self._enter(OPEN, f"{failure}; one submission is tried in {pause:g} s")
        self._log.error("the grader's breaker is open: {reason}", reason=self.reason)
        self._valve.shut(_REASON, self.reason)
        self._timer = self._clock.callLater(pause, self._half_open)

    def _half_open(self) -> None:
        self._breaker.allows(_GRADER)
        self._enter(HALF_OPEN, self.reason)
        self._log.info("the grader's breaker is half-open: one submission is tried")
        self._try_one()

    def _answered(self) -> None:
        self._breaker.answered(_GRADER)
        if self.state != CLOSED:
            self._enter(CLOSED, "")
            self._log.info("the grader's breaker is closed: the grader answers")
            self._valve.open(_REASON)

    def _enter(self, state: str, reason: str) -> None:
        self._cancel_timer()
        self.state = state
        self.reason = reason
        self.since = self._wall_clock()
        self.era += 1

    # The one that is tried

    def _try_one(self) -> None:
        self._timer = None
        # One that has told us already may still be waiting for the broker: it comes here when it has ended.
        if self.probe is not None and not self._probes:
            self._probes.launch(self._probe(self.probe), "trying one submission")

    async def _probe(self, probe: Callable[[], Deferred[None]]) -> None:
        try:
            await probe()
        finally:
            if self.state == HALF_OPEN:
                self._timer = self._clock.callLater(ANOTHER_AFTER, self._try_one)

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
