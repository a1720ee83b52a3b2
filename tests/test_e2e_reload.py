"""HUP has the real agent go by a changed file, under load, and nothing is lost or graded twice by that."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path
from signal import SIGHUP, SIGTERM

from twisted.internet.defer import Deferred

from edxagent.errors import ChannelClosed
from edxagent.model import dead_queue_of
from edxagent.testing.graders import CORRECT
from edxagent.testing.http_server import RogueServer, Visit, response
from tests.agentprocess import AgentProcess, AgentTestCase, Sections
from tests.cli_process import until
from tests.faults.proxy import FaultProxy
from tests.outcomes import INNER, SECRETS, request

CHANGED = "the configuration has changed"
SAME = "the configuration stays as it is"
LOAD = 500


class CountingGrader:
    """A web server that grades, and counts.

    :ivar pause: seconds that a submission takes; ``None`` = until :meth:`let_go`.
    :ivar graded: id → how often it was asked about.
    :ivar order: the queues' letters, in the order of what was asked.
    :ivar busy: how many it is grading; ``peak``, the most at once since somebody set that back.
    """

    def __init__(self) -> None:
        self.pause: float | None = 0.01
        self.graded: Counter[str] = Counter()
        self.order: list[str] = []
        self.busy = 0
        self.peak = 0
        self._server = RogueServer(self._grade)
        self._held: list[Visit] = []

    @classmethod
    async def start(cls, case: AgentTestCase) -> CountingGrader:
        """One that runs until the test ends."""
        from twisted.internet import reactor

        grader = cls()
        await grader._server.start(reactor)
        case.addCleanup(grader._server.stop)
        return grader

    @property
    def section(self) -> Sections:
        """What the agent's file says about it."""
        return {"kind": "http", "url": self._server.url}

    def _grade(self, visit: Visit) -> None:
        from twisted.internet import reactor

        submission = json.loads(json.loads(visit.asked[-1].body)["xqueue_body"])["student_response"]
        self.graded[submission] += 1
        self.order.append(submission[0])
        self.busy += 1
        self.peak = max(self.peak, self.busy)
        if self.pause is None:
            self._held.append(visit)
        else:
            reactor.callLater(self.pause, self._answer, visit)  # type: ignore[attr-defined]

    def let_go(self) -> None:
        """Answer what was held, and from now on soon."""
        self.pause = 0.01
        while self._held:
            self._answer(self._held.pop())

    def _answer(self, visit: Visit) -> None:
        self.busy -= 1
        visit.send(response(CORRECT))


class ReloadTestCase(AgentTestCase):
    """A test that sends HUP.

    :ivar grader: what grades, at first.
    """

    async def set_up(self) -> None:
        """Start the grader."""
        await super().set_up()
        self.grader = await CountingGrader.start(self)
        self.path = Path(self.mktemp()).absolute()
        self.sent: list[str] = []

    def write(self, **sections: Sections) -> None:
        """Have this in the agent's file."""
        sections = {"grader": self.grader.section, **sections}
        written = Path(self.write_config(**sections))
        if self.requests not in sections.get("queues", {self.requests: ""}):
            written.write_text(written.read_text().replace(f"{self.requests} = \n", ""))
        written.replace(self.path)

    async def started(self, **sections: Sections) -> AgentProcess:
        """An agent that is at work."""
        self.write(**sections)
        agent = self.start_agent(str(self.path))
        await agent.ready()
        return agent

    async def reload(self, process: AgentProcess, says: str = CHANGED, /, **sections: Sections) -> None:
        """Change the file, and wait until the agent says what came of it."""
        times = process.log.count(says) + 1
        self.write(**sections)
        process.send_signal(SIGHUP)
        await process.says(says, times=times)

    async def send(self, count: int, queue: str | None = None, letter: str = "a") -> None:
        """Publish submissions."""
        for _ in range(count):
            self.sent.append(f"{letter}{len(self.sent)}")
            body = request(inner={**INNER, "student_response": self.sent[-1]})
            await self.publish(body, queue, message_id=self.sent[-1])

    async def all_graded(self, agent: AgentProcess, *graders: CountingGrader) -> None:
        """See that each submission was graded once, by one of ``graders``, and each verdict came, once."""
        verdicts = await self.collect(self.results, len(self.sent))
        self.assertEqual(sorted(str(each.properties.message_id) for each in verdicts), sorted(self.sent))
        graded = sum((grader.graded for grader in graders or [self.grader]), Counter[str]())
        self.assertEqual(graded, Counter(self.sent))
        await self.until_settled()
        self.assertEqual((await self.ready_in(self.results), await self.held_in(self.dead)), (0, 0))
        await self.ends(agent)

    async def ends(self, agent: AgentProcess) -> None:
        """Stop it, and see that nothing went wrong."""
        self.assertEqual(await agent.stop(), -SIGTERM)
        self.assert_clean(agent, SECRETS)

    def another_queue(self) -> str:
        """A queue for this test."""
        queue = self.unique("another")
        self.addCleanup(lambda: Deferred.fromCoroutine(self._remove(queue)))
        return queue

    async def _remove(self, queue: str) -> None:
        for name in (queue, dead_queue_of(queue)):
            await self.broker.delete_queue(name)


class BadFileTests(ReloadTestCase):
    """What can't be used changes nothing."""

    async def test_under_load(self) -> None:
        """Every problem of a bad file is a line in the log, and grading goes on."""
        agent = await self.started()
        await self.send(LOAD // 2)
        await self.reload(
            agent, "concurency: unknown key", agent={"concurency": 3}, grader={"timeout": "soon"}, queues={"a b": "x=1"}
        )
        await agent.says("[grader] timeout")
        await agent.says("[queues] a b")
        self.assertEqual(agent.log.count(SAME), 3)
        await self.send(LOAD // 2)
        await self.all_graded(agent)

    async def test_no_file(self) -> None:
        """So does a file that is gone, or no text; and then a good one is taken."""
        agent = await self.started()
        self.path.rename(f"{self.path}.away")
        agent.send_signal(SIGHUP)
        await agent.says("there is no such file")
        self.path.write_bytes(b"\xff\xfe")
        agent.send_signal(SIGHUP)
        await agent.says("isn't UTF-8 text")
        await self.reload(agent, agent={"concurrency": 1})
        await self.send(3)
        await self.all_graded(agent)
        self.assertEqual(self.grader.peak, 1)

    async def test_grader_that_cannot_be_made(self) -> None:
        """Options that don't fit each other leave the grader, and everything else, as it was."""
        agent = await self.started()
        grader = {"kind": "sleep", "min": 2, "max": 1}
        await self.reload(agent, "[grader] max is below min", grader=grader, agent={"concurrency": 1})
        await self.send(20)
        await self.all_graded(agent)
        self.assertGreater(self.grader.peak, 1)

    async def test_queue_that_is_refused(self) -> None:
        """A queue that isn't there, where we mayn't make it, leaves everything as it was; later it may be there."""
        agent = await self.started()
        other = await CountingGrader.start(self)
        new = self.another_queue()
        changed: dict[str, Sections] = {
            "agent": {"concurrency": 1},
            "broker": {"declare": "no"},
            "grader": other.section,
            "queues": {new: ""},
        }
        await self.ends(agent)
        agent = await self.started(broker=changed["broker"])
        await self.reload(agent, SAME, **changed)
        self.assertIn(new, agent.log)
        await self.send(20)
        await self.collect(self.results, 20)
        self.assertEqual((sum(self.grader.graded.values()), sum(other.graded.values())), (20, 0))
        self.assertGreater(self.grader.peak, 1)

        for queue in (new, dead_queue_of(new)):
            await self.broker.declare_queue(queue, arguments={"x-queue-type": "quorum"})
        await self.broker.bind_queue(new, "grading.requests", new)
        await self.broker.bind_queue(dead_queue_of(new), "grading.dead", new)
        self.sent.clear()
        await self.reload(agent, **changed)
        await self.send(20, new, "b")
        await self.all_graded(agent, other)
        self.assertEqual(other.peak, 1)

    async def test_what_needs_a_restart(self) -> None:
        """It is named in a line, and stays as it was; what else is changed is used."""
        agent = await self.started()
        await self.reload(
            agent,
            agent={"name": "other", "concurrency": 1},
            broker={"heartbeat": 7},
            quarantine={"journal": "elsewhere"},
            log={"level": "error"},
        )
        self.assertIn(
            "[agent] name, [broker], [quarantine] journal, [log] changed, and that needs a restart", agent.log
        )
        await self.send(3)
        await self.all_graded(agent)
        self.assertEqual((self.grader.peak, Path("elsewhere").exists()), (1, False))

    async def test_nothing_changed(self) -> None:
        """A file that says the same is answered by a line."""
        agent = await self.started()
        await self.reload(agent, "nothing changed")
        await self.send(3)
        await self.all_graded(agent)


class GoodFileTests(ReloadTestCase):
    """What can be used is used, and no submission notices."""

    async def test_concurrency(self) -> None:
        """From 2 to 8 and down to 1: so many are graded at once."""
        agent = await self.started(agent={"concurrency": 2})
        sending = Deferred.fromCoroutine(self.send(LOAD))
        await until(lambda: sum(self.grader.graded.values()) > 50)
        self.assertEqual(self.grader.peak, 2)
        self.grader.pause = 0.05
        await self.reload(agent, agent={"concurrency": 8})
        await until(lambda: self.grader.busy == 8)
        await self.reload(agent, agent={"concurrency": 1})
        self.assertEqual(self.grader.peak, 8)
        await until(lambda: self.grader.busy <= 1)
        self.grader.peak, self.grader.pause = 0, 0.01
        await sending
        await self.all_graded(agent)
        self.assertEqual(self.grader.peak, 1)

    async def test_grader(self) -> None:
        """Another grader gets what comes from now on; what the one before has begun, it finishes."""
        agent = await self.started()
        other = await CountingGrader.start(self)
        sending = Deferred.fromCoroutine(self.send(LOAD))
        self.grader.pause = None
        await until(lambda: self.grader.busy == 4)
        before = sum(self.grader.graded.values())
        await self.reload(agent, grader=other.section)
        self.grader.let_go()
        await sending
        await self.all_graded(agent, self.grader, other)
        # One a queue had been taken, and waited for its turn.
        self.assertLessEqual(sum(self.grader.graded.values()), before + 1)
        self.assertGreater(sum(other.graded.values()), LOAD // 2)

    async def test_kind_of_grader(self) -> None:
        """From ``fixed`` to ``sleep`` and to a server, one right after the other."""
        agent = await self.started(grader={"kind": "fixed"})
        await self.send(LOAD // 5)
        await self.reload(agent, grader={"kind": "sleep", "min": 0.05, "max": 0.05})
        await self.send(LOAD // 5)
        await self.reload(agent)
        await self.send(LOAD // 5)
        verdicts = await self.collect(self.results, len(self.sent))
        kinds = Counter(str(each.properties.headers["x-grader"]) for each in verdicts)
        self.assertEqual(sorted(str(each.properties.message_id) for each in verdicts), sorted(self.sent))
        self.assertEqual(len(kinds), 3)
        self.assertEqual(kinds["http"], len(self.grader.graded))
        self.assertEqual(set(self.grader.graded.values()), {1})
        await self.until_settled()
        await self.ends(agent)

    async def test_queues(self) -> None:
        """One goes, with work in flight, and another comes, with a grader for it: neither sees the other's."""
        agent = await self.started()
        other, new = await CountingGrader.start(self), self.another_queue()
        await self.send(LOAD // 2)
        self.grader.pause = None
        await until(lambda: self.grader.busy == 4)
        await self.reload(agent, grader=other.section, queues={new: ""})
        self.grader.let_go()
        sending = Deferred.fromCoroutine(self.send(LOAD // 2, new, "b"))
        await until(lambda: sum(other.graded.values()) > 50)
        left = sum(self.grader.graded.values())
        await self.reload(agent, queues={self.requests: ""})
        await sending
        self.assertEqual((set(self.grader.order), set(other.order)), ({"a"}, {"b"}))
        self.assertLess(left, LOAD // 2)
        await self.reload(agent, grader=other.section, queues={new: ""})
        await until(lambda: sum(other.graded.values()) == LOAD // 2)
        await self.reload(agent, queues={self.requests: ""})
        await self.all_graded(agent, self.grader, other)
        self.assertEqual((set(self.grader.order), set(other.order)), ({"a"}, {"b"}))
        await self.until_settled(new)

    async def test_removed_queue_keeps_its_own(self) -> None:
        """Nothing is taken any more from a queue that isn't in the file."""
        agent = await self.started()
        new = self.another_queue()
        await self.reload(agent, queues={new: ""})
        await self.send(5)
        await self.send(5, new, "b")
        await self.collect(self.results, 5)
        self.assertEqual((set(self.grader.order), await self.ready_in(self.requests)), ({"b"}, 5))
        await self.collect(self.requests, 5)
        await self.ends(agent)

    async def test_weights(self) -> None:
        """Shares follow the new weights."""
        second = self.another_queue()
        agent = await self.started(queues={self.requests: "", second: ""}, agent={"concurrency": 2})
        self.grader.pause = None
        await self.send(LOAD // 2)
        await self.send(LOAD // 2, second, "b")
        self.grader.let_go()
        before = len(self.grader.order)
        await until(lambda: len(self.grader.order) > before + 60)
        await self.reload(agent, queues={self.requests: "", second: "weight=9"}, agent={"concurrency": 2})
        changed = len(self.grader.order)
        await until(lambda: len(self.grader.order) > changed + 120)
        share = self.grader.order[changed + 20 : changed + 120].count("b")
        self.assertGreater(share, 80)
        self.assertLess(self.grader.order[:changed].count("b"), 0.6 * changed)
        await self.all_graded(agent)
        await self.until_settled(second)

    async def test_retries(self) -> None:
        """A submission that fails after a change of ``[retry]`` is graded again after the new pause."""
        grader: Sections = {"kind": "http", "url": "http://127.0.0.1:1/", "timeout": 5}
        agent = await self.started(grader=grader, retry={"delays": 3600}, breaker={"failures": 1000})
        await self.reload(agent, grader=grader, retry={"delays": 0.3}, breaker={"failures": 1000})
        await self.send(20)
        await agent.says("tried again in 0.3 s", times=21)
        await self.reload(agent, retry={"delays": 0.3})
        await self.all_graded(agent)

    async def test_open_breaker(self) -> None:
        """Another grader isn't taken for the one that failed: submissions are taken again at once."""
        grader: Sections = {"kind": "http", "url": "http://127.0.0.1:1/", "timeout": 5}
        breaker: Sections = {"failures": 2, "pause": 3000, "longest_pause": 3000}
        agent = await self.started(grader=grader, retry={"delays": 0.3}, breaker=breaker)
        await self.send(20)
        await agent.says("breaker is open")
        await self.reload(agent, retry={"delays": 0.3}, breaker=breaker)
        await self.all_graded(agent)

    async def test_results_queue(self) -> None:
        """Verdicts that can't be told since their queue is gone reach the one that the file names now."""
        agent = await self.started()
        await self.broker.delete_queue(self.results)
        await self.send(10)
        await agent.says("can't be published to", times=4)
        self.results, gone = self.unique("results"), self.results
        await self.reload(agent, results={"queue": self.results})
        await self.all_graded(agent)
        self.assertNotEqual(self.results, gone)


class OddMomentTests(ReloadTestCase):
    """HUP when it isn't expected."""

    async def test_twice(self) -> None:
        """Two and more in a row: what the file says at the end holds."""
        agent = await self.started(agent={"concurrency": 2})
        await self.send(LOAD // 2)
        for concurrency in (3, 4, 5, 6, 7, 1):
            self.write(agent={"concurrency": concurrency})
            agent.send_signal(SIGHUP)

        def settled() -> bool:
            agent.send_signal(SIGHUP)
            return "nothing changed" in agent.log

        await until(settled)
        await until(lambda: self.grader.busy <= 1)
        self.grader.peak = 0
        await self.send(LOAD // 2)
        await self.all_graded(agent)
        self.assertEqual(self.grader.peak, 1)

    async def test_broker_away(self) -> None:
        """Without a broker it is taken as well, and holds for the next connection."""
        proxy = FaultProxy.start(self)
        broker: Sections = {"urls": proxy.url}
        agent = await self.started(broker=broker)
        new = self.another_queue()
        await proxy.refuse()
        proxy.reset()
        await agent.says("next try", times=4)
        await self.reload(agent, broker=broker, queues={new: ""}, agent={"concurrency": 1})
        proxy.accept()
        await agent.says("(consume): connected to ", times=2)
        await agent.says("(publish): connected to ", times=2)
        await self.until_there(new)
        await self.send(20, new, "b")
        await self.all_graded(agent)
        self.assertEqual(self.grader.peak, 1)
        await self.until_settled(new)

    async def until_there(self, queue: str) -> None:
        """Wait until a queue is there."""
        for _ in range(200):
            with contextlib.suppress(ChannelClosed):
                await (await self.channel()).declare_queue(queue, passive=True)
                return
        raise AssertionError(f"{queue} doesn't come")

    async def test_and_term(self) -> None:
        """HUP and TERM at once, in either order: it ends in order, and what it was grading isn't lost."""
        for signals in ((SIGHUP, SIGTERM), (SIGTERM, SIGHUP)):
            agent = await self.started(agent={"concurrency": 2})
            self.grader.pause = 0.5
            await self.send(6)
            await until(lambda: self.grader.busy)
            self.write(agent={"concurrency": 3}, queues={self.another_queue(): ""})
            for number in signals:
                agent.send_signal(number)
            self.assertEqual(await agent.ended(), -SIGTERM)
            self.assert_clean(agent, SECRETS)
            self.grader.pause = 0.01
            agent = await self.started()
            await self.all_graded(agent)
            self.sent.clear()
            self.grader.graded.clear()

    async def test_at_the_very_start(self) -> None:
        """One that comes before anything is up ends nothing."""
        self.write()
        agent = self.start_agent(str(self.path))
        await agent.says("starting up")
        agent.send_signal(SIGHUP)
        await agent.ready()
        await self.send(3)
        await self.all_graded(agent)
