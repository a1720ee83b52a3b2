"""Password hashes as ``[users]`` has them: ``scrypt$n$r$p$salt$key``, salt and key in hex.

scrypt is RFC 7914's; ``n``, ``r`` and ``p`` are its parameters for time and memory, so that they can grow some day.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re

from attrs import field, frozen

N, R, P = 1 << 14, 8, 1
"""16 MiB and some 50 ms a check."""

MOST_MEMORY = 256 * 1024 * 1024
"""Bytes that a check may take; a hash that asks for more isn't used."""

LONGEST_PASSWORD = 1024
"""Characters; of a longer one no more is hashed, and it is wrong."""

SALT_BYTES = 16
KEY_BYTES = 32

_hash = re.compile(r"scrypt\$([0-9]{1,8})\$([0-9]{1,4})\$([0-9]{1,4})\$([0-9a-f]{16,128})\$([0-9a-f]{32,128})")


@frozen(kw_only=True)
class PasswordHash:
    """What is kept of a password. ``str()`` is the text for a configuration."""

    n: int = N
    r: int = R
    p: int = P
    salt: bytes = field(repr=False)
    key: bytes = field(repr=False)

    @classmethod
    def of(cls, password: str) -> PasswordHash:
        """Hash a password; takes a while."""
        salt = os.urandom(SALT_BYTES)
        return cls(salt=salt, key=_derived(password, salt=salt, n=N, r=R, p=P, length=KEY_BYTES))

    @classmethod
    def read(cls, text: str) -> PasswordHash:
        """Read a hash.

        :raises ValueError: it is none; what it says isn't repeated.
        """
        match = _hash.fullmatch(text)
        if match is None:
            raise ValueError("expected a hash as edxagent password prints it")
        n, r, p = (int(number) for number in match.group(1, 2, 3))
        salt, key = match.group(4, 5)
        if n < 2 or n & (n - 1) or not r or not p or 128 * r * (n + p) > MOST_MEMORY or len(salt) % 2 or len(key) % 2:
            raise ValueError("expected a hash as edxagent password prints it: the numbers of this one can't be used")
        return cls(n=n, r=r, p=p, salt=bytes.fromhex(salt), key=bytes.fromhex(key))

    def matches(self, password: str) -> bool:
        """Whether it is this password's; takes as long for a wrong one as for the right one."""
        derived = _derived(password, salt=self.salt, n=self.n, r=self.r, p=self.p, length=len(self.key))
        return hmac.compare_digest(derived, self.key)

    def __str__(self) -> str:
        return f"scrypt${self.n}${self.r}${self.p}${self.salt.hex()}${self.key.hex()}"


def _derived(password: str, *, salt: bytes, n: int, r: int, p: int, length: int) -> bytes:
    memory = 128 * r * (n + p) + 1024 * 1024
    return hashlib.scrypt(password.encode(errors="replace"), salt=salt, n=n, r=r, p=p, maxmem=memory, dklen=length)
