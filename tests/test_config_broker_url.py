"""Tests for :mod:`edxagent.config.broker_url`."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from edxagent.config.broker_url import broker_address, is_loopback, refuse_written_password
from edxagent.config.values import BrokerAddress, TLSConfig

TLS = TLSConfig(ca_file="/ca.pem")


def guest(**changes: object) -> BrokerAddress:
    """RabbitMQ's default user on this machine."""
    values = {"host": "127.0.0.1", "port": 5672, "username": "guest", "password": "guest", "vhost": "/", **changes}
    return BrokerAddress(**values)


class BrokerAddressTests(SynchronousTestCase):
    """A broker's URL, read."""

    def check(self, url: str, expected: BrokerAddress, password: str | None = None) -> None:
        """Assert what a URL means."""
        found = broker_address(url, tls=TLS, password=password)
        self.assertEqual((found, found.password), (expected, expected.password))

    def refused(self, url: str, *, saying: str) -> None:
        """Assert that a URL is refused, without being repeated."""
        error = str(self.assertRaises(ValueError, broker_address, url, tls=TLS, password="pw"))
        self.assertIn(saying, error)
        self.assertNotIn("hunter2", error)

    def test_local_defaults(self) -> None:
        """On this machine, user, password, port and virtual host have RabbitMQ's defaults."""
        for url in (
            "amqp://guest@127.0.0.1:5672/%2F",
            "amqp://127.0.0.1",
            "amqp://127.0.0.1/",
            "amqp://guest@127.0.0.1/%2f",
        ):
            self.check(url, guest())
        self.check("amqp://localhost", guest(host="localhost"))
        self.check("amqp://[::1]:5673", guest(host="::1", port=5673))

    def test_full(self) -> None:
        """Each part of a full URL is decoded."""
        expected = BrokerAddress(
            host="rabbit.example.org", port=5671, username="a@b", password="p:w/é", vhost="course/6.00x", tls=TLS
        )
        self.check("amqps://a%40b:p%3Aw%2F%C3%A9@rabbit.example.org/course%2F6.00x", expected)

    def test_password_of_its_own(self) -> None:
        """A URL without a password has the one that is given beside it, ``guest`` too; one with keeps its own."""
        self.check("amqp://grader@10.0.0.1", guest(host="10.0.0.1", username="grader", password="s3"), password="s3")
        self.check("amqp://127.0.0.1", guest(password="s3"), password="s3")
        self.check("amqp://guest:own@127.0.0.1", guest(password="own"), password="s3")

    def test_no_password(self) -> None:
        """Nobody but ``guest`` on this machine does without a password."""
        for url in ("amqp://grader@127.0.0.1", "amqp://guest@10.0.0.1", "amqp://grader:@127.0.0.1"):
            error = self.assertRaises(ValueError, broker_address, url, tls=TLS)
            self.assertIn("password_file", str(error))

    def test_refused(self) -> None:
        """What is no broker's URL is refused with what was expected."""
        self.refused("", saying="amqp://guest@127.0.0.1:5672/%2F")
        self.refused("http://u:hunter2@h/", saying="expected a broker's URL")
        self.refused("amqp:///x", saying="expected a broker's URL")
        self.refused("amqp://u:hunter2@@h/", saying="write @ as %40")
        self.refused("amqp://u:hunter2@h h/", saying="expected a broker's URL")
        self.refused("amqp://u:hunter2@h/\n", saying="expected a broker's URL")
        self.refused("amqp://u:hunter2@h/?heartbeat=1", saying="[broker] has keys")
        self.refused("amqp://u:hunter2@h:0/", saying="port from 1 to 65535")
        self.refused("amqp://u:hunter2@h:65536/", saying="port from 1 to 65535")
        self.refused("amqp://u:hunter2%zz@h/", saying="in the password")
        self.refused("amqp://u:hunter2%ff@h/", saying="in the password")
        self.refused("amqp://u:hunter2@h/a/b", saying="%2F")
        self.refused("amqp://u:hunter2@h/%00", saying="virtual host")
        self.refused("amqp://u:hunter2@h/" + "x" * 256, saying="at most 255 bytes")
        self.refused("amqp://u:hunter2@[::1::]/", saying="IPv6")
        self.refused("amqp://u:hunter2@" + "h" * 254, saying="253")
        self.refused("amqp://u:hunter2@" + "h" * 3000, saying="expected a broker's URL")
        self.refused("amqps://example.org/", saying="user name")

    @settings(deadline=None)
    @given(st.one_of(st.text(), st.from_regex(r"amqps?://[a-z%:@\[\]/0-9é?]*", fullmatch=True)))
    def test_any_text(self, url: str) -> None:
        """Whatever the text, it is read or refused with ``ValueError``."""
        try:
            found = broker_address(url, tls=TLS, password="pw")
        except ValueError:
            return
        self.assertTrue(found.host and found.username and 1 <= found.port <= 65535)


class RefuseWrittenPasswordTests(SynchronousTestCase):
    """A password in a file that it doesn't belong into."""

    def test_written(self) -> None:
        """A password that was written down is refused, even where other parts came from the environment."""
        for literal in ("amqp://u:hunter2@h/", "amqp://:hunter2@", "amqp://guest:guest@example.org"):
            error = self.assertRaises(ValueError, refuse_written_password, literal)
            self.assertIn("use password_file or ${VARIABLE}", str(error))
            self.assertNotIn("hunter2", str(error))

    def test_not_written(self) -> None:
        """None, one from the environment, and the public one of ``guest`` on this machine are fine."""
        for literal in ("", "amqp://u@h/", "amqp://u:@h/", "amqp://guest:guest@localhost:5672/", "amqp://h:5672/a@b"):
            refuse_written_password(literal)


class IsLoopbackTests(SynchronousTestCase):
    """Whether a host is this machine."""

    def test_hosts(self) -> None:
        """Loopback addresses and ``localhost`` are; names that merely look so aren't."""
        self.assertEqual([host for host in ("127.0.0.1", "127.9.9.9", "::1", "LocalHost") if not is_loopback(host)], [])
        self.assertEqual(
            [host for host in ("10.0.0.1", "::2", "127.0.0.1.example.org", "localhost2") if is_loopback(host)], []
        )
