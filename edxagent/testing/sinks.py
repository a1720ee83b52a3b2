"""A sink that does what a test tells it, and the test suites that every sink should pass.

The suites are mix-ins. To hold your own sink against its contract (:class:`edxagent.interfaces.IResultSink`)::

    class MySinkTests(SinkContractTests, SlowSinkContractTests, FailingSinkContractTests, TestCase):  # trial's TestCase
        def make_sink(self):
            return MySink(...)            # the other end takes everything, within moments

        def make_slow_sink(self):
            return MySink(...)            # the other end doesn't answer for ten seconds or longer

        def make_failing_sinks(self):
            return [(MySink(...), SinkUnavailable), (MySink(...), SinkRefused)]

trial itself sees to it that no delayed call and no open socket is left when a test ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, maybeDeferred
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from edxagent.errors import SinkError
from edxagent.interfaces import IResultSink
from edxagent.model import CheckedResult, Verdict
from edxagent.testing.graders import open_descriptors, until

SECRET = "key-of-the-lms-77c0"
"""Is in the header of every result that :func:`make_result` makes."""


@implementer(IResultSink)
class RecordingSink:
    """Takes results as scripted, and remembers them.

    :param answers: used in turn, the last one again and again: ``None`` to take the result, an error to raise, or
        :attr:`HANG`.
    :param target: what :meth:`target` says.
    :param takes: which results are for this sink.
    :ivar asked: every result that it was handed, in order.
    :ivar taken: those that it took, in order; a result that came twice is in it twice.
    :ivar hanging: the Deferreds of those that hang; fire one with ``None`` to take the result.
    :ivar cancelled: the ids of the submissions that were cancelled while hanging.
    """

    HANG = object()

    def __init__(
        self,
        *answers: object,
        target: str = "https://lms.example.org",
        takes: Callable[[CheckedResult], bool] = lambda result: True,
    ) -> None:
        self.answers: list[object] = list(answers) or [None]
        self._target = target
        self._takes = takes
        self.asked: list[CheckedResult] = []
        self.taken: list[CheckedResult] = []
        self.hanging: list[Deferred[None]] = []
        self.cancelled: list[str] = []

    def target(self, result: CheckedResult) -> str | None:
        """See :meth:`edxagent.interfaces.IResultSink.target`."""
        return self._target if self._takes(result) else None

    async def deliver(self, result: CheckedResult) -> None:
        """See :meth:`edxagent.interfaces.IResultSink.deliver`."""
        self.asked.append(result)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is self.HANG:
            await self._hang(result)
        elif isinstance(answer, Exception):
            raise answer
        self.taken.append(result)

    async def _hang(self, result: CheckedResult) -> None:
        waiting: Deferred[None] = Deferred()
        self.hanging.append(waiting)
        try:
            await waiting
        except CancelledError:
            self.cancelled.append(result.submission)
            raise
        finally:
            self.hanging.remove(waiting)


def make_result(submission: str = "submission-1", **changes: Any) -> CheckedResult:
    """A small, ordinary result."""
    values: dict[str, Any] = {
        "outcome": "graded",
        "queue": "test",
        "origin": "gateway",
        "header": json.dumps({"lms_callback_url": "https://lms.example.org/score_update", "lms_key": SECRET}),
        "verdict": Verdict(correct=True, score=1.0, msg="<p>ok</p>"),
        "headers": {"x-agent": "agent-1", "x-attempt": 1},
    }
    return CheckedResult(submission=submission, **{**values, **changes})


class _ContractTests:
    """What the suites share."""

    addCleanup: Callable[..., Any]
    assertEqual: Callable[..., Any]
    assertIs: Callable[..., Any]
    assertIsInstance: Callable[..., Any]
    assertNotIn: Callable[..., Any]
    assertTrue: Callable[..., Any]

    @property
    def reactor(self) -> Any:
        """The running reactor."""
        from twisted.internet import reactor

        return reactor

    def make_result(self, submission: str, **changes: Any) -> CheckedResult:
        """A result for this sink; override it if :func:`make_result` makes none."""
        return make_result(submission, **changes)

    def started(self, sink: Any) -> Any:
        """``sink``, started if it is a service, and stopped after the test."""
        if IService.providedBy(sink):
            sink.startService()
            self.addCleanup(self.stopped, sink)
        return sink

    async def stopped(self, sink: Any) -> None:
        """``sink`` as the updater's root leaves it."""
        if IService.providedBy(sink) and sink.running:
            await maybeDeferred(sink.stopService)

    def offer(self, sink: Any, submission: str = "submission-1", **changes: Any) -> Deferred[None]:
        """Begin to hand a result over."""
        return ensureDeferred(sink.deliver(self.make_result(submission, **changes)))

    async def outcome_of(self, work: Deferred[None]) -> BaseException | None:
        """What became of it: ``None``, or an error."""
        finished: list[Any] = []
        work.addBoth(finished.append)
        await until(lambda: bool(finished), "an end of the delivery", self.reactor)
        outcome: Any = finished[0].value if isinstance(finished[0], Failure) else finished[0]
        return outcome  # type: ignore[no-any-return]

    async def holds_nothing(self, action: Callable[[], Any]) -> None:
        """Fail if an action leaves descriptors open, other than those that its first run may have opened for good."""
        await action()
        before = open_descriptors()
        await action()
        await until(lambda: open_descriptors() <= before, "descriptors to be closed", self.reactor)


class SinkContractTests(_ContractTests):
    """For a sink whose other end takes everything, quickly."""

    def make_sink(self) -> Any:
        """The sink, new."""
        raise NotImplementedError

    def make_foreign_results(self) -> Sequence[CheckedResult]:
        """Results that aren't for this sink."""
        return ()

    def test_interface(self) -> None:
        """The sink provides IResultSink."""
        self.assertTrue(verifyObject(IResultSink, self.make_sink()))

    def test_target(self) -> None:
        """A result that is for the sink has a target, always the same, without the credential in its header."""
        sink = self.make_sink()
        result = self.make_result("submission-1")
        target = sink.target(result)
        self.assertIsInstance(target, str)
        self.assertNotIn(SECRET, target)
        self.assertEqual(sink.target(result), target)

    def test_no_target(self) -> None:
        """A result that isn't for the sink has none."""
        sink = self.make_sink()
        for result in self.make_foreign_results():
            self.assertIs(sink.target(result), None)

    async def test_take(self) -> None:
        """A result is taken."""
        self.assertIs(await self.outcome_of(self.offer(self.started(self.make_sink()))), None)

    async def test_take_again(self) -> None:
        """The same result may come again, also at the same time."""
        sink = self.started(self.make_sink())
        for _ in range(2):
            self.assertIs(await self.outcome_of(self.offer(sink)), None)
        for work in [self.offer(sink, "submission-2"), self.offer(sink, "submission-2")]:
            self.assertIs(await self.outcome_of(work), None)

    async def test_any_verdict(self) -> None:
        """Whatever the LMS could take may be delivered."""
        sink = self.started(self.make_sink())
        verdicts = [
            Verdict(correct=False, score=0.0, msg="plain"),
            Verdict(correct=True, score=1e308, msg="<p>naïve 数学 \U0001f600</p>"),
            Verdict(correct=True, score=1 / 3, msg="&nbsp;<br>" * 10_000),
        ]
        for number, verdict in enumerate(verdicts):
            work = self.offer(sink, f"submission-{number}", verdict=verdict)
            self.assertIs(await self.outcome_of(work), None)

    async def test_failure_verdicts(self) -> None:
        """Our word for a failure is taken as well, before a grade and after it."""
        sink = self.started(self.make_sink())
        for outcome in ("crashed", "graded", "crashed", "graded"):
            self.assertIs(await self.outcome_of(self.offer(sink, outcome=outcome)), None)

    async def test_many_at_once(self) -> None:
        """Results may be under way at once, more than the updater's concurrency."""
        sink = self.started(self.make_sink())
        for work in [self.offer(sink, f"submission-{number}") for number in range(25)]:
            self.assertIs(await self.outcome_of(work), None)

    async def test_cancel_at_once(self) -> None:
        """Cancelling before the reactor had a turn ends the attempt; the result is taken when it comes again."""
        sink = self.started(self.make_sink())
        work = self.offer(sink)
        work.cancel()
        self.assertTrue(isinstance(await self.outcome_of(work), (CancelledError, type(None))))
        self.assertIs(await self.outcome_of(self.offer(sink)), None)

    async def test_nothing_is_held(self) -> None:
        """After delivering and stopping, the process has no more descriptors open than before."""

        async def deliver() -> None:
            sink = self.started(self.make_sink())
            for number in range(5):
                await self.offer(sink, f"submission-{number}")
            await self.stopped(sink)

        await self.holds_nothing(deliver)


class SlowSinkContractTests(_ContractTests):
    """For a sink that can be caught in the middle."""

    def make_slow_sink(self) -> Any:
        """A sink whose other end takes ten seconds or longer."""
        raise NotImplementedError

    def is_under_way(self) -> bool:
        """Whether the sink has got into the middle of its work; tell, if you can see that from outside."""
        return True

    async def test_cancel_in_the_middle(self) -> None:
        """Cancelling ends attempts under way with CancelledError and lets go of what they held."""

        async def deliver_and_cancel() -> None:
            sink = self.started(self.make_slow_sink())
            work = [self.offer(sink, f"submission-{number}") for number in range(5)]
            await until(self.is_under_way, "the delivery to be under way", self.reactor)
            self.assertEqual([each.called for each in work], [False] * 5)
            for each in work:
                each.cancel()
                each.cancel()  # as an impatient operator does
            for each in work:
                self.assertIsInstance(await self.outcome_of(each), CancelledError)
            await self.stopped(sink)

        await self.holds_nothing(deliver_and_cancel)


class FailingSinkContractTests(_ContractTests):
    """For sinks that can't hand a result over."""

    def make_failing_sinks(self) -> Sequence[tuple[Any, type[SinkError]]]:
        """Sinks that fail at each result, every one in its own way, and the error that each should raise."""
        raise NotImplementedError

    async def test_named_failure(self) -> None:
        """A failure is one of those that edxagent names, told in one line without a credential."""
        for sink, expected in self.make_failing_sinks():
            outcome = await self.outcome_of(self.offer(self.started(sink)))
            self.assertIsInstance(outcome, expected)
            self.assertEqual(len(str(outcome).splitlines()), 1)
            self.assertNotIn(SECRET, str(outcome))

    async def test_failure_holds_nothing(self) -> None:
        """After failing and stopping, the process has no more descriptors open than before."""

        async def fail() -> None:
            for sink, expected in self.make_failing_sinks():
                self.assertIsInstance(await self.outcome_of(self.offer(self.started(sink))), expected)
                await self.stopped(sink)

        await self.holds_nothing(fail)
