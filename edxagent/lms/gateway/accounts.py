"""Who may log in: passwords checked in threads, a bounded number at once, and not often wrong from one address.

An LMS logs in for each submission, so one that was right lately isn't computed again.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
from collections import OrderedDict, deque
from collections.abc import Mapping
from ipaddress import IPv6Address, IPv6Network

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from edxagent.errors import ConfigError, EdxagentError
from edxagent.lms.gateway.passwords import LONGEST_PASSWORD, PasswordHash
from edxagent.lms.gateway.threads import Threads

MINUTE = 60.0
MOST_ADDRESSES = 10_000
"""Addresses whose failures are remembered; beyond that, the one that failed longest ago is forgotten."""

CHECKS_AT_ONCE = 2
MOST_WAITING = 256
MOST_WAITING_OF_ONE = 8
"""Checks that wait for their turn: of all addresses together, and of one, so that nobody keeps the others out."""

REMEMBERED = 600.0
"""Seconds for which a login that was right needs no other check."""

BUSY_PAUSE = 1.0


class TooManyLogins(EdxagentError):
    """No password is looked at for now. *Try again after* ``retry_after`` *seconds.*"""

    def __init__(self, retry_after: float) -> None:
        self.retry_after = math.ceil(retry_after)
        super().__init__(f"Too many failed logins; try again in {self.retry_after} s")


class Failures:
    """Failed logins of the last minute, by address.

    :param most: of one address; after that many it has to wait.
    """

    def __init__(self, most: int, clock: IReactorTime) -> None:
        self.most = most
        self._clock = clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def check(self, address: str) -> None:
        """:raises TooManyLogins: that address has failed too often."""
        times = self._times.get(address)
        if times is not None and len(times) == self.most:
            wait = times[0] + MINUTE - self._clock.seconds()
            if wait > 0:
                raise TooManyLogins(wait)

    def count(self, address: str) -> None:
        """It has failed."""
        self._times.setdefault(address, deque(maxlen=self.most)).append(self._clock.seconds())
        self._times.move_to_end(address)
        if len(self._times) > MOST_ADDRESSES:
            self._times.popitem(last=False)


@define(eq=False)
class _Check:
    """A password and who waits to hear whether it is right: an LMS's processes all log in at the same moment."""

    address: str
    hash: PasswordHash
    password: str = field(repr=False)
    waiters: list[Deferred[bool]] = field(factory=list)


class Accounts:
    """The users of ``[users]``.

    :param users: name → hash.
    :param threads: where hashes are computed.
    :raises ConfigError: a hash is none.
    """

    def __init__(self, users: Mapping[str, str], *, login_failures: int, threads: Threads, clock: IReactorTime) -> None:
        self._threads = threads
        self._secret = os.urandom(32)
        self._checks: dict[tuple[str, bytes], _Check] = {}
        self._queue: deque[tuple[str, bytes]] = deque()
        self._clock = clock
        self._right_until: dict[bytes, float] = {}
        self._running = 0
        self._users: dict[str, PasswordHash] = {}
        # An unknown user's password is checked against this one, so that time doesn't tell who is known.
        self._nobody = PasswordHash(salt=b"", key=os.urandom(32))
        self._failures = Failures(login_failures, clock)
        self.use(read_users(users), login_failures)

    def use(self, users: dict[str, PasswordHash], login_failures: int) -> None:
        """Let other users in from now on. Who failed lately isn't forgotten, unless failures count otherwise now."""
        if users != self._users:
            self._users = users
            self._nobody = next(iter(users.values()), self._nobody)
            self._right_until.clear()
        if login_failures != self._failures.most:
            self._failures = Failures(login_failures, self._clock)

    def known(self, name: str) -> PasswordHash | None:
        """The hash of a user, or ``None`` if there is none of that name."""
        return self._users.get(name)

    async def check(self, name: str, password: str, address: str) -> bool:
        """Whether somebody at ``address`` may log in as ``name``.

        :raises TooManyLogins: that address, or all of them together, try too often.
        """
        address = household(address)
        expected = self._users.get(name)
        login = hmac.digest(self._secret, f"{name}\0{password}\0{expected}".encode(errors="replace"), hashlib.sha256)
        if self._right_until.get(login, 0.0) > self._clock.seconds():
            return True
        self._failures.check(address)
        right = await self._checked(login, name, password[:LONGEST_PASSWORD], address)
        # Who began to log in with a password that was replaced meanwhile isn't let in.
        right = right and expected is not None and expected == self._users.get(name)
        right = right and len(password) <= LONGEST_PASSWORD
        if right:  # there are no more of these than users
            self._right_until[login] = self._clock.seconds() + REMEMBERED
        else:
            self._failures.count(address)
        return right

    def _checked(self, login: bytes, name: str, password: str, address: str) -> Deferred[bool]:
        key = (address, login)
        check = self._checks.get(key)
        if check is None:
            if len(self._checks) >= MOST_WAITING or self._waiting_of(address) >= MOST_WAITING_OF_ONE:
                raise TooManyLogins(BUSY_PAUSE)
            check = self._checks[key] = _Check(address, self._users.get(name, self._nobody), password)
            self._queue.append(key)
        waiter: Deferred[bool] = Deferred()
        check.waiters.append(waiter)
        self._go_on()
        return waiter

    def _waiting_of(self, address: str) -> int:
        return sum(check.address == address for check in self._checks.values())

    def _go_on(self) -> None:
        while self._queue and self._running < CHECKS_AT_ONCE:
            key = self._queue.popleft()
            check = self._checks[key]
            try:
                self._failures.check(check.address)  # those before it may have failed by now
            except TooManyLogins as error:
                self._end(key, Failure(error))
                continue
            self._running += 1
            self._threads.run(check.hash.matches, check.password).addBoth(self._done, key)

    def _done(self, result: bool | Failure, key: tuple[str, bytes]) -> None:
        self._running -= 1
        self._end(key, result)
        self._go_on()

    def _end(self, key: tuple[str, bytes], result: bool | Failure) -> None:
        for waiter in self._checks.pop(key).waiters:
            waiter.callback(result)


def household(address: str) -> str:
    """Whose tries count together: whoever has an IPv6 address has at least a /64 of them (RFC 6177)."""
    try:
        parsed = IPv6Address(address)
    except ValueError:
        return address
    return str(parsed.ipv4_mapped or IPv6Network((int(parsed), 64), strict=False))


def read_users(users: Mapping[str, str]) -> dict[str, PasswordHash]:
    """The hashes of users.

    :raises ConfigError: one is none.
    """
    hashes, problems = {}, []
    for name, text in users.items():
        try:
            hashes[name] = PasswordHash.read(text)
        except ValueError as error:
            problems.append(f"[users] {name}: {error}")
    if problems:
        raise ConfigError(problems)
    return hashes
