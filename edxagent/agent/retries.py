"""Whether a submission that failed is tried again, and when: the operator's ``[retry]``, applied to one failure."""

from __future__ import annotations

from attrs import frozen

from edxagent.config.values import RetryConfig
from edxagent.disposition import DEFAULT_TABLE, Limit
from edxagent.model import Outcome
from edxagent.wire.retry import Attempts


@frozen
class RetryPolicy:
    """Decides from what it is told alone."""

    config: RetryConfig

    def delay(
        self, outcome: Outcome, attempts: Attempts, *, now: float, retry_after: float | None = None
    ) -> float | None:
        """Seconds until the next attempt; ``None`` if that was the last one.

        The nth attempt is followed by the nth of the delays, the last of which is repeated, or by the next one that is
        as long as the grader asked for.

        :param attempts: those up to now, the one that failed too.
        :param now: seconds since the epoch.
        :param retry_after: seconds that the grader asked us to wait, if it did.
        """
        if self._is_final(outcome, attempts, now):
            return None
        delays = self.config.delays
        wanted = max(delays[min(attempts.attempt, len(delays)) - 1], retry_after or 0.0)
        return next((delay for delay in delays if delay >= wanted), delays[-1])

    def _is_final(self, outcome: Outcome, attempts: Attempts, now: float) -> bool:
        limit = DEFAULT_TABLE[outcome].retried_until
        if limit is None:
            return True
        if limit is Limit.TIME:
            return now - (attempts.first_failed or now) >= self.config.give_up_after
        failures = sum(
            attempts.failures.get(str(same), 0) for same, row in DEFAULT_TABLE.items() if row.retried_until is limit
        )
        return failures >= (self.config.timeout_attempts if limit is Limit.TIMEOUTS else self.config.crash_attempts)
