"""Tests for :mod:`edxagent.breaker`."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from edxagent.breaker import Breaker


class BreakerTests(SynchronousTestCase):
    """Closed → open → half-open → closed."""

    def setUp(self) -> None:
        """A breaker that opens at the third failure, for ten seconds."""
        self.clock = Clock()
        self.breaker = Breaker(failures=3, pause=10, seconds=self.clock.seconds, most=5)

    def open(self, target: str = "lms") -> None:
        """Fail so often that it opens."""
        for _ in range(3):
            self.breaker.failed(target)

    def test_unknown_target(self) -> None:
        """One that never failed may be asked, and takes no place."""
        self.assertTrue(self.breaker.allows("lms"))
        self.assertFalse(self.breaker.answered("lms"))
        self.assertEqual((len(self.breaker), self.breaker.remaining("lms")), (0, 0.0))

    def test_opens_at_the_last_failure_in_a_row(self) -> None:
        """The third failure opens it, and says so; other targets may still be asked."""
        self.assertEqual([self.breaker.failed("lms") for _ in range(3)], [False, False, True])
        self.assertFalse(self.breaker.allows("lms"))
        self.assertEqual(self.breaker.remaining("lms"), 10.0)
        self.assertTrue(self.breaker.allows("other"))

    def test_an_answer_ends_the_row(self) -> None:
        """Failures before an answer don't count any more."""
        for _ in range(5):
            self.breaker.failed("lms")
            self.breaker.failed("lms")
            self.assertFalse(self.breaker.answered("lms"))
        self.assertTrue(self.breaker.allows("lms"))

    def test_one_probe(self) -> None:
        """After the pause one may ask, and only one."""
        self.open()
        self.clock.advance(9.5)
        self.assertFalse(self.breaker.allows("lms"))
        self.clock.advance(0.5)
        self.assertEqual([self.breaker.allows("lms") for _ in range(3)], [True, False, False])

    def test_probe_answered(self) -> None:
        """An answered probe closes it, and says so."""
        self.open()
        self.clock.advance(10)
        self.breaker.allows("lms")
        self.assertTrue(self.breaker.answered("lms"))
        self.assertEqual([self.breaker.allows("lms") for _ in range(3)], [True] * 3)
        self.assertEqual([self.breaker.failed("lms") for _ in range(3)], [False, False, True])

    def test_probe_failed(self) -> None:
        """A failed probe opens it for another pause; that is no news."""
        self.open()
        self.clock.advance(10)
        self.breaker.allows("lms")
        self.assertFalse(self.breaker.failed("lms"))
        self.assertFalse(self.breaker.allows("lms"))
        self.clock.advance(10)
        self.assertTrue(self.breaker.allows("lms"))

    def test_probe_without_an_end(self) -> None:
        """When the probe was cancelled, the next one may ask."""
        self.open()
        self.clock.advance(10)
        self.breaker.allows("lms")
        self.assertEqual(self.breaker.remaining("lms"), 10.0)
        self.breaker.unknown("lms")
        self.assertTrue(self.breaker.allows("lms"))
        self.breaker.unknown("never seen")

    def test_failures_of_those_who_asked_before_it_opened(self) -> None:
        """They don't make the pause longer."""
        self.open()
        self.clock.advance(9)
        self.assertFalse(self.breaker.failed("lms"))
        self.clock.advance(1)
        self.assertTrue(self.breaker.allows("lms"))

    def test_bounded(self) -> None:
        """However many targets fail, a few are remembered: open ones rather than closed ones, late ones rather."""
        self.open("open")
        for number in range(100):
            self.breaker.failed(str(number))
        self.assertEqual(len(self.breaker), 5)
        self.assertFalse(self.breaker.allows("open"))
        for number in range(100):
            self.open(f"open {number}")
        self.assertEqual(len(self.breaker), 5)
        self.assertTrue(self.breaker.allows("open"))
        self.assertFalse(self.breaker.allows("open 99"))


class GrowingPauseTests(SynchronousTestCase):
    """A breaker whose pauses grow."""

    def test_doubles(self) -> None:
        """Each probe that fails doubles the pause, up to the longest; an answer makes it the first again."""
        clock = Clock()
        breaker = Breaker(failures=1, pause=10, longest_pause=35, seconds=clock.seconds)
        for _ in range(2):
            for pause in (10, 20, 35, 35):
                breaker.failed("lms")
                self.assertEqual(breaker.remaining("lms"), pause)
                breaker.failed("lms")  # it had been asked before
                self.assertEqual(breaker.remaining("lms"), pause)
                clock.advance(pause)
                self.assertTrue(breaker.allows("lms"))
                self.assertEqual(breaker.remaining("lms"), pause)
            breaker.answered("lms")
