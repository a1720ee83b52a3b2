"""Giving requests back to their queue, so that they don't come to us once more: the broker counts each return."""

from __future__ import annotations

from edxagent.interfaces import IDelivery


class GivingBack:
    """At the end of a lane nothing is given back before the broker has answered all that the lane asked it.

    Until then a request could be handed to one of the consumers that are being cancelled.
    """

    def __init__(self) -> None:
        self._questions = 0
        self._ending = False
        self._waiting: list[IDelivery] = []

    def asked(self) -> None:
        """The broker was asked to begin a consumer, to cancel one, or for a single request."""
        self._questions += 1

    def answered(self) -> None:
        """It has answered, or will not."""
        self._questions -= 1
        if not self._questions:
            waiting, self._waiting = self._waiting, []
            for delivery in waiting:
                delivery.requeue()

    def end(self) -> None:
        """Every consumer is being cancelled."""
        self._ending = True

    def give(self, delivery: IDelivery) -> bool:
        """Give a request back, now or soon; false if its connection is known to be gone."""
        if self._ending and self._questions:
            self._waiting.append(delivery)
            return True
        return delivery.requeue()
