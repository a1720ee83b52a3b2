"""A throw-away RabbitMQ node, for the demo, tests and benchmarks; production never imports it."""

from edxagent.privatenode.folder import TlsFiles, free_ports
from edxagent.privatenode.node import NodeError, PrivateNode

__all__ = ["NodeError", "PrivateNode", "TlsFiles", "free_ports"]
