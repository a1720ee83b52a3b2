"""One direction of a connection through the fault proxy, and what is wrong with it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

MOST_WAITING = 1 << 20
"""Bytes that a stream keeps before it takes no more from who sends them."""


@implementer(IPushProducer)
class Stream:
    """Bytes on their way from a source to a sink. Something may be wrong with it, or several things at once.

    :param reactor: provides ``IReactorTime``.
    :param did: where it counts what it does.
    :param close: ends the whole connection.
    :ivar passed: bytes that went through.
    """

    def __init__(self, reactor: Any, did: Counter[str], close: Callable[[], object]) -> None:
        self.passed = 0
        self._reactor = reactor
        self._did = did
        self._close = close
        self._source: Any = None
        self._sink: Any = None
        self._waiting: deque[tuple[float, bytes | None]] = deque()  # when it is due; None = the end
        self._size = 0
        self._stalled = False
        self._half_closed = False
        self._sink_full = False
        self._latency = 0.0
        self._bytes, self._interval, self._next = 0, 0.0, 0.0
        self._cut_at: int | None = None
        self._stall_at: int | None = None
        self._call: Any = None

    # What can be wrong

    def stall(self) -> None:
        """A black hole: nothing more goes through, not even the end, until :meth:`heal`."""
        self._did["stalled"] += 1
        self._stalled = True

    def stall_at(self, count: int) -> None:
        """Stall as soon as ``count`` bytes in all went through."""
        self._stall_at = count

    def delay(self, seconds: float) -> None:
        """Everything takes so long."""
        self._did["delayed"] += 1
        self._latency = seconds

    def trickle(self, count: int = 1, interval: float = 1.0) -> None:
        """``count`` bytes go through each ``interval`` seconds."""
        self._did["trickled"] += 1
        self._bytes, self._interval = count, interval

    def cut_at(self, count: int) -> None:
        """Cut the connection when ``count`` bytes in all went through: the receiver gets these, and then the end."""
        self._cut_at = count
        self._pump()

    def half_close(self) -> None:
        """Pretend to the receiver that the sender has closed its half; the other direction goes on."""
        self._did["half-closed"] += 1
        self._half_closed = True
        self._waiting.clear()
        self._sink.loseWriteConnection()

    def heal(self) -> None:
        """Be a good stream again; what waited goes on its way."""
        self._stalled, self._latency, self._interval = False, 0.0, 0.0
        self._cut_at = self._stall_at = None
        self._pump()

    # What goes through

    def connect(self, source: Any, sink: Any) -> None:
        """Both transports are there."""
        self._source, self._sink = source, sink
        sink.registerProducer(self, True)
        self._pump()

    def enter(self, data: bytes | None) -> None:
        """Bytes came, or the end."""
        if self._half_closed and data is not None:
            return
        self._waiting.append((self._reactor.seconds() + self._latency, data))
        self._size += len(data or b"")
        if self._stalled:
            self._did["bytes withheld"] += len(data or b"")
        self._pump()

    def pauseProducing(self) -> None:
        """The receiver can take no more."""
        self._sink_full = True
        self._balance()

    def resumeProducing(self) -> None:
        """The receiver can take more."""
        self._sink_full = False
        self._pump()

    def stopProducing(self) -> None:
        """The receiver is gone."""
        self._waiting.clear()

    def stop(self) -> None:
        """The connection is over."""
        self._waiting.clear()
        if self._sink is not None:
            self._sink.unregisterProducer()  # or its transport would wait for what the producer still has to say
        if self._call is not None and self._call.active():
            self._call.cancel()

    def _pump(self) -> None:
        while self._waiting and self._sink is not None and not (self._stalled or self._sink_full):
            due, data = self._waiting[0]
            due = max(due, self._next)
            if due > self._reactor.seconds():
                self._again_at(due)
                break
            if data is None:
                self._waiting.popleft()
                self._close()
                return
            self._pass(data[: self._allowed(len(data))])
        if self._sink is not None:
            self._balance()

    def _allowed(self, count: int) -> int:
        """How many of ``count`` bytes may go through now."""
        if self._interval:
            self._next = self._reactor.seconds() + self._interval
            count = min(count, self._bytes)
        for limit in (self._cut_at, self._stall_at):
            if limit is not None:
                count = min(count, max(0, limit - self.passed))
        return count

    def _pass(self, part: bytes) -> None:
        due, data = self._waiting.popleft()
        assert data is not None
        if len(part) < len(data):
            self._waiting.appendleft((due, data[len(part) :]))
        self.passed += len(part)
        self._size -= len(part)
        self._sink.write(part)
        if self._cut_at is not None and self.passed >= self._cut_at:
            self._did["cut"] += 1
            self._waiting.clear()
            self._close()
        elif self._stall_at is not None and self.passed >= self._stall_at:
            self.stall()

    def _again_at(self, due: float) -> None:
        if self._call is None or not self._call.active():
            self._call = self._reactor.callLater(max(0.0, due - self._reactor.seconds()), self._pump)

    def _balance(self) -> None:
        if self._sink_full or self._size > MOST_WAITING:
            self._source.pauseProducing()
        else:
            self._source.resumeProducing()
