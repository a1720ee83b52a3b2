"""How often a message went back to its queue: the broker counts, and drops one that was returned too often."""

from __future__ import annotations

from edxagent.interfaces import IDelivery

MANY_RETURNS = 10
"""From this ``x-delivery-count`` on a message goes back as a new one: RabbitMQ counts each return to a quorum queue
towards ``x-delivery-limit``, 20 by default from 4.0 on."""


def returned_often(delivery: IDelivery) -> bool:
    """Whether a message shouldn't be returned once more as it is."""
    returns = delivery.properties.headers.get("x-delivery-count")
    return type(returns) is int and returns >= MANY_RETURNS
