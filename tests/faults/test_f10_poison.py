"""F10: poisonous submissions among good ones: agents die of them, graders fail at them, nobody can read them.

Each becomes a dead letter that says why, after as many attempts as it is granted; the good ones are graded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from signal import SIGKILL

from attrs import field, frozen
from twisted.internet.defer import Deferred

from edxagent.interfaces import IDelivery
from edxagent.tasks import Tasks
from tests.agentprocess import AgentProcess
from tests.cli_process import until
from tests.faults.case import FULL, FaultTestCase
from tests.faults.graders import KIND, asking
from tests.faults.ledger import Ledger
from tests.faults.nodes import RULES

CONCURRENCY = 10
GOOD = 100
MAX_STARTS = 5 if FULL else 2
CRASH_ATTEMPTS = 3
MIB = 1024 * 1024
LARGE = 15 * MIB if RULES == "4" else 50 * MIB
"""RabbitMQ 4 takes no message of more than 16 MiB."""

DEEDS: Mapping[str, tuple[str, int]] = {
    "die": ("quarantined", 0),
    "raise": ("crashed", CRASH_ATTEMPTS),
    "hang": ("timed-out", 2),
    "overflow the stack": ("crashed", CRASH_ATTEMPTS),
    "answer deeply": ("bad-reply", CRASH_ATTEMPTS),
    "answer no UTF-8": ("bad-reply", CRASH_ATTEMPTS),
    "answer no JSON": ("bad-reply", CRASH_ATTEMPTS),
}
"""What the grader does → how the submission ends, and how often it was tried before it did (0 = see below)."""


def unreadable(what: str, id: str) -> bytes:
    """What isn't even a submission."""
    good = {"xqueue_header": json.dumps({"submission": id}), "xqueue_body": asking(), "xqueue_files": "{}"}
    whole = json.dumps(good).encode()
    return {
        "no JSON": lambda: b"<request/>",
        "cut off": lambda: whole[:-1],
        "large": lambda: whole[:-2] + b"x" * LARGE + b'"}',
        "deep": lambda: b'{"xqueue_header": ' + b"[" * 200_000,
        "deep within": lambda: json.dumps({**good, "xqueue_body": "[" * 200_000}).encode(),
        "no UTF-8": lambda: b'{"xqueue_header": "\xff\xfe", "xqueue_body": "\xc3\x28"}',
        "lone surrogate": lambda: b'{"xqueue_header": "\\ud800", "xqueue_body": "\\udfff"}',
    }[what]()


UNREADABLE = ("no JSON", "cut off", "large", "deep", "deep within", "no UTF-8", "lone surrogate")


@frozen
class KeepingLedger(Ledger):
    """Keeps the dead letters: id → the first one."""

    letters: dict[str, IDelivery] = field(factory=dict)

    def dead_letter(self, delivery: IDelivery) -> None:
        """See :class:`Ledger`."""
        self.letters.setdefault(str(delivery.properties.message_id), delivery)
        super().dead_letter(delivery)


class PoisonTests(FaultTestCase):
    """Any agent that dies is started again, as by a supervisor."""

    fault = "F10"

    async def set_up(self) -> None:
        """Have nobody at work yet."""
        await super().set_up()
        self.deaths = 0
        self.agent_now: AgentProcess | None = None
        self._supervising = Tasks()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.end_supervising()))

    async def test_poison(self) -> None:
        """Every one is a dead letter with its reason; the good ones have their verdicts."""
        doses = self.sized(1, 5)
        ledger = self.ledger = KeepingLedger()
        config = self.write_config(
            agent={"concurrency": CONCURRENCY, "max_request": 8 * MIB},
            grader={"kind": KIND, "timeout": 2},
            retry={"delays": 0.3, "timeout_attempts": 2, "crash_attempts": CRASH_ATTEMPTS},
            breaker={"failures": 1000},
            quarantine={"max_starts": MAX_STARTS},
        )
        self._supervising.launch(self.supervise(config), "a supervisor")
        await self.begin()
        ends = {
            **{f"{deed}-{dose}": outcome for deed, (outcome, _) in DEEDS.items() for dose in range(doses)},
            **{f"{what}-{dose}": "malformed" for what in UNREADABLE for dose in range(doses)},
        }
        good = [f"good-{number}" for number in range(GOOD * doses)]
        for id in self.random.sample([*ends, *good], len(ends) + len(good)):
            await self.send(id)
        await until(lambda: ledger.dead.keys() >= ends.keys())
        await self.check(
            times=len(ends),
            duplicates=CONCURRENCY * self.deaths,
            outcomes={"graded", *ends.values()} - {"quarantined"},
            dead={id: [outcome] for id, outcome in ends.items()},
        )
        self.see_ends(ledger, ends, good)
        await self.end_supervising()
        print(f"{self.deaths} agents died")

    async def send(self, id: str) -> None:
        """Send what an id stands for."""
        what = id.rpartition("-")[0]
        if what in UNREADABLE:
            self.ledger.offered(id)
            await self.publish(unreadable(what, id), message_id=id)
            self.ledger.accepted(id)
        else:
            await self.producer.send(id, asking(sleep=0.05) if what == "good" else asking(do=what))

    def see_ends(self, ledger: KeepingLedger, ends: Mapping[str, str], good: list[str]) -> None:
        """The good ones are graded; the poisonous ones never, and tried as often as they should be."""
        self.assertEqual([id for id in good if set(ledger.verdicts.get(id, ())) != {"graded"}], [])
        self.assertEqual([id for id in ends if "graded" in ledger.verdicts.get(id, ())], [])
        for id in ends:
            headers = ledger.letters[id].properties.headers
            self.assertTrue(headers["x-error"], id)
            _, attempts = DEEDS.get(id.rpartition("-")[0], ("malformed", 1))
            if attempts:
                self.assertEqual(headers.get("x-attempt", 1), attempts, id)
        killers = [id for id, outcome in ends.items() if outcome == "quarantined"]
        # Some may have died together, before they were alone.
        self.assertTrue(MAX_STARTS <= self.deaths <= MAX_STARTS * len(killers), self.deaths)

    async def supervise(self, config: str) -> None:
        """Have an agent, one after the other."""
        while True:
            self.agent_now = self.start_agent(config)
            status = await self.agent_now.ended()
            self.assertNotIn("Unhandled", self.agent_now.log)
            if status != -SIGKILL:
                return
            self.deaths += 1

    async def end_supervising(self) -> None:
        """Stop the last one."""
        if self._supervising and self.agent_now is not None and self.agent_now.alive:
            self.agent_now.send_signal(15)
        await self._supervising.when_idle()
