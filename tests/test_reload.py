"""Tests for :mod:`edxagent.reload.changes`: one change at a time, none during a stop."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from edxagent.errors import ConfigError
from edxagent.reload.changes import Changes


class ChangesTests(SynchronousTestCase):
    """A program whose configuration is a word; upper case is beyond its reach."""

    def setUp(self) -> None:
        """It goes by ``a``."""
        self.word = "a"
        self.cancelled: list[str] = []
        self.taking: list[tuple[str, Deferred[None]]] = []
        self.changes: Changes[str] = Changes(
            current=lambda: self.word,
            within_reach=lambda old, new: (new.lower(), ["[case]"] if new != new.lower() else []),
            changed_sections=lambda old, new: ["[word]"] if old != new else [],
            take_over=self.take_over,
        )

    async def take_over(self, word: str) -> None:
        """Take it over when the test says so."""
        done: Deferred[None] = Deferred(lambda _: self.cancelled.append(word))
        self.taking.append((word, done))
        await done
        self.word = word

    def to(self, word: str) -> Deferred[None]:
        """Have it changed."""
        return Deferred.fromCoroutine(self.changes.to(word))

    def test_one_at_a_time(self) -> None:
        """The next one begins when the one before has ended."""
        first, second = self.to("b"), self.to("c")
        self.assertEqual([word for word, _ in self.taking], ["b"])
        self.taking[0][1].callback(None)
        self.successResultOf(first)
        self.assertEqual((self.word, [word for word, _ in self.taking]), ("b", ["b", "c"]))
        self.taking[1][1].callback(None)
        self.successResultOf(second)
        self.assertEqual(self.word, "c")

    def test_lines(self) -> None:
        """A line says what changed, and what needs a restart, or that nothing did."""
        with capturedLogs() as events:
            self.to("B")
            self.taking[0][1].callback(None)
            self.successResultOf(self.to("b"))
        self.assertEqual(
            [formatEvent(event) for event in events],
            [
                "[case] changed, and that needs a restart: until then it stays as it is",
                "the configuration has changed: [word]",
                "the configuration is as it was: nothing changed",
            ],
        )

    def test_error(self) -> None:
        """One that fails fails for who wanted it, and the next one isn't kept from it."""
        first, second = self.to("b"), self.to("c")
        self.taking[0][1].errback(ConfigError(["[word] can't be used"]))
        self.failureResultOf(first, ConfigError)
        self.taking[1][1].callback(None)
        self.successResultOf(second)
        self.assertEqual(self.word, "c")

    def test_stop(self) -> None:
        """A stop gives up the one that is under way, and those that wait; later there are some again."""
        first, second = self.to("b"), self.to("c")
        self.changes.stop()
        self.successResultOf(first)
        self.successResultOf(second)
        self.successResultOf(self.to("d"))
        self.assertEqual((self.word, self.cancelled, len(self.taking)), ("a", ["b"], 1))
        self.changes.resume()
        self.to("e")
        self.taking[1][1].callback(None)
        self.assertEqual(self.word, "e")
