"""Fetches the files that a submission names into its working folder, before its program is started.

They come one after the other, from hosts on a list only, over ``http`` or ``https`` with the certificate verified, and
without redirects; their number, their size and the time that they take are bounded.
"""

from __future__ import annotations

import os
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimeIsOver
from twisted.internet.interfaces import IReactorTime
from twisted.web.client import BrowserLikePolicyForHTTPS

from edxagent.errors import GraderError, GraderUnavailable, MalformedSubmission
from edxagent.graders.attachments import Attachment, read_attachments
from edxagent.web.exchange import Answer, Ask, ExchangeFailed, Exchanges, TooLong

FOLDER = "files"
"""Its name in the working folder."""

CONNECT_TIMEOUT = 5.0
HEADERS = {"User-Agent": "edxagent"}
GONE = frozenset({404, 410})
"""The statuses by which a server says that a file isn't there, and needn't be asked for again."""


@frozen(kw_only=True)
class FileRules:
    """What may be fetched.

    :ivar hosts: as of :func:`edxagent.graders.attachments.host_list`.
    :ivar most: the greatest number of files of one submission.
    :ivar size: the greatest number of bytes of all of them together.
    :ivar timeout: the seconds that all of them together may take.
    """

    hosts: tuple[str, ...]
    most: int
    size: int
    timeout: float


class FileFetcher:
    """Fetches files, for many submissions at once."""

    def __init__(self, rules: FileRules, exchanges: Exchanges, clock: IReactorTime) -> None:
        self._rules = rules
        self._exchanges = exchanges
        self._clock = clock

    @classmethod
    def make(cls, rules: FileRules, concurrency: int, reactor: Any) -> FileFetcher:
        """One that trusts the platform's authorities."""
        exchanges = Exchanges(
            policy=BrowserLikePolicyForHTTPS(), connect_timeout=CONNECT_TIMEOUT, kept=concurrency, reactor=reactor
        )
        return cls(rules, exchanges, reactor)

    async def fetch(self, files: str, folder: str) -> dict[str, str]:
        """Fetch what ``xqueue_files`` names. Cancelling closes the connection; what was fetched stays in ``folder``.

        :returns: what the LMS calls a file → its path within ``folder``.
        :raises MalformedSubmission: a file isn't there, or isn't allowed, or all are too much.
        :raises GraderUnavailable: there is no telling now.
        """
        attachments = read_attachments(files, self._rules.hosts, self._rules.most)
        if attachments:
            fetching = Deferred.fromCoroutine(self._fetch_all(attachments, os.path.join(folder, FOLDER)))
            try:
                await fetching.addTimeout(self._rules.timeout, self._clock)
            except TimeIsOver:
                raise GraderUnavailable(f"its files took longer than {self._rules.timeout:g} s to fetch") from None
            except OSError as error:
                reason = error.strerror or type(error).__name__
                raise GraderUnavailable(f"a file can't be kept: {reason}; mend [grader] work_dir") from error
        return {attachment.name: f"{FOLDER}/{attachment.kept_as}" for attachment in attachments}

    async def close(self) -> None:
        """Cut all connections; done when they are."""
        await self._exchanges.close()

    async def _fetch_all(self, attachments: list[Attachment], folder: str) -> None:
        os.mkdir(folder, 0o700)
        # Programs of other submissions run as the same user: what they could put in the way must not be followed.
        inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            left = self._rules.size
            for number, attachment in enumerate(attachments, 1):
                left -= await self._fetch(attachment, f"file {number} of {len(attachments)}", inside, left)
        finally:
            os.close(inside)

    async def _fetch(self, attachment: Attachment, which: str, inside: int, left: int) -> int:
        """Fetch one file of at most ``left`` bytes; return how many it has."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(attachment.kept_as, flags, 0o600, dir_fd=inside), "wb") as file:
            ask = Ask(method="GET", url=attachment.url, headers=HEADERS, longest=left)
            try:
                answer = await self._exchanges.ask(ask, file.write)
            except TooLong as error:
                reason = f"{which} is too long: [grader] max_file_size allows {self._rules.size} bytes in all"
                raise MalformedSubmission(reason) from error
            except ExchangeFailed as error:
                raise GraderUnavailable(f"{which}: {attachment.host} {error}") from error
            failure = failure_of(answer, f"{which}: {attachment.host}")
            if failure is not None:
                raise failure
            return file.tell()


def failure_of(answer: Answer, where: str) -> GraderError | None:
    """What a status means; ``None`` for 200.

    ============ ======================= ===============================================================
    200          ``None``                the file is there
    404, 410     ``MalformedSubmission`` it isn't, and won't be
    any other    ``GraderUnavailable``   no telling; ``Retry-After`` is obeyed, redirects aren't followed
    ============ ======================= ===============================================================
    """
    if answer.status == 200:
        return None
    if answer.status in GONE:
        return MalformedSubmission(f"{where} answered {answer.status}: the file isn't there")
    return GraderUnavailable(f"{where} answered {answer.status}", answer.retry_after)
