"""What the tests of the gateway share: one that listens on loopback, and a client that says just what it is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint, connectProtocol
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from edxagent.config.lms_values import GatewayConfig
from edxagent.lms.contracts import Reply
from edxagent.lms.gateway.passwords import PasswordHash
from edxagent.lms.gateway.service import Gateway
from edxagent.model import Message
from tests.cli_process import until

HOST = "127.0.0.1"
USER, PASSWORD = "lms", "pâss wörd&"


def quick_hash(password: str) -> str:
    """A hash of ``password`` that takes no time."""
    salt = b"salt" * 4
    key = hashlib.scrypt(password.encode(), salt=salt, n=2, r=1, p=1, dklen=32)
    return str(PasswordHash(n=2, r=1, p=1, salt=salt, key=key))


def header(queue: str = "q1", **changes: Any) -> str:
    """An ``xqueue_header`` as an LMS writes it (``xqueue_interface.py``, ``make_xheader``)."""
    address = "http://lms:8000/courses/course-v1:O+C+R/xqueue/7/block-v1:O+C+R+type@problem+block@abc/score_update"
    return json.dumps({"lms_callback_url": address, "lms_key": "f8a65d3d", "queue_name": queue, **changes})


BODY = json.dumps({"student_info": "{}", "grader_payload": "", "student_response": "print('ü')"})


def multipart(fields: Mapping[str, str], files: Mapping[str, bytes], boundary: str = "b0undary") -> bytes:
    """A form with files as requests writes it for an LMS: each part named like its file."""
    body = b""
    for name, value in fields.items():
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    for name, content in files.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


@frozen(kw_only=True)
class Response:
    """What came back: header names in lower case, the values of each in their order."""

    status: int
    headers: dict[str, list[str]]
    body: bytes = field(repr=True)

    @property
    def reply(self) -> tuple[int, Any]:
        """XQueue's two words."""
        said = json.loads(self.body)
        return said["return_code"], said["content"]

    @property
    def cookie(self) -> str:
        """The session that it opens, as a ``Cookie`` header."""
        return self.headers["set-cookie"][0].partition(";")[0]


@implementer(IHalfCloseableProtocol)
class Client(Protocol):
    """A connection.

    :ivar received: everything that came.
    :ivar over: whether the other side says no more; ``lost``: whether the connection is gone.
    """

    def __init__(self) -> None:
        self.received = b""
        self.over = self.lost = False
        self._waiter: Deferred[None] | None = None

    @classmethod
    async def connect(cls, case: TestCase, port: int, source: str = HOST) -> Client:
        """A connection that ends with its test; ``source`` is this side's address."""
        from twisted.internet import reactor

        endpoint = TCP4ClientEndpoint(reactor, HOST, port, bindAddress=(source, 0))  # type: ignore[arg-type]
        return await cls._connected(case, endpoint)

    @classmethod
    async def connect_by_file(cls, case: TestCase, path: str) -> Client:
        """As :meth:`connect`, over a socket in the file system."""
        from twisted.internet import reactor

        return await cls._connected(case, UNIXClientEndpoint(reactor, path))

    @classmethod
    async def _connected(cls, case: TestCase, endpoint: Any) -> Client:
        client: Client = await connectProtocol(endpoint, cls())
        case.addCleanup(client.close)
        return client

    def say(self, data: bytes) -> None:
        """Send just this."""
        self._transport.write(data)

    async def response(self, *, bodiless: bool = False) -> Response:
        """The next response."""
        while b"\r\n\r\n" not in self.received:
            await self._more()
        head = self.received.partition(b"\r\n\r\n")[0]
        first, *lines = head.decode().split("\r\n")
        headers: dict[str, list[str]] = {}
        for line in lines:
            name, _, value = line.partition(": ")
            headers.setdefault(name.lower(), []).append(value)
        length = 0 if bodiless else int(headers.get("content-length", ["0"])[0])
        while len(self.received) < len(head) + 4 + length:
            await self._more()
        body = self.received[len(head) + 4 :][:length]
        self.received = self.received[len(head) + 4 + length :]
        return Response(status=int(first.split()[1]), headers=headers, body=body)

    def dataReceived(self, data: bytes) -> None:
        """Keep it."""
        self.received += data
        self._tell()

    def readConnectionLost(self) -> None:
        """The other side has said its last word."""
        self.over = True
        self._tell()

    def writeConnectionLost(self) -> None:
        """It doesn't listen any more."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """That was it."""
        self.over = self.lost = True
        self._tell()

    async def close(self) -> None:
        """Go, if not gone."""
        if not self.lost:
            self._transport.abortConnection()
        await until(lambda: self.lost)

    async def _more(self) -> None:
        if self.over:
            raise AssertionError(f"the connection ended after {self.received[:200]!r}")
        self._waiter = Deferred()
        await self._waiter

    def _tell(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)

    @property
    def _transport(self) -> Any:
        return self.transport


class FakePublisher:
    """Confirms at once, or fails as told.

    :ivar published: what it confirmed.
    :ivar error: what the next publishes raise; ``hangs``: whether they never end.
    """

    def __init__(self) -> None:
        self.published: list[Message] = []
        self.error: Exception | None = None
        self.hangs = False

    async def publish(self, message: Message) -> None:
        """See ``IPublisher``."""
        if self.hangs:
            await Deferred()
        if self.error is not None:
            raise self.error
        self.published.append(message)


class FakePull:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.reply = Reply(0, 2)
        self.error: Exception | None = None

    async def get_queuelen(self, queue: str) -> Reply:
        """See ``IPull``."""
        return self._answer("get_queuelen", queue)

    async def get_submission(self, queue: str) -> Reply:
        """See ``IPull``."""
        return self._answer("get_submission", queue)

    async def put_result(self, header: str, body: str) -> Reply:
        """See ``IPull``."""
        return self._answer("put_result", header, body)

    def _answer(self, *asked: str) -> Reply:
        self.asked.append(asked)
        if self.error is not None:
            raise self.error
        return self.reply


class NoLink:
    """A link to a broker, without the broker."""

    session = None

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor


class GatewayTestCase(TestCase):
    """A test with a gateway that listens on loopback.

    :ivar now: the wall clock's time.
    """

    timeout = 60.0
    now = 1_700_000_000.0

    def gateway_config(self, **changes: Any) -> GatewayConfig:
        """The configuration of a small gateway."""
        values: dict[str, Any] = {
            "listen": f"tcp:0:interface={HOST}",
            "queues": ("q1", "q2"),
            "users": {USER: quick_hash(PASSWORD)},
            "session_secret": "s3cret",
            "max_upload": 200_000,
            "confirm_timeout": 1.0,
        }
        return GatewayConfig(**{**values, **changes})

    async def start(self, **changes: Any) -> Gateway:
        """A gateway, until the test ends. The arguments are the service's, or the configuration's."""
        from twisted.internet import reactor

        self.publisher, self.pull = FakePublisher(), FakePull()
        parts = {
            "link": NoLink(reactor),
            "publisher": self.publisher,
            "pull": self.pull,
            "agent_config": None,
            "ledger": None,
        }
        parts.update({name: changes.pop(name) for name in list(changes) if name in parts})
        gateway = Gateway(config=self.gateway_config(**changes), reactor=reactor, wall_clock=lambda: self.now, **parts)
        gateway.startService()
        self.addCleanup(lambda: gateway.stopService() if gateway.running else None)
        await gateway.listening
        self.gateway = gateway
        return gateway

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.gateway.address.port)

    async def client(self) -> Client:
        """A connection to it."""
        return await Client.connect(self, self.port)

    async def ask(
        self, method: str, path: str, body: bytes = b"", headers: Sequence[str] = (), *, client: Client | None = None
    ) -> Response:
        """One request, on a connection of its own unless there is one."""
        client = client or await self.client()
        length = [f"Content-Length: {len(body)}"] if body else []
        head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: gateway.example.org", *length, *headers])
        client.say(head.encode() + b"\r\n\r\n" + body)
        return await client.response(bodiless=method == "HEAD")

    async def post(
        self, path: str, fields: Mapping[str, str], *, cookie: str | None = None, client: Client | None = None
    ) -> Response:
        """A form."""
        headers = ["Content-Type: application/x-www-form-urlencoded"]
        if cookie is not None:
            headers.append(f"Cookie: {cookie}")
        return await self.ask("POST", path, urlencode(fields).encode(), headers, client=client)

    async def log_in(self, username: str = USER, password: str = PASSWORD) -> str:
        """A session, as a ``Cookie`` header."""
        response = await self.post("/xqueue/login/", {"username": username, "password": password})
        self.assertEqual((response.status, response.reply), (200, (0, "Logged in")))
        return response.cookie

    async def submit(self, cookie: str, *, files: Mapping[str, bytes] | None = None, **fields: str) -> Response:
        """A submission; ``fields`` in the place of the usual ones."""
        form = {"xqueue_header": header(), "xqueue_body": BODY, **fields}
        if files is None:
            return await self.post("/xqueue/submit/", form, cookie=cookie)
        kind = "Content-Type: multipart/form-data; boundary=b0undary"
        return await self.ask("POST", "/xqueue/submit/", multipart(form, files), [kind, f"Cookie: {cookie}"])
