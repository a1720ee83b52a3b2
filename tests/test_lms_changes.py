"""Tests for :mod:`edxagent.lms.changes`."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from edxagent.config.lms_values import BridgeConfig, GatewayConfig, LedgerConfig, LMSConfig, SinkConfig, UpdaterConfig
from edxagent.config.values import BrokerAddress, BrokerConfig, FailureConfig, LogConfig
from edxagent.lms.changes import changed_sections, within_reach

BROKER = BrokerConfig(addresses=(BrokerAddress(host="127.0.0.1", port=5672, username="guest", password="guest"),))
GATEWAY = GatewayConfig(queues=("q",), users={"lms": "hash"})
NORTH = BridgeConfig(name="north", url="https://north.example", username="u", password="p", queues=("q",))
OLD = LMSConfig(
    broker=BROKER,
    gateway=GATEWAY,
    bridges=(NORTH,),
    updater=UpdaterConfig(),
    sinks=(SinkConfig(name="lms", kind="callback"),),
    ledger=LedgerConfig(url="sqlite:///ledger.db"),
)


class ChangedSectionsTests(SynchronousTestCase):
    """What a person is told."""

    def changed(self, **changes: Any) -> list[str]:
        """The sections that differ."""
        return changed_sections(OLD, evolve(OLD, **changes))

    def test_nothing(self) -> None:
        """Nothing differs from itself."""
        self.assertEqual(self.changed(), [])

    def test_gateway(self) -> None:
        """Its users have a section of their own."""
        self.assertEqual(self.changed(gateway=evolve(GATEWAY, lease=9.0)), ["[gateway]"])
        self.assertEqual(self.changed(gateway=evolve(GATEWAY, users={})), ["[users]"])

    def test_named(self) -> None:
        """Those that came, went or changed are named one by one."""
        south = evolve(NORTH, name="south")
        self.assertEqual(
            self.changed(bridges=(evolve(NORTH, concurrency=9), south)), ["[bridge:north]", "[bridge:south]"]
        )
        self.assertEqual(self.changed(bridges=(), sinks=()), ["[bridge:north]", "[sink:lms]"])

    def test_others(self) -> None:
        """Each as it is called in the file."""
        changes = {
            "drain_timeout": 9.0,
            "failure": FailureConfig(messages={"crashed": "Sorry"}),
            "log": LogConfig(level="debug"),
        }
        self.assertEqual(self.changed(**changes), ["[lms]", "[failure]", "[log]"])


class WithinReachTests(SynchronousTestCase):
    """What a running LMS side can take over."""

    def assert_beyond(self, new: LMSConfig, *beyond: str, left: LMSConfig = OLD) -> None:
        """Fail unless so much of ``new`` is beyond reach, and what is left is as expected."""
        self.assertEqual(within_reach(OLD, new), (left, list(beyond)))

    def test_everything(self) -> None:
        """Bridges and sinks come and go; most settings change."""
        new = evolve(
            OLD,
            drain_timeout=9.0,
            gateway=evolve(GATEWAY, queues=("r",), users={"other": "hash"}),
            bridges=(evolve(NORTH, name="south"),),
            updater=UpdaterConfig(queue="elsewhere"),
            sinks=(SinkConfig(name="scores", kind="database"),),
            ledger=LedgerConfig(url="sqlite:///ledger.db", keep=9.0),
        )
        self.assert_beyond(new, left=new)

    def test_where_we_are(self) -> None:
        """Our name, our broker, our log and our address stay."""
        broker = evolve(BROKER, heartbeat=7.0)
        new = evolve(
            OLD,
            name="other",
            broker=broker,
            log=LogConfig(level="debug"),
            gateway=evolve(GATEWAY, listen="tcp:1", lease=9.0),
        )
        left = evolve(OLD, gateway=evolve(GATEWAY, lease=9.0))
        self.assert_beyond(new, "[lms] name", "[broker]", "[log]", "[gateway] listen", left=left)

    def test_parts(self) -> None:
        """No other part comes or goes, and none of what needs it changes."""
        self.assert_beyond(evolve(OLD, gateway=None), "[gateway]")
        self.assert_beyond(evolve(OLD, updater=None, sinks=(), bridges=()), "[updater]")
        self.assert_beyond(evolve(OLD, ledger=None, bridges=()), "[ledger]")

    def test_ledger(self) -> None:
        """It stays where it is."""
        new = evolve(OLD, ledger=LedgerConfig(url="sqlite:///other.db", keep=9.0))
        left = evolve(OLD, ledger=LedgerConfig(url="sqlite:///ledger.db", keep=9.0))
        self.assert_beyond(new, "[ledger] url", left=left)
