"""The gateway in front of a real broker: confirmed, unroutable, killed, silent."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, gatherResults

from edxagent.amqp.link import BrokerLink
from edxagent.amqp.topology import ensure_request_queue
from edxagent.config.values import BrokerAddress
from edxagent.lms.contracts import GATEWAY_ORIGIN
from edxagent.wire.request import decode_request
from tests.amqp_support import LinkTestCase, known_to_the_disk
from tests.cli_process import until
from tests.faults.proxy import HOST, FaultProxy
from tests.gateway_support import BODY, GatewayTestCase, Response, header

WITHIN = 5.0
"""Seconds that the LMS's learner may wait for any answer."""

NOT_NOW = "the grading system takes no submissions at the moment"


class BrokerGatewayTestCase(GatewayTestCase, LinkTestCase):
    """A test with a gateway, a queue and the broker in between."""

    timeout = 180.0

    async def set_up(self) -> None:
        """Make the queue."""
        self.name = self.unique("gateway")
        self.direct = self.link()
        session = await self.direct.when_up()
        await ensure_request_queue(session, self.direct.config, self.name)
        self.addCleanup(lambda: Deferred.fromCoroutine(self._remove_queues()))

    async def _remove_queues(self) -> None:
        for name in (self.name, f"{self.name}.dead"):
            await self._remove(name)

    async def open(self, link: BrokerLink, **changes: Any) -> str:
        """A gateway that publishes over ``link``, with the real publisher and the default patience; a session."""
        settings = {"queues": (self.name, "nowhere"), "confirm_timeout": 4.0, "max_upload": 30 << 20, **changes}
        await self.start(link=link, publisher=None, **settings)
        return await self.log_in()

    async def in_time(self, cookie: str, **more: Any) -> Response:
        """The answer to a submission, which comes in time."""
        began = time.monotonic()
        fields = {"xqueue_header": header(self.name), **more}
        response = await self.submit(cookie, **fields)
        self.assertLess(time.monotonic() - began, WITHIN)
        self.assertEqual(response.status, 200)
        return response

    async def until_taken(self, cookie: str) -> None:
        """Submit until one is taken."""
        deadline = time.monotonic() + 60
        while (await self.in_time(cookie)).reply[0]:
            self.assertLess(time.monotonic(), deadline, "the gateway doesn't recover")

    async def waiting(self) -> list[tuple[Any, Any]]:
        """Takes everything out of the queue: headers, and messages."""
        channel = await self.channel(self.direct)
        found = []
        while (delivery := await channel.get(self.name)) is not None:
            read = decode_request(delivery.body, delivery.properties, self.name, 1 << 30)
            found.append((json.loads(read.header), delivery))
            delivery.ack()
        return found


class TakenTests(BrokerGatewayTestCase):
    """Tests for submissions that reach a queue."""

    async def test_taken(self) -> None:
        """What the LMS was told yes for is in the queue, as it was sent; the answer is how many wait there."""
        cookie = await self.open(self.link(purpose="publish"))
        said = [(await self.in_time(cookie)).reply for _ in range(3)]
        self.assertEqual(said, [(0, "1"), (0, "2"), (0, "3")])
        found = await self.waiting()
        self.assertEqual(len(found), 3)
        for head, delivery in found:
            self.assertEqual(head, json.loads(header(self.name)))
            self.assertEqual(json.loads(delivery.body)["xqueue_body"], BODY)
            self.assertEqual(delivery.properties.delivery_mode, 2)
            self.assertEqual(delivery.properties.headers["x-origin"], GATEWAY_ORIGIN)
        self.assertEqual(len({delivery.properties.message_id for _, delivery in found}), 3)

    async def test_many_at_once(self) -> None:
        """A hundred at the same moment are all taken."""
        cookie = await self.open(self.link(purpose="publish"))
        said = await gatherResults([Deferred.fromCoroutine(self.in_time(cookie)) for _ in range(100)])
        self.assertEqual({response.reply[0] for response in said}, {0})
        self.assertTrue(all(1 <= int(response.reply[1]) <= 100 for response in said))
        self.assertEqual(len(await self.waiting()), 100)


class RefusedTests(BrokerGatewayTestCase):
    """Tests for submissions that don't."""

    async def test_no_such_queue(self) -> None:
        """A queue that the broker doesn't have isn't found, however it is configured."""
        cookie = await self.open(self.link(purpose="publish"))
        response = await self.in_time(cookie, xqueue_header=header("nowhere"))
        self.assertEqual(response.reply, (1, "Queue 'nowhere' not found"))
        self.assertEqual((await self.in_time(cookie)).reply, (0, "1"))

    async def test_too_large(self) -> None:
        """A request that is larger than brokers and agents take is refused; the next one isn't."""
        cookie = await self.open(self.link(purpose="publish"))
        response = await self.in_time(cookie, xqueue_body="x" * (17 << 20))
        self.assertEqual(response.reply, (1, "the submission is too large"))
        self.assertEqual((await self.in_time(cookie)).reply, (0, "1"))

    async def test_no_broker(self) -> None:
        """Without a broker the LMS hears so in time, and the files of the submission are deleted again."""
        nothing = BrokerAddress(host=HOST, port=1, username="guest", password="guest")
        folder = self.mktemp()
        link = self.link(self.config(nothing), purpose="publish")
        cookie = await self.open(link, files_folder=folder, files_url="http://h/files/")
        response = await self.in_time(cookie, files={"a": b"1"})
        self.assertEqual(response.reply, (1, NOT_NOW))
        await until(lambda: not self.kept(folder))

    async def test_a_silent_broker(self) -> None:
        """One that falls silent between the submission and its confirm is waited for no longer than the LMS can."""
        proxy = FaultProxy.start(self)
        address = evolve(self.address, port=proxy.port)
        cookie = await self.open(self.link(self.config(address), purpose="publish"))
        self.assertEqual((await self.in_time(cookie)).reply, (0, "1"))
        proxy.stall()
        self.assertEqual((await self.in_time(cookie)).reply, (1, NOT_NOW))

    async def test_a_full_broker(self) -> None:
        """One that takes no publishes, because it is short of memory, means a refusal; afterwards all is well."""
        cookie = await self.open(self.link(purpose="publish"))
        self.assertEqual((await self.in_time(cookie)).reply, (0, "1"))
        self.addCleanup(lambda: Deferred.fromCoroutine(self.node.rabbitmqctl("set_vm_memory_high_watermark", "0.4")))
        await self.node.rabbitmqctl("set_vm_memory_high_watermark", "0")
        refused = [(await self.in_time(cookie)).reply for _ in range(2)]
        self.assertEqual(refused, [(1, NOT_NOW)] * 2)
        await self.node.rabbitmqctl("set_vm_memory_high_watermark", "0.4")
        await self.until_taken(cookie)

    def kept(self, folder: str) -> list[str]:
        """What a folder holds."""
        return [path.name for path in Path(folder).rglob("*")]


class KillTests(BrokerGatewayTestCase):
    """The broker is killed in the middle of submissions."""

    async def test_killed(self) -> None:
        """Every submission is answered in time; those answered with yes are in the queue when the broker is back."""
        cookie = await self.open(self.link(purpose="publish"))
        await until(lambda: known_to_the_disk(self.node, self.name))
        await self.in_time(cookie, xqueue_header=header(self.name, lms_key="first"))
        taken: set[str] = {"first"}
        refused: set[str] = set()

        async def submit(number: int) -> None:
            key = f"key {number}"
            response = await self.in_time(cookie, xqueue_header=header(self.name, lms_key=key))
            (refused if response.reply[0] else taken).add(key)

        submitting = []
        for number in range(60):
            submitting.append(Deferred.fromCoroutine(submit(number)))
            if number == 30:
                await until(lambda: len(taken) > 5)
                killing = self.node.kill()
        await gatherResults(submitting)
        await killing
        self.assertTrue(refused, "it was killed too late")
        await self.node.start()
        await self.until_taken(cookie)
        await self.direct.when_up()
        there = {head["lms_key"] for head, _ in await self.waiting()}
        self.assertEqual(taken - there, set())
