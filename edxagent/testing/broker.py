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

_shared: dict[tuple[str, ...], PrivateNode] = {}


async def shared_node(*settings: str) -> PrivateNode:
    """The node of this trial run, running; started again on its data if a test killed it.

    :param settings: more lines for ``rabbitmq.conf``; other settings are another node.
    :raises NodeError: it can't be started.
    """
    from twisted.internet import reactor

    node = _shared.get(settings)
    if node is None:
        node = PrivateNode(reactor, settings=settings)
        await node.start()
        atexit.register(node.stop_at_exit)  # a worker of "trial -j" fires the reactor's shutdown after each test
        _shared[settings] = node
    if node.pid is None:
        await node.start()
    return node


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

    async def find_node(self) -> PrivateNode:
        """The node that the test talks to, running; override it for one of another kind."""
        return await shared_node()

    def unique(self, name: str) -> str:
        """A queue name beginning with ``name`` that no other test uses."""
        return f"{name}-{secrets.token_hex(6)}"

    async def _prepare(self) -> None:
        self.node = await self.find_node()
        await self.set_up()
