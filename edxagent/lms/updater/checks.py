"""Whether what came back from the broker may go to an LMS: bytes and properties → a checked result, or why not.

The LMS checks a reply before it looks at the key that came with it: one that it can't take wipes a learner's attempt,
also one that was graded before, and raises in the middle of it for some
(``capa/responsetypes.py:CodeResponse.update_score``). So nothing goes there that hasn't been through here.
"""

from __future__ import annotations

import hashlib

from attrs import evolve

from edxagent.config.lms_values import UpdaterConfig
from edxagent.errors import BadReply, InvalidResult
from edxagent.lms.updater.html import Sanitizer
from edxagent.model import RESULT_TYPE, CheckedResult, Outcome, Properties, Verdict
from edxagent.verdict import check_message, check_verdict
from edxagent.wire.journey import known_headers
from edxagent.wire.request import submission_id
from edxagent.wire.result import open_result

_ABOUT = ("x-agent", "x-grader", "x-attempt", "x-received", "x-started", "x-finished")
_OUTCOMES = frozenset(map(str, Outcome))


class ResultChecker:
    """Checks by what ``[updater]`` says."""

    def __init__(self, config: UpdaterConfig) -> None:
        self._config = config
        self._sanitizer = Sanitizer(config.allowed_tags)

    def check(self, body: bytes, properties: Properties) -> CheckedResult:
        """Read a result.

        :raises InvalidResult: it mustn't go to the LMS; says why, quoting nothing of it.
        """
        if len(body) > self._config.max_result:
            raise InvalidResult(f"the result has more than {self._config.max_result} bytes")
        if properties.type not in (None, RESULT_TYPE):
            raise InvalidResult(f"the message's type isn't {RESULT_TYPE}")
        outcome = properties.headers.get("x-outcome", str(Outcome.GRADED))
        if not isinstance(outcome, str) or outcome not in _OUTCOMES:
            raise InvalidResult("the header x-outcome is none of the words for outcomes")
        try:
            header, text = open_result(body)
        except ValueError as error:
            raise InvalidResult(str(error)) from None
        if not header:
            raise InvalidResult("xqueue_header is empty: nobody could be told the verdict")
        known = known_headers(properties)
        return CheckedResult(
            submission=name_of(body, properties),
            outcome=outcome,
            queue=known.get("x-queue", ""),
            origin=known.get("x-origin"),
            header=header,
            verdict=self._verdict(text),
            headers={name: known[name] for name in _ABOUT if name in known},
        )

    def _verdict(self, text: str) -> Verdict:
        config = self._config
        believed = None if config.clamp_scores else config.max_score
        try:
            verdict = check_verdict(text.encode(), max_size=config.max_result, max_score=believed)
            msg = self._sanitizer.clean(verdict.msg)
            check_message(msg)
        except BadReply as error:
            raise InvalidResult(str(error)) from None
        score = verdict.score if config.max_score is None else min(verdict.score, config.max_score)
        return evolve(verdict, score=score, msg=msg)


def name_of(body: bytes, properties: Properties) -> str:
    """The submission's id, fit for a log line and a database.

    That is ``message_id``, or for a producer that gives none, the SHA-256 of the body in hex; of a ``message_id`` that
    can't be printed, its own.
    """
    name = submission_id(body, properties)
    return name if name.isprintable() else hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
