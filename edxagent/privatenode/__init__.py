"""A throw-away RabbitMQ node, for the demo, tests and benchmarks; production never imports it."""

from edxagent.privatenode.folder import TlsFiles
from edxagent.privatenode.node import NodeError, PrivateNode

__all__ = ["NodeError", "PrivateNode", "TlsFiles"]
