"""Tests for :mod:`edxagent.tasks`."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from edxagent.tasks import Tasks


async def wait_for(deferred: Deferred[None]) -> None:
    """A coroutine that waits."""
    await deferred


class TasksTests(SynchronousTestCase):
    """Launched and not forgotten."""

    def test_idle(self) -> None:
        """With nothing under way the set is idle at once."""
        self.successResultOf(Tasks().when_idle())

    def test_when_idle(self) -> None:
        """It is idle when the last one has ended."""
        tasks, first, second = Tasks(), Deferred[None](), Deferred[None]()
        tasks.launch(wait_for(first), "first")
        tasks.launch(wait_for(second), "second")
        idle = tasks.when_idle()
        first.callback(None)
        self.assertNoResult(idle)
        self.assertEqual(len(tasks), 1)
        second.callback(None)
        self.successResultOf(idle)

    def test_failure_is_logged(self) -> None:
        """A failure is logged, and the Deferred fires all the same."""
        tasks, trigger = Tasks(), Deferred[None]()
        task = tasks.launch(wait_for(trigger), "the thing")
        trigger.errback(ZeroDivisionError())
        self.assertIsNone(self.successResultOf(task))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_cancel(self) -> None:
        """Cancelling reaches all of them and is no failure to log."""
        tasks, trigger = Tasks(), Deferred[None]()
        task = tasks.launch(wait_for(trigger), "the thing")
        tasks.cancel()
        self.assertIsNone(self.successResultOf(task))
        self.assertEqual(len(tasks), 0)

    def test_stop_waiting(self) -> None:
        """Who no longer wants to wait doesn't disturb what is under way."""
        tasks, trigger = Tasks(), Deferred[None]()
        task = tasks.launch(wait_for(trigger), "the thing")
        idle = tasks.when_idle()
        idle.cancel()
        self.failureResultOf(idle, CancelledError)
        self.assertNoResult(task)
        trigger.callback(None)
        self.successResultOf(task)
