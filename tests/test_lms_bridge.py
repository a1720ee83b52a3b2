"""A bridge from the real edx-submissions over a real broker to real agents, and back."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher

from edxagent.amqp.delivery import Delivery
from edxagent.amqp.publisher import ConfirmingPublisher
from edxagent.amqp.topology import ensure_topology
from edxagent.errors import BrokerError, PossiblyRecorded, SinkUnavailable
from edxagent.lms.bridge.service import Bridge
from edxagent.lms.database import Database
from edxagent.lms.ledger import Ledger
from edxagent.model import CheckedResult, Verdict
from edxagent.tasks import Tasks
from edxagent.wire.result import decode_result
from tests.agentprocess import AgentTestCase
from tests.bridge_support import bridge_config
from tests.certificates import Authority
from tests.cli_process import until
from tests.edx_submissions_lms import PASSWORD, EdxSubmissionsLMS

SCALE = 4
"""How many times faster than life everything is here: grading, and every time that a bridge or an LMS knows."""


class Updater:
    """Takes results from the broker and hands them to a bridge, again and again until it takes them.

    :ivar refused: submission → what the sink said of it in the end.
    :ivar outcomes: outcome word → how many ended so.
    :ivar waits: the seconds from each one's publishing to its end.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._tasks = Tasks()
        self.bridge: Bridge | None = None
        self.refused: dict[str, PossiblyRecorded] = {}
        self.outcomes: Counter[str] = Counter()
        self.waits: list[float] = []

    def receive(self, delivery: Delivery) -> None:
        """A result."""
        self._tasks.launch(self._deliver(delivery), "delivering a result")

    async def _deliver(self, delivery: Delivery) -> None:
        from twisted.internet import reactor

        result = checked(delivery)
        await self._ledger.answered(result)
        while True:
            try:
                assert self.bridge is not None
                await self.bridge.sink.deliver(result)
                break
            except SinkUnavailable:
                await deferLater(reactor, 0.2)  # type: ignore[arg-type]
            except PossiblyRecorded as error:
                self.refused[result.submission] = error
                break
        self.outcomes[result.outcome] += 1
        entry = await self._ledger.find(result.submission)
        assert entry is not None
        self.waits.append(time.time() - (entry.accepted or 0.0))
        delivery.ack()

    def cancelled(self, reason: BrokerError) -> None:
        """The end of the consumer."""

    async def end(self) -> None:
        """Leave what can't be delivered."""
        self._tasks.cancel()
        await self._tasks.when_idle()


def checked(delivery: Delivery) -> CheckedResult:
    """A result, as the updater would see it."""
    result = decode_result(delivery.body, delivery.properties)
    verdict = Verdict(correct=result.verdict["correct"], score=result.verdict["score"], msg=result.verdict["msg"])
    return CheckedResult(
        submission=result.submission,
        outcome=result.outcome,
        queue=str(result.headers["x-queue"]),
        origin=str(result.headers["x-origin"]),
        header=result.header,
        verdict=verdict,
        headers=result.headers,
    )


class BridgeTests(AgentTestCase):
    """``Bridge``, all the way."""

    timeout = 180.0

    async def set_up(self) -> None:
        """A ledger, a publisher, and somebody who hands results over."""
        from twisted.internet import reactor

        await super().set_up()
        self.events: list[Any] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        database = Database(f"sqlite:///{self.folder}/ledger.db", reactor)
        self.ledger = Ledger(database, keep=86400.0, reactor=reactor, wall_clock=time.time)
        self.ledger.startService()
        self.addCleanup(self.ledger.stopService)
        self.publisher = ConfirmingPublisher(self.link(purpose="publish"))
        self.updater = Updater(self.ledger)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.updater.end()))

    def bridge(self, lms: EdxSubmissionsLMS, **changes: Any) -> Bridge:
        """A started bridge, stopped after the test."""
        from twisted.internet import reactor

        config = evolve(
            bridge_config(lms.url, queues=(self.requests,)),
            answer_within=240.0 / SCALE,
            give_up_after=1800.0 / SCALE,
            poll_initial=0.5 / SCALE,
            poll_max=10.0 / SCALE,
        )
        bridge = Bridge(evolve(config, **changes), self.publisher, self.ledger, reactor, time.time)
        self.updater.bridge = bridge
        bridge.startService()
        self.addCleanup(lambda: bridge.stopService() if bridge.running else None)
        return bridge

    async def lms(self, **settings: Any) -> EdxSubmissionsLMS:
        """An LMS."""
        return await EdxSubmissionsLMS.start(self, stale=300.0 / SCALE, **settings)

    async def declare(self) -> None:
        """Have everything on the broker that an agent would have declared."""
        session = await self.link().when_up()
        await ensure_topology(session, self.config(), queues=[self.requests], results=self.results)

    async def consume(self) -> None:
        """Begin to hand results over."""
        channel = await self.channel()
        await channel.consume(self.results, self.updater.receive, self.updater.cancelled, prefetch=20)

    async def sleepers(self, seconds: float, concurrency: int) -> None:
        """An agent whose grader takes so long for each submission, so many at once."""
        grader = {"kind": "sleep", "min": seconds / SCALE, "max": seconds / SCALE}
        await self.agent(agent={"concurrency": concurrency}, grader=grader)
        await self.consume()

    async def assert_each_answered_once(self, lms: EdxSubmissionsLMS, count: int) -> None:
        """Fail unless every submission has one score, a grader's, and none was posted twice."""
        await lms.until_all_are("retired")
        rows = await lms.rows()
        self.assertEqual(len(rows), count)
        self.assertEqual({tuple(row.points) for row in rows}, {(1,)})
        self.assertEqual(len(await lms.events()), count)
        self.assertEqual(self.updater.refused, {})
        self.assertNotIn(PASSWORD, str(self.events))

    async def test_a_class_at_once(self) -> None:
        """450 submissions of 2 s, four at a time, end in 450 verdicts of the grader: nobody is told of a failure."""
        lms = await self.lms()
        await lms.create(self.requests, 450)
        await self.sleepers(2.0, 4)
        self.bridge(lms)
        await self.assert_each_answered_once(lms, 450)
        self.assertEqual(await lms.count("POST put_result"), 450)
        self.assertEqual(await lms.count("POST login"), 1)
        self.assertLessEqual(await lms.count("at once"), 4)
        await until(lambda: self.updater.outcomes["graded"] == 450)
        self.assertEqual(self.updater.outcomes, {"graded": 450})
        longest = max(self.updater.waits)
        self.assertLess(longest, 300.0 / SCALE)
        print(f"450 answered; the last of them waited {longest:.1f} s, in life {longest * SCALE:.0f} s")

    async def test_two_queues_and_sessions_that_end(self) -> None:
        """Two queues are served; sessions that end in the middle, locks, failures and an outage don't matter."""
        second = f"{self.requests}-2"
        lms = await self.lms(latency=0.01)
        agent_queues = {self.requests: "", second: ""}
        await self.agent(queues=agent_queues, agent={"concurrency": 4})
        await self.consume()
        self.bridge(lms, queues=tuple(agent_queues))
        self.addCleanup(lambda: Deferred.fromCoroutine(self.broker.delete_queue(second)))
        self.addCleanup(lambda: Deferred.fromCoroutine(self.broker.delete_queue(f"{second}.dead")))
        for round_number in range(5):
            await lms.create(self.requests, 10)
            await lms.create(second, 10)
            await lms.end_sessions()
            body = '{"return_code": 1, "content": "Submission is currently being processed"}'
            await lms.fault("put_result", times=2, status=409, body=body)
            await lms.fault("put_result", times=2, status=500)
            await lms.fault("put_result", status=503)
            await lms.fault("get_submission", status=500)
            await lms.fail_signals(2)
            if round_number == 2:
                await lms.down()
                await deferLater(self.reactor, 1.0)
                await lms.up()
        await self.assert_each_answered_once(lms, 100)

    @property
    def reactor(self) -> Any:
        """The global one."""
        from twisted.internet import reactor

        return reactor

    async def test_stopped_and_started(self) -> None:
        """Stopped in the middle and started anew, a bridge answers everything once, and publishes nothing twice."""
        lms = await self.lms()
        await lms.create(self.requests, 60)
        await self.sleepers(1.0, 4)
        for _ in range(4):
            bridge = self.bridge(lms)
            asked = await lms.count("GET get_submission")
            while await lms.count("GET get_submission") < asked + 8:
                await deferLater(self.reactor, 0.02)
            await bridge.stopService()
        pulled = (await lms.statuses()).get("pulled", 0)
        self.bridge(lms)
        await self.assert_each_answered_once(lms, 60)
        self.assertGreater(pulled, 0)
        self.assertEqual(await lms.count("POST put_result"), 60)

    async def test_lost_answer(self) -> None:
        """A verdict whose answer was lost isn't counted twice, and a person is told where to look."""
        lms = await self.lms()
        [number] = await lms.create(self.requests)
        await lms.fault("put_result", then=504)
        await self.sleepers(0.1, 1)
        self.bridge(lms)
        await until(lambda: self.updater.refused)
        [(submission, error)] = self.updater.refused.items()
        self.assertIn("may have been recorded", str(error))
        self.assertEqual([row.points for row in await lms.rows()], [[1]])
        entry = await self.ledger.find(submission)
        assert entry is not None
        self.assertEqual((entry.remote, entry.sinks["put_result"][0]), (str(number), "possibly-recorded"))

    async def test_nobody_grades(self) -> None:
        """Without a grader each learner is told once that it failed; the other submissions aren't kept from theirs."""
        lms = await self.lms()
        await self.declare()
        await lms.create(self.requests, 6)
        self.bridge(lms, give_up_after=3.0)
        await lms.until_all_are("retired")
        rows = await lms.rows()
        self.assertEqual({tuple(row.points) for row in rows}, {(0,)})
        self.assertTrue(all("could not be reached" in str(row.reply) for row in rows))
        self.assertEqual(await lms.count("POST put_result"), 6)

    async def test_starving(self) -> None:
        """A submission that nobody answers, and that comes again and again, gives way to the others in the end."""
        lms = await EdxSubmissionsLMS.start(self, stale=0.5)
        await self.declare()
        await lms.create(self.requests)
        bridge = self.bridge(lms, give_up_after=5.0)
        while (await lms.statuses()) != {"pulled": 1}:
            await deferLater(self.reactor, 0.02)
        await bridge.stopService()  # the header is forgotten; the ledger isn't
        await deferLater(self.reactor, 0.6)
        await lms.create(self.requests, 3)
        await self.collect(self.requests, 1)
        await self.sleepers(0.1, 4)
        self.bridge(lms, give_up_after=5.0)
        await lms.until_all_are("retired")
        self.assertEqual(sorted(row.points for row in await lms.rows()), [[0], [1], [1], [1]])

    async def test_https(self) -> None:
        """Over HTTPS, with the referer that Django asks for."""
        authority = Authority(Path(self.mktemp()))
        lms = await self.lms(tls=authority.issue(Path(self.mktemp()), "127.0.0.1"))
        await lms.create(self.requests, 3)
        await self.sleepers(0.1, 2)
        self.bridge(lms, ca_file=authority.path)
        await self.assert_each_answered_once(lms, 3)

    async def test_stop_cut_short(self) -> None:
        """A stop that is cancelled cuts what is under way, and leaves nothing behind."""
        lms = await self.lms()
        await lms.create(self.requests)
        await self.declare()
        await lms.fault("get_submission", delay=30.0)
        bridge = self.bridge(lms, timeout=60.0)
        while not await lms.count("GET get_submission"):
            await deferLater(self.reactor, 0.02)
        stopping = bridge.stopService()
        await deferLater(self.reactor, 0.1)
        self.assertFalse(stopping.called)
        stopping.cancel()
        with self.assertRaises(CancelledError):
            await stopping
