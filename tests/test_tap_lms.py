"""Tests for :mod:`edxagent.tap.lms`: how the real ``edxagent-lms`` starts, what it refuses, and how it ends."""

from __future__ import annotations

import json
import signal
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from edxagent.config.ini import shown
from edxagent.testing.http_server import RogueServer, Visit, response
from tests.cli_process import ROOT, start, until
from tests.faults.proxy import FaultProxy
from tests.gateway_support import HOST, header, quick_hash
from tests.lmsprocess import PASSWORD, LMSProcess, LMSTestCase

SOON, PATIENT = 5.0, 15.0
"""Seconds."""
SILENT = 2.0
"""Seconds: less than a broker has to agree to the end of a connection, unless somebody is impatient."""
DATABASE = "sqlite:///scores.db"
SECRET = "s3cret-8f21"

MODULES = """
import json, sys
from edxagent.tap.lms import Options, makeService
options = Options()
options.parseOptions(["--config", sys.argv[1]])
makeService(options)
print(json.dumps([name for name in sys.argv[2:] if name in sys.modules]))
"""


class GatewayTests(LMSTestCase):
    """A gateway alone."""

    async def test_life(self) -> None:
        """It answers, lets the LMS in, puts its submission into the queue, and ends when it is told to."""
        lms = await self.lms()
        status = await self.ask(lms, "/xqueue/status/")
        self.assertEqual((status.status, status.reply), (200, (0, "OK")))
        submitted = await self.submit(lms, await self.log_in(lms))
        self.assertEqual((submitted.status, submitted.reply), (200, (0, "1")))
        self.assertEqual(await self.ready_in(self.requests), 1)
        self.assertEqual(await lms.stop(), -signal.SIGTERM)
        self.assert_clean(lms)

    async def test_interrupted(self) -> None:
        """INT ends it as well."""
        lms = await self.lms()
        self.assertEqual(await lms.stop(signal.SIGINT), -signal.SIGINT)
        self.assert_clean(lms)

    async def test_second_signal(self) -> None:
        """The first TERM waits for a broker that has fallen silent, the second one doesn't."""
        proxy = FaultProxy.start(self)
        lms = await self.lms(broker={"urls": proxy.url, "heartbeat": 0})
        proxy.stall()
        began = time.monotonic()
        lms.send_signal(signal.SIGTERM)
        await lms.says("shutting down")
        self.assertTrue(lms.alive)
        lms.send_signal(signal.SIGTERM)
        self.assertEqual(await lms.ended(), -signal.SIGTERM)
        self.assertLess(time.monotonic() - began, SILENT)
        self.assert_clean(lms)

    async def test_silent_broker(self) -> None:
        """A broker that has fallen silent doesn't keep it from ending within its time."""
        proxy = FaultProxy.start(self)
        lms = await self.lms(broker={"urls": proxy.url, "heartbeat": 0})
        proxy.stall()
        began = time.monotonic()
        self.assertEqual(await lms.stop(), -signal.SIGTERM)
        self.assertLess(time.monotonic() - began, PATIENT)
        self.assert_clean(lms)

    async def test_overrides(self) -> None:
        """The command line names another port, another name and another level of the log."""
        options = (f"--listen=tcp:0:interface={HOST}", "--name=north", "--log-format=json")
        lms = self.start_lms(
            self.write_lms_config(gateway={"listen": "tcp:1"}, log={"level": "error"}), *options, "--log-level=info"
        )
        await lms.says('"north (pull)"')
        self.assertEqual(await lms.stop(), -signal.SIGTERM)
        self.assertEqual(json.loads(lms.log.splitlines()[0])["level"], "info")


class UpdaterTests(LMSTestCase):
    """An updater alone, and an LMS that takes its time."""

    async def updating(self) -> tuple[LMSProcess, list[Visit]]:
        """An updater that is just telling the LMS a verdict, and the LMS's visitors."""
        from twisted.internet import reactor

        visits: list[Visit] = []
        server = RogueServer(visits.append)
        await server.start(reactor)
        root = "/".join(server.url.split("/")[:3])
        self.addCleanup(lambda: Deferred.fromCoroutine(server.stop()))
        config = self.write_lms_config(
            "gateway",
            "users",
            lms={"drain_timeout": 60},
            updater={"queue": self.results},
            **{"sink:lms": {"kind": "callback", "hosts": root, "timeout": 60}},
        )
        lms = self.start_lms(config)
        await lms.ready("publish", "results")
        verdict = json.dumps({"correct": True, "score": 1, "msg": "<p>ok</p>"})
        asked = header(lms_callback_url=f"{root}/courses/c/xqueue/7/b/score_update")
        result = json.dumps({"xqueue_header": asked, "xqueue_body": verdict}).encode()
        await self.publish(
            result, self.results, message_id="s1", type="grading.result", headers={"x-outcome": "graded"}
        )
        await until(lambda: visits, lms.run)
        return lms, visits

    async def test_signal(self) -> None:
        """TERM lets a verdict that is under way arrive."""
        lms, visits = await self.updating()
        lms.send_signal(signal.SIGTERM)
        await lms.says("waiting for 1 results")
        visits[0].send(response(b""))
        self.assertEqual(await lms.ended(), -signal.SIGTERM)
        await self.until_settled(self.results)
        self.assert_clean(lms)

    async def test_second_signal(self) -> None:
        """A second TERM doesn't: the verdict is back in its queue."""
        lms, _ = await self.updating()
        lms.send_signal(signal.SIGTERM)
        await lms.says("waiting for 1 results")
        began = time.monotonic()
        lms.send_signal(signal.SIGTERM)
        self.assertEqual(await lms.ended(), -signal.SIGTERM)
        self.assertLess(time.monotonic() - began, SOON)
        self.assertEqual(await self.ready_in(self.results), 1)
        self.assert_clean(lms)


class ShippedFileTests(LMSTestCase):
    """``etc/lms.ini`` as it is, but for the broker and the port."""

    async def start(self, **environment: str) -> LMSProcess:
        """Start it in a folder of its own."""
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        lms = self.start_lms(
            str(ROOT / "etc" / "lms.ini"),
            f"--listen=tcp:0:interface={HOST}",
            environment={"EDXAGENT_BROKER_URL": self.node.url, **environment},
            folder=self.folder,
        )
        await lms.ready("publish", "pull", "results")
        return lms

    async def test_it_runs(self) -> None:
        """It takes a submission, notes it in its ledger, and ends in order."""
        queue = "6002x-exam"
        lms = await self.start(EDXAGENT_LMS_PASSWORD_HASH=quick_hash(PASSWORD))
        response = await self.submit(lms, await self.log_in(lms), queue)
        self.assertEqual((response.status, response.reply[0]), (200, 0))
        self.assertEqual(len(await self.collect(queue, 1)), 1)
        self.assertEqual(await lms.stop(), -signal.SIGTERM)
        self.assert_clean(lms, [PASSWORD])
        with closing(sqlite3.connect(self.folder / "ledger.db")) as ledger:
            tables = [name for (name,) in ledger.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        self.assertNotEqual(tables, [])

    async def test_nobody_can_log_in(self) -> None:
        """Without a password's hash it says so, and lets nobody in."""
        lms = await self.start()
        self.assertIn("[users] lms: nobody can log in as lms", lms.log)
        response = await self.ask(lms, "/xqueue/login/", {"username": "lms", "password": ""})
        self.assertEqual(response.reply[0], 1)
        self.assertEqual(await lms.stop(), -signal.SIGTERM)


class BrokerAwayTests(LMSTestCase):
    """The broker is away, or doesn't want us."""

    async def test_away(self) -> None:
        """It goes on trying; meanwhile the LMS is answered, and told at once that nothing can be submitted."""
        nobody = self.closed_port()
        lms = self.start_lms(self.write_lms_config(broker={"urls": f"amqp://guest@{HOST}:{nobody}/"}))
        await lms.says("(publish): next try in ", times=2)
        self.assertEqual((await self.ask(lms, "/xqueue/status/")).reply, (0, "OK"))
        cookie = await self.log_in(lms)
        began = time.monotonic()
        response = await self.submit(lms, cookie)
        self.assertLess(time.monotonic() - began, SOON)
        self.assertEqual((response.status, response.reply[0]), (200, 1))
        self.assertEqual(await lms.stop(), -signal.SIGTERM)
        self.assert_clean(lms)

    async def test_refused(self) -> None:
        """What only a person can mend is said in one line, and the exit status is 3."""
        lms = self.start_lms(self.write_lms_config(broker={"urls": self.node.url.rstrip("/%2F") + "/nowhere"}))
        self.assertEqual(await lms.ended(), 3, lms.log)
        self.assertIn("rabbitmqctl add_vhost", lms.log)
        self.assert_clean(lms)

    async def test_missing_queue(self) -> None:
        """With ``declare = no`` a queue that isn't there is named."""
        first = await self.lms()  # which makes the exchanges, and the queue for results
        await first.stop()
        missing = self.unique("missing")
        lms = self.start_lms(self.write_lms_config(broker={"declare": "no"}, gateway={"queues": missing}))
        self.assertEqual(await lms.ended(), 3, lms.log)
        self.assertIn(f"there is no queue '{missing}.dead'; create it, or write declare = yes", lms.log)
        self.assert_clean(lms)

    def closed_port(self) -> int:
        """A port where nobody listens."""
        from twisted.internet import reactor

        port = reactor.listenTCP(0, Factory.forProtocol(Protocol), interface=HOST)  # type: ignore[attr-defined]
        number = int(port.getHost().port)
        port.stopListening()
        return number


class ConfigurationTests(LMSTestCase):
    """What it can't start with."""

    async def refused(self, lms: LMSProcess, status: int = 2) -> list[str]:
        """What it says before it ends with that status, line by line."""
        self.assertEqual(await lms.ended(), status, lms.log)
        self.assert_clean(lms, [SECRET])
        return lms.run.err.splitlines()

    async def test_all_problems(self) -> None:
        """Every problem of the file has its line; nothing else is said."""
        path = self.write_lms_config(gateway={"listne": "x", "lease": "never"}, bridge={}, users={"lms": SECRET})
        named = shown(path)
        where = [line.partition(": ")[0] for line in await self.refused(self.start_lms(path))]
        self.assertEqual(
            where, [f"{named} {key}" for key in ("[bridge]", "[gateway] listne", "[gateway] lease", "[users] lms")]
        )

    async def test_no_file(self) -> None:
        """Without a file it says what to do."""
        self.assertEqual(
            await self.refused(self.start_lms("nowhere.ini")),
            ["nowhere.ini: there is no such file; create it, or name another"],
        )

    async def test_usage(self) -> None:
        """Options that there aren't are answered in one line."""
        lines = await self.refused(self.start_lms(self.write_lms_config(), "--lisetn=x"))
        self.assertEqual(len(lines), 1)
        self.assertTrue(lines[0].startswith("twistd edxagent-lms: option --lisetn not recognized"), lines)

    async def test_databases(self) -> None:
        """A database that can't be used is named without its password."""
        environment = {"DB": f"postgresql://me:{SECRET}@host"}
        lms = self.start_lms(self.write_lms_config(ledger={"url": "${DB}"}), environment=environment)
        (line,) = await self.refused(lms)
        self.assertTrue(line.startswith("[ledger] url: expected "), line)
        lms = self.start_lms(self.write_lms_config(ledger={"url": "sqlite:////nowhere/at/all.db"}))
        self.assertEqual(
            await self.refused(lms),
            ["[ledger] url: the folder /nowhere/at doesn't exist; make it, and let us write there"],
        )

    async def test_port_in_use(self) -> None:
        """That somebody else listens there already is one line, and status 1: it may heal by itself."""
        from twisted.internet import reactor

        port = reactor.listenTCP(0, Factory.forProtocol(Protocol), interface=HOST)  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        listen = f"tcp:{port.getHost().port}:interface={HOST}"
        lms = self.start_lms(self.write_lms_config(gateway={"listen": listen}))
        self.assertEqual(await lms.ended(), 1, lms.log)
        errors = [line for line in lms.log.splitlines() if " error " in line]
        self.assertEqual(len(errors), 1, lms.log)
        self.assertIn(f"[gateway] listen: {listen} can't be listened at: Address already in use", errors[0])
        self.assert_clean(lms)


class ImportTests(LMSTestCase):
    """What isn't configured isn't even imported."""

    async def imported(self, config: str, *modules: str) -> list[str]:
        """Which of ``modules`` the program has imported when its service is made."""
        run = start(self, sys.executable, "-c", MODULES, config, *modules)
        self.assertEqual(await run.ends(), 0, run.err)
        found: list[str] = json.loads(run.out)
        return found

    async def test_gateway(self) -> None:
        """A gateway needs no database, and cleans no verdicts."""
        modules = ("sqlalchemy", "nh3", "klein", "edxagent.lms.updater.service", "edxagent.lms.bridge.service")
        self.assertEqual(await self.imported(self.write_lms_config(), *modules), ["klein"])

    async def test_updater(self) -> None:
        """An updater needs no web server, and no database unless a sink is one."""
        modules = ("sqlalchemy", "klein", "nh3", "edxagent.lms.gateway.service", "edxagent.lms.bridge.service")
        callback = {"kind": "callback", "hosts": "http://lms:8000"}
        config = self.write_lms_config("gateway", "users", updater={}, **{"sink:lms": callback})
        self.assertEqual(await self.imported(config, *modules), ["nh3"])
        config = self.write_lms_config(
            "gateway", "users", updater={}, **{"sink:db": {"kind": "database", "url": DATABASE}}
        )
        self.assertEqual(await self.imported(config, *modules), ["sqlalchemy", "nh3"])
