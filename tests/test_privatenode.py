"""The private RabbitMQ node, tried with real processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from edxagent.privatenode import NodeError, PrivateNode
from edxagent.privatenode.folder import NodeFolder, TlsFiles
from edxagent.testing.broker import BrokerTestCase, shared_node
from tests.certificates import Authority

PROGRAM = """
import signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if the tests run in a shell's background

from twisted.internet import defer, task
from edxagent.privatenode import PrivateNode

async def main(reactor):
    node = PrivateNode(reactor)
    started = defer.ensureDeferred(node.start())
    print(node.folder, flush=True)
    await started
    print("ready", flush=True)
    await defer.Deferred()

task.react(lambda reactor: defer.ensureDeferred(main(reactor)))
"""

LISTENING = "0A"
LOOPBACK = {"0100007F", "00000000000000000000000001000000"}


async def eventually(done: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Wait until something is so; fail when it isn't in time."""
    from twisted.internet import reactor

    deadline = reactor.seconds() + seconds
    while not done():
        if reactor.seconds() > deadline:
            raise AssertionError(f"after {seconds:g} s still not so: {what}")
        await deferLater(reactor, 0.05)


def processes_of(folder: Path) -> list[int]:
    """The processes whose environment names a node's folder: its keeper, port mapper, broker and their children."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(folder) in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            pass  # gone meanwhile, or somebody else's
    return found


def listening_addresses(pids: list[int]) -> Iterator[str]:
    """The addresses, as ``/proc/net/tcp`` writes them, on which some processes listen."""
    sockets = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(descriptor)
            if target.startswith("socket:["):
                sockets.add(target[len("socket:[") : -1])
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and fields[9] in sockets:
                yield fields[1].rpartition(":")[0]


class RunningNodeTests(BrokerTestCase):
    """What a node does while it runs."""

    async def test_greets_on_its_port(self) -> None:
        """A running node answers on the port that its address names."""
        self.assertEqual(self.node.url, f"amqp://guest:guest@127.0.0.1:{self.node.port}/%2F")
        with socket.create_connection((self.node.host, self.node.port), timeout=5) as client:
            client.sendall(b"AMQP\x00\x00\x09\x01")
            self.assertEqual(client.recv(1), b"\x01")

    async def test_listens_on_the_loopback_interface_only(self) -> None:
        """Neither the broker nor its port mapper can be reached from another machine."""
        addresses = list(listening_addresses(processes_of(self.node.folder)))
        self.assertGreaterEqual(len(addresses), 3)
        self.assertEqual(set(addresses) - LOOPBACK, set())

    async def test_outlives_a_kill_with_its_data(self) -> None:
        """A node that was killed starts again on the same port, with what it had stored."""
        port, pid = self.node.port, self.node.pid
        await self.node.rabbitmqctl("add_vhost", "kept")
        await self.node.kill()
        self.assertIsNone(self.node.pid)
        await self.node.start()
        self.assertEqual(self.node.port, port)
        self.assertNotEqual(self.node.pid, pid)
        self.assertIn("kept", (await self.node.rabbitmqctl("list_vhosts")).split())

    async def test_refuses_a_second_start(self) -> None:
        """A node that runs isn't started once more."""
        with self.assertRaisesRegex(NodeError, "runs already"):
            await self.node.start()

    async def test_tells_why_a_command_failed(self) -> None:
        """What rabbitmqctl complains of is in the error."""
        with self.assertRaisesRegex(NodeError, r"(?s)rabbitmqctl delete_vhost never-made exited.*never-made"):
            await self.node.rabbitmqctl("delete_vhost", "never-made")

    async def test_is_shared(self) -> None:
        """All tests of a run get the same node, and queue names of their own."""
        self.assertIs(await shared_node(), self.node)
        self.assertNotEqual(self.unique("q"), self.unique("q"))


class NodeTestCase(TestCase):
    """A test with a node of its own."""

    timeout = 180.0

    async def assert_gone(self, node: PrivateNode) -> None:
        """Fail unless a node has left neither a folder nor, in a moment, a process."""
        self.assertFalse(node.folder.exists())
        await eventually(lambda: not processes_of(node.folder), "no process is left", 10)


class OwnNodeTests(NodeTestCase):
    """What a node leaves behind, and how it listens."""

    async def test_speaks_tls_and_leaves_nothing(self) -> None:
        """The TLS port shows the certificate that was given; after the stop no process and no folder is left."""
        from twisted.internet import reactor

        folder = Path(self.mktemp())
        folder.mkdir()
        authority = Authority(folder / "authority")
        server = authority.issue(folder / "server", "localhost")
        tls = TlsFiles(certificate=server.certificate, key=server.key, authority=authority.path)
        node = PrivateNode(reactor, tls=tls)
        await node.start()
        try:
            shown = await deferToThread(ssl.get_server_certificate, (node.host, node.tls_port), timeout=20)
            self.assertEqual(shown.strip(), Path(server.certificate).read_text().strip())
        finally:
            await node.stop()
        await self.assert_gone(node)

    async def test_starts_anew_after_a_stop(self) -> None:
        """A node that was stopped starts again, empty; the end of a program stops it without a reactor."""
        from twisted.internet import reactor

        node = PrivateNode(reactor)
        first = Deferred.fromCoroutine(node.start())
        await eventually(lambda: node.pid, "the broker's process is there")
        await node.stop()
        await self.assertFailure(first, NodeError)
        await node.start()
        await node.rabbitmqctl("await_startup")
        node.stop_at_exit()
        await self.assert_gone(node)


class FailingNodeTests(NodeTestCase):
    """Nodes that can't start."""

    async def test_tells_of_a_missing_broker(self) -> None:
        """Where RabbitMQ isn't installed, the error names the package to install."""
        from twisted.internet import reactor

        node = PrivateNode(reactor, binaries="/nonexistent")
        with self.assertRaisesRegex(NodeError, "install Debian's package rabbitmq-server"):
            await node.start()

    async def test_shows_the_log_of_a_failed_start(self) -> None:
        """When the broker gives up, the error ends with its log's last lines and nothing is left."""
        from twisted.internet import reactor

        node = PrivateNode(reactor, settings=["no_such_setting = 1"])
        with self.assertRaisesRegex(NodeError, r"(?s)ended while it started.*no_such_setting"):
            await node.start()
        await self.assert_gone(node)

    async def test_dies_with_its_keeper(self) -> None:
        """When somebody kills the keeper, the broker goes too, the start fails, and nothing is left."""
        from twisted.internet import reactor

        node = PrivateNode(reactor)
        starting = Deferred.fromCoroutine(node.start())
        await eventually(lambda: len(processes_of(node.folder)) > 3, "the broker's process is there")
        keeper = min(pid for pid in processes_of(node.folder) if pid != os.getpid())
        os.kill(keeper, signal.SIGKILL)
        with self.assertRaisesRegex(NodeError, "ended while it started"):
            await starting
        await self.assert_gone(node)


class EndingProgramTests(TestCase):
    """However the program that started a node ends, the node ends too."""

    timeout = 180.0

    async def check(self, how: int, *, when: str) -> None:
        """Run a program with a node, send it a signal once the node is so far, see that nothing is left."""
        output = Path(self.mktemp())
        with output.open("wb") as pipe:
            root = Path(__file__).resolve().parent.parent
            program = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=pipe, stderr=pipe, cwd=root)
        try:
            await eventually(lambda: output.read_text().count("\n"), "the program tells the node's folder")
            folder = Path(output.read_text().splitlines()[0])
            if when == "ready":
                await eventually(lambda: "ready" in output.read_text(), "the node is ready", 120)
            else:
                await eventually(lambda: len(processes_of(folder)) > 3, "the broker's process is there")
        finally:
            program.send_signal(how)
            await eventually(lambda: program.poll() is not None, "the program has ended")
        await eventually(lambda: not processes_of(folder), "no process is left", 10)
        await eventually(lambda: not folder.exists(), "no folder is left", 10)

    async def test_killed(self) -> None:
        """SIGKILL of a program leaves nothing of its running node."""
        await self.check(signal.SIGKILL, when="ready")

    async def test_interrupted(self) -> None:
        """Ctrl-C while the node is starting leaves nothing."""
        await self.check(signal.SIGINT, when="starting")

    async def test_terminated(self) -> None:
        """SIGTERM while the node is starting leaves nothing."""
        await self.check(signal.SIGTERM, when="starting")


class NodeFolderTests(SynchronousTestCase):
    """What a node finds when it starts."""

    def make(self) -> NodeFolder:
        """Make a folder that goes with the test."""
        folder = NodeFolder.make(None, ["max_message_size = 1000"])
        self.addCleanup(shutil.rmtree, folder.path)
        return folder

    def test_notices_a_clash(self) -> None:
        """A folder's ports are free until somebody listens on one of them."""
        folder = self.make()
        self.assertTrue(folder.ports_are_free())
        with socket.create_server(("127.0.0.1", folder.epmd_port)):
            self.assertFalse(folder.ports_are_free())

    def test_keeps_its_cookie_to_itself(self) -> None:
        """Nobody else may read the secret that lets a program command the node."""
        folder = self.make()
        self.assertEqual((folder.path / ".erlang.cookie").stat().st_mode & 0o777, 0o400)
        self.assertEqual(folder.path.stat().st_mode & 0o777, 0o700)

    def test_passes_settings_on(self) -> None:
        """Further settings end up in the broker's configuration."""
        folder = self.make()
        self.assertIn("\nmax_message_size = 1000\n", (folder.path / "rabbitmq.conf").read_text())
