"""Tests for :mod:`edxagent.config.manual`, the page that it makes, and the shipped ``etc/agent.ini``."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from docs.write_configuration import PAGE, rendered
from edxagent.config import agent_keys, lms_keys
from edxagent.config.agent import read_agent_config
from edxagent.config.keys import Key
from edxagent.config.lms_parsers import size_below
from edxagent.config.manual import default_text, manual
from edxagent.config.parsers import boolean, count_between, delays, name_list, seconds, size, text
from edxagent.config.values import AgentConfig, BrokerAddress, QueueConfig
from edxagent.graders.registry import find_factory
from tests.shipped import ETC, assert_complete, in_force, settings_of, variables_of

SHIPPED = ETC / "agent.ini"


class ShippedFileTests(SynchronousTestCase):
    """``etc/agent.ini``."""

    def read(self, environment: dict[str, str], ini: Path = SHIPPED) -> AgentConfig:
        """Read the file."""
        return read_agent_config(str(ini), environment=environment, find_factory=find_factory)

    def test_as_it_is(self) -> None:
        """Without any environment it is for a broker and an HTTP grader on this machine."""
        config = self.read({})
        self.assertEqual(
            config.broker.addresses,
            (BrokerAddress(host="127.0.0.1", port=5672, username="guest", password="guest", vhost="/"),),
        )
        self.assertEqual((config.grader.kind, config.grader.options["url"]), ("http", "http://127.0.0.1:8080/"))
        self.assertEqual(
            config.queues, (QueueConfig(name="6002x-problems", weight=2), QueueConfig(name="6002x-exam", weight=1))
        )
        self.assertEqual(config.concurrency, 10)

    def test_environment(self) -> None:
        """The environment that it documents names another broker, grader, concurrency and journal."""
        config = self.read(
            {
                "EDXAGENT_BROKER_URL": "amqp://demo:secret@127.0.0.1:40001/demo",
                "EDXAGENT_GRADER_URL": "http://127.0.0.1:40002/",
                "EDXAGENT_CONCURRENCY": "4",
                "EDXAGENT_JOURNAL": "/var/lib/edxagent/journal",
            }
        )
        self.assertEqual(
            config.broker.addresses,
            (BrokerAddress(host="127.0.0.1", port=40001, username="demo", password="secret", vhost="demo"),),
        )
        self.assertEqual((config.grader.options["url"], config.concurrency), ("http://127.0.0.1:40002/", 4))
        self.assertEqual(config.quarantine.journal, "/var/lib/edxagent/journal")

    def test_nothing_else_from_the_environment(self) -> None:
        """It looks at no variable, commented settings aside, that its head doesn't document."""
        self.assertEqual(
            variables_of(SHIPPED.read_text(encoding="utf-8")),
            ["EDXAGENT_CONCURRENCY", "EDXAGENT_BROKER_URL", "EDXAGENT_GRADER_URL", "EDXAGENT_JOURNAL"],
        )

    def test_complete(self) -> None:
        """Each key of each section, and of the grader that it has, is in it, with its true default if it has one."""
        ini = SHIPPED.read_text(encoding="utf-8")
        tables = {**agent_keys.SECTIONS, "grader": (*agent_keys.SECTIONS["grader"], *find_factory("http").keys)}
        self.assertEqual(set(settings_of(ini)), set(tables))
        del tables["queues"]
        assert_complete(self, ini, tables)

    def test_uncommented(self) -> None:
        """With every setting in force it is still understood, but for the files that aren't there, and one choice."""
        everything = in_force(SHIPPED.read_text(encoding="utf-8"))
        everything = re.sub(r"^(password_file|tls_\w+_file) = .*$", "", everything, flags=re.MULTILINE)
        everything = re.sub(r"^\[lms-config\]$.*?(?=^\[)", "", everything, flags=re.MULTILINE | re.DOTALL)
        path = Path(self.mktemp())
        path.write_text(everything, encoding="utf-8")
        config = self.read({"EDXAGENT_BROKER_PASSWORD": "x", "EDXAGENT_GRADER_PASSWORD": "y"}, path)
        self.assertIn(QueueConfig(name="course-v1:MITx+6.00x+2026"), config.queues)
        self.assertEqual(config.results.max_score, 1.0)


class PageTests(SynchronousTestCase):
    """``docs/configuration.md``."""

    def test_up_to_date(self) -> None:
        """The page is what the tables say; ``python -m docs.write_configuration`` writes it anew."""
        self.assertEqual(PAGE.read_text(encoding="utf-8"), rendered())


class ManualTests(SynchronousTestCase):
    """The manual."""

    def test_every_key(self) -> None:
        """Each section of either file, each of its keys, and each kind of grader and sink has its place, once."""
        page = manual({"own": (Key("pass", text, secret=True, help="a|b"),)}, {"mine": (Key("home", text, None),)})
        for section, keys in {**agent_keys.SECTIONS, **lms_keys.SECTIONS}.items():
            self.assertEqual(page.count(f"### [{section}]\n"), 1, section)
            table = page.partition(f"### [{section}]\n")[2].partition("\n## ")[0].partition("\n### ")[0]
            for key in keys:
                self.assertIn(f"| `{key.name}`", table)
        self.assertIn("#### kind = own", page)
        self.assertIn(r"| `pass` or `pass_file` | *required* | a line of text | A\|b. |", page)
        self.assertIn("| `home` | none | a line of text |", page.partition("#### kind = mine")[2])

    def test_common_sections(self) -> None:
        """What both files have in common stands before what is one's own."""
        page = manual({}, {})
        both = page.partition("\n## Both files")[2].partition("\n## agent.ini")[0]
        self.assertEqual(re.findall(r"### \[(.*)\]", both), ["broker", "failure", "log"])


class DefaultTextTests(SynchronousTestCase):
    """A default as it would be written."""

    def test_kinds(self) -> None:
        """Each kind of value is written as its parser reads it."""
        for key, expected in (
            (Key("a", text), ""),
            (Key("a", text, None), ""),
            (Key("a", text, "x"), "x"),
            (Key("a", boolean, False), "no"),
            (Key("a", boolean, True), "yes"),
            (Key("a", seconds, 30.0), "30"),
            (Key("a", count_between(1, 9), 3), "3"),
            (Key("a", name_list, ("a", "b")), "a b"),
            (Key("a", size, 3 * 1024**2), "3 MiB"),
            (Key("a", size, 64 * 1024), "64 KiB"),
            (Key("a", size, 1000), "1000"),
            (Key("a", size_below(2**24), 10 * 1024**2), "10 MiB"),
            (Key("a", delays, (0.5, 7_776_000.0)), "0.5 7776000"),
        ):
            self.assertEqual(default_text(key), expected)
