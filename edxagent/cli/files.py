"""Submissions in files: one JSON file each, a whole request or a bare ``xqueue_body``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import msgspec
from attrs import field, frozen

from edxagent.cli.submissions import envelope, lms_header

MAX_FILE = 64 * 1024 * 1024
STDIN = "-"


@frozen(kw_only=True)
class SubmissionFile:
    """A request that was read from a file. ``name`` is for people."""

    name: str
    request: bytes = field(repr=False)


def read_submission_files(paths: Iterable[str], queue: str) -> list[SubmissionFile]:
    """Read files, all ``*.json`` of folders, and ``-``, standard input.

    :param queue: named in the header that a bare body gets.
    :raises click.UsageError: one can't be read, or is no submission.
    """
    return [read_submission_file(path, queue) for path in _files(paths)]


def read_submission_file(path: str, queue: str) -> SubmissionFile:
    """Read one file; see :func:`read_submission_files`."""
    name = "standard input" if path == STDIN else path
    content = _content(path, name)
    try:
        keys = msgspec.json.decode(content, type=dict[str, msgspec.Raw]).keys()
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise click.UsageError(f"{name} isn't a JSON object") from None
    if "xqueue_body" in keys:
        return SubmissionFile(name=name, request=content)
    if "student_response" in keys:
        body = content.decode()
        return SubmissionFile(name=name, request=envelope(lms_header(queue, Path(path).stem, key="none"), body))
    raise click.UsageError(
        f"{name} is no submission: expected a request (xqueue_header, xqueue_body, xqueue_files) or a bare xqueue_body "
        "(student_response, grader_payload, student_info)"
    )


def _files(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        if path != STDIN and Path(path).is_dir():
            found = sorted(str(file) for file in Path(path).glob("*.json"))
            if not found:
                raise click.UsageError(f"there is no *.json in the folder {path}")
            yield from found
        else:
            yield path


def _content(path: str, name: str) -> bytes:
    try:
        if path == STDIN:
            content = sys.stdin.buffer.read(MAX_FILE + 1)
        else:
            with open(path, "rb") as file:
                content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise click.UsageError(f"can't read {name}: {error.strerror}") from None
    if len(content) > MAX_FILE:
        raise click.UsageError(f"{name} has more than {MAX_FILE} bytes")
    return content
