"""The real agent is killed in the middle of its work, and nothing is lost: counted by id."""

from __future__ import annotations

import time
from collections import Counter
from signal import SIGKILL

from twisted.internet.defer import Deferred, gatherResults

from edxagent.interfaces import IDelivery
from edxagent.wire.request import encode_request
from tests.agentprocess import AgentTestCase

SUBMISSIONS = 1000
CONCURRENCY = 10
KILL_AT = (150, 450, 700)
BODY = '{"student_response": "42", "grader_payload": "", "student_info": "{}"}'


class Ledger:
    """Every id that was sent, and how often each got a verdict."""

    def __init__(self) -> None:
        self.verdicts: Counter[str] = Counter()
        self._waiting: list[tuple[int, Deferred[None]]] = []

    def enter(self, delivery: IDelivery) -> None:
        """A verdict came."""
        self.verdicts[str(delivery.properties.message_id)] += 1
        delivery.ack()
        for entry in list(self._waiting):
            if len(self.verdicts) >= entry[0]:
                self._waiting.remove(entry)
                entry[1].callback(None)

    def when(self, count: int) -> Deferred[None]:
        """Fires when ``count`` ids have a verdict."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append((count, waiting))
        return waiting


class KillTests(AgentTestCase):
    """``kill -9``."""

    async def test_killed_in_the_middle(self) -> None:
        """Killed three times in 1,000 submissions and started again, the agent leaves no id without a verdict."""
        ledger = Ledger()
        sections = {
            "agent": {"concurrency": CONCURRENCY},
            "grader": {"kind": "sleep", "min": 0.005, "max": 0.03},
        }
        agent = await self.agent(**sections)
        channel = await self.channel()
        await channel.consume(self.results, ledger.enter, lambda reason: None, prefetch=100)
        ids = {f"kill-{number}" for number in range(SUBMISSIONS)}
        await gatherResults(
            [
                self.broker.publish(
                    encode_request(
                        queue=self.requests, submission=id, header="h", body=BODY, timestamp=int(time.time())
                    )
                )
                for id in sorted(ids)
            ]
        )
        for count in KILL_AT:
            await ledger.when(count)
            agent.send_signal(SIGKILL)
            self.assertEqual(await agent.ended(), -SIGKILL)
            self.assertLess(len(ledger.verdicts), SUBMISSIONS, "it was killed too late")
            agent = await self.agent(**sections)
        await ledger.when(SUBMISSIONS)
        await self.until_settled()
        await agent.stop()
        duplicates = sum(ledger.verdicts.values()) - SUBMISSIONS
        self.assertEqual(set(ledger.verdicts), ids)
        self.assertLessEqual(duplicates, CONCURRENCY * len(KILL_AT))
