"""Tests for :mod:`edxagent.config.listening`."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from edxagent.config.listening import endpoint, is_private
from tests.certificates import Authority

PIECES = ("tcp", "ssl", "unix", "systemd", "haproxy", ":", "=", "\\", "port", "interface", "1", "a")


class EndpointTests(SynchronousTestCase):
    """Endpoint strings."""

    def refused(self, value: str, saying: str = "expected an endpoint, such as tcp:18040:interface=127.0.0.1") -> None:
        """Assert that one isn't understood, in one line that doesn't repeat it."""
        error = self.assertRaises(ValueError, endpoint, value)
        self.assertIn(saying, str(error))
        self.assertNotIn("\n", str(error))

    def test_good(self) -> None:
        """What Twisted understands is taken as it is."""
        for value in ("tcp:80", "tcp:port=80:interface=192.0.2.1", r"tcp6:80:interface=\:\:1", "unix:/run/x", "tcp:0"):
            self.assertEqual(endpoint(value), value)

    def test_bad(self) -> None:
        """What it doesn't understand is refused, and so is a port that there isn't."""
        for value in (
            "",
            "80",
            "tcp",
            "tcp:http",
            "tcp:70000",
            "tcp:-1",
            "tcp:80:where=x",
            "tpc:80",
            "tcp:80\0",
            "x" * 5000,
        ):
            self.refused(value)

    def test_tls(self) -> None:
        """The files that an endpoint with TLS names are looked at now, and not when somebody first connects."""
        pair = Authority(Path(self.mktemp())).issue(Path(self.mktemp()), "localhost")
        endpoint(f"ssl:443:privateKey={pair.key}:certKey={pair.certificate}")
        certificate = self.mktemp()
        self.refused(f"ssl:443:privateKey={certificate}", "a file can't be read: No such file or directory")
        Path(certificate).write_text("no PEM")
        self.refused(f"ssl:443:privateKey={certificate}", "are the files of this one PEM files")

    @given(st.text(max_size=40) | st.lists(st.sampled_from(PIECES)).map("".join))
    def test_anything(self, value: str) -> None:
        """Whatever a file says, it is taken or refused in words."""
        try:
            is_private(endpoint(value))
        except ValueError as error:
            self.assertTrue(str(error).startswith("expected an endpoint"))


class PrivateTests(SynchronousTestCase):
    """Who can hear what is said there."""

    def test_private(self) -> None:
        """None but this machine, or whoever speaks TLS."""
        for value in (
            "tcp:80:interface=127.0.0.1",
            "tcp:interface=127.0.0.2:port=80",
            r"tcp6:80:interface=\:\:1",
            "tcp:80:interface=localhost",
            "unix:/run/x",
            "ssl:443:privateKey=x",
        ):
            self.assertTrue(is_private(value), value)

    def test_public(self) -> None:
        """Everybody; and where we can't tell, nobody is promised anything."""
        for value in ("tcp:80", "tcp:80:interface=0.0.0.0", "tcp6:80", "tcp:80:interface=", "haproxy:tcp:80", "x:y"):
            self.assertFalse(is_private(value), value)
