"""Tests for ``edxagent trace``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase, TestCase

from edxagent.cli.trace import moment, span, told
from edxagent.lms.contracts import LedgerEntry
from edxagent.lms.database import Database
from edxagent.lms.ledger import Ledger
from edxagent.testing.sinks import make_result
from tests.cli_process import Run, start_cli
from tests.postgresql import shared_postgresql

ACCEPTED = LedgerEntry(submission="s1", origin="gateway", queue="6002x", accepted=1_700_000_000.0)
GRADED = evolve(
    ACCEPTED,
    outcome="graded",
    agent="agent-1",
    grader="http",
    attempt=2,
    received=1_700_000_010.0,
    started=1_700_000_011.0,
    finished=1_700_000_012.5,
)
HEADERS = {"x-agent": "agent-1", "x-grader": "http", "x-attempt": 2, "x-received": 1_700_000_010.0}


class ToldTests(SynchronousTestCase):
    """What is told of a row."""

    def now(self, entry: LedgerEntry) -> str:
        """Where it is."""
        return dict(told(entry, 1_700_000_720.0))["now"]

    def test_waiting(self) -> None:
        """What was accepted and not answered is in its queue, as far as the ledger knows."""
        self.assertEqual(self.now(ACCEPTED), "in queue 6002x, waiting or being graded, for 12 min")
        self.assertEqual(self.now(evolve(ACCEPTED, accepted=None)), "in queue 6002x, waiting or being graded")

    def test_graded(self) -> None:
        """Who graded it, when, and with which outcome."""
        lines = dict(told(GRADED, 0.0))
        self.assertEqual(lines["received"], "2023-11-14 22:13:30 UTC by agent agent-1, attempt 2")
        self.assertEqual(lines["started"], "2023-11-14 22:13:31 UTC by grader http")
        self.assertEqual(lines["finished"], "2023-11-14 22:13:32 UTC, after 1.50 s")
        self.assertEqual(lines["outcome"], "graded")
        self.assertIn("on the way", lines["now"])

    def test_sinks(self) -> None:
        """What each sink did, when and why, and what that means."""
        for states, words in {
            ("delivered",): "done",
            ("delivered", "delivered"): "done",
            ("delivered", "retrying"): "being delivered",
            ("posting",): "being delivered",
            ("delivered", "parked"): "parked",
            ("possibly-recorded", "retrying"): "parked",
        }.items():
            sinks = {f"n{n}": (state, 1_700_000_020.0, "it is down") for n, state in enumerate(states)}
            lines = dict(told(evolve(GRADED, sinks=sinks), 0.0))
            self.assertEqual(lines["sink n0"], f"{states[0]}, 2023-11-14 22:13:40 UTC: it is down")
            self.assertIn(words, lines["now"])

    def test_gaps(self) -> None:
        """A row that only a verdict has made, or a sink, is told all the same."""
        lines = dict(told(LedgerEntry(submission="s1", origin="", queue="q", outcome="malformed"), 0.0))
        self.assertEqual(lines["came by"], "another program")
        self.assertEqual(lines["accepted"], "not that the ledger knew")

    def test_times(self) -> None:
        """Times are for people."""
        self.assertEqual(moment(0), "1970-01-01 00:00:00 UTC")
        self.assertEqual(
            [span(t) for t in (-5, 0, 90, 150, 8000, 200_000)], ["0 s", "0 s", "90 s", "2 min", "2 h", "2 d"]
        )


class TraceTests(TestCase):
    """The command, as a real process, beside a ledger that is open."""

    timeout = 120.0

    async def setUp(self) -> None:
        """A ledger of three submissions, two of which have one id in two LMSs."""
        self.path = Path(self.mktemp()).absolute()
        self.url = f"sqlite:///{self.path}"
        await self.fill(self.url)

    async def fill(self, url: str) -> None:
        """Write a ledger, and keep it open."""
        from twisted.internet import reactor

        ledger = Ledger(Database(url, reactor), keep=1e9, reactor=reactor, wall_clock=lambda: 1_700_000_000.0)
        ledger.startService()
        self.addCleanup(ledger.stopService)
        await ledger.accepted("s1", origin="gateway", queue="6002x")
        for name in ("a", "b"):
            await ledger.accepted(f"{name}-17", origin=f"bridge:{name}", queue="6002x", remote="17")
        await ledger.answered(make_result("a-17", headers=HEADERS))
        await ledger.sink("a-17", "put_result", "parked", "the LMS answered 404")

    def trace(self, *arguments: str, environment: Any = None) -> Run:
        """Start it."""
        return start_cli(self, "trace", *arguments, environment=environment)

    async def test_found(self) -> None:
        """A submission's row is shown while the ledger is open, and nothing is changed."""
        run = self.trace("s1", "--ledger", self.url)
        self.assertEqual(await run.ends(), 0, run.err)
        for words in ("submission", "s1", "gateway", "2023-11-14 22:13:20 UTC", "in queue 6002x"):
            self.assertIn(words, run.out)
        self.assertEqual(run.err, "")

    async def test_remote(self) -> None:
        """An LMS's id finds the submissions of all LMSs that have it."""
        run = self.trace("17", "--ledger", self.url, "--json")
        self.assertEqual(await run.ends(), 0, run.err)
        found = {entry["submission"]: entry for entry in json.loads(run.out)["submissions"]}
        self.assertEqual(found.keys(), {"a-17", "b-17"})
        self.assertEqual(found["a-17"]["outcome"], "graded")
        self.assertEqual(
            found["a-17"]["sinks"],
            {"put_result": {"state": "parked", "time": 1_700_000_000.0, "reason": "the LMS answered 404"}},
        )

    async def test_unknown(self) -> None:
        """An unknown id is one line, and status 1."""
        run = self.trace("\x1b[31mnone", "--ledger", self.url)
        self.assertEqual(await run.ends(), 1)
        self.assertEqual(run.out, "")
        self.assertEqual(run.err, f"edxagent: the ledger, {self.url}, knows no submission [31mnone\n")

    async def test_config(self) -> None:
        """The configuration tells where the ledger is; a configuration without one is told."""
        config = Path(self.mktemp())
        broker = (
            "[broker]\nurls = amqp://guest@127.0.0.1:1/\n[updater]\n[sink:scores]\nkind = database\nurl = sqlite:///x\n"
        )
        config.write_text(f"{broker}[ledger]\nurl = {self.url}\n")
        run = self.trace("s1", "--config", str(config))
        self.assertEqual(await run.ends(), 0, run.err)
        config.write_text(broker)
        run = self.trace("s1", "--config", str(config))
        self.assertEqual(await run.ends(), 2, run.err)
        self.assertIn("there is no [ledger]", run.err)

    async def test_unusable(self) -> None:
        """What can't be read is one line that says so: no file, no folder, no ledger in it, no URL."""
        other = Path(self.mktemp()).absolute()
        other.touch()
        for url, status, words in (
            (f"sqlite:///{self.path}-elsewhere", 1, "unable to open"),
            ("sqlite:////no/such/folder/x.db", 2, "/no/such/folder doesn't exist"),
            (f"sqlite:///{other}", 1, "no such table"),
            ("mysql://u:sesame@h/d", 2, "expected sqlite:"),
            ("postgresql://u:sesame@h/d", 2, "EDXAGENT_LEDGER_URL"),
        ):
            run = self.trace("s1", "--ledger", url)
            self.assertEqual(await run.ends(), status, run.err)
            self.assertIn(words, run.err)
            self.assertNotIn("sesame", run.err)
            self.assertEqual(len(run.err.splitlines()), 1, run.err)

    async def test_postgresql(self) -> None:
        """A ledger with a password is told by the environment."""
        url = shared_postgresql().new_database()
        await self.fill(url)
        run = self.trace("s1", environment={"EDXAGENT_LEDGER_URL": url})
        self.assertEqual(await run.ends(), 0, run.err)
        self.assertIn("in queue 6002x", run.out)
        self.assertNotIn("EDXAGENT_LEDGER_URL", os.environ)
