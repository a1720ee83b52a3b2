"""What the files of both programs have in common beside ``[broker]``: ``[failure]``, ``[log]``, and who we are."""

from __future__ import annotations

from edxagent.config.keys import Key
from edxagent.config.parsers import choice, did_you_mean, has_control_characters, text
from edxagent.config.sections import Section
from edxagent.config.values import FailureConfig, LogConfig
from edxagent.disposition import DEFAULT_TABLE
from edxagent.errors import BadReply
from edxagent.verdict import FAILURE_MESSAGES, check_message


def label(value: str) -> str:
    """A short name that the broker, too, will show."""
    if len(value) > 100:
        raise ValueError("expected a name of at most 100 characters, such as xserver")
    return text(value)


def html(value: str) -> str:
    """The learner's words, in HTML that the LMS can show; line breaks become blanks."""
    value = " ".join(value.split("\n"))
    try:
        if len(value) > 4096 or has_control_characters(value):
            raise ValueError
        check_message(value)
    except (ValueError, BadReply):
        raise ValueError("expected HTML of at most 4096 characters, such as <p>Please submit again.</p>") from None
    return value


def outcomes(value: str) -> tuple[str, ...]:
    """Some of the words for failures; none is fine."""
    words = tuple(dict.fromkeys(value.replace(",", " ").split()))
    for word in words:
        if word not in FAILURES:
            raise ValueError(
                f"expected some of {', '.join(FAILURES)}, with blanks between them{did_you_mean(word, FAILURES)}"
            )
    return words


FAILURES = tuple(str(outcome) for outcome in FAILURE_MESSAGES)
"""The outcome words that a failure verdict can tell of."""

_TOLD = tuple(str(outcome) for outcome in FAILURE_MESSAGES if DEFAULT_TABLE[outcome].tell_learner)

FAILURE_KEYS = (
    Key(
        "tell_learner",
        outcomes,
        _TOLD,
        "The failures that the learner gets a verdict of. It scores 0, and no later one replaces it.",
    ),
    *(
        Key(str(outcome), html, words, f"What the learner reads then, in HTML ({outcome}).")
        for outcome, words in FAILURE_MESSAGES.items()
    ),
)

LOG_KEYS = (
    Key("format", choice("text", "json"), "text", "One line an event, for people or for machines."),
    Key(
        "level",
        choice("debug", "info", "warn", "error", "critical"),
        "info",
        "The least important events that are written.",
    ),
)


def read_failure(section: Section) -> FailureConfig:
    """Read ``[failure]``."""
    messages = section.read(FAILURE_KEYS)
    told = messages.pop("tell_learner")
    return FailureConfig(messages=messages, tell_learner={outcome: outcome in told for outcome in FAILURES})


def read_log(section: Section) -> LogConfig:
    """Read ``[log]``."""
    return LogConfig(**section.read(LOG_KEYS))
