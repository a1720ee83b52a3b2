"""Finds a connection over which nothing comes any more, though it looks alive and messages are ready."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from edxagent.amqp.session import Session
from edxagent.errors import BrokerError
from edxagent.tasks import Tasks

LOOKS = 4
"""How often, within the time that it gives a connection, it looks whether something has come."""
STRIKES = 3
"""So many connections in a row may bring nothing before somebody else must help."""
CLOSE_WITHIN = 5.0
"""Seconds that the broker has to agree to the end of a connection."""


class Watchdog:
    """Has a connection made anew over which nothing came for ``seconds``, while something should have.

    Only then it asks the broker whether messages are ready, twice, a fourth of that time apart: what was ready once may
    have been on its way to somebody else.

    :param hungry: the session over which the next message is expected now; ``None`` = nothing is.
    :param queues: where it would come from.
    :param on_stuck: is called when nothing came over three connections in a row; then it begins to count anew.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        seconds: float,
        hungry: Callable[[], Session | None],
        queues: Callable[[], Iterable[str]],
        on_stuck: Callable[[], object],
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._hungry = hungry
        self._queues = queues
        self._on_stuck = on_stuck
        self._tasks = Tasks()
        self._session: Session | None = None
        self._fed = False
        self._quiet = 0
        self._suspected = False
        self._strikes = 0

    def start(self) -> None:
        """Watch; with ``seconds`` = 0 every connection is believed."""
        self._strikes = 0
        if self._seconds:
            self._tasks.launch(self._watch(), "watching for messages that don't come")

    def stop(self) -> None:
        """Watch no more."""
        self._tasks.cancel()

    def fed(self) -> None:
        """A message has come."""
        self._fed = True
        self._strikes = 0

    async def _watch(self) -> None:
        while True:
            await deferLater(self._clock, self._seconds / LOOKS)
            await self._look()

    async def _look(self) -> None:
        if not self._in_vain(self._hungry()):
            return
        self._quiet += 1
        if self._quiet < LOOKS or self._session is None:
            return
        session = self._session
        queue = await _ready_queue(session, self._queues())
        if not self._in_vain(self._hungry()):
            return
        if queue is None:
            self._forget(session)
        elif not self._suspected:
            self._suspected = True
        else:
            self._strike(session, queue)

    def _in_vain(self, session: Session | None) -> bool:
        """Whether nothing came since the last look, though it should have."""
        if session is None or session is not self._session or self._fed:
            self._forget(session)
            return False
        return True

    def _forget(self, session: Session | None) -> None:
        self._session, self._fed, self._quiet, self._suspected = session, False, 0, False

    def _strike(self, session: Session, queue: str) -> None:
        self._forget(None)
        self._strikes += 1
        self._log.error(
            "{broker}: nothing has come for {seconds:g} s, though messages are ready in {queue}: {remedy}",
            broker=session.address,
            seconds=self._seconds,
            queue=queue,
            remedy="connecting anew" if self._strikes < STRIKES else "a new connection doesn't help",
        )
        if self._strikes < STRIKES:
            session.close(CLOSE_WITHIN)
        else:
            self._strikes = 0
            self._on_stuck()


async def _ready_queue(session: Session, queues: Iterable[str]) -> str | None:
    """A queue that has messages ready; ``None`` also if the broker doesn't say."""
    try:
        channel = await session.open_channel()
        try:
            for queue in queues:
                if (await channel.declare_queue(queue, passive=True)).messages:
                    return queue
        finally:
            await channel.close()
    except BrokerError:
        pass  # whoever takes messages from that queue meets it too, and says so
    return None
