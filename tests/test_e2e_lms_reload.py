"""HUP has the real LMS side go by a changed file, while learners submit and verdicts come in: nobody notices."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from signal import SIGHUP, SIGTERM
from typing import Any

from twisted.internet.defer import Deferred

from edxagent.tasks import Tasks
from tests.agentprocess import Sections
from tests.circle import pause
from tests.cli_process import until
from tests.edx_submissions_lms import PASSWORD as BRIDGE_PASSWORD
from tests.edx_submissions_lms import USERNAME, EdxSubmissionsLMS
from tests.faults.proxy import FaultProxy
from tests.gateway_support import quick_hash
from tests.lmsprocess import PASSWORD, USER, LMSProcess, LMSTestCase
from tests.results import result

CHANGED = "the configuration has changed"
STAYS = "the configuration stays as it is"


class ReloadTestCase(LMSTestCase):
    """A test with an LMS side whose file is changed."""

    timeout = 240.0

    async def set_up(self) -> None:
        """Choose where the file and the databases are."""
        await super().set_up()
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.path = self.folder / "lms.ini"
        self.without: tuple[str, ...] = ()

    def write(self, **sections: Sections) -> None:
        """Write the file."""
        Path(self.write_lms_config(*self.without, **sections)).rename(self.path)

    async def started(self, *purposes: str, **sections: Sections) -> LMSProcess:
        """An LMS side at work."""
        self.write(**sections)
        side = self.start_lms(str(self.path))
        await side.ready(*purposes or ("publish", "pull"))
        return side

    async def reload(self, side: LMSProcess, answer: str = CHANGED, **sections: Sections) -> None:
        """Write another file, say so, and wait for a line of the log."""
        self.write(**sections)
        times = side.log.count(answer)
        side.send_signal(SIGHUP)
        await side.says(answer, times=times + 1)

    async def assert_ends(self, side: LMSProcess) -> None:
        """Stop it, and see that nothing went wrong."""
        self.assertEqual(await side.stop(), -SIGTERM)
        self.assert_clean(side, [PASSWORD, BRIDGE_PASSWORD])

    def database(self, name: str) -> Sections:
        """A sink's section."""
        return {"kind": "database", "url": f"sqlite:///{self.folder / name}.db"}

    def rows(self, name: str) -> int:
        """How many verdicts a database has."""
        path = self.folder / f"{name}.db"
        if not path.exists():
            return 0
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'edxagent_scores'").fetchall():
                return 0
            return int(database.execute("SELECT count(*) FROM edxagent_scores").fetchone()[0])


class GatewayTests(ReloadTestCase):
    """``[gateway]``, ``[users]`` and ``[agent-config:NAME]``."""

    async def test_door_stays_open(self) -> None:
        """Whoever submits while the file changes, again and again, is answered, and what is said to be queued is."""
        side = await self.started()
        cookie = await self.log_in(side)
        submitted: list[Any] = []
        tasks = Tasks()
        stopping = False

        async def submit() -> None:
            while not stopping:
                submitted.append((await self.submit(side, cookie)).reply[0])

        for _ in range(4):
            tasks.launch(submit(), "submitting")
        for number in range(1, 11):
            await self.reload(side, gateway={"max_upload": f"{number} MiB", "session_lifetime": 3600 + number})
            enough = len(submitted) + 5
            await until(lambda enough=enough: len(submitted) >= enough, side.run)
        stopping = True
        await tasks.when_idle()
        self.assertEqual(set(submitted), {0})
        self.assertEqual(await self.ready_in(self.requests), len(submitted))
        await self.assert_ends(side)

    async def test_users_and_queues(self) -> None:
        """A new user gets in, and one that is gone doesn't, whoever was logged in; a new queue is there."""
        new = self.unique("another")
        self.addCleanup(lambda: Deferred.fromCoroutine(self.remove(new)))
        side = await self.started()
        before = await self.log_in(side)
        await self.reload(
            side,
            gateway={"queues": f"{self.requests} {new}"},
            users={USER: "", "other": quick_hash("öther")},
        )
        self.assertIn("[gateway] [users]", side.log)
        other = await self.log_in(side, "other", "öther")
        self.assertEqual((await self.submit(side, other, new)).reply, (0, "1"))
        self.assertNotEqual((await self.submit(side, before)).status, 200)
        await self.reload(side)
        again = await self.log_in(side)
        self.assertEqual((await self.submit(side, again, new)).reply, (1, f"Queue '{new}' not found"))
        await self.assert_ends(side)

    async def test_bad_file(self) -> None:
        """Each problem is a line in the log, and nothing changes."""
        side = await self.started()
        cookie = await self.log_in(side)
        await self.reload(
            side, "max_uplod: unknown key", gateway={"max_uplod": "1 MiB"}, users={"other": "plain"}, lms={"name": ""}
        )
        await side.says("[users] other")
        self.assertGreaterEqual(side.log.count(STAYS), 3)
        self.assertEqual((await self.submit(side, cookie)).reply, (0, "1"))
        await self.assert_ends(side)

    async def test_folder_that_is_none(self) -> None:
        """What can be read but not be used changes nothing either."""
        (self.folder / "file").write_text("")
        side = await self.started()
        files = {"files_folder": self.folder / "file" / "below", "files_url": "http://127.0.0.1/files/"}
        await self.reload(side, STAYS, gateway=files, users={"other": quick_hash("öther")})
        await self.log_in(side)
        await self.assert_ends(side)

    async def test_what_needs_a_restart(self) -> None:
        """It is named in a line; what else changed is used."""
        side = await self.started()
        port = await side.port()
        await self.reload(
            side,
            lms={"name": "other"},
            gateway={"listen": "tcp:1"},
            broker={"heartbeat": 7},
            log={"level": "error"},
            users={"other": quick_hash("öther")},
        )
        self.assertIn("[lms] name, [broker], [log], [gateway] listen changed, and that needs a restart", side.log)
        await self.log_in(side, "other", "öther")
        self.assertEqual(await side.port(), port)
        await self.assert_ends(side)

    async def test_queue_that_is_refused(self) -> None:
        """A queue that isn't there, where we mayn't make it, changes nothing."""
        self.write()
        await self.assert_ends(await self.started())  # which has made what there must be
        side = await self.started(broker={"declare": "no"})
        await self.reload(
            side,
            STAYS,
            broker={"declare": "no"},
            gateway={"queues": self.unique("nowhere")},
            users={"other": quick_hash("öther")},
        )
        self.assertEqual((await self.submit(side, await self.log_in(side))).reply, (0, "1"))
        await self.assert_ends(side)

    async def test_broker_away(self) -> None:
        """Without a broker it is used as well; new queues are made when there is one."""
        proxy = FaultProxy.start(self)
        new = self.unique("another")
        self.addCleanup(lambda: Deferred.fromCoroutine(self.remove(new)))
        broker: Sections = {"urls": proxy.url}
        side = await self.started(broker=broker)
        await proxy.refuse()
        proxy.reset()
        await side.says("next try", times=2)
        await self.reload(side, broker=broker, gateway={"queues": new})
        proxy.accept()
        await side.says("(publish): connected to ", times=2)
        self.assertEqual((await self.submit(side, await self.log_in(side), new)).reply, (0, "1"))
        await self.assert_ends(side)

    async def remove(self, *queues: str) -> None:
        """Take queues away."""
        for queue in queues:
            for name in (queue, f"{queue}.dead"):
                await self.broker.delete_queue(name)


class UpdaterTests(ReloadTestCase):
    """``[updater]`` and ``[sink:NAME]``."""

    async def set_up(self) -> None:
        """There is nothing else."""
        await super().set_up()
        self.without = ("gateway", "users")

    async def test_sinks(self) -> None:
        """Verdicts go to the sinks that there are when they come, each to its end; none is lost."""
        updater: Sections = {"queue": self.results, "concurrency": 4}
        side = await self.started("publish", "results", updater=updater, **{"sink:a": self.database("a")})
        sent = 0
        for number in range(6):
            for _ in range(30):
                sent += 1
                await self.publish_result(f"s{sent}")
            name = "ab"[(number + 1) % 2]
            await self.reload(
                side, updater={**updater, "concurrency": 4 + number}, **{f"sink:{name}": self.database(name)}
            )
        await self.until_settled(self.results)
        self.assertEqual(self.rows("a") + self.rows("b"), sent)
        await self.publish_result("last")
        before = self.rows("a")
        await until(lambda: self.rows("a") == before + 1, side.run)
        await self.assert_ends(side)

    async def test_another_queue(self) -> None:
        """From another queue; what came from the one before is brought to its end."""
        side = await self.started(
            "publish", "results", updater={"queue": self.results}, **{"sink:a": self.database("a")}
        )
        await self.publish_result("s1")
        before, self.results = self.results, self.unique("results")
        await self.reload(side, updater={"queue": self.results}, **{"sink:a": self.database("a")})
        await self.publish_result("s2")
        await until(lambda: self.rows("a") == 2, side.run)
        await self.until_settled(before)
        await self.assert_ends(side)
        for queue in (before, f"{before}.dead"):
            await self.broker.delete_queue(queue)

    async def publish_result(self, id: str) -> None:
        """Put a verdict into the queue."""
        verdict = json.dumps({"correct": True, "score": 1, "msg": "<p>ok</p>"})
        await self.publish(
            result(verdict), self.results, message_id=id, type="grading.result", headers={"x-outcome": "graded"}
        )


class BridgeTests(ReloadTestCase):
    """``[bridge:NAME]``."""

    async def set_up(self) -> None:
        """There is no gateway."""
        await super().set_up()
        self.without = ("gateway", "users")
        (self.folder / "password").write_text(BRIDGE_PASSWORD)
        self.common: dict[str, Sections] = {
            "updater": {"queue": self.results, "retry_delays": "0.2 0.5"},
            "sink:a": self.database("a"),
            "ledger": {"url": f"sqlite:///{self.folder / 'ledger.db'}"},
        }

    def bridge(self, lms: EdxSubmissionsLMS, **more: object) -> Sections:
        """A bridge's section."""
        return {
            "url": lms.url,
            "username": USERNAME,
            "password_file": self.folder / "password",
            "queues": self.requests,
            "poll_initial": 0.05,
            "poll_max": 0.2,
            **more,
        }

    async def test_coming_and_going(self) -> None:
        """A bridge that comes polls. One that is gone polls no more, but answers what it has fetched."""
        north, south = [await EdxSubmissionsLMS.start(self) for _ in range(2)]
        await north.create(self.requests, 3)
        side = await self.started("publish", "results", **self.common, **{"bridge:north": self.bridge(north)})
        await until_held(self, 3)
        await south.create(self.requests, 3)
        await self.reload(side, **self.common, **{"bridge:south": self.bridge(south)})
        await until_held(self, 6)
        await north.create(self.requests, 3)
        agent = await self.agent()
        await south.until_all_are("retired")
        await until_status(north, retired=3, pending=3)
        both = {"bridge:north": self.bridge(north, poll_max=0.3), "bridge:south": self.bridge(south)}
        await self.reload(side, **self.common, **both)
        await north.until_all_are("retired")
        self.assertEqual((await north.count("POST put_result"), await south.count("POST put_result")), (6, 3))
        self.assertEqual((await agent.stop(), self.rows("a")), (-SIGTERM, 9))
        await self.assert_ends(side)

    async def test_again_and_again(self) -> None:
        """However often it changes, each submission is fetched once and answered once."""
        lms = await EdxSubmissionsLMS.start(self)
        agent = await self.agent()
        side = await self.started("publish", "results", **self.common, **{"bridge:north": self.bridge(lms)})
        for number in range(8):
            await lms.create(self.requests, 10)
            changed = self.bridge(lms, concurrency=1 + number, answer_within=100 + number)
            await self.reload(side, **self.common, **{"bridge:north": changed})
        await lms.until_all_are("retired")
        self.assertEqual(await lms.count("POST put_result"), 80)
        self.assertEqual(agent.log.count("graded: "), 80)
        await agent.stop()
        await self.assert_ends(side)


async def until_held(case: LMSTestCase, count: int) -> None:
    """Wait until the requests' queue has so many."""
    for _ in range(300):
        if (found := await case.ready_in(case.requests)) == count:
            return
        await pause(0.1)
    raise AssertionError(f"{found} requests instead of {count}")


async def until_status(lms: EdxSubmissionsLMS, **counts: int) -> None:
    """Wait until an LMS has so many submissions of each status."""
    seen: dict[str, int] = {}
    for _ in range(300):
        rows = await lms.rows()
        seen = {status: sum(row.status == status for row in rows) for status in counts}
        if seen == counts:
            return
        await pause(0.1)
    raise AssertionError(f"{seen} instead of {counts}")
