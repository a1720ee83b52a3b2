"""While the broker takes no verdicts, no requests are taken."""

from __future__ import annotations

from edxagent.agent.valve import Valve
from edxagent.amqp.session import Session

NAME = "blocked"


class BlockedBroker:
    """Keeps the valve shut while the connection that publishes is blocked: the broker is short of memory or disk."""

    def __init__(self, valve: Valve) -> None:
        self._valve = valve

    async def attend(self, session: Session) -> None:
        """The preparation of each session of the link that publishes; see :class:`edxagent.amqp.link.BrokerLink`."""
        session.watch_blocked(self._tell)
        session.when_lost().addCallback(self._tell)
        self._tell(session.blocked)

    def _tell(self, reason: str | None) -> None:
        if reason is None:
            self._valve.open(NAME)
        else:
            self._valve.shut(NAME, f"the broker takes no verdicts: {reason}")
