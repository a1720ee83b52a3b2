"""Tests for :mod:`edxagent.config.agent` and :mod:`edxagent.config.agent_keys`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from edxagent.config.agent import read_agent_config
from edxagent.config.agent_keys import SECTIONS
from edxagent.config.keys import Key
from edxagent.config.parsers import text, url
from edxagent.config.queues import MOST_QUEUES
from edxagent.config.values import AgentConfig, BrokerAddress, LogConfig, QueueConfig, ResultsConfig, TLSConfig
from edxagent.errors import ConfigError
from edxagent.interfaces import GraderTools, IGrader, IGraderFactory

GOOD = {
    "agent": {},
    "broker": {"urls": "amqp://guest@127.0.0.1"},
    "queues": {"6002x-exam": ""},
    "grader": {"kind": "http", "url": "http://127.0.0.1:8080/"},
}


@implementer(IGraderFactory)
class StubFactory:
    """A kind of grader with two keys, that is never built."""

    kind = "http"
    keys = (Key("url", url), Key("password", text, None, secret=True))

    def build(self, options: Mapping[str, Any], tools: GraderTools) -> IGrader:
        """Not needed to read a configuration."""
        raise NotImplementedError


def find_stub_factory(kind: str) -> IGraderFactory:
    """Knows one kind."""
    if kind != "http":
        raise ValueError("unknown kind; known is http")
    return StubFactory()


class StubFactoryTests(SynchronousTestCase):
    """The stub of these tests."""

    def test_interface(self) -> None:
        """The stub is what the reader will meet."""
        verifyObject(IGraderFactory, StubFactory())


class AgentConfigCase(SynchronousTestCase):
    """Reads configurations that differ in a few keys from a good one."""

    def setUp(self) -> None:
        """The environment, and no overrides."""
        self.path = self.mktemp()
        self.environment = {"URL": "amqp://grader:hunter2@10.0.0.1/", "PW": "hunter2"}
        self.overrides: dict[str, str] = {}

    def read_text(self, text: str) -> AgentConfig:
        """Read a whole file."""
        Path(self.path).write_text(text, encoding="utf-8", errors="surrogatepass")
        return read_agent_config(
            self.path, environment=self.environment, find_factory=find_stub_factory, overrides=self.overrides
        )

    def read(self, **sections: dict[str, str]) -> AgentConfig:
        """Read the good file with other sections, or with other keys in them; ``...`` takes a key out."""
        merged = {name: {**GOOD.get(name, {}), **sections.get(name, {})} for name in {**GOOD, **sections}}
        lines = []
        for name, keys in merged.items():
            lines += [f"[{name}]", *(f"{key} = {value}" for key, value in keys.items() if value is not ...)]
        return self.read_text("\n".join(lines))

    def problems(self, **sections: dict[str, Any]) -> list[str]:
        """What is wrong with a file, without the file's name and the lines' numbers."""
        error = self.assertRaises(ConfigError, self.read, **sections)
        return [problem.removeprefix(f"{self.path} ").partition(" (line ")[0] for problem in error.problems]

    def refused(self, *, saying: str, **sections: dict[str, Any]) -> None:
        """Assert that one thing is wrong with a file."""
        problems = self.problems(**sections)
        self.assertEqual(len(problems), 1, problems)
        self.assertIn(saying, problems[0])
        self.assertNotIn("hunter2", problems[0])


class DefaultsTests(AgentConfigCase):
    """A file with nothing but what is required."""

    def test_values(self) -> None:
        """Every default of the file is the default of the value class."""
        config = self.read()
        self.assertEqual(
            config,
            AgentConfig(
                name="edxagent",
                broker=type(config.broker)(
                    addresses=(BrokerAddress(host="127.0.0.1", port=5672, username="guest", password="guest"),)
                ),
                queues=(QueueConfig(name="6002x-exam"),),
                grader=type(config.grader)(kind="http", options={"url": "http://127.0.0.1:8080/", "password": None}),
                failure=config.failure,
            ),
        )

    def test_failure(self) -> None:
        """The learner isn't told where the fault is ours, and there are words for every failure."""
        failure = self.read().failure
        self.assertEqual(
            failure.tell_learner,
            {
                "malformed": True,
                "unavailable": False,
                "timed-out": True,
                "crashed": True,
                "bad-reply": True,
                "quarantined": False,
            },
        )
        self.assertEqual(set(failure.messages), set(failure.tell_learner))


class SectionsTests(AgentConfigCase):
    """The sections together."""

    def test_everything_given(self) -> None:
        """Each key reaches its field."""
        config = self.read(
            agent={"name": "x", "concurrency": "3", "drain_timeout": "0", "hold_limit": "1", "max_request": "1 KiB"},
            results={"queue": "out", "max_score": "2.5", "max_reply": "2 KiB"},
            log={"format": "json", "level": "debug"},
            failure={"tell_learner": "crashed, unavailable", "crashed": "<b>Oh!</b>\n  Sorry."},
        )
        self.assertEqual(
            (config.name, config.concurrency, config.drain_timeout, config.hold_limit, config.max_request),
            ("x", 3, 0.0, 1.0, 1024),
        )
        self.assertEqual(config.results, ResultsConfig(queue="out", max_score=2.5, max_reply=2048))
        self.assertEqual(config.log, LogConfig(format="json", level="debug"))
        told = [outcome for outcome, told in config.failure.tell_learner.items() if told]
        self.assertEqual(told, ["unavailable", "crashed"])
        self.assertEqual(config.failure.messages["crashed"], "<b>Oh!</b> Sorry.")

    def test_all_at_once(self) -> None:
        """Problems of all sections are in one report."""
        self.assertEqual(
            self.problems(
                agent={"concurency": "4"},
                brokers={"x": "1"},
                broker={"urls": "localhost"},
                queues={"6002x-exam": ...},
                grader={"kind": "htp"},
                failure={"crashed": "<?xml?>", "tell_learner": "timedout"},
                log={"level": "warning"},
            ),
            [
                '[brokers]: unknown section; did you mean "broker"?',
                '[agent] concurency: unknown key; did you mean "concurrency"?',
                "[broker] urls: expected a broker's URL, such as amqp://guest@127.0.0.1:5672/%2F; "
                "in a name or password write @ as %40, : as %3A, / as %2F",
                f"[queues]: expected 1 to {MOST_QUEUES} queues, a line each, such as 6002x-exam =",
                "[grader] kind: unknown kind; known is http",
                "[failure] tell_learner: expected some of malformed, unavailable, timed-out, crashed, bad-reply, "
                'quarantined, with blanks between them; did you mean "timed-out"?',
                "[failure] crashed: expected HTML of at most 4096 characters, such as <p>Please submit again.</p>",
                '[log] level: expected debug, info, warn, error or critical; did you mean "warn"?',
            ],
        )

    def test_empty_file(self) -> None:
        """An empty file lacks what is required."""
        error = self.assertRaises(ConfigError, self.read_text, "")
        self.assertEqual(
            [problem.removeprefix(f"{self.path} ").partition(":")[0] for problem in error.problems],
            ["[broker] urls", "[queues]", "[grader] kind"],
        )

    def test_overrides(self) -> None:
        """The command line wins over the file, and is checked like it."""
        self.overrides = {"agent.concurrency": "7", "grader.url": "http://other/", "log.level": "debug"}
        config = self.read(agent={"concurrency": "many"})
        self.assertEqual(
            (config.concurrency, config.grader.options["url"], config.log.level), (7, "http://other/", "debug")
        )
        self.overrides = {"agent.concurrency": "many", "broker.urls": "amqp://u:hunter2@h/"}
        self.assertEqual(
            self.problems(),
            [
                "--concurrency: expected a whole number from 1 to 10000, such as 10",
                "--broker-urls: a password doesn't belong here; leave it out, and use password_file or ${VARIABLE}",
            ],
        )

    @settings(deadline=None, max_examples=300)
    @given(
        st.lists(
            st.one_of(
                st.sampled_from([f"[{section}]" for section in SECTIONS]),
                st.builds(
                    "{} = {}".format,
                    st.sampled_from([key.name for keys in SECTIONS.values() for key in keys]) | st.text(),
                    st.text() | st.sampled_from(["amqp://guest@localhost", "http", "1", "${PW}", "yes"]),
                ),
                st.text(),
            )
        ).map("\n".join)
    )
    def test_any_text(self, text: str) -> None:
        """Whatever the file holds, it is read or refused with ``ConfigError``."""
        self.path = "any.ini"
        try:
            self.read_text(text)
        except ConfigError as error:
            self.assertTrue(error.problems)
            self.assertEqual(len(str(error).split("\n")), len(error.problems))


class BrokerTests(AgentConfigCase):
    """``[broker]``."""

    def test_several(self) -> None:
        """Several URLs are several addresses, in their order, with one password."""
        secret = self.mktemp()
        Path(secret).write_text("s3\n")
        config = self.read(broker={"urls": "\n amqp://grader@a\n amqp://grader@b:5673/v", "password_file": secret})
        self.assertEqual(
            [(address.host, address.port, address.vhost, address.password) for address in config.broker.addresses],
            [("a", 5672, "/", "s3"), ("b", 5673, "v", "s3")],
        )

    def test_password_from_the_environment(self) -> None:
        """A password may come from the environment, whole URL or part of it."""
        for urls in ("${URL}", "amqp://grader:${PW}@10.0.0.1/"):
            (address,) = self.read(broker={"urls": urls}).broker.addresses
            self.assertEqual((address.username, address.password), ("grader", "hunter2"))

    def test_written_password(self) -> None:
        """A password that is written into the file is refused, in a default too."""
        for urls in ("amqp://u:hunter2@h/", "${NOPE:-amqp://u:hunter2@h/}", "${URL} amqp://u:hunter2@h/"):
            self.refused(broker={"urls": urls}, saying="[broker] urls: a password doesn't belong here")

    def test_position(self) -> None:
        """Of several URLs the bad one is told by its position."""
        self.refused(
            broker={"urls": "amqp://localhost http://h/"}, saying="[broker] urls: URL 2: expected a broker's URL"
        )

    def test_number(self) -> None:
        """The URLs are limited in number, and there is at least one."""
        self.refused(broker={"urls": "amqp://localhost " * 33}, saying="expected 1 to 32 URLs")
        self.refused(broker={"urls": ""}, saying="expected 1 to 32 URLs")

    def test_tls(self) -> None:
        """``amqps://`` brings the TLS settings into its addresses, and no others."""
        name = self.mktemp()
        Path(name).write_text("PEM")
        files = {f"tls_{key}_file": name for key in ("ca", "certificate", "key")}
        urls = "amqps://guest:guest@localhost amqp://localhost"
        addresses = self.read(broker={"urls": urls, "tls_verify": "no", **files}).broker.addresses
        tls = TLSConfig(ca_file=name, certificate_file=name, key_file=name, verify=False)
        self.assertEqual([address.tls for address in addresses], [tls, None])

    def test_tls_without_use(self) -> None:
        """TLS settings without an ``amqps://`` URL are a mistake."""
        for key, value in (("tls_ca_file", "/ca.pem"), ("tls_verify", "no")):
            self.refused(
                broker={key: value}, saying=f"[broker] {key}: is of no use: none of the urls begins with amqps://"
            )

    def test_tls_files(self) -> None:
        """A file that isn't there, and a key without a certificate, are mistakes."""
        self.assertEqual(
            self.problems(broker={"urls": "amqps://localhost", "tls_key_file": "/nope"}),
            [
                "[broker] tls_key_file: there is no such file that we may read",
                "[broker] tls_key_file: is a key without a certificate; give tls_certificate_file too",
            ],
        )

    def test_pauses(self) -> None:
        """The first pause can't be longer than the longest."""
        self.refused(broker={"retry_initial": "9"}, saying="[broker] retry_initial: is longer than retry_max, 5 s")


class QueuesTests(AgentConfigCase):
    """``[queues]``."""

    def queues(self, **queues: Any) -> list[tuple[str, int]]:
        """Read some queues."""
        config = self.read(queues={"6002x-exam": ..., **queues})
        return [(queue.name, queue.weight) for queue in config.queues]

    def test_names(self) -> None:
        """A queue's name may hold nearly anything, and keeps its case; the order stays."""
        names = ["Course-v1:MITx+6.00x", "course-v1:MITx+6.00x", "a%2Fb", "two words", "ü" * 100]
        self.assertEqual(self.queues(**dict.fromkeys(names, "")), [(name, 1) for name in names])

    def test_weight(self) -> None:
        """A queue may have a weight."""
        self.assertEqual(self.queues(a="weight=2", b=""), [("a", 2), ("b", 1)])

    def test_bad_names(self) -> None:
        """Names that can't be a queue of requests are refused."""
        self.refused(queues={"ü" * 101: ""}, saying="at most 200 bytes")
        self.refused(queues={"a\x07b": ""}, saying="without control characters")
        self.refused(queues={"amq.gen": ""}, saying="belong to the broker")
        self.refused(queues={"x.dead": ""}, saying="are for dead letters")

    def test_bad_options(self) -> None:
        """An option that isn't understood is refused."""
        self.refused(
            queues={"a": "wieght=2"},
            saying='[queues] a: expected nothing, or options such as weight=2; did you mean "weight"?',
        )
        self.refused(queues={"a": "weight=0"}, saying="[queues] a: weight: expected a whole number from 1 to 1000")
        self.refused(queues={"a": "weight=1 weight=2"}, saying="[queues] a: weight is there twice")
        self.refused(queues={"a": "weight"}, saying="[queues] a: weight: expected a whole number from 1 to 1000")

    def test_twice(self) -> None:
        """A queue that is listed twice is refused."""
        error = self.assertRaises(ConfigError, self.read_text, "[queues]\na =\na =\n")
        self.assertIn(f"{self.path} [queues] a: this key is there twice; it is in line 2 too (line 3)", error.problems)

    def test_number(self) -> None:
        """The queues are limited in number."""
        self.assertEqual(len(self.queues(**{str(number): "" for number in range(MOST_QUEUES)})), MOST_QUEUES)
        self.refused(queues={str(number): "" for number in range(MOST_QUEUES)}, saying="expected 1 to 1000 queues")


class GraderTests(AgentConfigCase):
    """``[grader]``."""

    def test_keys_of_the_kind(self) -> None:
        """The kind's own keys become its options, secrets included, and no ``repr`` shows them."""
        grader = self.read(grader={"password": "${PW}", "timeout": "5"}).grader
        self.assertEqual((grader.kind, grader.timeout), ("http", 5.0))
        self.assertEqual(grader.options, {"url": "http://127.0.0.1:8080/", "password": "hunter2"})
        self.assertNotIn("hunter2", repr(grader))

    def test_other_keys(self) -> None:
        """A key that the kind doesn't have is a mistake."""
        self.refused(grader={"ulr": "x"}, saying='[grader] ulr: unknown key; did you mean "url"?')

    def test_unknown_kind(self) -> None:
        """With an unknown kind only the common keys can be judged."""
        self.assertEqual(
            self.problems(grader={"kind": "htp", "timeout": "x", "ulr": "x"}),
            [
                "[grader] timeout: expected a time in seconds, above 0 and at most 604800, such as 30 or 0.5",
                "[grader] kind: unknown kind; known is http",
            ],
        )

    def test_consumer_timeout(self) -> None:
        """Waiting and grading must end before the broker takes the submission back."""
        self.read(agent={"hold_limit": "10"}, grader={"timeout": "1789"})
        self.refused(grader={"timeout": "1790"}, saying="[grader] timeout: with [agent] hold_limit it makes 1800 s")
        self.read(grader={"timeout": "3000"}, broker={"consumer_timeout": "3600"})


class ResultsTests(AgentConfigCase):
    """``[results]``."""

    def test_no_circle(self) -> None:
        """Verdicts can't go to a queue that is graded from."""
        self.refused(
            results={"queue": "6002x-exam"}, saying="[results] queue: is one of [queues]; verdicts would be graded"
        )
        self.refused(results={"queue": "6002x-exam.dead"}, saying="are for dead letters")


class FailureTests(AgentConfigCase):
    """``[failure]``."""

    def test_nobody(self) -> None:
        """Telling nobody is a choice."""
        self.assertEqual(set(self.read(failure={"tell_learner": ""}).failure.tell_learner.values()), {False})

    def test_bad_html(self) -> None:
        """Words that the LMS can't show are refused."""
        for words in ("", "<p>\x07</p>", "<?xml version='1.0'?>", "x" * 4097):
            self.refused(failure={"timed-out": words}, saying="[failure] timed-out: expected HTML")

    def test_outcomes_that_are_none(self) -> None:
        """Outcomes without a failure verdict have no words."""
        self.refused(failure={"graded": "<p>x</p>"}, saying="[failure] graded: unknown key")
        self.refused(failure={"tell_learner": "cancelled"}, saying="[failure] tell_learner: expected some of malformed")
