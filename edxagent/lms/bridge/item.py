"""A submission as edx-submissions hands it out (``submissions/views/xqueue.py``, ``XQueueViewSet.get_submission``)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec
from attrs import field, frozen

from edxagent.wire.envelope import UNREADABLE, Envelope, explain

LONGEST_HEADER = 4096
"""Bytes; theirs have about 80."""

_envelope = msgspec.json.Decoder(Envelope)
_files = msgspec.json.Decoder(dict[str, str])


class _Header(msgspec.Struct):
    submission_id: int
    submission_key: str


_header = msgspec.json.Decoder(_Header)


@frozen(kw_only=True)
class Item:
    """What a grader gets there.

    :ivar header: verbatim; who holds it may record a verdict.
    :ivar files: JSON text, file name → absolute URL.
    :ivar remote: the LMS's id of it.
    :ivar key: a new one each time that it leaves the states ``pending`` and ``retry`` for ``pulled``; the same one when
        it is handed out again because nobody answered.
    """

    header: str = field(repr=False)
    body: str = field(repr=False)
    files: str = field(repr=False)
    remote: int
    key: str = field(repr=False)

    def submission(self, bridge: str) -> str:
        """Our id of it: the same whenever it is handed out under the same key."""
        return hashlib.sha256(f"{bridge}\0{self.remote}\0{self.key}".encode()).hexdigest()


def read_item(content: str, root: str) -> Item:
    """Read the ``content`` of an answer.

    :param root: the LMS's address, without a slash at its end.
    :raises ValueError: it can't be read; doesn't quote it.
    """
    try:
        envelope = _envelope.decode(content)
        header = _header.decode(envelope.xqueue_header)
    except UNREADABLE as error:
        raise ValueError(explain(error)) from None
    if len(envelope.xqueue_header.encode()) > LONGEST_HEADER:
        raise ValueError(f"its header has more than {LONGEST_HEADER} bytes")
    return Item(
        header=envelope.xqueue_header,
        body=envelope.xqueue_body,
        files=_with_whole_urls(envelope.xqueue_files, root),
        remote=header.submission_id,
        key=header.submission_key,
    )


def _with_whole_urls(files: str, root: str) -> str:
    """``files``, with the LMS's address in front of what are paths on its server; untouched where there are none.

    Storage on the LMS's own disk has such paths (Django's ``FileField.url``); an object store has whole URLs.
    """
    try:
        urls: Mapping[str, str] = _files.decode(files)
    except UNREADABLE:
        return files  # the agent says what is wrong with it, and the learner is told
    if not any(_is_path(url) for url in urls.values()):
        return files
    whole = {name: f"{root}{url}" if _is_path(url) else url for name, url in urls.items()}
    return msgspec.json.encode(whole).decode()


def _is_path(url: str) -> bool:
    return url.startswith("/") and not url.startswith("//")
