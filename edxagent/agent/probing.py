"""Single requests past a shut valve: whether the grader is well again is seen by a real one."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from edxagent.agent.held import HeldDelivery
from edxagent.agent.valve import Valve
from edxagent.errors import BrokerError
from edxagent.interfaces import IDelivery, IHeldDelivery
from edxagent.limits import FairSlots
from edxagent.tasks import Tasks

PAUSE = 1.0
"""Seconds between looking for a request and looking again."""
BREAKER = "breaker"
"""The one reason against requests that a probe doesn't mind: what it is there to find out about."""


class GetsRequests(Protocol):
    """What a probe needs of a channel."""

    async def get(self, queue: str) -> IDelivery | None:
        """The next request of a queue, if there is one."""
        ...

    async def close(self) -> None:
        """Give the channel up; the broker takes back what isn't settled."""
        ...


class Probing:
    """Takes one request at a time, from the queues in turn.

    :param open_channel: raises :class:`BrokerError` where there is no connection.
    :param queues: those in force.
    :param receive: takes a held delivery through its life; fires when it has ended.
    """

    def __init__(
        self,
        *,
        open_channel: Callable[[], Coroutine[Deferred[Any], Any, GetsRequests]],
        queues: Callable[[], Sequence[str]],
        slots: FairSlots,
        valve: Valve,
        receive: Callable[[IHeldDelivery], Deferred[None]],
        clock: IReactorTime,
    ) -> None:
        self._open_channel = open_channel
        self._queues = queues
        self._slots = slots
        self._valve = valve
        self._receive = receive
        self._clock = clock
        self._turn = 0
        self._probes = Tasks()
        self._errands = Tasks()
        valve.watch(self._give_up_if_open)

    def probe(self) -> Deferred[None]:
        """Take one request, as soon as there is one, through its life.

        :returns: fires when that has ended, or there is no need any more: the valve opened, or somebody gave up, by
            cancelling it or by :meth:`close`. What hasn't begun by then goes back; what has is finished.
        """
        return self._probes.launch(self._probe(), "trying a single request")

    async def close(self) -> None:
        """Give up. Returns when nothing more will come."""
        self._probes.cancel()
        await self._probes.when_idle()

    def _give_up_if_open(self) -> None:
        if self._valve.is_open:
            self._probes.cancel()

    async def _probe(self) -> None:
        while not self._valve.is_open:
            if self._welcome and await self._tried_one():
                return
            await deferLater(self._clock, PAUSE)

    @property
    def _welcome(self) -> bool:
        return bool(self._slots.free) and list(self._valve.reasons) == [BREAKER]

    async def _tried_one(self) -> bool:
        """Whether there was a request; its life has ended then."""
        delivery = None
        try:
            channel = await self._open_channel()
            try:
                delivery = await self._next(channel)
            finally:
                if delivery is None:
                    await channel.close()
        except BrokerError:
            pass  # the lanes say so too, when the valve is open; a lost channel gives back what came over it
        if delivery is None:
            return False
        await self._live(delivery, channel)
        return True

    async def _next(self, channel: GetsRequests) -> IDelivery | None:
        queues = self._queues()
        for _ in queues:
            self._turn += 1
            delivery = await channel.get(queues[self._turn % len(queues)])
            if delivery is not None:
                return delivery
        return None

    async def _live(self, delivery: IDelivery, channel: GetsRequests) -> None:
        begun: list[HeldDelivery] = []
        held = HeldDelivery(delivery, begun=begun.append, settling=lambda held, returning: None)
        over: Deferred[None] = Deferred()

        def end(_: None) -> None:
            self._errands.launch(channel.close(), "closing the channel of a single request")
            if not over.called:
                over.callback(None)

        life = self._receive(held)
        held.follow(life)
        life.addCallback(end)
        try:
            await over
        finally:
            if not begun:
                held.cancel()
