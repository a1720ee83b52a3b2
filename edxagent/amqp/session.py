"""One opened connection of a link, as those see it who use it while it lasts."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from edxagent.amqp.channel import Channel
from edxagent.amqp.client import BrokerConnection
from edxagent.config.values import BrokerAddress
from edxagent.errors import BrokerError


class Session:
    """A connection to one broker, from its handshake to its loss.

    :ivar generation: rises with each session of a link, so that what belongs to an older one can be told.
    :ivar address: the broker's.
    """

    _log = Logger()

    def __init__(self, connection: BrokerConnection, generation: int) -> None:
        self._connection = connection
        self._watchers: list[Callable[[str | None], object]] = []
        self.generation = generation
        self.address: BrokerAddress = connection.address
        connection.on_blocked = self._tell_watchers

    @property
    def alive(self) -> bool:
        """Whether it isn't lost, or about to be."""
        return not self._connection.closing

    @property
    def blocked(self) -> str | None:
        """Why the broker takes no publishes at the moment (it is short of memory or disk), or ``None``."""
        return self._connection.blocked

    def watch_blocked(self, watcher: Callable[[str | None], object]) -> None:
        """Call ``watcher`` with :attr:`blocked` whenever it changes."""
        self._watchers.append(watcher)

    async def open_channel(self) -> Channel:
        """Open a channel.

        :raises BrokerUnreachable: the session is lost, or the broker didn't answer in time.
        """
        return await self._connection.open_channel()

    def when_lost(self) -> Deferred[None]:
        """Fires when the session is lost, or at once if it is already."""
        return self._connection.when_lost().addCallback(lambda reason: None)

    def when_ended(self) -> Deferred[BrokerError]:
        """As :meth:`when_lost`, with the reason."""
        return self._connection.when_lost()

    def close(self, within: float) -> Deferred[BrokerError]:
        """Close the connection in peace, or cut it after ``within`` seconds; fires when it is gone."""
        return self._connection.finish(within)

    def _tell_watchers(self, reason: str | None) -> None:
        for watcher in list(self._watchers):
            try:
                watcher(reason)
            except Exception:
                self._log.failure("A watcher of blocked connections failed.")
