"""A broker that says what a test writes for it, over a transport in memory; its words are pamqp's, not ours."""

from __future__ import annotations

from typing import Any

from pamqp import body, commands, frame, header
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from edxagent.amqp.channel import Channel
from edxagent.amqp.client import BrokerConnection, ConnectionFactory, Wishes
from edxagent.config.values import BrokerAddress

ADDRESS = BrokerAddress(host="rabbit.example.org", port=5672, username="grader", password="s3cret")


class Wire(StringTransport):
    """A transport that loses its connection when it is told to."""

    def __init__(self, lost: Any) -> None:
        super().__init__()
        self._lost = lost

    def loseConnection(self) -> None:
        """End it at once, as an empty buffer lets one."""
        if self.connected:
            self.connected = False
            self._lost(Failure(ConnectionDone()))

    def abortConnection(self) -> None:
        """End it, whatever is in the buffer."""
        if self.connected:
            self.connected = False
            self._lost(Failure(ConnectionAborted()))


class ScriptedBroker:
    """One connection of ours, and the other end of it."""

    def __init__(self, *, heartbeat: int = 0, call_timeout: float = 10.0) -> None:
        self.clock = Clock()
        wishes = Wishes(name="test", heartbeat=heartbeat, call_timeout=call_timeout)
        self.client: BrokerConnection = ConnectionFactory(ADDRESS, wishes, self.clock).buildProtocol(None)
        self.wire = Wire(self.client.connectionLost)
        self.client.makeConnection(self.wire)
        self.greeting = self.wire.value()
        self.wire.clear()

    def say(self, *frames: Any, channel: int = 1) -> None:
        """Send frames: methods, headers, bodies; ``bytes`` as they are."""
        for item in frames:
            self.client.dataReceived(item if isinstance(item, bytes) else frame.marshal(item, channel))

    def content(
        self, method: Any, content: bytes, *, frame_max: int = 131072, channel: int = 1, **properties: Any
    ) -> None:
        """Send a method with its content."""
        self.say(
            method, header.ContentHeader(0, len(content), commands.Basic.Properties(**properties)), channel=channel
        )
        for start in range(0, len(content), frame_max - 8):
            self.say(body.ContentBody(content[start : start + frame_max - 8]), channel=channel)

    def heard(self) -> list[Any]:
        """The frames that were sent to us since the last call."""
        data, frames = self.wire.value(), []
        self.wire.clear()
        while data:
            size, _, item = frame.unmarshal(data)
            frames.append(item)
            data = data[size:]
        return frames

    def names(self) -> list[str]:
        """Their names."""
        return [item.name for item in self.heard()]

    def start(self, **changes: Any) -> None:
        """Introduce ourselves."""
        self.say(commands.Connection.Start(0, 9, {"product": "RabbitMQ"}, "PLAIN AMQPLAIN", "en_US"), channel=0)

    def tune(self, *, channel_max: int = 2047, frame_max: int = 131072, heartbeat: int = 60) -> None:
        """Propose limits."""
        self.say(commands.Connection.Tune(channel_max, frame_max, heartbeat), channel=0)

    def open(self, **limits: int) -> None:
        """The whole handshake."""
        opened: list[Any] = []
        Deferred.fromCoroutine(self.client.open()).addBoth(opened.append)
        self.start()
        self.tune(**limits)
        self.say(commands.Connection.OpenOk(), channel=0)
        assert opened == [None], opened
        self.heard()

    def open_channel(self) -> Channel:
        """A channel."""
        opened: list[Any] = []
        Deferred.fromCoroutine(self.client.open_channel()).addBoth(opened.append)
        self.say(commands.Channel.OpenOk(), channel=max(self.client.channels))
        self.heard()
        channel: Channel = opened[0]
        return channel

    def open_confirming(self) -> Channel:
        """A channel in confirm mode."""
        channel = self.open_channel()
        Deferred.fromCoroutine(channel.confirm_select())
        self.say(commands.Confirm.SelectOk(), channel=channel.id)
        self.heard()
        return channel
