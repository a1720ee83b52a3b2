"""Every failure that edxagent names, grouped by what the one who meets it should do.

A message is one line: what went wrong, where, and what to do. No message holds a secret, a header or a learner's text.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from edxagent.model import Outcome


class EdxagentError(Exception):
    """The base of all failures below. ``str()`` of one may be shown to a person as it is."""


class ConfigError(EdxagentError):
    """The configuration can't be used. *Mend the file, start again.*

    :ivar problems: every problem found, one line each.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class ConfigUnavailable(EdxagentError):
    """The LMS side doesn't tell an agent its configuration now. *Ask again, later.*"""


class ConfigRefused(EdxagentError):
    """The LMS side doesn't tell this agent its configuration. *Useless until a person does what the message says.*"""


class BadAnswer(EdxagentError):
    """What the LMS side told an agent is no configuration. *Keep the one that there is; mend the LMS side's.*"""


class MalformedRequest(EdxagentError):
    """A request can't be read. *Discard it: no retry heals it.*

    :ivar header: its ``xqueue_header`` where that much could be read, so that the learner can be told.
    """

    outcome = Outcome.MALFORMED

    def __init__(self, reason: str, header: str | None = None) -> None:
        super().__init__(reason)
        self.header = header


class GraderError(EdxagentError):
    """A submission got no verdict. Only the five below are raised; each knows its outcome word."""

    outcome: Outcome


class MalformedSubmission(GraderError):
    """The submission itself can't be graded: what it names is missing, too much or not allowed. *No retry heals it.*"""

    outcome = Outcome.MALFORMED


class GraderUnavailable(GraderError):
    """The grader couldn't be asked (refused, 5xx, 429, spawn failed). *Our fault: retry, later.*

    :ivar retry_after: seconds that the grader asked us to wait, if it did.
    """

    outcome = Outcome.UNAVAILABLE

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class GraderTimedOut(GraderError):
    """No verdict within the deadline. *Retry at most a few times: the submission may be endless.*"""

    outcome = Outcome.TIMED_OUT


class GraderCrashed(GraderError):
    """The grader ended without a verdict (exit status, signal, exception). *Retry a few times.*"""

    outcome = Outcome.CRASHED


class BadReply(GraderError):
    """The grader's reply is no verdict that the LMS could take. *Retry a few times, tell the grader's author.*"""

    outcome = Outcome.BAD_REPLY


class BrokerError(EdxagentError):
    """Something on the way to or in the broker failed."""


class BrokerUnreachable(BrokerError):
    """No connection, or it was lost, or a call wasn't answered in time. *Retry: it heals by itself.*"""


class BrokerRefused(BrokerError):
    """The broker said no: credentials, virtual host, permission, a missing or different queue.

    *Retrying is useless until a person does what the message says.*
    """


class ChannelClosed(BrokerError):
    """The broker closed a channel.

    :ivar code: AMQP reply code (404 not found, 403 refused, 405 locked, 406 precondition failed …).
    :ivar text: the broker's reply text.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"the broker closed the channel: {code} {text}")
        self.code = code
        self.text = text


class PublishFailed(BrokerError):
    """The broker didn't take responsibility for a message. *Publish it again, with the same id.*"""


class Unroutable(PublishFailed):
    """No queue is bound for the message's exchange and routing key. *Bind one; publish again.*"""


class MessageRefused(BrokerError):
    """A message that AMQP can't carry (a property too long, a header of no AMQP type). *Final; nothing was sent.*"""


class InvalidResult(EdxagentError):
    """A result holds no verdict that the LMS could take. *Park it: some of these wipe the learner's attempt there.*"""


class SinkError(EdxagentError):
    """A verdict didn't reach where it should go."""


class SinkUnavailable(SinkError):
    """The LMS or the database doesn't take it now (down, slow, 5xx). *Retry, later, for as long as it takes.*

    :ivar retry_after: seconds that it asked us to wait, if it did.
    """

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class SinkRefused(SinkError):
    """The LMS or our own rules don't take it, and no retry heals that. *Park it; tell a person why.*"""


class PossiblyRecorded(SinkRefused):
    """The LMS may have recorded it before, and takes it only once. *Park it; a person can look it up there.*"""


class DatabaseUnavailable(EdxagentError):
    """A database can't be used now: locked, full, down. *Retry, later.*"""


def plain_reason(error: Exception) -> str:
    """Why the network failed, in the system's own few words: Twisted's say the same thing three times."""
    number = getattr(error, "osError", None)
    return os.strerror(number) if isinstance(number, int) else str(error) or type(error).__name__
