"""F11: the web grader is out of order, in every way that there is; no learner may be scored 0 for that."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from edxagent.testing.graders import CORRECT
from edxagent.testing.http_server import Behaviour, RogueServer, Visit, answering, saying_for_ever
from tests.agentprocess import AgentProcess
from tests.cli_process import until
from tests.faults.case import FULL, FaultTestCase
from tests.faults.proxy import FaultProxy

CONCURRENCY = 4
SUBMISSIONS = 30
STOPS_WITHIN = 1.0
"""Seconds from the moment at which the breaker opened until there is no consumer any more."""

OPEN, HALF_OPEN, CLOSED = "breaker is open", "breaker is half-open", "breaker is closed"
AGAIN = "the grader failed again"

_FAILURE = re.compile(r"\b(?:unavailable|timed-out|crashed|bad-reply): \S+ from ")


def trickling(visit: Visit) -> None:
    """A behaviour: a byte of a header now and then, for ever."""
    from twisted.internet import reactor

    def more() -> None:
        if visit.transport.connected:  # type: ignore[union-attr]
            visit.send(b"x")
            reactor.callLater(0.05, more)  # type: ignore[attr-defined]

    visit.send(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    more()


REFUSED = "refused"
UNAVAILABLE: Mapping[str, Behaviour | None] = {
    REFUSED: None,
    "500": answering(CORRECT, "500 Internal Server Error"),
    "429": answering(b"", "429 Too Many Requests", ["Retry-After: 1"]),
    "302": answering(CORRECT, "302 Found", ["Location: http://127.0.0.1:1/"]),
}
"""What is surely the grader's fault."""
OUT_OF_ORDER: Mapping[str, Behaviour | None] = {
    **UNAVAILABLE,
    "slow": trickling,
    "garbage": answering(b"<html><body>It works!</body></html>"),
    "endless": saying_for_ever(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 10_000),
}


class WebGraderTests(FaultTestCase):
    """A web server behind a proxy, which can refuse connections."""

    async def set_up(self) -> None:
        """Start both."""
        from twisted.internet import reactor

        await super().set_up()
        self.server = RogueServer(answering(CORRECT))
        await self.server.start(reactor)
        self.addCleanup(self.server.stop)
        port = int(self.server.url.rpartition(":")[2].partition("/")[0])
        self.proxy = FaultProxy.start(self, to=port)
        self.grader = {"kind": "http", "url": f"http://127.0.0.1:{self.proxy.port}/grade", "timeout": 1}
        self.recoveries: list[float] = []

    async def test_counted(self) -> None:
        """Any failure opens the breaker, as configured; meanwhile nothing is held against a submission."""
        self.fault = "F11"
        names = self.random.sample(sorted(OUT_OF_ORDER), self.sized(3, len(OUT_OF_ORDER)))
        agent = await self.agent(
            agent={"concurrency": CONCURRENCY},
            grader=self.grader,
            retry={"delays": "0.3 1", "timeout_attempts": 2},
            breaker={
                "counts": "unavailable timed-out crashed bad-reply",
                "failures": 3,
                "pause": 0.5,
                "longest_pause": 1,
            },
        )
        await self.fails_and_recovers(agent, names * self.sized(1, 5), failures=3)

    async def test_default(self) -> None:
        """By default the breaker counts what is surely the grader's fault."""
        self.fault = "F11 default"
        names = self.random.sample(sorted(UNAVAILABLE), self.sized(1, len(UNAVAILABLE)))
        quick: dict[str, Any] = {"retry": {"delays": "0.3 1"}, "breaker": {"pause": 0.5, "longest_pause": 1}}
        agent = await self.agent(agent={"concurrency": CONCURRENCY}, grader=self.grader, **({} if FULL else quick))
        await self.fails_and_recovers(agent, names, failures=5)

    async def fails_and_recovers(self, agent: AgentProcess, names: list[str], failures: int) -> None:
        """Have the server out of order in one way after the other."""
        await self.begin()
        for name in names:
            await self.break_down(name)
            before, again = len(agent.log), agent.log.count(AGAIN)
            opened = agent.log.count(CLOSED)
            ids = set(await self.producer.send_many(SUBMISSIONS, name))
            await agent.says(f"{OPEN}: the grader failed {failures} times in a row", times=opened + 1)
            await self.until_no_consumers()
            # At most one is tried after each pause; it fails too.
            await agent.says(AGAIN, times=again + 1)
            log = agent.log[before:]
            at_once, tries = failed(log.partition(HALF_OPEN)[0]), log.count(HALF_OPEN)
            self.assertTrue(failures <= at_once < failures + CONCURRENCY, (name, at_once))
            self.assertLessEqual(failed(log), at_once + tries + CONCURRENCY, name)
            await self.until_no_consumers()
            self.assertFalse(ids & self.ledger.verdicts.keys(), name)
            self.mend()
            began = time.monotonic()
            await agent.says(CLOSED, times=opened + 1)
            await until(lambda ids=ids: ids <= self.ledger.verdicts.keys(), agent.run)  # type: ignore[misc]
            self.recoveries.append(time.monotonic() - began)
        await self.check(times=len(names), duplicates=0, recovery=max(self.recoveries))
        await agent.stop()
        self.assert_clean(agent)

    async def break_down(self, name: str) -> None:
        """Be out of order."""
        behaviour = OUT_OF_ORDER[name]
        if behaviour is None:
            await self.proxy.refuse()
        else:
            self.server.behaviour = behaviour
        self.proxy.reset()  # or a connection that is kept would still be answered

    def mend(self) -> None:
        """Be in order."""
        self.proxy.accept()
        self.server.behaviour = answering(CORRECT)

    async def until_no_consumers(self) -> None:
        """See that soon nobody takes submissions any more."""
        deadline = time.monotonic() + STOPS_WITHIN
        asked = time.monotonic()
        while await self.consumers():
            self.assertLess(asked, deadline, "submissions are still taken")
            asked = time.monotonic()


def failed(log: str) -> int:
    """How often an agent says in its log that grading failed."""
    return len(_FAILURE.findall(log))
