"""Log observers for ``[log]``: one event a line, as text for people or as JSON for machines.

An event's *fields* are the named values that the caller gave to its ``Logger``. In text they follow the message, except
for those that the message shows already. Whatever an event holds, it can neither forge a line nor make an endless one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from string import Formatter
from typing import Any, TextIO

from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogFilterPredicate,
    ILogObserver,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    formatEvent,
)

from edxagent.config.values import LogConfig

LONGEST_LINE = 8 * 1024
"""Of a line, in bytes."""

LONGEST_FIELD = 1024
MOST_FIELDS = 20

# What breaks a line, steers a terminal, or turns the direction of writing.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# What ``twisted.python.log``, the older API, puts into an event beside what its caller said.
_LEGACY = frozenset(("message", "isError", "system", "time", "format", "failure", "why"))
_RESERVED = frozenset(("time", "level", "namespace", "message", "failure", "shortened"))


def make_log_observer(config: LogConfig, out: TextIO) -> ILogObserver:
    """An observer that writes what is important enough to ``out``, and flushes after each event."""
    render = renderer(config)
    encoding = getattr(out, "encoding", None) or "utf-8"

    def encodable(event: LogEvent) -> str | None:
        rendered = render(event)
        return rendered and rendered.encode(encoding, "backslashreplace").decode(encoding)

    return only_important(config, FileLogObserver(out, encodable))


def renderer(config: LogConfig) -> Callable[[LogEvent], str | None]:
    """The function that makes lines of an event, each with its line end; ``None`` if it says nothing."""
    return as_json if config.format == "json" else as_text


def only_important(config: LogConfig, observer: ILogObserver) -> ILogObserver:
    """An observer that passes on what is at least of the configured level."""
    least = LogLevel.levelWithName(config.level)
    predicates: list[ILogFilterPredicate] = [LogLevelFilterPredicate(defaultLogLevel=least)]
    return FilteringLogObserver(observer, predicates)


def as_text(event: LogEvent) -> str | None:
    """``TIME level message field=value``; a traceback follows on indented lines."""
    message, traceback = formatEvent(event), _traceback(event)
    if not message and not traceback:
        return None
    words = [_time(event), f"{_level(event):<5}", message[:LONGEST_LINE]]
    in_message = _named_in(event.get("log_format"))
    words += [f"{name}={_quoted(value)}" for name, value in _fields(event) if name not in in_message]
    lines = [" ".join(words), *(f"    {line}" for line in traceback.split("\n") if line)]
    return "".join(_cut(_escaped(line)) + "\n" for line in lines)


def as_json(event: LogEvent) -> str | None:
    """A JSON object: ``time`` (ISO 8601, UTC), ``level``, ``namespace``, ``message``, ``failure`` and the fields."""
    message, traceback = formatEvent(event), _traceback(event)
    if not message and not traceback:
        return None
    record = {
        "time": _time(event),
        "level": _level(event),
        "namespace": str(event.get("log_namespace", "")),
        "message": message,
        **{name: value for name, value in _fields(event) if name not in _RESERVED},
    }
    if traceback:
        record["failure"] = traceback
    line = json.dumps(_with_short_texts(record, LONGEST_LINE))
    # Escapes make a text up to six times as long, so how much of it fits is found by trying.
    for longest, names in ((1000, record), (200, record), (50, _RESERVED)):
        if len(line) < LONGEST_LINE:
            break
        kept = {name: value for name, value in record.items() if name in names}
        line = json.dumps({**_with_short_texts(kept, longest), "shortened": True})
    return line + "\n"


def _fields(event: LogEvent) -> Iterator[tuple[str, Any]]:
    """The event's own fields that are plain data, in the caller's order."""
    own = [name for name in event if not name.startswith("log_") and name not in _LEGACY]
    for name in own[:MOST_FIELDS]:
        value = event[name]
        if isinstance(value, str):
            yield name[:50], str(value)[:LONGEST_FIELD]
            continue
        try:
            fits = len(json.dumps(value, allow_nan=False)) <= LONGEST_FIELD
        except (TypeError, ValueError, RecursionError):
            continue
        if fits:
            yield name[:50], value


def _named_in(template: Any) -> frozenset[str]:
    """The fields that a format string shows."""
    try:
        names = [name for _, name, _, _ in Formatter().parse(template) if name]
    except (TypeError, ValueError):
        return frozenset()
    return frozenset(re.split(r"[.\[(]", name)[0] for name in names)


def _time(event: LogEvent) -> str:
    try:
        when = datetime.fromtimestamp(event["log_time"], timezone.utc)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return "-"
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _level(event: LogEvent) -> str:
    return str(getattr(event.get("log_level"), "name", "info"))


def _traceback(event: LogEvent) -> str:
    """The traceback of the event's failure, if it has one; the end of it, if it is long."""
    if "log_failure" not in event:
        return ""
    try:
        text = str(event["log_failure"].getTraceback())
    except Exception:
        return "(a failure whose traceback can't be shown)"
    return text if len(text) <= LONGEST_LINE // 2 else "…" + text[-LONGEST_LINE // 2 :]


def _escaped(text: str) -> str:
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def _quoted(value: Any) -> str:
    if isinstance(value, str) and not re.search(r'[\s="]', value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _cut(line: str) -> str:
    encoded = line.encode()
    return line if len(encoded) < LONGEST_LINE else encoded[: LONGEST_LINE - 4].decode(errors="ignore") + "…"


def _with_short_texts(record: dict[str, Any], longest: int) -> dict[str, Any]:
    """The record with its texts cut, the failure from its beginning: what was raised stands at its end."""
    return {
        name: value
        if not isinstance(value, str) or len(value) <= longest
        else (value[-longest:] if name == "failure" else value[:longest])
        for name, value in record.items()
        if isinstance(value, str) or len(json.dumps(value)) <= longest
    }
