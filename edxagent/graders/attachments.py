"""What ``xqueue_files`` names: which files, whether they may be fetched, and under which names they are kept."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from itertools import count
from urllib.parse import quote

import msgspec
from attrs import field, frozen

from edxagent.errors import MalformedSubmission

LONGEST_NAME = 100
"""Characters of the name that a file is kept under; each is one byte."""

LONGEST_ENDING = 20
LONGEST_URL = 8 * 1024
LARGEST_PORT = 65535

_HOST = r"(?P<host>[a-z0-9.-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::(?P<port>[1-9][0-9]{0,4}))?"
_host = re.compile(_HOST, re.IGNORECASE | re.ASCII)
_url = re.compile(rf"(?P<scheme>https?)://{_HOST}(?P<rest>[/?][^\x00-\x20\x7f\\#]*)?(?:#.*)?", re.IGNORECASE | re.ASCII)
_unsafe = re.compile(r"[^A-Za-z0-9._-]")
_files = msgspec.json.Decoder(dict[str, str])
_DEFAULT_PORTS = {"http": "80", "https": "443"}


@frozen(kw_only=True)
class Attachment:
    """A file of a submission.

    :ivar name: what the LMS calls it.
    :ivar url: where it can be fetched; may hold a signature.
    :ivar host: the host of that, and the port; fit to be shown.
    :ivar kept_as: letters, digits, ``.``, ``_`` and ``-`` only; doesn't begin with ``.`` or ``-``; no other file's of
        the same submission.
    """

    name: str = field(repr=False)
    url: str = field(repr=False)
    host: str
    kept_as: str


def host_list(value: str) -> tuple[str, ...]:
    """Hosts with blanks or commas between them, each ``host`` or ``host:port``, in lower case; for a configuration."""
    hosts = value.replace(",", " ").split()
    matches = [_host.fullmatch(host) for host in hosts]
    if not hosts or not all(match and int(match["port"] or 1) <= LARGEST_PORT for match in matches):
        raise ValueError("expected hosts with blanks between them, such as lms.example.org or 127.0.0.1:8080")
    return tuple(dict.fromkeys(host.lower() for host in hosts))


def read_attachments(files: str, hosts: Collection[str], most: int) -> list[Attachment]:
    """Read ``xqueue_files``.

    :param hosts: as of :func:`host_list`. One without a port stands for port 80 over http, and 443 over https.
    :param most: how many files there may be.
    :raises MalformedSubmission: it can't be read, or names more, or something that may not be fetched.
    """
    try:
        named = _files.decode(files)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise MalformedSubmission("xqueue_files isn't a JSON object of texts") from None
    if len(named) > most:
        raise MalformedSubmission(f"xqueue_files names {len(named)} files; [grader] max_files allows {most}")
    taken: set[str] = set()
    attachments = []
    for number, (name, url) in enumerate(named.items(), 1):
        address, host = _allowed(url, hosts, f"file {number} of {len(named)}")
        kept_as = safe_name(name, taken)
        taken.add(kept_as)
        attachments.append(Attachment(name=name, url=address, host=host, kept_as=kept_as))
    return attachments


def safe_name(name: str, taken: Collection[str]) -> str:
    """A name that is fit for a file and not taken: the same for the same arguments, and close to ``name``."""
    plain = _unsafe.sub("_", re.split(r"[/\\]", name)[-1]).lstrip(".-") or "file"
    stem, ending = os.path.splitext(plain)
    if len(ending) > LONGEST_ENDING:
        stem, ending = plain, ""
    for number in count(1):
        tail = ending if number == 1 else f"-{number}{ending}"
        candidate = stem[: LONGEST_NAME - len(tail)] + tail
        if candidate not in taken:
            return candidate
    raise AssertionError("count() has no end")


def _allowed(url: str, hosts: Collection[str], which: str) -> tuple[str, str]:
    """A file's URL, put together again from what was understood of it, and its host."""
    match = _url.fullmatch(url) if len(url) <= LONGEST_URL else None
    if match is None:
        raise MalformedSubmission(f"{which}: expected an address with http or https, without a name and password")
    scheme, host = match["scheme"].lower(), match["host"].lower()
    default = _DEFAULT_PORTS[scheme]
    port = match["port"] or default
    if f"{host}:{port}" not in hosts and not (port == default and host in hosts):
        raise MalformedSubmission(f"{which}: its host {host}:{port} isn't one of [grader] file_hosts")
    rest = match["rest"] or "/"
    # Nearly all storage services encode their URLs themselves; what is encoded stays as it is.
    path = quote(rest if rest.startswith("/") else f"/{rest}", safe="%/?:@!$&'()*+,;=[]~")
    return f"{scheme}://{host}:{port}{path}", f"{host}:{port}"
