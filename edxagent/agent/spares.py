"""Consumers kept ready beyond one a lane: as many as there are free slots, and no more."""

from __future__ import annotations

from typing import Protocol

from edxagent.limits import FairSlots


class SparesCredit(Protocol):
    """A lane, as far as its spare credits go."""

    def drop_spare(self) -> None:
        """Withdraw one."""
        ...


class Spares:
    """The credits beyond one a lane, over all lanes: never more than there are free slots."""

    def __init__(self, slots: FairSlots) -> None:
        self._slots = slots
        self._count = 0
        self._rich: dict[SparesCredit, None] = {}

    @property
    def allowed(self) -> bool:
        """Whether one more fits."""
        return self._count < self._slots.free

    def changed(self, lane: SparesCredit, before: int, after: int) -> None:
        """``lane`` had ``before`` credits and has ``after`` now."""
        self._count += max(after - 1, 0) - max(before - 1, 0)
        if after > 1:
            self._rich[lane] = None
        else:
            self._rich.pop(lane, None)

    def withdraw(self) -> None:
        """A slot was taken: cancel the spare credits that no slot is free for."""
        while self._count > self._slots.free:
            next(iter(self._rich)).drop_spare()
