"""The last good answer of the LMS side, in a file that only we may read: it holds the broker's passwords."""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from hashlib import sha256

import msgspec

from edxagent.config.values import LMSSourceConfig
from edxagent.wire.envelope import UNREADABLE

LARGEST_FILE = 4 * 1024 * 1024
MODE = 0o600


class CacheError(Exception):
    """The file can't be used; ``str()`` says why."""


class _Kept(msgspec.Struct):
    source: str
    answer: str


class AnswerCache:
    """The file. Both methods block: call them in a thread.

    What is kept names its source, so that another URL's or key's answer isn't taken for ours.
    """

    def __init__(self, source: LMSSourceConfig) -> None:
        self.path = os.path.abspath(source.cache_file)
        self._source = sha256(f"{source.url}\n{source.api_key}".encode()).hexdigest()

    def read(self) -> bytes | None:
        """The answer, or ``None`` if there is none from our source.

        :raises CacheError: there is a file, but none that can be trusted or read.
        """
        try:
            with open(self.path, "rb", opener=_open_calmly) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise CacheError("it isn't a regular file")
                if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                    raise CacheError("somebody else may read or change it; delete it")
                data = file.read(LARGEST_FILE + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CacheError(str(error.strerror)) from None
        try:
            kept = msgspec.json.decode(data if len(data) <= LARGEST_FILE else b"", type=_Kept)
        except UNREADABLE:
            raise CacheError("it doesn't hold what we write there; delete it") from None
        return kept.answer.encode() if kept.source == self._source else None

    def write(self, answer: bytes) -> None:
        """Keep an answer, in the place of the one before, at once.

        :raises CacheError: it can't be kept.
        """
        new = f"{self.path}.new"
        data = json.dumps({"source": self._source, "answer": answer.decode()}).encode()
        try:
            with suppress(FileNotFoundError):
                os.unlink(new)  # what an attempt left that was killed
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self.path)
        except OSError as error:
            raise CacheError(str(error.strerror)) from None


def _open_calmly(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a FIFO would wait for its other end
