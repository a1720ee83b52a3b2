"""A throw-away RabbitMQ node of one's own, for the demo, the tests and the benchmarks. Production never imports it.

It has its own name, ports, port mapper (epmd), cookie and folder, listens on the loopback interface only, and needs
neither root nor systemd; a broker that runs on the machine already isn't touched. A small process, the *keeper*
(:mod:`edxagent.nodekeeper`), holds it and takes it down when we are gone, however we ended.

The settings are those of https://www.rabbitmq.com/docs/configure and https://www.erlang.org/doc/apps/erts/epmd_cmd.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal as signals
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python.failure import Failure

from edxagent import nodekeeper
from edxagent.errors import EdxagentError

RABBITMQ_BIN = "/usr/lib/rabbitmq/bin"
"""Where Debian's and RabbitMQ's own packages keep the programs that don't switch to the user ``rabbitmq``."""

START_SECONDS = 120.0
STOP_SECONDS = 30.0
PROBE_SECONDS = 5.0
POLL_SECONDS = 0.05
ATTEMPTS = 3
LOG_LINES = 15

# Below Linux's range for outgoing connections, so that none of those takes a port while the node is down.
_PORTS = range(20_000, 32_000)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME = b"\x01"


class NodeError(EdxagentError):
    """The private node can't be started, or one of its commands failed. The message holds the last lines of its log."""


@frozen(kw_only=True)
class TlsFiles:
    """What a TLS listener needs: paths to PEM files.

    :ivar require_client_certificate: whether a client without a certificate of that authority is turned away.
    """

    certificate: str
    key: str
    authority: str
    require_client_certificate: bool = False


class PrivateNode:
    """One RabbitMQ node. :meth:`start` it, use :attr:`url`, :meth:`stop` it.

    It keeps nothing in the reactor between calls, so one node can serve many tests.

    :ivar folder: everything that it writes; gone after :meth:`stop`. Its log is ``broker.log`` in there.
    :ivar port: where AMQP is spoken, on :attr:`host`. The same for the node's whole life.
    :ivar tls_port: where AMQP over TLS is spoken, when ``tls`` was given.
    """

    host = "127.0.0.1"

    def __init__(
        self, reactor: Any, *, tls: TlsFiles | None = None, settings: Sequence[str] = (), binaries: str = RABBITMQ_BIN
    ) -> None:
        """Prepare a node; nothing happens before :meth:`start`.

        :param reactor: provides ``IReactorTime``, ``IReactorTCP``, ``IReactorProcess``.
        :param settings: more lines for ``rabbitmq.conf``, such as ``max_message_size = 16777216``.
        :param binaries: the folder of ``rabbitmq-server`` and ``rabbitmqctl``.
        """
        self._reactor = reactor
        self._tls = tls
        self._settings = tuple(settings)
        self._binaries = Path(binaries)
        self._keeper: subprocess.Popen[bytes] | None = None
        self._environment: dict[str, str] = {}
        self._ports: tuple[int, ...] = ()
        self.folder = Path()
        self.port = 0
        self.tls_port: int | None = None
        self._pid: int | None = None

    @property
    def url(self) -> str:
        """The broker's address, with credentials and the default virtual host."""
        return f"amqp://guest:guest@{self.host}:{self.port}/%2F"

    async def start(self) -> None:
        """Start the node and wait until it speaks AMQP; after :meth:`kill`, on the data that it left.

        :raises NodeError: RabbitMQ isn't installed, or the node ended or didn't get ready in time.
        """
        if self._keeper is not None:
            await self._boot()
            return
        for attempts_left in reversed(range(ATTEMPTS)):
            self._prepare()
            try:
                await self._boot()
                return
            except NodeError:
                await self.stop()
                if not attempts_left or all(map(_is_free, self._ports)):
                    raise
            except BaseException:
                self._let_go()
                raise

    def kill(self, signal: int = signals.SIGKILL) -> Deferred[None]:
        """Kill the broker but keep its folder, so that :meth:`start` goes on from what it had written.

        :param signal: ``SIGTERM`` lets it close its connections and files first.
        :returns: fires when it is gone. The signal is sent at once.
        """
        pid = self.pid
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal)
        return Deferred.fromCoroutine(self._until_ended())

    async def stop(self) -> None:
        """End the node and remove every trace of it. Harmless when it isn't running."""
        keeper = self._keeper
        if keeper is None:
            return
        self._let_go()
        if not await self._until(lambda: keeper.poll() is not None, STOP_SECONDS):
            raise NodeError(f"the private RabbitMQ node's keeper (process {keeper.pid}) doesn't end: kill it")
        self._keeper = None
        shutil.rmtree(self.folder, ignore_errors=True)  # the keeper did, unless somebody killed it

    async def rabbitmqctl(self, *arguments: str) -> str:
        """Run one ``rabbitmqctl`` command on this node (half a second or more).

        :returns: what it wrote to its standard output.
        :raises NodeError: it failed; the message holds what it wrote to its standard error.
        """
        command = str(self._binaries / "rabbitmqctl")
        out, err, status = await getProcessOutputAndValue(
            command, ["--quiet", *arguments], env=self._environment, reactor=self._reactor
        )
        if status != 0:
            reason = err.decode(errors="replace").strip()
            raise NodeError(f"rabbitmqctl {' '.join(arguments)} exited with status {status}: {reason}")
        return str(out.decode())

    @property
    def pid(self) -> int | None:
        """The process id of the broker; None while it isn't running."""
        if self._keeper is None:
            return None
        with suppress(BlockingIOError):  # the keeper has nothing new to tell
            for line in os.read(_fileno(self._keeper.stdout), 1024).decode().splitlines():
                word, number = line.split()
                self._pid = int(number) if word == "started" else None
        return self._pid if self._keeper.poll() is None else None

    def _prepare(self) -> None:
        """Choose ports, write the folder, start the keeper."""
        server = self._binaries / "rabbitmq-server"
        epmd = shutil.which("epmd", path=_PATH)
        if epmd is None or not server.exists():
            missing = "epmd" if server.exists() else server
            raise NodeError(
                f"RabbitMQ isn't installed ({missing} is missing): install Debian's package rabbitmq-server"
            )
        self._ports = _free_ports(4)
        self.port, distribution_port, epmd_port, tls_port = self._ports
        self.tls_port = tls_port if self._tls is not None else None
        self.folder = Path(tempfile.mkdtemp(prefix="edxagent-rabbitmq-"))
        (self.folder / "rabbitmq.conf").write_text("\n".join([*self._configuration(), *self._settings, ""]))
        (self.folder / "enabled_plugins").write_text("[].\n")
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        self._environment = _environment(self.folder, distribution_port, epmd_port)
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", nodekeeper.__file__, str(self.folder), epmd, str(server)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self.folder,
            env=self._environment,
        )
        os.set_blocking(_fileno(self._keeper.stdout), False)

    def _configuration(self) -> Iterator[str]:
        """The lines of ``rabbitmq.conf``: loopback only, and the appetite of a guest."""
        yield f"listeners.tcp.1 = {self.host}:{self.port}"
        yield "vm_memory_high_watermark.absolute = 1GB"
        yield "disk_free_limit.absolute = 20MB"
        if self._tls is not None:
            yield f"listeners.ssl.1 = {self.host}:{self.tls_port}"
            yield f"ssl_options.certfile = {os.path.abspath(self._tls.certificate)}"
            yield f"ssl_options.keyfile = {os.path.abspath(self._tls.key)}"
            yield f"ssl_options.cacertfile = {os.path.abspath(self._tls.authority)}"
            yield "ssl_options.verify = verify_peer"
            yield f"ssl_options.fail_if_no_peer_cert = {str(self._tls.require_client_certificate).lower()}"

    async def _boot(self) -> None:
        """Order the keeper to start the broker; wait until it answers."""
        if self.pid is not None:
            raise NodeError(f"the private RabbitMQ node runs already, on port {self.port}")
        assert self._keeper is not None
        try:
            os.write(_fileno(self._keeper.stdin), b"start\n")
        except BrokenPipeError as error:
            raise NodeError("the private RabbitMQ node's keeper process was killed: make a new node") from error
        deadline = self._reactor.seconds() + START_SECONDS
        await self._until(lambda: self.pid is not None, PROBE_SECONDS)
        while not await self._speaks_amqp():
            if self.pid is None:
                raise NodeError(f"the private RabbitMQ node ended while it started:\n{self._log_tail()}")
            if self._reactor.seconds() > deadline:
                raise NodeError(f"the private RabbitMQ node isn't ready after {START_SECONDS:g} s:\n{self._log_tail()}")
            await deferLater(self._reactor, POLL_SECONDS)

    async def _speaks_amqp(self) -> bool:
        """Whether the broker answers a client's greeting."""
        endpoint = TCP4ClientEndpoint(self._reactor, self.host, self.port, timeout=PROBE_SECONDS)
        try:
            probe: _Probe = await connectProtocol(endpoint, _Probe())
            return await probe.answer.addTimeout(PROBE_SECONDS, self._reactor) == _METHOD_FRAME
        except (ConnectError, DeferredTimeout):
            return False

    async def _until_ended(self) -> None:
        if not await self._until(lambda: self.pid is None, STOP_SECONDS):
            raise NodeError(f"the private RabbitMQ node didn't end within {STOP_SECONDS:g} s")

    async def _until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Look every now and then whether something is done; False when the time is over."""
        deadline = self._reactor.seconds() + seconds
        while not done():
            if self._reactor.seconds() > deadline:
                return False
            await deferLater(self._reactor, POLL_SECONDS)
        return True

    def _let_go(self) -> None:
        """Close the pipe: the keeper takes everything down, whether or not anybody waits for it."""
        if self._keeper is not None and self._keeper.stdin is not None:
            self._keeper.stdin.close()

    def _log_tail(self) -> str:
        """The last lines of the broker's log, indented."""
        with open(self.folder / "broker.log", errors="replace") as log:
            return "".join(deque((f"  {line}" for line in log if line.strip()), maxlen=LOG_LINES))


class _Probe(Protocol):
    """Greets a broker, keeps the first byte of what it says, hangs up."""

    def __init__(self) -> None:
        self.answer: Deferred[bytes] = Deferred(lambda _: self._hang_up())
        self._first_byte = b""

    def connectionMade(self) -> None:
        """Send the protocol header (AMQP 0-9-1 §4.2.2)."""
        assert self.transport is not None
        self.transport.write(_PROTOCOL_HEADER)

    def dataReceived(self, data: bytes) -> None:
        """One byte is enough."""
        self._first_byte = data[:1]
        self._hang_up()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell only now, so that nothing is left in the reactor."""
        self.answer.callback(self._first_byte)

    def _hang_up(self) -> None:
        self.transport.abortConnection()  # type: ignore[union-attr]


def _environment(folder: Path, distribution_port: int, epmd_port: int) -> dict[str, str]:
    """All that the broker and its tools get to know of the outside world."""
    return {
        "PATH": _PATH,
        "HOME": str(folder),  # where the cookie is looked for
        "LANG": "C.UTF-8",
        "RABBITMQ_NODENAME": f"{folder.name}@localhost",
        "RABBITMQ_DIST_PORT": str(distribution_port),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder),
        "RABBITMQ_LOGS": "-",
        "ERL_EPMD_PORT": str(epmd_port),
        "ERL_EPMD_ADDRESS": PrivateNode.host,
        "ERL_FLAGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "ERL_CRASH_DUMP": "/dev/null",
        "NOTIFY_SOCKET": "/nonexistent",  # makes the start script become the broker instead of waiting for it
    }


def _free_ports(count: int) -> tuple[int, ...]:
    """Ports of the loopback interface that nobody listens on right now."""
    free = filter(_is_free, random.sample(_PORTS, len(_PORTS)))
    return tuple(islice(free, count))


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((PrivateNode.host, port))
        except OSError:
            return False
        return True


def _fileno(pipe: IO[bytes] | None) -> int:
    assert pipe is not None
    return pipe.fileno()
