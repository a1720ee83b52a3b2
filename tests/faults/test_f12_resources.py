"""F12: the agent's machine has no more disk space, descriptors, processes or memory to give; later it has again.

A submission that can't be graded for that is retried: none is lost, and none scored 0 for it. The limits are real ones:
a full file system of the agent's own, and the kernel's resource limits, lowered and raised while it runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from signal import SIGHUP
from typing import Any

from edxagent.testing.graders import CORRECT
from edxagent.testing.http_server import RogueServer, Visit, response, saying_and_closing
from tests.agentprocess import AgentProcess
from tests.cli_process import start, until
from tests.faults.case import FaultTestCase
from tests.faults.processes import PAGE, descriptors, limited
from tests.faults.proxy import FaultProxy

PATIENT = {
    "retry": {"delays": 0.5},
    "breaker": {"failures": 3, "pause": 0.5, "longest_pause": 1},
}
SCRIPT = f"#!/bin/sh\nread -r line\necho '{CORRECT.decode()}' >&3\n"
KEY = "key-of-the-agent"
TMPFS = 'mount -t tmpfs -o size=256k,nr_inodes=64 tmpfs "$1" && shift && exec "$@"'


class ResourcesTestCase(FaultTestCase):
    """A test in which resources run out, and are there again."""

    async def set_up(self) -> None:
        """Write the command that grades."""
        await super().set_up()
        self.times = self.sized(1, 10)
        self.happened = 0
        self.recoveries: list[float] = []
        script = Path(self.mktemp()).absolute()
        script.write_text(SCRIPT)
        script.chmod(0o755)
        self.command = {"kind": "command", "command": shlex.quote(str(script))}

    def started(self, config: str, *wrapping: str) -> AgentProcess:
        """An agent, started by a program that becomes it."""
        twistd = str(Path(sys.executable).with_name("twistd"))
        return AgentProcess(start(self, *wrapping, twistd, "--nodaemon", "--pidfile=", "edxagent", "--config", config))

    async def suffers(self, agent: AgentProcess, complaint: str, shortage: Any, signal: int = 0) -> None:
        """Under load, lack something for long enough that the breaker opens; then see that all is well again.

        :param signal: is sent meanwhile.
        """
        await self.recovery(time.monotonic())
        before = agent.log.count(complaint)
        opened = agent.log.count("breaker is open")
        with shortage:
            self.producer.keep_up(50)
            if signal:
                agent.send_signal(signal)
            await agent.says(complaint, times=before + 3)
            await agent.says("breaker is open", times=opened + 1)
            self.happened += 1
        began = time.monotonic()
        self.recoveries.append(await self.recovery(began))
        await self.producer.stop()

    async def check_resources(self, *agents: AgentProcess) -> None:
        """As :meth:`check`: everything graded, nothing twice; and the agents are as they should be."""
        await self.check(times=self.happened, duplicates=0, recovery=max(self.recoveries))
        for agent in agents:
            await agent.stop()
            self.assert_clean(agent)


class DescriptorsTests(ResourcesTestCase):
    """``EMFILE``."""

    fault = "F12 descriptors"

    def shortage(self, agent: AgentProcess) -> Any:
        """No new descriptor."""
        return limited(agent.pid, resource.RLIMIT_NOFILE, 3)

    async def test_command(self) -> None:
        """A command can't be started; no pipe is left open by the attempts."""
        work = {"work_dir": str(Path(self.mktemp()).absolute())}
        agent = await self.agent(grader={**self.command, **work}, **PATIENT)
        await self.begin()
        await self.recovery(time.monotonic())
        before = descriptors(agent.pid)
        for _ in range(self.times):
            await self.suffers(agent, "no process could be started", self.shortage(agent))
        await self.until_ended()
        await until(lambda: descriptors(agent.pid) <= before, agent.run)
        await self.check_resources(agent)

    async def test_http(self) -> None:
        """A web grader can't be connected to, nor, after a reset, the broker."""
        from twisted.internet import reactor

        server = RogueServer(saying_and_closing(response(CORRECT, headers=["Connection: close"])))
        await server.start(reactor)
        self.addCleanup(server.stop)
        proxy = FaultProxy.start(self)
        agent = await self.agent(grader={"kind": "http", "url": server.url}, broker={"urls": proxy.url}, **PATIENT)
        await self.begin()
        for _ in range(self.times):
            tries = agent.log.count("next try in")
            await self.suffers(agent, "unavailable: ", self.shortage(agent))
            await self.until_ended()
            await self.until_settled()
            with self.shortage(agent):
                proxy.reset()
                await agent.says("next try in", times=tries + 4)
            self.recoveries.append(await self.recovery(time.monotonic()))
        await self.check_resources(agent)


class ProcessesTests(ResourcesTestCase):
    """``EAGAIN`` of ``fork``, ``ENOMEM`` of ``mmap``."""

    fault = "F12 processes"

    def grading(self) -> dict[str, Any]:
        """What the agents here are configured to."""
        return {"grader": {**self.command, "work_dir": str(Path(self.mktemp()).absolute())}, **PATIENT}

    async def test_processes(self) -> None:
        """Nobody can start a process or a thread."""
        agent = self.started(self.write_config(**self.grading()), *as_somebody())
        await agent.ready()
        await self.begin()
        for _ in range(self.times):
            await self.suffers(agent, "no process could be started", no_more_processes(agent))
        await self.check_resources(agent)

    async def test_memory(self) -> None:
        """No more memory can be mapped, which starting a process needs."""
        agent = await self.agent(**self.grading())
        await self.begin()
        for _ in range(self.times):
            await self.suffers(agent, "no process could be started", self.no_more_memory(agent))
        await self.check_resources(agent)

    @contextmanager
    def no_more_memory(self, agent: AgentProcess) -> Iterator[None]:
        """What it has mapped is all that it may."""
        mapped = int(Path(f"/proc/{agent.pid}/statm").read_text().split()[0]) * PAGE
        with limited(agent.pid, resource.RLIMIT_AS, mapped):
            yield


class DiskTests(ResourcesTestCase):
    """``ENOSPC``, and ``EFBIG``."""

    fault = "F12 disk"

    async def test_disk(self) -> None:
        """Working folders, journal and cache are on a disk that is full."""
        from twisted.internet import reactor

        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        key = Path(self.mktemp()).absolute()
        key.write_text(KEY)
        weights = count(1)  # only another answer is written down

        def tell(visit: Visit) -> None:
            told = {"broker": {"urls": [self.node.url]}, "queues": {self.requests: {"weight": next(weights)}}}
            visit.send(response(json.dumps(told).encode()))

        server = RogueServer(tell)
        await server.start(reactor)
        self.addCleanup(server.stop)
        path = Path(
            self.write_config(
                grader={**self.command, "work_dir": folder / "work"},
                quarantine={"journal": folder / "journal"},
                **{"lms-config": {"url": server.url, "api_key_file": key, "cache_file": folder / "cache"}},
                **PATIENT,
            )
        )
        lines = path.read_text().splitlines(keepends=True)
        told_elsewhere = ("urls = ", f"{self.requests} = ", "[queues]")
        path.write_text("".join(line for line in lines if not line.startswith(told_elsewhere)))
        agent = self.started(str(path), *with_small_disk(folder))
        await agent.ready()
        disk = Path(f"/proc/{agent.pid}/root{folder}")
        self.assertEqual(sorted(entry.name for entry in disk.iterdir()), ["cache", "journal", "work"])
        await self.begin()
        for number in range(1, self.times + 1):
            await self.suffers(agent, "no working folder", no_disk(disk, agent), SIGHUP)
            await agent.says("can't be kept", times=number)
            await agent.says("the journal takes what is being graded again", times=number)
        self.assertEqual(agent.log.count("can't take what is being graded"), self.times)
        await self.check_resources(agent)


@contextmanager
def no_more_processes(agent: AgentProcess) -> Iterator[None]:
    """Its user has more of them already."""
    # Not from within this process: whose user is another one needs a capability for that which even root may lack.
    prlimit = (*as_somebody(), "/usr/bin/prlimit", "--pid", str(agent.pid))
    subprocess.run([*prlimit, "--nproc=1:"], check=True)
    try:
        yield
    finally:
        ours = resource.getrlimit(resource.RLIMIT_NPROC)[0]  # which it began with
        subprocess.run([*prlimit, f"--nproc={'unlimited' if ours == resource.RLIM_INFINITY else ours}:"], check=True)


@contextmanager
def no_disk(disk: Path, agent: AgentProcess) -> Iterator[None]:
    """A disk that is full; whatever has its place on it already can't be written to either."""
    with full(disk), limited(agent.pid, resource.RLIMIT_FSIZE, 0):
        yield


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Nothing fits on a disk while the block lasts, neither bytes nor files."""
    made = []
    with contextlib.suppress(OSError):
        for number in range(1000):
            (disk / f"filler-{number}").touch()
            made.append(disk / f"filler-{number}")
    with contextlib.suppress(OSError), open(made[0], "wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
    try:
        yield
    finally:
        for path in made:
            path.unlink()


def with_small_disk(folder: Path) -> tuple[str, ...]:
    """How to start a program that sees a small disk at a folder; who isn't root gets a user namespace for it."""
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    return ("/usr/bin/unshare", "--mount", *user, "/bin/sh", "-c", TMPFS, "sh", str(folder))


def as_somebody() -> tuple[str, ...]:
    """How to start a program as a user whom ``RLIMIT_NPROC`` counts for: it doesn't for root.

    It may still read what root may, for the checkout may be in root's home.
    """
    if os.geteuid() != 0:
        return ()
    capability = ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")
    return ("/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *capability)
