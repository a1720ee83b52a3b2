"""What the lanes of a session know of each other: whether others compete for slots, and who keeps spare consumers."""

from __future__ import annotations

from typing import Protocol

from edxagent.limits import FairSlots


class KeepsSpares(Protocol):
    """A lane, as the others see it."""

    def drop_spare(self) -> None:
        """Withdraw one of its spare credits."""
        ...


class Company:
    """The lanes that have a request at hand or are fetching one, and so compete for slots."""

    def __init__(self, slots: FairSlots) -> None:
        self._slots = slots
        self._competing: set[KeepsSpares] = set()

    def note(self, lane: KeepsSpares, competes: bool) -> None:
        """Whether ``lane`` competes now."""
        if competes:
            self._competing.add(lane)
        else:
            self._competing.discard(lane)

    def around(self, lane: KeepsSpares) -> bool:
        """Whether a slot that ``lane`` gets is one that another doesn't get."""
        if self._slots.waiting:
            return True
        return not self._slots.free and len(self._competing) > (lane in self._competing)


class Spares:
    """The credits beyond one a lane, over all lanes: never more than there are free slots."""

    def __init__(self, slots: FairSlots) -> None:
        self._slots = slots
        self._count = 0
        self._rich: dict[KeepsSpares, None] = {}

    @property
    def allowed(self) -> bool:
        """Whether one more fits."""
        return self._count < self._slots.free

    def changed(self, lane: KeepsSpares, before: int, after: int) -> None:
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
