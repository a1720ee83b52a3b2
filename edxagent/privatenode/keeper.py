"""The keeper of a private broker: holds it, its port mapper and its folder for as long as standard input stays open.

A program of its own, run by :mod:`edxagent.privatenode.node`. The kernel closes the pipe on our standard input however
the program at its other end finishes, SIGKILL included; so what ends that program always ends the broker as well.
Standard library only: it starts in milliseconds and stays small.

Usage: ``keeper.py FOLDER EPMD SERVER``, or with an empty EPMD where another keeper has the port mapper, in a session of
its own (so that no Ctrl-C reaches it), with the environment that the broker shall have. Each line on standard input
starts the broker; standard output tells ``started PID`` and ``exited STATUS``.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from typing import IO

POLL_SECONDS = 0.05


def _spawn(command: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a program that should not outlive us either, in a session of its own so that no Ctrl-C reaches it."""
    setpriv = shutil.which("setpriv")
    tie = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
    return subprocess.Popen(
        [*tie, command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )


def _end(process: subprocess.Popen[bytes] | None) -> None:
    """Kill a program with its whole process group, and wait until it is gone."""
    if process is None or process.poll() is not None:
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it hasn't made its session yet, or went just now
        process.kill()
    process.wait()


def keep(folder: str, epmd: str, server: str) -> None:
    """Start ``epmd``, if it has a name, then ``server`` at each line that we read.

    At the end of input kill both, and remove ``folder``.
    """
    broker: subprocess.Popen[bytes] | None = None
    mapper: subprocess.Popen[bytes] | None = None
    try:
        with open(os.path.join(folder, "broker.log"), "ab") as log:
            mapper = _spawn(epmd, log) if epmd else None
            while True:
                if select.select([0], [], [], POLL_SECONDS)[0]:
                    if not os.read(0, 1024):
                        return
                    broker = _spawn(server, log)
                    print("started", broker.pid, flush=True)
                if broker is not None and mapper is not None and mapper.poll() is not None:
                    _end(broker)  # the port was taken: it must not lean on a port mapper that isn't ours
                if broker is not None and broker.poll() is not None:
                    print("exited", broker.returncode, flush=True)
                    broker = None
    finally:
        _end(broker)
        _end(mapper)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Keep until the end of input or SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    keep(*sys.argv[1:])


if __name__ == "__main__":
    main()
