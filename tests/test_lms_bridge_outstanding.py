"""How many submissions may be out."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from edxagent.lms.bridge.outstanding import FEW, Outstanding, Waiting


class OutstandingTests(SynchronousTestCase):
    """``Outstanding``, with graders that it is to keep busy."""

    def setUp(self) -> None:
        """Nothing is out, and nothing known."""
        self.clock = Clock()
        self.outstanding = Outstanding(240.0, self.clock.seconds)
        self.fetched = 0

    def fetch(self) -> None:
        """Fetch as much as may be."""
        while not self.outstanding.full:
            self.add(str(self.fetched))
            self.fetched += 1

    def add(self, name: str) -> None:
        """One is out."""
        self.outstanding.add(Waiting(submission=name, queue="q", header="{}", since=self.clock.seconds()))

    def grade(self, seconds: float, concurrency: int, until: float, waits: dict[str, float] | None = None) -> None:
        """Have graders work through what is out, oldest first, each submission for so long."""
        under_way: dict[str, float] = {}
        while self.clock.seconds() < until:
            self.fetch()
            for waiting in self.outstanding.older_than(0.0):
                if len(under_way) < concurrency and waiting.submission not in under_way:
                    under_way[waiting.submission] = self.clock.seconds() + seconds
            self.clock.advance(0.5)
            for name in [name for name, end in under_way.items() if end <= self.clock.seconds()]:
                del under_way[name]
                waited = next(w for w in self.outstanding.older_than(0.0) if w.submission == name).since
                if waits is not None:
                    waits[name] = self.clock.seconds() - waited
                self.outstanding.answered(name)

    def test_catches_up(self) -> None:
        """When graders become four times slower, it isn't long until submissions are answered in time again."""
        self.grade(seconds=2, concurrency=4, until=1500)
        self.grade(seconds=8, concurrency=4, until=4000)
        waits: dict[str, float] = {}
        self.grade(seconds=8, concurrency=4, until=5000, waits=waits)
        self.assertLess(max(waits.values()), 270)
        self.assertGreater(len(self.outstanding), 240 * 0.5 * 0.7)

    def test_begins_with_a_few(self) -> None:
        """As long as no verdict has come, only a few are out."""
        self.fetch()
        self.clock.advance(10_000)
        self.assertEqual((len(self.outstanding), self.outstanding.limit), (FEW, FEW))

    def test_grows_by_one_a_verdict(self) -> None:
        """A quick first verdict isn't taken for a promise: each one lets in one more."""
        self.fetch()
        self.clock.advance(0.01)
        self.outstanding.answered("0")
        self.assertEqual(self.outstanding.limit, FEW + 1)
        self.outstanding.answered("1")
        self.assertEqual(self.outstanding.limit, FEW + 2)

    def test_no_more_than_is_answered_in_time(self) -> None:
        """With graders that are always busy, nearly as much is out as they do in time, and nothing waits longer."""
        waits: dict[str, float] = {}
        self.grade(seconds=2, concurrency=4, until=1500, waits=waits)
        self.assertGreater(len(self.outstanding), 240 * 2 * 0.8)
        self.assertLess(max(waits.values()), 270)

    def test_slow_grader(self) -> None:
        """A single grader that takes a minute gets no more than it can do."""
        waits: dict[str, float] = {}
        self.grade(seconds=60, concurrency=1, until=4000, waits=waits)
        self.assertLess(max(waits.values()), 300)

    def test_too_slow_a_grader(self) -> None:
        """One that takes ten minutes still gets a few."""
        self.grade(seconds=600, concurrency=FEW, until=6000)
        self.assertEqual(self.outstanding.limit, FEW)

    def test_fewer_when_graders_go(self) -> None:
        """When graders stop, what may be out falls to a few again."""
        self.grade(seconds=2, concurrency=4, until=600)
        self.assertGreater(self.outstanding.limit, 100)
        self.clock.advance(600)
        self.assertEqual(self.outstanding.limit, FEW)

    def test_idle_time_counts_for_nothing(self) -> None:
        """A night without submissions doesn't make graders slow."""
        self.grade(seconds=2, concurrency=4, until=600)
        for waiting in self.outstanding.older_than(0.0):
            self.outstanding.forget(waiting.submission)
        before = self.outstanding.limit
        self.clock.advance(36_000)
        self.assertEqual(self.outstanding.limit, before)

    def test_strangers_count_for_nothing(self) -> None:
        """A verdict on what we don't know to be out, or that comes twice, says nothing about the graders."""
        self.add("a")
        self.clock.advance(1)
        for _ in range(100):
            self.outstanding.answered("b")
        self.assertEqual(self.outstanding.limit, FEW)

    def test_tells_of_changes(self) -> None:
        """Who waits for room is told when something was answered or forgotten; waiting can be cancelled."""
        self.fetch()
        first, second = self.outstanding.changed(), self.outstanding.changed()
        second.cancel()
        self.failureResultOf(second)
        self.outstanding.forget("0")
        self.successResultOf(first)
        third = self.outstanding.changed()
        self.assertNoResult(third)
        self.outstanding.answered("1")
        self.successResultOf(third)

    def test_knows_the_old(self) -> None:
        """What waits for longer than a time is told, with the header that came last."""
        self.add("old")
        self.clock.advance(10)
        self.add("new")
        self.outstanding.found("old", "later")
        [waiting] = self.outstanding.older_than(10)
        self.assertEqual((waiting.submission, waiting.header, waiting.since), ("old", "later", 0.0))
        self.assertNotIn("later", repr(waiting))
