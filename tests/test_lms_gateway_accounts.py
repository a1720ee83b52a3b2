"""Tests for passwords, and for who may try how often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from edxagent.errors import ConfigError
from edxagent.lms.gateway.accounts import (
    CHECKS_AT_ONCE,
    MINUTE,
    MOST_ADDRESSES,
    MOST_WAITING_OF_ONE,
    REMEMBERED,
    Accounts,
    Failures,
    TooManyLogins,
    read_users,
)
from edxagent.lms.gateway.passwords import LONGEST_PASSWORD, PasswordHash
from tests.gateway_support import quick_hash

HERE, THERE = "192.0.2.1", "2001:db8::7"


class PasswordHashTests(SynchronousTestCase):
    """Tests for :class:`PasswordHash`."""

    def test_its_own_password(self) -> None:
        """A hash, written down and read again, knows its password and no other."""
        kept = PasswordHash.read(str(PasswordHash.of("pâss wörd")))
        self.assertTrue(kept.matches("pâss wörd"))
        for other in ("", "pâss wör", "pâss wördx", "PÂSS WÖRD"):
            self.assertFalse(kept.matches(other))

    def test_salted(self) -> None:
        """The same password has another hash each time."""
        self.assertNotEqual(str(PasswordHash.of("x")), str(PasswordHash.of("x")))

    def test_its_format(self) -> None:
        """The parameters of scrypt can be read off it."""
        self.assertRegex(str(PasswordHash.of("x")), r"^scrypt\$16384\$8\$1\$[0-9a-f]{32}\$[0-9a-f]{64}$")

    def test_hidden(self) -> None:
        """Its repr shows neither salt nor key."""
        self.assertEqual(repr(PasswordHash(salt=b"s", key=b"k")), "PasswordHash(n=16384, r=8, p=1)")

    def test_no_hash(self) -> None:
        """What is no hash, or asks for more memory than there is, is refused without being repeated."""
        good = quick_hash("x")
        for text in (
            "",
            "secret",
            good[:-1],
            good.upper(),
            good.replace("$2$", "$3$"),
            good.replace("$2$", "$0$"),
            good.replace("$2$1$", "$67108864$1$"),
            good.replace("$2$1$1$", "$2$1$0$"),
            f"{good}\n",
        ):
            with self.assertRaises(ValueError, msg=text) as caught:
                PasswordHash.read(text)
            self.assertIn("edxagent password", str(caught.exception))
            self.assertNotIn("secret", str(caught.exception))


class FailuresTests(SynchronousTestCase):
    """Tests for :class:`Failures`."""

    def setUp(self) -> None:
        """Three a minute."""
        self.clock = Clock()
        self.failures = Failures(3, self.clock)

    def test_too_often(self) -> None:
        """After three failures an address waits until the first of them is a minute ago."""
        for _ in range(3):
            self.failures.check(HERE)
            self.failures.count(HERE)
            self.clock.advance(1)
        with self.assertRaises(TooManyLogins) as caught:
            self.failures.check(HERE)
        self.assertEqual(caught.exception.retry_after, MINUTE - 3)
        self.failures.check(THERE)
        self.clock.advance(MINUTE - 3)
        self.failures.check(HERE)

    def test_bounded(self) -> None:
        """A flood from everywhere is forgotten from its beginning on."""
        for number in range(MOST_ADDRESSES + 10):
            for _ in range(3):
                self.failures.count(str(number))
        self.assertEqual(len(self.failures._times), MOST_ADDRESSES)
        self.failures.check("0")
        with self.assertRaises(TooManyLogins):
            self.failures.check(str(MOST_ADDRESSES))


class ManualThreads:
    """Threads that run what they are given when a test says so."""

    def __init__(self) -> None:
        self.given: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def run(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """See :class:`Threads`."""
        self.given.append((Deferred(), function, args))
        return self.given[-1][0]

    def finish(self) -> int:
        """Run everything, and what comes of it; returns how much that was."""
        count = 0
        while self.given:
            deferred, function, args = self.given.pop(0)
            deferred.callback(function(*args))
            count += 1
        return count


class AccountsTests(SynchronousTestCase):
    """Tests for :class:`Accounts`."""

    def setUp(self) -> None:
        """One user, three failures a minute."""
        self.clock = Clock()
        self.threads: Any = ManualThreads()
        users = {"lms": quick_hash("right")}
        self.accounts = Accounts(users, login_failures=3, threads=self.threads, clock=self.clock)

    def check(self, name: str = "lms", password: str = "right", address: str = HERE) -> Deferred[bool]:
        """Begin to check."""
        return Deferred.fromCoroutine(self.accounts.check(name, password, address))

    def outcomes(self, checks: list[Deferred[bool]]) -> list[object]:
        """What came of them: true, false or ``busy``."""
        found: list[Any] = []
        for check in checks:
            check.addErrback(lambda failure: failure.trap(TooManyLogins) and "busy").addCallback(found.append)
        return found

    def test_right_and_wrong(self) -> None:
        """A user gets in with the password, and nobody else does."""
        for name, password, outcome in (
            ("lms", "right", True),
            ("lms", "wrong", False),
            ("lms ", "right", False),
            ("", "", False),
        ):
            check = self.check(name, password)
            self.assertEqual(self.threads.finish(), 1)
            self.assertIs(self.successResultOf(check), outcome)

    def test_unknown_users_take_as_long(self) -> None:
        """The same is computed for a user that there isn't."""
        self.check("nobody", "right")
        self.check("lms", "right")
        (_, unknown, _), (_, known, _) = self.threads.given
        self.assertEqual(unknown, known)

    def test_a_long_password(self) -> None:
        """A password of a megabyte is wrong, and isn't hashed as a whole."""
        check = self.check(password="right" + " " * 1_000_000)
        self.assertLess(len(self.threads.given[0][2][0]), 2000)
        self.threads.finish()
        self.assertIs(self.successResultOf(check), False)

    def test_the_longest_password(self) -> None:
        """One of the greatest length is right; with anything behind it, it isn't."""
        longest = "x" * LONGEST_PASSWORD
        self.accounts.use(read_users({"lms": quick_hash(longest)}), 3)
        for password, right in ((longest, True), (f"{longest}x", False)):
            check = self.check(password=password)
            self.threads.finish()
            self.assertIs(self.successResultOf(check), right)

    def test_ten_thousand_at_once(self) -> None:
        """Of 10,000 tries at the same moment a few are looked at; another address is let in right after them."""
        tries = [self.check(password=f"guess {number}") for number in range(10_000)]
        other = self.check(address=THERE)
        self.assertLessEqual(self.threads.finish(), 3 + CHECKS_AT_ONCE + 1)
        found = self.outcomes(tries)
        self.assertEqual(len(found), 10_000)
        self.assertEqual(set(found), {False, "busy"})
        self.assertLessEqual(found.count(False), 3 + CHECKS_AT_ONCE)
        self.assertIs(self.successResultOf(other), True)

    def test_ten_thousand_in_a_row(self) -> None:
        """Of 10,000 tries one after the other three are looked at, until a minute is over."""
        found = []
        for number in range(10_000):
            check = self.check(password=f"guess {number}")
            self.threads.finish()
            found += self.outcomes([check])
        self.assertEqual(found.count(False), 3)
        self.assertEqual(self.outcomes([self.check()]), ["busy"])
        self.clock.advance(MINUTE)
        check = self.check()
        self.threads.finish()
        self.assertIs(self.successResultOf(check), True)

    def test_a_whole_lms_at_once(self) -> None:
        """A hundred processes of an LMS that log in at the same moment cost one check, and all get in."""
        checks = [self.check() for _ in range(100)]
        self.assertEqual(self.threads.finish(), 1)
        self.assertEqual(self.outcomes(checks), [True] * 100)

    def test_an_lms_that_logs_in_each_time(self) -> None:
        """An LMS logs in for every submission: a login that was right lately is right without being checked."""
        self.assertEqual(self.outcomes([self.check()]), [])
        self.threads.finish()
        self.assertIs(self.successResultOf(self.check()), True)
        self.clock.advance(REMEMBERED - 1)
        self.assertIs(self.successResultOf(self.check(address=THERE)), True)
        self.clock.advance(1)
        self.assertNoResult(self.check())
        self.assertEqual(self.threads.finish(), 1)

    def test_others_failures(self) -> None:
        """Who fails at the LMS's own address, as behind one proxy, doesn't keep the LMS out."""
        self.check()
        self.threads.finish()
        for number in range(4):
            self.outcomes([self.check(password=str(number))])
            self.threads.finish()
        self.assertEqual(self.outcomes([self.check(password="x")]), ["busy"])
        self.assertIs(self.successResultOf(self.check()), True)

    def test_many_addresses_of_one_guesser(self) -> None:
        """Whoever has an IPv6 address has all of its /64, and gets no more tries for it; a neighbour gets theirs."""
        found = []
        for number in range(1000):
            check = self.check(password=str(number), address=f"2001:db8:0:1::{number:x}")
            self.threads.finish()
            found += self.outcomes([check])
        self.assertEqual(found.count(False), 3)
        for number in range(100):
            self.outcomes([self.check(password=str(number), address=f"fe80::{number:x}%eth0")])
        self.assertEqual(len(self.accounts._checks), MOST_WAITING_OF_ONE)
        self.threads.finish()
        for neighbour in ("2001:db8:0:2::1", "::ffff:192.0.2.1", "::ffff:192.0.2.2"):
            check = self.check(password="x", address=neighbour)
            self.threads.finish()
            self.assertIs(self.successResultOf(check), False, neighbour)

    def test_failures_are_not_remembered(self) -> None:
        """A wrong password is looked at anew, so that it counts."""
        for _ in range(2):
            self.check(password="wrong")
            self.assertEqual(self.threads.finish(), 1)

    def test_many_passwords_of_one_address(self) -> None:
        """An address can't fill the queue for the others."""
        for number in range(100):
            self.check(password=str(number)).addErrback(lambda failure: failure.trap(TooManyLogins))
        self.assertEqual(len(self.accounts._checks), MOST_WAITING_OF_ONE)
        self.threads.finish()

    def test_nothing_is_kept(self) -> None:
        """When checks are over, nothing is left of them."""
        checks = [self.check(password=str(number)) for number in range(5)]
        self.threads.finish()
        self.outcomes(checks)
        self.assertEqual((self.accounts._checks, len(self.accounts._queue)), ({}, 0))

    def test_bad_hashes(self) -> None:
        """All users whose hash is none are named at once."""
        with self.assertRaises(ConfigError) as caught:
            Accounts(
                {"a": "x", "b": quick_hash("b"), "c": ""}, login_failures=3, threads=self.threads, clock=self.clock
            )
        self.assertEqual([line.partition(":")[0] for line in caught.exception.problems], ["[users] a", "[users] c"])
