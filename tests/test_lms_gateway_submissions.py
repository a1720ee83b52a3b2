"""Tests for taking a submission: what is checked, what is published, and what the LMS is told when it can't be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from edxagent.config.lms_values import GatewayConfig
from edxagent.errors import BrokerUnreachable, DatabaseUnavailable, MessageRefused, PublishFailed, Unroutable
from edxagent.lms.contracts import GATEWAY_ORIGIN, Reply, Upload
from edxagent.lms.gateway.queue_length import QueueLengths
from edxagent.lms.gateway.submissions import LONGEST_MESSAGE, Submissions
from edxagent.lms.gateway.uploads import Stored, UploadsUnavailable
from edxagent.model import REQUEST_TYPE, REQUESTS_EXCHANGE
from edxagent.tasks import Tasks
from edxagent.wire.request import decode_request
from tests.gateway_support import BODY, FakePublisher, NoLink, header

CREDENTIAL = "f8a65d3d"
FILES = [Upload(name="a.py", content=b"1")]


class FakeStore:
    """Keeps names.

    :ivar kept: the tokens of what is kept.
    """

    def __init__(self) -> None:
        self.kept: list[str] = []
        self.error: Exception | None = None

    async def store(self, files: Sequence[Upload]) -> Stored:
        """See ``IUploadStore``."""
        if self.error is not None:
            raise self.error
        self.kept.append(f"token {len(self.kept)}")
        return Stored(token=self.kept[-1], urls={file.name: f"http://files/{file.name}" for file in files})

    def discard(self, stored: Stored) -> None:
        """See ``IUploadStore``."""
        self.kept.remove(stored.token)


class FakeLengths:
    """Says what it is told to say."""

    length: int | None = 5

    async def of(self, queue: str) -> int | None:
        """See ``IQueueLengths``."""
        return self.length


class FakeLedger:
    """Remembers what was accepted."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, str]] = []
        self.error: Exception | None = None

    async def accepted(self, submission: str, *, origin: str, queue: str, remote: str | None = None) -> bool:
        """See ``ILedger``."""
        if self.error is not None:
            raise self.error
        self.entries.append((submission, origin, queue))
        return True


class SubmissionsTestCase(SynchronousTestCase):
    """A test with everything in memory."""

    def setUp(self) -> None:
        """Make it."""
        self.clock = Clock()
        self.publisher, self.store, self.lengths = FakePublisher(), FakeStore(), FakeLengths()
        self.ledger: Any = FakeLedger()
        self.submissions = self.make()

    def make(self, **changes: Any) -> Submissions:
        """Submissions to the queues ``q1`` and ``größe``."""
        parts: dict[str, Any] = {"store": self.store, **changes}
        return Submissions(
            config=GatewayConfig(queues=("q1", "größe"), users={}, confirm_timeout=4.0),
            publisher=self.publisher,
            lengths=self.lengths,
            ledger=self.ledger,
            tasks=Tasks(),
            clock=self.clock,
            wall_clock=lambda: 1_700_000_000.5,
            **parts,
        )

    def submit(self, head: str | None = None, body: str = BODY, files: Sequence[Upload] = ()) -> Deferred[Reply]:
        """Submit."""
        return Deferred.fromCoroutine(self.submissions.submit(header() if head is None else head, body, files))

    def reply(self, *args: Any, **more: Any) -> Reply:
        """What is answered at once."""
        return self.successResultOf(self.submit(*args, **more))

    def refused(self, *args: Any, **more: Any) -> str:
        """The reason for a refusal that leaves nothing behind: in the broker, on the disk or in the ledger."""
        reply = self.reply(*args, **more)
        self.clock.advance(0)
        self.assertEqual(reply.return_code, 1)
        self.assertEqual((self.publisher.published, self.store.kept, self.ledger.entries), ([], [], []))
        return str(reply.content)


class TakenTests(SubmissionsTestCase):
    """Tests for submissions that are taken."""

    def test_published(self) -> None:
        """A submission is published to its queue with an id of its own, verbatim."""
        self.reply()
        self.reply()
        message, other = self.publisher.published
        self.assertEqual((message.exchange, message.routing_key), (REQUESTS_EXCHANGE, "q1"))
        self.assertNotEqual(message.properties.message_id, other.properties.message_id)
        self.assertEqual(message.properties.type, REQUEST_TYPE)
        self.assertEqual(message.properties.timestamp, 1_700_000_000)
        self.assertEqual(message.properties.headers, {"x-origin": GATEWAY_ORIGIN})
        read = decode_request(message.body, message.properties, "q1", 1 << 20)
        self.assertEqual((read.header, read.body, read.files), (header(), BODY, "{}"))

    def test_files(self) -> None:
        """Files are published as addresses."""
        self.reply(files=[*FILES, Upload(name="größe.txt", content=b"")])
        files = json.loads(json.loads(self.publisher.published[0].body)["xqueue_files"])
        self.assertEqual(files, {"a.py": "http://files/a.py", "größe.txt": "http://files/größe.txt"})
        self.assertEqual(len(self.store.kept), 1)

    def test_the_length(self) -> None:
        """The answer is the queue's length, as a text; at least the one that was just put in."""
        for length, told in ((5, "5"), (1, "1"), (0, "1"), (None, "1")):
            self.lengths.length = length
            self.assertEqual(self.reply(), Reply(0, told))

    def test_other_alphabets(self) -> None:
        """Queues and texts may be in any."""
        self.assertEqual(self.reply(header("größe"), "日本").return_code, 0)
        self.assertEqual(self.publisher.published[0].routing_key, "größe")

    def test_unknown_keys(self) -> None:
        """A header may hold more than we know of."""
        self.assertEqual(self.reply(header(more={"a": 1})).return_code, 0)

    def test_no_yes_before_the_confirm(self) -> None:
        """While the broker hasn't confirmed it, nothing is answered."""
        self.publisher.hangs = True
        submitting = self.submit()
        self.clock.advance(3.9)
        self.assertNoResult(submitting)
        self.clock.advance(0.2)
        self.assertEqual(self.successResultOf(submitting).return_code, 1)


class LedgerTests(SubmissionsTestCase):
    """Tests for what the ledger is told."""

    def test_told_afterwards(self) -> None:
        """The LMS has its answer before the ledger is asked for anything."""
        self.reply()
        self.assertEqual(self.ledger.entries, [])
        self.clock.advance(0)
        submission = self.publisher.published[0].properties.message_id
        self.assertEqual(self.ledger.entries, [(submission, GATEWAY_ORIGIN, "q1")])

    def test_away(self) -> None:
        """A database that is away keeps no submission from being taken, and takes one line of the log."""
        self.ledger.error = DatabaseUnavailable("it is locked")
        self.assertEqual(self.reply().return_code, 0)
        self.clock.advance(0)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_broken(self) -> None:
        """A bug in it neither."""
        self.ledger.error = KeyError("oh")
        self.assertEqual(self.reply().return_code, 0)
        self.clock.advance(0)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_none(self) -> None:
        """There may be none."""
        self.ledger = None
        self.submissions = self.make()
        self.assertEqual(self.reply().return_code, 0)


class RefusedTests(SubmissionsTestCase):
    """Tests for submissions that aren't."""

    def test_bad_headers(self) -> None:
        """A header that no LMS writes has an invalid format, as in XQueue; 100 KB of it as well."""
        for head in (
            "",
            "x",
            "[]",
            "null",
            '"q1"',
            "{}",
            "{" * 4000,
            "[" * 4000,
            "\0",
            header(queue_name=None),
            header(lms_key=1),
            header(lms_callback_url=["http://lms"]),
            json.dumps({"queue_name": "q1", "lms_key": "k"}),
            header(more="x" * 100_000),
            "x" * 100_000,
            header()[:-1],
            header() + "}",
        ):
            self.assertEqual(self.refused(head), "Queue request has invalid format", head[:80])

    def test_unknown_queue(self) -> None:
        """A queue that isn't configured isn't found."""
        for queue in ("zz", "", "Q1", "q1 ", "q1.dead", "'; DROP"):
            self.assertEqual(self.refused(header(queue)), f"Queue '{queue}' not found")

    def test_not_on_the_broker(self) -> None:
        """Neither is one that the broker doesn't route to."""
        self.publisher.error = Unroutable("no queue is bound")
        self.assertEqual(self.refused(files=FILES), "Queue 'q1' not found")

    def test_broker_trouble(self) -> None:
        """Whatever the broker says, the LMS hears a short reason that is fit for learners; the files are deleted."""
        for error in (BrokerUnreachable("amqp://guest@10.0.0.7 is away"), PublishFailed("406 PRECONDITION_FAILED")):
            self.publisher.error = error
            reason = self.refused(files=FILES)
            self.assertEqual(reason, "the grading system takes no submissions at the moment")

    def test_too_large(self) -> None:
        """What broker or agents wouldn't take isn't published, so that nobody else's publish fails with it."""
        self.assertEqual(self.refused(body="\0" * (LONGEST_MESSAGE // 6), files=FILES), "the submission is too large")
        self.publisher.error = MessageRefused("too long")
        self.assertEqual(self.refused(files=FILES), "the submission is too large")

    def test_in_time(self) -> None:
        """A broker that hangs is given ``confirm_timeout``; then the files are deleted."""
        self.publisher.hangs = True
        submitting = self.submit(files=FILES)
        self.clock.advance(4.0)
        self.assertEqual(self.successResultOf(submitting).return_code, 1)
        self.assertEqual(self.store.kept, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_disk_trouble(self) -> None:
        """Files that can't be stored are a reason to refuse."""
        self.store.error = UploadsUnavailable("/var/lib: No space left on device")
        self.assertEqual(self.refused(files=FILES), "files can't be stored at the moment")
        self.assertEqual(self.reply().return_code, 0)

    def test_no_store(self) -> None:
        """Without a folder for them, files can't be submitted; everything else can."""
        self.submissions = self.make(store=None)
        self.assertEqual(self.refused(files=FILES), "files can't be submitted to this grading system")
        self.assertEqual(self.reply().return_code, 0)

    def test_a_bug(self) -> None:
        """A bug is logged with its traceback, and the LMS refused in the same words."""
        self.publisher.error = KeyError("oh")
        self.assertEqual(self.refused(files=FILES), "the grading system takes no submissions at the moment")
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)


class HangingChannel:
    """A broker that leaves the first question open.

    :ivar first: fires with the answer.
    """

    closed = False

    def __init__(self) -> None:
        self.first: Deferred[None] = Deferred()

    async def open_channel(self) -> HangingChannel:
        """See ``Session``; it is that, too."""
        return self

    async def declare_queue(self, name: str, *, passive: bool) -> None:
        """See ``Channel``."""
        await self.first


class QueueLengthsTests(SynchronousTestCase):
    """Who asks how long a queue is."""

    def test_broker_that_goes(self) -> None:
        """However many ask while the broker hangs and then goes, each is told that it isn't known."""
        clock, channel = Clock(), HangingChannel()
        link: Any = NoLink(clock)
        link.session = channel
        lengths = QueueLengths(link, 0.9)
        asking = [Deferred.fromCoroutine(lengths.of("q")) for _ in range(500)]
        link.session = None
        channel.first.errback(BrokerUnreachable("it is gone"))
        self.assertEqual([self.successResultOf(each) for each in asking], [None] * 500)
        self.assertIsNone(self.successResultOf(Deferred.fromCoroutine(lengths.of("q"))))
