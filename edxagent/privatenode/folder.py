"""What a private broker finds when it starts: ports that are free, a folder with its files, its environment.

The settings are those of https://www.rabbitmq.com/docs/configure and https://www.erlang.org/doc/apps/erts/epmd_cmd.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import socket
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from pathlib import Path

from attrs import frozen

HOST = "127.0.0.1"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LOG_LINES = 15

# Below Linux's range for outgoing connections, so that none of those takes a port while the node is down.
_PORTS = range(20_000, 32_000)
_CRASH_REPORT = re.compile(r"\b(supervisor: \{|crasher:$)")


@frozen(kw_only=True)
class TlsFiles:
    """What a TLS listener needs: paths to PEM files.

    :ivar require_client_certificate: whether a client without a certificate of that authority is turned away.
    """

    certificate: str
    key: str
    authority: str
    require_client_certificate: bool = False


@frozen(kw_only=True)
class NodeFolder:
    """A folder made ready for one private broker. The broker's keeper removes it.

    :ivar port: for AMQP.
    :ivar tls_port: for AMQP over TLS, if that was asked for.
    :ivar distribution_port: for Erlang's own protocol, that ``rabbitmqctl`` speaks.
    :ivar epmd_port: for the port mapper.
    :ivar first: of the first node of its cluster, whose cookie and port mapper it shares; ``None`` = it is the first.
    """

    path: Path
    port: int
    tls_port: int | None
    distribution_port: int
    epmd_port: int
    first: NodeFolder | None = None

    @classmethod
    def make(cls, tls: TlsFiles | None, settings: Sequence[str], first: NodeFolder | None = None) -> NodeFolder:
        """Choose ports and write a new folder.

        :param settings: more lines for ``rabbitmq.conf``.
        :param first: of a running node whose cluster it shall join.
        """
        port, tls_port, distribution_port, epmd_port = free_ports(4)
        folder = cls(
            path=Path(tempfile.mkdtemp(prefix="edxagent-rabbitmq-")),
            port=port,
            tls_port=tls_port if tls is not None else None,
            distribution_port=distribution_port,
            epmd_port=epmd_port if first is None else first.epmd_port,
            first=first,
        )
        lines = [*folder._configuration(tls), *settings, ""]
        (folder.path / "rabbitmq.conf").write_text("\n".join(lines))
        (folder.path / "enabled_plugins").write_text("[].\n")
        cookie = folder.path / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16) if first is None else (first.path / cookie.name).read_text())
        cookie.chmod(0o400)
        return folder

    @property
    def name(self) -> str:
        """The node's, as Erlang knows it."""
        return f"{self.path.name}@localhost"

    @property
    def environment(self) -> dict[str, str]:
        """All that the broker and its tools get to know of the outside world."""
        return {
            "PATH": PATH,
            "HOME": str(self.path),  # where the cookie is looked for
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_DIST_PORT": str(self.distribution_port),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(self.path / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.path / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.path / "generated"),
            "RABBITMQ_MNESIA_BASE": str(self.path / "data"),
            "RABBITMQ_LOG_BASE": str(self.path),
            "RABBITMQ_LOGS": "-",
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_FLAGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_CRASH_DUMP": "/dev/null",
            "NOTIFY_SOCKET": "/nonexistent",  # makes the start script become the broker instead of waiting for it
        }

    def ports_are_free(self) -> bool:
        """Whether nobody listens on our ports."""
        own_epmd_port = self.epmd_port if self.first is None else None
        return all(_is_free(port) for port in (self.port, self.tls_port, self.distribution_port, own_epmd_port) if port)

    def log_tail(self) -> str:
        """The last lines of the broker's log before Erlang's reports of what crashed as a consequence, indented."""
        try:
            with open(self.path / "broker.log", errors="replace") as log:
                telling = takewhile(lambda line: not _CRASH_REPORT.search(line), filter(str.strip, log))
                return "".join(deque((f"  {line}" for line in telling), maxlen=LOG_LINES))
        except OSError as error:
            return f"  (no log: {error})"

    def _configuration(self, tls: TlsFiles | None) -> Iterator[str]:
        """The lines of ``rabbitmq.conf``: loopback only, and the appetite of a guest."""
        yield f"listeners.tcp.1 = {HOST}:{self.port}"
        yield "vm_memory_high_watermark.absolute = 1GB"
        yield "disk_free_limit.absolute = 20MB"
        if self.first is not None:
            yield "cluster_formation.peer_discovery_backend = classic_config"
            for number, folder in enumerate((self.first, self), 1):
                yield f"cluster_formation.classic_config.nodes.{number} = {folder.name}"
        if tls is not None:
            yield f"listeners.ssl.1 = {HOST}:{self.tls_port}"
            yield f"ssl_options.certfile = {os.path.abspath(tls.certificate)}"
            yield f"ssl_options.keyfile = {os.path.abspath(tls.key)}"
            yield f"ssl_options.cacertfile = {os.path.abspath(tls.authority)}"
            yield "ssl_options.verify = verify_peer"
            yield f"ssl_options.fail_if_no_peer_cert = {str(tls.require_client_certificate).lower()}"


def free_ports(count: int) -> tuple[int, ...]:
    """Ports of the loopback interface that nobody listens on right now."""
    return tuple(islice(filter(_is_free, random.sample(_PORTS, len(_PORTS))), count))


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((HOST, port))
        except OSError:
            return False
        return True
