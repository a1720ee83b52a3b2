"""Tells agents where the broker is and which queues are theirs: ``GET /agent/config``.

The answer is ``{"broker": {"urls": ["amqps://…"]}, "queues": {"6002x-exam": {"weight": 2}}}``; what an agent makes of
it is in :mod:`edxagent.config.lms_answer`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from hmac import compare_digest
from http import HTTPStatus

from twisted.logger import Logger

from edxagent.config.lms_values import AgentGrant

LONGEST_AUTHORIZATION = 1024
_UNAUTHORIZED = json.dumps({"error": "expected Authorization: Bearer and a key that is known here"}).encode()


class AgentConfigAnswers:
    """See :class:`edxagent.lms.contracts.IAgentConfig`."""

    _log = Logger()

    def __init__(self, grants: Sequence[AgentGrant]) -> None:
        self._answers = [(grant.name, grant.key_hash.lower(), answer_for(grant)) for grant in grants]

    def answer(self, authorization: str | None) -> tuple[int, bytes]:
        """See :meth:`IAgentConfig.answer`."""
        key = _key_in(authorization)
        digest = sha256(key.encode(errors="replace")).hexdigest()
        # All are compared, so that the time tells nobody which one came near.
        matching = [(name, body) for name, key_hash, body in self._answers if compare_digest(key_hash, digest) and key]
        if not matching:
            self._log.warn("somebody asked for an agent's configuration with no key that is known here")
            return HTTPStatus.UNAUTHORIZED, _UNAUTHORIZED
        name, body = matching[0]
        self._log.info("told an agent its configuration, {grant}", grant=name)
        return HTTPStatus.OK, body


def answer_for(grant: AgentGrant) -> bytes:
    """What an agent with that grant is told."""
    queues = {queue: {"weight": weight} for queue, weight in grant.queues.items()}
    return json.dumps({"broker": {"urls": list(grant.broker_urls)}, "queues": queues}).encode()


def _key_in(authorization: str | None) -> str:
    """The key of a ``Bearer`` scheme (RFC 6750 §2.1); empty if there is none."""
    if authorization is None or len(authorization) > LONGEST_AUTHORIZATION:
        return ""
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
