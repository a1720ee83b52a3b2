"""Tests for :mod:`edxagent.lms.gateway.pull` and what it is made of, over a broker in memory."""

from __future__ import annotations

import json
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from edxagent.agent.ending import Announcer
from edxagent.agent.results import ResultPublisher
from edxagent.agent.returns import MANY_RETURNS
from edxagent.amqp.channel import QueueInfo
from edxagent.config.lms_values import GatewayConfig
from edxagent.config.values import FailureConfig
from edxagent.errors import BrokerError, BrokerUnreachable, PublishFailed
from edxagent.interfaces import IDelivery
from edxagent.lms.contracts import IPull, Reply
from edxagent.lms.gateway.channels import MOST_IDLE, Channels
from edxagent.lms.gateway.pull import ANSWER_WITHIN, MAX_REPLY, MOST_MALFORMED, Pull
from edxagent.model import Message, Properties
from edxagent.testing.memory import MemoryBroker, MemoryPublisher
from edxagent.wire.request import encode_request

NOW = 1_700_000_000.0
LEASE = 60.0
HEADER = '{"lms_key": "key-of-the-lms"}'
BODY = json.dumps({"student_response": "text-of-the-learner", "grader_payload": "", "student_info": "{}"})
GOOD = '{"correct": true, "score": 0.5, "msg": "<p>ok</p>"}'
EMPTY = Reply(1, "Queue 'q' is empty")
TAKEN = Reply(0, "")
NO_SUCH = Reply(1, "Submission does not exist")
NOT_NOW = Reply(1, "The verdict can't be passed on now; send it again")


class MemoryChannel:
    """A channel of a :class:`MemoryBroker`, for every queue."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._waiters: list[Deferred[BrokerError]] = []
        self._held: list[Any] = []
        self.closed = False

    async def get(self, queue: str) -> IDelivery | None:
        """Take a message."""
        delivery = await self._broker.port(queue).get()
        self._held.append(delivery)
        return delivery

    async def declare_queue(self, name: str, *, passive: bool) -> QueueInfo:
        """Ask for a queue."""
        await self._broker._ask(lambda: self._broker.port(name)._queue())
        return QueueInfo(name=name, messages=len(self._broker.bodies(name)), consumers=0)

    async def close(self) -> None:
        """Close it."""
        self.closed = True

    def when_closed(self) -> Deferred[BrokerError]:
        """Fires when it is closed."""
        self._waiters.append(Deferred())
        return self._waiters[-1]

    def lose(self) -> None:
        """The broker closes it, and takes back what it holds."""
        self.closed = True
        for delivery in self._held:
            if delivery is not None and delivery.settled is None:
                delivery.settle(True)
                delivery.lost = True
        for waiter in self._waiters:
            waiter.callback(BrokerUnreachable("lost"))


class Bench:
    """The pull side with its surroundings."""

    def __init__(self, *, most: int = 100, **changes: Any) -> None:
        self.clock = Clock()
        self.broker = MemoryBroker(self.clock)
        self.broker.declare("q", "q2")
        self.broker.bind("grading.dead", "q", "q.dead")
        self.broker.bind("grading.results", "grading.results", "grading.results")
        self.publisher = MemoryPublisher(self.broker)
        self.opened: list[MemoryChannel] = []
        self.missed: list[str] = []
        self.opening: Deferred[None] | None = None
        config = GatewayConfig(queues=("q", "q2"), users={}, lease=LEASE, **changes)
        self.pull = Pull(
            config=config,
            channels=Channels(open_channel=self._open, missing=self._missing, most=most),
            announcer=Announcer(name="gateway-1", grader="pull", results="grading.results", failure=FailureConfig()),
            results=ResultPublisher(self.publisher, "grading.results", self.clock),
            clock=self.clock,
            wall_clock=lambda: NOW + self.clock.seconds(),
        )
        self.pull.open()
        self.logged: list[LogEvent] = []

    async def _open(self) -> MemoryChannel:
        if self.opening is not None:
            await self.opening
        self.opened.append(MemoryChannel(self.broker))
        return self.opened[-1]

    async def _missing(self, queue: str) -> None:
        self.missed.append(queue)
        self.broker.declare(queue)

    def put(self, *submissions: str, queue: str = "q", **properties: Any) -> None:
        """Put requests into a queue."""
        for submission in submissions:
            self.put_message(request(submission, **properties), queue)

    def put_message(self, message: Message, queue: str = "q") -> None:
        """Put a message into a queue."""
        self.broker.put(queue, message.body, properties=message.properties)

    def turn(self, seconds: float = 0.0) -> None:
        """Let time pass, and everybody talk."""
        self.clock.advance(seconds)
        self.clock.pump([0.001] * 50)

    def ask(self, queue: str = "q") -> Any:
        """``get_submission``: its header and the whole content; or the refusal, and ``None``."""
        reply = self.answer(self.pull.get_submission(queue))
        if reply.return_code:
            return reply
        return json.loads(reply.content)

    def lease(self) -> str:
        """``get_submission``: the header to answer with."""
        return str(self.ask()["xqueue_header"])

    def put_result(self, header: str, body: str = GOOD) -> Reply:
        """``put_result``."""
        return self.answer(self.pull.put_result(header, body))

    def answer(self, asked: Any) -> Reply:
        """What an endpoint answers, soon."""
        replies: list[Reply] = []
        with capturedLogs() as logged:
            Deferred.fromCoroutine(asked).addCallback(replies.append)
            self.turn()
        self.logged.extend(logged)
        assert replies, "there is no answer"
        return replies[0]

    def results(self) -> list[tuple[dict[str, Any], Properties]]:
        """What is in the results queue: verdict and properties."""
        return [
            (json.loads(json.loads(body)["xqueue_body"]), properties)
            for body, properties in self.broker.messages("grading.results")
        ]

    def state(self, queue: str = "q") -> tuple[int, int, int]:
        """How many requests of a queue are ready, unsettled, acked."""
        held = self.broker[queue]
        return len(held.ready), held.unsettled, held.acked


def request(submission: str = "s-1", **properties: Any) -> Message:
    """A request as the LMS side publishes it."""
    message = encode_request(
        queue="q", submission=submission, header=HEADER, body=BODY, files='{"a.c": "http://f/1"}', timestamp=1
    )
    return evolve(message, properties=evolve(message.properties, **properties))


class GivingOutTests(SynchronousTestCase):
    """``get_queuelen`` and ``get_submission``."""

    def test_contract(self) -> None:
        """It is what the site calls."""
        pull: IPull = Bench().pull
        self.assertIsNotNone(pull)

    def test_delivery(self) -> None:
        """What comes with a channel of its own is a delivery like any other."""
        bench = Bench()
        bench.put("s-1")
        taking = Deferred.fromCoroutine(Channels(open_channel=bench._open, missing=bench._missing, most=1).take("q"))
        bench.turn()
        taken = self.successResultOf(taking)
        verifyObject(IDelivery, taken)
        self.assertRaises(RuntimeError, lambda: (taken.ack(), taken.requeue()))
        bench.turn()
        self.assertEqual(bench.state(), (0, 0, 1))

    def test_queuelen(self) -> None:
        """The number of those that wait, as a number."""
        bench = Bench()
        bench.put("s-1", "s-2")
        self.assertEqual(bench.answer(bench.pull.get_queuelen("q")), Reply(0, 2))

    def test_unknown_queue(self) -> None:
        """A name that isn't configured is refused in XQueue's words, whatever the broker has."""
        bench = Bench()
        bench.broker.declare("secret")
        valid = Reply(1, "Valid queue names are: q, q2")
        self.assertEqual(bench.answer(bench.pull.get_queuelen("secret")), valid)
        self.assertEqual(bench.ask("secret"), Reply(1, "Queue 'secret' not found"))
        self.assertEqual(bench.opened, [])

    def test_empty(self) -> None:
        """An empty queue says so; asking over and over opens one channel in all."""
        bench = Bench()
        for _ in range(5):
            self.assertEqual(bench.ask(), EMPTY)
        self.assertEqual(len(bench.opened), 1)

    def test_content(self) -> None:
        """Body and files are verbatim; the header is the lease's, with an integer and a key, and not the LMS's."""
        bench = Bench()
        bench.put("s-1")
        content = bench.ask()
        header = json.loads(content.pop("xqueue_header"))
        self.assertEqual(content, {"xqueue_body": BODY, "xqueue_files": '{"a.c": "http://f/1"}'})
        self.assertEqual(set(header), {"submission_id", "submission_key"})
        self.assertIs(type(header["submission_id"]), int)
        self.assertGreaterEqual(len(header["submission_key"]), 32)
        self.assertEqual((bench.state(), bench.pull.leased), ((0, 1, 0), 1))

    def test_leases_differ(self) -> None:
        """No two submissions have an id or a key in common, and each has a channel of its own."""
        bench = Bench()
        bench.put(*map(str, range(20)))
        headers = [json.loads(bench.lease()) for _ in range(20)]
        for name in ("submission_id", "submission_key"):
            self.assertEqual(len({header[name] for header in headers}), 20)
        self.assertEqual(len(bench.opened), 20)

    def test_max_leases(self) -> None:
        """When as many are out as may be, more are refused, and left for others; one that is answered makes room."""
        bench = Bench(most=2)
        bench.put("s-1", "s-2", "s-3")
        header = bench.lease()
        bench.lease()
        self.assertEqual(bench.ask().return_code, 1)
        self.assertEqual((bench.state(), len(bench.opened)), ((1, 2, 0), 2))
        self.assertEqual(bench.put_result(header), TAKEN)
        self.assertIn("xqueue_header", bench.ask())
        self.assertEqual(len(bench.opened), 2)

    def test_refusals_are_logged_once(self) -> None:
        """Graders ask each second; why they get nothing is said when it changes."""
        bench = Bench(most=1)
        bench.put("s-1", "s-2")
        bench.lease()
        for _ in range(5):
            bench.ask()
        self.assertEqual(len([event for event in bench.logged if "get nothing" in event["log_format"]]), 1)

    def test_idle_channels_are_bounded(self) -> None:
        """After a rush most channels are closed."""
        bench = Bench()
        bench.put(*map(str, range(2 * MOST_IDLE)))
        headers = [bench.lease() for _ in range(2 * MOST_IDLE)]
        for header in headers:
            self.assertEqual(bench.put_result(header), TAKEN)
        self.assertEqual(len([channel for channel in bench.opened if not channel.closed]), MOST_IDLE)

    def test_silent_broker(self) -> None:
        """Without a connection the grader has its answer within five seconds, and nothing is left waiting."""
        bench = Bench()
        for asked in (bench.pull.get_submission("q"), bench.pull.get_queuelen("q")):
            bench.opening = Deferred()
            answer = Deferred.fromCoroutine(asked)
            bench.turn(ANSWER_WITHIN - 0.1)
            self.assertNoResult(answer)
            bench.turn(0.2)
            self.assertEqual(self.successResultOf(answer).return_code, 1)
        self.assertEqual(bench.clock.getDelayedCalls(), [])

    def test_missing_queue(self) -> None:
        """A queue that somebody deleted is asked for again, and empty until then."""
        bench = Bench()
        bench.broker.delete("q")
        self.assertEqual(bench.ask(), EMPTY)
        self.assertEqual(bench.missed, ["q"])
        bench.broker.delete("q")
        self.assertEqual(bench.answer(bench.pull.get_queuelen("q")), Reply(0, 0))

    def test_malformed(self) -> None:
        """What can't be read becomes a dead letter and a failure verdict, as the agent does it; the next is given."""
        bench = Bench()
        bench.put_message(Message(exchange="", routing_key="q", body=b"[]", properties=Properties(message_id="bad")))
        bad_body = json.dumps({"xqueue_header": HEADER, "xqueue_body": "[]"}).encode()
        bench.put_message(Message(exchange="", routing_key="q", body=bad_body, properties=Properties(message_id="b2")))
        bench.put("s-1")
        self.assertEqual(bench.ask()["xqueue_body"], BODY)
        self.assertEqual(bench.state(), (0, 1, 2))
        dead = [properties for _, properties in bench.broker.messages("q.dead")]
        self.assertEqual([each.message_id for each in dead], ["bad", "b2"])
        self.assertEqual({each.headers["x-outcome"] for each in dead}, {"malformed"})
        ((verdict, properties),) = bench.results()
        self.assertEqual((verdict["correct"], verdict["score"], properties.message_id), (False, 0, "b2"))

    def test_malformed_without_end(self) -> None:
        """One question clears away so many unreadable requests and no more."""
        bench = Bench()
        for _ in range(MOST_MALFORMED + 5):
            bench.broker.put("q", b"[]")
        self.assertEqual(bench.ask(), EMPTY)
        self.assertEqual(bench.state(), (5, 0, MOST_MALFORMED))

    def test_malformed_while_publishing_fails(self) -> None:
        """An unreadable request stays ours until the broker has its dead letter, and nobody waits for that."""
        bench = Bench()
        bench.broker.put("q", b"[]")
        bench.publisher.failures += [PublishFailed("no"), PublishFailed("no")]
        self.assertEqual(bench.ask(), EMPTY)
        self.assertEqual(bench.state(), (0, 1, 0))
        bench.turn(0.5)
        bench.turn(1.0)
        self.assertEqual(bench.state(), (0, 0, 1))
        self.assertEqual(len(bench.broker.bodies("q.dead")), 1)


class TakingBackTests(SynchronousTestCase):
    """``put_result``."""

    def test_graded(self) -> None:
        """The verdict goes to the results queue, under the submission's id and the LMS's header; then the ack."""
        bench = Bench()
        bench.put("s-1", correlation_id="c", headers={"x-origin": "gateway"})
        header = bench.lease()
        bench.turn(12)
        self.assertEqual(bench.put_result(header), TAKEN)
        ((verdict, properties),) = bench.results()
        self.assertEqual(verdict, {"correct": True, "score": 0.5, "msg": "<p>ok</p>"})
        self.assertEqual(json.loads(bench.broker.bodies("grading.results")[0])["xqueue_header"], HEADER)
        self.assertEqual((properties.message_id, properties.correlation_id), ("s-1", "c"))
        told = {name: properties.headers[f"x-{name}"] for name in ("outcome", "grader", "agent", "queue", "origin")}
        self.assertEqual(
            told, {"outcome": "graded", "grader": "pull", "agent": "gateway-1", "queue": "q", "origin": "gateway"}
        )
        received, started, finished = (
            properties.headers[f"x-{phase}"] for phase in ("received", "started", "finished")
        )
        self.assertEqual(received, started)
        self.assertTrue(12 <= finished - started < 12.2)
        self.assertEqual((bench.state(), bench.pull.leased), ((0, 0, 1), 0))

    def test_never_acked_before_the_confirm(self) -> None:
        """While the broker hasn't confirmed the verdict, the request is ours and the grader waits."""
        bench = Bench()
        bench.put("s-1")
        answer = Deferred.fromCoroutine(bench.pull.put_result(bench.lease(), GOOD))
        bench.clock.advance(0.0015)
        self.assertEqual(len(bench.results()), 1)
        self.assertEqual(bench.state(), (0, 1, 0))
        self.assertNoResult(answer)
        bench.turn()
        self.assertEqual(self.successResultOf(answer), TAKEN)
        self.assertEqual(bench.state(), (0, 0, 1))

    def test_reply_to(self) -> None:
        """A request that names another place gets its verdict there, or in the usual one if there is no such place."""
        bench = Bench()
        bench.broker.bind("grading.results", "elsewhere", "elsewhere")
        bench.put("s-1", reply_to="elsewhere")
        bench.put("s-2", reply_to="nowhere")
        self.assertEqual([bench.put_result(bench.lease()) for _ in range(2)], [TAKEN, TAKEN])
        self.assertEqual(len(bench.broker.bodies("elsewhere")), 1)
        self.assertEqual(bench.results()[0][1].headers["x-reply-to"], "nowhere")

    def test_id_in_digits(self) -> None:
        """An id as a text of digits is understood, as XQueue understands it."""
        bench = Bench()
        bench.put("s-1")
        header = json.loads(bench.lease())
        header["submission_id"] = str(header["submission_id"])
        self.assertEqual(bench.put_result(json.dumps(header)), TAKEN)

    def test_incorrect_format(self) -> None:
        """A header that holds no id and key is refused, whatever it holds; the lease goes on."""
        bench = Bench()
        bench.put("s-1")
        good = json.loads(bench.lease())
        for header in (
            "",
            "not JSON",
            "[]",
            "{}",
            "\ud800",
            "[" * 3000,
            json.dumps({"submission_id": good["submission_id"]}),
            json.dumps({"submission_key": good["submission_key"]}),
            json.dumps({**good, "submission_id": "x1"}),
            json.dumps({**good, "submission_id": 1.5}),
            json.dumps({**good, "submission_id": None}),
            json.dumps({**good, "submission_key": 5}),
            json.dumps({**good, "padding": "x" * 5000}),
        ):
            self.assertEqual(bench.put_result(header), Reply(1, "Incorrect reply format"), header[:50])
        self.assertEqual((bench.state(), bench.pull.leased, bench.results()), ((0, 1, 0), 1, []))

    def test_forged(self) -> None:
        """A wrong key is refused, and an id that never was; the grader that has the key can still answer."""
        bench = Bench()
        bench.put("s-1")
        header = bench.lease()
        good = json.loads(header)
        for key in ("", "0" * 32, good["submission_key"][:-1], good["submission_key"] + "0", "é"):
            forged = json.dumps({**good, "submission_key": key})
            self.assertEqual(bench.put_result(forged), Reply(1, "Incorrect key for submission"))
        for id in (good["submission_id"] + 1, 0, -1, 10**30, str(10**30)):
            self.assertEqual(bench.put_result(json.dumps({**good, "submission_id": id})).return_code, 1)
        self.assertEqual(bench.results(), [])
        self.assertEqual(bench.put_result(header), TAKEN)

    def test_twice(self) -> None:
        """A second verdict with the same key is refused after the first, and while that is under way."""
        bench = Bench()
        bench.put("s-1")
        header = bench.lease()
        first, second = (Deferred.fromCoroutine(bench.pull.put_result(header, GOOD)) for _ in range(2))
        bench.turn()
        self.assertEqual((self.successResultOf(first), self.successResultOf(second)), (TAKEN, NO_SUCH))
        self.assertEqual(bench.put_result(header), NO_SUCH)
        self.assertEqual((len(bench.results()), bench.state()), (1, (0, 0, 1)))

    def test_no_verdict(self) -> None:
        """What is no verdict for the LMS is never forwarded: dead letter, failure verdict, ack, return code 0."""
        for reply in (
            "", "{}", "[]", "null", "\ud800", '{"correct": true, "score": 1, "msg": ""}',
            '{"correct": "true", "score": 1, "msg": "x"}', '{"correct": true, "score": "1", "msg": "x"}',
            '{"correct": true, "score": -1, "msg": "x"}', '{"correct": true, "score": NaN, "msg": "x"}',
            '{"correct": true, "score": 1, "msg": "\\u0000"}', "[" * 10_000, " " * MAX_REPLY + GOOD,
        ):  # fmt: skip
            bench = Bench()
            bench.put("s-1")
            self.assertEqual(bench.put_result(bench.lease(), reply), TAKEN, reply[:50])
            ((_, dead),) = bench.broker.messages("q.dead")
            self.assertEqual((dead.headers["x-outcome"], dead.headers["x-grader"]), ("bad-reply", "pull"))
            ((verdict, properties),) = bench.results()
            self.assertEqual((verdict["correct"], verdict["score"]), (False, 0))
            self.assertEqual(properties.headers["x-outcome"], "bad-reply")
            self.assertEqual(bench.state(), (0, 0, 1))

    def test_secrets(self) -> None:
        """No log line holds a header, a key, or what the learner wrote."""
        bench = Bench()
        bench.put("s-1", "s-2")
        header = bench.lease()
        bench.put_result(header)
        bench.put_result(header)
        bench.put_result(bench.lease(), "text-of-the-grader")
        for secret in (
            "key-of-the-lms",
            "text-of-the-learner",
            "text-of-the-grader",
            json.loads(header)["submission_key"],
        ):
            self.assertNotIn(secret, str(bench.logged))
        self.assertEqual([event.get("outcome") for event in bench.logged], ["graded", None, "bad-reply"])


class ExpiryTests(SynchronousTestCase):
    """Leases that end without a verdict."""

    def test_expired(self) -> None:
        """The submission goes back to its queue and on to the next grader; the late answer is refused."""
        bench = Bench()
        bench.put("s-1")
        late = bench.lease()
        bench.turn(LEASE - 1)
        self.assertEqual((bench.ask(), bench.pull.leased), (EMPTY, 1))
        bench.turn(1)
        again = bench.lease()
        self.assertEqual(bench.put_result(late), NO_SUCH)
        self.assertEqual(bench.put_result(again), TAKEN)
        self.assertEqual((len(bench.results()), bench.state()), (1, (0, 0, 1)))

    def test_returned_often(self) -> None:
        """One that came back often goes back as a new message, confirmed, so that no broker drops it."""
        bench = Bench()
        bench.put("s-1", headers={"x-delivery-count": MANY_RETURNS, "x-origin": "gateway"})
        bench.lease()
        bench.turn(LEASE)
        ((_, properties),) = bench.broker.messages("q")
        self.assertEqual((properties.headers, properties.message_id), ({"x-origin": "gateway"}, "s-1"))
        self.assertEqual(bench.state(), (1, 0, 1))

    def test_returned_often_while_publishing_fails(self) -> None:
        """If it can't be published, it is returned all the same."""
        bench = Bench()
        bench.put("s-1", headers={"x-delivery-count": MANY_RETURNS})
        bench.lease()
        bench.publisher.failures.append(PublishFailed("no"))
        bench.turn(LEASE)
        self.assertEqual(bench.state(), (1, 0, 0))
        self.assertEqual(bench.broker["q"].returned, 1)

    def test_answer_in_time_but_slowly_confirmed(self) -> None:
        """A lease whose verdict is being published doesn't expire into a second grading."""
        bench = Bench()
        bench.put("s-1")
        header = bench.lease()
        bench.turn(LEASE - 0.2)
        bench.publisher.failures.append(PublishFailed("not yet"))  # so the next attempt is half a second later
        answer = Deferred.fromCoroutine(bench.pull.put_result(header, GOOD))
        bench.turn(0.3)
        self.assertEqual(bench.ask(), EMPTY)
        bench.turn(0.5)
        self.assertEqual(self.successResultOf(answer), TAKEN)
        self.assertEqual((len(bench.results()), bench.state()), (1, (0, 0, 1)))

    def test_broker_down(self) -> None:
        """A verdict that can't be published is refused in time; the lease goes on, and the grader may try again."""
        bench = Bench(confirm_timeout=4.0)
        bench.put("s-1")
        header = bench.lease()
        bench.publisher.failures += [BrokerUnreachable("down")] * 4
        answer = Deferred.fromCoroutine(bench.pull.put_result(header, GOOD))
        bench.turn(4.0)
        self.assertEqual(self.successResultOf(answer), NOT_NOW)
        self.assertEqual((bench.state(), bench.pull.leased), ((0, 1, 0), 1))
        bench.publisher.failures.clear()
        self.assertEqual(bench.put_result(header), TAKEN)
        self.assertEqual(len(bench.results()), 1)

    def test_broker_down_at_the_end_of_the_lease(self) -> None:
        """A lease that would have ended meanwhile ends when its verdict couldn't be published."""
        bench = Bench(confirm_timeout=4.0)
        bench.put("s-1")
        header = bench.lease()
        bench.turn(LEASE - 1)
        bench.publisher.failures += [BrokerUnreachable("down")] * 4
        answer = Deferred.fromCoroutine(bench.pull.put_result(header, GOOD))
        bench.turn(4.0)
        self.assertEqual(self.successResultOf(answer), NOT_NOW)
        self.assertEqual((bench.state(), bench.put_result(header)), ((1, 0, 0), NO_SUCH))

    def test_lost_channel(self) -> None:
        """When the broker takes a submission back, its lease is over and its place is free."""
        bench = Bench(most=1)
        bench.put("s-1")
        header = bench.lease()
        bench.opened[0].lose()
        self.assertEqual((bench.put_result(header), bench.pull.leased), (NO_SUCH, 0))
        self.assertEqual(bench.put_result(bench.lease()), TAKEN)

    def test_lost_while_publishing(self) -> None:
        """A verdict on its way is published all the same; if it can't be, the lease isn't brought back to life."""
        for failures, reply in (([], TAKEN), ([BrokerUnreachable("down")] * 9, NOT_NOW)):
            bench = Bench(confirm_timeout=4.0)
            bench.put("s-1")
            header = bench.lease()
            bench.publisher.failures += failures
            answer = Deferred.fromCoroutine(bench.pull.put_result(header, GOOD))
            bench.opened[0].lose()
            bench.turn()
            bench.turn(4.0)
            self.assertEqual(self.successResultOf(answer), reply)
            self.assertEqual(bench.pull.leased, 0)
            self.assertEqual(bench.clock.getDelayedCalls(), [])

    def test_grader_hangs_up(self) -> None:
        """A verdict that is here is passed on also when the grader doesn't wait for the answer."""
        bench = Bench()
        bench.put("s-1")
        answer = Deferred.fromCoroutine(bench.pull.put_result(bench.lease(), GOOD))
        answer.addErrback(lambda _: None)
        answer.cancel()
        bench.turn()
        self.assertEqual((len(bench.results()), bench.state()), (1, (0, 0, 1)))

    def test_grader_hangs_up_while_it_asks(self) -> None:
        """A grader that doesn't wait for its submission leaves nothing behind."""
        bench = Bench(most=1)
        bench.opening = Deferred()
        asked = Deferred.fromCoroutine(bench.pull.get_submission("q"))
        asked.addErrback(lambda _: None)
        asked.cancel()
        bench.opening = None
        bench.put("s-1")
        self.assertIn("xqueue_body", bench.ask())


class ClosingTests(SynchronousTestCase):
    """``close``."""

    def test_gives_back(self) -> None:
        """What is out goes back to its queue, and nothing more is given out or taken."""
        bench = Bench()
        bench.put("s-1", "s-2")
        header = bench.lease()
        closing = Deferred.fromCoroutine(bench.pull.close())
        bench.turn()
        self.successResultOf(closing)
        self.assertEqual(bench.state(), (2, 0, 0))
        self.assertEqual((bench.ask(), bench.put_result(header)), (EMPTY, NO_SUCH))
        self.assertEqual(bench.clock.getDelayedCalls(), [])

    def test_while_one_is_taken(self) -> None:
        """A submission that comes when it is too late goes back."""
        bench = Bench()
        bench.put("s-1")
        asked = Deferred.fromCoroutine(bench.pull.get_submission("q"))
        Deferred.fromCoroutine(bench.pull.close())
        bench.turn()
        self.assertEqual((self.successResultOf(asked), bench.state()), (EMPTY, (1, 0, 0)))

    def test_waits_for_verdicts(self) -> None:
        """A verdict on its way is published and its request acked first."""
        bench = Bench()
        bench.put("s-1")
        answer = Deferred.fromCoroutine(bench.pull.put_result(bench.lease(), GOOD))
        closing = Deferred.fromCoroutine(bench.pull.close())
        self.assertNoResult(closing)
        bench.turn()
        self.successResultOf(closing)
        self.assertEqual((self.successResultOf(answer), bench.state()), (TAKEN, (0, 0, 1)))

    def test_bounded(self) -> None:
        """A dead letter that can't be published doesn't keep the program from ending; its request goes back."""
        bench = Bench(confirm_timeout=4.0)
        bench.broker.put("q", b"[]")
        bench.publisher.failures += [BrokerUnreachable("down")] * 20
        bench.ask()
        closing = Deferred.fromCoroutine(bench.pull.close())
        bench.turn(3.9)
        self.assertNoResult(closing)
        bench.turn(0.1)
        self.successResultOf(closing)
        self.assertEqual((bench.state(), bench.clock.getDelayedCalls()), ((1, 0, 0), []))

    def test_hurry(self) -> None:
        """Told to hurry, it waits for no confirm."""
        bench = Bench()
        bench.put("s-1")
        header = bench.lease()
        bench.publisher.failures += [BrokerUnreachable("down")] * 20
        answer = Deferred.fromCoroutine(bench.pull.put_result(header, GOOD))
        closing = Deferred.fromCoroutine(bench.pull.close())
        bench.turn(1)
        self.assertNoResult(closing)
        bench.pull.hurry()
        bench.turn()
        self.successResultOf(closing)
        self.assertEqual((self.successResultOf(answer), bench.state()), (NOT_NOW, (1, 0, 0)))
