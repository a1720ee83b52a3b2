"""What a configuration says, as frozen values. Times are seconds, sizes are bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen


@frozen(kw_only=True)
class TLSConfig:
    """How to trust the broker, and how to show it who we are, over ``amqps://``.

    :ivar ca_file: PEM file with the authorities to trust; ``None`` = the platform's.
    :ivar certificate_file: PEM file with our certificate (and its chain), or ``None``.
    :ivar key_file: PEM file with its private key; ``None`` = it is in ``certificate_file``.
    :ivar verify: whether the broker's certificate must be valid for its host name.
    """

    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    verify: bool = True


@frozen(kw_only=True)
class BrokerAddress:
    """One broker to connect to, from an ``amqp://`` or ``amqps://`` URL. ``str()`` shows no password."""

    host: str
    port: int
    username: str
    password: str = field(repr=False)
    vhost: str = "/"
    tls: TLSConfig | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'amqps' if self.tls else 'amqp'}://{self.username}@{host}:{self.port} vhost {self.vhost}"


@frozen(kw_only=True)
class BrokerConfig:
    """``[broker]``.

    :ivar heartbeat: what we propose; the lower of ours and the broker's counts (0 = none). A peer silent for two
        intervals is taken for dead.
    :ivar connect_timeout: for the whole way from the first packet to an opened connection.
    :ivar call_timeout: for every question that the broker must answer.
    :ivar confirm_timeout: for the confirm of a publish.
    :ivar consumer_timeout: what RabbitMQ is configured with: it takes a delivery back that isn't acked by then.
    :ivar retry_initial: the pause before the first reconnection; doubles, with jitter.
    :ivar retry_max: the longest pause before the same broker is tried again.
    :ivar declare: whether what is missing on the broker is declared; otherwise it is an error.
    :ivar queue_type: of the queues that we declare: ``quorum`` or ``classic``.
    :ivar watchdog: a connection over which nothing comes for so long though messages are ready is made anew (0 = it is
        believed).
    """

    addresses: tuple[BrokerAddress, ...]
    heartbeat: int = 30
    connect_timeout: float = 10.0
    call_timeout: float = 20.0
    confirm_timeout: float = 30.0
    consumer_timeout: float = 1800.0
    retry_initial: float = 0.5
    retry_max: float = 5.0
    declare: bool = True
    queue_type: str = "quorum"
    watchdog: float = 60.0


@frozen(kw_only=True)
class QueueConfig:
    """A line of ``[queues]``: a queue's name, and its share (``weight``, 1 to 1000) when every slot is busy."""

    name: str
    weight: int = 1


@frozen(kw_only=True)
class GraderConfig:
    """``[grader]``: the kind, the deadline for one submission, and what the kind's factory made of its own keys."""

    kind: str
    timeout: float = 30.0
    options: Mapping[str, Any] = field(factory=dict, repr=False)


@frozen(kw_only=True)
class ResultsConfig:
    """``[results]``.

    :ivar queue: the queue, and routing key in ``grading.results``, where verdicts go that name no ``reply_to``.
    :ivar max_score: a greater score is a bad reply; ``None`` = no limit.
    :ivar max_reply: the greatest reply, in bytes, that is looked at.
    """

    queue: str = "grading.results"
    max_score: float | None = None
    max_reply: int = 1024 * 1024


@frozen(kw_only=True)
class FailureConfig:
    """``[failure]``.

    :ivar messages: outcome word → the learner's words (HTML) in the verdict of a submission that failed so; an outcome
        missing here has our own words.
    :ivar tell_learner: outcome word → whether such a verdict is sent at all.
    """

    messages: Mapping[str, str] = field(factory=dict)
    tell_learner: Mapping[str, bool] = field(factory=dict)


@frozen(kw_only=True)
class RetryConfig:
    """``[retry]``: how often, and after which pauses, a submission that got no verdict is graded again.

    :ivar delays: ascending; the last one is repeated.
    :ivar timeout_attempts: how often a submission may time out before it is a dead letter.
    :ivar crash_attempts: the same for a grader that crashes on it, or answers what is no verdict.
    :ivar give_up_after: for so long, since the first failure, the grader may be unavailable to it.
    """

    delays: tuple[float, ...] = (5.0, 30.0, 120.0, 600.0)
    timeout_attempts: int = 1
    crash_attempts: int = 2
    give_up_after: float = 24 * 3600.0


@frozen(kw_only=True)
class BreakerConfig:
    """``[breaker]``: when the grader is left alone.

    :ivar failures: after so many in a row.
    :ivar counts: the outcome words that are the grader's failures.
    :ivar pause: for so long; it doubles, up to ``longest_pause``, each time that one submission then fails as well.
    """

    failures: int = 5
    counts: tuple[str, ...] = ("unavailable",)
    pause: float = 5.0
    longest_pause: float = 300.0


@frozen(kw_only=True)
class QuarantineConfig:
    """``[quarantine]``: what becomes of a submission that agents die of.

    :ivar journal: the folder where is written down what is being graded; ``None`` = nowhere, and nothing is found out.
    :ivar max_starts: a submission that was being graded when agents died so often isn't graded any more.
    """

    journal: str | None = "edxagent-journal"
    max_starts: int = 5


@frozen(kw_only=True)
class LogConfig:
    """``[log]``: ``format`` is ``text`` or ``json``; ``level`` is a ``twisted.logger`` level name."""

    format: str = "text"
    level: str = "info"


@frozen(kw_only=True)
class LMSSourceConfig:
    """``[lms-config]``: where the agent asks for the broker's addresses and its queues.

    :ivar url: ``/agent/config`` of an ``edxagent-lms``; ``https``, or on this machine.
    :ivar cache_file: where the last good answer is kept.
    :ivar timeout: for one question.
    :ivar ca_file: PEM file with the authorities to trust; ``None`` = the platform's.
    :ivar tls: for ``amqps://`` in the answer.
    :ivar broker_password: for URLs in the answer that have none.
    """

    url: str
    api_key: str = field(repr=False)
    cache_file: str = "edxagent-lms-config.json"
    timeout: float = 10.0
    ca_file: str | None = None
    tls: TLSConfig = TLSConfig()
    broker_password: str | None = field(default=None, repr=False)


@frozen(kw_only=True)
class AgentConfig:
    """A whole ``agent.ini``.

    :ivar concurrency: submissions graded at once.
    :ivar drain_timeout: how long a stop waits for what is being graded.
    :ivar hold_limit: how long a submission may wait here for a slot before it goes back to its queue.
    :ivar max_request: the greatest request body, in bytes, that is looked at.
    :ivar lms: who tells the broker's addresses and the queues; they are empty until then. ``None`` = the file does.
    """

    name: str
    concurrency: int = 10
    drain_timeout: float = 30.0
    hold_limit: float = 10.0
    max_request: int = 16 * 1024 * 1024
    broker: BrokerConfig
    queues: tuple[QueueConfig, ...]
    grader: GraderConfig
    results: ResultsConfig = ResultsConfig()
    retry: RetryConfig = RetryConfig()
    breaker: BreakerConfig = BreakerConfig()
    quarantine: QuarantineConfig = QuarantineConfig()
    failure: FailureConfig = FailureConfig()
    log: LogConfig = LogConfig()
    lms: LMSSourceConfig | None = None
