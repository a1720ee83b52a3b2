"""Tests for the programs that a command starts, with real ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import TestCase

from edxagent.cli.children import Child, ChildDied, Children
from edxagent.errors import BrokerUnreachable

FOR_EVER = "while :; do sleep 0.05; done"


class ChildrenTests(TestCase):
    """Tests for :class:`Children` and :class:`Child`."""

    timeout = 30.0

    def setUp(self) -> None:
        """Choose a folder."""
        from twisted.internet import reactor

        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.children = Children(reactor, self.folder)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.children.stop()))

    def start(self, script: str, *, ends: bool = False) -> Child:
        """Start a shell script."""
        return self.children.start("Some program", ["/bin/sh", "-c", script], os.environ, ends=ends)

    async def never(self) -> None:
        """Work that doesn't come to an end."""
        await Deferred()

    async def died(self, work: Any = None) -> str:
        """The message about a child's death during some work."""
        error = await self.assertFailure(Deferred.fromCoroutine(self.children.guard(work or self.never())), ChildDied)
        return str(error)

    async def test_says(self) -> None:
        """What follows some words in a line of either output is heard, by all who wait for it; all goes into a log."""
        child = self.start(f"echo ten; echo 12:00 at port 8080 >&2; {FOR_EVER}")
        self.assertEqual(await child.says("at port "), "8080")
        heard = [child.says("12:00 "), child.says("te")]
        child.childDataReceived(1, b"te")
        child.childDataReceived(2, b"12:00 no")
        child.childDataReceived(1, b"n\n")
        child.childDataReceived(2, b"on\n")
        self.assertEqual([await words for words in heard], ["noon", "n"])
        self.assertEqual(child.log, self.folder / "some-program.log")
        self.assertIn("12:00 at port 8080\n", child.log.read_text())

    async def test_ends_as_it_should(self) -> None:
        """One that is expected to end gives its exit status, as often as it is asked; the work goes on."""

        async def work() -> list[int]:
            child = self.start("exit 3", ends=True)
            return [await child.ended(), await child.ended()]

        self.assertEqual(await self.children.guard(work()), [3, 3])

    async def test_ends_unexpectedly(self) -> None:
        """One that isn't expected to end cancels the work, and its last words are told."""
        self.start("echo alas; exit 3")
        self.assertEqual(await self.died(), "the Some program ended with status 3; its last words were:\n  alas")

    async def test_killed(self) -> None:
        """A signal is no end that was expected, also where an end was."""

        async def work() -> None:
            await self.start("echo alas; kill -9 $$", ends=True).ended()
            await self.never()

        self.assertIn("the Some program ended with signal 9; its last words were:\n  alas", await self.died(work()))

    async def test_fail(self) -> None:
        """Somebody else can end the work too, with their reason; the first one counts."""
        working = Deferred.fromCoroutine(self.children.guard(self.never()))
        self.children.fail(BrokerUnreachable("gone"))
        self.children.fail(BrokerUnreachable("gone, too"))
        error = await self.assertFailure(working, BrokerUnreachable)
        self.assertEqual(str(error), "gone")

    async def test_cancelled(self) -> None:
        """Work that waits for a child's end or words can be cancelled; the child is stopped all the same."""
        child = self.start(FOR_EVER)

        async def work() -> None:
            await child.ended()

        working = Deferred.fromCoroutine(self.children.guard(work()))
        working.cancel()
        await self.assertFailure(working, CancelledError)
        await self.children.stop()
        self.assertEqual(await child.ended(), -15)
