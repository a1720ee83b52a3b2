"""Working folders: one a submission, fresh and private; gone afterwards, whatever a program left in it."""

from __future__ import annotations

import fcntl
import itertools
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress

PREFIX = "run-"
PATIENCE = 60.0
"""Seconds after which the removal of a folder is given up, so that a surviving program can't keep it busy for ever."""


def default_base() -> str:
    """Where working folders go unless the configuration says otherwise."""
    return os.path.join(tempfile.gettempdir(), f"edxagent-{os.geteuid()}")


class Workspace:
    """The folders of one running agent: ``base/run-…/1``, ``base/run-…/2`` ….

    Several agents may share ``base``. Each keeps its ``run-…`` locked as long as it lives, so that the next one can
    tell what a dead one left behind. Calls block, shortly; :func:`remove_tree` may take long and belongs into a thread.
    """

    def __init__(self, base: str) -> None:
        self.base = os.path.abspath(base)
        self._run = ""
        self._lock = -1
        self._serial = itertools.count(1)

    def open(self) -> None:
        """Make and lock the folder of this agent, unless that was done.

        :raises OSError: it can't be made, or ``base`` isn't ours alone.
        """
        if self._lock >= 0:
            return
        os.makedirs(self.base, mode=0o700, exist_ok=True)
        info = os.lstat(self.base)
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
            raise PermissionError(1, "it must be a folder of the agent's user that nobody else may write to", self.base)
        while self._lock < 0:
            run = tempfile.mkdtemp(prefix=PREFIX, dir=self.base)
            lock = _try_lock(run)
            if lock is not None:  # else an agent that looked for leftovers was faster
                self._run, self._lock = run, lock

    def make(self) -> str:
        """A fresh, empty folder that only our user may enter.

        :raises OSError: it can't be made.
        """
        self.open()
        folder = f"{self._run}/{next(self._serial)}"
        os.mkdir(folder, 0o700)
        return folder

    def leftovers(self) -> Iterator[str]:
        """The folders of agents that live no more; each is ours while the caller works on it."""
        for name in os.listdir(self.base):
            path = f"{self.base}/{name}"
            if name.startswith(PREFIX) and path != self._run and (lock := _try_lock(path)) is not None:
                try:
                    yield path
                finally:
                    os.close(lock)

    def close(self) -> None:
        """Let go; what is left in our folder is a leftover from now on."""
        if self._lock >= 0:
            with suppress(OSError):
                os.rmdir(self._run)
            os.close(self._lock)
            self._lock = -1


def _try_lock(path: str) -> int | None:
    """A descriptor that holds the lock on a folder; ``None`` if somebody else holds it or the folder is gone."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.lstat(path)):
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def remove_tree(top: str, patience: float = PATIENCE) -> None:
    """Remove a folder and all in it. Follows no symbolic link, and no depth of nesting is too much.

    Every folder within is first moved next to ``top``; so paths stay short, no stack grows, one descriptor is enough.

    :param patience: seconds.
    :raises OSError: something can't be removed, or ``patience`` was over; what is left stays.
    """
    give_up_at = time.monotonic() + patience
    aside = (f"{top}.{secrets.token_hex(4)}-{number}" for number in itertools.count())
    pending = [top]
    while pending:
        folder = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if time.monotonic() > give_up_at:
                    raise TimeoutError(f"removing {top} takes longer than {patience:g} s")
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.path, 0o700)  # one that we may not write to can be neither moved nor emptied
                    moved = next(aside)
                    os.rename(entry.path, moved)
                    pending.append(moved)
                else:
                    os.unlink(entry.path)
        os.rmdir(folder)
