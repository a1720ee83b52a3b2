"""What a broker says, as lists of frames in pamqp's words, and everything that can be done to spoil it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from struct import Struct
from typing import Any

from pamqp import body, commands, frame, header, heartbeat

Frames = list[bytes]
"""One whole frame each, until they are spoilt."""

KEPT_BODY = 4096
"""The greatest body that the consumer in :mod:`tests.fuzz_session` wants."""

_HEAD = Struct(">BHI")
_SIZES = (0, 1, 7, 8, 255, 4088, 8184, 8185, 131064, 131065, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_DEATH = {"count": 3, "reason": "expired", "queue": "grading.retry.5000", "exchange": "", "routing-keys": ["q"]}
_HEADERS = {"x-attempt": 2, "x-death": [_DEATH, _DEATH], "x-failures": {"crashed": 1}, "é": None, "yes": True}


def said(item: Any, channel: int = 1) -> bytes:
    """A frame."""
    data: bytes = frame.marshal(item, channel)
    return data


def content(method: Any, data: bytes, *, piece: int = 1000, channel: int = 1) -> Frames:
    """The frames of a message."""
    properties = commands.Basic.Properties(
        message_id="m", message_type="grading.request", delivery_mode=2, headers=_HEADERS, priority=1, app_id="lms"
    )
    pieces = [body.ContentBody(data[start : start + piece]) for start in range(0, len(data), piece)]
    return [said(item, channel) for item in (method, header.ContentHeader(0, len(data), properties), *pieces)]


def beginning() -> Frames:
    """A handshake, a channel, a queue and its consumer."""
    capabilities = {"publisher_confirms": True, "basic.nack": True, "connection.blocked": True}
    server = {"product": "RabbitMQ", "version": "3.10.8", "capabilities": capabilities}
    return [
        said(commands.Connection.Start(0, 9, server, "PLAIN AMQPLAIN", "en_US"), 0),
        said(commands.Connection.Tune(2047, 131072, 60), 0),
        said(commands.Connection.OpenOk(), 0),
        said(commands.Channel.OpenOk()),
        said(commands.Confirm.SelectOk()),
        said(commands.Queue.DeclareOk("q", 3, 0)),
        said(commands.Basic.QosOk()),
        said(commands.Basic.ConsumeOk("1.1")),
    ]


def middle() -> Frames:
    """Deliveries, and what becomes of three publishes; ends with the answers to two ``basic.get``."""
    return [
        *content(commands.Basic.Deliver("1.1", 1, False, "grading.requests", "q"), b'{"xqueue_header": ""}'),
        *content(commands.Basic.Deliver("1.1", 2, True, "grading.requests", "q"), b"x" * 3000),
        said(heartbeat.Heartbeat(), 0),
        *content(commands.Basic.Deliver("1.1", 3, False, "", "q"), b""),
        *content(commands.Basic.Deliver("1.1", 4, False, "", "q"), bytes(KEPT_BODY + 1)),
        said(commands.Basic.Ack(1, False)),
        *content(commands.Basic.Return(312, "NO_ROUTE", "", "nowhere"), b"2"),
        said(commands.Basic.Ack(2, False)),
        said(commands.Connection.Blocked("low on memory"), 0),
        said(commands.Basic.Nack(3, True)),
        said(commands.Connection.Unblocked(), 0),
        *content(commands.Basic.GetOk(5, False, "", "q", 0), b"got"),
        said(commands.Basic.GetEmpty()),
    ]


def refusal() -> Frames:
    """A second channel, which is closed for what was asked on it."""
    return [said(commands.Channel.OpenOk(), 2), said(commands.Channel.Close(404, "NOT_FOUND", 50, 10), 2)]


def peaceful_end() -> Frames:
    """What answers the consumer's, the channel's and the connection's end."""
    last = content(commands.Basic.Deliver("1.1", 6, False, "", "q"), b"late")
    end = [
        said(commands.Basic.CancelOk("1.1")),
        said(commands.Channel.CloseOk()),
        said(commands.Connection.CloseOk(), 0),
    ]
    return [*last, *end]


def forced_end() -> Frames:
    """The consumer's queue is deleted; the broker is stopped."""
    return [said(commands.Basic.Cancel("1.1")), said(commands.Connection.Close(320, "CONNECTION_FORCED", 0, 0), 0)]


SESSIONS = (
    [*beginning(), *middle(), *refusal(), *peaceful_end()],
    [*beginning(), *middle(), *forced_end()],
    [*beginning(), *middle()],
)
"""All that a broker says in a connection of :mod:`tests.fuzz_session`, in its order, as nothing else is asked."""


def _somewhere(random: Random, frames: Frames) -> int:
    return random.randrange(len(frames))


def _repacked(data: bytes, payload: bytes) -> bytes:
    """A frame with another payload."""
    kind, channel, _ = _HEAD.unpack_from(data)
    return _HEAD.pack(kind, channel, len(payload)) + payload + b"\xce"


def _drop(random: Random, frames: Frames) -> None:
    del frames[_somewhere(random, frames)]


def _repeat(random: Random, frames: Frames) -> None:
    at = _somewhere(random, frames)
    frames[at:at] = frames[at : at + random.randint(1, 4)] * random.choice((1, 1, 2, 50))


def _swap(random: Random, frames: Frames) -> None:
    one, other = _somewhere(random, frames), _somewhere(random, frames)
    frames[one], frames[other] = frames[other], frames[one]


def _splice(random: Random, frames: Frames) -> None:
    other = random.choice(SESSIONS)
    start = _somewhere(random, other)
    at = _somewhere(random, frames)
    frames[at:at] = other[start : start + random.randint(1, 6)]


def _stranger(random: Random, frames: Frames) -> None:
    """A method that a broker sends seldom or never, with nothing or with anything in it."""
    number = random.choice(sorted(commands.INDEX_MAPPING))
    arguments = random.choice((bytes(64), random.randbytes(random.choice((0, 1, 2, 10, 40)))))
    payload = number.to_bytes(4, "big") + arguments
    channel = 0 if number >> 16 == 10 else random.choice((1, 1, 1, 2, 0))
    frames.insert(_somewhere(random, frames), _HEAD.pack(1, channel, len(payload)) + payload + b"\xce")


def _head(random: Random, frames: Frames) -> None:
    """Another type, channel or length."""
    at = _somewhere(random, frames)
    kind, channel, length = _HEAD.unpack_from(frames[at].ljust(7, b"\0"))
    what = random.randrange(3)
    if what == 0:
        kind = random.choice((1, 2, 3, 8, 0, 4, 65, 255))
    elif what == 1:
        channel = random.choice((0, 1, 2, 3, 65535))
    else:
        length = random.choice((*_SIZES, max(0, length + random.choice((-1, 1)))))
    frames[at] = _HEAD.pack(kind, channel, length) + frames[at][7:]


def _payload(random: Random, frames: Frames) -> None:
    """Some bytes of a payload are others, more or fewer, and the frame is whole nevertheless."""
    at = _somewhere(random, frames)
    payload = bytearray(frames[at][7:-1])
    for _ in range(random.randint(1, 3)):
        start = random.randrange(len(payload) + 1)
        what = random.choice((b"", random.randbytes(1), random.randbytes(4), b"\xff\xff\xff\xff", b"\x7f", b"A", b"F"))
        payload[start : start + random.choice((0, 1, len(what), len(what)))] = what
    frames[at] = _repacked(frames[at].ljust(8, b"\0"), bytes(payload))


def _cut_payload(random: Random, frames: Frames) -> None:
    at = _somewhere(random, frames)
    payload = frames[at][7:-1]
    frames[at] = _repacked(frames[at].ljust(8, b"\0"), payload[: random.randrange(len(payload) + 1)])


def _size(random: Random, frames: Frames) -> None:
    """A content that announces another size, up to the greatest."""
    headers = [at for at, data in enumerate(frames) if data[:1] == b"\x02" and len(data) > 22]
    if headers:
        at = random.choice(headers)
        size = random.choice((*_SIZES, KEPT_BODY, 1 << 40, (1 << 64) - 1))
        frames[at] = frames[at][:11] + size.to_bytes(8, "big") + frames[at][19:]


def _nested(random: Random) -> bytes:
    """A table or array in another, and so on."""
    letter = random.choice((b"F", b"A"))
    table = b""
    for _ in range(random.choice((15, 16, 17, 200, 4000))):
        table = (b"\x00" if letter == b"F" else b"") + letter + len(table).to_bytes(4, "big") + table
    return table if letter == b"F" else b"\x00" + table


def _wide(random: Random) -> bytes:
    """As many names as a frame holds."""
    return b"".join(b"\x02" + n.to_bytes(2, "big") + b"V" for n in range(random.choice((10, 30_000))))


def _nonsense(random: Random) -> bytes:
    """Names, types that there are, and anything behind them."""
    letters = random.choices(b"tbBsuIilLfdDSxAFTV", k=random.choice((1, 1, 2, 6)))
    return b"".join(
        b"\x01k" + bytes((letter,)) + random.randbytes(random.choice((0, 1, 4, 5, 8))) for letter in letters
    )


def _table(random: Random, frames: Frames) -> None:
    """A content whose headers are none that a broker writes."""
    table = random.choice((_nested, _wide, _nonsense, _nonsense))(random)
    payload = b"\x00\x3c\x00\x00" + bytes(7) + b"\x01\x20\x00" + len(table).to_bytes(4, "big") + table
    spoilt = [*content(commands.Basic.Deliver("1.1", 7, False, "", "q"), b"x")]
    spoilt[1] = _HEAD.pack(2, 1, len(payload)) + payload + b"\xce"
    at = _somewhere(random, frames)
    frames[at:at] = spoilt


def _crumbs(random: Random, frames: Frames) -> None:
    """A body in the smallest of frames, empty ones among them: it is as good as any."""
    bodies = [at for at, data in enumerate(frames) if data[:1] == b"\x03" and len(data) > 8]
    if bodies:
        at = random.choice(bodies)
        payload = frames[at][7:-1][:500]
        rest = frames[at][7:-1][500:]
        pieces = [payload[n : n + 1] for n in range(len(payload))] + [b""] * random.choice((0, 1, 500)) + [rest]
        frames[at : at + 1] = [_repacked(frames[at], piece) for piece in pieces]


def _raw(random: Random, frames: Frames) -> None:
    """A byte or some, anywhere."""
    at = _somewhere(random, frames)
    data = bytearray(frames[at])
    start = random.randrange(len(data) + 1)
    data[start : start + random.randrange(3)] = random.randbytes(random.choice((0, 1, 1, 2, 20)))
    frames[at] = bytes(data)


def _truncate(random: Random, frames: Frames) -> None:
    at = _somewhere(random, frames)
    frames[at] = frames[at][: random.randrange(len(frames[at]) + 1)]
    del frames[at + 1 :]


SPOILERS: tuple[Callable[[Random, Frames], None], ...] = (
    _drop, _repeat, _swap, _splice, _stranger, _head, _payload, _payload, _cut_payload, _size, _table, _crumbs, _raw,
    _truncate,
)  # fmt: skip


def spoilt(random: Random) -> Frames:
    """A session with up to four things wrong, seldom with none."""
    frames = list(random.choice(SESSIONS))
    for _ in range(random.choice((0, 1, 1, 1, 2, 3, 4))):
        if frames:
            random.choice(SPOILERS)(random, frames)
    return frames


def chunks(random: Random, stream: bytes) -> list[bytes]:
    """The stream as a network may cut it: whole, or in pieces, some of them down to single bytes."""
    found = []
    while stream:
        most = random.choice((1, 10, 100, 1000, 10_000, len(stream)))
        for _ in range(random.randint(1, 30)):
            length = int(random.random() * most) + 1
            found.append(stream[:length])
            stream = stream[length:]
    return found
