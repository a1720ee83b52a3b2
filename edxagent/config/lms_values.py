"""What ``lms.ini`` says, as frozen values. Times are seconds, sizes are bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from edxagent.config.values import BrokerConfig, FailureConfig, LogConfig

_TAGS = """
    a abbr b blockquote br caption code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i ins kbd li ol p pre s samp
    section small span strong sub summary sup table tbody td tfoot th thead tr tt u ul var
"""
ALLOWED_TAGS = frozenset(_TAGS.split())
"""What graders write their messages with, and what does nothing by itself when a browser shows it."""


@frozen(kw_only=True)
class GatewayConfig:
    """``[gateway]`` and ``[users]``: the front door.

    :ivar listen: a Twisted endpoint string; ``ssl:…`` for HTTPS.
    :ivar queues: the queues that may be submitted to and pulled from, in the file's order.
    :ivar users: name → password hash, as ``edxagent password`` prints it; one whose hash isn't known is left out.
    :ivar session_secret: signs session cookies; ``None`` = one of this process's own, so that sessions end with it.
    :ivar session_lifetime: a session that is older has to log in again.
    :ivar login_failures: failed logins a minute from one address, beyond which more are refused.
    :ivar confirm_timeout: how long the LMS waits for the broker's word; it gives up by itself after 10 s.
    :ivar max_upload: the greatest request, files and all, that is read.
    :ivar files_folder: where uploaded files are kept; ``None`` = submissions with files are refused.
    :ivar files_url: the address of ``/files/`` as graders reach it, such as ``https://grading.example.org/files/``.
    :ivar files_lifetime: how long an uploaded file can be fetched; then it is deleted.
    :ivar lease: how long a grader that polls may take for a submission before it is given to another.
    :ivar max_leases: submissions that may be out to such graders at once.
    :ivar behind_tls_proxy: whether TLS ends at a proxy in front of us.
    """

    listen: str = "tcp:18040:interface=127.0.0.1"
    queues: tuple[str, ...]
    users: Mapping[str, str] = field(repr=False)
    session_secret: str | None = field(default=None, repr=False)
    session_lifetime: float = 12 * 3600.0
    login_failures: int = 10
    confirm_timeout: float = 3.5
    max_upload: int = 10 * 1024 * 1024
    files_folder: str | None = None
    files_url: str | None = None
    files_lifetime: float = 7 * 86400.0
    lease: float = 60.0
    max_leases: int = 1000
    behind_tls_proxy: bool = False


@frozen(kw_only=True)
class BridgeConfig:
    """``[bridge:NAME]``: an LMS whose submissions we fetch ourselves.

    :ivar url: the LMS's root, such as ``https://lms.example.org``.
    :ivar queues: the queues to fetch from, in the LMS's words; the broker's queues have the same names.
    :ivar concurrency: requests to this LMS that may be under way at once.
    :ivar poll_initial: the pause after a queue was found empty; grows, with jitter, up to ``poll_max``.
    :ivar answer_within: submissions are fetched only as fast as they can be answered within this time: one that isn't
        answered within 5 minutes keeps edx-submissions from handing out newer ones.
    :ivar give_up_after: when a submission has waited so long for its verdict, the learner gets a failure verdict.
    :ivar timeout: for one request to the LMS.
    :ivar ca_file: PEM file with the authorities to trust; ``None`` = the platform's.
    :ivar allow_http: whether the password may go over a network unencrypted.
    """

    name: str
    url: str
    username: str
    password: str = field(repr=False)
    queues: tuple[str, ...]
    concurrency: int = 4
    poll_initial: float = 0.5
    poll_max: float = 10.0
    answer_within: float = 240.0
    give_up_after: float = 1800.0
    timeout: float = 10.0
    ca_file: str | None = None
    allow_http: bool = False

    @property
    def origin(self) -> str:
        """The ``x-origin`` of what comes from here."""
        return f"bridge:{self.name}"


@frozen(kw_only=True)
class SinkConfig:
    """``[sink:NAME]``: somewhere that verdicts go; ``options`` is what the kind's factory made of its own keys."""

    name: str
    kind: str
    options: Mapping[str, Any] = field(factory=dict, repr=False)


@frozen(kw_only=True)
class UpdaterConfig:
    """``[updater]``: what happens to verdicts.

    :ivar queue: the results queue; its routing key in ``grading.results`` too.
    :ivar concurrency: verdicts under way to the LMS at once.
    :ivar max_score: the greatest score, in points, that is believed; ``None`` = any finite one.
    :ivar clamp_scores: whether a greater one is lowered to ``max_score``; otherwise the verdict is parked.
    :ivar allowed_tags: HTML elements that may stay in ``msg``.
    :ivar max_result: the greatest result that is looked at.
    :ivar retry_delays: the pauses between attempts, ascending; the last one is repeated.
    :ivar refusal_attempts: how often a sink may refuse a verdict for good before it is parked.
    :ivar breaker_failures: failures in a row after which a target is left alone for ``breaker_pause``.
    """

    queue: str = "grading.results"
    concurrency: int = 20
    max_score: float | None = None
    clamp_scores: bool = False
    allowed_tags: frozenset[str] = ALLOWED_TAGS
    max_result: int = 4 * 1024 * 1024
    retry_delays: tuple[float, ...] = (2.0, 10.0, 30.0, 120.0)
    refusal_attempts: int = 3
    breaker_failures: int = 5
    breaker_pause: float = 15.0


@frozen(kw_only=True)
class LedgerConfig:
    """``[ledger]``: ``url`` is SQLAlchemy's, such as ``sqlite:////var/lib/edxagent/ledger.db``; may hold a password.

    :ivar keep: rows that are older are deleted.
    """

    url: str = field(repr=False)
    keep: float = 90 * 86400.0


@frozen(kw_only=True)
class AgentGrant:
    """``[agent-config:NAME]``: what an agent that shows the right key is told.

    :ivar key_hash: SHA-256 of the key, in hex, as ``edxagent api-key`` prints it.
    :ivar broker_urls: with their passwords.
    :ivar queues: name → weight.
    """

    name: str
    key_hash: str = field(repr=False)
    broker_urls: tuple[str, ...] = field(repr=False)
    queues: Mapping[str, int]


@frozen(kw_only=True)
class LMSConfig:
    """A whole ``lms.ini``. A part whose section isn't there is ``None``, or empty."""

    name: str = "edxagent-lms"
    drain_timeout: float = 30.0
    broker: BrokerConfig
    gateway: GatewayConfig | None = None
    grants: tuple[AgentGrant, ...] = ()
    bridges: tuple[BridgeConfig, ...] = ()
    updater: UpdaterConfig | None = None
    sinks: tuple[SinkConfig, ...] = ()
    ledger: LedgerConfig | None = None
    failure: FailureConfig = field(factory=FailureConfig)
    log: LogConfig = field(factory=LogConfig)
