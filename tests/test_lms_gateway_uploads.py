"""Tests for the folder that keeps learners' files."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import TestCase

from edxagent.errors import ConfigError
from edxagent.lms.contracts import Upload
from edxagent.lms.gateway.threads import Threads
from edxagent.lms.gateway.uploads import FolderStore, Stored, UploadsUnavailable
from tests.cli_process import until

LIFETIME = 1000.0


class StoreTestCase(TestCase):
    """A test with a store in a folder of its own."""

    timeout = 30.0

    def setUp(self) -> Deferred[None]:  # type: ignore[override]
        """Make it."""
        from twisted.internet import reactor

        self.now = 1_700_000_000.0
        self.folder = Path(self.mktemp()).absolute()
        self.threads = Threads(reactor, "test", 2)
        self.threads.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.threads.stop()))
        self.store = self.make()
        return Deferred.fromCoroutine(self.store.prepare())

    def make(self, folder: Path | None = None) -> FolderStore:
        """A store."""
        return FolderStore(
            str(folder or self.folder),
            url="https://grading.example.org/files/",
            lifetime=LIFETIME,
            threads=self.threads,
            wall_clock=lambda: self.now,
        )

    async def put(self, **files: bytes) -> Stored:
        """Store files, with dots for ``__``."""
        return await self.store.store([Upload(name=n.replace("__", "."), content=c) for n, c in files.items()])

    async def fetch(self, url: str) -> bytes | None:
        """What is at an address that the store gave."""
        token, name = url.removeprefix("https://grading.example.org/files/").split("/")
        file = await self.store.open(token, name)
        if file is None:
            return None
        with file.content:
            return file.content.read()

    def kept(self) -> list[str]:
        """What is in the folder."""
        # Not rglob: that fails if something is just being deleted.
        found = [Path(folder, name) for folder, folders, files in os.walk(self.folder) for name in (*folders, *files)]
        return sorted(str(path.relative_to(self.folder)) for path in found)


class KeepingTests(StoreTestCase):
    """Tests for what is stored and found again."""

    async def test_found_again(self) -> None:
        """A file is at its address, whole."""
        stored = await self.put(hello__py=b"print(1)", data__bin=bytes(range(256)))
        self.assertEqual(list(stored.urls), ["hello.py", "data.bin"])
        self.assertEqual(await self.fetch(stored.urls["hello.py"]), b"print(1)")
        self.assertEqual(await self.fetch(stored.urls["data.bin"]), bytes(range(256)))

    async def test_addresses_cannot_be_guessed(self) -> None:
        """The same file gets another long address each time."""
        urls = {(await self.put(a=b"1")).urls["a"] for _ in range(20)}
        self.assertEqual(len(urls), 20)
        for url in urls:
            self.assertRegex(url, r"^https://grading\.example\.org/files/1700001000-[0-9a-f]{48}/a$")

    async def test_for_nobody_else(self) -> None:
        """Other users of the machine can't read the files, nor see their names."""
        stored = await self.put(a=b"1")
        for path, mode in (
            (self.folder, 0o700),
            (self.folder / stored.token, 0o700),
            (self.folder / stored.token / "a", 0o600),
        ):
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), mode, path)

    async def test_tricks_with_names(self) -> None:
        """Whatever a file is called, it is kept under a plain name in its own folder, and found by the name it had."""
        names = [
            "../../etc/passwd", "/etc/passwd", "..", ".", "", "..\\..\\boot.ini", "a\0b.py", "a\r\nb",
            "x" * 5000 + ".py", "größe.txt", "日本", ".bashrc", "-rf", "con ", "a/b/c.py", "C:\\c.py",
            "%2e%2e%2fpasswd", "\u202egpj.exe",
        ]  # fmt: skip
        stored = await self.store.store([Upload(name=name, content=name.encode()) for name in names])
        self.assertEqual(list(stored.urls), names)
        for name, url in stored.urls.items():
            self.assertEqual(await self.fetch(url), name.encode(), repr(name))
        kept = list((self.folder / stored.token).iterdir())
        self.assertEqual(len(kept), len(names))
        for path in kept:
            self.assertRegex(path.name, r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$")
        self.assertEqual(len(self.kept()), len(names) + 1)

    async def test_discarded(self) -> None:
        """What is discarded is gone."""
        stored = await self.put(a=b"1")
        self.store.discard(stored)
        await until(lambda: not self.kept())

    async def test_cancelled(self) -> None:
        """Nothing stays of what was cancelled while it was written."""
        storing = Deferred.fromCoroutine(self.put(a=b"1" * 1_000_000))
        storing.cancel()
        await self.assertFailure(storing, CancelledError)
        await self.threads.run(lambda: None)
        await until(lambda: not self.kept())


class FetchingTests(StoreTestCase):
    """Tests for what can't be fetched."""

    async def test_expired(self) -> None:
        """An address stops working when its time is over, deleted or not."""
        url = (await self.put(a=b"1")).urls["a"]
        self.now += LIFETIME - 1
        self.assertEqual(await self.fetch(url), b"1")
        self.now += 1
        self.assertIsNone(await self.fetch(url))

    async def test_a_later_expiry(self) -> None:
        """Nobody makes an address last longer by changing it."""
        url = (await self.put(a=b"1")).urls["a"]
        self.assertIsNone(await self.fetch(url.replace("/1700001000-", "/1900001000-")))

    async def test_nothing_else(self) -> None:
        """Neither folders, nor links, nor pipes, nor what is beside the files."""
        stored = await self.put(a=b"1")
        folder = self.folder / stored.token
        (self.folder / "secret").write_bytes(b"x")
        (folder / "link").symlink_to(self.folder / "secret")
        (folder / "folder").mkdir()
        os.mkfifo(folder / "pipe")
        (self.folder / f"1700001000-{'0' * 48}").symlink_to(folder)
        for token, name in (
            (stored.token, "link"),
            (stored.token, "folder"),
            (stored.token, "pipe"),
            (stored.token, "b"),
            (stored.token, ""),
            (stored.token, "."),
            (stored.token, ".."),
            (stored.token, "../secret"),
            (stored.token, "a/"),
            (stored.token, "a\0"),
            (f"1700001000-{'0' * 48}", "a"),
            (".", "secret"),
            ("..", self.folder.name),
            ("", "secret"),
            (stored.token + "\n", "a"),
            (stored.token.upper(), "a"),
        ):
            self.assertIsNone(await self.store.open(token, name), (token, name))
        self.assertIsNotNone(file := await self.store.open(stored.token, "a"))
        assert file is not None
        file.content.close()


class CleaningTests(StoreTestCase):
    """Tests for what happens to old files."""

    async def test_too_old(self) -> None:
        """What is too old is deleted, what isn't stays, and what isn't ours is left alone."""
        old = await self.put(a=b"1")
        self.now += LIFETIME / 2
        young = await self.put(b=b"2")
        (self.folder / "notes").mkdir()
        (self.folder / "1-notes").write_bytes(b"")
        self.now += LIFETIME / 2
        await self.store.clean()
        self.assertEqual(self.kept(), sorted(["1-notes", young.token, f"{young.token}/b", "notes"]))
        self.assertNotIn(old.token, self.kept())

    async def test_no_link_is_followed(self) -> None:
        """A link that looks like a folder of ours doesn't lead to the deletion of what it points at."""
        elsewhere = Path(self.mktemp())
        elsewhere.mkdir()
        (elsewhere / "file").write_bytes(b"")
        (self.folder / f"1-{'0' * 48}").symlink_to(elsewhere.absolute())
        await self.store.clean()
        self.assertTrue((elsewhere / "file").exists())


class TroubleTests(StoreTestCase):
    """Tests for disks that don't do as they should."""

    async def test_the_folder_is_gone(self) -> None:
        """Without the folder nothing is stored, and cleaning is no failure that ends anything."""
        shutil.rmtree(self.folder)
        error = await self.assertFailure(Deferred.fromCoroutine(self.put(a=b"1")), UploadsUnavailable)
        self.assertIn(str(self.folder), str(error))
        await self.store.clean()

    async def test_no_room(self) -> None:
        """When the disk hasn't room for the files and some more, they aren't stored, and nothing stays."""
        free = shutil.disk_usage(self.folder).free
        huge = Upload(name="a", content=_Huge(free))
        error = await self.assertFailure(Deferred.fromCoroutine(self.store.store([huge])), UploadsUnavailable)
        self.assertIn("the disk is full", str(error))
        self.assertEqual(self.kept(), [])

    async def test_a_folder_that_cannot_be(self) -> None:
        """A folder beneath a file is a configuration that can't be used, in one line."""
        (self.folder / "file").write_bytes(b"")
        preparing = Deferred.fromCoroutine(self.make(self.folder / "file" / "uploads").prepare())
        error = await self.assertFailure(preparing, ConfigError)
        self.assertRegex(str(error), r"^\[gateway\] files_folder: .*/uploads can't be used: Not a directory$")


class _Huge(bytes):
    """Content that is said to have so many bytes."""

    size: int

    def __new__(cls, size: int) -> Any:
        self = super().__new__(cls)
        self.size = size
        return self

    def __len__(self) -> int:
        return self.size
