"""A few seconds of :mod:`tests.fuzz_frames`, always the same; and streams that end too early."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.fuzz_frames import LONGEST, Endless, execute, fuzz, limited
from tests.fuzz_session import Session
from tests.fuzz_streams import SESSIONS, chunks


class FuzzTests(SynchronousTestCase):
    """Spoilt sessions."""

    def test_short(self) -> None:
        """Whatever the broker says, nothing is raised, logged as an error, left waiting or kept; all ends are met."""
        report = fuzz("short", executions=800)
        self.assertEqual(report.failures, [])
        self.assertEqual((report.executions, report.ends.total()), (800, 800))
        for end, least in {
            "waits": 50,
            "the connection was closed": 30,
            "the broker closed the connection: …": 30,
            "the broker didn't answer channel.open within … s": 3,
            "the broker sent what isn't AMQP: a frame of … bytes, where … were agreed": 3,
            "the broker sent what isn't AMQP: a value ends beyond its frame or table": 3,
            "the broker sent what isn't AMQP: a body that is longer than announced": 3,
        }.items():
            self.assertGreaterEqual(report.ends[end], least, f"{end} in\n{report}")

    def test_again(self) -> None:
        """An execution is the same each time."""
        for number in range(8):
            self.assertEqual(execute("again", number), execute("again", number))

    def test_endless(self) -> None:
        """What doesn't end is ended."""

        def endless() -> None:
            with limited(0.05):
                while True:
                    pass

        self.assertRaises(Endless, endless)


class EndTests(SynchronousTestCase):
    """A broker that goes on after the end."""

    def test_nothing_is_heard_after_the_end(self) -> None:
        """Its end is agreed to once, whether more comes in the same piece, in the next, or when the line is down."""
        *before, end = SESSIONS[1]
        for pieces in ([end + end], [end, end], [end, b"".join(SESSIONS[0])], [end + b"no AMQP", b"no AMQP"]):
            session = Session(Random(0))
            for piece in (b"".join(before), *pieces):
                session.client.dataReceived(piece)
            self.assertTrue(session.line.disconnecting)
            session.check()
            self.assertEqual((session.end, session.cancellations), ("the broker closed the connection: …", 1))
            session.client.dataReceived(end)
            self.assertEqual(session.line.ignored, [])


class TruncationTests(SynchronousTestCase):
    """Sessions of which only a beginning has come yet."""

    @given(st.data(), st.sampled_from(SESSIONS), st.randoms(use_true_random=False))
    def test_the_rest_is_waited_for(self, data: st.DataObject, frames: list[bytes], random: Random) -> None:
        """Wherever it was cut nothing happens but waiting, and all that was said before has been heard."""
        heard = data.draw(st.integers(0, len(frames) - 1), "whole frames")
        more = data.draw(st.integers(0, len(frames[heard]) - 1), "bytes of the next one")
        stream = b"".join(frames)
        cut = len(b"".join(frames[:heard])) + more
        with limited(LONGEST):
            whole, session = Session(Random(0)), Session(Random(0))
            for frame in frames[:heard]:
                whole.client.dataReceived(frame)
            for piece in chunks(random, stream[:cut]):
                session.client.dataReceived(piece)
            self.assertFalse(session.client.closed)
            self.assertEqual(session.line.value(), whole.line.value())
            self.assertEqual(session.deliveries, whole.deliveries)
            session.client.dataReceived(stream[cut:])
            for frame in frames[heard:]:
                whole.client.dataReceived(frame)
            self.assertEqual(session.line.value(), whole.line.value())
            for each in (session, whole):
                each.check()
        self.assertEqual(
            (session.end, session.complete, session.deliveries), (whole.end, whole.complete, whole.deliveries)
        )
