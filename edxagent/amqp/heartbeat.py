"""Heartbeats: telling the peer that we live, noticing that it doesn't (AMQP 0-9-1 §4.2.7)."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

_TICKS_OF_SILENCE = 5


class Heartbeat:
    """Ticks twice an interval: sends when nothing else was sent, and takes a peer silent for two intervals for dead.

    It counts ticks instead of comparing times, so that neither a clock that jumps nor a process that was suspended
    makes a peer look dead.

    :param interval: seconds; what both sides agreed on.
    :param send: writes a heartbeat frame.
    :param dead: called once, when the peer has been silent for two intervals (and before half a one more).
    """

    def __init__(
        self, clock: IReactorTime, interval: float, send: Callable[[], None], dead: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._pause = interval / 2
        self._send = send
        self._dead = dead
        self._silent_ticks = 0
        self._sent = False
        self._call: IDelayedCall | None = clock.callLater(self._pause, self._tick)

    def heard(self) -> None:
        """Something arrived."""
        self._silent_ticks = 0

    def sent(self) -> None:
        """Something was written."""
        self._sent = True

    def stop(self) -> None:
        """End it; may be called again."""
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None

    def _tick(self) -> None:
        self._silent_ticks += 1
        if self._silent_ticks >= _TICKS_OF_SILENCE:
            self._call = None
            self._dead()
            return
        self._call = self._clock.callLater(self._pause, self._tick)
        if not self._sent:
            self._send()
        self._sent = False
