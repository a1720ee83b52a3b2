"""A circuit breaker: who failed too often in a row is left alone for a while, then asked once.

*Closed*: ask. After ``failures`` in a row it is *open*: don't ask. When ``pause`` seconds are over it is *half-open*:
one may ask; if that fails, it is open again, for twice as long if pauses may grow, and if it is answered, closed.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define


@define
class _Target:
    """One that failed lately.

    :ivar failures: in a row.
    :ivar pause: how long it is left alone, or was the last time.
    :ivar open_until: when the next one may ask; ``None`` while it is closed.
    :ivar probing: whether the one that may ask is doing so.
    """

    pause: float
    failures: int = 0
    open_until: float | None = None
    probing: bool = False


class Breaker:
    """Remembers failures by the name of who failed.

    Who asks says afterwards how it went, by one of :meth:`answered`, :meth:`failed` and :meth:`unknown`.

    :param failures: in a row, after which a target is left alone.
    :param pause: for so many seconds, the first time.
    :param longest_pause: each time that the one who may ask fails as well, the pause doubles up to this; ``None`` = it
        stays the same.
    :param seconds: the clock.
    :param most: so many targets, two or more, are remembered; beyond it the one that failed longest ago is forgotten,
        closed ones first. One that is all right takes no place.
    """

    def __init__(
        self,
        *,
        failures: int,
        pause: float,
        longest_pause: float | None = None,
        seconds: Callable[[], float],
        most: int = 1000,
    ) -> None:
        self._failures = failures
        self._pause = pause
        self._longest_pause = pause if longest_pause is None else longest_pause
        self._seconds = seconds
        self._most = most
        self._targets: dict[str, _Target] = {}

    def __len__(self) -> int:
        return len(self._targets)

    def allows(self, target: str) -> bool:
        """Whether ``target`` may be asked now. When it is half-open, only the first one who wants to know may."""
        state = self._targets.get(target)
        if state is None or state.open_until is None:
            return True
        if state.probing or self._seconds() < state.open_until:
            return False
        state.probing = True
        return True

    def remaining(self, target: str) -> float:
        """Seconds before it is worth while to want to know again."""
        state = self._targets.get(target)
        if state is None or state.open_until is None:
            return 0.0
        return state.pause if state.probing else max(0.0, state.open_until - self._seconds())

    def answered(self, target: str) -> bool:
        """It works; whether it was left alone until now."""
        state = self._targets.pop(target, None)
        return state is not None and state.open_until is not None

    def failed(self, target: str) -> bool:
        """It doesn't work; whether it will be left alone from now on, and wasn't before."""
        # The one that failed last goes to the end, so that the first is the one to forget.
        state = self._targets.pop(target) if target in self._targets else _Target(self._pause)
        self._targets[target] = state
        state.failures += 1
        was_closed = state.open_until is None
        if state.failures >= self._failures and (was_closed or state.probing):
            if not was_closed:
                state.pause = min(state.pause * 2, self._longest_pause)
            state.open_until = self._seconds() + state.pause
        state.probing = False
        self._forget()
        return was_closed and state.open_until is not None

    def unknown(self, target: str) -> None:
        """Whoever asked never learnt, as when it was cancelled: another one may ask in its place."""
        state = self._targets.get(target)
        if state is not None:
            state.probing = False

    def _forget(self) -> None:
        if len(self._targets) > self._most:
            *others, _ = self._targets
            closed = (name for name in others if self._targets[name].open_until is None)
            del self._targets[next(closed, others[0])]
