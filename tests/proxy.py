"""A broker's double entrance: passes everything on to the node until a test has it go, or fall silent."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol
from twisted.protocols.portforward import ProxyFactory, ProxyServer

from edxagent.testing.broker import BrokerTestCase

HOST = "127.0.0.1"


class Proxy(ProxyFactory):
    """Listens on a port of its own.

    :ivar frozen: whether it keeps connections, and takes new ones, but passes nothing on any more.
    :ivar url: its address, as a broker's.
    """

    noisy = False
    protocol = ProxyServer

    def __init__(self, host: str, port: int, freeze_after: int | None = None) -> None:
        super().__init__(host, port)
        self.frozen = False
        self.url = ""
        self._left = freeze_after
        self._visits: list[Any] = []
        self._port: Any = None

    @classmethod
    def start(cls, case: BrokerTestCase, *, port: int = 0, freeze_after: int | None = None) -> Proxy:
        """An entrance to the test's node, until the test ends.

        :param freeze_after: fall silent when clients have sent so many bytes.
        """
        from twisted.internet import reactor

        proxy = cls(case.node.host, case.node.port, freeze_after)
        proxy._port = reactor.listenTCP(port, proxy, interface=HOST)  # type: ignore[attr-defined]
        proxy.url = f"amqp://guest@{HOST}:{proxy._port.getHost().port}/"
        case.addCleanup(proxy.stop)
        return proxy

    def stop(self) -> Any:
        """Go: cut every connection, listen no more."""
        for visit in self._visits:
            for end in (visit, visit.peer):
                if end is not None and end.transport is not None:
                    end.transport.abortConnection()
        port, self._port = self._port, None
        return port and port.stopListening()

    def freeze(self) -> None:
        """Fall silent."""
        self.frozen = True

    def buildProtocol(self, addr: IAddress) -> Protocol:
        """A connection more."""
        visit = _Visit()
        visit.factory = self
        self._visits.append(visit)
        return visit

    def passes(self, data: bytes) -> bool:
        """Whether a client's words may go on to the broker."""
        if self._left is not None:
            self._left -= len(data)
            self.frozen = self.frozen or self._left < 0
        return not self.frozen


class _Visit(ProxyServer):
    """A client's connection. What the broker says still gets through; it is just never asked any more."""

    def dataReceived(self, data: bytes) -> None:
        """Pass it on."""
        if self.factory.passes(data):
            super().dataReceived(data)
