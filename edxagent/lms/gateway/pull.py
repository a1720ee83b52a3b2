"""XQueue's side for graders that poll: ``get_queuelen``, ``get_submission``, ``put_result``.

What is answered is XQueue's, word for word (``submission_queue/ext_interface.py``), because xqueue-watcher reads it.
But where XQueue remembers in a database what it handed out, the broker does here: a submission that is out with a
grader is an unacked delivery under a lease, and it is acked when the broker has confirmed the verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TimeIsOver
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from edxagent.agent.ending import Announcer, Ending
from edxagent.agent.results import ResultPublisher
from edxagent.agent.returns import returned_often
from edxagent.config.lms_values import GatewayConfig
from edxagent.errors import BadReply, BrokerError, BrokerUnreachable, MalformedRequest
from edxagent.interfaces import IDelivery
from edxagent.lms.contracts import Reply
from edxagent.lms.gateway.channels import AllOut, Channels, Taken
from edxagent.lms.gateway.leases import Lease, Leases, NoSuchLease, WrongKey
from edxagent.lms.gateway.ticket import content_of, read_ticket
from edxagent.model import Outcome, Submission
from edxagent.tasks import Tasks
from edxagent.verdict import check_verdict
from edxagent.wire.request import decode_request, requeued_request, submission_id
from edxagent.wire.result import Phases
from edxagent.words import shorten

GRADER = "pull"
"""What the results of graders that poll have as ``x-grader``."""

ANSWER_WITHIN = 4.5
"""Seconds that the broker has for whatever a grader asks for."""
MAX_REQUEST = 16 * 1024 * 1024
MAX_REPLY = 1024 * 1024
MOST_MALFORMED = 20
"""Requests that can't be read which one question of a grader clears away."""


class Pull:
    """See :class:`edxagent.lms.contracts.IPull`.

    :param obstacle: tells why no verdict could be passed on at the moment, if so: nothing is given out then.
    :param wall_clock: seconds since the epoch; ``clock`` may be a monotonic one.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        config: GatewayConfig,
        channels: Channels,
        announcer: Announcer,
        results: ResultPublisher,
        clock: IReactorTime,
        wall_clock: Callable[[], float],
        obstacle: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._config = config
        self._channels = channels
        self._leases = Leases(seconds=config.lease, clock=clock, expired=self._expired)
        self._announcer = announcer
        self._results = results
        self._clock = clock
        self._wall_clock = wall_clock
        self._obstacle = obstacle
        self._answers = Tasks()
        self._errands = Tasks()
        self._complaints: dict[str, str] = {}
        self._closed = True

    def use(self, config: GatewayConfig, announcer: Announcer, results: ResultPublisher) -> None:
        """Go by another configuration from now on. What is out with a grader may be answered as it was told."""
        self._config = config
        self._channels.most = config.max_leases
        self._leases.seconds = config.lease
        self._announcer = announcer
        self._results = results

    @property
    def leased(self) -> int:
        """How many submissions are out with graders."""
        return len(self._leases)

    async def get_queuelen(self, queue: str) -> Reply:
        """See :meth:`IPull.get_queuelen`."""
        if queue not in self._config.queues:
            return Reply(1, f"Valid queue names are: {', '.join(self._config.queues)}")
        return await self._answered(queue, self._queuelen(queue))

    async def get_submission(self, queue: str) -> Reply:
        """See :meth:`IPull.get_submission`."""
        if queue not in self._config.queues:
            return Reply(1, f"Queue '{queue}' not found")
        return await self._answered(queue, self._submission(queue))

    async def put_result(self, header: str, body: str) -> Reply:
        """See :meth:`IPull.put_result`. Once begun it isn't cancelled: the verdict is here, whoever has hung up."""
        try:
            lease = self._leases.claim(*read_ticket(header))
        except ValueError:
            return self._refused("Incorrect reply format")
        except NoSuchLease:
            return self._refused("Submission does not exist")
        except WrongKey:
            return self._refused("Incorrect key for submission")
        told: Deferred[Reply] = Deferred()
        self._answers.launch(self._tell(lease, body, told), "passing a verdict on")
        return await told

    def open(self) -> None:
        """Give out."""
        self._closed = False

    async def close(self) -> None:
        """Give no more out, pass on the verdicts that are here, and give back the rest."""
        self._closed = True
        await self._answers.when_idle()
        for lease in self._leases.end_all():
            self._give_back(lease.delivery)
        # The dead letters among the errands have all the time that there is; a program that ends hasn't.
        timer = self._clock.callLater(self._config.confirm_timeout, self._errands.cancel)
        await self._errands.when_idle()
        if timer.active():
            timer.cancel()
        await self._channels.close()

    def hurry(self) -> None:
        """Wait for nothing that the broker has to say."""
        self._answers.cancel()
        self._errands.cancel()

    # Giving out

    async def _answered(self, queue: str, answer: Coroutine[Deferred[Any], Any, Reply]) -> Reply:
        try:
            reply = await Deferred.fromCoroutine(answer).addTimeout(ANSWER_WITHIN, self._clock)
        except TimeIsOver:
            return self._unavailable(queue, f"no answer from the broker within {ANSWER_WITHIN:g} s")
        except (BrokerError, AllOut) as error:
            return self._unavailable(queue, str(error))
        self._complaints.pop(queue, None)
        return reply

    def _unavailable(self, queue: str, reason: str) -> Reply:
        if reason != self._complaints.get(queue):  # graders ask each second
            self._complaints[queue] = reason
            self._log.warn("graders that poll get nothing from {queue}: {reason}", queue=queue, reason=reason)
        return Reply(1, f"Queue '{queue}' can't be read now; ask again later")

    async def _queuelen(self, queue: str) -> Reply:
        return Reply(0, await self._channels.waiting(queue))

    async def _submission(self, queue: str) -> Reply:
        for _ in range(MOST_MALFORMED):
            if self._closed:
                break
            if (obstacle := self._obstacle()) is not None:
                raise BrokerUnreachable(f"no verdict could be passed on: {obstacle}")
            taken = await self._channels.take(queue)
            if taken is None:
                break
            if self._closed:  # meanwhile
                taken.requeue()
                break
            try:
                submission = decode_request(taken.body, taken.properties, queue, MAX_REQUEST)
            except MalformedRequest as error:
                ending = Ending(outcome=error.outcome, reason=str(error), header=error.header)
                self._errands.launch(self._bury(taken, ending), "burying a request")
                continue
            return Reply(0, content_of(self._lease(taken, submission), submission))
        return Reply(1, f"Queue '{queue}' is empty")

    def _lease(self, taken: Taken, submission: Submission) -> Lease:
        lease = self._leases.grant(taken, header=submission.header, received=self._wall_clock())
        taken.on_lost = lambda: self._lost(lease)
        return lease

    async def _bury(self, delivery: IDelivery, ending: Ending) -> None:
        """Settle a request that nobody can grade, however long the broker needs."""
        now = self._wall_clock()
        phases = Phases(received=now, finished=now)
        try:
            for message in self._announcer.messages(delivery, ending, phases, now):
                await self._results.publish(message)
        except (BrokerError, CancelledError):
            delivery.requeue()
            return
        self._report(delivery, ending, phases, delivery.ack())

    # Taking back

    async def _tell(self, lease: Lease, body: str, told: Deferred[Reply]) -> None:
        passing = Deferred.fromCoroutine(self._pass_on(lease, body))
        try:
            reply = await passing.addTimeout(self._config.confirm_timeout, self._clock)
        except Exception as error:
            self._leases.restore(lease)
            if not isinstance(error, (BrokerError, TimeIsOver, CancelledError)):
                self._log.failure("passing a verdict on failed")
            reply = self._refused("The verdict can't be passed on now; send it again")
        told.callback(reply)

    async def _pass_on(self, lease: Lease, body: str) -> Reply:
        """Publish, confirmed → ack → tell the grader. The lease doesn't expire meanwhile."""
        ending = self._ending(lease, body)
        now = self._wall_clock()
        phases = Phases(received=lease.received, started=lease.received, finished=now)
        for message in self._announcer.messages(lease.delivery, ending, phases, now):
            await self._results.publish(message)
        self._report(lease.delivery, ending, phases, lease.delivery.ack())
        return Reply(0, "")

    def _ending(self, lease: Lease, body: str) -> Ending:
        try:
            verdict = check_verdict(body.encode(errors="surrogatepass"), max_size=MAX_REPLY)
        except BadReply as error:
            return Ending(outcome=error.outcome, reason=str(error), header=lease.header)
        return Ending(outcome=Outcome.GRADED, verdict=verdict, header=lease.header)

    # Giving back

    def _expired(self, lease: Lease) -> None:
        self._log.warn(
            "no verdict on {submission} from a grader that polls within {seconds:g} s: it goes back to {queue}",
            submission=_id_of(lease.delivery),
            queue=lease.delivery.queue,
            seconds=lease.seconds,
        )
        self._give_back(lease.delivery)

    def _lost(self, lease: Lease) -> None:
        self._leases.lose(lease)
        self._log.warn(
            "the broker took {submission} back while a grader had it: it will come again from {queue}",
            submission=_id_of(lease.delivery),
            queue=lease.delivery.queue,
        )

    def _give_back(self, delivery: IDelivery) -> None:
        if returned_often(delivery):
            self._errands.launch(self._give_back_as_new(delivery), "giving a request back")
        else:
            delivery.requeue()

    async def _give_back_as_new(self, delivery: IDelivery) -> None:
        new = requeued_request(delivery.queue, delivery.body, delivery.properties)
        if await self._results.publish_once(new):
            delivery.ack()
        else:
            delivery.requeue()

    # What is said

    def _refused(self, content: str) -> Reply:
        self._log.warn("an answer of a grader that polls was refused: {reason}", reason=content)
        return Reply(1, content)

    def _report(self, delivery: IDelivery, ending: Ending, phases: Phases, settled: bool) -> None:
        report = self._log.info if ending.outcome is Outcome.GRADED else self._log.warn
        report(
            "{outcome}: {submission} from {queue} in {seconds:.3f} s, by a grader that polls{because}{again}",
            outcome=str(ending.outcome),
            submission=_id_of(delivery),
            queue=delivery.queue,
            seconds=round(self._wall_clock() - phases.received, 6),
            because=f": {shorten(ending.reason)}" if ending.reason else "",
            again="" if settled else "; its connection is gone, so it will come again",
        )


def _id_of(delivery: IDelivery) -> str:
    return shorten(submission_id(delivery.body, delivery.properties), 255)
