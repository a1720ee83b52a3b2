"""Sends samples, a bounded number unanswered at once, and sees what becomes of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.defer import TimeoutError as WaitedLongEnough
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from edxagent.cli.report import Record
from edxagent.cli.submissions import Sample
from edxagent.errors import EdxagentError
from edxagent.interfaces import IPublisher
from edxagent.model import Properties
from edxagent.tasks import Tasks
from edxagent.wire.result import Result, decode_result


@define
class _Sighting:
    """What was seen of a sample up to now. ``answered`` fires when its verdict is here."""

    sample: Sample
    sent_at: float
    answered: Deferred[None] = field(factory=Deferred)
    result: Result | None = None
    seconds: float | None = None

    def record(self) -> Record:
        """What will be reported."""
        return Record(
            submission=self.sample.submission,
            sort=self.sample.sort,
            outcome=None if self.result is None else self.result.outcome,
            score=None if self.result is None else float(self.result.verdict["score"]),
            seconds=self.seconds,
        )


class Exchange:
    """One run of samples through a broker.

    :param queue: where they are sent.
    :param reply_to: under which routing key verdicts come back, ``None`` = the usual place; whoever consumes them calls
        :meth:`result_arrived`.
    :param unanswered: how many samples may be without an answer at once.
    :param timeout: how long to wait for an answer after the broker has a sample, in seconds; ``None`` = not at all.
    :ivar sent: samples that the broker has.
    :ivar records: of those whose wait is over.
    :ivar repeated: answers beyond the first.
    """

    def __init__(
        self,
        *,
        clock: IReactorTime,
        wall_clock: Callable[[], float],
        publisher: IPublisher,
        queue: str,
        reply_to: str | None,
        unanswered: int,
        timeout: float | None,
    ) -> None:
        self.sent = 0
        self.records: list[Record] = []
        self.repeated = 0
        self._clock = clock
        self._wall_clock = wall_clock
        self._publisher = publisher
        self._queue = queue
        self._reply_to = reply_to
        self._timeout = timeout
        self._places = DeferredSemaphore(unanswered)
        self._sightings: dict[str, _Sighting] = {}
        self._tasks = Tasks()
        self._work: Deferred[None] | None = None
        self._failure: EdxagentError | None = None
        self._began = self._ended = clock.seconds()

    @property
    def answered(self) -> int:
        """Samples whose wait is over."""
        return len(self.records)

    @property
    def seconds(self) -> float:
        """From the beginning of the run to the last answer."""
        return self._ended - self._began

    async def run(self, samples: Iterable[Sample], rate: float | None = None) -> None:
        """Send them and wait until each has its answer, or has waited long enough for one.

        :param rate: samples a second; ``None`` = as fast as they are answered.
        :raises BrokerError: one couldn't be published, or :meth:`fail` was called.
        """
        self._began = self._ended = self._clock.seconds()
        self._work = Deferred.fromCoroutine(self._send_all(samples, rate))
        try:
            await self._work
        except CancelledError:
            if self._failure is None:
                raise
        finally:
            self._tasks.cancel()
        if self._failure is not None:
            raise self._failure

    def fail(self, error: EdxagentError) -> None:
        """Give up: nothing more can arrive."""
        if self._failure is None:
            self._failure = error
            self._clock.callLater(0, self._give_up)  # not now: it may be the work itself that calls

    def result_arrived(self, body: bytes, properties: Properties) -> None:
        """Take in a message from the reply queue."""
        try:
            result = decode_result(body, properties)
            float(result.verdict["score"])
        except (ValueError, KeyError, TypeError):
            self.fail(EdxagentError(f"what came back for {properties.message_id} isn't a result"))
            return
        sighting = self._sightings.get(result.submission)
        if sighting is None or sighting.result is not None:
            self.repeated += 1
            return
        sighting.result = result
        sighting.seconds = self._clock.seconds() - sighting.sent_at
        self._ended = self._clock.seconds()
        sighting.answered.callback(None)

    def _give_up(self) -> None:
        if self._work is not None:
            self._work.cancel()

    async def _send_all(self, samples: Iterable[Sample], rate: float | None) -> None:
        for number, sample in enumerate(samples):
            await self._places.acquire()
            if rate is not None:
                await deferLater(self._clock, max(0.0, self._began + number / rate - self._clock.seconds()))
            self._tasks.launch(self._send(sample), "sending a sample")
        await self._tasks.when_idle()

    async def _send(self, sample: Sample) -> None:
        sighting = self._sightings[sample.submission] = _Sighting(sample, self._clock.seconds())
        try:
            await self._publisher.publish(
                sample.message(queue=self._queue, reply_to=self._reply_to, timestamp=int(self._wall_clock()))
            )
            self.sent += 1
            self._ended = self._clock.seconds()
            if self._timeout is not None:
                await sighting.answered.addTimeout(self._timeout, self._clock)
        except WaitedLongEnough:
            pass
        except EdxagentError as error:
            self.fail(error)
            return
        finally:
            del self._sightings[sample.submission]
            self._places.release()
        self.records.append(sighting.record())
