"""Tests for :mod:`edxagent.testing.sinks`: its double keeps the contract that it stands for."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from edxagent.errors import SinkError, SinkRefused, SinkUnavailable
from edxagent.model import CheckedResult
from edxagent.testing.sinks import (
    FailingSinkContractTests,
    RecordingSink,
    SinkContractTests,
    SlowSinkContractTests,
    make_result,
)


class RecordingSinkContractTests(SinkContractTests, SlowSinkContractTests, FailingSinkContractTests, TestCase):
    """The double keeps the contract."""

    def make_sink(self) -> RecordingSink:
        """One that takes everything from the gateway."""
        return RecordingSink(takes=lambda result: result.origin == "gateway")

    def make_foreign_results(self) -> Sequence[CheckedResult]:
        """What came in by a bridge."""
        return [make_result(origin="bridge:a"), make_result(origin=None)]

    def make_slow_sink(self) -> RecordingSink:
        """One that hangs."""
        return RecordingSink(RecordingSink.HANG)

    def make_failing_sinks(self) -> Sequence[tuple[RecordingSink, type[SinkError]]]:
        """Two that fail."""
        return [
            (RecordingSink(SinkUnavailable("down")), SinkUnavailable),
            (RecordingSink(SinkRefused("no")), SinkRefused),
        ]


class RecordingSinkTests(SynchronousTestCase):
    """What a test learns from it."""

    def test_script(self) -> None:
        """Answers are used in turn, the last one again and again."""
        sink = RecordingSink(SinkUnavailable("down"), None)
        self.failureResultOf(Deferred.fromCoroutine(sink.deliver(make_result("1"))), SinkUnavailable)
        for _ in range(2):
            self.successResultOf(Deferred.fromCoroutine(sink.deliver(make_result("2"))))
        self.assertEqual([result.submission for result in sink.asked], ["1", "2", "2"])
        self.assertEqual([result.submission for result in sink.taken], ["2", "2"])

    def test_hang(self) -> None:
        """What hangs is taken when the test lets it go."""
        sink = RecordingSink(RecordingSink.HANG)
        work = Deferred.fromCoroutine(sink.deliver(make_result("1")))
        self.assertEqual(sink.taken, [])
        sink.hanging[0].callback(None)
        self.successResultOf(work)
        self.assertEqual([result.submission for result in sink.taken], ["1"])
