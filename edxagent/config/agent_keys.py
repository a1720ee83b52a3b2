"""Every section and key of ``agent.ini``; the reader and the manual are made from these tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from edxagent.config.broker import BROKER_KEYS
from edxagent.config.broker_url import is_loopback
from edxagent.config.common import FAILURE_KEYS, LOG_KEYS, label
from edxagent.config.keys import REQUIRED, Key
from edxagent.config.parsers import count_between, delays, number, path, seconds, seconds_between, size, url
from edxagent.config.queues import QUEUE_KEYS, queue_name
from edxagent.config.values import BreakerConfig, QuarantineConfig, RetryConfig
from edxagent.model import Outcome

_API_KEY = re.compile("[!-~]{16,512}")

AGENT_KEYS = (
    Key("name", label, "edxagent", "Who we are in logs, result headers and the broker's list of connections."),
    Key("concurrency", count_between(1, 10_000), 10, "Submissions graded at once."),
    Key("drain_timeout", seconds_between(0, 3600), 30.0, "How long a stop waits for what is being graded."),
    Key("hold_limit", seconds, 10.0, "How long a submission may wait here for its turn before its queue gets it back."),
    Key("max_request", size, 16 * 1024 * 1024, "A larger request is malformed; nobody looks into it."),
)

GRADER_KEYS = (
    Key("kind", label, REQUIRED, "Which grader: a kind from below, a plugin's, or the dotted name of a factory."),
    Key("timeout", seconds, 30.0, "The deadline for one submission."),
)
"""The keys that every kind of grader has; the others are its factory's."""

RESULTS_KEYS = (
    Key("queue", queue_name, "grading.results", "Where verdicts go whose request names no reply_to."),
    Key("max_score", number, None, "A greater score is a bad reply; without it, any score is believed."),
    Key("max_reply", size, 1024 * 1024, "A larger reply of the grader is a bad one."),
)


def optional_path(value: str) -> str | None:
    """A path, or nothing."""
    return path(value) if value else None


def grader_failures(value: str) -> tuple[str, ...]:
    """Some of the outcomes that can be the grader's fault."""
    words = tuple(dict.fromkeys(value.replace(",", " ").split()))
    if not words or not set(words) <= set(GRADER_FAILURES):
        raise ValueError(f"expected some of {' '.join(GRADER_FAILURES)}, such as unavailable crashed")
    return words


GRADER_FAILURES = tuple(map(str, (Outcome.UNAVAILABLE, Outcome.TIMED_OUT, Outcome.CRASHED, Outcome.BAD_REPLY)))
"""The outcomes that can be the grader's fault."""

RETRY_KEYS = (
    Key(
        "delays", delays, RetryConfig().delays, "The pauses before a submission is graded again; the last is repeated."
    ),
    Key("timeout_attempts", count_between(1, 100), 1, "A submission that timed out so often is a dead letter."),
    Key(
        "crash_attempts",
        count_between(1, 100),
        2,
        "So is one on which the grader crashed, or answered what is no verdict, so often.",
    ),
    Key(
        "give_up_after",
        seconds_between(1, 30 * 24 * 3600),
        24 * 3600.0,
        "So is one for which the grader was unavailable for so long, since its first failure.",
    ),
)

BREAKER_KEYS = (
    Key("failures", count_between(1, 1000), 5, "After so many failures in a row the grader is left alone for a while."),
    Key("counts", grader_failures, BreakerConfig().counts, "The outcomes that are failures of the grader."),
    Key("pause", seconds, 5.0, "For how long. Then one submission is tried; when that fails, the pause doubles."),
    Key("longest_pause", seconds, 300.0, "Until it is so long."),
)

QUARANTINE_KEYS = (
    Key(
        "journal",
        optional_path,
        QuarantineConfig().journal,
        "A folder where it is written down what is being graded, to know what an agent died of; empty = nowhere.",
    ),
    Key("max_starts", count_between(2, 100), 5, "A submission that agents died of so often isn't graded any more."),
)


def config_url(value: str) -> str:
    """An address that is asked with a key and answers with passwords: over TLS, or on this machine."""
    address = url(value)
    parts = urlsplit(address)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise ValueError(
            "expected an address that begins with https://, such as https://grading.example.org/agent/config; "
            "the answer holds passwords"
        )
    return address


def api_key(value: str) -> str:
    """What goes into a header."""
    if not _API_KEY.fullmatch(value):
        raise ValueError("expected a key as edxagent api-key prints it, of 16 to 512 characters without blanks")
    return value


LMS_KEYS = (
    Key(
        "url",
        config_url,
        REQUIRED,
        "Where an edxagent-lms tells agents the broker's URLs and their queues: its /agent/config, by https.",
    ),
    Key("api_key", api_key, REQUIRED, "The key that edxagent api-key printed; the LMS side has its hash.", secret=True),
    Key(
        "cache_file",
        path,
        "edxagent-lms-config.json",
        "Where the last good answer is kept for when the LMS side is away; holds passwords, and only we may read it.",
    ),
    Key("timeout", seconds, 10.0, "For one question to it."),
    Key("ca_file", path, None, "PEM file with the authorities to trust over https; the platform's otherwise."),
)
"""All of ``[lms-config]``, which replaces ``[broker] urls`` and ``[queues]``."""

SECTIONS: Mapping[str, tuple[Key, ...]] = {
    "agent": AGENT_KEYS,
    "broker": BROKER_KEYS,
    "queues": QUEUE_KEYS,
    "lms-config": LMS_KEYS,
    "grader": GRADER_KEYS,
    "results": RESULTS_KEYS,
    "retry": RETRY_KEYS,
    "breaker": BREAKER_KEYS,
    "quarantine": QUARANTINE_KEYS,
    "failure": FAILURE_KEYS,
    "log": LOG_KEYS,
}
