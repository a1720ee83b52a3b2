"""Which submissions are being graded, written down where it outlives this process.

Each process has a file of its own in a folder, locked for as long as it lives, of fixed slots: one for each submission
that it is grading. Whoever comes next reads what stands in the files that nobody has locked any more: their processes
died of it, or with it. Nothing is synced to the disk, for a machine that dies loses no more than evidence.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from zlib import crc32

from edxagent.agent.deaths import MODE, Deaths, key_of, read_deaths, updated, write_deaths

SLOT = 512
MOST_SLOTS = 10_000
MOST_FILES = 1000

_EMPTY = b"\n".ljust(SLOT)
_NUMBER = re.compile(r"[1-9][0-9]{0,2}", re.ASCII)


class Journal:
    """The file of this process.

    :param slots: room for so many is there from the start; more is made when it is needed.
    :raises OSError: there is such a file, or it can't be made or locked.
    """

    def __init__(self, path: str, slots: int) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, MODE)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            os.unlink(path)
            raise
        with suppress(OSError):  # each write will say so itself
            os.posix_fallocate(self._file, 0, slots * SLOT)
        self._slots = slots
        self._free = list(reversed(range(slots)))

    def begin(self, key: str) -> int:
        """Write down that ``key``, which :func:`~edxagent.agent.deaths.key_of` made, is being graded; returns its slot.

        :raises OSError: it can't be written down.
        """
        if not self._free:
            self._free.append(self._slots)
            self._slots += 1
        data = key.encode()
        self._write(self._free[-1], (b"%08x %b\n" % (crc32(data), data)).ljust(SLOT))
        return self._free.pop()

    def end(self, slot: int) -> None:
        """Strike it out.

        :raises OSError: it still stands there, until the next one is written in its place.
        """
        self._free.append(slot)
        self._write(slot, _EMPTY)

    def close(self) -> None:
        """Strike out all that stands there, and let go of the file.

        :raises OSError: it couldn't be struck out.
        """
        try:
            os.ftruncate(self._file, 0)
        finally:
            os.close(self._file)

    def _write(self, slot: int, data: bytes) -> None:
        if os.pwrite(self._file, data, slot * SLOT) != SLOT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class JournalFolder:
    """The folder that the agents of a machine share. All methods block: call them in a thread.

    :param patience: seconds to wait for others that open or update it at the same time.
    """

    def __init__(self, path: str, patience: float = 5.0) -> None:
        self.path = os.path.abspath(path)
        self._patience = patience
        self._deaths = os.path.join(self.path, "deaths")

    def open(self, slots: int) -> tuple[Journal, list[str]]:
        """Take a file, and collect what others were grading when they died, once for each that died of it.

        :raises OSError: the folder can't be made, read or written.
        """
        os.makedirs(self.path, 0o700, exist_ok=True)
        with self._locked():
            died: list[str] = []
            left: set[int] = set()
            for number in sorted(int(name) for name in os.listdir(self.path) if _NUMBER.fullmatch(name)):
                path = self._file(number)
                found = _read_abandoned(path)
                if found is None:
                    left.add(number)
                else:
                    os.unlink(path)
                    died += found
            free = min(set(range(1, MOST_FILES)) - left, default=MOST_FILES)
            return Journal(self._file(free), slots), died

    def update(self, died: Iterable[str], ended: Iterable[str], now: float) -> dict[str, Deaths]:
        """Write down what agents died of, and what has ended; returns what is known then.

        :param now: seconds since the epoch.
        :raises OSError: it can't be written down; nothing has changed.
        """
        with self._locked():
            before = read_deaths(self._deaths)
            deaths = updated(before, died=died, ended=ended, now=now)
            if deaths != before:
                write_deaths(self._deaths, deaths)
            return deaths

    def _file(self, number: int) -> str:
        return os.path.join(self.path, str(number))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        file = os.open(os.path.join(self.path, "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, MODE)
        try:
            deadline = time.monotonic() + self._patience
            while not _lock(file):
                if time.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, f"another process has kept its lock for {self._patience:g} s")
                time.sleep(0.02)
            yield
        finally:
            os.close(file)


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_abandoned(path: str) -> set[str] | None:
    """What stands in a process's file; ``None`` if the process lives, or it isn't for us to read."""
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode) or not _lock(file):
            return None
        data = os.pread(file, MOST_SLOTS * SLOT, 0)
    finally:
        os.close(file)
    keys = (_key_in(data[at : at + SLOT]) for at in range(0, len(data), SLOT))
    return {key for key in keys if key is not None}


def _key_in(slot: bytes) -> str | None:
    line, end, _ = slot.partition(b"\n")
    checksum, _, data = line.partition(b" ")
    if not end or checksum != b"%08x" % crc32(data):
        return None
    key = data.decode("utf-8", "replace")
    return key if key_of(key) == key else None
