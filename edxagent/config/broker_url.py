"""A broker's URL, ``amqp://user@host:port/vhost``, as a :class:`~edxagent.config.values.BrokerAddress`.

The format is RabbitMQ's (https://www.rabbitmq.com/docs/uri-spec), without query parameters, and with an empty path
meaning the virtual host ``/``. No error message repeats a part of the URL: it may hold a password.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import unquote

from edxagent.config.parsers import has_control_characters
from edxagent.config.values import BrokerAddress, TLSConfig

_EXAMPLE = "amqp://guest@127.0.0.1:5672/%2F"
_SHAPE = re.compile(
    r"(?P<scheme>amqps?)://"
    r"(?:(?P<username>[^:@/?#]*)(?::(?P<password>[^@/?#]*))?@)?"
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+))"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?:/(?P<vhost>[^?#]*))?",
)
_WRITTEN_PASSWORD = re.compile(r"://[^:@/?#]*:(?P<password>[^@/?#]+)@")
_DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}
_GUEST = "guest"


def broker_address(url: str, *, tls: TLSConfig, password: str | None = None) -> BrokerAddress:
    """Read a URL.

    :param tls: what holds for ``amqps://``.
    :param password: for a URL that has none. Without it ``guest`` on this machine has RabbitMQ's default, ``guest``.
    :raises ValueError: it is no such URL, or it has no password where one is needed.
    """
    match = _match(url)
    host = match["ipv6"] or match["host"]
    local = is_loopback(host)
    username = _decoded("user name", match["username"] or (_GUEST if local else ""))
    if not username:
        raise ValueError("expected a user name before the host, such as amqps://grader@rabbit.example.org/")
    if match["password"]:
        password = _decoded("password", match["password"])
    elif password is None:
        if not (local and username == _GUEST):
            raise ValueError("there is no password; name a file that holds it with password_file")
        password = _GUEST
    return BrokerAddress(
        host=host,
        port=_port(match),
        username=username,
        password=password,
        vhost=_vhost(match["vhost"] or ""),
        tls=tls if match["scheme"] == "amqps" else None,
    )


def refuse_written_password(literal: str) -> None:
    """Refuse a password that was written down in a URL; RabbitMQ's public ``guest:guest@localhost`` is no secret.

    :param literal: what of the URL did not come from the environment.
    :raises ValueError: there is one.
    """
    written = _WRITTEN_PASSWORD.search(literal)
    if written is None:
        return
    match = _SHAPE.fullmatch(literal)
    if match and match["username"] == match["password"] == _GUEST and is_loopback(match["ipv6"] or match["host"]):
        return
    raise ValueError("a password doesn't belong here; leave it out, and use password_file or ${VARIABLE}")


def is_loopback(host: str) -> bool:
    """Whether a host name or address certainly means this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _match(url: str) -> re.Match[str]:
    if len(url) > 2048 or has_control_characters(url):
        raise ValueError(f"expected a broker's URL, such as {_EXAMPLE}")
    if "?" in url:
        raise ValueError("parameters after a ? aren't understood; [broker] has keys for heartbeat, timeouts and TLS")
    match = _SHAPE.fullmatch(url)
    if match is None:
        raise ValueError(
            f"expected a broker's URL, such as {_EXAMPLE}; in a name or password write @ as %40, : as %3A, / as %2F"
        )
    if match["ipv6"]:
        try:
            ipaddress.IPv6Address(match["ipv6"])
        except ValueError:
            raise ValueError(
                "expected an IPv6 address between the brackets, such as amqp://guest@[::1]:5672/"
            ) from None
    elif len(match["host"]) > 253:
        raise ValueError("expected a host name of at most 253 characters, such as rabbit.example.org")
    return match


def _port(match: re.Match[str]) -> int:
    port = _DEFAULT_PORTS[match["scheme"]] if match["port"] is None else int(match["port"])
    if not 1 <= port <= 65535:
        raise ValueError("expected a port from 1 to 65535, such as 5672")
    return port


def _vhost(path: str) -> str:
    if "/" in path:
        raise ValueError("expected one virtual host after the /, such as %2F; a / within its name is written %2F")
    return _decoded("virtual host", path) or "/"


def _decoded(part: str, encoded: str) -> str:
    try:
        if re.search("%(?![0-9A-Fa-f]{2})", encoded):
            raise ValueError
        decoded = unquote(encoded, errors="strict")
    except ValueError:
        raise ValueError(f"expected UTF-8 in percent encoding in the {part}, such as %2F for /; % is %25") from None
    if has_control_characters(decoded) or len(decoded.encode()) > 255:
        raise ValueError(f"expected a {part} of at most 255 bytes without control characters")
    return decoded
