"""Offers a result to the sinks, each guarded by a breaker, and says what is left to do."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.logger import Logger

from edxagent.breaker import Breaker
from edxagent.errors import PossiblyRecorded, SinkRefused, SinkUnavailable
from edxagent.interfaces import IResultSink
from edxagent.lms.contracts import BRIDGE_ORIGIN
from edxagent.lms.updater.notes import Notes
from edxagent.model import CheckedResult
from edxagent.wire.journey import Journey
from edxagent.words import shorten


@define(kw_only=True)
class Fate:
    """What became of one offer.

    :ivar journey: how far the result has come with it.
    :ivar taken: the sinks that took it.
    :ivar waiting: sink → why it should be asked again.
    :ivar parked: sink → why it never will; ``None`` stands for all.
    :ivar at_least: seconds before another attempt makes sense; ``inf`` = as long as may be.
    :ivar asked: whether a sink was really asked, and not only left alone.
    """

    journey: Journey = field(factory=Journey)
    taken: list[str] = field(factory=list)
    waiting: dict[str, str] = field(factory=dict)
    parked: dict[str | None, str] = field(factory=dict)
    at_least: float = 0.0
    asked: bool = False

    @property
    def reasons(self) -> str:
        """All that went wrong, on one short line."""
        said = (*self.waiting.items(), *self.parked.items())
        return shorten("; ".join(reason if sink is None else f"{sink}: {reason}" for sink, reason in said))


class Desk:
    """Where results are handed to sinks.

    :param refusal_attempts: how often a sink may refuse a result before it is parked.
    """

    _log = Logger()

    def __init__(
        self, *, sinks: Mapping[str, IResultSink], breaker: Breaker, refusal_attempts: int, notes: Notes
    ) -> None:
        self._sinks = sinks
        self._breaker = breaker
        self._refusal_attempts = refusal_attempts
        self._notes = notes

    async def offer(self, result: CheckedResult, journey: Journey) -> Fate:
        """Offer it to every sink that it is for and that needs it still, one after the other."""
        fate = Fate(journey=journey)
        for name, sink in self._sinks.items():
            if name in journey.done:
                continue
            try:
                target = self._target(name, sink, result)
                if target is None:
                    continue
                await self._ask(name, sink, target, result, fate)
            except SinkUnavailable as error:
                fate.waiting[name] = str(error)
                fate.at_least = max(fate.at_least, error.retry_after or 0.0)
                self._note(result, name, "retrying", error)
            except PossiblyRecorded as error:
                fate.parked[name] = str(error)
                self._note(result, name, "possibly-recorded", error)
            except SinkRefused as error:
                fate.journey = fate.journey.refused_by(name)
                if fate.journey.refusals[name] < self._refusal_attempts:
                    fate.waiting[name] = str(error)
                    # A proxy's error page in the middle of an update of the LMS looks just the same: give it time.
                    fate.at_least = inf
                    self._note(result, name, "retrying", error)
                    continue
                fate.parked[name] = str(error)
                self._note(result, name, "parked", error)
            else:
                fate.taken.append(name)
                self._note(result, name, "delivered")
        for name in (*fate.taken, *filter(None, fate.parked)):
            fate.journey = fate.journey.without(name)
        if not fate.waiting and (not fate.journey.done or self._lacks_its_bridge(result)):
            fate.parked[None] = f"no sink is for a result from {result.origin or 'nowhere'}: see the sections [sink:…]"
        return fate

    def _lacks_its_bridge(self, result: CheckedResult) -> bool:
        """Whether its LMS will never know the verdict, whoever else has taken it."""
        origin = result.origin or ""
        return origin.startswith(BRIDGE_ORIGIN) and origin not in self._sinks

    def _target(self, name: str, sink: IResultSink, result: CheckedResult) -> str | None:
        try:
            return sink.target(result)
        except Exception as error:
            raise self._surprised(name, result, error) from None

    async def _ask(self, name: str, sink: IResultSink, target: str, result: CheckedResult, fate: Fate) -> None:
        """Hand it over.

        :raises CancelledError: the caller cancelled; and only then.
        """
        if not self._breaker.allows(target):
            raise SinkUnavailable(f"{target} failed too often and is left alone", self._breaker.remaining(target))
        fate.asked = True
        attempt = _Attempt()
        try:
            attempt.make(ensureDeferred(sink.deliver(result)))
            await attempt
        except SinkUnavailable as error:
            if self._breaker.failed(target):
                self._log.error(
                    "{sink}: {target} failed too often and is left alone for now: {reason}",
                    sink=name,
                    target=target,
                    reason=shorten(str(error)),
                )
            raise
        except PossiblyRecorded:
            self._breaker.unknown(target)
            raise
        except SinkRefused:
            self._answered(name, target)
            raise
        except Exception as error:
            self._breaker.unknown(target)
            if attempt.cancelled:
                raise CancelledError from None
            raise self._surprised(name, result, error) from None
        self._answered(name, target)

    def _answered(self, name: str, target: str) -> None:
        if self._breaker.answered(target):
            self._log.info("{sink}: {target} answers again", sink=name, target=target)

    def _surprised(self, name: str, result: CheckedResult, error: Exception) -> SinkRefused:
        self._log.failure("{sink} raised what it must not", sink=name, submission=result.submission)
        return SinkRefused(f"the sink raised {type(error).__name__}")

    def _note(self, result: CheckedResult, sink: str, state: str, error: Exception | None = None) -> None:
        self._notes.sink(result.submission, sink, state, "" if error is None else shorten(str(error)))


class _Attempt(Deferred[None]):
    """What a sink is doing; knows whether somebody cancelled it.

    A ``CancelledError`` of the sink's own, taken for the caller's, would send the result back to its queue for ever.
    """

    cancelled = False

    def make(self, work: Deferred[None]) -> None:
        """It is this."""
        self.addCallback(lambda _: work)
        self.callback(None)

    def cancel(self) -> None:
        """See ``Deferred``."""
        self.cancelled = True
        super().cancel()
