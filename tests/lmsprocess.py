"""The real LMS side, ``twistd --nodaemon edxagent-lms``, as a process against the shared broker, for tests."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from attrs import frozen
from twisted.internet.defer import Deferred

from edxagent.model import dead_queue_of
from tests.agentprocess import AgentProcess, AgentTestCase, Sections, as_ini
from tests.cli_process import start
from tests.gateway_support import BODY, HOST, Client, Response, header, quick_hash

USER, PASSWORD = "lms", "pâss wörd&"

_PORT = re.compile(r"listening at \S+:(\d+)")


@frozen
class LMSProcess(AgentProcess):
    """A started LMS side."""

    async def ready(self, *purposes: str) -> None:
        """Wait until its connections for ``purposes`` are up."""
        for purpose in purposes or ("publish",):
            await self.says(f"({purpose}): connected to ")

    async def port(self) -> int:
        """Where its gateway listens, as soon as it does."""
        await self.says("listening at ")
        found = _PORT.search(self.log)
        assert found is not None, self.log
        return int(found[1])


class LMSTestCase(AgentTestCase):
    """A test with LMS sides of its own, which are killed when it ends, and with agents.

    The gateway, unless ``sections`` say otherwise, takes submissions for :attr:`requests` from :data:`USER`.
    """

    async def set_up(self) -> None:
        """Choose names; what an updater makes beside the queue for results goes with it."""
        await super().set_up()
        self.addCleanup(lambda: Deferred.fromCoroutine(self._remove_parked()))

    def write_lms_config(self, *without: str, **sections: Sections) -> str:
        """A configuration file; ``sections`` add to what is there by default, or replace it. Returns its path.

        :param without: sections that are left out.
        """
        defaults: dict[str, Sections] = {
            "lms": {"name": "e2e-lms", "drain_timeout": 10},
            "broker": {"urls": self.node.url, "call_timeout": 10, "retry_initial": 0.1, "retry_max": 1},
            "gateway": {"listen": f"tcp:0:interface={HOST}", "queues": self.requests},
            "users": {USER: quick_hash(PASSWORD)},
        }
        names = [name for name in dict.fromkeys((*defaults, *sections)) if name not in without]
        path = Path(self.mktemp())
        path.write_text(as_ini({name: {**defaults.get(name, {}), **sections.get(name, {})} for name in names}))
        return str(path.absolute())

    def start_lms(
        self,
        config: str,
        *options: str,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> LMSProcess:
        """Start an LMS side with a configuration file; it isn't ready yet."""
        twistd = str(Path(sys.executable).with_name("twistd"))
        command = (twistd, "--nodaemon", "--pidfile=", "edxagent-lms", "--config", config, *options)
        return LMSProcess(start(self, *command, environment=environment, folder=folder))

    async def lms(self, *without: str, **sections: Any) -> LMSProcess:
        """An LMS side whose gateway is at work."""
        lms = self.start_lms(self.write_lms_config(*without, **sections))
        await lms.ready("publish", "pull")
        return lms

    async def ask(
        self, lms: LMSProcess, path: str, fields: Mapping[str, str] | None = None, *, cookie: str = ""
    ) -> Response:
        """Ask a gateway: for a page, or with a form."""
        client = await Client.connect(self, await lms.port())
        body = b"" if fields is None else urlencode(fields).encode()
        lines = [
            f"{'GET' if fields is None else 'POST'} {path} HTTP/1.1",
            "Host: gateway",
            f"Content-Length: {len(body)}",
        ]
        if fields is not None:
            lines.append("Content-Type: application/x-www-form-urlencoded")
        if cookie:
            lines.append(f"Cookie: {cookie}")
        client.say("\r\n".join([*lines, "", ""]).encode() + body)
        return await client.response()

    async def log_in(self, lms: LMSProcess, username: str = USER, password: str = PASSWORD) -> str:
        """A session, as a ``Cookie`` header."""
        response = await self.ask(lms, "/xqueue/login/", {"username": username, "password": password})
        self.assertEqual((response.status, response.reply), (200, (0, "Logged in")))
        return response.cookie

    async def submit(self, lms: LMSProcess, cookie: str, queue: str | None = None) -> Response:
        """Submit something, as an LMS does."""
        form = {"xqueue_header": header(queue or self.requests), "xqueue_body": BODY}
        return await self.ask(lms, "/xqueue/submit/", form, cookie=cookie)

    async def _remove_parked(self) -> None:
        if not self.broker.closed:
            await self.broker.delete_queue(dead_queue_of(self.results))
