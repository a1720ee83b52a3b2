"""One queue's side of the intake: when to ask the broker for one more request, and when to hold back.

*Alone* (nobody else competes for slots) a lane takes requests through consumers that may hold one request each. A
consumer whose request is settled may be sent the next one: it has *credit*. With every slot busy one credit, or one
held request, is enough to have work at hand when a slot comes free; while slots are free there may be as many spare
credits as free slots, all lanes together, and they are withdrawn as the slots fill. So a lane alone costs the broker
nothing but acks.

*In company* (others compete for the last slots) a lane queues up for its turn even when it has no request at hand, so
that slots go by weight and not to whoever's request happens to be here. It fetches by ``basic.get``: one request to
hold, or else one for each slot that it was given. An empty queue makes it leave its turn and wait with one consumer.

Never more than one request a lane waits here for a slot, so that other agents get the rest. One that waited too long
goes back, and the lane *queues up empty-handed*: it asks again only when it has a slot, so that no request travels to
and fro.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from attrs import define
from twisted.internet.defer import CancelledError, Deferred

from edxagent.agent.company import Company, Spares
from edxagent.agent.giving_back import GivingBack
from edxagent.agent.held import HeldDelivery
from edxagent.agent.port import QueuePort
from edxagent.errors import BrokerError
from edxagent.interfaces import IDelivery, IHeldDelivery
from edxagent.limits import FairSlots
from edxagent.tasks import Tasks


@define(eq=False)
class _Consumer:
    tag: str | None = None
    credit: bool = False
    leaving: bool = False


class Lane:
    """See the module.

    :param receive: takes a held delivery through its life; fires when it has ended, cancels on request.
    :param tasks: keeps track of what the lane launches.
    :param hungry: is called when the lane wants one more request; answers with :meth:`feed` before long.
    """

    def __init__(
        self,
        *,
        queue: str,
        port: QueuePort,
        slots: FairSlots,
        spares: Spares,
        company: Company,
        receive: Callable[[IHeldDelivery], Deferred[None]],
        tasks: Tasks,
        hungry: Callable[[Lane], None],
    ) -> None:
        self.queue = queue
        self._port = port
        self._slots = slots
        self._spares = spares
        self._company = company
        self._receive = receive
        self._tasks = tasks
        self._hungry = hungry
        self._consumers: dict[_Consumer, None] = {}
        self._credits = 0
        self._held: dict[HeldDelivery, None] = {}
        self._lives = 0
        self._gets = 0
        self._given = 0
        self._empty = False
        self._consuming: Deferred[None] = Deferred()
        self._turn: Deferred[None] | None = None
        self._closed = False
        self._back = GivingBack()
        self._broken: Deferred[BrokerError] = Deferred()

    @property
    def consuming(self) -> bool:
        """Whether the broker lets us have this queue's requests."""
        return self._consuming.called and not (self._closed or self._broken.called)

    def when_consuming(self) -> Deferred[None]:
        """Fires, once, when the broker has let us have this queue's requests."""
        return self._consuming

    def when_broken(self) -> Deferred[BrokerError]:
        """Fires, once, when the broker ended a consumer or the channel: this lane is of no more use."""
        return self._broken

    def feed(self) -> None:
        """Ask for one more request, if it is still wanted."""
        if not self._wanting:
            return
        if self._company.around(self):
            self._queue_up()
            self._fetch_soon()
        else:
            self._launch_consumer()

    def drop_spare(self) -> None:
        """Cancel one consumer that has credit."""
        self._leave(next(consumer for consumer in self._consumers if consumer.credit))

    def retire(self) -> None:
        """Take no more: what is held and not begun goes back, the channel is closed when nothing of it is graded."""
        self._closed = True
        self._back.end()
        self._leave_turn()
        for consumer in list(self._consumers):
            self._leave(consumer)
        for held in list(self._held):
            held.cancel()
        self._note()
        self._give_up_if_done()

    def _give_up_if_done(self) -> None:
        if self._closed and not self._lives:
            self._tasks.launch(self._port.close(), f"closing a channel of {self.queue}")

    @property
    def _wanting(self) -> bool:
        return not (self._closed or self._credits or self._held or self._gets or self._turn)

    def _want(self) -> None:
        self._note()
        if self._wanting:
            self._hungry(self)

    def _note(self) -> None:
        competes = bool(self._held or self._gets or self._given or self._turn)
        self._company.note(self, competes and not self._closed)

    def _set_credit(self, consumer: _Consumer, credit: bool) -> None:
        if consumer.credit is not credit:
            consumer.credit = credit
            before = self._credits
            self._credits += 1 if credit else -1
            self._spares.changed(self, before, self._credits)

    def _launch_consumer(self) -> None:
        consumer = _Consumer()
        self._consumers[consumer] = None
        self._set_credit(consumer, True)
        self._ask(self._consume(consumer), f"consuming {self.queue}")

    async def _consume(self, consumer: _Consumer) -> None:
        try:
            consumer.tag = await self._port.consume(partial(self._arrived, consumer), partial(self._ended, consumer))
        except BrokerError as error:
            self._ended(consumer, error)
            return
        self._welcomed()
        if consumer.leaving:
            await self._cancel(consumer.tag)

    def _ask(self, question: Coroutine[Deferred[Any], Any, None], what: str) -> None:
        self._back.asked()
        self._tasks.launch(question, what).addCallback(lambda _: self._back.answered())

    def _welcomed(self) -> None:
        if not self._consuming.called:
            self._consuming.callback(None)

    async def _cancel(self, tag: str) -> None:
        try:
            await self._port.cancel(tag)
        except BrokerError as error:
            self._break(error)

    def _queue_up(self) -> None:
        if self._turn is None and not self._closed:
            self._turn = self._slots.acquire(self.queue)
            self._tasks.launch(self._take_turn(self._turn), f"waiting for a slot for {self.queue}")

    def _leave_turn(self) -> None:
        if self._turn is not None:
            self._turn.cancel()

    async def _take_turn(self, turn: Deferred[None]) -> None:
        try:
            await turn
        except CancelledError:
            return
        finally:
            self._turn = None
        self._given += 1
        if self._company.around(self) and not self._empty:
            self._queue_up()
        if self._gets < self._given:
            self._fetch_soon()

    def _fetch_soon(self) -> None:
        self._gets += 1
        self._note()
        self._ask(self._fetch(), f"basic.get from {self.queue}")

    async def _fetch(self) -> None:
        delivery = None
        try:
            delivery = await self._port.get()
            self._welcomed()
        except BrokerError as error:
            self._break(error)
        except CancelledError:
            pass  # the session is gone
        finally:
            self._gets -= 1
        if delivery is not None:
            given = self._given > 0
            self._arrived(None, delivery, given)
            if given:
                self._given -= 1
                self._slots.hand_over(self.queue)
            return
        while self._given > self._gets:
            self._given -= 1
            self._slots.release()
        # Two lanes that both queue up again before they know would keep each other in company for ever.
        self._empty = True
        self._leave_turn()
        self._note()
        if self._wanting and not self._broken.called:
            self._launch_consumer()

    def _leave(self, consumer: _Consumer) -> None:
        self._set_credit(consumer, False)
        self._consumers.pop(consumer, None)
        consumer.leaving = True
        if consumer.tag is not None:  # otherwise its consume-ok isn't here yet, and _consume will cancel it
            self._ask(self._cancel(consumer.tag), f"cancelling a consumer of {self.queue}")

    def _ended(self, consumer: _Consumer, reason: BrokerError) -> None:
        self._set_credit(consumer, False)
        self._consumers.pop(consumer, None)
        self._break(reason)

    def _break(self, reason: BrokerError) -> None:
        if not self._broken.called:
            self._broken.callback(reason)

    def _arrived(self, consumer: _Consumer | None, delivery: IDelivery, given: bool = False) -> None:
        if consumer is not None:
            self._set_credit(consumer, False)
        self._empty = False
        crowded = self._held and not self._slots.free and not given  # it crossed our cancel on the way
        if self._closed or crowded:
            if consumer is not None and not consumer.leaving:
                self._leave(consumer)
            self._back.give(delivery)
            return
        settling = partial(self._settling, consumer)
        held = HeldDelivery(delivery, begun=self._begun, settling=settling, give_back=self._back.give)
        self._held[held] = None
        self._note()
        self._lives += 1
        life = self._receive(held)
        held.follow(life)
        life.addCallback(lambda _: self._over(held))
        if held in self._held and not given:
            self._leave_turn()  # the request waits for a slot itself

    def _over(self, held: HeldDelivery) -> None:
        """Its life has ended; one that failed and settled nothing mustn't stop the queue."""
        if held in self._held:
            del self._held[held]
            self._want()
        self._lives -= 1
        self._give_up_if_done()

    def _begun(self, held: HeldDelivery) -> None:
        self._held.pop(held, None)
        self._spares.withdraw()
        if self._company.around(self) and not self._held:
            self._queue_up()  # now, not soon: the next slot may be given away within this turn of the reactor
            if not (self._gets or self._credits):
                self._fetch_soon()
        self._want()

    def _settling(self, consumer: _Consumer | None, held: HeldDelivery, returning: bool) -> None:
        """Decide what becomes of the consumer before the broker hears that its request is settled."""
        waited = held in self._held
        self._held.pop(held, None)
        if consumer is not None and not consumer.leaving:
            if not returning and not self._closed and (self._wanting or self._spares.allowed):
                self._set_credit(consumer, True)
            else:
                self._leave(consumer)
        if returning and waited:
            self._queue_up()
        self._want()
