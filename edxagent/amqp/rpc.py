"""A channel's plumbing: calls matched with their answers, contents put together, and every way that it can end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from txamqp.message import Message as Reply
from txamqp.protocol import AMQChannel

from edxagent.amqp.codec import Malformed
from edxagent.amqp.content import Content
from edxagent.amqp.frames import METHOD, pack_frame
from edxagent.amqp.methods import (
    ACK,
    DELIVER,
    NACK,
    Deliver,
    decode_ack,
    decode_deliver,
    decode_header,
    decode_method,
    encode_method,
)
from edxagent.errors import BrokerError, BrokerUnreachable

_CONNECTION = b"\x00\x0a"


class _Call:
    """A question that the broker has yet to answer; asked when those before it are answered."""

    __slots__ = ("data", "deferred", "name", "responses", "timer")

    def __init__(self, method: Any, data: bytes, deferred: Deferred[Any]) -> None:
        self.name = f"{method.klass.name}.{method.name}"
        self.responses: Sequence[Any] = method.responses
        self.data = data
        self.deferred = deferred
        self.timer: IDelayedCall | None = None

    def stop_timer(self) -> None:
        """The deadline is of no more interest."""
        if self.timer is not None and self.timer.active():
            self.timer.cancel()


class RPCChannel(AMQChannel):  # type: ignore[misc]  # txamqp has no types
    """txamqp's channel with its own ``invoke`` and ``dispatch``.

    txamqp generates a method for each of AMQP's (``queue_declare``, ``basic_qos`` …); each ends in :meth:`invoke`.

    :ivar closed: whether it can't be used any more.
    :ivar reason: why, once it is closed.
    """

    _log = Logger()
    closed: bool
    reason: BrokerError

    def __init__(self, id: int, outgoing: object, client: Any) -> None:
        super().__init__(id, outgoing, client)
        self._calls: deque[_Call] = deque()
        self._content: Content | None = None
        self._closed_waiters: list[Deferred[BrokerError]] = []

    def invoke(self, method: Any, args: Sequence[Any], content: None = None) -> Deferred[Any]:
        """Send a method; fires with the broker's answer, or at once with ``None`` where none is to come.

        Calls are sent one after the other. Cancelling one that was sent, like its deadline, closes the channel: an
        answer that comes late must not be taken for the next call's.

        :raises MessageRefused: an argument doesn't fit; nothing was sent.
        """
        refusal = self.refusal()
        if refusal is not None:
            return fail(refusal)
        return self._send(method, args)

    def refusal(self) -> BrokerError | None:
        """Why nothing can be sent on this channel any more, if so."""
        if self.closed:
            return self.reason
        if self.client.closing:
            return BrokerUnreachable(f"the connection to {self.client} is being closed")
        return None

    def when_closed(self) -> Deferred[BrokerError]:
        """Fires, once the channel can't be used any more, with the reason."""
        if self.closed:
            return succeed(self.reason)
        self._closed_waiters.append(Deferred())
        return self._closed_waiters[-1]

    def do_close(self, reason: BrokerError) -> None:
        """The channel is no more: tell everybody who waits for something from it. May be called again."""
        self._end(reason)

    def leave(self, reason: BrokerError) -> Deferred[Any]:
        """Close the channel from our side; what still waits on it fails with ``reason``.

        :returns: fires when the broker has agreed; until then the channel's number isn't used again.
        """
        if self.closed:
            return succeed(None)
        self._end(reason)
        if self.client.closed:  # by one of those who were told just now
            return succeed(None)
        return self.ask("channel", "close", 200, "", 0, 0)

    def ask(self, klass: str, name: str, *args: object) -> Deferred[Any]:
        """Send a method by name even if the channel or the connection is closing; otherwise as :meth:`invoke`."""
        return self._send(self.client.spec.classes.byname[klass].methods.byname[name], args)

    # What comes in

    def method_received(self, payload: bytes) -> None:
        """A method frame for this channel.

        :raises Malformed: it can't be read, or comes where it mustn't.
        """
        if self._content is not None:
            raise Malformed("a method within a content")
        if (payload[:2] == _CONNECTION) is not (self.id == 0):
            raise Malformed("a method on a channel that isn't for it")
        key = payload[:4]
        if key == DELIVER:
            self._content = Content(decode_deliver(payload))
        elif key in (ACK, NACK):
            tag, multiple = decode_ack(payload)
            if not self.closed:
                self._confirmed(tag, multiple, key == ACK)
        else:
            method, args = decode_method(payload)
            reply = Reply(method, args)
            if method.content:
                self._content = Content(reply)
            else:
                self._dispatch(reply)

    def header_received(self, payload: bytes) -> None:
        """A content header frame for this channel; raises as :meth:`method_received` does."""
        content = self._content
        if content is None or content.properties is not None:
            raise Malformed("a content header without its method")
        size, properties = decode_header(payload)
        content.begin(size, properties, 0 if self.closed else self._body_limit(content))
        if not size:
            self._content_complete(content)

    def body_received(self, payload: bytes) -> None:
        """A body frame for this channel; raises as :meth:`method_received` does."""
        content = self._content
        if content is None or content.properties is None:
            raise Malformed("a body without its header")
        if content.add(payload):
            self._content_complete(content)

    def _content_complete(self, content: Content) -> None:
        self._content = None
        if isinstance(content.announced, Deliver):
            if self.refusal() is None:
                self._delivered(content)
        else:
            content.announced.content = content
            self._dispatch(content.announced)

    def _dispatch(self, reply: Any) -> None:
        if self.closed:
            # Only the end of the farewell matters; the rest was sent before the broker knew.
            if reply.method.klass.name == "channel" and reply.method.name in ("close", "close-ok"):
                self._farewell(reply)
        elif reply.method.response:
            self._answered(reply)
        else:
            self.client.delegate.dispatch(self, reply)

    def _farewell(self, reply: Any) -> None:
        if reply.method.name == "close-ok":
            self.client.forget(self)
            if self._calls:
                self._answered(reply)
        else:
            # Both sides closed at once; the broker's answer to ours is still to come.
            self.ask("channel", "close-ok")

    # What goes out

    def _send(self, method: Any, args: Sequence[Any]) -> Deferred[Any]:
        data = pack_frame(METHOD, self.id, encode_method(method, args))
        if not method.responses or self._is_nowait(method, args):
            self.client.write(data)
            return succeed(None)
        deferred: Deferred[Any] = Deferred(lambda _: self._given_up(call))
        call = _Call(method, data, deferred)
        self._calls.append(call)
        if len(self._calls) == 1:
            self._ask_first()
        return deferred

    def _ask_first(self) -> None:
        # One at a time: RabbitMQ answers basic.consume and basic.cancel when the queue has, later calls maybe before.
        call = self._calls[0]
        call.timer = self.client.clock.callLater(self.client.call_timeout, self._overdue)
        self.client.write(call.data)

    @staticmethod
    def _is_nowait(method: Any, args: Sequence[Any]) -> bool:
        field = method.fields.byname.get("nowait")
        return field is not None and bool(args[method.fields.index(field)])

    def _answered(self, reply: Any) -> None:
        if not self._calls or reply.method not in self._calls[0].responses:
            raise Malformed(f"{reply.method.klass.name}.{reply.method.name} answers nothing that was asked")
        call = self._calls.popleft()
        call.stop_timer()
        if self._calls:
            self._ask_first()
        call.deferred.callback(reply)

    def _overdue(self) -> None:
        name = self._calls[0].name
        reason = BrokerUnreachable(f"the broker didn't answer {name} within {self.client.call_timeout:g} s")
        if self.closed:
            self._fail_calls(reason)
        else:
            self._abandon(reason)

    def _given_up(self, call: _Call) -> None:
        if call not in self._calls:
            return
        self._calls.remove(call)
        asked = call.timer is not None
        call.stop_timer()
        if asked and not self.closed:
            self._abandon(BrokerUnreachable(f"{call.name} was given up before the broker answered"))

    def _abandon(self, reason: BrokerError) -> None:
        if self.id == 0:
            self.client.abort(reason)
        else:
            self.leave(reason).addErrback(lambda _: None)

    # The end

    def _end(self, reason: BrokerError) -> None:
        first = not self.closed
        if first:
            self.closed = True
            self.reason = reason
        self._fail_calls(reason)
        if first:
            self._ended(reason)
            waiters, self._closed_waiters = self._closed_waiters, []
            for waiter in waiters:
                waiter.callback(reason)

    def _fail_calls(self, reason: BrokerError) -> None:
        calls, self._calls = self._calls, deque()
        for call in calls:
            call.stop_timer()
            call.deferred.errback(reason)

    def _guarded(self, function: Callable[..., object], *args: object) -> None:
        """Call somebody else's function: whatever it raises is its own business, not the connection's."""
        try:
            function(*args)
        except Exception:
            self._log.failure(
                "A callback failed on channel {channel} of {broker}.", channel=self.id, broker=self.client
            )

    # For the subclass

    def _body_limit(self, content: Content) -> int:
        """The greatest body that is kept of this content."""
        raise NotImplementedError

    def _delivered(self, content: Content) -> None:
        """``basic.deliver`` with its whole content."""
        raise NotImplementedError

    def _confirmed(self, tag: int, multiple: bool, taken: bool) -> None:
        """``basic.ack`` or ``basic.nack`` from the broker."""
        raise NotImplementedError

    def _ended(self, reason: BrokerError) -> None:
        """The channel can't be used any more; called once."""
        raise NotImplementedError
