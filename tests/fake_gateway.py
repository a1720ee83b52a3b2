"""As much of XQueue's front door as an LMS needs (``lms_interface.py``), for tests of what stands in for the LMS."""

from __future__ import annotations

import json
from collections.abc import Callable
from secrets import token_hex
from typing import Any

from attrs import field, frozen
from multipart import parse_form_data
from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import Site

USERNAME, PASSWORD = "lms", "pâss wörd&"


@frozen(kw_only=True)
class Submitted:
    """A submission that was queued; ``text`` is its body as it came, and ``files`` are those of its form."""

    header: dict[str, Any]
    text: str
    files: dict[str, bytes] = field(factory=dict)

    @property
    def body(self) -> Any:
        """The body, where it is JSON."""
        return json.loads(self.text)


class FakeGateway(Resource):
    """The gateway.

    :ivar submitted: what was queued.
    :ivar logins: how often somebody tried to log in, with ``password`` to be successful.
    :ivar refusals: the next submissions are refused, each for one of these reasons.
    :ivar on_submitted: called with each one that is queued.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.submitted: list[Submitted] = []
        self.logins = 0
        self.password = PASSWORD
        self.refusals: list[str] = []
        self.on_submitted: Callable[[Submitted], object] = lambda submitted: None
        self._sessions: set[bytes] = set()
        self._address = 0
        self._port: Any = None
        self._site = Site(self)

    def start(self, case: Any) -> str:
        """Listen until :meth:`stop` or the end of a test, always in one place. Returns the URL, without ``/xqueue``."""
        from twisted.internet import reactor

        self._port = reactor.listenTCP(self._address, self._site, interface="127.0.0.1")  # type: ignore[attr-defined]
        self._address = self._port.getHost().port
        case.addCleanup(self._port.stopListening)
        return f"http://127.0.0.1:{self._address}"

    async def stop(self) -> None:
        """Listen no more."""
        stopping: Deferred[None] = self._port.stopListening()
        await stopping

    def render_GET(self, request: Any) -> bytes:
        """Where somebody lands who isn't logged in."""
        return self._say(1, "login_required")

    def render_POST(self, request: Any) -> bytes:
        """Log in or submit."""
        form = fields_of(request)
        if request.path == b"/xqueue/login/":
            return self._log_in(request, form)
        assert request.path == b"/xqueue/submit/", request.path
        if request.getCookie(b"sessionid") not in self._sessions:
            request.redirect(b"/xqueue/login/?next=/xqueue/submit/")
            return b""
        if self.refusals:
            return self._say(1, self.refusals.pop(0))
        header, body = (form.pop(name).decode() for name in ("xqueue_header", "xqueue_body"))
        self.submitted.append(Submitted(header=json.loads(header), text=body, files=form))
        self.on_submitted(self.submitted[-1])
        return self._say(0, str(len(self.submitted)))

    def _log_in(self, request: Any, form: dict[str, bytes]) -> bytes:
        self.logins += 1
        if (form["username"].decode(), form["password"].decode()) != (USERNAME, self.password):
            return self._say(1, "Incorrect login credentials")
        session = token_hex(8).encode()
        self._sessions.add(session)
        request.addCookie("sessionid", session, path="/")
        return self._say(0, "Logged in")

    @staticmethod
    def _say(return_code: int, content: str) -> bytes:
        return json.dumps({"return_code": return_code, "content": content}).encode()


def fields_of(request: Any) -> dict[str, bytes]:
    """The fields of a form. Not ``request.args``: that garbles the names of parts that aren't ASCII."""
    request.content.seek(0)
    environment = {
        "REQUEST_METHOD": "POST",
        "CONTENT_TYPE": request.getHeader("content-type"),
        "CONTENT_LENGTH": request.getHeader("content-length"),
        "wsgi.input": request.content,
    }
    texts, parts = parse_form_data(environment, strict=True)
    return {name: text.encode() for name, text in texts.items()} | {name: part.raw for name, part in parts.items()}
