"""Asks the LMS side for the agent's configuration: one ``GET`` with the agent's key."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimeIsOver
from twisted.web.client import BrowserLikePolicyForHTTPS

from edxagent.config.lms_answer import LARGEST_ANSWER
from edxagent.config.values import LMSSourceConfig
from edxagent.errors import ConfigRefused, ConfigUnavailable
from edxagent.web.exchange import Ask, ExchangeFailed, Exchanges
from edxagent.web.trust import trust_root_of

REFUSALS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})


class ConfigSource:
    """The LMS side.

    :raises ValueError: ``ca_file`` can't be used.
    """

    def __init__(self, source: LMSSourceConfig, reactor: Any) -> None:
        self._source = source
        self._reactor = reactor
        self._exchanges = Exchanges(
            policy=BrowserLikePolicyForHTTPS(trust_root_of(source.ca_file or "")),
            connect_timeout=source.timeout,
            kept=0,
            reactor=reactor,
        )
        self._ask = Ask(
            method="GET",
            url=source.url,
            headers={
                "Authorization": f"Bearer {source.api_key}",
                "Accept": "application/json",
                "User-Agent": "edxagent",
            },
            longest=LARGEST_ANSWER,
            once=True,
        )

    async def ask(self) -> bytes:
        """The answer, not yet looked at.

        :raises ConfigUnavailable: it can't be had now.
        :raises ConfigRefused: it isn't for us.
        """
        answer = bytearray()
        asking = Deferred.fromCoroutine(self._exchanges.ask(self._ask, answer.extend))
        try:
            status = (await asking.addTimeout(self._source.timeout, self._reactor)).status
        except TimeIsOver:
            raise ConfigUnavailable(f"{self._source.url} didn't answer within {self._source.timeout:g} s") from None
        except ExchangeFailed as error:
            raise ConfigUnavailable(f"{self._source.url} {error}") from None
        if status in REFUSALS:
            raise ConfigRefused(
                f"{self._source.url} answered {status}: it doesn't know our key; put the hash of [lms-config] api_key "
                "into an [agent-config:…] of the LMS side, or mend the url"
            )
        if status != HTTPStatus.OK:
            raise ConfigUnavailable(f"{self._source.url} answered {status}; is [lms-config] url right?")
        return bytes(answer)

    async def close(self) -> None:
        """Cut all connections."""
        await self._exchanges.close()
