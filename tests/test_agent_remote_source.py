"""Tests for :mod:`edxagent.agent.remote_source` against real servers, and for ``[lms-config]`` with the real agent."""

from __future__ import annotations

import json
from pathlib import Path
from signal import SIGHUP
from typing import Any

from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.trial.unittest import TestCase

from edxagent.agent.remote_source import ConfigSource
from edxagent.config.lms_answer import LARGEST_ANSWER
from edxagent.config.values import LMSSourceConfig
from edxagent.errors import ConfigRefused, ConfigUnavailable, EdxagentError
from edxagent.testing.http_server import (
    Behaviour,
    RogueServer,
    answering,
    resetting,
    saying,
    saying_and_closing,
    saying_for_ever,
    silent,
)
from tests.agentprocess import AgentTestCase, as_ini
from tests.certificates import Authority
from tests.outcomes import SECRETS, request

KEY = "key-of-the-agent"


async def serving(case: TestCase, behaviour: Behaviour, context: Any = None) -> RogueServer:
    """A server until the test ends."""
    from twisted.internet import reactor

    server = RogueServer(behaviour)
    await server.start(reactor, context)
    case.addCleanup(server.stop)
    return server


class ConfigSourceTests(TestCase):
    """One question."""

    timeout = 30.0

    async def ask(self, url: str, **changes: Any) -> bytes:
        """Ask, with a key."""
        from twisted.internet import reactor

        source = ConfigSource(LMSSourceConfig(url=url, api_key=KEY, **{"timeout": 5.0, **changes}), reactor)
        try:
            return await source.ask()
        finally:
            await source.close()

    async def refused(self, behaviour: Behaviour, kind: type[EdxagentError], saying: str, **changes: Any) -> None:
        """Ask a server that doesn't answer as it should."""
        server = await serving(self, behaviour)
        try:
            await self.ask(server.url, **changes)
        except EdxagentError as error:
            self.assertIs(type(error), kind)
            self.assertIn(saying, str(error))
            self.assertIn(server.url, str(error))
            self.assertNotIn(KEY, str(error))
        else:
            self.fail("it was answered")

    async def test_answered(self) -> None:
        """The key is in the header, and the body comes back as it is."""
        server = await serving(self, answering(b"[1]"))
        self.assertEqual(await self.ask(server.url), b"[1]")
        self.assertEqual(server.asked[0].line.split()[0], "GET")
        self.assertEqual(server.asked[0].headers["authorization"], f"Bearer {KEY}")

    async def test_refused(self) -> None:
        """A key that isn't known is a matter for people: where, and what to do."""
        for status in ("401 Unauthorized", "403 Forbidden"):
            await self.refused(answering(b"", status), ConfigRefused, "[agent-config:")

    async def test_unavailable(self) -> None:
        """Everything else may heal: other statuses, redirects, silence, rubbish, endless answers."""
        for behaviour, words in (
            (answering(b"", "500 Oops"), "answered 500"),
            (answering(b"", "404 Not Found"), "[lms-config] url"),
            (answering(b"", "302 Found", ["Location: http://127.0.0.1:1/"]), "answered 302"),
            (resetting, "broke off"),
            (saying_and_closing(b"SSH-2.0\r\n"), "HTTP"),
            (saying(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"), "longer than"),
            (saying_for_ever(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * (LARGEST_ANSWER // 10)), "longer than"),
        ):
            await self.refused(behaviour, ConfigUnavailable, words)
        await self.refused(silent, ConfigUnavailable, "within 0.2 s", timeout=0.2)

    async def test_nobody_there(self) -> None:
        """A port where nothing listens."""
        await self.assertFailure(self.asking("http://127.0.0.1:1/agent/config"), ConfigUnavailable)

    async def test_tls(self) -> None:
        """Over https the certificate must be from an authority that we trust, and for that host."""
        authority = Authority(Path(self.mktemp()))
        pair = authority.issue(Path(self.mktemp()), "127.0.0.1")
        server = await serving(self, answering(b"{}"), DefaultOpenSSLContextFactory(pair.key, pair.certificate))
        self.assertEqual(await self.ask(server.url, ca_file=authority.path), b"{}")
        await self.assertFailure(self.asking(server.url), ConfigUnavailable)
        await self.assertFailure(
            self.asking(server.url.replace("127.0.0.1", "localhost"), ca_file=authority.path), ConfigUnavailable
        )
        self.assertEqual(len(server.asked), 1)

    def asking(self, url: str, **changes: Any) -> Any:
        """:meth:`ask` as a Deferred."""
        from twisted.internet.defer import Deferred

        return Deferred.fromCoroutine(self.ask(url, **changes))


class ToldAgentTests(AgentTestCase):
    """The real agent, told by an LMS side."""

    def told(self, *queues: str) -> Behaviour:
        """An LMS side that tells queues."""
        told = {"broker": {"urls": [self.node.url]}, "queues": {queue: {"weight": 1} for queue in queues}}
        return answering(json.dumps(told).encode())

    def write_told(self, url: str) -> str:
        """A configuration file that leaves broker and queues to an LMS side."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        (folder / "key").write_text(KEY)
        sections = {
            "agent": {"name": "told", "drain_timeout": 10},
            "broker": {"call_timeout": 10, "retry_initial": 0.1, "retry_max": 1},
            "lms-config": {"url": url, "api_key_file": folder / "key", "cache_file": folder / "cache"},
            "grader": {"kind": "fixed"},
            "results": {"queue": self.results},
        }
        path = folder / "agent.ini"
        path.write_text(as_ini(sections))
        return str(path)

    async def test_life(self) -> None:
        """It grades what it is told to; HUP brings another queue; without the LMS side it begins where it was."""
        other = self.unique("other")
        server = await serving(self, self.told(self.requests))
        config = self.write_told(server.url)
        agent = self.start_agent(config)
        await agent.ready()
        await self.publish(request(), message_id="s-1")
        await self.collect(self.results, 1)

        server.behaviour = self.told(self.requests, other)
        agent.send_signal(SIGHUP)
        await agent.says("the configuration has changed: [queues]")
        await self.publish(request(), other, message_id="s-2")
        (second,) = await self.collect(self.results, 1)
        self.assertEqual((second.properties.message_id, second.properties.headers["x-queue"]), ("s-2", other))

        server.behaviour = answering(b"<html>", "503 Busy")
        agent.send_signal(SIGHUP)
        await agent.says("answered 503")
        await self.publish(request(), other, message_id="s-3")
        await self.collect(self.results, 1)
        self.assertEqual(await agent.stop(), -15)
        self.assert_clean(agent, (*SECRETS, KEY, "guest:guest"))

        again = self.start_agent(config)
        await again.says("last good answer")
        await again.ready()
        await self.publish(request(), other, message_id="s-4")
        await self.collect(self.results, 1)
        self.assertEqual(await again.stop(), -15)
        self.assert_clean(again, (*SECRETS, KEY, "guest:guest"))
        for queue in (other, f"{other}.dead"):
            await self.broker.delete_queue(queue)

    async def test_refused(self) -> None:
        """An agent that isn't known, and never was, says so in a line and ends with status 3."""
        server = await serving(self, answering(b"", "401 Unauthorized"))
        agent = self.start_agent(self.write_told(server.url))
        self.assertEqual(await agent.ended(), 3)
        self.assertIn("[agent-config:", agent.log)
        self.assert_clean(agent, (KEY,))
