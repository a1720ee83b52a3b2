"""Tests for session cookies."""

from __future__ import annotations

import base64
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from edxagent.lms.gateway.passwords import PasswordHash
from edxagent.lms.gateway.sessions import Sessions
from tests.gateway_support import quick_hash


class SessionsTests(SynchronousTestCase):
    """Tests for :class:`Sessions`."""

    def setUp(self) -> None:
        """Two users."""
        self.now = 1_700_000_000.0
        self.users = {name: PasswordHash.read(quick_hash(name)) for name in ("lms", "größe")}
        self.sessions = self.make()

    def make(self, **changes: Any) -> Sessions:
        """Sessions of an hour."""
        settings: dict[str, Any] = {"secret": "s3cret", "lifetime": 3600.0, "known": self.users.get}
        return Sessions(**{**settings, **changes}, wall_clock=lambda: self.now)

    def value(self, user: str = "lms", sessions: Sessions | None = None) -> bytes:
        """The cookie's value."""
        cookie = (sessions or self.sessions).open(user, secure=False)
        return cookie.partition(";")[0].partition("=")[2].encode()

    def test_known_again(self) -> None:
        """Whoever logged in is known again, also after a restart with the same secret."""
        for user in self.users:
            self.assertEqual(self.sessions.user_of(self.value(user)), user)
            self.assertEqual(self.make().user_of(self.value(user)), user)

    def test_attributes(self) -> None:
        """No script sees it, no other site sends it along, and over TLS it never leaves that."""
        cookie = self.sessions.open("lms", secure=False)
        self.assertRegex(cookie, r"^sessionid=[^;]+; HttpOnly; Max-Age=3600; Path=/; SameSite=Lax$")
        self.assertTrue(self.sessions.open("lms", secure=True).endswith("; Secure"))
        self.assertIn("Max-Age=0", self.sessions.close(secure=True))

    def test_expiry(self) -> None:
        """An hour later it is over, whatever the browser says."""
        value = self.value()
        self.now += 3599
        self.assertEqual(self.sessions.user_of(value), "lms")
        self.now += 1
        self.assertIsNone(self.sessions.user_of(value))

    def test_forged(self) -> None:
        """A later expiry, another user, another secret, a cut or changed signature: nobody."""
        expiry, user, signature = self.value().split(b".")
        for forged in (
            b".".join([b"9" * len(expiry), user, signature]),
            b".".join([expiry, base64.urlsafe_b64encode("größe".encode()), signature]),
            b".".join([expiry, user, signature[:-1]]),
            b".".join([expiry, user, b"0" * len(signature)]),
            b".".join([expiry, user, b""]),
            b".".join([expiry, user]),
            b".".join([expiry, b"%%%", signature]),
            b".".join([expiry, base64.urlsafe_b64encode(b"\xff"), signature]),
            b".".join([b"", user, signature]),
            self.value(sessions=self.make(secret="another")),
            self.value(sessions=self.make(secret=None)),
            b"",
            b"..",
            b"\xff.\xff.\xff",
            b"1" * 100_000,
            None,
        ):
            self.assertIsNone(self.sessions.user_of(forged), forged)

    def test_every_bit_counts(self) -> None:
        """A cookie with one changed character is nobody's."""
        value = self.value()
        for place in range(len(value)):
            changed = value[:place] + (b"1" if value[place : place + 1] != b"1" else b"2") + value[place + 1 :]
            self.assertIsNone(self.sessions.user_of(changed), place)

    def test_a_user_is_removed(self) -> None:
        """With the user goes the session."""
        value = self.value()
        del self.users["lms"]
        self.assertIsNone(self.sessions.user_of(value))

    def test_a_password_is_changed(self) -> None:
        """With the password goes the session that it opened."""
        value = self.value()
        self.users["lms"] = PasswordHash.read(quick_hash("another"))
        self.assertIsNone(self.sessions.user_of(value))

    def test_no_secret(self) -> None:
        """Without a configured secret, each process has one of its own."""
        sessions = self.make(secret=None)
        self.assertEqual(sessions.user_of(self.value(sessions=sessions)), "lms")
