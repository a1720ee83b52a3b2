"""An agent of the soak: behind a fault proxy of its own, started again by who kills it, its log kept in short."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from signal import SIGKILL
from typing import Any

from tests.agentprocess import AgentProcess
from tests.cli_process import Run, start, until
from tests.faults.graders import KIND
from tests.faults.proxy import FaultProxy
from tests.faults.soak.kinds import TIMEOUT
from tests.faults.soak.vitals import Census

HEARTBEAT = 3
CONNECTED = "): connected to "
CHANGED = ("the configuration has changed", "the configuration is as it was")
SAME = "the configuration stays as it is"

_OF_A_SUBMISSION = re.compile(rb"^.* [a-z-]+: \S+ from \S+ in [0-9.]+ s, .*\n", re.MULTILINE)


class BriefRun(Run):
    """Forgets what the agent says of each submission: of the rest a test reads the whole again and again.

    :ivar recent: the last of all that it said, in pieces.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recent: deque[bytes] = deque(maxlen=10_000)
        self._line = b""

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """See :class:`Run`. Lines are forgotten when they are whole; what is no line yet waits."""
        self.recent.append(data)
        lines, end, rest = (self._line + data).rpartition(b"\n") if childFD == 1 else (data, b"", b"")
        self._line = rest if childFD == 1 else self._line
        super().childDataReceived(childFD, _OF_A_SUBMISSION.sub(b"", lines + end))


class SoakedAgent:
    """See the module.

    :ivar name: what it is called in verdicts, too.
    :ivar process: the one that runs, or ran last; ``run``, the same as one that was started.
    :ivar concurrency: of its file; ``weights``, the queues' there.
    :ivar settings: what else its file says.
    """

    process: AgentProcess
    run: BriefRun

    def __init__(
        self, case: Any, name: str, *, concurrency: int, weights: Mapping[str, int], **settings: Mapping[str, Any]
    ) -> None:
        self.name = name
        self.proxy = FaultProxy.start(case)
        self.concurrency = concurrency
        self.weights = dict(weights)
        self.census = Census(case.mktemp())
        self._case = case
        self._settings = settings
        self._path = Path(case.mktemp()).absolute()
        self._sessions = 0
        self.configure()

    def configure(self, **wrong: Mapping[str, Any]) -> None:
        """Write the file.

        :param wrong: sections that stand in the place of the right ones.
        """
        sections: dict[str, Any] = {
            "agent": {"name": self.name, "concurrency": self.concurrency},
            "broker": {
                "urls": self.proxy.url,
                "heartbeat": HEARTBEAT,
                "connect_timeout": 5,
                "call_timeout": 5,
                "confirm_timeout": 5,
                "retry_initial": 0.5,
                "watchdog": 10,
            },
            "queues": {queue: f"weight={weight}" for queue, weight in self.weights.items()},
            "grader": {"kind": KIND, "timeout": TIMEOUT},
            "retry": {"delays": 0.5},
            "breaker": {"pause": 0.5, "longest_pause": 1},
        }
        Path(self._case.write_config(**{**sections, **self._settings, **wrong})).replace(self._path)

    def start(self) -> None:
        """Have a process; it isn't ready yet."""
        twistd = str(Path(sys.executable).with_name("twistd"))
        command = (twistd, "--nodaemon", "--pidfile=", "edxagent", "--config", str(self._path))
        self.run = BriefRun()
        self.process = AgentProcess(start(self._case, *command, environment=self.census.environment, run=self.run))

    async def end(self, number: int) -> None:
        """Have a signal end it, and see that nothing went wrong until then."""
        status = await self.process.stop(number)
        self._sessions += self.process.log.count(CONNECTED)
        self._case.assertEqual(status, -number, self.process.log)
        self._case.assert_clean(self.process)

    async def kill(self) -> None:
        """``kill -9``."""
        await self.end(SIGKILL)

    @property
    def sessions(self) -> int:
        """How many connections to the broker it has had in its lives."""
        return self._sessions + (self.process.log.count(CONNECTED) if self.process.alive else 0)

    async def whole(self) -> None:
        """Wait until it has both its connections, from end to end."""

        def there() -> bool:
            return [bool(connection.broker_sees) for connection in self.proxy.connections] == [True, True]

        await until(lambda: there() or not self.process.alive, self.process.run)
        self._case.assertTrue(self.process.alive, self.process.log)
