"""A throw-away RabbitMQ node of one's own, for the demo, the tests and the benchmarks. Production never imports it.

It has its own name, ports, port mapper (epmd), cookie and folder, listens on the loopback interface only, and needs
neither root nor systemd; a broker that runs on the machine already isn't touched. A small process, the *keeper*
(:mod:`edxagent.privatenode.keeper`), holds it and takes it down when we are gone, however we ended.
"""

from __future__ import annotations

import os
import shutil
import signal as signals
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python.failure import Failure

from edxagent.errors import EdxagentError
from edxagent.privatenode import keeper
from edxagent.privatenode.folder import HOST, PATH, NodeFolder, TlsFiles

RABBITMQ_BIN = "/usr/lib/rabbitmq/bin"
"""Where Debian's and RabbitMQ's own packages keep the programs that don't switch to the user ``rabbitmq``."""

START_SECONDS = 120.0
STOP_SECONDS = 30.0
PROBE_SECONDS = 5.0
POLL_SECONDS = 0.05
ATTEMPTS = 3

_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME = b"\x01"


class NodeError(EdxagentError):
    """The private node can't be started, or one of its commands failed. The message holds the last lines of its log."""


class PrivateNode:
    """One RabbitMQ node: :meth:`start` it, use its :attr:`url`, :meth:`stop` it.

    Between calls it keeps nothing in the reactor, so that one node can serve many tests.
    """

    host = HOST

    def __init__(
        self,
        reactor: Any,
        *,
        tls: TlsFiles | None = None,
        settings: Sequence[str] = (),
        binaries: str = RABBITMQ_BIN,
        joins: PrivateNode | None = None,
    ) -> None:
        """Prepare a node; nothing happens before :meth:`start`.

        :param reactor: provides ``IReactorTime``, ``IReactorTCP``, ``IReactorProcess``.
        :param settings: more lines for ``rabbitmq.conf``, such as ``max_message_size = 16777216``.
        :param binaries: the folder of ``rabbitmq-server`` and ``rabbitmqctl``.
        :param joins: a node that runs when this one is started, and isn't stopped before it: their cluster's first.
        """
        self._reactor = reactor
        self._first = joins
        self._tls = tls
        self._settings = tuple(settings)
        self._binaries = Path(binaries)
        self._ground: NodeFolder | None = None
        self._keeper: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None

    @property
    def folder(self) -> Path:
        """All that the node writes, ``broker.log`` among it; gone after :meth:`stop`."""
        return self._prepared.path

    @property
    def port(self) -> int:
        """Where AMQP is spoken, on :attr:`host`. A node that was killed starts again on the same port."""
        return self._prepared.port

    @property
    def tls_port(self) -> int | None:
        """Where AMQP over TLS is spoken, if ``tls`` was given."""
        return self._prepared.tls_port

    @property
    def url(self) -> str:
        """The broker's address, with credentials and the default virtual host."""
        return f"amqp://guest:guest@{self.host}:{self.port}/%2F"

    @property
    def name(self) -> str:
        """The node's, as Erlang and ``rabbitmqctl`` know it."""
        return self._prepared.name

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
                gave_up = self._keeper is not None and self._keeper.poll() is None
                await self.stop()
                clash = gave_up and not self._prepared.ports_are_free()
                if not (clash and attempts_left):
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
        self._tidy()

    def stop_at_exit(self) -> None:
        """Stop where no reactor runs any more. Blocks, for a fraction of a second."""
        if self._keeper is not None:
            self._let_go()
            self._keeper.wait(STOP_SECONDS)
            self._tidy()

    async def rabbitmqctl(self, *arguments: str) -> str:
        """Run one ``rabbitmqctl`` command on this node (half a second or more).

        :returns: what it wrote to its standard output.
        :raises NodeError: it failed; the message holds what it wrote to its standard error.
        """
        out, err, status = await getProcessOutputAndValue(
            str(self._binaries / "rabbitmqctl"),
            ["--quiet", *arguments],
            env=self._prepared.environment,
            reactor=self._reactor,
        )
        if status != 0:
            reason = err.decode(errors="replace").strip()
            raise NodeError(f"rabbitmqctl {' '.join(arguments)} exited with status {status}: {reason}")
        return str(out.decode())

    @property
    def _prepared(self) -> NodeFolder:
        if self._ground is None:
            raise NodeError("the private RabbitMQ node wasn't started yet")
        return self._ground

    def _prepare(self) -> None:
        """Make the folder, and start the keeper in it."""
        server = self._binaries / "rabbitmq-server"
        epmd = shutil.which("epmd", path=PATH)
        if epmd is None or not server.exists():
            missing = "epmd" if server.exists() else server
            raise NodeError(
                f"RabbitMQ isn't installed ({missing} is missing): install Debian's package rabbitmq-server"
            )
        first = None if self._first is None else self._first._prepared
        self._ground = NodeFolder.make(self._tls, self._settings, first)
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, str(self.folder), epmd if first is None else "", str(server)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self.folder,
            env=self._ground.environment,
            start_new_session=True,
        )
        os.set_blocking(_fileno(self._keeper.stdout), False)

    async def _boot(self) -> None:
        """Order the keeper to start the broker; wait until it answers."""
        if self.pid is not None:
            raise NodeError(f"the private RabbitMQ node runs already, on port {self.port}")
        assert self._keeper is not None
        try:
            os.write(_fileno(self._keeper.stdin), b"start\n")
        except BrokenPipeError as error:
            raise NodeError("the private RabbitMQ node's keeper was killed: stop the node, then start it") from error
        deadline = self._reactor.seconds() + START_SECONDS
        await self._until(lambda: self.pid is not None, PROBE_SECONDS)
        while not await self._speaks_amqp():
            if self.pid is None:
                raise NodeError(f"the private RabbitMQ node ended while it started:\n{self._prepared.log_tail()}")
            if self._reactor.seconds() > deadline:
                raise NodeError(
                    f"the private RabbitMQ node isn't ready after {START_SECONDS:g} s:\n{self._prepared.log_tail()}"
                )
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

    def _tidy(self) -> None:
        """Forget a keeper that has ended."""
        if self._keeper is not None and self._keeper.stdout is not None:
            self._keeper.stdout.close()
        self._keeper = self._pid = None
        shutil.rmtree(self.folder, ignore_errors=True)  # the keeper did, unless somebody killed it

    def _let_go(self) -> None:
        """Close the pipe: the keeper takes everything down, whether or not anybody waits for it."""
        if self._keeper is not None and self._keeper.stdin is not None:
            self._keeper.stdin.close()


class _Probe(Protocol):
    """Greets a broker, keeps the first byte of what it says, hangs up."""

    def __init__(self) -> None:
        self.answer: Deferred[bytes] = Deferred(lambda _: self._hang_up())
        self._first_byte = b""

    def connectionMade(self) -> None:
        """Send the protocol header (AMQP 0-9-1 §4.2.2)."""
        self.transport.write(_PROTOCOL_HEADER)  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        """One byte is enough."""
        self._first_byte = data[:1]
        self._hang_up()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell only now, so that nothing is left in the reactor."""
        self.answer.callback(self._first_byte)

    def _hang_up(self) -> None:
        self.transport.abortConnection()  # type: ignore[union-attr]


def _fileno(pipe: IO[bytes] | None) -> int:
    assert pipe is not None
    return pipe.fileno()
