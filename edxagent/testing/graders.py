"""A grader that does what a test tells it, and the test suites that every grader should pass.

The suites are mix-ins. To hold your own grader against its contract (:class:`edxagent.interfaces.IGrader`)::

    class MyGraderTests(GraderContractTests, SlowGraderContractTests, twisted.trial.unittest.TestCase):
        def make_grader(self):
            return MyGrader(...)          # gives a verdict within moments

        def make_slow_grader(self):
            return MyGrader(...)          # is still at it after ten seconds

trial itself sees to it that no delayed call and no open socket is left when a test ends.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, maybeDeferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from edxagent.errors import GraderError
from edxagent.interfaces import GraderTools, IGrader, IGraderFactory
from edxagent.model import GraderRequest, GraderResponse

CORRECT = b'{"correct": true, "score": 1, "msg": "<p>ok</p>"}'
PATIENCE = 20.0
"""Seconds that the suites wait for what must come to pass in the end."""


@implementer(IGrader)
class StubGrader:
    """Gives scripted answers, and remembers what it was asked.

    :param answers: used in turn, the last one again and again: a reply, an error to raise, or ``None`` to hang.
    :ivar requests: every request, in order.
    :ivar hanging: the Deferreds of those that hang; fire one with a reply to let it go.
    :ivar cancelled: the ids of the submissions that were cancelled while hanging.
    """

    def __init__(self, *answers: bytes | Exception | None) -> None:
        self._answers = list(answers) or [CORRECT]
        self.requests: list[GraderRequest] = []
        self.hanging: list[Deferred[bytes]] = []
        self.cancelled: list[str] = []

    async def grade(self, request: GraderRequest) -> GraderResponse:
        """See :meth:`edxagent.interfaces.IGrader.grade`."""
        self.requests.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if answer is None:
            answer = await self._hang(request)
        if isinstance(answer, Exception):
            raise answer
        return GraderResponse(reply=answer)

    async def _hang(self, request: GraderRequest) -> bytes:
        waiting: Deferred[bytes] = Deferred()
        self.hanging.append(waiting)
        try:
            return await waiting
        except CancelledError:
            self.cancelled.append(request.submission)
            raise
        finally:
            self.hanging.remove(waiting)


def make_request(submission: str = "submission-1", **changes: Any) -> GraderRequest:
    """A small, ordinary request."""
    values: dict[str, Any] = {
        "queue": "test",
        "body": '{"student_response": "print(1)", "grader_payload": "", "student_info": "{}"}',
        "student_response": "print(1)",
        "grader_payload": "",
    }
    return GraderRequest(submission=submission, **{**values, **changes})


def build(
    factory: IGraderFactory, reactor: Any, *, concurrency: int = 10, max_reply: int = 1024 * 1024, **options: Any
) -> Any:
    """A factory's grader, with the defaults for the options that aren't given."""
    defaults = {key.name: key.default for key in factory.keys}
    tools = GraderTools(reactor=reactor, concurrency=concurrency, max_reply=max_reply)
    return factory.build({**defaults, **options}, tools)


def open_descriptors() -> int:
    """How many file descriptors this process has open (Linux)."""
    return len(os.listdir("/proc/self/fd"))


async def until(condition: Callable[[], bool], what: str, reactor: Any) -> None:
    """Wait until ``condition()`` holds.

    :raises AssertionError: it didn't within :data:`PATIENCE`.
    """
    give_up_at = reactor.seconds() + PATIENCE
    while not condition():
        if reactor.seconds() > give_up_at:
            raise AssertionError(f"waited {PATIENCE:g} s in vain: {what}")
        await deferLater(reactor, 0.01)


class _ContractTests:
    """What the suites share."""

    addCleanup: Callable[..., Any]
    assertEqual: Callable[..., Any]
    assertIsInstance: Callable[..., Any]
    assertTrue: Callable[..., Any]

    @property
    def reactor(self) -> Any:
        """The running reactor."""
        from twisted.internet import reactor

        return reactor

    def started(self, grader: Any) -> Any:
        """``grader``, started if it is a service, and stopped after the test."""
        if IService.providedBy(grader):
            grader.startService()
            self.addCleanup(self.stopped, grader)
        return grader

    async def stopped(self, grader: Any) -> None:
        """``grader`` as the agent leaves it."""
        if IService.providedBy(grader) and grader.running:
            await maybeDeferred(grader.stopService)

    def ask(self, grader: Any, submission: str = "submission-1", **changes: Any) -> Deferred[GraderResponse]:
        """Start grading."""
        return ensureDeferred(grader.grade(make_request(submission, **changes)))

    async def outcome_of(self, work: Deferred[GraderResponse]) -> GraderResponse | BaseException:
        """What became of it: a response or an error."""
        finished: list[Any] = []
        work.addBoth(finished.append)
        await until(lambda: bool(finished), "an end of grading", self.reactor)
        outcome: Any = finished[0].value if isinstance(finished[0], Failure) else finished[0]
        return outcome  # type: ignore[no-any-return]  # a Failure's value is typed as possibly None

    async def holds_nothing(self, action: Callable[[], Awaitable[None]]) -> None:
        """Fail if an action leaves descriptors open, other than those that its first run may have opened for good."""
        await action()
        before = open_descriptors()
        await action()
        await until(lambda: open_descriptors() <= before, "descriptors to be closed", self.reactor)


class GraderContractTests(_ContractTests):
    """For a grader that gives verdicts, quickly."""

    def make_grader(self) -> Any:
        """The grader, new."""
        raise NotImplementedError

    def test_interface(self) -> None:
        """The grader provides IGrader."""
        self.assertTrue(verifyObject(IGrader, self.make_grader()))

    async def test_answer(self) -> None:
        """A submission gets a response that holds bytes."""
        response = await self.ask(self.started(self.make_grader()))
        self.assertIsInstance(response, GraderResponse)
        self.assertIsInstance(response.reply, bytes)

    async def test_any_text(self) -> None:
        """Whatever a learner or an author can write may be graded."""
        grader = self.started(self.make_grader())
        for text in ("", "naïve 数学 \U0001f600", "\x00\x1b[2J\r\n", "\ud800", "x" * 2**20):
            response = await self.outcome_of(
                self.ask(grader, body=text, files=text, student_response=text, grader_payload=text, student_info=text)
            )
            self.assertIsInstance(response, GraderResponse)

    async def test_many_at_once(self) -> None:
        """Submissions may be graded at once, more of them than the agent has slots."""
        grader = self.started(self.make_grader())
        work = [self.ask(grader, f"submission-{number}") for number in range(25)]
        for each in work:
            self.assertIsInstance(await self.outcome_of(each), GraderResponse)

    async def test_cancel_at_once(self) -> None:
        """Cancelling before the reactor had a turn ends the work; the next submission is graded."""
        grader = self.started(self.make_grader())
        work = self.ask(grader)
        work.cancel()
        outcome = await self.outcome_of(work)
        self.assertIsInstance(outcome, (CancelledError, GraderResponse))
        self.assertIsInstance(await self.ask(grader), GraderResponse)

    async def test_cancel_afterwards(self) -> None:
        """Cancelling what has ended does nothing."""
        grader = self.started(self.make_grader())
        work = self.ask(grader)
        response = await self.outcome_of(work)
        work.cancel()
        self.assertIsInstance(response, GraderResponse)

    async def test_nothing_is_held(self) -> None:
        """After grading and stopping, the process has no more descriptors open than before."""

        async def grade() -> None:
            grader = self.started(self.make_grader())
            for number in range(5):
                await self.ask(grader, f"submission-{number}")
            await self.stopped(grader)

        await self.holds_nothing(grade)


class SlowGraderContractTests(_ContractTests):
    """For a grader that can be caught in the middle."""

    def make_slow_grader(self) -> Any:
        """A grader that takes ten seconds or longer."""
        raise NotImplementedError

    def is_under_way(self) -> bool:
        """Whether the grader has got into the middle of its work; tell, if you can see that from outside."""
        return True

    async def test_cancel_in_the_middle(self) -> None:
        """Cancelling ends work under way with CancelledError and lets go of what it held."""

        async def grade_and_cancel() -> None:
            grader = self.started(self.make_slow_grader())
            work = [self.ask(grader, f"submission-{number}") for number in range(5)]
            await until(self.is_under_way, "the work to be under way", self.reactor)
            self.assertEqual([each.called for each in work], [False] * 5)
            for each in work:
                each.cancel()
            for each in work:
                self.assertIsInstance(await self.outcome_of(each), CancelledError)
            await self.stopped(grader)

        await self.holds_nothing(grade_and_cancel)

    async def test_cancel_twice(self) -> None:
        """Cancelling again, as an impatient operator does, does no harm."""
        grader = self.started(self.make_slow_grader())
        work = self.ask(grader)
        await until(self.is_under_way, "the work to be under way", self.reactor)
        work.cancel()
        work.cancel()
        self.assertIsInstance(await self.outcome_of(work), CancelledError)


class FailingGraderContractTests(_ContractTests):
    """For graders that come to no verdict."""

    def make_failing_graders(self) -> Sequence[Any]:
        """Graders that fail at each submission, every one in its own way."""
        raise NotImplementedError

    async def test_named_failure(self) -> None:
        """A failure is one of those that edxagent names, told in one line."""
        for grader in self.make_failing_graders():
            outcome = await self.outcome_of(self.ask(self.started(grader)))
            self.assertIsInstance(outcome, GraderError)
            self.assertEqual(len(str(outcome).splitlines()), 1)

    async def test_failure_holds_nothing(self) -> None:
        """After failing and stopping, the process has no more descriptors open than before."""

        async def fail() -> None:
            for grader in self.make_failing_graders():
                await self.outcome_of(self.ask(self.started(grader)))
                await self.stopped(grader)

        await self.holds_nothing(fail)
