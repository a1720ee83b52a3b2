"""Kind ``callback``: verdicts go to the LMS that asked, at the address in its header, as XQueue sends them.

A form of ``xqueue_header``, verbatim, and ``xqueue_body`` is POSTed (``xqueue/consumer.py:post_grade_to_lms``). The LMS
answers 200 with an empty body (``courseware/block_render.py:xqueue_callback``), also for what it then ignores: it says
that it has accepted the verdict, not that it has recorded it.

Nobody is asked but the origins in ``hosts``: the address comes from whoever submitted, and the request carries our
password and the LMS's key. The names in that list are trusted, whatever the DNS says that they stand for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import msgspec
from attrs import evolve
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as WaitedLongEnough
from twisted.web.client import BrowserLikePolicyForHTTPS
from zope.interface import implementer

from edxagent.config import parsers
from edxagent.config.keys import REQUIRED, Key
from edxagent.errors import SinkError, SinkRefused, SinkUnavailable
from edxagent.interfaces import IResultSink, IResultSinkFactory, SinkTools
from edxagent.lms.contracts import BRIDGE_ORIGIN
from edxagent.lms.sinks.address import Address, callback_address, origin
from edxagent.model import CheckedResult
from edxagent.web.exchange import Answer, Ask, ExchangeFailed, Exchanges
from edxagent.web.trust import trust_root_of

NOBODY = "no LMS of ours"
"""The target of what names an LMS that isn't in the list, or none at all."""

LONGEST_BODY = 16 * 1024

REFUSES_THE_VERDICT = frozenset({400, 404, 405, 406, 409, 410, 411, 413, 414, 415, 422, 431})
"""The statuses that speak of this request, so that sending it again is useless."""


def failure_of(status: int, retry_after: float | None, where: str) -> SinkError | None:
    """What a status means; ``None`` for 200, whose body has to be looked at.

    ======================== =================== =================================================================
    200                      ``None``            accepted, if the body is empty
    3xx                      ``SinkRefused``     never followed; the address is in the verdict and stays what it is
    400, 404, 405, 410, 413… ``SinkRefused``     no such course, or a field that it can't take: it won't next time
    401, 403, 407            ``SinkUnavailable`` a proxy wants another password; heals for all when a person gives it
    408, 425, 429, 5xx       ``SinkUnavailable`` not now; ``Retry-After`` is obeyed
    any other                ``SinkUnavailable`` something answers in the LMS's place: it never says that
    ======================== =================== =================================================================
    """
    if status == 200:
        return None
    if 300 <= status < 400:
        remedy = "mend XQUEUE_INTERFACE's callback_url in the LMS, or its SITE and HTTPS settings"
        return SinkRefused(f"{where} answered {status}, but redirects aren't followed; {remedy}")
    if status in REFUSES_THE_VERDICT:
        return SinkRefused(f"{where} answered {status}: it doesn't take this verdict")
    if status in (401, 403, 407):
        return SinkUnavailable(
            f"{where} answered {status}; mend the sink's username and password, or the proxy's rules"
        )
    return SinkUnavailable(f"{where} answered {status}", retry_after)


@implementer(IResultSink)
class CallbackSink(Service):
    """Posts to LMSs.

    :param hosts: origins that may be posted to, in the normal form of :func:`~edxagent.lms.sinks.address.origin`.
    :param ask: what is the same each time: all but the address and the body.
    :param timeout: seconds, for the whole of a request.
    """

    def __init__(self, *, hosts: frozenset[str], ask: Ask, timeout: float, exchanges: Exchanges, reactor: Any) -> None:
        self._hosts = hosts
        self._ask = ask
        self._timeout = timeout
        self._exchanges = exchanges
        self._reactor = reactor

    def stopService(self) -> Deferred[None]:
        """Fires when every connection is closed."""
        super().stopService()
        return Deferred.fromCoroutine(self._exchanges.close())

    def target(self, result: CheckedResult) -> str | None:
        """See :meth:`edxagent.interfaces.IResultSink.target`: the LMS's origin."""
        if result.origin is not None and result.origin.startswith(BRIDGE_ORIGIN):
            return None
        try:
            return self._address(result).origin
        except SinkRefused:
            return NOBODY

    async def deliver(self, result: CheckedResult) -> None:
        """See :meth:`edxagent.interfaces.IResultSink.deliver`."""
        address = self._address(result)
        answered = bytearray()
        answer = await self._post(address, result, answered)
        failure = failure_of(answer.status, answer.retry_after, address.origin)
        if failure is not None:
            raise failure
        if answered.strip():
            raise SinkUnavailable(
                f"{address.origin} answered 200 with a page, where the LMS answers with nothing: is it in maintenance?"
            )

    def _address(self, result: CheckedResult) -> Address:
        try:
            address = callback_address(result.header)
        except ValueError as error:
            raise SinkRefused(str(error)) from None
        if address.origin not in self._hosts:
            raise SinkRefused(f"{address.origin} isn't among the sink's hosts; add it there if it is your LMS")
        return address

    async def _post(self, address: Address, result: CheckedResult, answered: bytearray) -> Answer:
        ask = evolve(self._ask, url=address.url, body=form_of(result))
        asking = Deferred.fromCoroutine(self._exchanges.ask(ask, answered.extend))
        try:
            return await asking.addTimeout(self._timeout, self._reactor)
        except WaitedLongEnough:
            raise SinkUnavailable(f"{address.origin} didn't answer within {self._timeout:g} s") from None
        except ExchangeFailed as error:
            raise SinkUnavailable(f"{address.origin} {error}") from error


def form_of(result: CheckedResult) -> bytes:
    """What the LMS reads."""
    verdict = result.verdict
    body = msgspec.json.encode({"correct": verdict.correct, "score": verdict.score, "msg": verdict.msg})
    return urlencode({"xqueue_header": result.header, "xqueue_body": body}).encode()


def origins(value: str) -> frozenset[str]:
    """Some origins with blanks or line breaks between them."""
    names = value.replace(",", " ").split()
    if not 1 <= len(names) <= parsers.MOST_WORDS:
        raise ValueError("expected the LMSs that may be posted to, such as https://lms.example.org or http://lms:8000")
    return frozenset(map(origin, names))


@implementer(IResultSinkFactory)
class CallbackFactory:
    """Kind ``callback``."""

    kind = "callback"
    keys = (
        Key("hosts", origins, REQUIRED, "The LMSs that may be posted to: https://lms.example.org; nobody else is."),
        Key("timeout", parsers.seconds, 10.0, "For one verdict, from the first packet to the last."),
        Key("connect_timeout", parsers.seconds, 5.0, "Seconds until a connection must stand."),
        Key("username", parsers.text, "", "The name for HTTP basic authentication, where a proxy in front wants it."),
        Key("password", parsers.text, "", "The password for it.", secret=True),
        Key(
            "ca_file", parsers.path, "", "PEM file with the authorities to trust over https; the platform's otherwise."
        ),
    )

    def build(self, options: Mapping[str, Any], tools: SinkTools) -> CallbackSink:
        """See :meth:`edxagent.interfaces.IResultSinkFactory.build`."""
        if options["password"] and not options["username"]:
            raise ValueError("username is missing, though there is a password: give both or none")
        ask = Ask(
            method="POST",
            url="",
            headers={"User-Agent": "edxagent", "Content-Type": "application/x-www-form-urlencoded"},
            auth=(options["username"], options["password"]) if options["username"] else None,
            longest=LONGEST_BODY,
        )
        exchanges = Exchanges(
            policy=BrowserLikePolicyForHTTPS(trust_root_of(options["ca_file"])),
            connect_timeout=options["connect_timeout"],
            kept=tools.concurrency,
            reactor=tools.reactor,
        )
        return CallbackSink(
            hosts=options["hosts"], ask=ask, timeout=options["timeout"], exchanges=exchanges, reactor=tools.reactor
        )


factory = CallbackFactory()
