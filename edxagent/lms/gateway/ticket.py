"""What a grader that polls gets in the place of the LMS's header, and sends back with its verdict."""

from __future__ import annotations

import json

import msgspec

from edxagent.lms.gateway.leases import Lease
from edxagent.model import Submission
from edxagent.wire.envelope import UNREADABLE

LONGEST_HEADER = 4096


class _Ticket(msgspec.Struct):
    """The ``xqueue_header`` that a grader sends back. XQueue takes the digits of an id for the id."""

    submission_id: int | str
    submission_key: str


_ticket = msgspec.json.Decoder(_Ticket)


def read_ticket(header: str) -> tuple[int, str]:
    """Id and key.

    :raises ValueError: there are none.
    """
    if len(header) > LONGEST_HEADER:
        raise ValueError("the header is too long")
    try:
        ticket = _ticket.decode(header.encode(errors="replace"))
    except UNREADABLE:
        raise ValueError("the header can't be read") from None
    return int(ticket.submission_id), ticket.submission_key


def content_of(lease: Lease, submission: Submission) -> str:
    """What a grader gets to see: the LMS's header stays here, the lease's stands in its place."""
    header = {"submission_id": lease.id, "submission_key": lease.key}
    return json.dumps(
        {"xqueue_header": json.dumps(header), "xqueue_body": submission.body, "xqueue_files": submission.files}
    )
