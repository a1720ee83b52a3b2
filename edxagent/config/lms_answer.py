"""What the LMS side answers an agent that asks for its configuration → what the agent makes of it.

The answer is checked as strictly as a file is: whoever made it may be mistaken, or worse. Keys that aren't known here
are left aside, for an LMS side that is newer than its agents.
"""

from __future__ import annotations

import msgspec
from attrs import evolve

from edxagent.config.broker import MOST_BROKERS
from edxagent.config.broker_url import broker_address
from edxagent.config.queues import MOST_QUEUES, queue_name
from edxagent.config.values import AgentConfig, BrokerAddress, LMSSourceConfig, QueueConfig
from edxagent.errors import BadAnswer

LARGEST_ANSWER = 1024 * 1024
HEAVIEST = 1000


class _Broker(msgspec.Struct):
    urls: list[str]


class _Queue(msgspec.Struct):
    weight: int = 1


class _Answer(msgspec.Struct):
    broker: _Broker
    queues: dict[str, _Queue]


_answer = msgspec.json.Decoder(_Answer)


def parse_answer(answer: bytes, config: AgentConfig) -> AgentConfig:
    """The configuration with the broker's addresses and the queues that an answer gives.

    :param config: has :attr:`AgentConfig.lms`.
    :raises BadAnswer: it isn't such an answer; says what is wrong, without quoting it: it may hold a password.
    """
    assert config.lms is not None
    if len(answer) > LARGEST_ANSWER:
        raise BadAnswer(f"it has more than {LARGEST_ANSWER} bytes")
    try:
        # As text: what is left aside isn't looked at otherwise, and might be none.
        parsed = _answer.decode(answer.decode())
    except msgspec.ValidationError as error:
        raise BadAnswer(f"it isn't as expected: {error}") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise BadAnswer("it isn't JSON") from None
    addresses = _addresses(parsed.broker.urls, config.lms)
    queues = _queues(parsed.queues)
    if config.results.queue in (queue.name for queue in queues):
        raise BadAnswer("[results] queue is one of its queues; verdicts would be graded")
    return evolve(config, broker=evolve(config.broker, addresses=addresses), queues=queues)


def _addresses(urls: list[str], source: LMSSourceConfig) -> tuple[BrokerAddress, ...]:
    if not 1 <= len(urls) <= MOST_BROKERS:
        raise BadAnswer(f"it gives {len(urls)} broker URLs; expected 1 to {MOST_BROKERS}")
    addresses = []
    for position, url in enumerate(urls, 1):
        try:
            addresses.append(broker_address(url, tls=source.tls, password=source.broker_password))
        except ValueError as error:
            raise BadAnswer(f"broker URL {position}: {error}") from None
    return tuple(addresses)


def _queues(queues: dict[str, _Queue]) -> tuple[QueueConfig, ...]:
    if not 1 <= len(queues) <= MOST_QUEUES:
        raise BadAnswer(f"it gives {len(queues)} queues; expected 1 to {MOST_QUEUES}")
    configured = []
    for position, (name, options) in enumerate(queues.items(), 1):
        try:
            queue_name(name)
        except ValueError as error:
            raise BadAnswer(f"queue {position}: {error}") from None
        if not 1 <= options.weight <= HEAVIEST:
            raise BadAnswer(f"queue {position}: its weight is {options.weight}; expected 1 to {HEAVIEST}")
        configured.append(QueueConfig(name=name, weight=options.weight))
    return tuple(configured)
