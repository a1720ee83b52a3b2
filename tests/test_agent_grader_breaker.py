"""Tests for :mod:`edxagent.agent.grader_breaker`."""

from __future__ import annotations

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from edxagent.agent.grader_breaker import GraderBreaker
from edxagent.agent.valve import Valve
from edxagent.config.values import BreakerConfig
from edxagent.model import Outcome

CONFIG = BreakerConfig(failures=3, counts=("unavailable", "bad-reply"), pause=5, longest_pause=12)
NOW = 1_700_000_000.0


class BreakerTestCase(SynchronousTestCase):
    """A breaker that opens at the third failure, first for five seconds.

    :ivar probes: what the breaker waits for, of each submission that it had tried.
    """

    def setUp(self) -> None:
        """A breaker."""
        self.clock = Clock()
        self.valve = Valve()
        self.probes: list[Deferred[None]] = []
        self.breaker = GraderBreaker(
            config=CONFIG,
            valve=self.valve,
            clock=self.clock,
            wall_clock=lambda: NOW + self.clock.seconds(),
            probe=self.probe,
        )

    def probe(self) -> Deferred[None]:
        """Try one."""
        self.probes.append(Deferred())
        return self.probes[-1]

    def report(self, *outcomes: Outcome, era: int | None = None) -> list[bool]:
        """Submissions that began just now, or in another era, end."""
        return [
            self.breaker.report(outcome, "refused", era=self.breaker.era if era is None else era)
            for outcome in outcomes
        ]

    def fail(self, times: int = 3) -> None:  # type: ignore[override]  # of no use here
        """Fail so often in a row."""
        self.report(*[Outcome.UNAVAILABLE] * times)

    def probe_ends(self, outcome: Outcome | None) -> None:
        """The submission that was tried last ends; ``None`` = there was none."""
        if outcome is not None:
            self.report(outcome)
        self.probes[-1].callback(None)

    def states(self) -> tuple[str, bool]:
        """The breaker's, and whether submissions are taken."""
        return self.breaker.state, self.valve.is_open


class OpeningTests(BreakerTestCase):
    """Closed → open."""

    def test_failures_in_a_row(self) -> None:
        """The third failure in a row shuts the valve, and says why and for how long."""
        self.fail(2)
        self.assertEqual(self.states(), ("closed", True))
        self.clock.advance(7)
        self.fail(1)
        self.assertEqual(self.states(), ("open", False))
        reason = "the grader failed 3 times in a row: refused; one submission is tried in 5 s"
        self.assertEqual((self.valve.reasons, self.breaker.reason), ({"breaker": reason}, reason))
        self.assertEqual(self.breaker.since, NOW + 7)

    def test_an_answer_ends_the_row(self) -> None:
        """A grade, or a failure that isn't the grader's by the operator's words, shows that it is there."""
        for answer in (Outcome.GRADED, Outcome.CRASHED, Outcome.TIMED_OUT):
            self.fail(2)
            self.report(answer)
        self.fail(2)
        self.assertEqual(self.states(), ("closed", True))

    def test_no_answer_doesnt(self) -> None:
        """What says nothing of the grader is neither."""
        self.report(Outcome.UNAVAILABLE, Outcome.MALFORMED, Outcome.BAD_REPLY, Outcome.CANCELLED, Outcome.QUARANTINED)
        self.fail(1)
        self.assertEqual(self.states(), ("open", False))

    def test_charges(self) -> None:
        """Failures are held against submissions until it is open; those that it doesn't count, always."""
        self.assertEqual(self.report(*[Outcome.BAD_REPLY] * 3), [True, True, True])
        self.assertFalse(self.breaker.charges)
        self.assertEqual(self.report(Outcome.BAD_REPLY, Outcome.CRASHED, Outcome.MALFORMED, era=0), [False, True, True])

    def test_unfinished(self) -> None:
        """Those that had begun before it opened don't make it longer, nor end it, however they end."""
        self.fail()
        for outcome in (Outcome.UNAVAILABLE, Outcome.GRADED, Outcome.TIMED_OUT):
            self.clock.advance(1)
            self.report(outcome, era=0)
            self.assertEqual(self.states(), ("open", False))
        self.clock.advance(2)
        self.assertEqual(self.states(), ("half-open", False))
        self.report(Outcome.UNAVAILABLE, Outcome.GRADED, era=0)
        self.assertEqual(self.states(), ("half-open", False))

    def test_once(self) -> None:
        """Where one failure is enough, it says so."""
        self.breaker.use(evolve(CONFIG, failures=1))
        self.fail(1)
        self.assertEqual(self.breaker.reason, "the grader failed once: refused; one submission is tried in 5 s")

    def test_log(self) -> None:
        """Each change of state is logged, its reason on one line."""
        with capturedLogs() as logged:
            for _ in range(3):
                self.breaker.report(Outcome.UNAVAILABLE, "a\nb", era=0)
            self.clock.advance(5)
            self.probe_ends(Outcome.GRADED)
        events = [event for event in logged if event["log_namespace"].endswith("GraderBreaker")]
        self.assertEqual([event["log_level"] for event in events], [LogLevel.error, LogLevel.info, LogLevel.info])
        self.assertIn("is open: the grader failed 3 times in a row: a b; one", formatEvent(events[0]))


class HalfOpenTests(BreakerTestCase):
    """Open → half-open, and on from there."""

    def open(self) -> None:
        """Open it, and let the pause pass."""
        self.fail()
        self.clock.advance(4.9)
        self.assertEqual((self.states(), self.probes), (("open", False), []))
        self.clock.advance(0.1)

    def test_one(self) -> None:
        """When the pause is over, one submission is tried, and one only."""
        self.open()
        self.clock.advance(100)
        self.assertEqual((self.states(), len(self.probes)), (("half-open", False), 1))
        self.assertFalse(self.breaker.charges)

    def test_answered(self) -> None:
        """An answer closes it; a failure that isn't the grader's is one, too."""
        for outcome in (Outcome.GRADED, Outcome.CRASHED):
            self.open()
            self.probe_ends(outcome)
            self.assertEqual((self.states(), self.breaker.reason), (("closed", True), ""))
            self.assertEqual((self.breaker.charges, self.clock.getDelayedCalls()), (True, []))
            self.probes.clear()

    def test_fails_again(self) -> None:
        """The pause doubles with each that fails, up to the longest; after an answer it is short again."""
        self.open()
        for pause in (10, 12, 12):
            self.probe_ends(Outcome.UNAVAILABLE)
            self.assertEqual(
                self.valve.reasons["breaker"],
                f"the grader failed again: refused; one submission is tried in {pause} s",
            )
            self.clock.advance(pause - 0.1)
            self.assertEqual(self.states(), ("open", False))
            self.clock.advance(0.1)
            self.assertEqual(self.states(), ("half-open", False))
        self.assertEqual(len(self.probes), 4)
        self.probe_ends(Outcome.GRADED)
        self.probes.clear()
        self.open()

    def test_another(self) -> None:
        """One that says nothing of the grader, or comes to no end here, is followed by another, without a rush."""
        self.open()
        for number, outcome in enumerate((Outcome.MALFORMED, None, Outcome.CANCELLED), start=1):
            self.probe_ends(outcome)
            self.assertEqual((self.states(), len(self.probes)), (("half-open", False), number))
            self.clock.advance(1)
            self.assertEqual(len(self.probes), number + 1)
        self.probe_ends(Outcome.GRADED)
        self.assertEqual(self.states(), ("closed", True))

    def test_slow_end(self) -> None:
        """One whose end takes longer than the next pause keeps its place: two are never tried at once."""
        self.open()
        self.report(Outcome.UNAVAILABLE)
        self.clock.advance(20)
        self.assertEqual((self.states(), len(self.probes)), (("half-open", False), 1))
        self.probes[0].callback(None)
        self.clock.advance(1)
        self.assertEqual(len(self.probes), 2)

    def test_probe_fails(self) -> None:
        """When none could be taken, another one is tried, and what was wrong is logged."""
        self.open()
        self.probes[0].errback(ZeroDivisionError())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.clock.advance(1)
        self.assertEqual(len(self.probes), 2)


class UseTests(BreakerTestCase):
    """Other settings, and the end."""

    def test_begins_anew(self) -> None:
        """With other settings, or another grader, what was is forgotten, also by those who began before."""
        for seconds in (0, 5):
            era = self.breaker.era
            self.fail()
            self.clock.advance(seconds)
            self.breaker.use(evolve(CONFIG, failures=2, pause=1, counts=("crashed",)))
            self.assertEqual((self.states(), self.clock.getDelayedCalls()), (("closed", True), []))
            self.report(Outcome.CRASHED, Outcome.CRASHED, era=era)
            self.assertEqual(self.states(), ("closed", True))
            self.report(Outcome.CRASHED, Outcome.UNAVAILABLE, Outcome.CRASHED)
            self.assertEqual(self.states(), ("closed", True))
            self.report(Outcome.CRASHED)
            self.assertEqual(self.states(), ("open", False))
            self.breaker.use(CONFIG)

    def test_settings_that_came_while_it_was_closed(self) -> None:
        """Who began before they came says nothing any more."""
        era = self.breaker.era
        self.breaker.use(CONFIG)
        self.report(*[Outcome.UNAVAILABLE] * 3, era=era)
        self.assertEqual(self.states(), ("closed", True))

    def test_stop(self) -> None:
        """Stopped, it tries none, leaves no timer, and lets the one that is tried end; it can begin anew."""
        for seconds in (0, 5):
            self.fail()
            self.clock.advance(seconds)
            self.breaker.stop()
            self.assertEqual((self.valve.is_open, self.clock.getDelayedCalls()), (False, []))
            self.breaker.use(CONFIG)
            self.assertEqual(self.states(), ("closed", True))
        self.probe_ends(Outcome.GRADED)
        self.assertEqual((self.clock.getDelayedCalls(), len(self.probes)), ([], 1))
