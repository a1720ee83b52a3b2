"""Who is logged in: a signed cookie says so, and nothing is kept here.

``EXPIRY.USER.SIGNATURE``: seconds since the epoch, the name in base64, and an HMAC-SHA-256 over both and the user's
password hash, so that a session ends with its time, with its user, and with the password that it was opened with.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from binascii import Error as NoBase64
from collections.abc import Callable

from edxagent.lms.gateway.passwords import PasswordHash

COOKIE = "sessionid"
"""Its name, as Django's."""

LONGEST = 1024


class Sessions:
    """Opens sessions and knows them again.

    :param secret: signs them; ``None`` = one of our own, so that they end with this process.
    :param lifetime: seconds.
    :param known: name → the user's password hash, or ``None`` where there is no such user (any more).
    :param wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        secret: str | None,
        lifetime: float,
        known: Callable[[str], PasswordHash | None],
        wall_clock: Callable[[], float],
    ) -> None:
        self._secret = os.urandom(32) if secret is None else secret.encode()
        self._lifetime = lifetime
        self._known = known
        self._wall_clock = wall_clock

    def open(self, user: str, *, secure: bool) -> str:
        """The ``Set-Cookie`` for somebody who has just logged in.

        :param secure: whether the browser is to send it over TLS only.
        """
        expiry = str(int(self._wall_clock() + self._lifetime))
        name = base64.urlsafe_b64encode(user.encode()).decode()
        value = f"{expiry}.{name}.{self._signature(expiry, user)}"
        return f"{COOKIE}={value}; HttpOnly; Max-Age={int(self._lifetime)}; {_attributes(secure)}"

    @staticmethod
    def close(*, secure: bool) -> str:
        """The ``Set-Cookie`` for somebody who logs out."""
        return f"{COOKIE}=; Max-Age=0; {_attributes(secure)}"

    def user_of(self, cookie: bytes | None) -> str | None:
        """Whose session the cookie's value is, if it is one and isn't over."""
        if cookie is None or len(cookie) > LONGEST:
            return None
        try:
            expiry, name, signature = cookie.decode("ascii").strip('"').split(".")
            user = base64.urlsafe_b64decode(name).decode()
        except (ValueError, NoBase64):
            return None
        if self._known(user) is None or not hmac.compare_digest(signature, self._signature(expiry, user)):
            return None
        return user if self._wall_clock() < int(expiry) else None

    def _signature(self, expiry: str, user: str) -> str:
        signed = f"edxagent session.{expiry}.{user}.{self._known(user)}"
        return hmac.new(self._secret, signed.encode(), hashlib.sha256).hexdigest()


def _attributes(secure: bool) -> str:
    return "Path=/; SameSite=Lax" + ("; Secure" if secure else "")
