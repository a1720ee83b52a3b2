"""Tests for the bookkeeping of publishes that the broker hasn't confirmed yet."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from edxagent.amqp.confirms import Confirms
from edxagent.errors import BrokerUnreachable
from tests.amqp_support import message


class CancelledTests(SynchronousTestCase):
    """A publish that was cancelled after it was written, with a canceller from when it still waited or without one."""

    def assert_harmless(self, answer: Callable[[Confirms], None]) -> None:
        """What the broker says of the cancelled one goes unheard, and its neighbour hears."""
        for canceller in (None, lambda deferred: None):
            confirms = Confirms()
            cancelled: Deferred[None] = Deferred(canceller)
            neighbour: Deferred[None] = Deferred()
            confirms.published(message("a"), cancelled)
            confirms.published(message("b"), neighbour)
            cancelled.cancel()
            answer(confirms)
            self.failureResultOf(cancelled, CancelledError)
            self.assertTrue(neighbour.called)
            neighbour.addErrback(lambda _: None)
            self.assertEqual(len(confirms), 0)

    def test_confirmed(self) -> None:
        """Its confirm does no harm."""
        self.assert_harmless(lambda confirms: confirms.settle(2, multiple=True, taken=True))

    def test_refused(self) -> None:
        """Nor does its refusal."""
        self.assert_harmless(lambda confirms: confirms.settle(2, multiple=True, taken=False))

    def test_lost(self) -> None:
        """Nor does the loss of the connection."""
        self.assert_harmless(lambda confirms: confirms.fail_all(BrokerUnreachable("gone")))
