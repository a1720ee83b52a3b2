"""Publishes until the broker has confirmed: what a person waits for is never given up.

As long as anything can't be published, no more is taken: what would come of it couldn't be published either.
"""

from __future__ import annotations

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from edxagent.agent.valve import Valve
from edxagent.errors import BrokerError, MessageRefused, Unroutable
from edxagent.interfaces import IPublisher
from edxagent.model import RESULTS_EXCHANGE, Message
from edxagent.words import shorten

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 5.0
"""Seconds; not long, because the agent stands still meanwhile."""

_REASON = "publishing"


class ResultPublisher:
    """Around an ``IPublisher`` that tries once: tries again, with growing pauses, the same message with the same id.

    :param valve: is shut while anything is stuck.
    :ivar default_key: the routing key in ``grading.results`` for a verdict whose ``reply_to`` leads nowhere.
    """

    _log = Logger()

    def __init__(
        self, publisher: IPublisher, default_key: str, clock: IReactorTime, valve: Valve | None = None
    ) -> None:
        self._publisher = publisher
        self.default_key = default_key
        self._clock = clock
        self._valve = valve or Valve()
        self._stuck: set[object] = set()

    async def publish(self, message: Message) -> None:
        """Returns when the broker has the message; cancelling stops trying.

        :raises MessageRefused: AMQP can't carry it.
        """
        pause = FIRST_PAUSE
        this = object()
        try:
            while True:
                try:
                    await self._publisher.publish(message)
                    return
                except MessageRefused:
                    raise
                except BrokerError as error:
                    if isinstance(error, Unroutable) and self._may_redirect(message):
                        message = self._redirect(message)
                        continue
                    self._stuck.add(this)
                    self._complain(message, error, pause)
                await _sleep(pause, self._clock)
                pause = min(pause * 2, LONGEST_PAUSE)
        finally:
            self._stuck.discard(this)
            if not self._stuck:
                self._valve.open(_REASON)

    async def publish_once(self, message: Message) -> bool:
        """Try once; whether the broker has the message. Cancelling makes it ``False``."""
        try:
            await self._publisher.publish(message)
        except (BrokerError, CancelledError):
            return False
        return True

    def _may_redirect(self, message: Message) -> bool:
        return message.exchange == RESULTS_EXCHANGE and message.routing_key != self.default_key

    def _redirect(self, message: Message) -> Message:
        """A bad ``reply_to`` is its producer's fault and must not stop everybody else."""
        properties = message.properties
        headers = {**properties.headers, "x-reply-to": message.routing_key}
        self._log.warn(
            "no queue takes results for {reply_to}: the verdict on {submission} goes to {queue}",
            reply_to=message.routing_key,
            submission=properties.message_id,
            queue=self.default_key,
        )
        return evolve(message, routing_key=self.default_key, properties=evolve(properties, headers=headers))

    def _complain(self, message: Message, error: BrokerError, pause: float) -> None:
        self._log.warn(
            "{submission} can't be published to {exchange} with key {queue} ({reason}); again in {pause:g} s",
            submission=message.properties.message_id,
            exchange=message.exchange,
            queue=message.routing_key,
            reason=str(error),
            pause=pause,
        )
        self._valve.shut(
            _REASON, f"{message.exchange} can't be reached with the key {message.routing_key}: {shorten(str(error))}"
        )


def _sleep(seconds: float, clock: IReactorTime) -> Deferred[None]:
    return deferLater(clock, seconds)
