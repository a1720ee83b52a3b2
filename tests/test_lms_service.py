"""Tests for :mod:`edxagent.lms.service`: the order in which parts start and stop, and how long a stop may take."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from edxagent.config.lms_values import LMSConfig
from edxagent.config.values import BrokerAddress, BrokerConfig
from edxagent.errors import ConfigError
from edxagent.lms.altering import Altered
from edxagent.lms.parts import Parts
from edxagent.lms.service import LAST_CHANCE, LMSService

DRAIN = 30.0
CONFIG = LMSConfig(
    drain_timeout=DRAIN,
    broker=BrokerConfig(addresses=(BrokerAddress(host="127.0.0.1", port=5672, username="guest", password="guest"),)),
)
SOONER = evolve(CONFIG, drain_timeout=1.0)


class FakePart(Service):
    """Remembers what it is told.

    :ivar stopping: fires when its stop is to end.
    """

    def __init__(self, name: str, told: list[str]) -> None:
        self._name = name
        self._told = told
        self.stopping: Deferred[None] | None = None
        self.listening: Deferred[None] = Deferred()

    def startService(self) -> None:
        """See ``IService``."""
        super().startService()
        self._told.append(f"start {self._name}")

    def stopService(self) -> Deferred[None]:
        """See ``IService``."""
        super().stopService()
        self._told.append(f"stop {self._name}")
        return self.stopping or succeed(None)

    def hurry(self) -> None:
        """See ``LMSService``."""
        self._told.append(f"hurry {self._name}")
        if self.stopping is not None and not self.running and not self.stopping.called:
            self.stopping.callback(None)


class Stubborn(FakePart):
    """Doesn't hurry."""

    def hurry(self) -> None:
        """See ``LMSService``."""
        self._told.append(f"hurry {self._name}")


class LMSServiceTests(SynchronousTestCase):
    """The parts together."""

    def setUp(self) -> None:
        """All parts, and a service of them."""
        self.told: list[str] = []
        self.clock = Clock()
        self.deaf: list[ConfigError] = []
        self.parts: dict[str, Any] = {
            name: FakePart(name, self.told) for name in ("publishing", "ledger", "updater", "pull", "gateway")
        }
        self.parts["publisher"] = None
        self.bridge, self.sink = FakePart("bridge", self.told), FakePart("sink", self.told)
        self.altered: list[Altered | ConfigError] = []

    def service(self, **changes: Any) -> LMSService:
        """A service, not yet started."""
        parts: Any = Parts(**{**self.parts, "bridges": {"b": self.bridge}, "sinks": {"s": self.sink}, **changes})
        self.made = parts
        return LMSService(
            config=CONFIG, parts=parts, prepared=self.prepared, clock=self.clock, on_deaf=self.deaf.append
        )

    async def prepared(self, parts: Parts, config: LMSConfig, running: bool) -> Any:
        """See :func:`edxagent.lms.altering.prepared`."""
        self.told.append(f"prepare {'at work' if running else 'at rest'}")
        altered = self.altered.pop(0)
        if isinstance(altered, ConfigError):
            raise altered
        return lambda: altered

    def started(self, **changes: Any) -> LMSService:
        """A service at work; what it told its parts is forgotten."""
        service = self.service(**changes)
        service.startService()
        self.told.clear()
        return service

    def held(self, part: FakePart) -> Deferred[None]:
        """A part whose stop doesn't end by itself."""
        part.stopping = Deferred()
        return part.stopping

    def test_start(self) -> None:
        """Who is needed by others comes first, and the door opens last."""
        service = self.service()
        service.startService()
        starts = ["ledger", "sink", "publishing", "updater", "bridge", "pull", "gateway"]
        self.assertEqual(self.told, [f"start {name}" for name in starts])

    def test_stop(self) -> None:
        """Who takes something stops first, and who is needed by others last."""
        service = self.started()
        self.assertIsNone(self.successResultOf(service.stopService()))
        stops = ["gateway", "pull", "updater", "bridge", "publishing", "sink", "ledger"]
        self.assertEqual(self.told, [f"stop {name}" for name in stops])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_waits(self) -> None:
        """A part goes when those that it serves are gone, and the stop fires when all are."""
        gateway, updater = self.held(self.parts["gateway"]), self.held(self.parts["updater"])
        ledger = self.held(self.parts["ledger"])
        service = self.started()
        stopped = service.stopService()
        self.assertEqual(self.told, ["stop gateway", "stop updater"])
        updater.callback(None)
        self.assertEqual(self.told[2:], ["stop bridge"])
        gateway.callback(None)
        self.assertEqual(self.told[3:], ["stop pull", "stop publishing", "stop sink", "stop ledger"])
        self.assertNoResult(stopped)
        ledger.callback(None)
        self.successResultOf(stopped)

    def test_parts_that_are_not_there(self) -> None:
        """A service of a gateway alone, or of an updater alone, starts and stops as well."""
        for missing in (("ledger", "updater"), ("pull", "gateway", "ledger")):
            service = self.started(**dict.fromkeys(missing), bridges={}, sinks={})
            self.successResultOf(service.stopService())
            self.assertNotIn("bridge", " ".join(self.told))

    def test_drain_timeout(self) -> None:
        """When the time is over, the parts are hurried, and publishing ends under them."""
        self.held(self.parts["updater"])
        service = self.started()
        stopped = service.stopService()
        self.told.clear()
        self.clock.advance(DRAIN - 1)
        self.assertEqual(self.told, [])
        self.clock.advance(1)
        self.successResultOf(stopped)
        hurries = ["hurry gateway", "hurry pull", "hurry updater"]
        self.assertEqual(self.told[:3], hurries)
        self.assertEqual(self.told[-3:], ["stop publishing", "stop sink", "stop ledger"])

    def test_hurry(self) -> None:
        """A stop is cut short when somebody is impatient; so is one that comes after."""
        for at_once in (True, False):
            self.held(self.parts["gateway"])
            service = self.started()
            if at_once:
                service.hurry()
                self.assertEqual(self.told, [])
            stopped = service.stopService()
            if not at_once:
                self.assertNoResult(stopped)
                service.hurry()
            self.successResultOf(stopped)
            self.assertIn("hurry publishing", self.told)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_hurry_at_the_end(self) -> None:
        """When only the broker is silent, a connection to it is cut all the same."""
        self.held(self.parts["publishing"])
        service = self.started()
        stopped = service.stopService()
        self.assertNoResult(stopped)
        service.hurry()
        self.successResultOf(stopped)

    def test_stubborn_part(self) -> None:
        """One that doesn't stop at all keeps nobody from it for ever."""
        bridge = Stubborn("bridge", self.told)
        bridge.stopping = Deferred()
        service = self.started(bridges={"b": bridge})
        stopped = service.stopService()
        self.clock.advance(DRAIN)
        self.assertNoResult(stopped)
        self.assertIn("stop publishing", self.told)
        self.assertNotIn("stop sink", self.told)
        self.clock.advance(LAST_CHANCE)
        self.successResultOf(stopped)
        self.assertEqual(self.told[-2:], ["stop sink", "stop ledger"])

    def test_broken_part(self) -> None:
        """One that fails to stop is logged, and the others stop all the same."""
        self.held(self.sink).errback(RuntimeError("broken"))
        self.held(self.parts["pull"]).errback(ValueError("broken as well"))
        self.successResultOf(self.started().stopService())
        self.assertEqual(self.told[-2:], ["stop sink", "stop ledger"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_again(self) -> None:
        """A service that was stopped, even in a hurry, can be started again and then takes its time."""
        service = self.started()
        service.hurry()
        self.successResultOf(service.stopService())
        self.parts["gateway"].stopping = None
        gateway = self.held(self.parts["gateway"])
        service.startService()
        stopped = service.stopService()
        self.assertNoResult(stopped)
        gateway.callback(None)
        self.successResultOf(stopped)

    def test_deaf(self) -> None:
        """A gateway that can't listen is reported, once, in one line; the other parts go on."""
        service = self.started()
        error = ConfigError(["[gateway] listen: tcp:80 can't be listened at: Permission denied"])
        self.parts["gateway"].listening.errback(error)
        self.assertEqual(self.deaf, [error])
        self.assertTrue(service.running)

    def test_deaf_for_an_unknown_reason(self) -> None:
        """So is one that fails otherwise, with its traceback in the log."""
        self.started()
        self.parts["gateway"].listening.errback(RuntimeError("broken"))
        self.assertEqual(str(self.deaf[0]), "the gateway failed to start")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_stopped_before_it_listened(self) -> None:
        """That a stop came first is no failure."""
        service = self.started()
        stopped = service.stopService()
        self.parts["gateway"].listening.cancel()
        self.successResultOf(stopped)
        self.assertEqual(self.deaf, [])

    def test_reconfigure(self) -> None:
        """Sinks without a place stop when nobody needs them; the next stop goes by the new configuration."""
        service = self.started()
        other = FakePart("other sink", self.told)
        over: Deferred[None] = Deferred()
        self.altered.append(self.altered_to(other, over))
        self.successResultOf(service.reconfigure(SOONER))
        self.assertEqual(self.told, ["prepare at work"])
        over.callback(None)
        self.assertEqual(self.told[1:], ["stop sink"])
        self.held(self.parts["updater"])
        stopped = service.stopService()
        self.clock.advance(SOONER.drain_timeout)
        self.successResultOf(stopped)
        self.assertEqual(self.told[-2:], ["stop other sink", "stop ledger"])
        self.assertEqual(self.told.count("stop sink"), 1)

    def test_reconfigure_and_stop(self) -> None:
        """A sink that was still needed stops when the updater has."""
        service = self.started()
        other = FakePart("other sink", self.told)
        over: Deferred[None] = Deferred()
        self.altered.append(self.altered_to(other, over))
        self.successResultOf(service.reconfigure(SOONER))
        updater = self.held(self.parts["updater"])
        stopped = service.stopService()
        self.assertNotIn("stop sink", self.told)
        over.callback(None)
        updater.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(self.told[-3:], ["stop publishing", "stop other sink", "stop ledger"])
        self.assertEqual(self.told.count("stop sink"), 1)

    def test_reconfigure_with_an_error(self) -> None:
        """Nothing has changed then."""
        service = self.started()
        self.altered.append(ConfigError(["[sink:s] it doesn't start"]))
        self.failureResultOf(service.reconfigure(SOONER), ConfigError)
        self.held(self.parts["updater"])
        stopped = service.stopService()
        self.clock.advance(DRAIN - 1)
        self.assertNoResult(stopped)
        self.clock.advance(1)
        self.successResultOf(stopped)

    def test_nothing_to_reconfigure(self) -> None:
        """What needs a restart, or says the same, isn't even prepared; and nothing is while it stops."""
        service = self.started()
        self.successResultOf(service.reconfigure(evolve(CONFIG, name="other")))
        self.successResultOf(service.reconfigure(CONFIG))
        updater = self.held(self.parts["updater"])
        stopped = service.stopService()
        self.successResultOf(service.reconfigure(SOONER))
        updater.callback(None)
        self.successResultOf(stopped)
        self.assertNotIn("prepare at work", self.told)

    def altered_to(self, sink: FakePart, over: Deferred[None]) -> Altered:
        """The parts with another sink."""
        sinks: Any = {"s": sink}
        return Altered(parts=evolve(self.made, sinks=sinks), left=[self.sink], over=over)

    def test_embedded(self) -> None:
        """It hangs in any other service, under its name."""
        campus = MultiService()
        service = self.service()
        service.setServiceParent(campus)
        campus.startService()
        self.assertIs(campus.getServiceNamed("edxagent-lms"), service)
        self.successResultOf(campus.stopService())
        self.assertEqual(self.told[-1], "stop ledger")
