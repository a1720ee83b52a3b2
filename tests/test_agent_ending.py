"""Every request comes to one end, whatever graders do to it, and is acked only when the broker has what follows."""

from __future__ import annotations

import math
from itertools import product

from attrs import define, evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from edxagent.agent.ending import Announcer, Ending
from edxagent.agent.results import LONGEST_PAUSE, ResultPublisher
from edxagent.agent.retries import RetryPolicy
from edxagent.amqp.methods import decode_header, encode_header
from edxagent.config.values import FailureConfig, RetryConfig
from edxagent.disposition import DEFAULT_TABLE, dispose
from edxagent.errors import (
    GraderCrashed,
    GraderTimedOut,
    GraderUnavailable,
    MalformedSubmission,
    PublishFailed,
)
from edxagent.interfaces import IPublisher
from edxagent.model import (
    DEAD_EXCHANGE,
    REQUESTS_RETRY,
    RESULTS_EXCHANGE,
    Message,
    Outcome,
    Properties,
    Verdict,
    retry_name,
)
from edxagent.testing.memory import MemoryBroker, MemoryDelivery
from edxagent.wire.result import Phases
from tests.test_agent_life import CONFIG, GOOD, NOW, Bench, request

VERDICT = Verdict(correct=True, score=1, msg="<p>ok</p>")
ANSWERS = {
    Outcome.GRADED: GOOD,
    Outcome.MALFORMED: MalformedSubmission("no"),
    Outcome.UNAVAILABLE: GraderUnavailable("away"),
    Outcome.TIMED_OUT: GraderTimedOut("late"),
    Outcome.CRASHED: GraderCrashed("ended"),
    Outcome.BAD_REPLY: b"no verdict",
}
"""How a grader brings each outcome about."""

FAILING = [outcome for outcome in Outcome if outcome not in (Outcome.GRADED, Outcome.CANCELLED)]
WORDS = [str(outcome) for outcome in FAILING]
RETRY = st.builds(
    RetryConfig,
    delays=st.lists(st.sampled_from([5.0, 10.0, 30.0, 120.0]), min_size=1, unique=True).map(sorted).map(tuple),
    timeout_attempts=st.integers(1, 4),
    crash_attempts=st.integers(1, 4),
    give_up_after=st.floats(1, 300),
)


@define
class Stored:
    """What a memory broker makes a delivery of."""

    body: bytes
    properties: Properties
    deliveries: int = 0


class TableTests(SynchronousTestCase):
    """All rows, by all that an operator can say."""

    def test_one_visible_end(self) -> None:
        """A request goes back to its queue, or it is acked and leaves a trace; it never does both, or neither."""
        for told in product((True, False), repeat=len(WORDS)):
            tell_learner = dict(zip(WORDS, told, strict=True))
            for outcome, header_known in product(Outcome, (True, False)):
                row = dispose(outcome, tell_learner=tell_learner, header_known=header_known)
                self.assertIsNot(row.requeue, row.dead_letter or row.tell_learner)
                self.assertIs(row.requeue, outcome is Outcome.CANCELLED)
                self.assertIs(row.dead_letter, outcome in FAILING)
                if outcome in FAILING:
                    self.assertIs(row.tell_learner, tell_learner[str(outcome)] and header_known)


class BoundTests(SynchronousTestCase):
    """One request, attempt after attempt, by the messages that a broker carries in between."""

    @settings(max_examples=100)
    @given(RETRY, st.sets(st.sampled_from(Outcome), min_size=1, max_size=3).map(sorted), st.data())
    def test_every_request_ends(self, retry: RetryConfig, choice: list[Outcome], data: st.DataObject) -> None:
        """Whatever outcomes graders choose, they can do so only so often as ``[retry]`` has it, and then it is over."""
        announcer = Announcer(
            name="agent", grader="stub", results="r", failure=FailureConfig(), retries=RetryPolicy(retry)
        )
        outages = math.ceil(retry.give_up_after / retry.delays[0])
        most = (retry.timeout_attempts - 1) + (retry.crash_attempts - 1) + outages + 1
        properties = Properties(message_id="s-1", type="grading.request", headers={"x-origin": "lms"})
        now, attempts, cancelled = NOW, 0, 0
        while True:
            outcome = data.draw(st.sampled_from(choice), "outcome")
            if outcome is Outcome.CANCELLED and cancelled == 5:  # agents that are stopped, not the request's doing
                outcome = Outcome.UNAVAILABLE
            sequel = announcer.sequel(
                MemoryDelivery(MemoryBroker(Clock()), "q", Stored(b"body", properties)),
                Ending(
                    outcome=outcome,
                    reason="why",
                    header="h",
                    verdict=VERDICT if outcome is Outcome.GRADED else None,
                    retry_after=data.draw(st.none() | st.floats(0, 1e6), "Retry-After"),
                ),
                Phases(received=now),
                now,
            )
            now += data.draw(st.floats(0, 5), "seconds in the queue")
            if outcome is Outcome.CANCELLED:
                cancelled += 1
                self.assertEqual((sequel.messages, sequel.again_in), ((), None))
                continue
            attempts += 1
            self.assertLessEqual(attempts, most)
            if sequel.again_in is None:
                break
            (message,) = sequel.messages
            self.assertEqual(message.exchange, retry_name(REQUESTS_RETRY, sequel.again_in))
            self.assertEqual((message.routing_key, message.body), ("q", b"body"))
            _, properties = decode_header(encode_header(message.properties, 4))
            self.assertEqual((properties.message_id, properties.headers["x-origin"]), ("s-1", "lms"))
            self.assertEqual(properties.headers["x-attempt"], attempts + 1)
            now += sequel.again_in
        self.assertEqual([message.exchange for message in sequel.messages], exchanges_of(outcome))
        self.assertEqual({message.properties.message_id for message in sequel.messages}, {"s-1"})


def exchanges_of(outcome: Outcome) -> list[str]:
    """Where the messages go that end a request, in their order."""
    row = DEFAULT_TABLE[outcome]
    return [DEAD_EXCHANGE] * row.dead_letter + [RESULTS_EXCHANGE] * row.tell_learner


@implementer(IPublisher)
class HeldPublisher:
    """Leaves every publish to the test."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Deferred[None]]] = []
        self.confirmed: list[str] = []

    def publish(self, message: Message) -> Deferred[None]:
        """See :meth:`IPublisher.publish`."""
        waiting: Deferred[None] = Deferred()
        self.asked.append((message.exchange, waiting))
        return waiting

    def confirm(self) -> None:
        """The broker has the first one, if any is waiting still."""
        exchange, waiting = self.asked.pop(0)
        if not waiting.called:
            self.confirmed.append(exchange)
            waiting.callback(None)

    def refuse(self) -> None:
        """It hasn't."""
        _, waiting = self.asked.pop(0)
        if not waiting.called:
            waiting.errback(PublishFailed("no"))


class OrderTests(SynchronousTestCase):
    """One attempt, with a broker that takes its time, or doesn't take what it is sent."""

    def test_publisher(self) -> None:
        """The double is what the agent will meet."""
        verifyObject(IPublisher, HeldPublisher())

    @settings(max_examples=120)
    @given(
        st.sampled_from(sorted(ANSWERS)),
        st.booleans(),
        st.lists(st.sampled_from(["confirm", "confirm", "refuse", "wait", "cancel"]), max_size=12),
    )
    def test_acked_when_the_broker_has_it_all(self, outcome: Outcome, again: bool, steps: list[str]) -> None:
        """Not before the last confirm, but then at once; what isn't acked goes back, and only when that was asked."""
        config = evolve(CONFIG, retry=RetryConfig(delays=(5.0,), timeout_attempts=1 + again, crash_attempts=1 + again))
        retried = (again and outcome not in (Outcome.GRADED, Outcome.MALFORMED)) or outcome is Outcome.UNAVAILABLE
        wanted = [retry_name(REQUESTS_RETRY, 5)] if retried else exchanges_of(outcome)
        bench, publisher = Bench(ANSWERS[outcome], config=config), HeldPublisher()
        bench.use(ResultPublisher(publisher, "grading.results", bench.clock), config)
        delivery, cancelled = bench.take(request()), False
        with capturedLogs():
            life = bench.handle(delivery)
            for step in (*steps, *["wait", "confirm"] * 2):
                if step == "wait":
                    bench.clock.advance(LONGEST_PAUSE)
                elif step == "cancel":
                    cancelled = cancelled or not life.called
                    life.cancel()
                elif publisher.asked:
                    (publisher.confirm if step == "confirm" else publisher.refuse)()
                ready = publisher.confirmed == wanted
                self.assertEqual(delivery.settled, "ack" if ready else "requeue" if cancelled else None)
        self.assertIsNone(self.successResultOf(life))
        self.assertEqual(bench.slots.free, 1)
