"""RabbitMQ nodes of a fault's own: by RabbitMQ 4's rules, or three that are a cluster."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from edxagent.privatenode import PrivateNode
from edxagent.testing.broker import shared_node

RULES = os.environ.get("EDXAGENT_FAULTS_RULES", "")
"""``4``: what RabbitMQ 4 changed and 3.10 can be told to do as well holds for the nodes here."""

SETTINGS_OF_4 = ("frame_max = 8192", "max_message_size = 16777216")
DELIVERY_LIMIT_OF_4 = ("set_policy", "--apply-to", "queues", "delivery-limit", ".*", '{"delivery-limit": 20}')


async def ruled_node() -> PrivateNode:
    """The node that tests share, by the rules that hold."""
    if RULES != "4":
        return await shared_node()
    node = await shared_node(*SETTINGS_OF_4)
    await node.rabbitmqctl(*DELIVERY_LIMIT_OF_4)
    return node


async def own_node(case: Any, **options: Any) -> PrivateNode:
    """A node for one test, by the rules that hold; ``options`` are :class:`PrivateNode`'s."""
    from twisted.internet import reactor

    settings = (*options.pop("settings", ()), *(SETTINGS_OF_4 if RULES == "4" else ()))
    node = PrivateNode(reactor, settings=settings, **options)
    case.addCleanup(lambda: Deferred.fromCoroutine(node.stop()))
    await node.start()
    if RULES == "4":
        await node.rabbitmqctl(*DELIVERY_LIMIT_OF_4)
    return node


class Cluster:
    """Three nodes on this machine.

    :ivar nodes: the nodes; the port mapper that they share ends with the first one's folder, not with its broker.
    """

    def __init__(self, nodes: list[PrivateNode]) -> None:
        self.nodes = nodes

    @classmethod
    async def start(cls, case: Any) -> Cluster:
        """A cluster for one test."""
        first = await own_node(case)
        others = [Deferred.fromCoroutine(own_node(case, joins=first)) for _ in range(2)]
        return cls([first, *await gatherResults(others)])

    @property
    def urls(self) -> str:
        """All their addresses, for a configuration."""
        return "\n  ".join(node.url for node in self.nodes)

    async def leader_of(self, queue: str) -> PrivateNode:
        """The node that leads a quorum queue."""
        answer = await self._ask(queue, "amqqueue:get_pid(Queue)")
        return next(node for node in self.nodes if node.name in answer)

    async def online(self, queue: str) -> int:
        """On how many nodes a quorum queue is up."""
        names = await self._ask(queue, "proplists:get_value(online, rabbit_quorum_queue:info(Queue, [online]))")
        return sum(node.name in names for node in self.nodes)

    async def _ask(self, queue: str, question: str) -> str:
        """Ask a running node something, in Erlang, about ``Queue``."""
        running = next(node for node in self.nodes if node.pid is not None)
        found = f'{{ok, Queue}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>))'
        return await running.rabbitmqctl("eval", f"{found}, {question}.")
