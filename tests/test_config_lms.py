"""Tests for :mod:`edxagent.config.lms` and what it is made of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from edxagent.config.keys import REQUIRED, Key
from edxagent.config.lms import read_lms_config
from edxagent.config.lms_keys import MOST_USERS, SECTIONS
from edxagent.config.lms_values import (
    AgentGrant,
    BridgeConfig,
    GatewayConfig,
    LedgerConfig,
    LMSConfig,
    SinkConfig,
    UpdaterConfig,
)
from edxagent.config.parsers import text, url
from edxagent.config.values import LogConfig
from edxagent.errors import ConfigError
from edxagent.interfaces import IResultSink, IResultSinkFactory, SinkTools

HASH = "scrypt$16384$8$1$" + "0a" * 16 + "$" + "1b" * 32
KEY_HASH = sha256(b"key").hexdigest()
SECRET = "hunter2-hunter2-hunter2"

BROKER = {"broker": {"urls": "amqp://guest@127.0.0.1"}}
GATEWAY: dict[str, dict[str, Any]] = {"gateway": {"queues": "6002x-exam"}, "users": {"lms": HASH}}
UPDATER: dict[str, dict[str, Any]] = {"updater": {}, "sink:lms": {"kind": "callback", "url": "http://127.0.0.1:8000/"}}
LEDGER: dict[str, dict[str, Any]] = {"ledger": {"url": "sqlite:///ledger.db"}}
BRIDGE: dict[str, dict[str, Any]] = {
    **LEDGER,
    "updater": {},
    "bridge:campus": {
        "url": "https://lms.example.org",
        "username": "edxagent",
        "password": "${PW}",
        "queues": "6002x-exam",
    },
}
GRANT: dict[str, dict[str, Any]] = {
    **GATEWAY,
    "agent-config:lab": {"key_hash": KEY_HASH, "broker_urls": "amqps://agents@rabbit/", "queues": "6002x-exam"},
}
GRANT["agent-config:lab"]["broker_password"] = "${PW}"


@implementer(IResultSinkFactory)
class StubFactory:
    """A kind of sink with two keys, that is never built."""

    kind = "callback"
    keys = (Key("url", url), Key("password", text, None, secret=True))

    def build(self, options: Mapping[str, Any], tools: SinkTools) -> IResultSink:
        """Not needed to read a configuration."""
        raise NotImplementedError


def find_stub(kind: str) -> IResultSinkFactory:
    """Knows one kind."""
    if kind != "callback":
        raise ValueError("unknown kind; known is callback")
    return StubFactory()


class StubFactoryTests(SynchronousTestCase):
    """The stub of these tests."""

    def test_interface(self) -> None:
        """The stub is what the reader will meet."""
        verifyObject(IResultSinkFactory, StubFactory())


class LMSConfigCase(SynchronousTestCase):
    """Reads configurations that differ in a few keys from a good one."""

    def setUp(self) -> None:
        """The environment, and no overrides; what is warned of is kept."""
        self.path = self.mktemp()
        self.environment = {
            "PW": SECRET,
            "URL": f"amqps://agents:{SECRET}@rabbit/",
            "DB": f"postgresql://x:{SECRET}@h/d",
        }
        self.overrides: dict[str, str] = {}
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def read_text(self, text: str) -> LMSConfig:
        """Read a whole file."""
        Path(self.path).write_text(text, encoding="utf-8", errors="surrogatepass")
        return read_lms_config(self.path, environment=self.environment, find_sink=find_stub, overrides=self.overrides)

    def read(self, *parts: Mapping[str, Mapping[str, Any]], **sections: dict[str, Any]) -> LMSConfig:
        """Read a file of some parts, with other keys in them; ``...`` takes a key out, or a section."""
        changes = {name.replace("__", ":").replace("_config", "-config"): keys for name, keys in sections.items()}
        merged: dict[str, dict[str, Any]] = {}
        for part in (BROKER, *parts, changes):
            for name, keys in part.items():
                merged[name] = {**merged.get(name, {}), **keys} if keys is not ... else {"...": ...}
        lines = []
        for name, keys in merged.items():
            if "..." not in keys:
                lines += [f"[{name}]", *(f"{key} = {value}" for key, value in keys.items() if value is not ...)]
        return self.read_text("\n".join(lines))

    def problems(self, *parts: Mapping[str, Mapping[str, Any]], **sections: Any) -> list[str]:
        """What is wrong with a file, without the file's name and the lines' numbers."""
        error = self.assertRaises(ConfigError, self.read, *parts, **sections)
        self.assertNotIn(SECRET, str(error))
        return [problem.removeprefix(f"{self.path} ").partition(" (line ")[0] for problem in error.problems]

    def refused(self, *parts: Mapping[str, Mapping[str, Any]], saying: str, **sections: Any) -> None:
        """Assert that one thing is wrong with a file."""
        problems = self.problems(*parts, **sections)
        self.assertEqual(len(problems), 1, problems)
        self.assertIn(saying, problems[0])


class DefaultsTests(LMSConfigCase):
    """Files with nothing but what is required."""

    def test_gateway(self) -> None:
        """A gateway may stand alone; every default of the file is the default of the value class."""
        config = self.read(GATEWAY)
        self.assertEqual(
            config,
            LMSConfig(
                broker=config.broker,
                gateway=GatewayConfig(queues=("6002x-exam",), users={"lms": HASH}),
                failure=config.failure,
                log=LogConfig(),
            ),
        )

    def test_updater(self) -> None:
        """So may an updater with a sink."""
        config = self.read(UPDATER)
        sink = SinkConfig(name="lms", kind="callback", options={"url": "http://127.0.0.1:8000/", "password": None})
        self.assertEqual((config.gateway, config.updater, config.sinks), (None, UpdaterConfig(), (sink,)))

    def test_bridge(self) -> None:
        """A bridge needs no sink, for the verdicts go back by itself."""
        config = self.read(BRIDGE)
        bridge = BridgeConfig(
            name="campus",
            url="https://lms.example.org",
            username="edxagent",
            password=SECRET,
            queues=("6002x-exam",),
        )
        self.assertEqual((config.bridges, config.updater), ((bridge,), UpdaterConfig()))
        self.assertEqual(config.ledger, LedgerConfig(url="sqlite:///ledger.db"))
        self.assertNotIn(SECRET, repr(config))

    def test_grant(self) -> None:
        """What an agent is told is whole: the passwords are in the URLs."""
        (grant,) = self.read(GRANT).grants
        url = f"amqps://agents:{SECRET}@rabbit:5671/%2F"
        self.assertEqual(grant, AgentGrant(name="lab", key_hash=KEY_HASH, broker_urls=(url,), queues={"6002x-exam": 1}))
        self.assertNotIn(SECRET, repr(grant))


class SectionsTests(LMSConfigCase):
    """The sections together."""

    def test_all_problems(self) -> None:
        """Every mistake is told at once, with its section and its key."""
        problems = self.problems(
            GATEWAY,
            UPDATER,
            lms={"drain_timeout": "soon"},
            gateway={"listne": "x", "listen": "here"},
            users={"bob": "secret"},
            updater={"retry_delays": "10 2"},
            log={"level": "loud"},
        )
        where = [problem.partition(": ")[0] for problem in problems]
        self.assertEqual(
            where,
            [
                "[lms] drain_timeout",
                "[gateway] listne",
                "[gateway] listen",
                "[users] bob",
                "[updater] retry_delays",
                "[log] level",
            ],
        )

    def test_unknown_section(self) -> None:
        """What was meant is guessed, names of one's own choice included."""
        self.refused(GATEWAY, UPDATER, saying='[gatway]: unknown section; did you mean "gateway"?', gatway={})
        self.refused(GATEWAY, saying='[brige:x]: unknown section; did you mean "bridge:x"?', brige__x={})
        self.refused(GATEWAY, saying="[grader]: unknown section", grader={})

    def test_names(self) -> None:
        """A section that needs a name has one, and it can be shown anywhere."""
        self.refused(GATEWAY, UPDATER, sink={}, saying="[sink]: expected a name as well, such as [sink:campus]")
        for name in ("sink:", "sink: a", "sink:a b", "sink:ü", "sink:" + "x" * 65):
            problems = self.problems(GATEWAY, UPDATER, {name: UPDATER["sink:lms"]})
            self.assertIn("expected a name of at most 64 letters", problems[0])

    def test_nothing(self) -> None:
        """A file that makes nothing run says what would."""
        self.refused(saying="[lms]: there is nothing to do; write a section [gateway], [bridge:NAME] or [updater]")
        self.refused(LEDGER, saying="[lms]: there is nothing to do")

    def test_what_needs_what(self) -> None:
        """A part without another that it can't do without is refused, with the remedy."""
        self.refused(GATEWAY, users=..., saying="[users]: expected 1 to 1000 users, a line each")
        self.refused(
            UPDATER, sink__lms=..., saying="[updater]: verdicts would have nowhere to go; write a section [sink"
        )
        self.refused(GATEWAY, UPDATER, updater=..., saying="[sink:lms]: no verdict would come here; write a section")
        self.refused(
            BRIDGE, updater=..., saying="[bridge:campus]: no verdict would come here; write a section [updater]"
        )
        self.refused(BRIDGE, ledger=..., saying="[bridge:campus]: a bridge must know what it has fetched already")
        self.refused(UPDATER, users={"lms": HASH}, saying="[users]: is of no use without a section [gateway]")
        self.refused(UPDATER, GRANT, gateway=..., users=..., saying="[agent-config:lab]: is of no use without")

    def test_results_queue(self) -> None:
        """Submissions can't come in by the queue of the verdicts."""
        words = "[updater] queue: submissions come in by a queue of that name"
        self.refused(GATEWAY, UPDATER, updater={"queue": "6002x-exam"}, saying=words)
        self.refused(BRIDGE, updater={"queue": "6002x-exam"}, saying=words)

    def test_overrides(self) -> None:
        """The command line comes before the file, and is named when it is wrong."""
        self.overrides = {"lms.name": "north", "gateway.listen": "tcp:1:interface=127.0.0.1", "log.level": "debug"}
        config = self.read(GATEWAY, gateway={"listen": "tcp:2"})
        assert config.gateway is not None
        self.assertEqual((config.name, config.gateway.listen), ("north", "tcp:1:interface=127.0.0.1"))
        self.overrides = {"gateway.listen": "here"}
        error = self.assertRaises(ConfigError, self.read, GATEWAY)
        self.assertIn("--listen: expected an endpoint, such as tcp:18040:interface=127.0.0.1", str(error))
        self.overrides = {"gateway.listen": "tcp:1"}
        error = self.assertRaises(ConfigError, self.read, UPDATER)
        self.assertIn("--listen: is of no use without a section [gateway]", str(error))

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([name.replace("NAME", "x") for name in SECTIONS]),
                st.dictionaries(
                    st.one_of(
                        st.sampled_from(sorted({key.name for keys in SECTIONS.values() for key in keys})),
                        st.text(max_size=5),
                    ),
                    st.one_of(
                        st.text(max_size=30), st.sampled_from(["callback", "1", "yes", "https://a", HASH, "${PW}"])
                    ),
                    max_size=4,
                ),
            ),
            max_size=6,
        )
    )
    def test_anything(self, sections: list[tuple[str, dict[str, str]]]) -> None:
        """Whatever a file says, it is read or refused in words."""
        lines = [
            f"[{name}]\n" + "\n".join(f"{key} = {value}" for key, value in keys.items()) for name, keys in sections
        ]
        try:
            self.read_text("\n".join(lines))
        except ConfigError as error:
            self.assertTrue(error.problems)


class GatewayTests(LMSConfigCase):
    """``[gateway]`` and ``[users]``."""

    def gateway(self, **keys: Any) -> GatewayConfig:
        """A gateway with those keys."""
        gateway = self.read(GATEWAY, gateway=keys).gateway
        assert gateway is not None
        return gateway

    def refuses(self, saying: str, **keys: Any) -> None:
        """Assert that one thing is wrong with a gateway."""
        self.refused(GATEWAY, gateway=keys, saying=f"[gateway] {saying}")

    def test_queues(self) -> None:
        """They stand on one line or on several, and their names obey the rules of queues."""
        self.assertEqual(self.gateway(queues="a b\n  c").queues, ("a", "b", "c"))
        for queues, words in {
            "": "expected 1 to 1000 queues",
            "a b a": "one of them is there twice",
            "a amq.x": 'names that begin with "amq."',
            "a.dead": "are for dead letters",
            "x" * 201: "at most 200 bytes",
            " ".join(map(str, range(1001))): "expected 1 to 1000 queues",
        }.items():
            self.refuses("queues: expected 1 to 1000 queues with blanks between them, such as", queues=queues)
            self.assertIn(words, self.problems(GATEWAY, gateway={"queues": queues})[0])

    def test_secret(self) -> None:
        """The session secret isn't written down, and isn't short."""
        self.assertEqual(self.gateway(session_secret="${PW}").session_secret, SECRET)
        self.refuses("session_secret: a secret isn't written down here", session_secret=SECRET)
        self.environment["PW"] = "short"
        self.refuses("session_secret: expected a random text of at least 16 characters", session_secret="${PW}")

    def test_max_upload(self) -> None:
        """RabbitMQ 4 would refuse 16 MiB, and so do we."""
        self.assertEqual(self.gateway(max_upload="16777215").max_upload, 16 * 1024 * 1024 - 1)
        for value in ("16 MiB", "1 GiB", "0", "many"):
            self.refuses("max_upload: expected a size of 1 byte to less than 16 MiB, such as 10 MiB", max_upload=value)

    def test_files(self) -> None:
        """Folder and address go together."""
        gateway = self.gateway(files_folder="/f", files_url="https://grading.example.org/files/")
        self.assertEqual((gateway.files_folder, gateway.files_url), ("/f", "https://grading.example.org/files/"))
        self.refuses("files_url: is missing", files_folder="/f")
        self.refuses("files_folder: is missing", files_url="https://grading.example.org/files/")
        for address in ("https://grading.example.org", "https://grading.example.org/", "https://g/files/?a"):
            self.refuses("files_url: expected an address with a path", files_folder="/f", files_url=address)
        self.refuses("files_url: expected a web address", files_folder="/f", files_url="ftp://x/files")

    def test_lease(self) -> None:
        """RabbitMQ must not take back what a grader still has."""
        self.assertEqual(self.gateway(lease="900").lease, 900.0)
        self.refuses("lease: is longer than half of [broker] consumer_timeout, 900 s", lease="901")
        self.refused(GATEWAY, broker={"consumer_timeout": "100"}, saying="[gateway] lease: is longer than half of")

    def test_confirm_timeout(self) -> None:
        """The LMS waits no longer than ten seconds."""
        self.refuses("confirm_timeout: expected a time in seconds from 0.1 to 8", confirm_timeout="9")

    def test_users(self) -> None:
        """A user has a hash; the password itself, written down by mistake, isn't repeated."""
        other = HASH.replace("16384", "32768")
        gateway = self.read(GATEWAY, users={"graders@lab": other}).gateway
        assert gateway is not None
        self.assertEqual(gateway.users, {"lms": HASH, "graders@lab": other})
        self.assertNotIn(HASH, repr(gateway))
        for wrong in (SECRET, HASH[:-40], HASH.replace("scrypt", "md5"), HASH + "\n  more"):
            self.refused(
                GATEWAY, users={"lms": wrong}, saying="[users] lms: expected a hash as edxagent password prints"
            )
        self.refused(GATEWAY, users={"x" * 151: HASH}, saying="expected a name of at most 150 characters")
        many = {f"user{number}": HASH for number in range(MOST_USERS)}
        self.refused(GATEWAY, users=many, saying="[users]: expected 1 to 1000 users")
        self.assertEqual(self.events, [])

    def test_user_without_a_hash(self) -> None:
        """One whose variable is empty can't log in, and it is said which that is."""
        gateway = self.read(GATEWAY, users={"lms": "${NO_HASH:-}"}).gateway
        assert gateway is not None
        self.assertEqual(gateway.users, {})
        self.assertEqual([(event["log_level"].name, event["user"]) for event in self.events], [("warn", "lms")])
        self.refused(
            GATEWAY, users={"lms": "${NO_HASH}"}, saying="[users] lms: the environment variable NO_HASH isn't set"
        )


class GrantTests(LMSConfigCase):
    """``[agent-config:NAME]``."""

    def refuses(self, saying: str, **keys: Any) -> None:
        """Assert that one thing is wrong with a grant."""
        self.refused(GRANT, {"agent-config:lab": keys}, saying=f"[agent-config:lab] {saying}")

    def test_queues(self) -> None:
        """Each may have its weight."""
        (grant,) = self.read(GRANT, {"agent-config:lab": {"queues": "a weight=2 b\n  c weight=3"}}).grants
        self.assertEqual(grant.queues, {"a": 2, "b": 1, "c": 3})
        for queues, words in {
            "a wieght=2": 'did you mean "weight"?',
            "a weight=0": "weight: expected a whole number",
            "a a": "one of them is there twice",
        }.items():
            self.assertIn(words, self.problems(GRANT, {"agent-config:lab": {"queues": queues}})[0])

    def test_urls(self) -> None:
        """A password comes from the environment or a file, alone or in a URL, and is quoted where it must be."""
        for keys in ({"broker_urls": "${URL}", "broker_password": ...}, {"broker_urls": "amqps://agents:${PW}@rabbit"}):
            (grant,) = self.read(GRANT, {"agent-config:lab": keys}).grants
            self.assertEqual(grant.broker_urls, (f"amqps://agents:{SECRET}@rabbit:5671/%2F",))
        self.environment["PW"] = "a/b@c:%"
        (grant,) = self.read(
            GRANT, {"agent-config:lab": {"broker_urls": "amqp://a%40b@[::1]:1/v%2Fh amqp://u@h/"}}
        ).grants
        self.assertEqual(
            grant.broker_urls,
            ("amqp://a%40b:a%2Fb%40c%3A%25@[::1]:1/v%2Fh", "amqp://u:a%2Fb%40c%3A%25@h:5672/%2F"),
        )

    def test_bad_urls(self) -> None:
        """One that no agent could use is refused here, and no password may be written down."""
        self.refuses("broker_urls: a password doesn't belong here", broker_urls=f"amqps://agents:{SECRET}@rabbit/")
        self.refuses("broker_urls: there is no password; name a file", broker_password=...)
        self.assertIn("broker_password_file", self.problems(GRANT, {"agent-config:lab": {"broker_password": ...}})[0])
        self.refuses("broker_urls: expected a broker's URL", broker_urls="https://rabbit")

    def test_key_hash(self) -> None:
        """It is a hash; the key itself, written down by mistake, isn't repeated."""
        for wrong in (SECRET, KEY_HASH[:-1], KEY_HASH.upper()):
            self.refuses("key_hash: expected a hash as edxagent api-key prints it", key_hash=wrong)

    def test_twice(self) -> None:
        """A key stands for one set of queues."""
        other = {"agent-config:other": GRANT["agent-config:lab"]}
        self.refused(GRANT, other, saying="[agent-config:other] key_hash: [agent-config:lab] has the same one")

    def test_tls(self) -> None:
        """Passwords leave this machine only over TLS."""
        words = "[gateway] listen: agents would be told passwords without TLS"
        for listen in ("tcp:18040", "tcp:18040:interface=0.0.0.0", "tcp6:18040", "tcp:80:interface=192.0.2.1"):
            self.refused(GRANT, gateway={"listen": listen}, saying=words)
            self.read(GRANT, gateway={"listen": listen, "behind_tls_proxy": "yes"})
        for listen in ("tcp:18040:interface=127.0.0.1", r"tcp6:18040:interface=\:\:1", "unix:/run/edxagent/http"):
            self.read(GRANT, gateway={"listen": listen})


class BridgeTests(LMSConfigCase):
    """``[bridge:NAME]``."""

    def refuses(self, saying: str, **keys: Any) -> None:
        """Assert that one thing is wrong with a bridge."""
        self.refused(BRIDGE, {"bridge:campus": keys}, saying=f"[bridge:campus] {saying}")

    def test_url(self) -> None:
        """It is the LMS's root; the password goes over TLS, or stays on this machine, unless somebody said so."""
        for address in ("https://lms.example.org/", "http://127.0.0.1:8000", "http://localhost", "http://[::1]:1"):
            (bridge,) = self.read(BRIDGE, {"bridge:campus": {"url": address}}).bridges
            self.assertEqual(bridge.url, address.rstrip("/"))
        self.refuses("url: the password would go over the network unencrypted", url="http://lms:8000")
        (bridge,) = self.read(BRIDGE, {"bridge:campus": {"url": "http://lms:8000", "allow_http": "yes"}}).bridges
        self.assertEqual(bridge.url, "http://lms:8000")
        self.refuses("url: expected the address alone, without a path", url="https://lms.example.org/xqueue/")
        self.refuses("url: expected a web address", url=f"https://me:{SECRET}@lms.example.org/")
        self.refuses("url: is missing; expected a web address", url=...)

    def test_password(self) -> None:
        """It comes from the environment, or a file that only we read."""
        path = Path(self.mktemp())
        path.write_text(f"{SECRET}\n")
        os.chmod(path, 0o600)
        keys = {"password": ..., "password_file": str(path)}
        (bridge,) = self.read(BRIDGE, {"bridge:campus": keys}).bridges
        self.assertEqual(bridge.password, SECRET)
        self.refuses("password: a secret isn't written down here", password=SECRET)
        self.refuses("password: is missing", password=...)

    def test_times(self) -> None:
        """They fit each other."""
        self.refuses("poll_initial: is longer than poll_max, 1 s", poll_initial="2", poll_max="1")
        self.refuses("answer_within: isn't shorter than give_up_after, 100 s", give_up_after="100")
        self.refuses("answer_within: expected a time in seconds from 10 to 280", answer_within="300")
        self.refused(
            BRIDGE,
            {"bridge:campus": {"give_up_after": "7200"}, "ledger": {"keep": "3600"}},
            saying="[bridge:campus] give_up_after: isn't shorter than [ledger] keep, 3600 s",
        )

    def test_several(self) -> None:
        """Each LMS has a section of its own."""
        config = self.read(BRIDGE, {"bridge:north": BRIDGE["bridge:campus"]})
        self.assertEqual([bridge.origin for bridge in config.bridges], ["bridge:campus", "bridge:north"])


class UpdaterTests(LMSConfigCase):
    """``[updater]``, ``[sink:NAME]`` and ``[ledger]``."""

    def updater(self, **keys: Any) -> UpdaterConfig:
        """An updater with those keys."""
        updater = self.read(UPDATER, updater=keys).updater
        assert updater is not None
        return updater

    def refuses(self, saying: str, **keys: Any) -> None:
        """Assert that one thing is wrong with an updater."""
        self.refused(UPDATER, updater=keys, saying=f"[updater] {saying}")

    def test_scores(self) -> None:
        """Where scores are lowered, it is said to what."""
        self.assertEqual(self.updater(max_score="2.5", clamp_scores="yes").max_score, 2.5)
        self.refuses("clamp_scores: lowers scores to max_score; give that too", clamp_scores="yes")

    def test_retry_delays(self) -> None:
        """They rise, and are few."""
        self.assertEqual(self.updater(retry_delays="0.5 1\n  60").retry_delays, (0.5, 1.0, 60.0))
        for wrong in ("", "2 1", "1 1", "0 1", "1 soon", "700000", " ".join(map(str, range(1, 12)))):
            self.refuses("retry_delays: expected 1 to 10 ascending times in seconds", retry_delays=wrong)

    def test_tags(self) -> None:
        """Some, or none; but none that do something by themselves."""
        self.assertEqual(self.updater(allowed_tags="p, pre\n  ul p").allowed_tags, {"p", "pre", "ul"})
        self.assertEqual(self.updater(allowed_tags="").allowed_tags, frozenset())
        for wrong in ("<p>", "P", "p*", "x" * 40):
            self.refuses("allowed_tags: expected names of HTML elements", allowed_tags=wrong)
        for active in ("script", "style", "iframe", "form", "svg"):
            self.refuses("allowed_tags: expected elements that do nothing by themselves", allowed_tags=f"p {active}")

    def test_sink(self) -> None:
        """The kind's own keys become its options, secrets included, and no ``repr`` shows them."""
        (sink,) = self.read(UPDATER, sink__lms={"password": "${PW}"}).sinks
        self.assertEqual(sink.options, {"url": "http://127.0.0.1:8000/", "password": SECRET})
        self.assertNotIn(SECRET, repr(sink))
        self.refused(UPDATER, sink__lms={"ulr": "x"}, saying='[sink:lms] ulr: unknown key; did you mean "url"?')
        self.refused(UPDATER, sink__lms={"kind": "clalback"}, saying="[sink:lms] kind: unknown kind; known is callback")
        self.refused(UPDATER, sink__lms={"kind": ..., "url": ...}, saying="[sink:lms] kind: is missing; expected")
        self.refused(UPDATER, sink__lms={"password": SECRET}, saying="[sink:lms] password: a secret isn't written down")

    def test_ledger(self) -> None:
        """A path may be written down, and what may hold a password not."""
        for address in (
            "sqlite:////var/lib/edxagent/ledger.db",
            "sqlite:///ledger.db",
            "${NO_DB:-sqlite:///a.db}",
            "${DB}",
        ):
            ledger = self.read(GATEWAY, ledger={"url": address}).ledger
            assert ledger is not None
            self.assertNotIn(SECRET, repr(ledger))
        address = f"postgresql://x:{SECRET}@h/d"
        self.refused(GATEWAY, ledger={"url": address}, saying="[ledger] url: a secret isn't written down here")
        self.environment["DB"] = f"mysql://x:{SECRET}@h/d"
        self.refused(GATEWAY, ledger={"url": "${DB}"}, saying="[ledger] url: expected sqlite:////path/of/a/file or")


class TablesTests(SynchronousTestCase):
    """The key tables."""

    def test_defaults_fit(self) -> None:
        """Each key of a section is a field of its values, with the same default."""
        for section, values, other in (
            ("lms", LMSConfig, set()),
            ("gateway", GatewayConfig, set()),
            ("bridge:NAME", BridgeConfig, set()),
            ("updater", UpdaterConfig, {"allowed_tags"}),
            ("ledger", LedgerConfig, set()),
        ):
            fields = {field.name: field.default for field in values.__attrs_attrs__}  # type: ignore[attr-defined]
            for key in SECTIONS[section]:
                self.assertIn(key.name, fields, section)
                if key.default is not REQUIRED and key.name not in other:
                    self.assertEqual(key.default, fields[key.name], f"[{section}] {key.name}")
        (tags,) = (key for key in SECTIONS["updater"] if key.name == "allowed_tags")
        self.assertEqual(frozenset(tags.default), UpdaterConfig().allowed_tags)
