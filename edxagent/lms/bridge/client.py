"""The two calls that a grader has at edx-submissions, each answer by its name.

=================  ========================================  =================================================
call               answer                                    here
=================  ========================================  =================================================
``get_submission`` 200, return code 0                        an :class:`~edxagent.lms.bridge.item.Item`
                   200, another one                          ``None``: the queue is empty
                   400, 409, 500 with a return code;         :class:`QueueTrouble`: this queue's, or one
                   a submission that can't be read           submission's
``put_result``     200, return code 0                        ``recorded``; the API says so, too, of a score that
                                                             it couldn't record: it hands the submission out
                                                             again then, under another key
                   400, 404 with a return code               ``refused``
                   403 with a return code                    ``wrong-key``
                   409                                       ``locked``: somebody posts it at this moment
                   500                                       ``failed``: rolled back; or it has its verdict
                                                             already, which the API doesn't expect
both               403 without a return code                 log in, ask again, then ``Trouble``
                   everything else: no connection, no        :class:`~edxagent.lms.bridge.session.Trouble`
                   answer in time, 5xx, HTML, redirects
=================  ========================================  =================================================

Upstream: ``submissions/views/xqueue.py`` of edx-submissions 4.0.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from edxagent.lms.bridge.item import Item, read_item
from edxagent.lms.bridge.session import Heard, Session, Trouble
from edxagent.model import Verdict
from edxagent.wire.envelope import encoder
from edxagent.words import brief


class QueueTrouble(Trouble):
    """One queue, or one submission in it, is in trouble; the LMS isn't."""


class Put(Enum):
    """What the LMS said of a verdict."""

    RECORDED = "recorded"
    REFUSED = "refused"
    WRONG_KEY = "wrong-key"
    LOCKED = "locked"
    FAILED = "failed"


_PUTS = {400: Put.REFUSED, 403: Put.WRONG_KEY, 404: Put.REFUSED, 409: Put.LOCKED}


class Client:
    """Asks over a session.

    :ivar well: whether the LMS's latest answer was one of those above, and no trouble.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.well = True

    async def get_submission(self, queue: str) -> Item | None:
        """The next submission in a queue, if there is one; it is ours to answer.

        :raises QueueTrouble: this queue can't be read.
        :raises Trouble: the LMS is in trouble.
        """
        heard = await self._ask("GET", "get_submission", {"queue_name": queue})
        if heard.code is None:
            raise self._nonsense(heard)
        self.well = True
        if heard.status != 200:
            raise QueueTrouble(f"{self.session.root} answers {heard.status}: {brief(heard.content)}")
        if heard.code != 0:
            return None
        try:
            return read_item(heard.content, self.session.root)
        except ValueError as error:
            raise QueueTrouble(f"{self.session.root} hands out a submission that can't be read: {error}") from None

    async def put_result(self, header: str, verdict: Verdict) -> tuple[Put, str]:
        """Post a verdict; returns what the LMS said of it, by name and in its words.

        :raises Trouble: it said nothing that could be understood.
        """
        reply = {"correct": verdict.correct, "score": verdict.score, "msg": verdict.msg}
        fields = {"xqueue_header": header, "xqueue_body": encoder.encode(reply).decode()}
        heard = await self._ask("POST", "put_result", fields, once=True)
        words = f"{self.session.root} answers {heard.status}: {brief(heard.content)}"
        if heard.status == 500:
            return Put.FAILED, words
        if heard.status == 200 and heard.code is not None:
            self.well = True
            return (Put.RECORDED if heard.code == 0 else Put.REFUSED), words
        if heard.status not in _PUTS or heard.code is None:
            raise self._nonsense(heard)
        self.well = True
        return _PUTS[heard.status], words

    async def _ask(self, method: str, word: str, fields: Mapping[str, str], *, once: bool = False) -> Heard:
        try:
            return await self.session.ask(method, word, fields, once=once)
        except Trouble:
            self.well = False
            raise

    def _nonsense(self, heard: Heard) -> Trouble:
        """What came is no answer of this API. Only some of those who speak in its place leave us in doubt."""
        self.well = False
        if heard.status == 404:
            return Trouble(f"{self.session.root}/xqueue/ isn't there; mend the bridge's url")
        if 300 <= heard.status < 400:
            return Trouble(f"{self.session.root} sends us elsewhere; mend the bridge's url")
        unsure = heard.status == 200 or (heard.status >= 500 and heard.status != 503)
        return Trouble(
            f"{self.session.root} answers {heard.status}, not in the words of edx-submissions", unsure=unsure
        )
