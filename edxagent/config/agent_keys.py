"""Every section and key of ``agent.ini``; the reader and the manual are made from these tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from edxagent.config.broker import BROKER_KEYS
from edxagent.config.broker_url import is_loopback
from edxagent.config.common import FAILURE_KEYS, LOG_KEYS, label
from edxagent.config.keys import REQUIRED, Key
from edxagent.config.parsers import count_between, number, path, seconds, seconds_between, size, url
from edxagent.config.queues import QUEUE_KEYS, queue_name

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
    "failure": FAILURE_KEYS,
    "log": LOG_KEYS,
}
