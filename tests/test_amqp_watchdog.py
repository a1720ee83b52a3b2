"""Tests for :mod:`edxagent.amqp.watchdog`, on a clock that the tests turn."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from edxagent.amqp.channel import QueueInfo
from edxagent.amqp.watchdog import Watchdog
from edxagent.errors import BrokerUnreachable, ChannelClosed

SECONDS = 60.0


class AskedSession:
    """A session that knows how many messages are ready, and counts what is done to it.

    :ivar ready: queue → how many, or the error that the broker answers.
    """

    address = "amqp://guest@rabbit:5672 vhost /"

    def __init__(self, **ready: Any) -> None:
        self.ready = ready
        self.asked: list[str] = []
        self.open_channels = 0
        self.ends = 0
        self.answer: Deferred[None] | None = None

    async def open_channel(self) -> AskedSession:
        """It is its own channel."""
        self.open_channels += 1
        return self

    async def declare_queue(self, name: str, *, passive: bool) -> QueueInfo:
        """What the broker says."""
        assert passive
        self.asked.append(name)
        if self.answer is not None:
            await self.answer
        ready = self.ready[name]
        if isinstance(ready, Exception):
            raise ready
        return QueueInfo(name=name, messages=ready, consumers=1)

    def close(self, within: float | None = None) -> Deferred[None]:
        """Of the session, if it is told how long that may take, or else of the channel."""
        closed: Deferred[None] = Deferred()
        closed.callback(None)
        if within is None:
            self.open_channels -= 1
        else:
            self.ends += 1
        return closed


class WatchdogTests(SynchronousTestCase):
    """What it does about a connection, and when."""

    def setUp(self) -> None:
        """A watchdog on an agent that is hungry."""
        self.clock = Clock()
        self.session: Any = AskedSession(q=3)
        self.stuck = 0
        self.start(SECONDS)

    def start(self, seconds: float) -> None:
        """Watch."""
        self.watchdog = Watchdog(
            clock=self.clock,
            seconds=seconds,
            hungry=lambda: self.session,
            queues=lambda: list(self.session.ready),
            on_stuck=self.be_stuck,
        )
        self.watchdog.start()
        self.addCleanup(self.watchdog.stop)

    def be_stuck(self) -> None:
        """Somebody else must help."""
        self.stuck += 1

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.pump([0.5] * round(seconds * 2))

    def test_rebuilt(self) -> None:
        """Nothing for that long, though messages are ready: the connection is ended, once, and the log says why."""
        with capturedLogs() as logged:
            self.run_for(SECONDS)
            self.assertEqual(self.session.ends, 0)
            self.run_for(SECONDS)
        self.assertEqual((self.session.ends, self.stuck, self.session.open_channels), (1, 0, 0))
        (event,) = logged
        self.assertEqual((event["queue"], event["remedy"]), ("q", "connecting anew"))

    def test_in_time(self) -> None:
        """It takes no longer than one and three quarters of the time."""
        self.run_for(1.75 * SECONDS)
        self.assertEqual(self.session.ends, 1)

    def test_stuck(self) -> None:
        """The third connection in a row over which nothing comes is for somebody else to mend; not before."""
        for _ in range(2):
            self.run_for(2 * SECONDS)
            self.assertEqual((self.session.ends, self.stuck), (1, 0))
            self.session = AskedSession(q=3)
        self.run_for(2 * SECONDS)
        self.assertEqual((self.session.ends, self.stuck), (0, 1))

    def test_count_begins_anew(self) -> None:
        """After any message the connections are counted from the beginning, and after having said that it is stuck."""
        for _ in range(5):
            for _ in range(2):
                self.run_for(2 * SECONDS)
                self.session = AskedSession(q=3)
            self.watchdog.fed()
        self.assertEqual(self.stuck, 0)
        for _ in range(6):
            self.run_for(2 * SECONDS)
            self.session = AskedSession(q=3)
        self.assertEqual(self.stuck, 2)

    def test_fed(self) -> None:
        """While something comes now and then, the broker isn't even asked."""
        for _ in range(20):
            self.run_for(SECONDS / 2)
            self.watchdog.fed()
        self.assertEqual((self.session.asked, self.session.ends), ([], 0))

    def test_nothing_is_ready(self) -> None:
        """An idle agent asks now and then, and that is all."""
        self.session = AskedSession(q=0, r=0)
        self.run_for(20 * SECONDS)
        self.assertEqual((self.session.ends, self.session.open_channels), (0, 0))
        self.assertIn(len(self.session.asked), range(30, 41))

    def test_ready_for_a_moment(self) -> None:
        """What was ready only at one look was on its way to somebody else."""
        for _ in range(20):
            self.session.ready = {"q": 1}
            while not self.session.asked:
                self.run_for(0.5)
            self.session.ready = {"q": 0}
            self.run_for(SECONDS / 4)
            self.session.asked.clear()
        self.assertEqual(self.session.ends, 0)

    def test_not_hungry(self) -> None:
        """With every slot busy, the valve shut, or no connection, nothing is expected."""
        session = self.session
        for _ in range(40):
            self.run_for(SECONDS / 2)
            self.session = None
            self.run_for(SECONDS / 3)
            self.session = session
        self.assertEqual((session.asked, session.ends), ([], 0))

    def test_another_session(self) -> None:
        """A new connection has all the time that there is."""
        for _ in range(20):
            self.run_for(SECONDS * 0.9)
            self.session = AskedSession(q=3)
        self.run_for(SECONDS * 0.9)
        self.assertEqual(self.session.asked, [])

    def test_fed_while_asking(self) -> None:
        """What comes while the broker answers counts."""
        answer = self.session.answer = Deferred()
        self.run_for(2 * SECONDS)
        self.assertEqual(self.session.asked, ["q"])
        self.watchdog.fed()
        answer.callback(None)
        self.session.answer = None
        self.run_for(0.75 * SECONDS)
        self.assertEqual((self.session.asked, self.session.ends), (["q"], 0))

    def test_errors(self) -> None:
        """A broker that doesn't say has not said that messages are ready; it is asked again, later."""
        for error in (ChannelClosed(404, "NOT_FOUND"), BrokerUnreachable("no answer")):
            self.session = AskedSession(q=error)
            self.run_for(5 * SECONDS)
            self.assertEqual((self.session.ends, self.session.open_channels), (0, 0))
            self.assertGreater(len(self.session.asked), 2)
            self.session.ready = {"q": 1}
            while not self.session.ends:
                self.run_for(0.5)
            self.watchdog.fed()

    def test_stop(self) -> None:
        """Afterwards nothing is left of it, also in the middle of a question."""
        self.session.answer = Deferred()
        self.run_for(2 * SECONDS)
        self.watchdog.stop()
        self.assertEqual((self.session.open_channels, self.clock.getDelayedCalls()), (0, []))

    def test_off(self) -> None:
        """With 0 seconds every connection is believed."""
        self.watchdog.stop()
        self.start(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])
