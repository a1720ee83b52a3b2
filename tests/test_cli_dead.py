"""Tests for ``edxagent dead``, as a real process with a real broker."""

from __future__ import annotations

import json
import random
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from edxagent.amqp.channel import Channel
from edxagent.amqp.delivery import Delivery
from edxagent.amqp.topology import ensure_topology
from edxagent.model import Message, Outcome, Properties, dead_queue_of
from edxagent.wire.dead_letter import encode_dead_letter
from edxagent.wire.journey import encode_parked
from edxagent.wire.retry import Attempts
from tests.agentprocess import as_ini
from tests.amqp_support import LinkTestCase
from tests.cli_process import Run, start_cli, until
from tests.outcomes import LEARNER, LMS_KEY, SECRETS, request

DIED = 1_700_000_000.0
HISTORY = ("1 unavailable 2023-11-14T22:13:20Z a: 503", "2 crashed 2023-11-14T22:14:20Z a: exit status 1")

CLOSE = """\
[rabbit_networking:close_connection(Pid, <<"maintenance">>) ||
    [{pid, Pid}, {client_properties, Said}] <- rabbit_networking:connection_info_all([pid, client_properties]),
    {<<"connection_name">>, _, <<"edxagent dead replay">>} <- Said]."""


class DeadTestCase(LinkTestCase):
    """A test with a queue and a results queue of its own, and the dead letters of both.

    :ivar broker: a channel in confirm mode.
    """

    timeout = 300.0  # dozens of programs are started, one after the other

    broker: Channel

    async def set_up(self) -> None:
        """Make the queues, and a configuration that names them."""
        self.requests = self.unique("Course-v1:MITx+6.002x%é")
        self.results = self.unique("results")
        session = await self.link().when_up()
        await ensure_topology(session, self.config(), queues=[self.requests], results=self.results)
        self.broker = await session.open_channel()
        await self.broker.confirm_select()
        await self.broker.declare_queue(dead_queue_of(self.results), arguments={"x-queue-type": "quorum"})
        await self.broker.bind_queue(dead_queue_of(self.results), "grading.dead", self.results)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.remove_queues()))
        path = Path(self.mktemp())
        broker = {"urls": "${EDXAGENT_BROKER_URL}", "call_timeout": 10}
        sections: dict[str, Mapping[str, object]] = {
            "broker": broker,
            "queues": {self.requests: ""},
            "grader": {"kind": "fixed"},
            "results": {"queue": self.results},
        }
        path.write_text(as_ini(sections))
        self.path = str(path.absolute())

    async def remove_queues(self) -> None:
        """Take the queues away."""
        if self.broker.closed:
            self.broker = await self.channel()
        for queue in (self.requests, self.results):
            await self.broker.delete_queue(queue)
            await self.broker.delete_queue(dead_queue_of(queue))

    def dead(self, *arguments: str) -> Run:
        """Start ``edxagent dead``."""
        return start_cli(
            self, "dead", *arguments, "--config", self.path, environment={"EDXAGENT_BROKER_URL": self.node.url}
        )

    async def done(self, *arguments: str, status: int = 0) -> Run:
        """Run it to its end."""
        run = self.dead(*arguments)
        self.assertEqual(await run.ends(), status, run.out + run.err)
        self.assertNotIn("Traceback", run.err)
        for secret in SECRETS:
            self.assertNotIn(secret, run.out + run.err)
        return run

    async def told(self, *arguments: str) -> Any:
        """What it prints with ``--json``."""
        return json.loads((await self.done(*arguments, "--json")).out)

    def letter(self, id: str, outcome: Outcome = Outcome.CRASHED, *, told: bool = False, **changes: Any) -> Message:
        """A dead letter as an agent makes it."""
        properties = Properties(
            message_id=id,
            type="grading.request",
            content_type="application/json",
            reply_to="elsewhere",
            correlation_id=f"c-{id}",
            timestamp=1_600_000_000,
            headers={"x-origin": "bridge:a", "x-secret": LEARNER},
        )
        return encode_dead_letter(
            queue=self.requests,
            body=request(),
            request=properties,
            submission=id,
            outcome=outcome,
            reason="exit status 1",
            agent="agent-1",
            grader="http",
            attempts=Attempts(attempt=2, failures={"crashed": 1}, first_failed=DIED - 60, history=HISTORY),
            told_learner=told,
            time=DIED,
            **changes,
        )

    def parked(self, id: str) -> Message:
        """A parked result as the updater makes it."""
        return encode_parked(
            queue=self.results,
            body=json.dumps({"xqueue_header": LMS_KEY, "xqueue_body": LEARNER}).encode(),
            properties=Properties(
                message_id=id,
                type="grading.result",
                headers={"x-outcome": "graded", "x-agent": "agent-1", "x-origin": "gateway", "x-delivery-attempt": 3},
            ),
            submission=id,
            reason="the LMS answered 404",
            sink="callback",
            time=DIED,
        )

    async def fill(self, *letters: Message) -> None:
        """Have them lie there."""
        await gatherResults([self.broker.publish(letter) for letter in letters])

    async def fill_up(self, count: int, first: int = 0) -> list[str]:
        """Have so many lie there; returns their ids."""
        ids = [f"s{number:04d}" for number in range(first, first + count)]
        await self.fill(*(self.letter(id) for id in ids))
        return ids

    async def taken(self, queue: str) -> list[Delivery]:
        """Take all that is in a queue out of it."""
        found = []
        while (delivery := await self.broker.get(queue)) is not None:
            delivery.ack()
            found.append(delivery)
        return found

    async def ids_in(self, queue: str) -> Counter[str]:
        """Take all that is in a queue out of it; how often each submission was there."""
        return Counter(str(delivery.properties.message_id) for delivery in await self.taken(queue))

    async def ready_in(self, queue: str) -> int:
        """How many messages a queue has ready."""
        return (await self.broker.declare_queue(queue, passive=True)).messages

    async def until_ready(self, queue: str, count: int) -> None:
        """Wait until a queue has so many ready: what a process held, when it goes, comes back a little later."""
        for _ in range(2000):
            if await self.ready_in(queue) == count:
                return
        self.fail(f"{await self.ready_in(queue)} messages are ready in {queue}, not {count}")


class LookingTests(DeadTestCase):
    """``list`` and ``show``."""

    async def test_list(self) -> None:
        """What lies there is counted by outcome, and told without what is in it."""
        await self.fill(self.letter("s1"), self.letter("s2", Outcome.TIMED_OUT, told=True), self.letter("s3"))
        await self.fill(self.parked("p1"))
        run = await self.done("list")
        for words in ("2 crashed, 1 timed-out", "1 graded", "s1", "s2", "s3", "exit status 1", "2023-11-14 22:13:20"):
            self.assertIn(words, run.out)
        self.assertEqual(run.err, "")
        await self.until_ready(dead_queue_of(self.requests), 3)

    async def test_list_for_programs(self) -> None:
        """``--json`` has a queue's figures, and the first few letters."""
        await self.fill(self.letter("s1"), self.letter("s2", told=True), self.letter("s3"))
        told = await self.told("list", "--max", "2", self.requests)
        (queue,) = told["queues"]
        letters = queue.pop("letters")
        self.assertEqual(queue, {"queue": self.requests, "count": 3, "outcomes": {"crashed": 3}, "more": 1})
        self.assertEqual([letter["told_learner"] for letter in letters], [False, True])
        self.assertEqual(
            letters[0],
            {
                "id": "s1",
                "queue": self.requests,
                "outcome": "crashed",
                "reason": "exit status 1",
                "attempt": 2,
                "time": DIED,
                "told_learner": False,
                "agent": "agent-1",
                "grader": "http",
                "sink": None,
                "history": list(HISTORY),
                "size": len(request()),
            },
        )

    async def test_list_many(self) -> None:
        """All are counted, though few are shown."""
        await self.fill_up(150)
        run = await self.done("list", "--max", "3", self.requests)
        for words in ("150 crashed", "s0002", "… and 147 more"):
            self.assertIn(words, run.out)
        self.assertNotIn("s0003", run.out)

    async def test_list_nothing(self) -> None:
        """Nothing there is fine."""
        self.assertIn(f"{self.requests}: no dead letters", (await self.done("list")).out)

    async def test_strangers(self) -> None:
        """What others put there is told as far as it makes sense; it breaks no line and no terminal."""
        await self.fill(
            Message(
                exchange="grading.dead",
                routing_key=self.requests,
                body=b"\xff",
                properties=Properties(
                    message_id="\x1b[31mred\nline",
                    headers={"x-outcome": "\x1b[2J", "x-error": ["x"], "x-time": 1e300, "x-history": {"a": 1}},
                ),
            )
        )
        run = await self.done("list", self.requests)
        self.assertNotIn("\x1b", run.out)
        self.assertIn("1 unknown", run.out)
        run = await self.done("show", "[31mred line")
        self.assertIn("not said when", run.out)

    async def test_show(self) -> None:
        """All that the headers tell, wherever it lies."""
        await self.fill(self.letter("s1"), self.letter("s2", told=True), self.parked("p1"))
        run = await self.done("show", "s2")
        for words in ("s2", self.requests, "crashed", "yes, by a verdict", "agent-1", *HISTORY):
            self.assertIn(words, run.out)
        self.assertNotIn("s1", run.out)
        (letter,) = (await self.told("show", "p1"))["letters"]
        self.assertEqual((letter["sink"], letter["attempt"], letter["outcome"]), ("callback", 4, "graded"))

    async def test_show_unknown(self) -> None:
        """One that isn't there is one line, and status 1."""
        run = await self.done("show", "nobody", status=1)
        self.assertEqual(run.out, "")
        self.assertEqual(len(run.err.splitlines()), 1, run.err)
        self.assertIn("there is no dead letter of nobody in ", run.err)

    async def test_looking_does_no_harm(self) -> None:
        """Fifty lists where the broker drops at the twenty-first delivery: all are there still, each once."""
        dead = dead_queue_of(self.requests)
        pattern = f"^{dead.replace('+', '.').replace('.', '.')}$"
        await self.node.rabbitmqctl(
            "set_policy", "limit", pattern, '{"delivery-limit": 20}', "--apply-to", "queues", "--priority", "9"
        )
        self.addCleanup(lambda: Deferred.fromCoroutine(self.node.rabbitmqctl("clear_policy", "limit")))
        await self.remove_queues()  # theirs have a limit of their own, beside which a policy's doesn't count
        await self.broker.declare_queue(dead, arguments={"x-queue-type": "quorum"})
        await self.broker.declare_queue(dead_queue_of(self.results), arguments={"x-queue-type": "quorum"})
        await self.broker.bind_queue(dead, "grading.dead", self.requests)
        ids = await self.fill_up(40)
        for _ in range(50):
            (queue,) = (await self.told("list", self.requests))["queues"]
            self.assertEqual(queue["count"], 40)
            await self.until_ready(dead, 40)
        self.assertEqual(await self.ids_in(dead), Counter(ids))


class ReplayTests(DeadTestCase):
    """``replay``."""

    async def test_all(self) -> None:
        """Each is a request again as it was, with all its attempts before it and its history behind."""
        await self.fill(self.letter("s1"), self.letter("s2"))
        run = await self.done("replay")
        self.assertEqual(run.out, f"2 replayed from {dead_queue_of(self.requests)}\n")
        first, second = await self.taken(self.requests)
        self.assertEqual((first.body, second.properties.message_id), (request(), "s2"))
        self.assertEqual((first.exchange, first.routing_key), ("grading.requests", self.requests))
        self.assertEqual(
            first.properties,
            Properties(
                message_id="s1",
                type="grading.request",
                content_type="application/json",
                reply_to="elsewhere",
                correlation_id="c-s1",
                timestamp=1_600_000_000,
                headers={"x-delivery-count": 0, "x-origin": "bridge:a", "x-history": list(HISTORY)},
            ),
        )
        self.assertEqual(await self.ready_in(dead_queue_of(self.requests)), 0)

    async def test_learners_who_were_told(self) -> None:
        """Theirs stay, and it says why, unless it is forced."""
        await self.fill(self.letter("s1", told=True), self.letter("s2"))
        run = await self.done("replay", status=1)
        self.assertIn("1 replayed", run.out)
        self.assertIn("1 stay: their learners were told of a failure", run.err)
        self.assertEqual(await self.ids_in(self.requests), Counter(["s2"]))
        self.assertEqual(
            await self.told("replay", "--force"), {"replayed": {self.requests: 1}, "kept_back": 0, "dry_run": False}
        )
        self.assertEqual(await self.ids_in(self.requests), Counter(["s1"]))

    async def test_selection(self) -> None:
        """By outcome, by id, and by number; what isn't meant stays."""
        crashed = [self.letter(f"c{n}") for n in range(30)]
        slow = [self.letter(f"t{n}", Outcome.TIMED_OUT) for n in range(3)]
        await self.fill(*crashed, *slow)
        await self.done("replay", "--outcome", "timed-out", "--max", "2")
        self.assertEqual(await self.ids_in(self.requests), Counter(["t0", "t1"]))
        await self.done("replay", "--id", "c29")
        self.assertEqual(await self.ids_in(self.requests), Counter(["c29"]))
        await self.done("replay", "--id", "c29", status=1)
        await self.until_ready(dead_queue_of(self.requests), 30)

    async def test_dry_run(self) -> None:
        """It only tells."""
        await self.fill(self.letter("s1"), self.letter("s2"))
        run = await self.done("replay", "--dry-run", "--max", "1")
        self.assertEqual(run.out, f"1 would be replayed from {dead_queue_of(self.requests)}\n")
        self.assertEqual(await self.ready_in(self.requests), 0)
        await self.until_ready(dead_queue_of(self.requests), 2)

    async def test_results(self) -> None:
        """A parked result goes back to the results queue as it was before anybody tried to hand it over."""
        await self.fill(self.parked("p1"), self.letter("s1"))
        await self.done("replay", "--queue", self.results)
        (result,) = await self.taken(self.results)
        self.assertEqual((result.exchange, result.routing_key), ("grading.results", self.results))
        self.assertEqual((result.properties.message_id, result.properties.type), ("p1", "grading.result"))
        self.assertEqual(
            result.properties.headers,
            {"x-delivery-count": 0, "x-outcome": "graded", "x-agent": "agent-1", "x-origin": "gateway"},
        )
        self.assertEqual(await self.ready_in(dead_queue_of(self.requests)), 1)

    async def test_killed(self) -> None:
        """Killed twenty times at any moment, it loses none, and leaves at most one duplicate a kill, with its id."""
        chance = random.Random(16)
        ids = await self.fill_up(400)
        for _ in range(20):
            before = await self.ready_in(self.requests)
            run = self.dead("replay")
            wanted = before + chance.randrange(1, 16)
            while await self.ready_in(self.requests) < wanted and run.status is None:
                pass
            self.assertIsNone(run.status, run.out + run.err)  # or it wouldn't be killed
            run.kill(signal.SIGKILL)
            self.assertEqual(await run.ends(), -9)
        await self.done("replay")
        await self.until_ready(dead_queue_of(self.requests), 0)
        replayed = await self.ids_in(self.requests)
        self.assertEqual(set(replayed), set(ids))
        self.assertLessEqual(replayed.total() - len(ids), 20)

    async def test_interrupted(self) -> None:
        """Ctrl-C stops it after the letter in its hands: nothing is lost or doubled, and it says how far it came."""
        ids = await self.fill_up(400)
        run = self.dead("replay")
        while not await self.ready_in(self.requests):
            self.assertIsNone(run.status, run.err)
        run.kill(signal.SIGINT)
        self.assertEqual(await run.ends(), 130, run.err)
        self.assertRegex(run.err, r"^edxagent: stopped; [0-9]+ were replayed until then\n$")
        replayed = await self.ready_in(self.requests)
        self.assertIn(f" {replayed} were", run.err)
        await self.until_ready(dead_queue_of(self.requests), len(ids) - replayed)
        self.assertEqual(
            await self.ids_in(self.requests) + await self.ids_in(dead_queue_of(self.requests)), Counter(ids)
        )

    async def test_nowhere_to_go(self) -> None:
        """Without a queue to go to they stay, and it says so in one line."""
        await self.fill_up(3)
        await self.broker.delete_queue(self.requests)
        run = await self.done("replay", status=3)
        self.assertIn(f"there is no queue '{self.requests}'", run.err)
        await self.until_ready(dead_queue_of(self.requests), 3)

    async def test_no_dead_letters(self) -> None:
        """A queue without one for dead letters is an error if it is named, and else passed over."""
        run = await self.done("replay", "--queue", "nobody's", status=3)
        self.assertIn('there is no queue "nobody\'s.dead"', run.err)
        await self.broker.delete_queue(dead_queue_of(self.requests))
        run = await self.done("replay")
        self.assertEqual((run.out, run.err), ("0 replayed\n", f"edxagent: there is no queue '{self.requests}.dead'\n"))

    async def test_connection_lost(self) -> None:
        """When the broker goes away it says how far it came; the rest is there."""
        await self.fill_up(2000)
        run = self.dead("replay")
        while not await self.ready_in(self.requests):
            self.assertIsNone(run.status, run.err)
        await self.node.rabbitmqctl("eval", CLOSE)
        self.assertEqual(await run.ends(), 3, run.out + run.err)
        self.assertRegex(run.err, r"stopped; [0-9]+ were replayed until then\n.*maintenance")


class DropTests(DeadTestCase):
    """``drop``."""

    async def test_asks(self) -> None:
        """Without ``--yes`` nothing happens."""
        await self.fill_up(2)
        run = await self.done("drop", status=2)
        self.assertIn("add --yes", run.err)
        run = await self.done("drop", "--dry-run")
        self.assertIn("2 would be dropped", run.out)
        await self.until_ready(dead_queue_of(self.requests), 2)

    async def test_drop(self) -> None:
        """Those that are meant are gone, told or not; the others stay."""
        await self.fill(self.letter("s1"), self.letter("s2", Outcome.MALFORMED, told=True), self.letter("s3"))
        run = await self.done("drop", "--yes", "--outcome", "malformed")
        self.assertIn("1 dropped", run.out)
        await self.until_ready(dead_queue_of(self.requests), 2)
        self.assertEqual(await self.ids_in(dead_queue_of(self.requests)), Counter(["s1", "s3"]))
        self.assertEqual(await self.ready_in(self.requests), 0)


class UsageTests(DeadTestCase):
    """What can't be done."""

    async def test_wrong_usage(self) -> None:
        """Each is one line and status 2."""
        for arguments, words in (
            (("list", "x.dead"), "name the queue itself"),
            (("replay", "--queue", "amq.x"), "belong to the broker"),
            (("replay", "--outcome", "bad"), "bad"),
            (("show",), "ID"),
            (("lsit",), "list"),
        ):
            run = await self.done(*arguments, status=2)
            self.assertEqual(len(run.err.splitlines()), 1, run.err)
            self.assertIn(words, run.err)

    async def test_unreachable(self) -> None:
        """A broker that isn't there is one line and status 3."""
        run = start_cli(
            self, "dead", "list", "-c", self.path, environment={"EDXAGENT_BROKER_URL": "amqp://guest@127.0.0.1:1/"}
        )
        self.assertEqual(await run.ends(), 3)
        self.assertEqual(len(run.err.splitlines()), 1, run.err)

    async def test_told_by_an_lms(self) -> None:
        """A configuration that leaves it to an LMS doesn't say where the broker is."""
        path = Path(self.mktemp())
        path.write_text("[lms-config]\nurl = http://127.0.0.1:1/\napi_key = ${KEY}\n[grader]\nkind = fixed\n")
        run = start_cli(self, "dead", "list", "-c", str(path), environment={"KEY": "k" * 20})
        self.assertEqual(await run.ends(), 2)
        self.assertIn("leaves broker and queues to an LMS", run.err)

    async def test_help(self) -> None:
        """The command alone tells what it can."""
        run = start_cli(self, "dead")
        await until(lambda: run.status is not None, run)
        self.assertEqual(run.status, 0, run.err)
        self.assertIn("replay", run.out)
