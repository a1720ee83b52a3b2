"""Tests for :mod:`edxagent.ops.logs`."""

from __future__ import annotations

import io
import json
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import ILogObserver, Logger, LogLevel, LogPublisher
from twisted.python import log
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from edxagent.config.values import LogConfig
from edxagent.model import Outcome
from edxagent.ops.logs import LONGEST_LINE, as_json, as_text, make_log_observer

AN_INSTANT = 1700000000.1239
"""2023-11-14, 22:13:20 UTC."""

_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \w+ ")


def event(log_format: str | None = "hello", level: LogLevel = LogLevel.info, **fields: Any) -> dict[str, Any]:
    """An event as ``Logger`` makes them."""
    return {
        "log_logger": object(),
        "log_level": level,
        "log_namespace": "edxagent.agent.Life",
        "log_source": None,
        "log_format": log_format,
        "log_time": AN_INSTANT,
        **fields,
    }


def a_failure(words: str = "x") -> Failure:
    """A failure with a traceback."""
    try:
        raise RuntimeError(words)
    except RuntimeError:
        return Failure()


class AsTextTests(SynchronousTestCase):
    """An event as a line for people."""

    def check(self, expected: str, **fields: Any) -> None:
        """Assert the line behind the time."""
        rendered = as_text(event(**fields))
        self.assertEqual(rendered, f"2023-11-14T22:13:20.123Z {expected}\n")

    def test_plain(self) -> None:
        """Time, level, message."""
        self.check("info  hello")
        self.check("critical hello", level=LogLevel.critical)

    def test_fields(self) -> None:
        """Fields that the message doesn't show follow it, those with blanks quoted; internals don't."""
        self.check(
            'warn  b42 is graded seconds=0.5 outcome=graded words="a b" none=null',
            log_format="{submission} is {how!s:>5}",
            level=LogLevel.warn,
            submission="b42",
            how="graded",
            seconds=0.5,
            outcome=Outcome.GRADED,
            words="a b",
            none=None,
            thing=object(),
        )

    def test_attributes_in_the_message(self) -> None:
        """A field of which the message shows a part, or a call's result, counts as shown."""
        self.check("info  1 2", log_format="{a.real} {b()}", a=1, b=lambda: 2)

    def test_hostile_text(self) -> None:
        """No text makes a second line, steers the terminal or turns the writing round."""
        self.check(
            r'info  a\n2023 \x1b[2J\u202e\u2028\ud800 é who="x\ny \x85"',
            log_format="{it} é",
            it="a\n2023 \x1b[2J\u202e\u2028\ud800",
            who="x\ny \x85",
        )

    def test_failure(self) -> None:
        """A traceback follows on indented lines, so that none of its lines looks like an event's."""
        rendered = as_text(event(log_failure=a_failure("one\n2023-11-14T22:13:20.123Z info two\r\x1b"))) or ""
        first, *others = rendered.rstrip("\n").split("\n")
        self.assertEqual(first, "2023-11-14T22:13:20.123Z info  hello")
        self.assertEqual(others[0], "    Traceback (most recent call last):")
        self.assertEqual(others[-1], r"    2023-11-14T22:13:20.123Z info two\r\x1b")
        self.assertEqual([line for line in others if not line.startswith("    ")], [])

    def test_broken_failure(self) -> None:
        """A failure that can't be shown doesn't hide the event."""
        self.assertIn("can't be shown", as_text(event(log_failure=object())) or "")

    def test_long(self) -> None:
        """A line has an end, whatever it is made of."""
        for unit in ("x", "é", "😀", "\0"):
            for rendered in (
                as_text(event("{it}", it=unit * 100_000)),
                as_text(event(it=unit * 100_000)),
                as_text(event(log_failure=a_failure(unit * 100_000))),
                as_text(event(**{f"{unit}{number}": unit * 5000 for number in range(100)})),
            ):
                for line in (rendered or "").rstrip("\n").split("\n"):
                    self.assertLess(len(line.encode()), LONGEST_LINE)

    def test_nothing_to_say(self) -> None:
        """An event without words is no line."""
        self.assertIs(as_text(event(None)), None)
        self.assertIs(as_json(event(None)), None)

    def test_bad_format(self) -> None:
        """An event whose format doesn't fit its fields still makes a line."""
        for log_format in ("{nope}", "{", "{0}", "{a!x}"):
            self.assertRegex(as_text(event(log_format, a=1)) or "", _LINE)

    def test_no_time(self) -> None:
        """An event without a time that makes sense has a dash for it."""
        for time in (None, "x", float("nan"), 1e300):
            self.assertEqual(as_text(event(log_time=time)), "- info  hello\n")


class AsJSONTests(SynchronousTestCase):
    """An event as an object for machines."""

    def parse(self, **fields: Any) -> dict[str, Any]:
        """Render, check that it is one short line, and parse."""
        rendered = as_json(event(**fields)) or ""
        self.assertTrue(rendered.endswith("\n") and rendered.isascii())
        self.assertNotRegex(rendered[:-1], "[\x00-\x1f\x7f]")
        self.assertLessEqual(len(rendered), LONGEST_LINE)
        parsed: dict[str, Any] = json.loads(rendered)
        return parsed

    def test_plain(self) -> None:
        """Time, level, namespace, message and the fields as data; no internals, and nothing that isn't data."""
        self.assertEqual(
            self.parse(
                log_format="{submission} is graded",
                submission="b42",
                seconds=0.5,
                attempt=1,
                told=True,
                nothing=None,
                outcome=Outcome.GRADED,
                queues=["a", "b"],
                thing=object(),
                endless=float("nan"),
            ),
            {
                "time": "2023-11-14T22:13:20.123Z",
                "level": "info",
                "namespace": "edxagent.agent.Life",
                "message": "b42 is graded",
                "submission": "b42",
                "seconds": 0.5,
                "attempt": 1,
                "told": True,
                "nothing": None,
                "outcome": "graded",
                "queues": ["a", "b"],
            },
        )

    def test_reserved_names(self) -> None:
        """A field can't take the place of what is said about the event."""
        parsed = self.parse(time="x", message="x", namespace="x", shortened="x")
        self.assertEqual(set(parsed), {"time", "level", "namespace", "message"})
        self.assertEqual((parsed["message"], parsed["time"]), ("hello", "2023-11-14T22:13:20.123Z"))

    def test_failure(self) -> None:
        """A failure is one text, with its traceback."""
        parsed = self.parse(log_failure=a_failure("oh\nno"))
        self.assertTrue(parsed["failure"].startswith("Traceback"))
        self.assertTrue(parsed["failure"].endswith("builtins.RuntimeError: oh\nno\n"))

    def test_long(self) -> None:
        """However long, it stays one short line, says that it was shortened, and ends with what was raised."""
        for unit in ("x", "é", "😀", "\0", "\ud800"):
            self.assertTrue(self.parse(log_format="{it}", it=unit * 100_000)["shortened"])
            many = {f"{number}{unit * 60}": unit * 5000 for number in range(100)}
            self.assertTrue(self.parse(**many, log_failure=a_failure(unit * 5000))["shortened"])
        parsed = self.parse(log_failure=a_failure("x" * 5000 + " the end"), it="\0" * 1000)
        self.assertTrue(parsed["failure"].endswith("the end\n"))
        self.assertNotIn("shortened", self.parse(it="x" * 1000))

    @settings(deadline=None)
    @given(
        st.text(),
        st.dictionaries(
            st.text(min_size=1).filter(lambda name: not name.startswith("log_")),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
                lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            ),
        ),
    )
    def test_any_event(self, log_format: str, fields: dict[str, Any]) -> None:
        """Whatever the event, neither form raises or makes a second line."""
        made = {**event(log_format), **fields}
        for rendered in (as_text(made), as_json(made)):
            if rendered is not None:
                self.assertEqual(rendered.splitlines(keepends=True), [rendered])
                self.assertLessEqual(len(rendered.encode()), LONGEST_LINE)


class MakeLogObserverTests(SynchronousTestCase):
    """The observer as ``Logger`` and older code meet it."""

    def observer(self, out: Any, **config: str) -> ILogObserver:
        """An observer that writes to ``out``."""
        observer = make_log_observer(LogConfig(**config), out)
        verifyObject(ILogObserver, observer)
        return observer

    def test_level(self) -> None:
        """What is less important than the level isn't written."""
        for level, expected in (("debug", 4), ("info", 3), ("warn", 2), ("critical", 1)):
            out = io.StringIO()
            logger = Logger(observer=LogPublisher(self.observer(out, level=level)))
            logger.debug("a")
            logger.info("b")
            logger.warn("c")
            logger.critical("d")
            self.assertEqual(len(out.getvalue().splitlines()), expected, level)

    def test_format(self) -> None:
        """The configured format is written."""
        for format_, first in (("text", "2"), ("json", "{")):
            out = io.StringIO()
            Logger(observer=LogPublisher(self.observer(out, format=format_))).info("a")
            self.assertEqual(out.getvalue()[0], first)

    def test_older_events(self) -> None:
        """Events of ``twisted.python.log`` have the level and message that they ought to, and no more."""
        out = io.StringIO()
        published = LogPublisher(self.observer(out, format="json"))
        log.LogPublisher(observerPublisher=published, publishPublisher=published).msg(
            "old", "words", isError=1, queue="q"
        )
        parsed = json.loads(out.getvalue())
        self.assertEqual((parsed["message"], parsed["level"], parsed["queue"]), ("old words", "critical", "q"))
        self.assertEqual(set(parsed), {"time", "level", "namespace", "message", "queue"})

    def test_flushed(self) -> None:
        """Each line leaves at once, however the stream is buffered."""
        raw = io.BytesIO()
        out = io.TextIOWrapper(raw, encoding="utf-8")
        self.observer(out)(event())
        self.assertEqual(raw.getvalue().decode(), "2023-11-14T22:13:20.123Z info  hello\n")

    def test_encoding(self) -> None:
        """What the stream can't encode is escaped."""
        raw = io.BytesIO()
        out = io.TextIOWrapper(raw, encoding="ascii")
        self.observer(out)(event("é"))
        self.assertEqual(raw.getvalue(), b"2023-11-14T22:13:20.123Z info  \\xe9\n")
