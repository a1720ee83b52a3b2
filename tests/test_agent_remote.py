"""Tests for :mod:`edxagent.agent.remote` and :mod:`edxagent.agent.remote_cache`, with clock and LMS side doubles."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import LogEvent, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from edxagent.agent.remote import LONGEST_PAUSE, RemoteAgent, make_agent
from edxagent.agent.remote_cache import AnswerCache, CacheError
from edxagent.agent.remote_origin import Origin
from edxagent.agent.service import AgentService
from edxagent.config.values import AgentConfig, BrokerConfig, GraderConfig, LMSSourceConfig, QueueConfig
from edxagent.errors import BrokerRefused, ConfigError, ConfigRefused, ConfigUnavailable, EdxagentError
from tests.threadless import ThreadlessReactor

KEY = "key-of-the-agent"
DOWN = ConfigUnavailable("it is down")
REFUSED = ConfigRefused("it doesn't know our key")


def answer(*queues: str, broker: str = "10.0.0.1") -> bytes:
    """What the LMS side says."""
    told = {"broker": {"urls": [f"amqp://u:hunter2@{broker}"]}, "queues": {queue: {} for queue in queues}}
    return json.dumps(told).encode()


class FakeAgent:
    """An agent that notes what is done with it."""

    def __init__(self, config: AgentConfig, events: list[str]) -> None:
        self.queues = "+".join(queue.name for queue in config.queues)
        self.concurrency = config.concurrency
        self.refusal: EdxagentError | None = None
        self.changing: Deferred[None] | None = None
        self.draining: Deferred[None] | None = None
        self._events = events

    def startService(self) -> None:
        """Begin."""
        self._events.append(f"start {self.queues}")

    def stopService(self) -> Deferred[None]:
        """End, at once or when a test says so."""
        self._events.append(f"stop {self.queues}")
        return self.draining or succeed(None)

    def hurry(self) -> None:
        """Cut it short."""
        self._events.append(f"hurry {self.queues}")

    def reconfigure(self, config: AgentConfig) -> Deferred[None]:
        """Go on with others."""
        queues = "+".join(queue.name for queue in config.queues)
        self._events.append(f"change {self.queues} to {queues}")
        if self.refusal is not None:
            return fail(self.refusal)
        self.queues = queues
        return self.changing or succeed(None)


class FakeSource:
    """An LMS side that answers what it is told to, the last thing for ever."""

    def __init__(self, *answers: bytes | Exception | Deferred[bytes]) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.closed = False

    async def ask(self) -> bytes:
        """The next answer."""
        self.asked += 1
        now = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(now, Exception):
            raise now
        return await now if isinstance(now, Deferred) else now

    async def close(self) -> None:
        """Ask no more."""
        self.closed = True


class RemoteCase(SynchronousTestCase):
    """A remote agent with its surroundings."""

    def setUp(self) -> None:
        """The file's configuration."""
        self.clock = ThreadlessReactor()
        self.events: list[str] = []
        self.agents: list[FakeAgent] = []
        self.refusals: list[EdxagentError] = []
        self.lms = LMSSourceConfig(url="https://lms/agent/config", api_key=KEY, cache_file=self.mktemp())
        self.config = AgentConfig(
            name="agent-1",
            broker=BrokerConfig(addresses=()),
            queues=(),
            grader=GraderConfig(kind="fixed"),
            lms=self.lms,
        )

    def remote(self, *answers: bytes | Exception | Deferred[bytes]) -> RemoteAgent:
        """A started one."""
        self.source = FakeSource(*answers)
        service = RemoteAgent(
            config=self.config,
            make=self.make,
            make_origin=self.make_origin,
            reactor=self.clock,
            on_refused=self.refusals.append,
        )
        self.agents.clear()
        capturing = capturedLogs()
        self.logged: list[LogEvent] = capturing.__enter__()
        self.addCleanup(capturing.__exit__, None, None, None)
        service.startService()
        return service

    def make_origin(self, lms: LMSSourceConfig) -> Origin:
        """Whom to ask."""
        return Origin(self.source, AnswerCache(lms), self.clock)

    def make(self, config: AgentConfig) -> FakeAgent:
        """Make an agent."""
        if config.grader.kind == "bad":
            raise ConfigError(["[grader] it is bad"])
        self.agents.append(FakeAgent(config, self.events))
        return self.agents[-1]

    def remember(self, kept: bytes) -> None:
        """Have an earlier answer."""
        AnswerCache(self.lms).write(kept)

    def remembered(self) -> bytes | None:
        """What would be known after a restart."""
        return AnswerCache(self.lms).read()


class AskingTests(RemoteCase):
    """At the start."""

    def test_told(self) -> None:
        """The agent runs with what is told; that is kept in a file of our own, and nobody is asked again."""
        self.remote(answer("a", "b"))
        self.assertEqual(self.events, ["start a+b"])
        self.assertEqual(self.remembered(), answer("a", "b"))
        self.assertEqual(stat.S_IMODE(os.stat(self.lms.cache_file).st_mode), 0o600)
        self.clock.advance(100_000)
        self.assertEqual((self.source.asked, self.clock.getDelayedCalls()), (1, []))

    def test_away(self) -> None:
        """With nothing known, it goes on asking with growing pauses until it is told; each failure is one line."""
        self.remote(DOWN, DOWN, DOWN, answer("a"))
        for _ in range(3):
            self.assertEqual(self.events, [])
            self.clock.advance(5)
        self.assertEqual((self.events, self.source.asked), (["start a"], 4))
        lines = [event["log_format"].format(**event) for event in self.logged]
        self.assertEqual(len(lines), 3)
        self.assertIn("it is down; again in 4 s", lines[2])

    def test_longest_pause(self) -> None:
        """The pauses have an end."""
        self.remote(DOWN)
        for _ in range(40):
            self.clock.advance(LONGEST_PAUSE)
        self.assertGreaterEqual(self.source.asked, 40)
        self.clock.advance(0.001)
        self.assertLess(self.source.asked, 90)

    def test_away_with_a_cache(self) -> None:
        """The last good answer is used at once; when the LMS side is back and says the same, nothing happens."""
        self.remember(answer("a"))
        self.remote(DOWN, DOWN, answer("a"))
        self.assertEqual(self.events, ["start a"])
        self.clock.advance(10)
        self.clock.advance(10)
        self.assertEqual((self.events, self.source.asked), (["start a"], 3))

    def test_away_with_an_old_cache(self) -> None:
        """When the LMS side is back and says something else, the agent goes on with that."""
        self.remember(answer("a"))
        self.remote(DOWN, answer("b"))
        self.clock.advance(10)
        self.assertEqual(self.events, ["start a", "change a to b"])
        self.assertEqual(self.remembered(), answer("b"))

    def test_refused(self) -> None:
        """If it doesn't know us and nothing is known, who owns the process is told, once."""
        self.remote(REFUSED)
        self.clock.advance(10)
        self.assertEqual((self.events, self.refusals), ([], [REFUSED]))

    def test_refused_with_a_cache(self) -> None:
        """If there is an earlier answer, the agent runs with that."""
        self.remember(answer("a"))
        self.remote(REFUSED)
        self.clock.advance(10)
        self.assertEqual((self.events, self.refusals), (["start a"], []))

    def test_nonsense(self) -> None:
        """What isn't a configuration is neither used nor kept; it goes on asking."""
        self.remote(b"<html>", answer(), b'{"broker": {"urls": ["amqp://u:hunter2@x y"]}, "queues": {}}', answer("a"))
        for _ in range(3):
            self.assertEqual((self.events, self.remembered()), ([], None))
            self.clock.advance(10)
        self.assertEqual((self.events, self.remembered()), (["start a"], answer("a")))
        self.assertNotIn("hunter2", str(self.logged))

    def test_nonsense_in_a_key_that_is_left_aside(self) -> None:
        """Bytes that aren't text, in a key that nobody here knows, don't end the asking."""
        self.remote(answer("a")[:-1] + b', "more": "\xff"}', answer("b"))
        self.assertEqual((self.events, self.remembered()), ([], None))
        self.clock.advance(10)
        self.assertEqual((self.events, self.remembered()), (["start b"], answer("b")))

    def test_cache_that_cannot_be_written(self) -> None:
        """Without a place for the file the agent runs all the same, and says so."""
        self.lms = evolve(self.lms, cache_file="/nonexistent/folder/cache")
        self.config = evolve(self.config, lms=self.lms)
        self.remote(answer("a"))
        self.assertEqual(self.events, ["start a"])
        self.assertIn("cache_file", str(self.logged[-1]["log_format"]))

    def test_cache_that_is_spoilt(self) -> None:
        """A file that holds something else is no reason to end."""
        Path(self.lms.cache_file).write_text("{")
        os.chmod(self.lms.cache_file, 0o600)
        self.remote(DOWN, answer("a"))
        self.assertEqual(self.events, [])
        self.clock.advance(10)
        self.assertEqual((self.events, self.remembered()), (["start a"], answer("a")))


class ReloadTests(RemoteCase):
    """``reload``."""

    def lines(self) -> list[str]:
        """What the log says."""
        return [event["log_format"].format(**event) for event in self.logged]

    def test_same(self) -> None:
        """The same answer changes nothing, and that is said."""
        service = self.remote(answer("a"))
        service.reload()
        self.assertEqual((self.source.asked, self.events), (2, ["start a"]))
        self.assertIn("nothing changed", self.lines()[-1])

    def test_other_queues(self) -> None:
        """Other queues of the same broker: the agent goes on with them."""
        service = self.remote(answer("a"), answer("b"))
        service.reload()
        self.assertEqual(self.events, ["start a", "change a to b"])
        service.reload()
        self.assertEqual(self.events, ["start a", "change a to b"])

    def test_queues_that_cannot_be_had(self) -> None:
        """When the broker refuses a queue, the agent goes on as before; it is asked again until that is mended."""
        service = self.remote(answer("a"), answer("b"))
        self.agents[0].refusal = BrokerRefused("no queue b")
        service.reload()
        self.assertIn("no queue b", self.lines()[-1])
        self.agents[0].refusal = None
        self.clock.advance(10)
        self.assertEqual(self.events, ["start a", "change a to b", "change a to b"])

    def test_other_broker(self) -> None:
        """Another broker: the agent finishes what it has begun, then another one begins."""
        service = self.remote(answer("a"), answer("b", broker="10.0.0.2"))
        self.agents[0].draining = Deferred()
        service.reload()
        self.assertEqual(self.events, ["start a", "stop a"])
        self.agents[0].draining.callback(None)
        self.assertEqual(self.events, ["start a", "stop a", "start b"])

    def test_bad(self) -> None:
        """An answer that is none, or none at all, replaces no good one; it goes on asking until there is one."""
        service = self.remote(answer("a"), b"[]", DOWN, REFUSED, answer("b"))
        service.reload()
        for _ in range(3):
            self.assertEqual((self.events, self.remembered()), (["start a"], answer("a")))
            self.clock.advance(10)
        self.assertEqual((self.events, self.refusals), (["start a", "change a to b"], []))

    def test_while_it_rests(self) -> None:
        """A pause is cut short."""
        service = self.remote(DOWN, answer("a"))
        service.reload()
        self.assertEqual((self.events, self.clock.getDelayedCalls()), (["start a"], []))

    def test_while_it_drains(self) -> None:
        """Called while agents change places, it asks again afterwards."""
        service = self.remote(answer("a"), answer("b", broker="10.0.0.2"), answer("c", broker="10.0.0.2"))
        self.agents[0].draining = Deferred()
        service.reload()
        service.reload()
        self.assertEqual(self.source.asked, 2)
        self.agents[0].draining.callback(None)
        self.assertEqual(self.events, ["start a", "stop a", "start b", "change b to c"])

    def test_when_stopped(self) -> None:
        """Nothing happens before the start and after the stop."""
        service = self.remote(answer("a"), answer("b"))
        self.successResultOf(service.stopService())
        service.reload()
        self.assertEqual(self.source.asked, 1)

    def test_agent_that_does_not_stop_in_order(self) -> None:
        """What goes wrong in an old agent's stop is logged, and the new one begins."""
        service = self.remote(answer("a"), answer("b", broker="10.0.0.2"))
        self.agents[0].draining = Deferred()
        service.reload()
        self.agents[0].draining.errback(ZeroDivisionError())
        self.assertEqual(self.events, ["start a", "stop a", "start b"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class ReconfigureTests(RemoteCase):
    """``reconfigure``: another file."""

    def changed(self, service: RemoteAgent, **changes: Any) -> None:
        """Give it another file."""
        self.config = evolve(self.config, **changes)
        self.successResultOf(Deferred.fromCoroutine(service.reconfigure(self.config)))

    def test_file_and_answer(self) -> None:
        """What the file says now holds together with what is answered now."""
        service = self.remote(answer("a"), answer("b"))
        self.changed(service, concurrency=3)
        self.assertEqual(self.events, ["start a", "change a to b"])
        self.changed(service, concurrency=4)
        self.assertEqual(self.events[2:], ["change b to b"])

    def test_away(self) -> None:
        """While the LMS side is away, the file holds together with its last good answer."""
        service = self.remote(answer("a"), DOWN)
        self.changed(service, concurrency=3)
        self.assertEqual(self.events, ["start a", "change a to a"])
        self.clock.advance(10)
        self.assertEqual((self.events, self.source.asked), (["start a", "change a to a"], 3))

    def test_before_any_answer(self) -> None:
        """Without any answer it holds for the first agent."""
        service = self.remote(DOWN, DOWN, answer("a"))
        self.changed(service, concurrency=3)
        self.clock.advance(10)
        self.assertEqual((self.events, self.agents[-1].concurrency, self.source.asked), (["start a"], 3, 3))

    def test_bad(self) -> None:
        """A grader that can't be made changes nothing, and nobody is asked."""
        service = self.remote(answer("a"), answer("b"))
        config = evolve(self.config, grader=GraderConfig(kind="bad"))
        self.failureResultOf(Deferred.fromCoroutine(service.reconfigure(config)), ConfigError)
        self.assertEqual((self.events, self.source.asked), (["start a"], 1))
        service.reload()
        self.assertEqual(self.events, ["start a", "change a to b"])

    def test_other_lms_side(self) -> None:
        """Another LMS side is asked from now on, and the one before no more, not even if it is about to answer."""
        asked: Deferred[bytes] = Deferred()
        service = self.remote(answer("a"), asked)
        before = self.source
        service.reload()
        self.source = FakeSource(answer("b"))
        self.changed(service, lms=evolve(self.lms, url="https://lms2/agent/config", cache_file=self.mktemp()))
        self.assertEqual((before.closed, self.source.asked), (True, 1))
        self.assertEqual(self.events, ["start a", "change a to b"])
        self.assertEqual(self.remembered(), answer("a"))

    def test_without_lms_side(self) -> None:
        """A file that names its own queues needs a restart; what else is in it is used."""
        service = self.remote(answer("a"))
        told = evolve(self.config, lms=None, queues=(QueueConfig(name="mine"),), concurrency=3)
        self.successResultOf(Deferred.fromCoroutine(service.reconfigure(told)))
        self.assertEqual(self.events, ["start a", "change a to a"])
        self.assertTrue([event for event in self.logged if event.get("settings") == "[lms-config]"])

    def test_stopped_meanwhile(self) -> None:
        """A stop waits for no broker that is to agree to other queues."""
        service = self.remote(answer("a"), answer("b"))
        cancelled: list[Deferred[None]] = []
        self.agents[0].changing = Deferred(cancelled.append)
        service.reload()
        self.successResultOf(service.stopService())
        self.assertEqual((len(cancelled), self.events), (1, ["start a", "change a to b", "stop b"]))


class StoppingTests(RemoteCase):
    """``stopService`` and ``hurry``."""

    def test_stop(self) -> None:
        """It stops when its agent has."""
        service = self.remote(answer("a"))
        self.agents[0].draining = Deferred()
        stopping = service.stopService()
        self.assertNoResult(stopping)
        service.hurry()
        self.agents[0].draining.callback(None)
        self.successResultOf(stopping)
        self.assertEqual((self.events, self.source.closed), (["start a", "stop a", "hurry a"], True))

    def test_while_it_asks(self) -> None:
        """It waits for no answer."""
        asked: Deferred[bytes] = Deferred()
        service = self.remote(asked)
        self.successResultOf(service.stopService())
        self.assertEqual((self.events, self.clock.getDelayedCalls()), ([], []))

    def test_while_it_rests(self) -> None:
        """It waits for no pause."""
        service = self.remote(DOWN)
        self.successResultOf(service.stopService())
        self.assertEqual((self.source.asked, self.clock.getDelayedCalls()), (1, []))

    def test_while_it_drains(self) -> None:
        """It waits until the old agent has finished, and doesn't begin with a new one."""
        service = self.remote(answer("a"), answer("b", broker="10.0.0.2"))
        self.agents[0].draining = Deferred()
        service.reload()
        stopping = service.stopService()
        self.assertNoResult(stopping)
        self.agents[0].draining.callback(None)
        self.successResultOf(stopping)
        self.assertEqual(self.events, ["start a", "stop a"])

    def test_while_a_file_is_written(self) -> None:
        """No thread of ours is left."""
        self.clock.hold = True
        service = self.remote(answer("a"))
        stopping = service.stopService()
        self.assertNoResult(stopping)
        self.clock.held.pop()()
        self.successResultOf(stopping)
        self.assertEqual((self.events, self.remembered()), ([], answer("a")))

    def test_again(self) -> None:
        """It can be started again."""
        service = self.remote(answer("a"))
        self.successResultOf(service.stopService())
        service.startService()
        self.assertEqual(self.events, ["start a", "stop a", "start a"])


class CacheTests(RemoteCase):
    """The file."""

    def test_nothing(self) -> None:
        """No file, no answer."""
        self.assertIsNone(self.remembered())

    def test_of_another_source(self) -> None:
        """An answer to another key, or from another place, isn't ours."""
        self.remember(answer("a"))
        for change in ({"api_key": "another-key-of-ours"}, {"url": "https://lms2/agent/config"}):
            self.assertIsNone(AnswerCache(evolve(self.lms, **change)).read())
        self.assertNotIn(KEY, Path(self.lms.cache_file).read_text())

    def test_of_somebody_else(self) -> None:
        """A file that others may read or change isn't believed."""
        self.remember(answer("a"))
        for mode in (0o640, 0o602, 0o604):
            os.chmod(self.lms.cache_file, mode)
            self.assertRaises(CacheError, self.remembered)

    def test_strange_files(self) -> None:
        """A folder, a FIFO, a huge file, nonsense: refused, and nobody waits."""
        os.mkdir(self.lms.cache_file)
        self.assertRaises(CacheError, self.remembered)
        self.assertRaises(CacheError, self.remember, answer("a"))
        os.rmdir(self.lms.cache_file)
        os.mkfifo(self.lms.cache_file, 0o600)
        self.assertRaises(CacheError, self.remembered)
        os.unlink(self.lms.cache_file)
        for content in ("", "{}", "[]", '"' + "x" * 5_000_000 + '"', '{"source": 1, "answer": 2}'):
            Path(self.lms.cache_file).write_text(content)
            os.chmod(self.lms.cache_file, 0o600)
            self.assertRaises(CacheError, self.remembered)

    def test_interrupted(self) -> None:
        """What a killed attempt left behind doesn't hinder the next, whatever its mode was."""
        Path(f"{self.lms.cache_file}.new").write_text("half")
        self.remember(answer("a"))
        self.assertEqual(self.remembered(), answer("a"))
        self.assertEqual(stat.S_IMODE(os.stat(self.lms.cache_file).st_mode), 0o600)


class MakeAgentTests(RemoteCase):
    """``make_agent``."""

    def configured(self, **changes: Any) -> AgentConfig:
        """A configuration with a grader that there is."""
        grader = GraderConfig(kind="fixed", options={"correct": True, "score": 1.0, "msg": "ok"})
        return evolve(self.config, grader=grader, **changes)

    def test_kinds(self) -> None:
        """The plain agent where the file tells everything; the other where the LMS side does."""
        told = self.configured(lms=None, queues=(QueueConfig(name="q"),))
        self.assertIsInstance(make_agent(told, self.clock), AgentService)
        self.assertIsInstance(make_agent(self.configured(), self.clock), RemoteAgent)

    def test_mistakes_are_found_at_once(self) -> None:
        """What is wrong in the file is said before anybody is asked."""
        bad = evolve(self.lms, ca_file="/nonexistent/ca.pem")
        error = self.assertRaises(ConfigError, make_agent, self.configured(lms=bad), self.clock)
        self.assertIn("[lms-config] ca_file", str(error))
        options = {"url": "http://x/", "content_type": "", "connect_timeout": 1, "username": "", "password": "p"}
        grader = GraderConfig(kind="http", options={**options, "ca_file": ""})
        error = self.assertRaises(ConfigError, make_agent, evolve(self.config, grader=grader), self.clock)
        self.assertIn("[grader] username", str(error))
