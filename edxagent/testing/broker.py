"""A real RabbitMQ for tests: one private node for a whole trial run.

It starts when the first test asks and goes with trial's process. With ``trial -j N`` each of the N workers has a node
of its own.
"""

from __future__ import annotations

import atexit
import secrets

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from edxagent.privatenode import PrivateNode

_shared: list[PrivateNode] = []


async def shared_node() -> PrivateNode:
    """The node of this trial run, running; started again on its data if a test killed it.

    :raises NodeError: it can't be started.
    """
    from twisted.internet import reactor

    if not _shared:
        node = PrivateNode(reactor)
        await node.start()
        atexit.register(node.stop_at_exit)  # a worker of "trial -j" fires the reactor's shutdown after each test
        _shared.append(node)
    if _shared[0].pid is None:
        await _shared[0].start()
    return _shared[0]


class BrokerTestCase(TestCase):
    """A test that talks to the shared node.

    :ivar node: the node, running.
    """

    timeout = 180.0
    node: PrivateNode

    def setUp(self) -> Deferred[None]:  # type: ignore[override]  # trial waits for it
        """Wait for the node. Override ``async def set_up`` to prepare more."""
        return Deferred.fromCoroutine(self._prepare())

    async def set_up(self) -> None:
        """Prepare the test; :attr:`node` is there."""

    def unique(self, name: str) -> str:
        """A queue name beginning with ``name`` that no other test uses."""
        return f"{name}-{secrets.token_hex(6)}"

    async def _prepare(self) -> None:
        self.node = await shared_node()
        await self.set_up()
