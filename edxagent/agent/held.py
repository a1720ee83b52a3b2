"""A request in our hands, from its arrival in a lane until it is settled."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from zope.interface import implementer

from edxagent.interfaces import IDelivery, IHeldDelivery
from edxagent.model import Properties


@implementer(IHeldDelivery)
class HeldDelivery:
    """A delivery that tells its lane when it begins and when it is about to be settled.

    :param settling: is told whether the request is given back.
    :param give_back: gives it back; says whether its connection is there.
    """

    def __init__(
        self,
        delivery: IDelivery,
        *,
        begun: Callable[[HeldDelivery], None],
        settling: Callable[[HeldDelivery, bool], None],
        give_back: Callable[[IDelivery], bool] = lambda delivery: delivery.requeue(),
    ) -> None:
        self._delivery = delivery
        self._begun = begun
        self._settling = settling
        self._give_back = give_back
        self._life: Deferred[None] | None = None
        self.queue: str = delivery.queue
        self.body: bytes = delivery.body
        self.properties: Properties = delivery.properties
        self.redelivered: bool = delivery.redelivered

    def follow(self, life: Deferred[None]) -> None:
        """Remember what takes it through its life."""
        self._life = life

    def cancel(self) -> None:
        """Make its life give it back."""
        if self._life is not None:
            self._life.cancel()

    def begin(self) -> None:
        """See :class:`edxagent.interfaces.IHeldDelivery`."""
        self._begun(self)

    def ack(self) -> bool:
        """See :class:`edxagent.interfaces.IDelivery`."""
        self._settling(self, False)
        return self._delivery.ack()

    def requeue(self) -> bool:
        """See :class:`edxagent.interfaces.IDelivery`."""
        self._settling(self, True)
        return self._give_back(self._delivery)
