"""Tests of the shipped ``etc/lms.ini``."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from edxagent.config.lms import read_lms_config
from edxagent.config.lms_keys import SECTIONS
from edxagent.config.lms_values import LedgerConfig, LMSConfig, UpdaterConfig
from edxagent.config.values import BrokerAddress
from edxagent.lms.sinks.registry import find_sink_factory
from tests.shipped import ETC, assert_complete, in_force, settings_of, variables_of
from tests.test_config_lms import HASH

SHIPPED = ETC / "lms.ini"
ENVIRONMENT = {
    "EDXAGENT_BROKER_URL": "amqp://demo:secret@127.0.0.1:40001/demo",
    "EDXAGENT_FILES_FOLDER": "/srv/files",
    "EDXAGENT_FILES_URL": "https://grading.example.org/files/",
    "EDXAGENT_LMS_PASSWORD_HASH": HASH,
    "EDXAGENT_LMS_URL": "https://lms.example.org",
    "EDXAGENT_DATABASE_URL": "postgresql://demo:secret@127.0.0.1/scores",
    "EDXAGENT_LEDGER_URL": "sqlite:////tmp/ledger.db",
}


class ShippedFileTests(SynchronousTestCase):
    """``etc/lms.ini``."""

    def setUp(self) -> None:
        """Its text."""
        self.ini = SHIPPED.read_text(encoding="utf-8")

    def read(self, environment: dict[str, str], path: Path = SHIPPED) -> LMSConfig:
        """Read the file."""
        return read_lms_config(str(path), environment=environment, find_sink=find_sink_factory)

    def test_as_it_is(self) -> None:
        """Without any environment it is for a broker and an LMS on this machine; nobody can log in yet."""
        config = self.read({})
        self.assertEqual(
            config.broker.addresses,
            (BrokerAddress(host="127.0.0.1", port=5672, username="guest", password="guest", vhost="/"),),
        )
        assert config.gateway is not None
        self.assertEqual(config.gateway.listen, "tcp:18040:interface=127.0.0.1")
        self.assertEqual((config.gateway.queues, config.gateway.users), (("6002x-problems", "6002x-exam"), {}))
        self.assertEqual(config.updater, UpdaterConfig())
        lms, scores = config.sinks
        self.assertEqual((lms.kind, lms.options["hosts"]), ("callback", {"http://127.0.0.1:8000"}))
        self.assertEqual((scores.kind, scores.options["url"]), ("database", "sqlite:///scores.db"))
        self.assertEqual(config.ledger, LedgerConfig(url="sqlite:///ledger.db"))
        self.assertEqual((config.bridges, config.grants), ((), ()))

    def test_queues(self) -> None:
        """Its queues are those of ``etc/agent.ini``."""
        agents = settings_of((ETC / "agent.ini").read_text(encoding="utf-8"))["queues"]
        ours = settings_of(self.ini)["gateway"]["queues"].split()
        self.assertEqual(ours, [queue for queue in agents if queue in ours])
        self.assertEqual(settings_of(self.ini)["updater"]["queue"], "grading.results")

    def test_environment(self) -> None:
        """The environment that it documents names another broker, LMS, database and ledger, and lets the LMS in."""
        config = self.read(ENVIRONMENT)
        self.assertEqual(config.broker.addresses[0].port, 40001)
        assert config.gateway is not None and config.ledger is not None
        self.assertEqual(config.gateway.users, {"lms": HASH})
        self.assertEqual(config.gateway.files_folder, "/srv/files")
        self.assertEqual(config.gateway.files_url, "https://grading.example.org/files/")
        lms, scores = config.sinks
        self.assertEqual(lms.options["hosts"], {"https://lms.example.org"})
        self.assertEqual(scores.options["url"], ENVIRONMENT["EDXAGENT_DATABASE_URL"])
        self.assertEqual(config.ledger.url, "sqlite:////tmp/ledger.db")

    def test_nothing_else_from_the_environment(self) -> None:
        """It looks at no variable, commented settings aside, that its head doesn't document."""
        self.assertEqual(variables_of(self.ini), list(ENVIRONMENT))
        head = self.ini.partition("\n[lms]")[0]
        self.assertEqual(re.findall(r"^#     (EDXAGENT_\w+) ", head, re.MULTILINE), list(ENVIRONMENT))

    def test_complete(self) -> None:
        """Each key of each section, and of each kind of sink, is in it, with its true default if it has one."""
        tables = {
            **{section.replace("agent-config:NAME", "agent-config:lab"): keys for section, keys in SECTIONS.items()},
            "sink:lms": (*SECTIONS["sink:NAME"], *find_sink_factory("callback").keys),
            "sink:scores": (*SECTIONS["sink:NAME"], *find_sink_factory("database").keys),
            "bridge:campus": SECTIONS["bridge:NAME"],
        }
        del tables["sink:NAME"], tables["bridge:NAME"]
        self.assertEqual(set(settings_of(self.ini)), set(tables))
        del tables["users"]
        assert_complete(self, self.ini, tables)

    def test_uncommented(self) -> None:
        """With every setting in force it is still understood, but for the files that aren't there."""
        everything = re.sub(r"^(\w*(password|secret|url)_file|tls_\w+_file) = .*$", "", in_force(self.ini), flags=re.M)
        path = Path(self.mktemp())
        path.write_text(everything, encoding="utf-8")
        secrets = re.findall(r"\$\{(\w+)\}", everything)
        hashes = {name: HASH for name in secrets if name.endswith("_HASH")}
        config = self.read({**dict.fromkeys(secrets, "s3cret-s3cret-s3cret"), **hashes}, path)
        self.assertEqual([bridge.name for bridge in config.bridges], ["campus"])
        self.assertEqual([dict(grant.queues) for grant in config.grants], [{"6002x-problems": 2, "6002x-exam": 1}])
        assert config.gateway is not None
        self.assertEqual(config.gateway.session_secret, "s3cret-s3cret-s3cret")

    def test_width(self) -> None:
        """It fits a terminal, but for the learner's words."""
        wide = [line for line in self.ini.split("\n") if len(line) > 120 and "<p>" not in line]
        self.assertEqual(wide, [])
