"""``[agent-config:NAME]`` → :class:`~edxagent.config.lms_values.AgentGrant`."""

from __future__ import annotations

from urllib.parse import quote

from edxagent.config.broker_url import broker_address, refuse_written_password
from edxagent.config.lms_keys import GRANT_KEYS
from edxagent.config.lms_values import AgentGrant
from edxagent.config.sections import Section
from edxagent.config.values import BrokerAddress, TLSConfig


def read_grant(name: str, section: Section) -> AgentGrant:
    """Read a section; what is wrong with it becomes one of its problems."""
    values = section.read(GRANT_KEYS)
    password, urls = values.pop("broker_password"), values.pop("broker_urls")
    return AgentGrant(name=name, broker_urls=_whole_urls(section, urls, password) if urls else (), **values)


def _whole_urls(section: Section, urls: tuple[str, ...], password: str | None) -> tuple[str, ...]:
    try:
        for literal in section.literal("broker_urls").split():
            refuse_written_password(literal)
        return tuple(_url_of(broker_address(url, tls=TLSConfig(), password=password)) for url in urls)
    except ValueError as error:
        section.complain("broker_urls", str(error).replace("password_file", "broker_password_file"))
        return ()


def _url_of(address: BrokerAddress) -> str:
    credentials = f"{quote(address.username, safe='')}:{quote(address.password, safe='')}"
    host = f"[{address.host}]" if ":" in address.host else address.host
    scheme = "amqps" if address.tls else "amqp"
    return f"{scheme}://{credentials}@{host}:{address.port}/{quote(address.vhost, safe='')}"
