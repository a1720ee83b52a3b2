"""What we do when the broker speaks first: introductions, alarms, returned messages, closings."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.error import ConnectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from txamqp.client import TwistedDelegate
from txamqp.spec import pythonize

from edxagent.amqp.channel import Channel
from edxagent.amqp.codec import Malformed
from edxagent.errors import BrokerError, BrokerRefused, BrokerUnreachable, ChannelClosed

FRAME_MAX = 131072
"""Bytes; what RabbitMQ itself proposes."""
CHANNEL_MAX = 2047

_CAPABILITIES = {
    "publisher_confirms": True,
    "consumer_cancel_notify": True,
    "basic.nack": True,
    "connection.blocked": True,
    "authentication_failure_close": True,
}

_ASKING = frozenset({"connection_start", "connection_tune", "channel_flow"})
"""What the broker wants an answer to, but for the ends."""


class ConnectionDelegate(TwistedDelegate):  # type: ignore[misc]  # txamqp has no types
    """txamqp calls ``<class>_<method>`` for each method that isn't the answer to a question."""

    client: Any
    _log = Logger()

    def dispatch(self, channel: Channel, message: Any) -> None:
        """Call the method for ``message``. One that we don't know is logged; an error of ours ends nothing."""
        name = f"{pythonize(message.method.klass.name)}_{pythonize(message.method.name)}"
        answer = getattr(self, name, None)
        if answer is None:
            self._log.warn("{broker} sent {method}, which nobody expects.", method=name, broker=self.client)
            return
        if name in _ASKING and self.client.closing:
            return  # we have had our last word (AMQP 0-9-1 §1.4.2.9, close)
        try:
            answer(channel, message)
        except Malformed:
            raise
        except Exception:
            self._log.failure("Answering {method} from {broker} failed.", method=name, broker=self.client)

    # The handshake

    def connection_start(self, channel: Channel, message: Any) -> None:
        """Log in. RabbitMQ tells a wrong password at once to those who say that they understand it."""
        address = self.client.address
        if b"PLAIN" not in message.mechanisms.split():
            self.client.abort(
                BrokerRefused(f"{address}: the broker takes no password login (PLAIN); it has {message.mechanisms!r}")
            )
            return
        channel.connection_start_ok(
            client_properties={
                "product": "edxagent",
                "version": _version(),
                "platform": "Python/Twisted",
                "connection_name": self.client.wishes.name,
                "capabilities": _CAPABILITIES,
            },
            mechanism="PLAIN",
            response=f"\0{address.username}\0{address.password}",
            locale="en_US",
        )

    def connection_tune(self, channel: Channel, message: Any) -> None:
        """Settle the limits: the lower of both sides', where 0 is none. A heartbeat that we don't want is none."""
        wish = self.client.wishes.heartbeat
        limits = (
            _lower(message.channel_max, CHANNEL_MAX),
            _lower(message.frame_max, FRAME_MAX),
            _lower(message.heartbeat, wish) if wish else 0,
        )
        channel.connection_tune_ok(*limits)
        self.client.tune(*limits)

    # Alarms

    def connection_blocked(self, channel: Channel, message: Any) -> None:
        """The broker is short of memory or disk."""
        self._log.warn("{broker} takes no messages for now: {reason}.", broker=self.client, reason=message.reason)
        self.client.set_blocked(message.reason)

    def connection_unblocked(self, channel: Channel, message: Any) -> None:
        """It has recovered."""
        self._log.info("{broker} takes messages again.", broker=self.client)
        self.client.set_blocked(None)

    # Messages

    def basic_return_(self, channel: Channel, message: Any) -> None:
        """A message that nothing is bound for."""
        channel.returned_by_broker(message)

    def basic_cancel(self, channel: Channel, message: Any) -> None:
        """A consumer's queue is gone."""
        channel.cancelled_by_broker(message.consumer_tag)

    # Ends

    def channel_close(self, channel: Channel, message: Any) -> None:
        """The broker closed a channel, usually because of what we asked for on it."""
        channel.ask("channel", "close-ok")
        self.client.forget(channel)
        channel.do_close(ChannelClosed(message.reply_code, message.reply_text))

    def connection_close(self, channel: Channel, message: Any) -> None:
        """The broker ends the connection."""
        channel.ask("connection", "close-ok")
        self.client.closed_by_broker(self._explain_close(message.reply_code, message.reply_text))

    def _explain_close(self, code: int, text: str) -> BrokerError:
        address = self.client.address
        if code == 403:
            return BrokerRefused(
                f"{address}: the broker refused the login; check the user name in [broker] urls"
                " and the password in password_file"
            )
        if code == 530 and "limit" not in text and "down" not in text:
            return BrokerRefused(
                f"{address}: the broker refused the virtual host ({text}); create it, or grant the user access to it:"
                f" rabbitmqctl add_vhost, rabbitmqctl set_permissions"
            )
        return BrokerUnreachable(f"{address}: the broker closed the connection: {code} {text}")

    def explain_loss(self, reason: Failure) -> BrokerError:
        """Why the connection went when neither side had said so."""
        address = self.client.address
        error = reason.value
        if isinstance(error, VerificationError):
            return BrokerRefused(
                f"{address}: the broker's certificate isn't for {address.host!r}; use a name that is in it"
            )
        if isinstance(error, SSL.Error) and not self.client.tuned.called:
            text = "; ".join(entry[2] for entry in error.args[0]) if error.args else ""
            if "unexpected eof" not in text:
                return BrokerRefused(
                    f"{address}: TLS failed ({text or 'no reason given'});"
                    " check tls_ca_file, tls_certificate_file and the port"
                )
        what = "the broker closed it" if reason.check(ConnectionDone) else reason.getErrorMessage()
        return BrokerUnreachable(f"{address}: the connection was lost: {what}")


def _lower(theirs: int, ours: int) -> int:
    return min(theirs, ours) if theirs else ours


def _version() -> str:
    try:
        return version("edxagent")
    except PackageNotFoundError:
        return "0"
