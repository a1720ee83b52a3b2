"""F17: the soak. Real agents grade under a steady load while one random fault after the other happens to them."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from signal import SIGTERM
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from edxagent.amqp.topology import ensure_topology
from edxagent.model import dead_queue_of
from edxagent.privatenode import PrivateNode
from tests.cli_process import until
from tests.faults.case import FULL, PATIENCE, FaultTestCase
from tests.faults.load import Collector, Producer
from tests.faults.nodes import own_node
from tests.faults.processes import memory
from tests.faults.soak.agents import SoakedAgent
from tests.faults.soak.faults import FAULTS
from tests.faults.soak.ledger import LongLedger
from tests.faults.soak.load import Load
from tests.faults.soak.report import Report
from tests.faults.soak.scene import Scene
from tests.faults.soak.vitals import MB, Sample, Vitals, growth

MINUTES = float(os.environ.get("EDXAGENT_SOAK_MINUTES") or (2.0 if FULL else 0.3))
"""How long faults happen, after the agents have warmed up."""
REPORT = os.environ.get("EDXAGENT_SOAK_REPORT")
"""The file that the report is written to, if any."""

LONG = 10.0
"""Minutes from which on the growth of memory is a number that means something."""
WARM_UP = 5.0 if MINUTES < LONG else 60.0
CONCURRENCY = 10
CONCURRENCIES = (4, 16)
BACKLOG = 200
WITHIN = 10.0 if FULL else 60.0
"""Seconds from a fault's end until both agents grade what is sent then, from each queue."""
LEAST_GROWTH = 1.0
"""MB of memory for each 100,000 submissions that a long soak mustn't reach."""
MOST_GROWTH = 10 * MB
"""Bytes that a short one mustn't: there, a slope would be noise."""
SLACK = {"deferreds": 3, "pending": 3, "coroutines": 3, "calls": 3, "threads": 3, "descriptors": 0}
"""What more there may be by chance when nothing is to do: a heartbeat's call, a thread that has read a file."""
PAUSES = (0.0, 4.0) if MINUTES >= LONG else (0.0, 0.0)
"""Seconds, from and to, that nothing happens after a recovery: more submissions, and faults at full stride."""
CALM = 30.0
"""Seconds that the agents have to let go of what broken connections left."""


class SoakTests(FaultTestCase):
    """Two agents: one that is killed, and a witness that nobody ends, whose vitals are taken."""

    fault = "F17"
    timeout = MINUTES * 60 + 900.0
    ledger: LongLedger  # type: ignore[assignment]  # it has all that is needed of one

    async def find_node(self) -> PrivateNode:
        """One that may be killed."""
        return await own_node(self)

    async def set_up(self) -> None:
        """Have agents, a load, and who takes what comes back."""
        await super().set_up()
        self.ledger = LongLedger()
        self.exam = self.unique("exam")
        queues = {self.requests: 3, self.exam: 1}
        self.agents = [
            SoakedAgent(
                self,
                name,
                concurrency=CONCURRENCY,
                weights=dict.fromkeys(queues, 1),
                results={"queue": self.results},
                quarantine={"journal": self.journal},
            )
            for name in ("witness", "victim")
        ]
        config = self.config()
        link = self.link(config, purpose="load")
        await ensure_topology(await link.when_up(), config, queues=list(queues), results=self.results)
        producers = {Producer(link, queue, self.ledger): share for queue, share in queues.items()}  # type: ignore[arg-type]
        for producer in producers:
            self.addCleanup(lambda producer=producer: Deferred.fromCoroutine(producer.stop()))
        takers = {self.results: self.ledger.verdict, self.dead: self.ledger.dead_letter}
        takers[dead_queue_of(self.exam)] = self.ledger.dead_letter
        await Collector(lambda prepare: self.link(config, prepare=prepare), takers).when_up()  # type: ignore[arg-type]
        self.load = self._load(producers)
        self.addCleanup(self.load.cancel)
        self.addCleanup(self.keep_logs)
        self.scene = Scene(
            node=self.node,
            witness=self.agents[0],
            victim=self.agents[1],
            load=self.load,
            ledger=self.ledger,
            link=self.link(config, purpose="faults"),
            queues=(*queues, *takers),
            results=self.results,
            quiet=self.quiet,
            concurrencies=CONCURRENCIES,
        )

    def _load(self, producers: dict[Producer, int]) -> Load:
        from twisted.internet import reactor

        return Load(producers, self.ledger, random.Random(f"{self.seed} load"), reactor, BACKLOG)

    async def test_soak(self) -> None:
        """Nothing is lost, duplicates are as few as they must be, the agents recover, and what they hold stays flat."""
        print(f"\n{self.fault}: {MINUTES:g} minutes; EDXAGENT_FAULTS_SEED={self.seed}", flush=True)
        witness, victim = self.agents
        for agent in self.agents:
            agent.start()
            await agent.process.ready()
        before = await self.warmed_up()
        samples: list[Sample] = []
        sampling = LoopingCall(lambda: samples.append(self.sample()))
        sampling.start(min(5.0, MINUTES))
        self.addCleanup(lambda: sampling.stop() if sampling.running else None)
        faults, recoveries, took = await self.soak()
        sampling.stop()
        after = await self.vitals(before)
        await self.each_queue_has_consumers()
        report = Report(
            seed=self.seed,
            minutes=took / 60,
            faults=faults,
            count=self.ledger.count(),
            duplicated=self.ledger.by_agents,
            allowed=max(CONCURRENCIES) * (witness.sessions + victim.sessions - 4),
            recovery=max(recoveries),
            witnessed=self.ledger.graded[witness.name],
            connections=witness.sessions,
            growth=growth(samples) if MINUTES >= LONG else None,
            before=before,
            after=after,
        )
        if REPORT:
            report.save(Path(REPORT))
        else:
            print(report, flush=True)
        self.see(report)
        await self.check(times=sum(faults.values()), recovery=report.recovery)
        for agent in self.agents:
            await agent.end(SIGTERM)

    # The course of it

    async def warmed_up(self) -> Vitals:
        """Have everything happen once that makes an agent load or allocate something; the witness's vitals after it."""
        self.load.begin()
        began = time.monotonic()
        for name in ("connections reset", "configuration changed", "grader unavailable"):
            await FAULTS[name](evolve(self.scene, victim=self.agents[0], chance=random.Random(self.seed)))
            await self.recovered(name)
        await until(lambda: time.monotonic() - began > WARM_UP)
        return await self.vitals()

    async def soak(self) -> tuple[Mapping[str, int], list[float], float]:
        """Have faults happen for as long as it lasts; what did how often, how long recoveries took, and all of it."""
        faults: Counter[str] = Counter()
        recoveries: list[float] = []
        deck: list[str] = []
        self.load.begin()
        began = time.monotonic()
        while time.monotonic() - began < MINUTES * 60:
            if not deck:  # every fault, before one comes again
                deck = list(FAULTS)
                self.random.shuffle(deck)
            name = deck.pop()
            scene = evolve(self.scene, chance=random.Random(f"{self.seed} {len(recoveries)}"))
            duplicates, sent, started = self.ledger.by_agents, self.load.next, time.monotonic() - began
            did = await FAULTS[name](scene)
            recoveries.append(await self.recovered(did))
            faults[name] += 1
            print(
                f"{started:7.1f} s: {did}; recovered in {recoveries[-1]:.1f} s; "
                f"sent {self.load.next - sent}, duplicated {self.ledger.by_agents - duplicates}",
                flush=True,
            )
            self.assertTrue(all(agent.process.alive for agent in self.agents), did)
            await scene.pause(*PAUSES)
        return {name: faults[name] for name in FAULTS if faults[name]}, recoveries, time.monotonic() - began

    async def recovered(self, did: str) -> float:
        """Wait until both agents have graded something from each queue that was sent from now on; how long it took."""
        began, mark = time.monotonic(), self.load.next
        places = [(agent.name, queue) for agent in self.agents for queue in agent.weights]

        def waiting() -> list[tuple[str, str]]:
            return [place for place in places if self.ledger.latest.get(place, 0) < mark]

        try:
            await until(lambda: not waiting(), patience=PATIENCE)
        except AssertionError:
            raise AssertionError(f"{did}: no recovery of {waiting()} within {PATIENCE:g} s") from None
        return time.monotonic() - began

    async def quiet(self) -> None:
        """Send no more, and wait until all is graded and every queue empty."""
        await self.load.stop()
        await self.until_ended()
        self.assertFalse(self.ledger.missing)
        await self.until_settled(*self.scene.queues)

    def keep_logs(self) -> None:
        """Leave the last of what the agents said in trial's folder."""
        for agent in self.agents:
            Path(f"{agent.name}.log").write_bytes(b"".join(agent.run.recent))

    # What is seen

    def sample(self) -> Sample:
        """How much memory the witness has by now."""
        witness = self.agents[0]
        return Sample(self.ledger.graded[witness.name], memory(witness.process.pid))

    async def vitals(self, before: Vitals | None = None) -> Vitals:
        """The witness's when it has nothing to do, and by its first configuration.

        :param before: what they should be like: it has some time for that.
        """
        witness = self.agents[0]
        witness.concurrency, witness.weights = CONCURRENCY, dict.fromkeys(witness.weights, 1)
        await self.scene.reload(witness)
        await self.quiet()
        deadline = time.monotonic() + CALM
        while True:
            vitals = await witness.census.take(witness.process)
            if before is None or not worse(before, vitals) or time.monotonic() > deadline:
                return vitals

    async def each_queue_has_consumers(self) -> None:
        """See that both agents wait for requests of each queue."""
        for queue in self.agents[0].weights:
            async with self.scene.channel() as channel:
                consumers = (await channel.declare_queue(queue, passive=True)).consumers
            self.assertGreaterEqual(consumers, len(self.agents))

    def see(self, report: Report) -> None:
        """Fail if anything is not as it must be; :meth:`check` sees to the rest."""
        self.assertLess(report.recovery, WITHIN)
        self.assertLessEqual(report.duplicated, report.allowed)
        self.assertEqual(worse(report.before, report.after), [], report.after.grown_since(report.before))
        if report.minutes >= LONG:
            assert report.growth is not None
            self.assertLess(report.growth, LEAST_GROWTH)
        else:
            self.assertLess(report.after.memory - report.before.memory, MOST_GROWTH)


def worse(before: Vitals, after: Vitals) -> list[Any]:
    """What there is more of than by chance."""
    pairs = [(name, getattr(before, name), getattr(after, name)) for name in SLACK]
    return [pair for pair in pairs if pair[2] > pair[1] + SLACK[pair[0]]]
