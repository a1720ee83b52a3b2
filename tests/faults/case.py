"""What every fault's test has: agents that are real processes, a load, a ledger, and a row in the table."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any, TypeVar

from attrs import asdict
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from edxagent.amqp.topology import ensure_topology
from edxagent.config.values import BrokerAddress
from edxagent.privatenode import PrivateNode
from tests.agentprocess import AgentProcess, AgentTestCase, Sections
from tests.cli_process import until
from tests.faults.ledger import Count, Ledger
from tests.faults.load import Collector, Producer
from tests.faults.nodes import RULES, ruled_node
from tests.faults.proxy import FaultProxy, ProxiedConnection

FULL = os.environ.get("EDXAGENT_FAULTS", "short") == "full"
"""``EDXAGENT_FAULTS=full``: as often, and for as long, as the table says. Otherwise a few seconds each."""
SEED = os.environ.get("EDXAGENT_FAULTS_SEED")
"""What chance a run has is replayed by the seed that it printed."""
ROWS = os.environ.get("EDXAGENT_FAULTS_ROWS")
"""The file that each test appends its row to, if any."""

PATIENCE = 60.0
"""Seconds without any verdict after which what is missing is lost."""

Choice = TypeVar("Choice")


class FaultTestCase(AgentTestCase):
    """A test of what becomes of submissions when something breaks.

    :ivar fault: the row of the table that it fills, a key of ``FAULTS`` in :mod:`tests.faults.table`.
    :ivar random: for all that is left to chance.
    :ivar ledger: of all that went through :attr:`producer` and :attr:`collector`, which :meth:`begin` makes.
    """

    fault = ""
    timeout = 3600.0 if FULL else 300.0
    producer: Producer
    collector: Collector

    async def find_node(self) -> PrivateNode:
        """The shared node, by the rules that hold."""
        return await ruled_node()

    async def set_up(self) -> None:
        """Have a ledger, and chance that can be replayed."""
        await super().set_up()
        self.seed = SEED or str(random.SystemRandom().randrange(10**6))
        self.random = random.Random(self.seed)
        self.ledger = Ledger()
        self._began = time.monotonic()

    def write_config(self, **sections: Sections) -> str:
        """As for any agent, with a journal of its own."""
        journal = {"quarantine": {"journal": str(Path(self.mktemp()).absolute())}}
        return super().write_config(**{**journal, **sections})

    async def begin(self, *addresses: BrokerAddress, collecting: bool = True) -> None:
        """Have the queues, and who sends and takes; past every proxy, straight to the brokers.

        :param addresses: the node's by default.
        :param collecting: otherwise verdicts stay until :meth:`collect_verdicts`.
        """
        config = self.config(*addresses)
        link = self.link(config, purpose="test")
        session = await link.when_up()
        await ensure_topology(session, config, queues=[self.requests], results=self.results)
        self.producer = Producer(link, self.requests, self.ledger)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.producer.stop()))
        if collecting:
            await self.collect_verdicts(*addresses)

    async def collect_verdicts(self, *addresses: BrokerAddress) -> None:
        """Begin to take what comes back."""
        takers = {self.results: self.ledger.verdict, self.dead: self.ledger.dead_letter}
        self.collector = Collector(lambda prepare: self.link(self.config(*addresses), prepare=prepare), takers)
        await self.collector.when_up()

    def sized(self, short: Choice, full: Choice) -> Choice:
        """A number or so for the short form, and for the full one."""
        return full if FULL else short

    async def connection(self, proxy: FaultProxy, purpose: str) -> ProxiedConnection:
        """The agent's connection through a proxy for ``consume`` or ``publish``, as the broker knows it."""
        from twisted.internet import reactor

        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            listed = await self.node.rabbitmqctl("list_connections", "peer_port", "client_properties")
            ports = {int(line.split("\t")[0]) for line in listed.splitlines() if f"({purpose})" in line}
            for connection in proxy.connections:
                if connection.broker_sees in ports:
                    return connection
            await deferLater(reactor, 0.2)  # type: ignore[arg-type]  # zope's interface, mypy's module
        raise AssertionError(f"there is no connection to {purpose} through the proxy")

    async def recovery(self, since: float, requests: int = 20, patience: float = PATIENCE) -> float:
        """Seconds from ``since`` (``time.monotonic()``) until some requests that are sent now all have a verdict.

        More of them than an agent can hold: the last verdict shows that it consumes, publishes and is confirmed.
        """
        probes = set(await self.producer.send_many(requests, "probe"))
        await until(lambda: probes <= self.ledger.verdicts.keys(), patience=patience)
        return time.monotonic() - since

    async def check(
        self,
        *,
        times: int,
        duplicates: int | None = None,
        recovery: float | None = None,
        settled: bool = True,
        **expected: Any,
    ) -> Count:
        """Wait for every submission's end, then count: print, put the row into the table, and see that all is well.

        :param times: how often the fault really happened.
        :param duplicates: how many of them there may be; ``None`` = any number.
        :param recovery: the worst time, in seconds, from the fault's end until submissions were graded again.
        :param settled: whether to see that nothing is left in any queue.
        :param expected: :meth:`Ledger.count`'s, where not everything is ``graded``.
        """
        await self.until_ended()
        if settled and not self.ledger.missing:
            await self.until_settled(self.requests, self.results, self.dead)
        count = self.ledger.count(**expected)
        self._note(times, count, recovery)
        self.assertGreater(times, 0, "the fault never happened")
        self.assertEqual(count.lost, 0, sorted(self.ledger.missing)[:10])
        self.assertEqual(count.unexpected, 0, self.ledger.wrong(**expected)[:20])
        if duplicates is not None:
            self.assertLessEqual(count.duplicated, duplicates)
        return count

    async def consumers(self) -> int:
        """How many consumers the requests have, without those that were cancelled.

        The answer to a passive declaration counts these too, as long as something is unacked that came through them.
        """
        listed = await self.node.rabbitmqctl("list_consumers", "queue_name")
        return listed.split("\n").count(self.requests)

    async def taken(self) -> int:
        """How many requests are unacked, with whoever took them."""
        return await self.held_in(self.requests) - await self.ready_in(self.requests)

    async def until_taken(self, most: int, agent: AgentProcess) -> None:
        """Wait until no more requests than so many are with an agent that lives."""
        deadline = time.monotonic() + PATIENCE
        while await self.taken() > most:
            self.assertTrue(agent.alive, agent.log)
            self.assertLess(time.monotonic(), deadline, agent.log)

    async def until_ended(self, patience: float = PATIENCE) -> None:
        """Wait until nothing is missing, or nothing has come for so long."""
        from twisted.internet import reactor

        entries, since = -1, time.monotonic()
        while self.ledger.missing and time.monotonic() - since < patience:
            if self.ledger.entries != entries:
                entries, since = self.ledger.entries, time.monotonic()
            await deferLater(reactor, 0.05)  # type: ignore[arg-type]

    def _note(self, times: int, count: Count, recovery: float | None) -> None:
        after = "" if recovery is None else f", recovered within {recovery:.1f} s"
        rules = f", RabbitMQ {RULES}'s rules" if RULES else ""
        print(f"\n{self.fault} ({times} times{rules}): {count}{after}; EDXAGENT_FAULTS_SEED={self.seed}", flush=True)
        if ROWS:
            row = {
                "fault": self.fault,
                "test": self.id(),
                "times": times,
                **asdict(count),
                "recovery": recovery,
                "seconds": round(time.monotonic() - self._began, 1),
                "rules": RULES,
                "full": FULL,
                "seed": self.seed,
            }
            with open(ROWS, "a") as rows:
                rows.write(json.dumps(row) + "\n")
