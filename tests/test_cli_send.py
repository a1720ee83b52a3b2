"""Tests for ``edxagent send``, as a real process with a real broker, and with a real agent where there is one."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from twisted.internet import reactor

from edxagent.amqp.topology import ensure_request_queue
from edxagent.cli.broker import connected
from edxagent.config.broker_url import broker_address
from edxagent.config.values import BrokerConfig, TLSConfig
from edxagent.model import dead_queue_of
from edxagent.testing.broker import BrokerTestCase
from tests.cli_process import ROOT, Run, start_agent, start_cli

SUBMISSIONS = ROOT / "examples" / "submissions"


class SendTestCase(BrokerTestCase):
    """A test that sends to a queue of its own.

    :ivar queue: its name; the queue isn't made yet.
    """

    async def set_up(self) -> None:
        """Name the queue."""
        self.queue = self.unique("Course-v1:MITx+6.002x%é")
        self.broker = BrokerConfig(addresses=(broker_address(self.node.url, tls=TLSConfig()),))

    async def make_queue(self) -> None:
        """Make the queue, which nobody serves."""
        async with connected(reactor, self.broker, "a test") as session:
            await ensure_request_queue(session, self.broker, self.queue)

    async def waiting(self, queue: str) -> int:
        """How many messages wait in a queue."""
        async with connected(reactor, self.broker, "a test") as session:
            channel = await session.open_channel()
            return (await channel.declare_queue(queue, passive=True)).messages

    def config(self, grader: str) -> str:
        """The path of a configuration for the queue, with such a grader."""
        path = Path(self.mktemp())
        path.write_text(f"[broker]\nurls = ${{EDXAGENT_BROKER_URL}}\n[queues]\n{self.queue} =\n[grader]\n{grader}\n")
        return str(path)

    @property
    def environment(self) -> dict[str, str]:
        """Where the broker is."""
        return {"EDXAGENT_BROKER_URL": self.node.url}

    def send(self, *arguments: str, queue: bool = True) -> Run:
        """Start ``send``."""
        named = ("--queue", self.queue) if queue else ()
        return start_cli(self, "send", *named, *arguments, environment=self.environment)

    def assert_one_line(self, run: Run, words: str) -> None:
        """It said one thing on standard error, with these words."""
        self.assertEqual(len(run.err.splitlines()), 1, run.err)
        self.assertIn(words, run.err)


class WithAgentTests(SendTestCase):
    """Tests with an agent that grades."""

    async def served(self, grader: str) -> str:
        """Start an agent and wait until it takes from the queue; returns its configuration file."""
        config = self.config(grader)
        await self.make_queue()
        agent = start_agent(self, config, environment=self.environment)
        async with connected(reactor, self.broker, "a test") as session:
            channel = await session.open_channel()
            while not (await channel.declare_queue(self.queue, passive=True)).consumers:
                self.assertIsNone(agent.status, agent.out + agent.err)
        return config

    async def test_generated(self) -> None:
        """Made-up submissions all get their verdicts, and a table tells of them."""
        await self.served("kind = fixed\nscore = 0.5")
        run = self.send("--count", "50", "--concurrency", "7")
        self.assertEqual(await run.ends(), 0, run.err)
        for words in ("50 submissions to", "graded", "0.5", "rate", "p99"):
            self.assertIn(words, run.out)
        self.assertNotIn("unexpected", run.out)
        self.assertEqual(await self.waiting(self.queue), 0)

    async def test_files_with_a_configuration(self) -> None:
        """A folder's files go over and over to the queue and broker of a configuration; ``--json`` is one object."""
        config = await self.served("kind = fixed")
        run = self.send(str(SUBMISSIONS), "--count", "13", "--json", "--config", config, queue=False)
        self.assertEqual(await run.ends(), 0, run.err)
        figures = json.loads(run.out)
        self.assertEqual((figures["queue"], figures["sent"], figures["verdicts"]), (self.queue, 13, 13))
        self.assertEqual(figures["scores"], {"1": 13})

    async def test_rate(self) -> None:
        """A rate is held."""
        await self.served("kind = fixed")
        run = self.send("--count", "11", "--rate", "10", "--json")
        self.assertEqual(await run.ends(), 0, run.err)
        self.assertGreaterEqual(json.loads(run.out)["seconds"], 1.0)

    async def test_failures_have_verdicts(self) -> None:
        """A failing grader's verdicts are verdicts; their outcome is told."""
        await self.served("kind = failing\noutcome = crashed\n[retry]\ndelays = 0.2")
        run = self.send("--count", "5", "--json")
        self.assertEqual(await run.ends(), 0, run.err)
        self.assertEqual(json.loads(run.out)["outcomes"], {"crashed": 5})

    async def test_quiet_failures(self) -> None:
        """Where the learner isn't told there is no verdict: status 1, and a hint at the dead letters."""
        await self.served("kind = failing\noutcome = crashed\n[retry]\ncrash_attempts = 1\n[failure]\ntell_learner =")
        run = self.send("--count", "5", "--timeout", "1.5")
        self.assertEqual(await run.ends(), 1, run.err)
        self.assertIn("nothing seen", run.out)
        self.assertIn(f"5 got no verdict within 1.5 s; see whether an agent serves {self.queue}", run.err)
        self.assertIn(f"what is in {dead_queue_of(self.queue)}", run.err)
        await until_waiting(self, dead_queue_of(self.queue), 5)


class WithoutAgentTests(SendTestCase):
    """Tests with a broker alone."""

    async def test_no_queue(self) -> None:
        """A queue that isn't there is status 3 and one line."""
        run = self.send("--count", "100")
        self.assertEqual(await run.ends(), 3)
        self.assert_one_line(run, f"there is no queue {self.queue!r}")

    async def test_no_wait(self) -> None:
        """``--no-wait`` is done when the broker has them all."""
        await self.make_queue()
        run = self.send("--count", "300", "--no-wait", "--json")
        self.assertEqual(await run.ends(), 0, run.err)
        self.assertEqual(json.loads(run.out)["sent"], 300)
        self.assertEqual(await self.waiting(self.queue), 300)

    async def test_interrupted(self) -> None:
        """Ctrl-C tells how far it came."""
        await self.make_queue()
        run = self.send("--count", "30", "--concurrency", "20")
        await until_waiting(self, self.queue, 20)
        run.kill(signal.SIGINT)
        self.assertEqual(await run.ends(), 130, run.err)
        # The broker may have one whose confirm isn't here yet.
        self.assertRegex(run.err, r"stopped; (1?[0-9]|20) were sent and 0 verdicts received until then")
        self.assertEqual(run.out, "")

    async def test_wrong_password(self) -> None:
        """Wrong credentials are status 3 and one line, without them."""
        password = Path(self.mktemp())
        password.write_text("sesame\n")
        url = f"amqp://nobody@127.0.0.1:{self.node.port}/"
        run = self.send("--broker", url, "--password-file", str(password))
        self.assertEqual(await run.ends(), 3, run.err)
        self.assert_one_line(run, "nobody")
        self.assertNotIn("sesame", run.err)

    async def test_unreachable(self) -> None:
        """So is a broker that isn't there."""
        run = self.send("--broker", "amqp://guest@127.0.0.1:1/")
        self.assertEqual(await run.ends(), 3)
        self.assert_one_line(run, "can't reach the broker amqp://guest@127.0.0.1:1 vhost /")

    async def test_broker_dies(self) -> None:
        """And one that goes in the middle."""
        await self.make_queue()
        run = self.send("--count", "20")
        await until_waiting(self, self.queue, 20)
        await self.node.rabbitmqctl("close_all_connections", "maintenance")
        self.assertEqual(await run.ends(), 3, run.err)
        self.assertIn("maintenance", run.err)


async def until_waiting(case: SendTestCase, queue: str, count: int) -> None:
    """Poll until so many messages wait in a queue."""
    seen = -1
    for _ in range(200):
        seen = await case.waiting(queue)
        if seen == count:
            return
    case.fail(f"{seen} messages wait in {queue}, not {count}")
