"""What the gateway answers under which path: XQueue's words, byte for byte, and our own files and configuration.

Sources: ``submission_queue/{views,lms_interface,ext_interface,urls}.py`` in openedx/xqueue; the redirects are Django's.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote_plus, urlsplit

from klein import Klein
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect

from edxagent.lms.contracts import IAgentConfig, IPull, ISubmissions, Reply
from edxagent.lms.gateway.accounts import Accounts, TooManyLogins
from edxagent.lms.gateway.downloads import send_file
from edxagent.lms.gateway.request import FormRequest
from edxagent.lms.gateway.sessions import COOKIE, Sessions
from edxagent.lms.gateway.submissions import BAD_FORMAT
from edxagent.lms.gateway.threads import Threads
from edxagent.lms.gateway.uploads import FolderStore
from edxagent.tasks import Tasks

LOGIN = "/xqueue/login/"


class FrontDoor:
    """The pages.

    :param files: ``None`` = there are none.
    :param agent_config: ``None`` = no agent is told anything.
    :param behind_tls_proxy: whether agents reach us by TLS although we don't see it.
    :param tasks: what is being answered; it is finished also when the client doesn't wait for it.
    """

    _log = Logger()
    app = Klein()
    app.url_map.merge_slashes = False  # it would redirect to wherever a client's slashes lead

    def __init__(
        self,
        *,
        accounts: Accounts,
        sessions: Sessions,
        submissions: ISubmissions,
        pull: IPull,
        files: FolderStore | None,
        agent_config: IAgentConfig | None,
        behind_tls_proxy: bool,
        threads: Threads,
        tasks: Tasks,
    ) -> None:
        self._accounts = accounts
        self._sessions = sessions
        self._submissions = submissions
        self._pull = pull
        self._files = files
        self._agent_config = agent_config
        self._behind_tls_proxy = behind_tls_proxy
        self._threads = threads
        self._tasks = tasks

    def user_of(self, request: FormRequest) -> str | None:
        """Who is logged in."""
        return self._sessions.user_of(request.getCookie(COOKIE.encode()))

    # For an LMS

    @app.route("/xqueue/login/")
    def login(self, request: FormRequest) -> Deferred[bytes]:
        """Somebody wants a session."""
        return self._answered(self._log_in(request))

    @app.route("/xqueue/logout/")
    def logout(self, request: FormRequest) -> bytes:
        """Somebody gives it up."""
        _set_cookie(request, self._sessions.close(secure=request.isSecure()))
        return _reply(request, Reply(0, "Goodbye"))

    @app.route("/xqueue/status/")
    def status(self, request: FormRequest) -> bytes:
        """We are here."""
        return _reply(request, Reply(0, "OK"))

    @app.route("/xqueue/submit/")
    def submit(self, request: FormRequest) -> Deferred[bytes] | bytes:
        """A submission."""
        return self._for_users(request, partial(self._submit, request))

    # For graders that poll

    @app.route("/xqueue/get_queuelen/")
    def get_queuelen(self, request: FormRequest) -> Deferred[bytes] | bytes:
        """How long a queue is."""
        return self._for_users(request, partial(self._of_queue, request, "get_queuelen", self._pull.get_queuelen))

    @app.route("/xqueue/get_submission/")
    def get_submission(self, request: FormRequest) -> Deferred[bytes] | bytes:
        """Work."""
        ask = partial(self._of_queue, request, "get_submission", self._pull.get_submission)
        return self._for_users(request, ask, give_up=True)

    @app.route("/xqueue/put_result/")
    def put_result(self, request: FormRequest) -> Deferred[bytes] | bytes:
        """A verdict."""
        return self._for_users(request, partial(self._put_result, request))

    # For graders and agents

    @app.route("/files/<token>/<name>")
    def file(self, request: FormRequest, token: str, name: str) -> Deferred[bytes] | bytes:
        """A learner's file."""
        if request.method not in (b"GET", b"HEAD"):
            return request.say(HTTPStatus.METHOD_NOT_ALLOWED, "use GET")
        return self._answered(self._send_file(request, token, name))

    @app.route("/agent/config")
    def configuration(self, request: FormRequest) -> bytes:
        """What an agent is to do."""
        if self._agent_config is None:
            return request.say(HTTPStatus.NOT_FOUND, "not found")
        if request.method not in (b"GET", b"HEAD"):
            return request.say(HTTPStatus.METHOD_NOT_ALLOWED, "use GET")
        if not (request.isSecure() or self._behind_tls_proxy or is_loopback(request.peer)):
            return request.say(HTTPStatus.FORBIDDEN, "use https: this answer holds credentials")
        status, body = self._agent_config.answer(request.getHeader("authorization"))
        return request.answer(body, status=status, content_type=b"application/json")

    # When there is nothing of the kind, or worse

    @app.handle_errors(RequestRedirect)
    def _redirect(self, request: Any, failure: Failure) -> Any:
        """A slash is missing."""
        redirect: Any = failure.value
        path = urlsplit(redirect.new_url).path.encode()
        query = request.uri.partition(b"?")[2]
        return _moved(request, HTTPStatus.MOVED_PERMANENTLY, path + (b"?" + query if query else b""))

    @app.handle_errors(HTTPException)
    def _nothing_here(self, request: Any, failure: Failure) -> Any:
        return request.say(HTTPStatus.NOT_FOUND, "not found")

    @app.handle_errors(CancelledError)
    def _stopping(self, request: Any, failure: Failure) -> Any:
        return request.say(HTTPStatus.SERVICE_UNAVAILABLE, "stopping")

    @app.handle_errors(Exception)
    def _failed(self, request: Any, failure: Failure) -> Any:
        self._log.failure("a request couldn't be answered", failure)
        return request.say(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error")

    # How it is done

    async def _log_in(self, request: FormRequest) -> bytes:
        if request.method != b"POST":
            return _reply(request, Reply(1, "login_required"))
        name, password = (request.form.fields.get(field) for field in ("username", "password"))
        if name is None or password is None:
            return _reply(request, Reply(1, "Insufficient login info"))
        try:
            right = await self._accounts.check(name, password, request.peer)
        except TooManyLogins as error:
            request.setHeader(b"Retry-After", b"%d" % error.retry_after)
            return _reply(request, Reply(1, str(error)), HTTPStatus.TOO_MANY_REQUESTS)
        if not right:
            self._log.warn("a login from {peer} failed", peer=request.peer)
            return _reply(request, Reply(1, "Incorrect login credentials"))
        _set_cookie(request, self._sessions.open(name, secure=request.isSecure()))
        return _reply(request, Reply(0, "Logged in"))

    async def _submit(self, request: FormRequest) -> Reply:
        if request.method != b"POST":
            return Reply(1, "Queue requests should use HTTP POST")
        header, body = _header_and_body(request)
        if header is None or body is None:
            return Reply(1, BAD_FORMAT)
        return await self._submissions.submit(header, body, request.form.files)

    async def _of_queue(self, request: FormRequest, what: str, ask: Callable[[str], Awaitable[Reply]]) -> Reply:
        names = (request.args or {}).get(b"queue_name")
        if not names:
            return Reply(1, f"'{what}' must provide parameter 'queue_name'")
        return await ask(names[-1].decode("utf-8", "replace"))

    async def _put_result(self, request: FormRequest) -> Reply:
        if request.method != b"POST":
            return Reply(1, "'put_result' must use HTTP POST")
        header, body = _header_and_body(request)
        if header is None or body is None:
            return Reply(1, "Incorrect reply format")
        return await self._pull.put_result(header, body)

    async def _send_file(self, request: FormRequest, token: str, name: str) -> bytes:
        file = None if self._files is None else await self._files.open(token, name)
        if file is None:
            return request.say(HTTPStatus.NOT_FOUND, "not found")
        return await send_file(request, file, self._threads)

    def _for_users(
        self, request: FormRequest, handle: Callable[[], Coroutine[Any, Any, Reply]], *, give_up: bool = False
    ) -> Deferred[bytes] | bytes:
        if self.user_of(request) is None:
            page = quote_plus(request.uri.decode("ascii", "replace"), safe="/")
            return _moved(request, HTTPStatus.FOUND, f"{LOGIN}?next={page}".encode())

        async def answer() -> bytes:
            return _reply(request, await handle())

        return self._answered(answer(), give_up=give_up)

    def _answered(self, answer: Coroutine[Any, Any, bytes], *, give_up: bool = False) -> Deferred[bytes]:
        """The answer. Who goes before it is there, cancels that: what was begun is finished all the same.

        :param give_up: not so here: a submission mustn't be handed to somebody who isn't there.
        """
        waiting: Deferred[bytes] = Deferred(lambda _: task.cancel() if give_up else None)

        async def finish() -> None:
            try:
                body = await answer
            except Exception:
                if waiting.called:
                    raise
                waiting.errback(Failure())
            else:
                if not waiting.called:
                    waiting.callback(body)

        task = self._tasks.launch(finish(), "what a client didn't wait for")
        return waiting


def _reply(request: FormRequest, reply: Reply, status: HTTPStatus = HTTPStatus.OK) -> bytes:
    text = json.dumps({"return_code": reply.return_code, "content": reply.content})
    return request.answer(text.encode(), status=status)


def _moved(request: FormRequest, status: HTTPStatus, where: bytes) -> bytes:
    request.setHeader(b"Location", where)
    return request.answer(b"", status=status)


def _set_cookie(request: FormRequest, cookie: str) -> None:
    request.responseHeaders.addRawHeader(b"Set-Cookie", cookie.encode())


def _header_and_body(request: FormRequest) -> tuple[str | None, str | None]:
    fields = request.form.fields
    return fields.get("xqueue_header"), fields.get("xqueue_body")


def is_loopback(address: str) -> bool:
    """Whether that is this machine."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback
