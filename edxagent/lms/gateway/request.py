"""A request as the gateway takes it: its form is read while it arrives, and too much of it is refused at once."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes

from attrs import frozen
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Request

from edxagent.lms.gateway.forms import BadForm, Form, FormReader, reader_for

STRANGERS_FORM = 16 * 1024
"""Bytes that are kept of a form from somebody who isn't logged in: enough for a name and a password."""

HTML = b"text/html; charset=utf-8"
"""What XQueue calls its JSON."""

_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
_HEADERS = {
    b"Server": b"edxagent",
    b"Cache-Control": b"no-store",
    b"Content-Security-Policy": b"default-src 'none'; frame-ancestors 'none'; sandbox",
    b"Referrer-Policy": b"no-referrer",
    b"X-Content-Type-Options": b"nosniff",
}


class Budget:
    """The bytes that all requests together may hold."""

    def __init__(self, most: int) -> None:
        self._left = most

    def take(self, size: int) -> bool:
        """Whether so many more may be held."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def give_back(self, size: int) -> None:
        """They are held no more."""
        self._left += size


@frozen(kw_only=True)
class BodyRules:
    """How much of a body is read, and how much of it is kept.

    :ivar most: the greatest body, in bytes.
    :ivar budget: what all bodies share.
    :ivar knows: whether a request comes from somebody who is logged in.
    """

    most: int
    budget: Budget
    knows: Callable[[FormRequest], bool]


class FormRequest(Request):
    """A request, and the form that came with it.

    Twisted's own way would be to keep the body, then to parse it in one go, and to forget the names of files.

    :ivar form: empty if the body is no form, or one that can't be read.
    :ivar gone: whether the client went before it had the whole answer.
    """

    _log = Logger()
    channel: Any  # a Door
    form: Form = Form()
    gone = False

    def __init__(self, rules: BodyRules, channel: Any, *args: Any) -> None:
        super().__init__(channel, *args)
        self._rules = rules
        self._reader: FormReader | None = None
        self._received = self._held = self._keeps = 0

    # While it arrives

    def gotLength(self, length: int | None) -> None:
        """The headers are here; ``length`` is the body's, if it is told."""
        self.content = BytesIO()
        rules = self._rules
        if length is not None and length > rules.most:
            self._refuse_as_too_large()
            return
        self._keeps = rules.most if rules.knows(self) else STRANGERS_FORM
        self.notifyFinish().addBoth(self._let_go)
        if length != 0:
            try:
                self._reader = reader_for(self.getHeader("content-type") or "")
            except BadForm as error:
                self._unreadable(error)

    def handleContentChunk(self, data: bytes) -> None:
        """Some of the body."""
        if self.channel.refused:
            return
        self._received += len(data)
        if self._received > self._rules.most:
            self._refuse_as_too_large()
        elif self._reader is not None:
            self._read(self._reader, data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The body is complete."""
        if self._reader is not None:
            try:
                self.form = self._reader.finish()
            except BadForm as error:
                self._unreadable(error)
            self._reader = None
        super().requestReceived(command, path, version)  # sees an empty body, and no form in it

    def _read(self, reader: FormReader, data: bytes) -> None:
        if self._received > self._keeps:
            self._unreadable(BadForm("it is too long from somebody who isn't logged in"))
        elif not self._rules.budget.take(len(data)):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many uploads at once; try again later")
        else:
            self._held += len(data)
            try:
                reader.feed(data)
            except BadForm as error:
                self._unreadable(error)

    def _unreadable(self, error: BadForm) -> None:
        """Whoever wants something from it will answer that it isn't there."""
        self._log.debug("a form can't be read: {reason}", reason=str(error))
        self._reader = None
        self._let_go(None)

    def _refuse_as_too_large(self) -> None:
        self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {self._rules.most} bytes")

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._log.warn("a request from {peer} is refused: {reason}", peer=self.peer, reason=reason)
        self._reader = None
        self._let_go(None)
        self.requestHeaders.removeHeader(b"expect")  # nothing more is expected
        self.channel.refuse(status, reason)

    def _let_go(self, _: object) -> None:
        held, self._held = self._held, 0
        self._rules.budget.give_back(held)

    # When it is here

    def connectionLost(self, reason: Failure) -> None:
        """The client is gone."""
        self.gone = True
        super().connectionLost(reason)

    @property
    def peer(self) -> str:
        """The address that it came from."""
        return str(getattr(self.getClientAddress(), "host", "a local socket"))

    def getRequestHostname(self) -> bytes:
        """The same for all: no answer depends on it, and a hostile one would upset the router."""
        return b"gateway"

    def process(self) -> None:
        """Answer it."""
        for name, value in _HEADERS.items():
            self.setHeader(name, value)
        if self.method not in _METHODS:
            self._answer_now(HTTPStatus.NOT_IMPLEMENTED, "unknown method")
        elif not _is_text(unquote_to_bytes(self.path)):
            self._answer_now(HTTPStatus.NOT_FOUND, "not found")
        else:
            super().process()

    def processingFailed(self, reason: Failure) -> Any:
        """What must not happen has happened."""
        self._log.failure("a request couldn't be answered", reason)
        return self._answer_now(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error")

    def answer(self, body: bytes, *, status: int = HTTPStatus.OK, content_type: bytes = HTML) -> bytes:
        """Prepare an answer; ``body`` is to be written next."""
        self.setResponseCode(status)
        self.setHeader(b"Server", _HEADERS[b"Server"])
        self.setHeader(b"Content-Type", content_type)
        self.setHeader(b"Content-Length", b"%d" % len(body))
        return body

    def say(self, status: HTTPStatus, text: str) -> bytes:
        """As :meth:`answer`, one line for a person."""
        return self.answer(f"{text}\n".encode(), status=status, content_type=b"text/plain; charset=utf-8")

    def _answer_now(self, status: HTTPStatus, text: str) -> None:
        self.write(self.say(status, text))
        self.finish()


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
