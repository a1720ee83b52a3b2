"""The updater on a real broker: what comes in bad, sinks that are down, connections and queues that go."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent

from edxagent.amqp.channel import Channel
from edxagent.amqp.delivery import Delivery
from edxagent.amqp.publisher import ConfirmingPublisher
from edxagent.config.lms_values import UpdaterConfig
from edxagent.config.values import BrokerConfig
from edxagent.errors import BrokerRefused, SinkRefused, SinkUnavailable
from edxagent.lms.updater.service import Updater
from edxagent.model import RESULTS_EXCHANGE, RESULTS_RETRY, CheckedResult, dead_queue_of, retry_name
from edxagent.testing.sinks import SECRET, RecordingSink
from tests.amqp_support import LinkTestCase, known_to_the_disk, message, silenced
from tests.cli_process import until
from tests.faults.proxy import HOST, FaultProxy
from tests.results import INVALID, LEARNER, VALID, properties, result

DELAYS = (0.051, 0.203)
PATIENCE = 30.0
CLOSING = 5.0
"""Seconds that a broker that doesn't answer is given for the end of a connection."""


class SteadySink(RecordingSink):
    """Takes a moment for each result."""

    async def deliver(self, result: CheckedResult) -> None:
        """See ``IResultSink``."""
        from twisted.internet import reactor

        await deferLater(reactor, 0.01)  # type: ignore[arg-type]
        await super().deliver(result)


class UpdaterTestCase(LinkTestCase):
    """A test with updaters of its own.

    :ivar broker: a channel in confirm mode.
    :ivar queue: the name of the results queue; what is parked is in :attr:`dead`.
    """

    broker: Channel

    async def set_up(self) -> None:
        """Choose names, open a channel, and make something to publish with."""
        self.queue = self.unique("results")
        self.dead = dead_queue_of(self.queue)
        self.broker = await self.channel(confirming=True)
        self.publisher = ConfirmingPublisher(self.link(purpose="publish"))
        self.refusals: list[BrokerRefused] = []
        self.addCleanup(self.remove)

    async def remove(self) -> None:
        """Take the queues away again."""
        channel = await self.channel()
        for name in (self.queue, self.dead, *(retry_name(RESULTS_RETRY, delay) for delay in DELAYS)):
            await channel.delete_queue(name)

    def updater(
        self, *, broker: BrokerConfig | None = None, drain_timeout: float = 10.0, sinks: Any = None, **config: Any
    ) -> Updater:
        """A started updater, stopped after the test."""
        from twisted.internet import reactor

        usual = UpdaterConfig(queue=self.queue, concurrency=8, retry_delays=DELAYS, max_score=10, breaker_pause=0.2)
        updater = Updater(
            config=evolve(usual, **config),
            broker=broker or self.config(),
            name="t",
            sinks=sinks,
            publisher=self.publisher,
            ledger=None,
            reactor=reactor,
            wall_clock=time.time,
            drain_timeout=drain_timeout,
            on_refused=self.refusals.append,
        )
        updater.startService()
        self.addCleanup(lambda: updater.stopService() if updater.running else None)
        return updater

    async def working(self, sink: Any, **options: Any) -> Updater:
        """An updater that is at work, with one sink."""
        updater = self.updater(sinks={"sink": sink}, **options)
        await until(lambda: updater.consuming)
        return updater

    async def publish(self, name: str, body: bytes | None = None) -> None:
        """Publish a result as an agent does."""
        await self.broker.publish(
            message(
                self.queue,
                result() if body is None else body,
                exchange=RESULTS_EXCHANGE,
                message_id=name,
                type="grading.result",
                headers=properties().headers,
            )
        )

    async def parked(self, count: int) -> dict[str, Delivery]:
        """What is parked, by submission; waits until there was so much."""
        taken: dict[str, Delivery] = {}
        while len(taken) < count:
            delivery = await self.broker.get(self.dead)
            if delivery is not None:
                delivery.ack()
                taken[str(delivery.properties.message_id)] = delivery
        return taken

    async def left(self) -> dict[str, int]:
        """How many messages are ready anywhere."""
        names = (self.queue, self.dead, *(retry_name(RESULTS_RETRY, delay) for delay in DELAYS))
        counts = {name: (await self.broker.declare_queue(name, passive=True)).messages for name in names}
        return {name: count for name, count in counts.items() if count}

    async def until_left(self, counts: dict[str, int]) -> None:
        """Wait until so many messages are ready in those queues, and none in any other."""
        deadline = time.monotonic() + PATIENCE
        while (left := await self.left()) != counts:
            self.assertLess(time.monotonic(), deadline, f"{left} is left")


class ResultTests(UpdaterTestCase):
    """What is put straight into the results queue."""

    async def test_every_reply(self) -> None:
        """Replies that the LMS takes are delivered, sanitised; those that it chokes on are parked with the reason."""
        sink = RecordingSink()
        await self.working(sink)
        with capturedLogs() as logged:
            for name, (verdict, _) in {**VALID, **INVALID}.items():
                await self.publish(name, result(verdict))
            await self.publish("no result", b"\xff\x00")
            parked = await self.parked(len(INVALID) + 1)
            await until(lambda: len(sink.taken) == len(VALID))
        taken = {each.submission: each.verdict for each in sink.taken}
        self.assertEqual(
            {name: (verdict.correct, verdict.score, verdict.msg) for name, verdict in taken.items()},
            {name: expected for name, (_, expected) in VALID.items()},
        )
        self.assertEqual(set(parked), {*INVALID, "no result"})
        for name, (verdict, reason) in INVALID.items():
            self.assertEqual(parked[name].body, result(verdict))
            self.assertIn(reason, parked[name].properties.headers["x-error"], name)
        await self.until_left({})
        for what in (SECRET, LEARNER):
            self.assertNotIn(what, repr(logged))

    async def test_refused(self) -> None:
        """What the LMS refuses for good is parked after a few attempts, and is seen by nobody else."""
        sink = RecordingSink(SinkRefused("404: no such course"))
        await self.working(sink, refusal_attempts=3)
        await self.publish("1")
        parked = (await self.parked(1))["1"]
        self.assertEqual(parked.body, result())
        self.assertEqual(
            {name: parked.properties.headers[name] for name in ("x-error", "x-sink", "x-outcome", "x-origin")},
            {"x-error": "404: no such course", "x-sink": "sink", "x-outcome": "graded", "x-origin": "gateway"},
        )
        self.assertEqual(len(sink.asked), 3)
        await self.until_left({})

    async def test_down_and_back(self) -> None:
        """A sink is down for a while; when it is back everything arrives, once each."""
        sink = RecordingSink(SinkUnavailable("down"))
        await self.working(sink)
        names = [str(number) for number in range(100)]
        for name in names:
            await self.publish(name)
        await until(lambda: len(sink.asked) >= 10)
        self.assertEqual(sink.taken, [])
        sink.answers = [None]
        await until(lambda: len(sink.taken) >= len(names))
        self.assertEqual(Counter(each.submission for each in sink.taken), Counter(names))
        await self.until_left({})

    async def test_many_attempts(self) -> None:
        """However often a result comes back, its headers don't grow."""
        sink = RecordingSink(SinkUnavailable("down"))
        await self.working(sink, breaker_failures=10_000)
        await self.publish("1")
        await until(lambda: len(sink.asked) >= 20)
        sink.answers = [SinkRefused("enough")]
        headers = (await self.parked(1))["1"].properties.headers
        self.assertGreater(headers["x-delivery-attempt"], 20)
        self.assertNotIn("x-death", headers)
        self.assertLess(len(repr(headers)), 600)


class InterruptionTests(UpdaterTestCase):
    """What goes while the updater is at work."""

    async def test_connections_cut(self) -> None:
        """The connection goes again and again: every result arrives."""
        proxy = FaultProxy.start(self)
        sink = SteadySink()
        await self.working(sink, broker=self.config(evolve(self.address, host=HOST, port=proxy.port)))
        names = {str(number) for number in range(300)}
        for name in names:
            await self.publish(name)
        for cut in range(1, 4):
            await until(lambda cut=cut: len({each.submission for each in sink.taken}) >= cut * 60)  # type: ignore[misc]
            await proxy.stop()
            proxy.accept()
        await until(lambda: len({each.submission for each in sink.taken}) == len(names))
        await self.until_left({})
        self.assertEqual({each.submission for each in sink.taken}, names)
        self.assertLess(len(sink.taken), len(names) + 3 * 2 * 8)

    async def test_broker_killed(self) -> None:
        """The broker is killed while results wait for their next attempt: every one arrives."""
        sink = RecordingSink(SinkUnavailable("down"))
        await self.working(sink)
        names = {str(number) for number in range(100)}
        for name in names:
            await self.publish(name)
        await until(lambda: len(sink.asked) >= 10)
        retries = [retry_name(RESULTS_RETRY, delay) for delay in DELAYS]
        await until(lambda: known_to_the_disk(self.node, self.queue, *retries))
        await self.node.kill()
        sink.answers = [None]
        await self.node.start()
        await until(lambda: {each.submission for each in sink.taken} == names)
        self.broker = await self.channel(confirming=True)
        await self.until_left({})

    async def test_results_queue_deleted(self) -> None:
        """The queue is made again, and results are taken from it again."""
        sink = RecordingSink()
        updater = await self.working(sink)
        await self.publish("before")
        await until(lambda: len(sink.taken) == 1)
        await self.broker.delete_queue(self.queue)
        await until(lambda: not updater.consuming)
        await until(lambda: updater.consuming)
        await self.publish("after")
        await until(lambda: len(sink.taken) == 2)

    async def test_retry_queue_deleted(self) -> None:
        """A result that should wait in a queue that is gone stays with us, unacked, until somebody made it again."""
        sink = RecordingSink(SinkUnavailable("down"), None)
        await self.working(sink)
        await self.broker.delete_queue(retry_name(RESULTS_RETRY, DELAYS[0]))
        with capturedLogs() as logged:
            await self.publish("1")
            await until(lambda: any("can't be published" in str(formatEvent(event)) for event in logged))
        again = self.updater(sinks={"sink": RecordingSink()})
        await until(lambda: again.consuming)
        await again.stopService()
        await until(lambda: len(sink.taken) == 1)


class StartTests(UpdaterTestCase):
    """What can't work from the start."""

    async def test_other_retry_queue(self) -> None:
        """A retry queue with other arguments ends the start, with one line that names it."""
        name = retry_name(RESULTS_RETRY, DELAYS[0])
        await self.broker.declare_queue(name, durable=True)
        self.updater(sinks={"sink": RecordingSink()})
        await until(lambda: bool(self.refusals))
        self.assertIn(name, str(self.refusals[0]))

    async def test_nothing_may_be_declared(self) -> None:
        """With ``declare = no`` a missing queue ends the start, with the remedy."""
        self.updater(sinks={"sink": RecordingSink()}, broker=self.config(declare=False))
        await until(lambda: bool(self.refusals))
        self.assertIn("declare = yes", str(self.refusals[0]))


class StopTests(UpdaterTestCase):
    """Stopping."""

    async def test_drain(self) -> None:
        """What is under way is finished; what comes afterwards stays in its queue."""
        sink = RecordingSink(RecordingSink.HANG)
        updater = await self.working(sink)
        await self.publish("1")
        await until(lambda: bool(sink.hanging))
        stopping = updater.stopService()
        await self.publish("2")
        self.assertFalse(stopping.called)
        sink.hanging[0].callback(None)
        await stopping
        self.assertEqual([each.submission for each in sink.taken], ["1"])
        await self.until_left({self.queue: 1})

    async def test_drain_timeout(self) -> None:
        """When the time is over the attempt is ended and the result goes back to its queue; it comes again later."""
        sink = RecordingSink(RecordingSink.HANG)
        updater = await self.working(sink, drain_timeout=0.2)
        await self.publish("1")
        await until(lambda: bool(sink.hanging))
        await updater.stopService()
        self.assertEqual(sink.cancelled, ["1"])
        await self.until_left({self.queue: 1})
        sink.answers = [None]
        updater.startService()
        await until(lambda: len(sink.taken) == 1)

    async def test_hurry(self) -> None:
        """Told to hurry, it gives back what is under way at once."""
        sink = RecordingSink(RecordingSink.HANG)
        updater = await self.working(sink, drain_timeout=60)
        await self.publish("1")
        await until(lambda: bool(sink.hanging))
        stopping = updater.stopService()
        updater.hurry()
        await stopping
        self.assertEqual(sink.cancelled, ["1"])
        await self.until_left({self.queue: 1})

    async def test_hurried_before(self) -> None:
        """So it does when it was told before it was told to stop, and takes no more."""
        sink = RecordingSink(RecordingSink.HANG)
        updater = await self.working(sink, drain_timeout=60, concurrency=1)
        for number in range(5):
            await self.publish(str(number))
        await until(lambda: bool(sink.hanging))
        updater.hurry()
        await updater.stopService()
        self.assertEqual((len(sink.asked), len(sink.hanging)), (1, 0))
        await self.until_left({self.queue: 5})

    async def test_at_once(self) -> None:
        """A stop at any moment of the start leaves nothing behind, whether it is connected yet or not."""
        from twisted.internet import reactor

        for pause in (0.0, 0.01, 0.02, 0.05, 0.1, 0.2):
            sink = RecordingSink()
            updater = self.updater(sinks={"sink": sink})
            await deferLater(reactor, pause)  # type: ignore[arg-type]
            await updater.stopService()
            self.assertFalse(updater.consuming)

    async def test_silent_broker(self) -> None:
        """A broker that says nothing any more doesn't make a hurried stop long."""
        sink = RecordingSink(RecordingSink.HANG)
        updater = await self.working(
            sink, drain_timeout=60, broker=evolve(self.config(), call_timeout=60.0, heartbeat=0)
        )
        await self.publish("1")
        await until(lambda: bool(sink.hanging))
        async with silenced(self.node):
            began = time.monotonic()
            stopping: Deferred[None] = updater.stopService()
            updater.hurry()
            await stopping
            self.assertLess(time.monotonic() - began, CLOSING)
        self.assertEqual(sink.cancelled, ["1"])
