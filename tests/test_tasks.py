"""Tests for :mod:`edxagent.tasks`."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from edxagent.tasks import Patience, Tasks


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


class PatienceTests(SynchronousTestCase):
    """How long an end is waited for."""

    def setUp(self) -> None:
        """Something that ends some day."""
        self.clock = Clock()
        self.patience = Patience(self.clock)
        self.cancelled = 0

    def end(self) -> Deferred[None]:
        """Something that can be cancelled."""

        def cancel(_: Deferred[None]) -> None:
            self.cancelled += 1

        return Deferred(cancel)

    def with_time(self, done: Deferred[None]) -> Deferred[bool]:
        """Wait ten seconds."""
        return Deferred.fromCoroutine(self.patience.with_time(10, done))

    def to_the_last(self, done: Deferred[None]) -> Deferred[bool]:
        """Wait ten seconds."""
        return Deferred.fromCoroutine(self.patience.to_the_last(10, done))

    def test_in_time(self) -> None:
        """What ends in time is told, and leaves no timer."""
        done = self.end()
        waiting = self.with_time(done)
        self.clock.advance(9)
        self.assertNoResult(waiting)
        done.callback(None)
        self.assertIs(self.successResultOf(waiting), True)
        self.assertEqual((self.clock.getDelayedCalls(), self.cancelled), ([], 0))

    def test_too_late(self) -> None:
        """What takes too long is cancelled."""
        waiting = self.with_time(self.end())
        self.clock.advance(10)
        self.assertEqual((self.successResultOf(waiting), self.cancelled), (False, 1))

    def test_a_hurry(self) -> None:
        """A hurry ends each kind of waiting."""
        for wait in (self.with_time, self.to_the_last):
            self.patience.renew()
            waiting = wait(self.end())
            self.patience.hurry()
            self.assertIs(self.successResultOf(waiting), False)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_in_a_hurry_already(self) -> None:
        """Then only what has to be waited for to the last has time, until nobody is in a hurry any more."""
        self.patience.hurry()
        self.assertIs(self.successResultOf(self.with_time(self.end())), False)
        self.assertNoResult(self.to_the_last(self.end()))
        self.patience.renew()
        self.assertNoResult(self.with_time(self.end()))
