"""Where the LMS wants a verdict: read from its header, which is as hostile as whoever may submit.

The header is JSON with ``lms_callback_url`` and ``lms_key`` (``capa/responsetypes.py:CodeResponse.get_score``). The URL
is the LMS's ``/courses/<course>/xqueue/<user>/<usage key>/<dispatch>`` (``lms/urls.py``, ``xqueue_callback``).

What is compared with the allow-list is what is connected to: a URL is put together anew from an origin of the list and
the path, so that no two readers of URLs can understand it differently. Names are compared, not addresses: whoever
answers for a listed name in the DNS is trusted.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import unquote

import idna
import msgspec
from attrs import field, frozen

from edxagent.wire.envelope import UNREADABLE
from edxagent.words import brief

LONGEST_HEADER = 16 * 1024
LONGEST_PLACE = 255

# The letters of the scheme are written out because IGNORECASE would take a "ſ" for an "s".
_ORIGIN = (
    r"(?P<scheme>[Hh][Tt][Tt][Pp][Ss]?)://"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\x00-\x20\x7f/\\?#@:\[\]%\u3002\uff0e\uff61]+)"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_URL = re.compile(_ORIGIN + r"(?P<path>/[!\"$-\[\]-~]*)")
_ONLY_ORIGIN = re.compile(_ORIGIN + "/?")
_PLACE = re.compile(r"/courses/(?P<course>[^?]+?)/xqueue/(?P<student>[^/?]+)/(?P<block>[^?]+)/[^/?]+/?(\?.*)?")
_ASCII_HOST = re.compile(r"[0-9a-z_.-]+")
_PORTS = {"http": 80, "https": 443}


class _Header(msgspec.Struct):
    lms_callback_url: str


_header = msgspec.json.Decoder(_Header)


@frozen(kw_only=True)
class Address:
    """Where a verdict goes.

    :ivar origin: scheme, host and port, in one normal form: ``https://lms.example.org``.
    :ivar path: from the ``/`` on; names course, learner and problem, so that it isn't for logs.
    """

    origin: str
    path: str = field(repr=False)

    @property
    def url(self) -> str:
        """The whole."""
        return self.origin + self.path


@frozen(kw_only=True)
class Place:
    """What a verdict is about, in the LMS's words; ``None`` where the address doesn't tell."""

    course: str | None = None
    student: str | None = None
    block: str | None = None


def callback_address(header: str) -> Address:
    """Read the address in an ``xqueue_header``.

    :raises ValueError: there is none that may be used; one line that names the host at most.
    """
    if len(header) > LONGEST_HEADER:
        raise ValueError(f"the header has more than {LONGEST_HEADER} characters")
    try:
        url = _header.decode(header).lms_callback_url
    except UNREADABLE:
        raise ValueError("the header holds no lms_callback_url") from None
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError(f"the header's lms_callback_url is no plain web address{_reason(url)}")
    return Address(origin=_normal(match), path=match["path"])


def origin(value: str) -> str:
    """An origin as an operator writes it, such as ``https://lms.example.org`` or ``http://lms:8000``, in normal form.

    :raises ValueError: it is none.
    """
    match = _ONLY_ORIGIN.fullmatch(value)
    if match is None:
        raise ValueError("expected a scheme and a host, such as https://lms.example.org or http://lms:8000")
    return _normal(match)


def place_of(address: Address) -> Place:
    """What the verdict is about."""
    match = _PLACE.fullmatch(address.path)
    if match is None:
        return Place()
    return Place(course=_text(match["course"]), student=_text(match["student"]), block=_text(match["block"]))


def _normal(match: re.Match[str]) -> str:
    scheme = match["scheme"].lower()
    host = _normal_host(match["host"])
    port = int(match["port"] or _PORTS[scheme])
    if not 1 <= port <= 65535:
        raise ValueError(f"the port of {brief(host)} isn't from 1 to 65535")
    return f"{scheme}://{host}" if port == _PORTS[scheme] else f"{scheme}://{host}:{port}"


def _normal_host(host: str) -> str:
    try:
        if host.startswith("["):
            return f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]"
        # Strict IDNA (RFC 5891) refuses what merely looks like a letter or a digit; other dots are refused above.
        host = host.lower() if host.isascii() else idna.encode(host).decode()
        if not _ASCII_HOST.fullmatch(host) or len(host) > 253:
            raise ValueError
    except ValueError:  # idna's own errors are of that kind
        raise ValueError(f"{brief(host, 80)} is no name of a host") from None
    return host


def _reason(url: str) -> str:
    for what, pattern in (
        ("it isn't http or https", r"(?!https?://)"),
        ("there are credentials in it", r"[a-z]+://[^/?#\\]*@"),
        ("it has a fragment", r"[^#]*#"),
    ):
        if re.match(pattern, url, re.ASCII | re.IGNORECASE):
            return f": {what}"
    return ""


def _text(quoted: str) -> str | None:
    value = unquote(quoted, errors="replace")
    return value if len(value) <= LONGEST_PLACE and value.isprintable() else None
