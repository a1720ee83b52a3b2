"""The names of request queues, and what may be said about each."""

from __future__ import annotations

from typing import Any

from edxagent.config.keys import Key
from edxagent.config.parsers import count_between, did_you_mean, has_control_characters
from edxagent.model import dead_queue_of

LONGEST_QUEUE_NAME = 200
MOST_QUEUES = 1000
DEAD_SUFFIX = dead_queue_of("")


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


QUEUE_KEYS = (Key("weight", count_between(1, 1000), 1, "The queue's share when all slots are busy."),)
"""The options behind a queue's ``=``, as in ``6002x-exam = weight=2``."""
