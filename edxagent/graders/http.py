"""Kind ``http``: a web server graded by asking it, in XQueue's push protocol.

The request is a POST of ``{"xqueue_body": "…", "xqueue_files": "…"}``, both verbatim, as XQueue sends it
(``consumer.py:Worker._deliver_submission``): without a ``Content-Type`` unless ``content_type =`` gives one. The reply
is a 200 with the verdict, ``{"correct": true, "score": 1, "msg": "<p>Well done.</p>"}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from attrs import evolve
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.web.client import BrowserLikePolicyForHTTPS
from zope.interface import implementer

from edxagent.config import parsers
from edxagent.config.keys import REQUIRED, Key
from edxagent.errors import BadReply, GraderCrashed, GraderError, GraderUnavailable
from edxagent.interfaces import GraderTools, IGrader, IGraderFactory
from edxagent.model import GraderRequest, GraderResponse
from edxagent.web.exchange import Ask, BadResponse, Exchanges, NotHTTP, Unreachable
from edxagent.web.trust import trust_root_of

DISLIKES_THE_SUBMISSION = frozenset({400, 413, 422})
"""The statuses that speak of the request's content, and so of this one submission."""


def request_body(request: GraderRequest) -> bytes:
    """What the server reads (XQueue ``consumer.py``, edx/xserver ``protocol.rst``)."""
    return json.dumps({"xqueue_body": request.body, "xqueue_files": request.files}).encode()


def failure_of(status: int, retry_after: float | None, where: str) -> GraderError | None:
    """What a status means; ``None`` for 200, whose body is the reply.

    ========================== ===================== ===========================================================
    200                        ``None``              the reply is looked at
    other 2xx                  ``BadReply``          it took the submission, and gave no verdict
    400, 413, 422              ``GraderCrashed``     it can't take *this* submission
    429, 5xx                   ``GraderUnavailable`` it can't take any now; ``Retry-After`` is obeyed
    3xx and any other          ``GraderUnavailable`` we ask in the wrong place or way: never a learner's fault
    ========================== ===================== ===========================================================
    """
    if status == 200:
        return None
    if 200 <= status < 300:
        return BadReply(f"{where} answered {status}, which holds no verdict; it should answer 200")
    if status in DISLIKES_THE_SUBMISSION:
        return GraderCrashed(f"{where} answered {status}: it doesn't take this submission")
    if status == 429 or 500 <= status < 600:
        return GraderUnavailable(f"{where} answered {status}", retry_after)
    if 300 <= status < 400:
        return GraderUnavailable(f"{where} answered {status}, but redirects aren't followed; mend [grader] url")
    return GraderUnavailable(f"{where} answered {status}; mend [grader] url, username or password")


@implementer(IGrader)
class HTTPGrader(Service):
    """Asks a web server.

    :param ask: what is the same each time: all but the body.
    """

    def __init__(self, ask: Ask, exchanges: Exchanges) -> None:
        parts = urlsplit(ask.url)
        self._where = f"{parts.scheme}://{parts.netloc}{parts.path}"
        self._ask = ask
        self._exchanges = exchanges

    def stopService(self) -> Deferred[None]:
        """Fires when every connection is closed."""
        super().stopService()
        return Deferred.fromCoroutine(self._exchanges.close())

    async def grade(self, request: GraderRequest) -> GraderResponse:
        """See :meth:`edxagent.interfaces.IGrader.grade`."""
        reply = bytearray()
        try:
            answer = await self._exchanges.ask(evolve(self._ask, body=request_body(request)), reply.extend)
        except Unreachable as error:
            raise GraderUnavailable(f"{self._where} {error}") from error
        except NotHTTP as error:
            raise GraderUnavailable(f"{self._where} {error}; mend [grader] url") from error
        except BadResponse as error:
            raise BadReply(f"{self._where} {error}") from error
        failure = failure_of(answer.status, answer.retry_after, self._where)
        if failure is not None:
            raise failure
        return GraderResponse(reply=bytes(reply))


@implementer(IGraderFactory)
class HTTPFactory:
    """Kind ``http``."""

    kind = "http"
    keys = (
        Key("url", parsers.url, REQUIRED, "where submissions are posted, such as http://127.0.0.1:8080/"),
        Key("content_type", parsers.text, "", "the request's Content-Type; XQueue sends none"),
        Key("connect_timeout", parsers.seconds, 5.0, "seconds until a connection must stand"),
        Key("username", parsers.text, "", "the name for HTTP basic authentication"),
        Key("password", parsers.text, "", "the password for it", secret=True),
        Key("ca_file", parsers.path, "", "PEM file with the authorities to trust over https; the platform's otherwise"),
    )

    def build(self, options: Mapping[str, Any], tools: GraderTools) -> HTTPGrader:
        """See :meth:`edxagent.interfaces.IGraderFactory.build`."""
        if options["password"] and not options["username"]:
            raise ValueError("username is missing, though there is a password: give both or none")
        headers = {"User-Agent": "edxagent"}
        if options["content_type"]:
            headers["Content-Type"] = options["content_type"]
        ask = Ask(
            method="POST",
            url=options["url"],
            headers=headers,
            auth=(options["username"], options["password"]) if options["username"] else None,
            longest=tools.max_reply,
        )
        exchanges = Exchanges(
            policy=BrowserLikePolicyForHTTPS(trust_root_of(options["ca_file"])),
            connect_timeout=options["connect_timeout"],
            kept=tools.concurrency,
            reactor=tools.reactor,
        )
        return HTTPGrader(ask, exchanges)


factory = HTTPFactory()
