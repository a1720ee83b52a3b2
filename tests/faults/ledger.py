"""The ledger of a fault: every id that was sent, and every verdict and dead letter that came of it.

What it counts is what Jepsen's ``total-queue`` checker counts (https://github.com/jepsen-io/jepsen, ``checker.clj``):
what goes in must come out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping

from attrs import field, frozen

from edxagent.interfaces import IDelivery
from edxagent.wire.result import open_result

GRADED = frozenset(["graded"])


@frozen(kw_only=True)
class Count:
    """What a ledger comes to.

    :ivar sent: ids that a broker confirmed to have.
    :ivar lost: of these, those with neither a verdict nor a dead letter.
    :ivar duplicated: verdicts and dead letters beyond the first of their kind, with the same id.
    :ivar unexpected: those that nobody asked for, or that say what they mustn't.
    :ivar recovered: ids of which a broker didn't confirm a publish at first, but that have their end nevertheless.
    """

    sent: int
    lost: int
    duplicated: int
    unexpected: int
    recovered: int

    def __str__(self) -> str:
        return (
            f"{self.sent} sent: {self.lost} lost, {self.duplicated} duplicated, "
            f"{self.unexpected} unexpected, {self.recovered} recovered"
        )


@frozen
class Ledger:
    """Who publishes tells :meth:`offered` and :meth:`accepted`; who takes what comes back, the rest.

    :ivar offers: id → how often it was published.
    :ivar confirmed: the ids that a broker has.
    :ivar verdicts: id → the outcome words of its verdicts, in order.
    :ivar dead: id → the outcome words of its dead letters.
    :ivar strangers: what came back and can't be right, in words.
    """

    offers: Counter[str] = field(factory=Counter)
    confirmed: set[str] = field(factory=set)
    verdicts: dict[str, list[str]] = field(factory=dict)
    dead: dict[str, list[str]] = field(factory=dict)
    strangers: list[str] = field(factory=list)

    def offered(self, id: str) -> None:
        """It is being published."""
        self.offers[id] += 1

    def accepted(self, id: str) -> None:
        """The broker has confirmed it: from now on it may not get lost."""
        self.confirmed.add(id)

    def verdict(self, delivery: IDelivery) -> None:
        """A verdict came; takes it out of its queue. Its ``message_id`` must be that of the request it answers."""
        id = str(delivery.properties.message_id)
        try:
            asked = json.loads(open_result(delivery.body)[0])["submission"]
        except (ValueError, KeyError, TypeError):
            asked = None
        if asked != id:
            self.strangers.append(f"a verdict on {asked} with the message_id {id}")
        self._enter(self.verdicts, id, delivery)

    def dead_letter(self, delivery: IDelivery) -> None:
        """A dead letter came; takes it out of its queue."""
        self._enter(self.dead, str(delivery.properties.message_id), delivery)

    @property
    def missing(self) -> set[str]:
        """The ids that a broker has and that have no end yet."""
        return self.confirmed - self.verdicts.keys() - self.dead.keys()

    @property
    def entries(self) -> int:
        """How many ids have a verdict, and how many a dead letter."""
        return len(self.verdicts) + len(self.dead)

    @property
    def duplicates(self) -> dict[str, int]:
        """id → how many verdicts and dead letters it has beyond the first of their kind."""
        extra: Counter[str] = Counter()
        for ends in (self.verdicts, self.dead):
            extra.update({id: len(outcomes) - 1 for id, outcomes in ends.items()})
        return dict(+extra)

    def count(self, outcomes: Collection[str] = GRADED, dead: Mapping[str, Collection[str]] | None = None) -> Count:
        """Sum up.

        :param outcomes: the outcome words that verdicts may have.
        :param dead: the ids that may be dead letters → the outcome words that these may have; none by default.
        """
        ended = self.verdicts.keys() | self.dead.keys()
        return Count(
            sent=len(self.confirmed),
            lost=len(self.missing),
            duplicated=sum(self.duplicates.values()),
            unexpected=len(self.wrong(outcomes, dead)),
            recovered=sum(1 for id, times in self.offers.items() if times > 1 and id in ended),
        )

    def wrong(self, outcomes: Collection[str] = GRADED, dead: Mapping[str, Collection[str]] | None = None) -> list[str]:
        """What is unexpected, in words; the parameters are :meth:`count`'s."""
        allowed = dead or {}
        return [
            *self.strangers,
            *(f"{id}: {words}" for id, words in self.verdicts.items() if not set(words) <= set(outcomes)),
            *(f"dead {id}: {words}" for id, words in self.dead.items() if not set(words) <= set(allowed.get(id, ()))),
        ]

    def _enter(self, ends: dict[str, list[str]], id: str, delivery: IDelivery) -> None:
        if id not in self.offers:
            self.strangers.append(f"something with the message_id {id}, which nobody sent")
        ends.setdefault(id, []).append(str(delivery.properties.headers.get("x-outcome")))
        delivery.ack()
