"""Bridges in the real program, with its updater: from real edx-submissions over a real broker to an agent, and back."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from random import Random
from signal import SIGKILL, SIGTERM

from edxagent.model import RESULTS_RETRY, dead_queue_of, retry_name
from tests.agentprocess import PATIENCE, Sections
from tests.circle import Asked, Grader, pause
from tests.cli_process import start_cli
from tests.edx_submissions_lms import PASSWORD, USERNAME, EdxSubmissionsLMS
from tests.lmsprocess import LMSProcess, LMSTestCase

RETRY_DELAYS = (0.2, 0.5, 1.0)
STALE = 4.0
"""Seconds after which an LMS here hands out again what isn't answered."""


class BridgeTestCase(LMSTestCase):
    """A test with LMSs, one LMS side with a bridge to each, and an agent whose grader takes an answer for the score."""

    timeout = 240.0

    async def set_up(self) -> None:
        """Start a grader, choose where everything is."""
        await super().set_up()
        self.grader = Grader(self.grade)
        self.grader_url = await self.grader.start(self)
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        (self.folder / "password").write_text(PASSWORD)

    async def grade(self, asked: Asked) -> object:
        """Grade."""
        await pause(0.02)
        return {"correct": asked.answer == "1", "score": float(asked.answer), "msg": f"<p>{asked.answer}</p>"}

    def bridges(self, **lmss: EdxSubmissionsLMS) -> LMSProcess:
        """An LMS side that has a bridge to each, by that name; it isn't ready yet."""
        sections: dict[str, Sections] = {
            f"bridge:{name}": {
                "url": lms.url,
                "username": USERNAME,
                "password_file": self.folder / "password",
                "queues": self.requests,
                "poll_initial": 0.05,
                "poll_max": 0.5,
                "answer_within": 60,
            }
            for name, lms in lmss.items()
        }
        sections["updater"] = {
            "queue": self.results,
            "retry_delays": " ".join(map(str, RETRY_DELAYS)),
            "breaker_pause": 0.5,
        }
        sections["sink:scores"] = {"kind": "database", "url": f"sqlite:///{self.folder / 'scores.db'}"}
        sections["ledger"] = {"url": self.ledger_url}
        return self.start_lms(self.write_lms_config("gateway", "users", **sections))

    @property
    def ledger_url(self) -> str:
        """Where is kept what became of each submission."""
        return f"sqlite:///{self.folder / 'ledger.db'}"

    def scores(self) -> list[tuple[str, float]]:
        """Outcome and score of each row of the database."""
        with closing(sqlite3.connect(f"file:{self.folder / 'scores.db'}?mode=ro", uri=True)) as database:
            return sorted(database.execute("SELECT outcome, score FROM edxagent_scores"))

    async def until_quiet(self) -> None:
        """Wait until no request and no verdict is under way."""
        waiting = [retry_name(RESULTS_RETRY, delay) for delay in RETRY_DELAYS]
        for queue in (self.requests, self.results, *waiting):
            for _ in range(int(PATIENCE / 0.2)):
                if not await self.held_in(queue):
                    break
                await pause(0.2)
            else:
                self.fail(f"{queue} doesn't get empty")

    async def assert_answered(self, lms: EdxSubmissionsLMS, answer: str, count: int) -> None:
        """Fail unless each submission has that answer's score, by the grader's word, once."""
        await lms.until_all_are("retired")
        rows = await lms.rows()
        self.assertEqual(len(rows), count)
        self.assertEqual({tuple(row.points) for row in rows}, {(int(answer),)})
        self.assertEqual({json.loads(row.reply or "")["msg"] for row in rows}, {f"<p>{answer}</p>"})


class BridgeTests(BridgeTestCase):
    """``[bridge:NAME]``."""

    async def test_two_lmss(self) -> None:
        """Two LMSs, whose submissions have the same numbers, each get their own verdicts; so does the database."""
        north, south = [await EdxSubmissionsLMS.start(self) for _ in range(2)]
        self.assertEqual(
            await north.create(self.requests, 25, answer="1"), await south.create(self.requests, 25, answer="0")
        )
        agent = await self.agent(grader={"kind": "http", "url": self.grader_url})
        side = self.bridges(north=north, south=south)
        await side.ready("publish", "results")
        await self.assert_answered(north, "1", 25)
        await self.assert_answered(south, "0", 25)
        await self.until_quiet()
        self.assertEqual(self.scores(), [("graded", 0.0)] * 25 + [("graded", 1.0)] * 25)
        for lms in (north, south):
            self.assertEqual((await lms.count("POST put_result"), await lms.count("POST login")), (25, 1))
        self.assertEqual((await self.ready_in(self.dead), await self.ready_in(dead_queue_of(self.results))), (0, 0))
        number = (await north.rows())[0].id
        told = start_cli(self, "trace", str(number), "--ledger", self.ledger_url, "--json")
        self.assertEqual(await told.ends(), 0, told.err)
        found: list[Mapping[str, object]] = json.loads(told.out)["submissions"]
        self.assertEqual({entry["origin"] for entry in found}, {"bridge:north", "bridge:south"})
        self.assertEqual(await side.stop(), -SIGTERM)
        for process in (side, agent):
            self.assert_clean(process, (PASSWORD, "submission_key"))

    async def test_lms_away(self) -> None:
        """Verdicts wait on the broker while the LMS is away, then out of order; each is recorded once."""
        lms = await EdxSubmissionsLMS.start(self)
        await lms.create(self.requests, 20, answer="1")
        side = self.bridges(north=lms)
        await side.ready("publish", "results")
        while await self.held_in(self.requests) < 4:  # which is as many as a bridge begins with
            await pause(0.1)
        await lms.down()
        await self.agent(grader={"kind": "http", "url": self.grader_url})
        await side.says("to be retried", times=4)
        await lms.fault("put_result", times=4, status=503)
        await lms.fault("put_result", times=4, status=500)
        await lms.up()
        await self.assert_answered(lms, "1", 20)
        await self.until_quiet()
        self.assertEqual(await self.ready_in(dead_queue_of(self.results)), 0)
        self.assertEqual(self.scores(), [("graded", 1.0)] * 20)

    async def test_killed(self) -> None:
        """Killed again and again, it has each submission recorded once; in doubt, a person is told where to look."""
        kills, count, random = 5, 60, Random(6002)
        lms = await EdxSubmissionsLMS.start(self, stale=STALE, latency=0.1)
        await lms.create(self.requests, count, answer="1")
        await self.agent(grader={"kind": "http", "url": self.grader_url})
        side = self.bridges(north=lms)
        for number in range(1, kills + 1):
            while (await lms.statuses()).get("retired", 0) < number * count // (kills + 2):
                await pause(0.02)
            await pause(random.uniform(0, 0.1))
            side.send_signal(SIGKILL)
            self.assertEqual(await side.ended(), -SIGKILL)
            side = self.bridges(north=lms)
        self.assertLess((await lms.statuses()).get("retired", 0), count, "it was killed too late")
        await self.assert_answered(lms, "1", count)
        await self.until_quiet()
        parked = await self.ready_in(dead_queue_of(self.results))
        for each in await self.collect(dead_queue_of(self.results), parked):
            self.assertIn("may have been recorded", each.properties.headers["x-error"])
        print(f"\n  killed {kills} times: {count} recorded once, {parked} parked as possibly recorded")
        self.assertLessEqual(parked, kills * 4)
        self.assert_clean(side, (PASSWORD, "submission_key"))
