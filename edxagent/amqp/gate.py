"""Backpressure: whether the transport can take more."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer


@implementer(IPushProducer)
class WriteGate:
    """Learns from the transport when its buffer is full, so that publishes wait instead of piling up.

    :ivar open: whether more may be written.
    """

    def __init__(self, reopened: Callable[[], None]) -> None:
        self.open = True
        self._reopened: Callable[[], None] | None = reopened

    def pauseProducing(self) -> None:
        """See ``IPushProducer``."""
        self.open = False

    def resumeProducing(self) -> None:
        """See ``IPushProducer``."""
        if self._reopened is not None:
            self.open = True
            self._reopened()

    def stopProducing(self) -> None:
        """See ``IPushProducer``."""
        self.shut()

    def shut(self) -> None:
        """Nothing will be written any more."""
        self.open = False
        self._reopened = None
