"""``[broker]``: its keys, and how they become a :class:`~edxagent.config.values.BrokerConfig`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from edxagent.config.broker_url import broker_address, refuse_written_password
from edxagent.config.keys import REQUIRED, Key
from edxagent.config.parsers import (
    boolean,
    choice,
    count_between,
    has_control_characters,
    path,
    seconds,
    seconds_between,
    text,
)
from edxagent.config.sections import Section
from edxagent.config.values import BrokerAddress, BrokerConfig, TLSConfig

MOST_BROKERS = 32


def broker_urls(value: str) -> tuple[str, ...]:
    """Some URLs with blanks or line breaks between them; what each says is looked at later, with the password."""
    urls = tuple(value.split())
    if not 1 <= len(urls) <= MOST_BROKERS or any(map(has_control_characters, urls)):
        raise ValueError(f"expected 1 to {MOST_BROKERS} URLs, such as amqp://guest@127.0.0.1:5672/%2F")
    return urls


BROKER_KEYS = (
    Key(
        "urls",
        broker_urls,
        REQUIRED,
        "Where RabbitMQ is: amqp://user@host:port/vhost, or amqps:// for TLS. Several are tried in turn.",
    ),
    Key("password", text, None, "For the URLs without one; guest on this machine needs none.", secret=True),
    Key(
        "heartbeat",
        count_between(0, 3600),
        30,
        "Seconds between signs of life; the lower of ours and the broker's counts; 0 = none.",
    ),
    Key("connect_timeout", seconds, 10.0, "From the first packet to an opened connection."),
    Key("call_timeout", seconds, 20.0, "For every question that the broker must answer."),
    Key("confirm_timeout", seconds, 30.0, "For the broker's word that it has a verdict."),
    Key(
        "consumer_timeout",
        seconds,
        1800.0,
        "RabbitMQ's own consumer_timeout: grading must take less, or it takes the submission back.",
    ),
    Key("retry_initial", seconds, 0.5, "The pause before the first reconnection; it doubles each time."),
    Key("retry_max", seconds, 5.0, "The longest pause before the same broker is tried again."),
    Key(
        "declare", boolean, True, "Whether queues and exchanges that are missing are made; otherwise they are an error."
    ),
    Key("queue_type", choice("quorum", "classic"), "quorum", "Of the queues that we make."),
    Key(
        "watchdog",
        seconds_between(0, 24 * 3600),
        60.0,
        "A connection over which nothing comes for so long though messages wait is made anew; 0 = it is believed.",
    ),
    Key("tls_ca_file", path, None, "PEM file with the authorities to trust; without it, the system's."),
    Key("tls_certificate_file", path, None, "PEM file with our own certificate, where the broker asks for one."),
    Key("tls_key_file", path, None, "PEM file with its private key, unless that is in tls_certificate_file."),
    Key("tls_verify", boolean, True, "Whether the broker's certificate must be valid for its host name."),
)


def read_broker(section: Section) -> BrokerConfig:
    """Read the section; what is wrong with it becomes one of its problems."""
    values = section.read(BROKER_KEYS)
    urls, tls, password = values.pop("urls"), _pop_tls(values), values.pop("password")
    addresses = _addresses(section, urls, tls, password) if urls else ()
    if urls:
        _check_tls(section, tls, any(url.startswith("amqps://") for url in urls))
    _check_pauses(section, values)
    return BrokerConfig(addresses=addresses, **values)


def read_broker_without_urls(section: Section) -> tuple[BrokerConfig, TLSConfig, str | None]:
    """Read the section where somebody else tells the URLs; also what holds for them: TLS, and the password."""
    values = section.values(key for key in BROKER_KEYS if key.name != "urls")
    section.refuse_others(BROKER_KEYS)
    if "urls" in section:
        section.complain("urls", "the LMS tells them, as there is a section [lms-config]; take one of the two away")
    tls, password = _pop_tls(values), values.pop("password")
    _check_tls(section, tls, used=True)
    _check_pauses(section, values)
    return BrokerConfig(addresses=(), **values), tls, password


def _pop_tls(values: dict[str, Any]) -> TLSConfig:
    return TLSConfig(
        ca_file=values.pop("tls_ca_file"),
        certificate_file=values.pop("tls_certificate_file"),
        key_file=values.pop("tls_key_file"),
        verify=values.pop("tls_verify"),
    )


def _check_pauses(section: Section, values: Mapping[str, Any]) -> None:
    if values["retry_initial"] > values["retry_max"]:
        section.complain("retry_initial", f"is longer than retry_max, {values['retry_max']:g} s")


def _addresses(
    section: Section, urls: tuple[str, ...], tls: TLSConfig, password: str | None
) -> tuple[BrokerAddress, ...]:
    addresses = []
    try:
        for literal in section.literal("urls").split():
            refuse_written_password(literal)
    except ValueError as error:
        section.complain("urls", str(error))
        return ()
    for position, url in enumerate(urls, 1):
        try:
            addresses.append(broker_address(url, tls=tls, password=password))
        except ValueError as error:
            section.complain("urls", f"URL {position}: {error}" if len(urls) > 1 else str(error))
    return tuple(addresses)


def _check_tls(section: Section, tls: TLSConfig, used: bool) -> None:
    files = {
        "tls_ca_file": tls.ca_file,
        "tls_certificate_file": tls.certificate_file,
        "tls_key_file": tls.key_file,
    }
    for key, file in files.items():
        if file is not None and not used:
            section.complain(key, "is of no use: none of the urls begins with amqps://")
        elif file is not None and not (os.path.isfile(file) and os.access(file, os.R_OK)):
            section.complain(key, "there is no such file that we may read")
    if not tls.verify and not used:
        section.complain("tls_verify", "is of no use: none of the urls begins with amqps://")
    if tls.key_file is not None and tls.certificate_file is None:
        section.complain("tls_key_file", "is a key without a certificate; give tls_certificate_file too")
