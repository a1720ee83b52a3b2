"""A ledger of millions: it keeps a few bytes of each submission, and its id only while something is missing."""

from __future__ import annotations

import json
from collections import Counter

from edxagent.interfaces import IDelivery
from edxagent.wire.result import open_result
from tests.faults.ledger import Count
from tests.faults.soak.kinds import KINDS

ROOM = 1 << 16
MOST = 255
"""Verdicts on one submission, beyond which they aren't counted: a byte is what there is for them."""

_NAMES = list(KINDS)


class LongLedger:
    """As :class:`tests.faults.ledger.Ledger` to who sends and takes; ids are a kind's name, ``-`` and a number.

    :ivar missing: the ids that a broker has and that have no end yet; where a dead letter belongs to it, none of both.
    :ivar strangers: what came back and can't be right, in words.
    :ivar graded: agent → how many verdicts came from it.
    :ivar latest: agent and queue → the greatest number among its verdicts.
    :ivar ours: what came twice because we sent the request twice, not knowing whether the broker had it.
    :ivar again: what came twice because the broker didn't know any more that we had taken it.
    """

    def __init__(self) -> None:
        self.missing: set[str] = set()
        self.strangers: list[str] = []
        self.graded: Counter[str] = Counter()
        self.latest: dict[tuple[str, str], int] = {}
        self.ours = 0
        self.again = 0
        self._kinds = bytearray()
        self._verdicts = bytearray()
        self._dead = bytearray()
        self._confirmed = 0
        self._duplicated = 0
        self._reoffered: Counter[str] = Counter()
        self._excuses: Counter[str] = Counter()

    @property
    def entries(self) -> int:
        """How much has come."""
        return sum(self.graded.values())

    @property
    def by_agents(self) -> int:
        """What came twice and is neither :attr:`ours` nor :attr:`again`."""
        return self._duplicated - self.ours - self.again

    def offered(self, id: str) -> None:
        """It is being published."""
        kind, number = _parts(id)
        while number >= len(self._kinds):
            for each in (self._kinds, self._verdicts, self._dead):
                each.extend(bytes(ROOM))
        if self._kinds[number]:
            self._reoffered[id] += 1
            self._excuses[id] += 1
        self._kinds[number] = _NAMES.index(kind) + 1

    def accepted(self, id: str) -> None:
        """The broker has confirmed it: from now on it may not get lost."""
        self._confirmed += 1
        if not self._ended(*_parts(id)):
            self.missing.add(id)

    def verdict(self, delivery: IDelivery) -> None:
        """A verdict came; takes it out of its queue. Its ``message_id`` must be that of the request it answers."""
        id, headers = str(delivery.properties.message_id), delivery.properties.headers
        try:
            asked = json.loads(open_result(delivery.body)[0])["submission"]
        except (ValueError, KeyError, TypeError):
            asked = None
        if asked != id:
            self.strangers.append(f"a verdict on {asked} with the message_id {id}")
        self._enter(self._verdicts, id, delivery)
        agent = str(headers.get("x-agent"))
        self.graded[agent] += 1
        place = (agent, str(headers.get("x-queue")))
        self.latest[place] = max(_number(id), self.latest.get(place, 0))

    def dead_letter(self, delivery: IDelivery) -> None:
        """A dead letter came; takes it out of its queue."""
        id = str(delivery.properties.message_id)
        kind = KINDS.get(id.rpartition("-")[0])
        if kind is not None and not kind.dead:
            self.strangers.append(f"a dead letter of {id}: {delivery.properties.headers.get('x-outcome')}")
        self._enter(self._dead, id, delivery)

    def count(self) -> Count:
        """Sum up. What was expected of each kind of submission, :data:`KINDS` tells."""
        return Count(
            sent=self._confirmed,
            lost=len(self.missing),
            duplicated=self._duplicated,
            unexpected=len(self.strangers),
            recovered=sum(self._ended(*_parts(id)) for id in self._reoffered),
        )

    def wrong(self) -> list[str]:
        """Some of what is unexpected."""
        return self.strangers[:20]

    def _enter(self, ends: bytearray, id: str, delivery: IDelivery) -> None:
        delivery.ack()
        name, number = _parts(id)
        if name not in KINDS or number >= len(ends) or self._kinds[number] != _NAMES.index(name) + 1:
            self.strangers.append(f"something with the message_id {id}, which nobody sent")
            return
        outcome = str(delivery.properties.headers.get("x-outcome"))
        if outcome != KINDS[name].outcome:
            self.strangers.append(f"{id} is {outcome}")
        if ends[number]:
            self._duplicated += 1
            if self._excuses[id]:
                self._excuses[id] -= 1
                self.ours += 1
            elif delivery.redelivered:
                self.again += 1
        ends[number] = min(MOST, ends[number] + 1)
        if self._ended(name, number):
            self.missing.discard(id)

    def _ended(self, name: str, number: int) -> bool:
        return bool(self._verdicts[number] and (self._dead[number] or not KINDS[name].dead))


def _number(id: str) -> int:
    digits = id.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else -1


def _parts(id: str) -> tuple[str, int]:
    return id.rpartition("-")[0], _number(id)
