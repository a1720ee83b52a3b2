"""Every section and key of ``agent.ini``; the reader and the manual are made from these tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edxagent.config.keys import REQUIRED, Key
from edxagent.config.parsers import (
    boolean,
    choice,
    count_between,
    did_you_mean,
    has_control_characters,
    number,
    path,
    seconds,
    seconds_between,
    size,
    text,
)
from edxagent.disposition import DEFAULT_TABLE
from edxagent.errors import BadReply
from edxagent.model import dead_queue_of
from edxagent.verdict import FAILURE_MESSAGES, check_message

LONGEST_QUEUE_NAME = 200
MOST_QUEUES = 1000
MOST_BROKERS = 32
DEAD_SUFFIX = dead_queue_of("")


def label(value: str) -> str:
    """A short name that the broker, too, will show."""
    if len(value) > 100:
        raise ValueError("expected a name of at most 100 characters, such as xserver")
    return text(value)


def broker_urls(value: str) -> tuple[str, ...]:
    """Some URLs with blanks or line breaks between them; what each says is looked at later, with the password."""
    urls = tuple(value.split())
    if not 1 <= len(urls) <= MOST_BROKERS or any(map(has_control_characters, urls)):
        raise ValueError(f"expected 1 to {MOST_BROKERS} URLs, such as amqp://guest@127.0.0.1:5672/%2F")
    return urls


def queue_name(value: str) -> str:
    """The name of a queue that holds requests: ours to take, not the broker's, and no dead-letter queue."""
    if not value or len(value.encode(errors="replace")) > LONGEST_QUEUE_NAME or has_control_characters(value):
        raise ValueError(
            f"expected a name of at most {LONGEST_QUEUE_NAME} bytes without control characters, such as 6002x-exam"
        )
    if value.startswith("amq."):
        raise ValueError('names that begin with "amq." belong to the broker; expected another one, such as 6002x-exam')
    if value.endswith(DEAD_SUFFIX):
        raise ValueError(
            f'names that end with "{DEAD_SUFFIX}" are for dead letters; name the queue itself, such as 6002x-exam'
        )
    return value


def queue_options(value: str) -> dict[str, Any]:
    """What stands behind a queue's ``=``: ``weight=2``, with blanks between several."""
    table = {key.name: key for key in QUEUE_KEYS}
    options: dict[str, Any] = {}
    for word in value.split():
        name, _, option = word.partition("=")
        if name not in table:
            raise ValueError(f"expected nothing, or options such as weight=2{did_you_mean(name, table)}")
        if name in options:
            raise ValueError(f"{name} is there twice")
        try:
            options[name] = table[name].parse(option)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return options


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

AGENT_KEYS = (
    Key("name", label, "edxagent", "Who we are in logs, result headers and the broker's list of connections."),
    Key("concurrency", count_between(1, 10_000), 10, "Submissions graded at once."),
    Key("drain_timeout", seconds_between(0, 3600), 30.0, "How long a stop waits for what is being graded."),
    Key("hold_limit", seconds, 10.0, "How long a submission may wait here for its turn before its queue gets it back."),
    Key("max_request", size, 16 * 1024 * 1024, "A larger request is malformed; nobody looks into it."),
)

BROKER_KEYS = (
    Key(
        "urls",
        broker_urls,
        REQUIRED,
        "Where RabbitMQ is: amqp://user@host:port/vhost, or amqps:// for TLS. Several are tried in turn.",
    ),
    Key("password", text, None, "For the URLs without one; guest on this machine needs none.", secret=True),
    Key(
        "heartbeat",
        count_between(0, 3600),
        30,
        "Seconds between signs of life; the lower of ours and the broker's counts; 0 = none.",
    ),
    Key("connect_timeout", seconds, 10.0, "From the first packet to an opened connection."),
    Key("call_timeout", seconds, 20.0, "For every question that the broker must answer."),
    Key("confirm_timeout", seconds, 30.0, "For the broker's word that it has a verdict."),
    Key(
        "consumer_timeout",
        seconds,
        1800.0,
        "RabbitMQ's own consumer_timeout: grading must take less, or it takes the submission back.",
    ),
    Key("retry_initial", seconds, 0.5, "The pause before the first reconnection; it doubles each time."),
    Key("retry_max", seconds, 30.0, "The longest pause before a reconnection."),
    Key(
        "declare", boolean, True, "Whether queues and exchanges that are missing are made; otherwise they are an error."
    ),
    Key("queue_type", choice("quorum", "classic"), "quorum", "Of the queues that we make."),
    Key("tls_ca_file", path, None, "PEM file with the authorities to trust; without it, the system's."),
    Key("tls_certificate_file", path, None, "PEM file with our own certificate, where the broker asks for one."),
    Key("tls_key_file", path, None, "PEM file with its private key, unless that is in tls_certificate_file."),
    Key("tls_verify", boolean, True, "Whether the broker's certificate must be valid for its host name."),
)

QUEUE_KEYS = (Key("weight", count_between(1, 1000), 1, "The queue's share when all slots are busy."),)
"""The options behind a queue's ``=``, as in ``6002x-exam = weight=2``."""

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

SECTIONS: Mapping[str, tuple[Key, ...]] = {
    "agent": AGENT_KEYS,
    "broker": BROKER_KEYS,
    "queues": QUEUE_KEYS,
    "grader": GRADER_KEYS,
    "results": RESULTS_KEYS,
    "failure": FAILURE_KEYS,
    "log": LOG_KEYS,
}
