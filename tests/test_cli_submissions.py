"""Tests for the sample submissions."""

from __future__ import annotations

from itertools import islice

from twisted.trial.unittest import SynchronousTestCase

from edxagent.cli.submissions import MEBIBYTE, Sample, generate
from edxagent.errors import MalformedRequest
from edxagent.model import Outcome, Submission
from edxagent.wire.request import decode_request

MAX_SIZE = 16 * MEBIBYTE


def samples(count: int, *, seed: int = 1, unreadable: bool = True) -> list[Sample]:
    """The first ``count`` samples."""
    return list(islice(generate(queue="q", run="run", seed=seed, unreadable=unreadable), count))


def read(sample: Sample) -> Submission:
    """The sample as the agent reads it."""
    message = sample.message(queue="q", reply_to="here", timestamp=1)
    return decode_request(message.body, message.properties, "q", MAX_SIZE)


class GenerateTests(SynchronousTestCase):
    """Tests for :func:`generate`."""

    def test_same_seed_same_samples(self) -> None:
        """A seed decides everything."""
        self.assertEqual(samples(200), samples(200))
        self.assertNotEqual(samples(200), samples(200, seed=2))

    def test_ids_differ(self) -> None:
        """No two samples of a run have the same id, and each begins with the run's name."""
        ids = {sample.submission for sample in samples(300)}
        self.assertEqual(len(ids), 300)
        self.assertTrue(all(id.startswith("run-") for id in ids))

    def test_every_sort_comes_first(self) -> None:
        """A short run has one of every sort before any comes again."""
        sorts = [sample.sort for sample in samples(40)]
        different = len(set(sorts))
        self.assertEqual(len(set(sorts[:different])), different)
        self.assertGreater(different, 15)

    def test_reading_agrees_with_the_expectation(self) -> None:
        """What is expected to be malformed can't be read, but its learner can be told; all else can be read."""
        for sample in samples(200):
            assert sample.expected is not None
            try:
                read(sample)
            except MalformedRequest as error:
                self.assertEqual(sample.expected.outcome, Outcome.MALFORMED, sample)
                self.assertTrue(error.header, sample)
                self.assertEqual(sample.expected.score, 0.0)
            else:
                self.assertEqual(sample.expected.outcome, Outcome.GRADED, sample)

    def test_without_unreadable(self) -> None:
        """When asked so, every sample can be read."""
        for sample in samples(100, unreadable=False):
            read(sample)

    def test_one_of_a_mebibyte(self) -> None:
        """Exactly one sample is a large one."""
        sizes = [len(sample.request) for sample in samples(300)]
        self.assertEqual([size >= MEBIBYTE for size in sizes].count(True), 1)

    def test_files_and_other_scripts(self) -> None:
        """Some samples name uploaded files, and some have text beyond ASCII, as UTF-8."""
        everything = samples(20, unreadable=False)
        self.assertTrue(any(read(sample).files != "{}" for sample in everything))
        self.assertTrue(any(not sample.request.isascii() for sample in everything))


class SampleTests(SynchronousTestCase):
    """Tests for :class:`Sample`."""

    def test_message(self) -> None:
        """A sample becomes a request to its queue that names where its verdict goes."""
        sample = samples(1)[0]
        message = sample.message(queue="6002x", reply_to="me", timestamp=7)
        self.assertEqual((message.exchange, message.routing_key), ("grading.requests", "6002x"))
        self.assertEqual(message.body, sample.request)
        self.assertEqual(message.properties.message_id, sample.submission)
        self.assertEqual(message.properties.reply_to, "me")
        self.assertEqual(message.properties.timestamp, 7)
