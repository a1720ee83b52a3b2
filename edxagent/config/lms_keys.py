"""Every section and key of ``lms.ini``; the reader and the manual are made from these tables."""

from __future__ import annotations

from collections.abc import Mapping

from edxagent.config.broker import BROKER_KEYS, broker_urls
from edxagent.config.common import FAILURE_KEYS, LOG_KEYS, label
from edxagent.config.keys import REQUIRED, Key
from edxagent.config.listening import endpoint
from edxagent.config.lms_parsers import (
    api_key_hash,
    database_url,
    folder_url,
    html_tags,
    queue_names,
    queues_with_weights,
    root_url,
    secret_text,
    size_below,
)
from edxagent.config.lms_values import ALLOWED_TAGS
from edxagent.config.parsers import boolean, count_between, delays, number, path, seconds, seconds_between, size, text
from edxagent.config.queues import queue_name

DAY = 86400.0
MOST_USERS = 1000
LONGEST_UPLOAD = 16 * 1024 * 1024
"""RabbitMQ 4 refuses a larger message, and agents a larger request."""

_QUEUES = "A course names one of them in its problems."

LMS_KEYS = (
    Key("name", label, "edxagent-lms", "Who we are in logs and in the broker's list of connections."),
    Key("drain_timeout", seconds_between(0, 3600), 30.0, "How long a stop waits for what is under way."),
)

GATEWAY_KEYS = (
    Key("listen", endpoint, "tcp:18040:interface=127.0.0.1", "Where the LMS finds us: a Twisted endpoint."),
    Key("queues", queue_names, REQUIRED, f"The queues that may be submitted to and pulled from. {_QUEUES}"),
    Key(
        "session_secret", secret_text, None, "Signs cookies; without it, every restart ends all sessions.", secret=True
    ),
    Key("session_lifetime", seconds, 12 * 3600.0, "How long a login holds."),
    Key("login_failures", count_between(1, 1000), 10, "Failed logins a minute from one address; more are refused."),
    Key("confirm_timeout", seconds_between(0.1, 8), 3.5, "For the broker's word; the LMS waits 10 s for ours."),
    Key("max_upload", size_below(LONGEST_UPLOAD), 10 * 1024 * 1024, "A larger request, files and all, is refused."),
    Key("files_folder", path, None, "Where learners' files are kept; without it, submissions with files are refused."),
    Key("files_url", folder_url, None, "The address of our /files/ for graders."),
    Key("files_lifetime", seconds_between(60, 366 * DAY), 7 * DAY, "How long a file can be fetched."),
    Key("lease", seconds, 60.0, "How long a grader that polls may take, before another one gets the submission."),
    Key("max_leases", count_between(1, 10_000), 1000, "Submissions that may be out to such graders at once."),
    Key(
        "behind_tls_proxy",
        boolean,
        False,
        "Whether who reaches us from elsewhere does so through a proxy with TLS; asked for by [agent-config:NAME].",
    ),
)

GRANT_KEYS = (
    Key("key_hash", api_key_hash, REQUIRED, "The hash of the agents' key."),
    Key("broker_urls", broker_urls, REQUIRED, "Where RabbitMQ is for these agents, as in [broker] urls."),
    Key("broker_password", text, None, "For the URLs without one.", secret=True),
    Key("queues", queues_with_weights, REQUIRED, "What they take from; weight=2 behind a name is its weight."),
)

BRIDGE_KEYS = (
    Key("url", root_url, REQUIRED, "The LMS's own address, without a path."),
    Key("username", label, REQUIRED, "A user of the LMS who is in its group xqueue."),
    Key("password", text, REQUIRED, "The user's password.", secret=True),
    Key("queues", queue_names, REQUIRED, f"The queues to fetch from; the broker's have the same names. {_QUEUES}"),
    Key("concurrency", count_between(1, 100), 4, "Requests to this LMS that may be under way at once."),
    Key("poll_initial", seconds_between(0.05, 3600), 0.5, "The pause after a queue was found empty; it grows."),
    Key("poll_max", seconds_between(0.05, 3600), 10.0, "The longest pause."),
    Key(
        "answer_within",
        seconds_between(10, 280),
        240.0,
        "No more is fetched than can be answered in this time. After 5 minutes the LMS hands out the same ones again, "
        "and no others.",
    ),
    Key("give_up_after", seconds, 1800.0, "The learner gets a failure verdict for what has waited so long."),
    Key("timeout", seconds_between(0.1, 120), 10.0, "For one request to the LMS."),
    Key("ca_file", path, None, "PEM file with the authorities to trust; without it, the system's."),
    Key("allow_http", boolean, False, "Whether the password may go to another machine unencrypted."),
)

UPDATER_KEYS = (
    Key("queue", queue_name, "grading.results", "The queue with the verdicts; its routing key, too."),
    Key("concurrency", count_between(1, 1000), 20, "Verdicts under way at once."),
    Key("max_score", number, None, "The greatest score, in points, that is believed; without it, any."),
    Key("clamp_scores", boolean, False, "Whether a greater one is lowered to max_score; otherwise it is parked."),
    Key(
        "allowed_tags", html_tags, tuple(sorted(ALLOWED_TAGS)), "HTML elements that may stay in the learner's message."
    ),
    Key("max_result", size, 4 * 1024 * 1024, "A larger result is parked; nobody looks into it."),
    Key(
        "retry_delays",
        delays,
        (2.0, 10.0, 30.0, 120.0),
        "The pauses between attempts to deliver a verdict; the last one is repeated.",
    ),
    Key(
        "refusal_attempts",
        count_between(1, 100),
        3,
        "How often an LMS may refuse a verdict, the longest pause apart, before it is parked.",
    ),
    Key("breaker_failures", count_between(1, 1000), 5, "After so many failures in a row an LMS is left alone a while."),
    Key("breaker_pause", seconds, 15.0, "How long."),
)

SINK_KEYS = (
    Key("kind", label, REQUIRED, "Which sink: a kind from below, a plugin's, or the dotted name of a factory."),
)
"""The keys that every kind of sink has; the others are its factory's."""

LEDGER_KEYS = (
    Key(
        "url",
        database_url,
        REQUIRED,
        "A database, as SQLAlchemy writes it; may hold a password.",
        secret=True,
        harmless="sqlite:",
    ),
    Key("keep", seconds_between(3600, 3660 * DAY), 90 * DAY, "Older rows are deleted."),
)

SECTIONS: Mapping[str, tuple[Key, ...]] = {
    "lms": LMS_KEYS,
    "broker": BROKER_KEYS,
    "gateway": GATEWAY_KEYS,
    "users": (),
    "agent-config:NAME": GRANT_KEYS,
    "bridge:NAME": BRIDGE_KEYS,
    "updater": UPDATER_KEYS,
    "sink:NAME": SINK_KEYS,
    "ledger": LEDGER_KEYS,
    "failure": FAILURE_KEYS,
    "log": LOG_KEYS,
}
"""NAME is a word of the operator's choice; there may be several such sections."""
