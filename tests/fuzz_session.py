"""A connection that hears whatever a broker may say: what we do on it meanwhile, and what must hold whatever comes."""

from __future__ import annotations

import gc
import re
from collections.abc import Sequence
from contextlib import suppress
from random import Random
from typing import Any

from pamqp import frame
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from edxagent.amqp.channel import Channel
from edxagent.amqp.client import ConnectionFactory, Wishes
from edxagent.errors import BrokerError, ChannelClosed
from tests.amqp_support import message
from tests.fuzz_streams import KEPT_BODY
from tests.scripted_broker import ADDRESS

# What differs from one execution to the next in how a connection ended.
_DETAIL = re.compile(r"(?<=method )[0-9a-f]+$|(?<=type )'.*|(?<=it has ).*|(?<=connection: ).*|(?<= )[0-9]+", re.S)


class Broken(Exception):
    """Something doesn't hold that must."""


class Line(StringTransport):
    """A transport that ends as TCP's does, not before whoever ended it has returned.

    :ivar ignored: what was said to it after the connection was cut; a real one ignores that too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False
        self.ignored: list[object] = []

    def abortConnection(self) -> None:
        """End it; what was written is lost."""
        if self.aborted:
            self.ignored.append("cut it")
        self.aborted = self.disconnecting = True

    def write(self, data: bytes) -> None:
        """Keep it, to be looked at."""
        if self.aborted:
            self.ignored.append(data)
        else:
            super().write(data)


class Session:
    """A connection and all that the agent does on one: consumes, publishes, fetches, asks, closes.

    :ivar end: ``waits``, or how the connection ended.
    """

    def __init__(self, random: Random, *, heartbeat: int = 30) -> None:
        self.random = random
        self.clock = Clock()
        wishes = Wishes(name="fuzz", heartbeat=heartbeat, call_timeout=10)
        self.client = ConnectionFactory(ADDRESS, wishes, self.clock).buildProtocol(None)
        self.line = Line()
        self.end = "waits"
        self.told: list[object] = []
        self.published: list[Deferred[Any]] = []
        self.cancellations = 0
        self.deliveries = 0
        self.channel: Channel | None = None
        self.complete = False
        self.client.makeConnection(self.line)
        self.client.when_lost().addCallback(self.told.append)
        self.use = Deferred.fromCoroutine(self._use())

    async def _use(self) -> None:
        client = self.client
        try:
            await client.open()
            self.channel = channel = await client.open_channel()
            await channel.confirm_select()
            await channel.declare_queue("q", arguments={"x-queue-type": "quorum"})
            tag = await channel.consume("q", self._receive, self._cancelled, prefetch=3, max_body=KEPT_BODY)
            for key in ("q", "nowhere", "q"):
                self.publish(key, b"123"[len(self.published) :][:1])
            while await channel.get("q"):
                pass
            second = await client.open_channel()
            with suppress(ChannelClosed):
                await second.declare_queue("missing", passive=True)
            await channel.cancel(tag)
            await channel.close()
            await client.finish(5)
            self.complete = True
        except (BrokerError, CancelledError):
            pass

    def publish(self, key: str, data: bytes) -> None:
        """Publish, and remember that somebody waits for the confirm."""
        assert self.channel is not None
        self.published.append(self.channel.publish(message(key, data)).addErrback(_expected))

    def _receive(self, delivery: Any) -> None:
        self.deliveries += 1
        if len(delivery.body) > KEPT_BODY:
            raise Broken(f"a body of {len(delivery.body)} bytes was kept")
        (delivery.ack if self.random.random() < 0.8 else delivery.requeue)()

    def _cancelled(self, reason: BrokerError) -> None:
        self.cancellations += 1

    def hear(self, data: bytes) -> None:
        """Bytes from the broker, and then perhaps the connection's end if they brought it about."""
        if self.line.aborted:
            self.lose()  # a transport that was cut brings no more
        ignored = len(self.line.ignored)
        self.client.dataReceived(data)
        if len(self.line.ignored) > ignored:
            raise Broken(f"after the end: {self.line.ignored[ignored:]}")
        if self.client.closed and not self.line.disconnecting:
            raise Broken("the connection is closed, but nobody hung up")
        kept, most = len(self.client._reader._kept), self.client._reader.max_payload + 8
        if kept > most and not self.client.closed:
            raise Broken(f"{kept} bytes of a frame are kept; {most} were agreed")
        if self.line.disconnecting and self.random.random() < 0.5:
            self.lose()

    def happen(self) -> None:
        """Something else that can happen meanwhile: time passes, buffers fill, somebody wants something or no more."""
        what = self.random.randrange(12)
        if self.line.aborted:
            self.lose()  # no time passes until then
        elif what < 4:
            self.clock.advance(self.random.choice((0.1, 5, 11, 20)))
        elif what < 6 and self.line.producer is not None:
            self.line.producer.pauseProducing()
        elif what < 9 and self.line.producer is not None:
            self.line.producer.resumeProducing()
        elif what == 9 and self.channel is not None and self.client.closing:
            self.publish("q", b"more")
        elif what == 10 and self.random.random() < 0.3:
            self.client.finish(5)
        elif what == 11 and self.random.random() < 0.3:
            self.use.cancel()

    def lose(self) -> None:
        """The connection is gone, if it wasn't already: ``end`` is why."""
        if not self.line.connected:
            return
        if self.line.aborted:
            reason: Exception = ConnectionAborted()
        elif self.line.disconnecting:
            reason = ConnectionDone()
        else:
            reason = self.random.choice((ConnectionDone(), ConnectionLost()))
        if self.line.disconnecting:
            self.end = _DETAIL.sub("…", str(self.client.reason).removeprefix(f"{ADDRESS}: ").partition(";")[0])
        self.line.connected = False
        self.line.producer = None
        self.client.connectionLost(Failure(reason))

    def check(self) -> None:
        """Whoever waited was told, once; nothing is left; all that was written is AMQP."""
        self.lose()
        unanswered = [deferred for deferred in (self.use, *self.published) if not deferred.called]
        if unanswered:
            raise Broken(f"{len(unanswered)} of us still wait for something")
        if len(self.told) != 1 or not isinstance(self.told[0], BrokerError):
            raise Broken(f"the connection's loss was told as {self.told}")
        if self.cancellations > 1:
            raise Broken("the consumer's end was told twice")
        if calls := self.clock.getDelayedCalls():
            raise Broken(f"left in the clock: {calls}")
        if self.client.channels:
            raise Broken("channels are left")
        written, names = self.line.value()[8:], []
        while written:
            size, _, item = frame.unmarshal(written)
            written = written[size:]
            names.append(item.name)
        after = names[names.index("Connection.CloseOk") + 1 :] if "Connection.CloseOk" in names else []
        if set(after) - {"Heartbeat"}:
            raise Broken(f"after the broker's end was agreed to: {after}")


def _expected(failure: Failure) -> None:
    failure.trap(BrokerError)


def run(random: Random, heard: Sequence[bytes], *, calm: bool = False) -> Session:
    """Let a connection hear that, with other things happening in between.

    :raises Exception: if something doesn't hold that must, or anything at all was raised or logged as an error.
    """
    errors: list[LogEvent] = []

    def watch(event: LogEvent) -> None:
        if event.get("log_failure") is not None:
            errors.append(event)

    globalLogPublisher.addObserver(watch)
    try:
        session = Session(random)
        for data in heard:
            session.hear(data)
            if not session.line.connected and random.random() < 0.3:
                break
            if not calm and random.random() < 0.1:
                session.happen()
        session.check()
        del session.use, session.published
        gc.collect()  # a Deferred that failed with nobody to hear of it says so when it goes
    finally:
        globalLogPublisher.removeObserver(watch)
    if errors:
        failure = errors[0]["log_failure"]
        raise Broken(f"logged as an error: {failure.getTraceback()}")
    return session
