"""Tests for :mod:`edxagent.config.manual`, the page that it makes, and the shipped ``etc/agent.ini``."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from docs.write_configuration import PAGE, rendered
from edxagent.config.agent import read_agent_config
from edxagent.config.agent_keys import SECTIONS
from edxagent.config.keys import REQUIRED, Key
from edxagent.config.manual import default_text, manual
from edxagent.config.parsers import boolean, count_between, name_list, seconds, size, text
from edxagent.config.values import AgentConfig, BrokerAddress, QueueConfig
from edxagent.graders.registry import find_factory

SHIPPED = Path(__file__).parent.parent / "etc" / "agent.ini"
_SETTING = re.compile(r"#?(?P<key>[\w-]+) = (?P<value>.+)")
_VARIABLE = re.compile(r"\$\{\w+:-(.*)\}")


def settings_of(ini: str) -> dict[str, dict[str, str]]:
    """Section → key → value of each setting of a file, whether it is commented out or not."""
    found: dict[str, dict[str, str]] = {}
    for line in ini.split("\n"):
        if line.startswith("["):
            found[line.strip("[]")] = {}
        elif found and (setting := _SETTING.fullmatch(line)):
            found[next(reversed(found))][setting["key"]] = setting["value"]
    return found


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
        """The environment that it documents names another broker, another grader, another concurrency."""
        config = self.read(
            {
                "EDXAGENT_BROKER_URL": "amqp://demo:secret@127.0.0.1:40001/demo",
                "EDXAGENT_GRADER_URL": "http://127.0.0.1:40002/",
                "EDXAGENT_CONCURRENCY": "4",
            }
        )
        self.assertEqual(
            config.broker.addresses,
            (BrokerAddress(host="127.0.0.1", port=40001, username="demo", password="secret", vhost="demo"),),
        )
        self.assertEqual((config.grader.options["url"], config.concurrency), ("http://127.0.0.1:40002/", 4))

    def test_nothing_else_from_the_environment(self) -> None:
        """It looks at no variable, commented settings aside, that its head doesn't document."""
        lines = [line for line in SHIPPED.read_text(encoding="utf-8").split("\n") if not line.startswith("#")]
        self.assertEqual(
            re.findall(r"\$\{(\w+)", "\n".join(lines)),
            ["EDXAGENT_CONCURRENCY", "EDXAGENT_BROKER_URL", "EDXAGENT_GRADER_URL"],
        )

    def test_complete(self) -> None:
        """Each key of each section, and of the grader that it has, is in it, with its true default if it has one."""
        shipped = settings_of(SHIPPED.read_text(encoding="utf-8"))
        tables = {**SECTIONS, "grader": (*SECTIONS["grader"], *find_factory("http").keys)}
        del tables["queues"]
        self.assertEqual(set(shipped), {*tables, "queues"})
        for section, keys in tables.items():
            secrets = {f"{key.name}_file" for key in keys if key.secret}
            self.assertEqual(set(shipped[section]), {key.name for key in keys} | secrets, section)
            for key in keys:
                if key.default is not REQUIRED and default_text(key):
                    value = _VARIABLE.sub(r"\1", shipped[section][key.name])
                    self.assertEqual(key.parse(value), key.default, f"[{section}] {key.name}")

    def uncommented(self, without: str) -> AgentConfig:
        """Read the file with every setting in force but some lines, and those that name files that aren't there."""
        everything = SHIPPED.read_text(encoding="utf-8")
        everything = re.sub(r"^#(?=[\w:+-]+(\.\w+)*\S* = )", "", everything, flags=re.MULTILINE)
        everything = re.sub(r"^(password_file|api_key_file|tls_\w+_file) = .*$", "", everything, flags=re.MULTILINE)
        path = Path(self.mktemp())
        path.write_text(re.sub(without, "", everything, flags=re.MULTILINE | re.DOTALL), encoding="utf-8")
        names = ("EDXAGENT_BROKER_PASSWORD", "EDXAGENT_GRADER_PASSWORD", "EDXAGENT_API_KEY")
        return self.read(dict.fromkeys(names, "0123456789abcdef"), path)

    def test_uncommented(self) -> None:
        """With every setting in force it is still understood, but for the files that aren't there."""
        config = self.uncommented(without=r"^\[lms-config\].*(?=^\[grader\])")
        self.assertIn(QueueConfig(name="course-v1:MITx+6.00x+2026"), config.queues)
        self.assertEqual(config.results.max_score, 1.0)

    def test_told_by_the_lms(self) -> None:
        """With [lms-config] in force, and what it replaces taken away, it is understood, too."""
        config = self.uncommented(without=r"^urls = [^\n]*|^\[queues\].*(?=^\[lms-config\])")
        assert config.lms is not None
        self.assertEqual(config.lms.url, "https://grading.example.org/agent/config")
        self.assertEqual((config.queues, config.broker.addresses), ((), ()))


class PageTests(SynchronousTestCase):
    """``docs/configuration.md``."""

    def test_up_to_date(self) -> None:
        """The page is what the tables say; ``python -m docs.write_configuration`` writes it anew."""
        self.assertEqual(PAGE.read_text(encoding="utf-8"), rendered())


class ManualTests(SynchronousTestCase):
    """The manual."""

    def test_every_key(self) -> None:
        """Each section, each of its keys, and each kind of grader has its place."""
        page = manual({"own": (Key("pass", text, secret=True, help="a|b"),)})
        for section, keys in SECTIONS.items():
            table = page.partition(f"## [{section}]\n")[2].partition("\n## ")[0]
            for key in keys:
                self.assertIn(f"| `{key.name}`", table)
        self.assertIn("### kind = own", page)
        self.assertIn(r"| `pass` or `pass_file` | *required* | a line of text | A\|b. |", page)


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
        ):
            self.assertEqual(default_text(key), expected)
