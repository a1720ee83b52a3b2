"""Tests for :mod:`edxagent.lms.parts`: which parts there are, and what is said of those that can't be made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.application.service import Service
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from edxagent.config.lms_values import (
    AgentGrant,
    BridgeConfig,
    GatewayConfig,
    LedgerConfig,
    LMSConfig,
    SinkConfig,
    UpdaterConfig,
)
from edxagent.config.values import BrokerAddress, BrokerConfig
from edxagent.errors import BrokerRefused, ConfigError
from edxagent.interfaces import IResultSink
from edxagent.lms.parts import Parts, PartsMaker
from edxagent.lms.service import LMSService, make_lms_service
from edxagent.model import CheckedResult

BROKER = BrokerConfig(addresses=(BrokerAddress(host="127.0.0.1", port=1, username="guest", password="guest"),))
GATEWAY = GatewayConfig(queues=("q1",), users={})
CALLBACK = {
    "hosts": frozenset({"http://lms:8000"}),
    "timeout": 1.0,
    "connect_timeout": 1.0,
    "username": "",
    "password": "",
    "ca_file": "",
}


@implementer(IResultSink)
class OwnSink(Service):
    """Takes everything."""

    def target(self, result: CheckedResult) -> str | None:
        """See ``IResultSink``."""
        return "own"

    async def deliver(self, result: CheckedResult) -> None:
        """See ``IResultSink``."""


def _ignored(refused: BrokerRefused) -> None:
    """Nobody is told."""


def _nothing() -> None:
    """Nobody is told."""


class PartsTests(SynchronousTestCase):
    """The parts."""

    def config(self, **parts: Any) -> LMSConfig:
        """A configuration with those parts."""
        return LMSConfig(broker=BROKER, **parts)

    def parts(self, own: Mapping[str, IResultSink] | None = None, /, **parts: Any) -> Parts:
        """The parts of such a configuration, with sinks of one's ``own`` if there are any."""
        config = self.config(**parts)
        return PartsMaker(
            config, Clock(), on_refused=_ignored, on_stuck=_nothing, wall_clock=lambda: 0.0, sinks=own
        ).make()

    def refused(self, **parts: Any) -> str:
        """What is said of a configuration whose parts can't be made: one line."""
        error = self.assertRaises(ConfigError, self.parts, **parts)
        self.assertEqual(len(error.problems), 1)
        return str(error)

    def ledger(self) -> LedgerConfig:
        """A ledger in a file of its own."""
        return LedgerConfig(url=f"sqlite:///{self.mktemp()}")

    def bridge(self, **changes: Any) -> BridgeConfig:
        """A bridge."""
        values = {"name": "campus", "url": "https://lms", "username": "u", "password": "p", "queues": ("q2",)}
        return BridgeConfig(**{**values, **changes})

    def test_gateway(self) -> None:
        """A gateway has its pull side, and nothing else is made."""
        parts = self.parts(gateway=GATEWAY)
        self.assertIsNotNone(parts.gateway)
        self.assertIsNotNone(parts.pull)
        self.assertEqual((parts.ledger, parts.updater, parts.bridges, parts.sinks), (None, None, {}, {}))

    def test_everything(self) -> None:
        """Everything that is configured is there."""
        grant = AgentGrant(name="lab", key_hash="0" * 64, broker_urls=("amqp://u:p@h/",), queues={"q1": 1})
        parts = self.parts(
            gateway=GATEWAY,
            grants=(grant,),
            bridges=(self.bridge(), self.bridge(name="north")),
            updater=UpdaterConfig(),
            sinks=(SinkConfig(name="lms", kind="callback", options=CALLBACK),),
            ledger=self.ledger(),
        )
        self.assertNotIn(None, (parts.gateway, parts.pull, parts.updater, parts.ledger))
        self.assertEqual((len(parts.bridges), len(parts.sinks)), (2, 1))

    def test_own_sinks(self) -> None:
        """Sinks of one's own take the place of the configured ones; one that is a service is started and stopped."""
        own = OwnSink()
        configured = (SinkConfig(name="lms", kind="nonsense"),)
        parts = self.parts({"own": own}, updater=UpdaterConfig(), sinks=configured)
        self.assertEqual(parts.sinks, {"own": own})
        self.assertEqual(list(parts.sink_services.values()), [own])

    def test_bad_sink(self) -> None:
        """A sink whose options don't fit each other is named."""
        sink = SinkConfig(name="lms", kind="callback", options={**CALLBACK, "password": "s3cret"})
        said = self.refused(updater=UpdaterConfig(), sinks=(sink,))
        self.assertTrue(said.startswith("[sink:lms] username is missing"), said)
        self.assertNotIn("s3cret", said)

    def test_bad_database(self) -> None:
        """So is a ledger that can't be."""
        said = self.refused(gateway=GATEWAY, ledger=LedgerConfig(url="sqlite:////nowhere/at/all.db"))
        self.assertTrue(said.startswith("[ledger] url: the folder /nowhere/at doesn't exist"), said)

    def test_bad_bridge(self) -> None:
        """And a bridge that can't read its file, or has no ledger."""
        bridge = self.bridge(ca_file="/nowhere.pem")
        said = self.refused(bridges=(bridge,), updater=UpdaterConfig(), ledger=self.ledger())
        self.assertTrue(said.startswith("[bridge:campus] ") and "/nowhere.pem" in said, said)
        said = self.refused(bridges=(self.bridge(),), updater=UpdaterConfig())
        self.assertTrue(said.startswith("[bridge:campus] a bridge must know"), said)

    def test_service(self) -> None:
        """All of it is one service, not yet running."""
        service = make_lms_service(self.config(gateway=GATEWAY), Clock())
        self.assertIsInstance(service, LMSService)
        self.assertFalse(service.running)
