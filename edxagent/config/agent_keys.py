"""Every section and key of ``agent.ini``; the reader and the manual are made from these tables."""

from __future__ import annotations

from collections.abc import Mapping

from edxagent.config.broker import BROKER_KEYS
from edxagent.config.common import FAILURE_KEYS, LOG_KEYS, label
from edxagent.config.keys import REQUIRED, Key
from edxagent.config.parsers import count_between, number, seconds, seconds_between, size
from edxagent.config.queues import QUEUE_KEYS, queue_name

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

SECTIONS: Mapping[str, tuple[Key, ...]] = {
    "agent": AGENT_KEYS,
    "broker": BROKER_KEYS,
    "queues": QUEUE_KEYS,
    "grader": GRADER_KEYS,
    "results": RESULTS_KEYS,
    "failure": FAILURE_KEYS,
    "log": LOG_KEYS,
}
