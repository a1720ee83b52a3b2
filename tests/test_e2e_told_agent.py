"""An agent asks the real gateway where the broker is and which queues are its own, and grades by what it is told."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from signal import SIGHUP, SIGTERM

from edxagent.model import dead_queue_of
from tests.agentprocess import AgentProcess, Sections, as_ini
from tests.circle import GATEWAY, UPDATER, CircleTestCase, graded
from tests.cli_process import start_cli, until
from tests.gateway_support import HOST
from tests.lmsprocess import LMSProcess

GRANT = "agent-config:lab"


class ToldAgentTests(CircleTestCase):
    """``[lms-config]`` and ``[agent-config:NAME]``, with both real programs."""

    async def set_up(self) -> None:
        """Make a key, as an operator does."""
        await super().set_up()
        made = start_cli(self, "api-key")
        self.assertEqual(await made.ends(), 0, made.err)
        printed = re.fullmatch(r"key: (\S+)\nkey_hash: (\S+)\n", made.out)
        assert printed is not None, made.out
        self.key, self.key_hash = printed.groups()
        self.cache = self.folder / "told.json"

    def start_side(self, *queues: str) -> LMSProcess:
        """The LMS side, which tells agents those queues; it isn't ready yet."""
        grant = {"key_hash": self.key_hash, "broker_urls": self.node.url, "queues": " ".join(queues)}
        return self.start_part(
            *GATEWAY, *UPDATER, gateway={"queues": " ".join((self.requests, *queues[1:]))}, **{GRANT: grant}
        )

    def told_config(self, key: str) -> str:
        """The configuration file of an agent that knows neither a broker nor a queue."""
        key_file, path = Path(self.mktemp()).absolute(), Path(self.mktemp()).absolute()
        key_file.write_text(f"{key}\n")
        sections: dict[str, Sections] = {
            "agent": {"name": "told", "drain_timeout": 10},
            "broker": {"call_timeout": 10, "retry_initial": 0.1, "retry_max": 1},
            "lms-config": {
                "url": f"http://{HOST}:{self.gateway_port}/agent/config",
                "api_key_file": key_file,
                "cache_file": self.cache,
            },
            "grader": {"kind": "http", "url": self.grader_url},
            "results": {"queue": self.results},
            "quarantine": {"journal": self.journal},
        }
        path.write_text(as_ini(sections))
        return str(path)

    async def assert_ends(self, *processes: AgentProcess) -> None:
        """Stop programs; none has written a secret down."""
        for process in processes:
            self.assertEqual(await process.stop(), -SIGTERM)
        await self.assert_nothing_odd((self.key, self.key_hash))

    async def test_life(self) -> None:
        """It grades what the gateway names, after HUP what it names then; without the gateway, what it named last."""
        other = self.unique("other")
        side = self.start_side(self.requests)
        await side.ready("publish", "results")
        await side.port()
        config = self.told_config(self.key)
        agent = self.start_grading(config)
        await agent.ready()
        self.assertEqual(stat.S_IMODE(self.cache.stat().st_mode), 0o600)
        await self.learners.submit(1, "1")
        await self.learners.until_graded(1)

        self.assertEqual(await side.stop(), -SIGTERM)
        side = self.start_side(self.requests, other)
        await side.ready("publish", "results")
        await side.port()
        agent.send_signal(SIGHUP)
        await agent.says("the configuration has changed: [queues]")
        told = await self.learners.submit(2, "0.5", queue=other)
        self.assertTrue(told.queued, told.message)
        await self.learners.until_graded(2)

        self.assertEqual(await agent.stop(), -SIGTERM)
        await self.learners.submit(3, "0", queue=other)
        self.assertEqual(await side.stop(), -SIGTERM)
        again = self.start_grading(config)
        await again.says("beginning with its last good answer")
        await until(lambda: len(self.grader.asked) >= 3)

        side = self.start_side(self.requests, other)
        states = await self.learners.until_graded()
        self.assertEqual(
            states,
            {1: graded(True, 1, "<p>1</p>"), 2: graded(False, 0.5, "<p>0.5</p>"), 3: graded(False, 0, "<p>0</p>")},
        )
        await self.assert_ends(again, side)
        for queue in (other, dead_queue_of(other)):
            await self.broker.delete_queue(queue)
