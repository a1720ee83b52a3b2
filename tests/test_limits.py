"""Tests for :mod:`edxagent.limits`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from edxagent.errors import GraderCrashed, GraderTimedOut
from edxagent.interfaces import IGrader
from edxagent.limits import LET_GO_WITHIN, DeadlineGrader, FairSlots
from edxagent.model import GraderRequest, GraderResponse

REQUEST = GraderRequest(submission="1", queue="q", body="{}", student_response="", grader_payload="")


class FairSlotsTests(SynchronousTestCase):
    """Whose turn is it?"""

    def test_free(self) -> None:
        """Free tokens go to whoever asks, at once."""
        slots = FairSlots(2, {})
        self.successResultOf(slots.acquire("a"))
        self.assertEqual((slots.free, slots.busy), (1, 1))
        self.successResultOf(slots.acquire("b"))
        self.assertNoResult(slots.acquire("a"))
        self.assertEqual((slots.free, slots.busy, slots.waiting), (0, 2, 1))

    def test_release(self) -> None:
        """A token that is given back goes to the one who waits."""
        slots = FairSlots(1, {})
        slots.acquire("a")
        waiting = slots.acquire("b")
        slots.release()
        self.successResultOf(waiting)
        slots.release()
        self.assertEqual((slots.free, slots.waiting), (1, 0))

    def test_cancel(self) -> None:
        """Who gives up loses the place, and nobody else's token."""
        slots = FairSlots(1, {})
        slots.acquire("a")
        first, second = slots.acquire("b"), slots.acquire("c")
        first.cancel()
        self.failureResultOf(first, CancelledError)
        slots.release()
        self.successResultOf(second)
        slots.release()
        self.assertEqual((slots.free, slots.waiting), (1, 0))

    def test_weights(self) -> None:
        """With every queue always waiting, shares follow the weights to within one turn."""
        weights = {"a": 5, "b": 3, "c": 1, "d": 1}
        slots = FairSlots(1, weights)
        granted: Counter[str] = Counter()
        slots.acquire("x")

        def wait(queue: str) -> None:
            slots.acquire(queue).addCallback(lambda _: (granted.update([queue]), wait(queue)))

        for queue in weights:
            wait(queue)
        for _ in range(1000):
            slots.release()
        for queue, weight in weights.items():
            self.assertApproximates(granted[queue], 100 * weight, 5)

    def test_no_savings(self) -> None:
        """A queue that was idle for long doesn't shut the others out when it comes back."""
        slots = FairSlots(1, {"a": 1, "b": 1})
        granted: list[str] = []
        slots.acquire("a")

        def wait(queue: str) -> None:
            slots.acquire(queue).addCallback(lambda _: (granted.append(queue), wait(queue)))

        wait("a")
        for _ in range(100):
            slots.release()
        wait("b")
        del granted[:]
        for _ in range(10):
            slots.release()
        self.assertLessEqual(granted.count("b"), 6)

    def test_hand_over(self) -> None:
        """A token can be handed to a queue out of turn; with nobody there it is free for all."""
        slots = FairSlots(1, {})
        slots.acquire("a")
        first, second = slots.acquire("b"), slots.acquire("c")
        slots.hand_over("c")
        self.successResultOf(second)
        self.assertNoResult(first)
        slots.hand_over("a")
        self.successResultOf(first)
        slots.hand_over("a")
        self.assertEqual((slots.free, slots.waiting), (1, 0))


class AloneTests(SynchronousTestCase):
    """Some must have no neighbours."""

    def test_alone(self) -> None:
        """Who wants to be alone waits for the busy to end, and keeps the others out meanwhile."""
        slots = FairSlots(3, {})
        slots.acquire("a"), slots.acquire("a")
        alone = slots.acquire("b", alone=True)
        other = slots.acquire("a")
        self.assertEqual((slots.free, slots.busy, slots.waiting), (0, 2, 2))
        slots.release()
        self.assertNoResult(alone)
        slots.release()
        self.successResultOf(alone)
        self.assertNoResult(other)
        self.assertEqual((slots.free, slots.busy, slots.waiting), (0, 1, 1))
        slots.release()
        self.successResultOf(other)
        self.assertEqual((slots.free, slots.busy, slots.waiting), (2, 1, 0))

    def test_idle(self) -> None:
        """With nobody there a token is granted alone at once."""
        slots = FairSlots(3, {})
        self.successResultOf(slots.acquire("a", alone=True))
        self.assertNoResult(slots.acquire("a", alone=True))
        self.assertNoResult(slots.acquire("a"))

    def test_before_its_turn(self) -> None:
        """As long as it isn't its turn, who wants to be alone keeps nobody out."""
        slots = FairSlots(2, {"a": 2, "b": 1})
        for _ in range(2):
            slots.acquire("b")
        alone = slots.acquire("b", alone=True)
        before = [slots.acquire("a") for _ in range(2)]
        slots.release(), slots.release()
        for waiting in before:
            self.successResultOf(waiting)
        self.assertNoResult(alone)

    def test_cancel(self) -> None:
        """Who gives up being alone, even when it is its turn, lets the others go on."""
        slots = FairSlots(2, {})
        slots.acquire("a")
        alone, other = slots.acquire("b", alone=True), slots.acquire("a")
        self.assertEqual((slots.free, slots.waiting), (0, 2))
        alone.cancel()
        self.failureResultOf(alone, CancelledError)
        self.successResultOf(other)
        self.assertEqual((slots.busy, slots.waiting), (2, 0))

    def test_hand_over(self) -> None:
        """A token that is handed to one who wants to be alone makes it its turn, but doesn't make it alone."""
        slots = FairSlots(2, {})
        slots.acquire("a"), slots.acquire("a")
        before, alone = slots.acquire("a"), slots.acquire("b", alone=True)
        slots.hand_over("b")
        self.assertNoResult(alone)
        self.assertNoResult(before)
        slots.hand_over("b")
        self.successResultOf(alone)
        self.assertNoResult(before)
        slots.hand_over("a")
        self.successResultOf(before)

    def test_hand_over_to_alone(self) -> None:
        """The only token that is held can be handed to one who wants to be alone."""
        slots = FairSlots(2, {})
        slots.acquire("a")
        alone = slots.acquire("b", alone=True)
        slots.hand_over("b")
        self.successResultOf(alone)
        self.assertNoResult(slots.acquire("a"))

    def test_hand_over_from_alone(self) -> None:
        """Who was alone and hands the token over lets in as many as there is room for."""
        slots = FairSlots(2, {})
        slots.acquire("a", alone=True)
        first, second, third = slots.acquire("a"), slots.acquire("b"), slots.acquire("b")
        slots.hand_over("b")
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertNoResult(third)

    @given(
        count=st.integers(1, 5),
        weights=st.dictionaries(st.sampled_from("abc"), st.integers(1, 9)),
        line=st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=30),
    )
    def test_turns(self, count: int, weights: dict[str, int], line: list[tuple[str, bool]]) -> None:
        """Being alone costs no turn and gains none: tokens go out in the same order as if nobody wanted it."""

        def order(*, wanted: bool) -> list[int]:
            slots = FairSlots(count, weights)
            granted: list[int] = []
            for _ in range(count):
                slots.acquire("x")
            for number, (queue, alone) in enumerate(line):
                slots.acquire(queue, alone=alone and wanted).addCallback(
                    lambda _, number=number: granted.append(number)
                )
            while slots.busy:
                slots.release()
            return granted

        self.assertEqual(order(wanted=True), order(wanted=False))
        self.assertEqual(len(order(wanted=True)), len(line))


class ReloadedSlotsTests(SynchronousTestCase):
    """Slots whose number and weights change while they are used."""

    def test_grow(self) -> None:
        """New tokens go to those who wait, at once."""
        slots = FairSlots(1, {})
        slots.acquire("a")
        waiting = [slots.acquire("a") for _ in range(3)]
        slots.resize(3)
        self.assertEqual([bool(one.called) for one in waiting], [True, True, False])
        self.assertEqual((slots.free, slots.busy, slots.waiting), (0, 3, 1))

    def test_shrink(self) -> None:
        """Tokens that are too many are kept as they come back."""
        slots = FairSlots(4, {})
        for _ in range(3):
            slots.acquire("a")
        waiting = slots.acquire("a"), slots.acquire("a")
        slots.resize(1)
        self.assertEqual((slots.free, slots.busy), (0, 4))
        for _ in range(3):
            slots.release()
            self.assertNoResult(waiting[1])
        slots.release()
        self.successResultOf(waiting[1])
        slots.release()
        self.assertEqual((slots.free, slots.busy), (1, 0))

    def test_again_while_shrinking(self) -> None:
        """Another number counts at once, though the last one isn't reached yet."""
        slots = FairSlots(4, {})
        for _ in range(4):
            slots.acquire("a")
        waiting = slots.acquire("a")
        slots.resize(1)
        slots.release()
        slots.resize(4)
        self.successResultOf(waiting)
        slots.resize(2)
        slots.resize(5)
        self.assertEqual((slots.free, slots.busy), (1, 4))

    def test_weights(self) -> None:
        """New weights hold from then on."""
        slots = FairSlots(1, {"a": 1, "b": 1})
        granted: Counter[str] = Counter()
        slots.acquire("x")

        def wait(queue: str) -> None:
            slots.acquire(queue).addCallback(lambda _: (granted.update([queue]), wait(queue)))

        wait("a"), wait("b")
        for weights in ({"a": 4, "b": 1}, {"a": 1, "b": 9}, {"b": 4}):
            slots.reweigh(weights)
            granted.clear()
            for _ in range(100):
                slots.release()
            share = 100 * weights.get("a", 1) / (weights.get("a", 1) + weights["b"])
            self.assertApproximates(granted["a"], share, 2)

    def test_gone(self) -> None:
        """Who waits for a queue that is gone keeps the place; its last token can still be handed over."""
        slots = FairSlots(1, {"a": 5})
        slots.acquire("a")
        waiting = slots.acquire("a")
        slots.reweigh({"b": 1})
        slots.release()
        self.successResultOf(waiting)
        slots.reweigh({"b": 1})
        slots.hand_over("a")
        self.assertEqual((slots.free, slots.waiting), (1, 0))

    def test_many(self) -> None:
        """Hundreds that give their token back as soon as they have it don't overflow the stack."""
        slots = FairSlots(1, {})
        slots.acquire("a")
        waiting = [slots.acquire("a").addCallback(lambda _: slots.release()) for _ in range(5000)]
        slots.release()
        for one in waiting:
            self.successResultOf(one)
        self.assertEqual((slots.free, slots.waiting), (1, 0))


class World:
    """Slots, everybody who uses them, and what is true of them at any time."""

    def __init__(self, test: SynchronousTestCase, count: int) -> None:
        self.test = test
        self.slots = FairSlots(count, {"a": 3, "b": 1})
        self.count = count
        self.waiting: dict[Deferred[None], bool] = {}
        self.held: list[bool] = []

    def acquire(self, queue: str, alone: bool, brief: bool) -> None:
        """Ask for a token; ``brief``, to give it back as soon as it is here."""
        waiter = self.slots.acquire(queue, alone=alone)
        self.waiting[waiter] = alone
        waiter.addCallbacks(self.granted, lambda failure: failure.trap(CancelledError), (waiter, brief))

    def granted(self, _: None, waiter: Deferred[None], brief: bool) -> None:
        """A token came."""
        alone = self.waiting.pop(waiter)
        self.test.assertFalse(alone and self.held, "it isn't alone")
        self.test.assertNotIn(True, self.held, "another is alone")
        self.held.append(alone)
        if brief:
            self.release(len(self.held) - 1)

    def release(self, which: int) -> None:
        """Give a token back."""
        if self.held:
            self.held.pop(which % len(self.held))
            self.slots.release()

    def hand_over(self, which: int, queue: str) -> None:
        """Give a token to a queue."""
        if self.held:
            self.held.pop(which % len(self.held))
            self.slots.hand_over(queue)

    def cancel(self, which: int) -> None:
        """Give a place up."""
        if self.waiting:
            waiter = list(self.waiting)[which % len(self.waiting)]
            del self.waiting[waiter]
            waiter.cancel()

    def resize(self, count: int) -> None:
        """Change the number of tokens."""
        self.count = count
        self.slots.resize(count)

    def check(self, held: int) -> None:
        """Fail if what the slots say isn't true, or too many tokens are out since ``held`` were, or too few."""
        test, slots, room = self.test, self.slots, self.count - len(self.held)
        test.assertEqual((slots.busy, slots.waiting), (len(self.held), len(self.waiting)))
        test.assertLessEqual(len(self.held), max(self.count, held))
        if self.waiting and room > 0:
            test.assertTrue(self.held, "nobody has a token, though some wait")
            test.assertTrue(any(self.held) or any(self.waiting.values()), "some wait though tokens are free")
        if not (any(self.held) or any(self.waiting.values())):
            test.assertEqual(slots.free, max(room, 0))
        test.assertFalse(slots.free and self.waiting)


QUEUES = st.sampled_from("abcd")
STEPS = st.one_of(
    st.tuples(st.just("acquire"), QUEUES, st.sampled_from([False, False, True]), st.sampled_from([False, False, True])),
    st.tuples(st.just("release"), st.integers(0, 9)),
    st.tuples(st.just("hand_over"), st.integers(0, 9), QUEUES),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("resize"), st.integers(1, 6)),
    st.tuples(st.just("reweigh"), st.dictionaries(QUEUES, st.integers(1, 9))),
)


class AnythingTests(SynchronousTestCase):
    """Whatever is done with slots, in whatever order."""

    @given(count=st.integers(1, 5), steps=st.lists(STEPS, max_size=60))
    def test_anything(self, count: int, steps: list[tuple[Any, ...]]) -> None:
        """Never are there more tokens out than there are; alone is alone; nobody is forgotten or granted twice."""
        world = World(self, count)
        for name, *arguments in steps:
            held = len(world.held)
            if name == "reweigh":
                weights: Mapping[str, int] = arguments[0]
                world.slots.reweigh(weights)
            else:
                getattr(world, name)(*arguments)
            world.check(held)
        while world.held:
            world.release(0)
        self.assertEqual((world.waiting, world.slots.free, world.slots.busy), ({}, world.count, 0))

    @given(weights=st.fixed_dictionaries({queue: st.integers(1, 9) for queue in "abc"}), alone=st.sampled_from("abc-"))
    def test_weights(self, weights: dict[str, int], alone: str) -> None:
        """With every queue always waiting, shares follow the weights, also of one that wants to be alone."""
        slots = FairSlots(3, weights)
        granted: Counter[str] = Counter()
        for _ in range(3):
            slots.acquire("x")

        def wait(queue: str) -> None:
            slots.acquire(queue, alone=queue == alone).addCallback(lambda _: (granted.update([queue]), wait(queue)))

        for queue in weights:
            wait(queue)
        rounds = 10
        while granted.total() < rounds * sum(weights.values()):
            slots.release()
        for queue, weight in weights.items():
            self.assertApproximates(granted[queue], rounds * weight, 3)


@implementer(IGrader)
class Stub:
    """A grader that answers what it is told to."""

    def __init__(self, work: Deferred[GraderResponse]) -> None:
        self.work = work

    def grade(self, request: GraderRequest) -> Deferred[GraderResponse]:
        """See :class:`IGrader`."""
        return self.work


class DeadlineGraderTests(SynchronousTestCase):
    """A grader that has to be in time."""

    def setUp(self) -> None:
        """A clock, and a grader with ten seconds."""
        self.clock = Clock()
        self.work: Deferred[GraderResponse] = Deferred()
        self.grader = DeadlineGrader(Stub(self.work), 10, self.clock)

    def grade(self) -> Deferred[GraderResponse]:
        """Grade something."""
        return Deferred.fromCoroutine(self.grader.grade(REQUEST))

    def test_interface(self) -> None:
        """It is a grader itself."""
        verifyObject(IGrader, self.grader)

    def test_in_time(self) -> None:
        """An answer in time comes through and leaves no timer behind."""
        grading = self.grade()
        self.clock.advance(9.9)
        self.work.callback(GraderResponse(reply=b"{}"))
        self.assertEqual(self.successResultOf(grading).reply, b"{}")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_late(self) -> None:
        """At the deadline the work is cancelled and the outcome is timed-out."""
        grading = self.grade()
        self.clock.advance(10)
        self.assertIn("10 s", str(self.failureResultOf(grading, GraderTimedOut).value))
        self.assertTrue(self.work.called)

    def test_own_error(self) -> None:
        """A grader's own error in time comes through."""
        grading = self.grade()
        self.work.errback(GraderCrashed("exit 1"))
        self.failureResultOf(grading, GraderCrashed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelled(self) -> None:
        """Cancelling from outside reaches the work and isn't taken for a deadline."""
        grading = self.grade()
        grading.cancel()
        self.failureResultOf(grading, CancelledError)
        self.assertTrue(self.work.called)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelled_with_another_error(self) -> None:
        """Whatever a grader raises when it is cancelled from outside, it was cancelled, and didn't crash."""
        self.work = Deferred(lambda work: work.errback(GraderCrashed("killed by SIGTERM")))
        self.grader = DeadlineGrader(Stub(self.work), 10, self.clock)
        grading = self.grade()
        grading.cancel()
        self.failureResultOf(grading, CancelledError)

    def test_does_not_let_go(self) -> None:
        """A grader that goes on regardless is left to itself after a while, and its submission has an end."""
        self.work = self.deaf()
        grading = self.grade()
        self.clock.advance(10)
        self.clock.advance(LET_GO_WITHIN - 0.1)
        self.assertNoResult(grading)
        self.clock.advance(0.2)
        self.assertIn("goes on", str(self.failureResultOf(grading, GraderTimedOut).value))
        self.work.errback(ValueError("too late for anybody"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_lets_go_slowly(self) -> None:
        """One that needs a moment is waited for, so that its slot isn't given away before."""
        self.work = self.deaf()
        grading = self.grade()
        self.clock.advance(10)
        self.clock.advance(LET_GO_WITHIN - 0.1)
        self.work.errback(GraderCrashed("killed"))
        self.assertNotIn("goes on", str(self.failureResultOf(grading, GraderTimedOut).value))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def deaf(self) -> Deferred[GraderResponse]:
        """Work that nobody can cancel, by a grader that has it."""

        class Deaf(Deferred[GraderResponse]):
            def cancel(self) -> None:
                pass

        work = Deaf()
        self.grader = DeadlineGrader(Stub(work), 10, self.clock)
        return work

    def test_cancels_itself(self) -> None:
        """A grader that raises ``CancelledError`` though nobody cancelled it has crashed."""
        grading = self.grade()
        self.work.cancel()
        self.failureResultOf(grading, GraderCrashed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_slow_to_let_go(self) -> None:
        """A grader that takes a while to die after the deadline counts as timed out, once it has died."""
        dead: Deferred[None] = Deferred()

        @implementer(IGrader)
        class Stubborn:
            """Needs time to end."""

            async def grade(self, request: GraderRequest) -> GraderResponse:
                """See :class:`IGrader`."""
                try:
                    return await Deferred()
                finally:
                    await dead

        grading = Deferred.fromCoroutine(DeadlineGrader(Stubborn(), 10, self.clock).grade(REQUEST))
        self.clock.advance(10)
        self.assertNoResult(grading)
        dead.callback(None)
        self.failureResultOf(grading, GraderTimedOut)
