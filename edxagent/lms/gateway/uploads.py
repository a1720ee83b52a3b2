"""Where a submission's files are kept until a grader has fetched them: a folder, served under ``/files/``.

``FOLDER/EXPIRY-SECRET/NAME``: the folder in the middle is the token in the files' addresses. EXPIRY tells when it may
be deleted, in seconds since the epoch, so that nothing has to be remembered; SECRET is 192 random bits.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from edxagent.errors import ConfigError, EdxagentError
from edxagent.graders.attachments import safe_name
from edxagent.lms.contracts import Upload
from edxagent.lms.gateway.threads import Threads

RESERVE = 64 * 1024 * 1024
"""Bytes of the disk that are left for others."""

_token = re.compile(r"([0-9]{1,12})-[0-9a-f]{48}", re.ASCII)
_name = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", re.ASCII)


class UploadsUnavailable(EdxagentError):
    """Files can't be stored now: the disk is full, or worse. *Our fault: see to the disk; the learner may retry.*"""


@frozen(kw_only=True)
class Stored:
    """The files of one submission.

    :ivar urls: the LMS's name of each → where a grader finds it.
    :ivar token: names them to the store.
    """

    urls: Mapping[str, str] = field(repr=False)
    token: str = field(repr=False)


class IUploadStore(Protocol):
    """Keeps files for a while, at addresses that nobody guesses."""

    async def store(self, files: Sequence[Upload]) -> Stored:
        """Keep files. When it is cancelled, or fails, nothing stays.

        :raises UploadsUnavailable: not now.
        """

    def discard(self, stored: Stored) -> None:
        """Delete them, as soon as possible."""


@frozen(kw_only=True)
class StoredFile:
    """A file that was opened for reading; whoever has it closes it."""

    name: str
    size: int
    content: BinaryIO = field(repr=False)


class FolderStore:
    """See :class:`IUploadStore`.

    :param url: where ``/files/`` is for graders.
    :param lifetime: seconds.
    :param threads: for everything that meets the disk.
    :param wall_clock: seconds since the epoch.
    """

    _log = Logger()

    def __init__(
        self, folder: str, *, url: str, lifetime: float, threads: Threads, wall_clock: Callable[[], float]
    ) -> None:
        self._folder = Path(folder)
        self._former: list[Path] = []
        self._url = url.rstrip("/")
        self._lifetime = lifetime
        self._threads = threads
        self._wall_clock = wall_clock

    async def prepare(self) -> None:
        """See to the folder.

        :raises ConfigError: it can't be used.
        """
        try:
            await self._threads.run(self._prepare)
        except OSError as error:
            raise ConfigError([f"[gateway] files_folder: {self._folder} can't be used: {error.strerror}"]) from None

    def take_over(self, former: FolderStore) -> None:
        """Go on for another store: what is in its folders can be fetched here, and gets too old here."""
        folders = dict.fromkeys((former._folder, *former._former))
        self._former = [folder for folder in folders if folder != self._folder]

    async def clean(self) -> None:
        """Delete what is too old."""
        for folder in (self._folder, *self._former):
            try:
                count = await self._threads.run(_clean, folder, self._wall_clock())
            except OSError as error:
                self._log.error("old uploads in {folder} can't be deleted: {reason}", folder=folder, reason=str(error))
            else:
                if count:
                    self._log.info("the files of {count} submissions were too old, and deleted", count=count)

    async def store(self, files: Sequence[Upload]) -> Stored:
        """See :meth:`IUploadStore.store`."""
        token = f"{int(self._wall_clock() + self._lifetime)}-{secrets.token_hex(24)}"
        names: dict[str, str] = {}
        for upload in files:
            names[upload.name] = safe_name(upload.name, names.values())
        stored = Stored(token=token, urls={name: f"{self._url}/{token}/{kept}" for name, kept in names.items()})
        writing = self._threads.run(self._write, token, [(names[upload.name], upload.content) for upload in files])
        try:
            await _shielded(writing)
        except BaseException as error:
            writing.addCallback(lambda _: self.discard(stored))
            if isinstance(error, OSError):
                raise UploadsUnavailable(f"{self._folder}: {error.strerror or error}") from None
            raise
        return stored

    def discard(self, stored: Stored) -> None:
        """See :meth:`IUploadStore.discard`."""
        removing = self._threads.run(shutil.rmtree, self._folder / stored.token, True)
        removing.addErrback(lambda failure: self._log.failure("uploads can't be deleted", failure))

    async def open(self, token: str, name: str) -> StoredFile | None:
        """A file, or ``None`` if there is none of that address, or none any more."""
        match = _token.fullmatch(token)
        if match is None or not _name.fullmatch(name) or int(match[1]) <= self._wall_clock():
            return None
        for folder in (self._folder, *self._former):
            try:
                return await self._threads.run(_open, folder / token, name)
            except OSError:
                continue
        return None

    # In threads

    def _prepare(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = self._folder / f"0-{secrets.token_hex(24)}"
        probe.mkdir(mode=0o700)
        probe.rmdir()

    def _write(self, token: str, files: Sequence[tuple[str, bytes]]) -> None:
        size = sum(len(content) for _, content in files)
        if shutil.disk_usage(self._folder).free < size + RESERVE:
            raise OSError("the disk is full")
        folder = self._folder / token
        folder.mkdir(mode=0o700)
        for name, content in files:
            new = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(new, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(new)
        _sync(folder)
        _sync(self._folder)


def _open(place: Path, name: str) -> StoredFile | None:
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # Without waiting: opening a pipe would.
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    state = os.fstat(file)
    if not stat.S_ISREG(state.st_mode):
        os.close(file)
        return None
    return StoredFile(name=name, size=state.st_size, content=open(file, "rb"))


def _clean(folder: Path, now: float) -> int:
    count = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            match = _token.fullmatch(entry.name)
            if match and int(match[1]) <= now and entry.is_dir(follow_symlinks=False):
                with suppress(OSError):
                    shutil.rmtree(entry.path)
                    count += 1
    return count


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _shielded(work: Deferred[None]) -> Deferred[None]:
    """Fires as ``work`` does; cancelling leaves ``work`` alone, which from then on only tells when it has ended."""
    outer: Deferred[None] = Deferred()
    work.addBoth(outer.callback)
    return outer
