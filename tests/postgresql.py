"""A real PostgreSQL for tests: a server in a temporary folder, on a free port of the loopback interface.

As root it runs as the user ``postgres``: PostgreSQL refuses to be root. This file is also the keeper of the server, a
process that holds it and its folder for as long as standard input stays open: what ends the test, SIGKILL included,
ends the server and removes the folder.
"""

from __future__ import annotations

import atexit
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

SECONDS = 60.0
USER = "grading"

_shared: list[PostgreSQL] = []


def shared_postgresql() -> PostgreSQL:
    """The server of this trial run, running; started again on its data if a test killed it. Blocks for seconds."""
    if not _shared:
        server = PostgreSQL()
        atexit.register(server.stop)
        _shared.append(server)
    _shared[0].start()
    return _shared[0]


def binaries() -> Path:
    """The folder of PostgreSQL's programs: Debian's newest, or where the one on the path is."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda path: int(path.parent.name))
    initdb = shutil.which("initdb")
    if initdb is None:
        raise AssertionError("PostgreSQL isn't installed: install Debian's package postgresql (.ci/setup postgresql)")
    return Path(initdb).resolve().parent


class PostgreSQL:
    """One server. :meth:`start` it, use :meth:`new_database`, :meth:`stop` it; all of them block.

    :ivar password: of its only user.
    """

    def __init__(self) -> None:
        self.password = secrets.token_hex(8)
        self.port = _free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="edxagent-postgresql-"))
        (self.folder / "password").write_text(self.password)
        if os.getuid() == 0:
            user = pwd.getpwnam("postgres")
            for path in (self.folder, self.folder / "password"):
                os.chown(path, user.pw_uid, user.pw_gid)
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(self.folder), str(self.port), str(binaries())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def url(self, database: str, *, password: str | None = None) -> str:
        """SQLAlchemy's URL of a database."""
        return f"postgresql://{USER}:{password or self.password}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        import psycopg

        name = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    @property
    def pid(self) -> int | None:
        """The server's process, as it writes it down itself; ``None`` when there is none."""
        try:
            pid = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
            os.kill(pid, 0)
        except (OSError, ValueError, IndexError):
            return None
        return pid

    def start(self) -> None:
        """Start it, unless it runs; done when it answers."""
        if self.pid is None:
            self._order("start")
        deadline = time.monotonic() + SECONDS
        while not self._answers():
            if time.monotonic() > deadline or self._keeper.poll() is not None:
                raise AssertionError(f"PostgreSQL doesn't start:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill it rudely, as a loss of power would, and keep its folder."""
        pid = self.pid
        self._order("kill")
        deadline = time.monotonic() + SECONDS
        while pid is not None and Path(f"/proc/{pid}").exists():
            if time.monotonic() > deadline:
                raise AssertionError("PostgreSQL doesn't end")
            time.sleep(0.02)

    def pause(self) -> None:
        """Let no process of it run, while its connections stay open."""
        self._order("pause")

    def go_on(self) -> None:
        """End a :meth:`pause`."""
        self._order("go-on")

    def stop(self) -> None:
        """End it and remove every trace."""
        assert self._keeper.stdin is not None and self._keeper.stdout is not None
        self._keeper.stdin.close()
        self._keeper.wait(SECONDS)
        self._keeper.stdout.close()

    def _order(self, word: str) -> None:
        """Have the keeper do something; done when it says so."""
        assert self._keeper.stdin is not None and self._keeper.stdout is not None
        self._keeper.stdin.write(f"{word}\n".encode())
        self._keeper.stdin.flush()
        self._keeper.stdout.readline()

    def _answers(self) -> bool:
        import psycopg

        with suppress(psycopg.OperationalError):
            psycopg.connect(self.url("postgres"), connect_timeout=5).close()
            return True
        return False


def _free_port() -> int:
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return int(candidate.getsockname()[1])


class _Keeper:
    """Holds one server, in its own process."""

    def __init__(self, folder: Path, port: int, programs: Path) -> None:
        self._data = folder / "data"
        self._log = open(folder / "log", "ab")  # noqa: SIM115  # as long as we
        self._programs = programs
        self._folder = folder
        self._port = port
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if not self._data.exists():
            password = f"--pwfile={self._folder / 'password'}"
            options = ["--encoding=UTF8", "--locale=C", "--auth=scram-sha-256", f"--username={USER}", "--no-sync"]
            self._spawn("initdb", "-D", str(self._data), password, *options).wait()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self._port,
            "unix_socket_directories": self._folder,
            "shared_buffers": "16MB",
            "max_connections": 50,
            "fsync": "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self._server = self._spawn("postgres", "-D", str(self._data), *options)

    def signal(self, number: int) -> None:
        """Send a signal to the server and all that it started: they are a session of their own."""
        server = self._server
        if server is not None and server.poll() is None:
            for child in self._children(server.pid):
                with suppress(ProcessLookupError):
                    os.kill(child, number)
            server.send_signal(number)

    def end(self) -> None:
        self.signal(signal.SIGCONT)
        if self._server is not None:
            self._server.send_signal(signal.SIGQUIT)  # it takes its own children along
            with suppress(subprocess.TimeoutExpired):
                self._server.wait(10)
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self._server is not None:
            self._server.wait()

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        become = ["--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
        return subprocess.Popen(
            ["setpriv", *become, "--pdeathsig", "QUIT", str(self._programs / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            cwd=self._folder,
            start_new_session=True,
        )

    def _children(self, parent: int) -> list[int]:
        with suppress(OSError):
            return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
        return []


def main() -> None:
    """Keep a server until the end of standard input."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    folder, port, programs = sys.argv[1:]
    keeper = _Keeper(Path(folder), int(port), Path(programs))
    try:
        for line in sys.stdin:
            match line.strip():
                case "start":
                    keeper.start()
                case "kill":
                    keeper.kill()
                case "pause":
                    keeper.signal(signal.SIGSTOP)
                case "go-on":
                    keeper.signal(signal.SIGCONT)
            print("done", flush=True)
    finally:
        keeper.end()


if __name__ == "__main__":
    main()
