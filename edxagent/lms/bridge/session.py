"""Logged in at an LMS: its cookies, its protection against forgery, and one login at a time.

The API asks for a session of Django's and, for every change, its CSRF token; over HTTPS also for a ``Referer``
(``submissions/views/xqueue.py``, ``XQueueViewSet.login``; Django's documentation, "How it works" of CSRF protection).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import urlencode

import msgspec
from attrs import field, frozen
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.logger import Logger
from twisted.web.client import BrowserLikePolicyForHTTPS

from edxagent.config.lms_values import BridgeConfig
from edxagent.lms.bridge.pause import GrowingPause, Uniform
from edxagent.web.exchange import Ask, ExchangeFailed, Exchanges, NotConnected
from edxagent.web.trust import trust_root_of
from edxagent.wire.envelope import UNREADABLE

LONGEST_BODY = 4 * 1024 * 1024
"""Bytes of an answer; edx-submissions keeps an answer of at most 100 KiB."""
MOST_COOKIES = 20
LONGEST_COOKIE = 4096
LOGIN_PAUSE = (1.0, 120.0)
"""Seconds between logins that fail: the first and the longest."""

Cookies = dict[str, str]


class Trouble(Exception):
    """The LMS didn't answer as it should. *Ask again, later.* ``str()`` is one line for people.

    :ivar unsure: whether it may have done what it was asked all the same.
    """

    def __init__(self, reason: str, *, unsure: bool = False) -> None:
        super().__init__(reason)
        self.unsure = unsure


class _Reply(msgspec.Struct):
    return_code: int
    content: str


_reply = msgspec.json.Decoder(_Reply)


@frozen(kw_only=True)
class Heard:
    """An answer.

    :ivar code: ``return_code`` where the API itself speaks; ``None`` if that was Django, a proxy, or who knows.
    """

    status: int
    code: int | None = None
    content: str = field(repr=False, default="")


class Session:
    """Talks to the API of one LMS, as one user."""

    _log = Logger()

    def __init__(self, config: BridgeConfig, reactor: Any, uniform: Uniform) -> None:
        self._config = config
        self._clock = reactor
        self.root = config.url.rstrip("/")
        self._http = Exchanges(
            policy=BrowserLikePolicyForHTTPS(trust_root_of(config.ca_file or "")),
            connect_timeout=config.timeout,
            kept=config.concurrency,
            reactor=reactor,
        )
        self._closed = False
        self._cookies: Cookies | None = None
        self._lock = DeferredLock()
        self._pause = GrowingPause(*LOGIN_PAUSE, uniform)
        self._not_before = 0.0
        self._why_not = ""

    async def ask(self, method: str, word: str, fields: Mapping[str, str], *, once: bool = False) -> Heard:
        """Ask; log in first if need be, and once again if the LMS doesn't know us any more.

        :param word: the last of the path.
        :param once: never send it twice, unless the LMS refused to look at the first.
        :raises Trouble: there is no answer, or we aren't let in.
        """
        if self._closed:
            raise Trouble(f"{self.root} isn't asked any more: [bridge:{self._config.name}] was stopped")
        cookies = self._cookies or await self._log_in(None)
        heard = await self._send(method, word, fields, cookies, once)
        if _let_in(heard):
            return heard
        cookies = await self._log_in(cookies)
        heard = await self._send(method, word, fields, cookies, once)
        if not _let_in(heard):
            self._refused(
                f"{self.root} answers {heard.status} right after a login; is {self._who} in the group xqueue?"
            )
        return heard

    def open(self) -> None:
        """Undo :meth:`close`; a new session is open."""
        self._closed = False

    async def close(self) -> None:
        """Ask no more, cut all connections, and forget the login."""
        self._closed = True
        self._cookies = None
        await self._http.close()

    @property
    def _who(self) -> str:
        return f"[bridge:{self._config.name}] username"

    async def _log_in(self, stale: Cookies | None) -> Cookies:
        """New cookies, unless somebody else got some, meanwhile, in place of the stale ones."""
        await self._lock.acquire()
        try:
            if self._cookies is None or self._cookies is stale:
                self._cookies = None
                if self._clock.seconds() < self._not_before:
                    raise Trouble(self._why_not)
                try:
                    self._cookies = await self._new_cookies()
                except Trouble as trouble:
                    raise Trouble(str(trouble)) from None  # whatever it was, it happened before what we wanted to ask
            return self._cookies
        finally:
            self._lock.release()

    async def _new_cookies(self) -> Cookies:
        cookies: Cookies = {}
        # The first answer brings the token for the second request; older versions know no GET, and ask for no token.
        await self._send("GET", "login", {}, cookies)
        credentials = {"username": self._config.username, "password": self._config.password}
        heard = await self._send("POST", "login", credentials, cookies)
        if heard.status in (400, 401) and heard.code is not None:
            self._refused(f"{self.root} takes the login for none of its own; mend {self._who}, password")
        if heard.status != 200 or heard.code != 0:
            self._refused(f"{self.root}/xqueue/login/ answers {heard.status}; is edx-submissions there?")
        self._pause.reset()
        self._log.info("{bridge}: logged in at {target}", bridge=self._config.origin, target=self.root)
        return cookies

    def _refused(self, reason: str) -> NoReturn:
        """Have the next login wait a while."""
        self._cookies = None
        self._why_not = reason
        self._not_before = self._clock.seconds() + self._pause.next()
        raise Trouble(reason)

    async def _send(
        self, method: str, word: str, fields: Mapping[str, str], cookies: Cookies, once: bool = False
    ) -> Heard:
        url = f"{self.root}/xqueue/{word}/"
        headers = {"User-Agent": "edxagent", "Accept": "application/json", "Referer": f"{self.root}/xqueue/"}
        if cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
        body = None
        if method == "POST":
            body = urlencode(fields).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            headers["X-CSRFToken"] = next((v for name, v in cookies.items() if name.endswith("csrftoken")), "")
        elif fields:
            url += f"?{urlencode(fields)}"
        read = (200, 400, 401, 403, 404, 409, 500)
        ask = Ask(method=method, url=url, headers=headers, body=body, longest=LONGEST_BODY, read=read, once=once)
        reply = bytearray()
        asking = Deferred.fromCoroutine(self._http.ask(ask, reply.extend))
        asking.addTimeout(self._config.timeout, self._clock)
        try:
            answer = await asking
        except DeferredTimeout:
            raise Trouble(f"{self.root} didn't answer within {self._config.timeout:g} s", unsure=True) from None
        except ExchangeFailed as error:
            raise Trouble(f"{self.root} {error}", unsure=not isinstance(error, NotConnected)) from error
        _keep(answer.set_cookies, cookies)
        return _understood(answer.status, bytes(reply))


def _let_in(heard: Heard) -> bool:
    """Whether we got as far as the API: its own 403, for a wrong key, comes with a return code."""
    return heard.status not in (401, 403) or heard.code is not None


def _understood(status: int, body: bytes) -> Heard:
    try:
        reply = _reply.decode(body)
    except UNREADABLE:
        return Heard(status=status)
    return Heard(status=status, code=reply.return_code, content=reply.content)


def _keep(set_cookies: Sequence[str], cookies: Cookies) -> None:
    """Do as the server says, as far as its one client needs: no paths, no domains, no dates (RFC 6265 §5.2)."""
    for line in set_cookies:
        name, _, value = (part.strip() for part in line.partition(";")[0].partition("="))
        if not name or len(line) > LONGEST_COOKIE or (len(cookies) >= MOST_COOKIES and name not in cookies):
            continue
        cookies[name] = value
        if not value or value == '""':
            del cookies[name]
