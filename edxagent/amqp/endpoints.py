"""From a broker's address to a Twisted endpoint: TCP, or TLS that verifies the broker unless told otherwise."""

from __future__ import annotations

import re
from typing import Any

from OpenSSL import SSL, crypto
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IStreamClientEndpoint
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    optionsForClientTLS,
    platformTrust,
    trustRootFromCertificates,
)
from zope.interface import implementer

from edxagent.config.values import BrokerAddress, TLSConfig
from edxagent.errors import BrokerRefused

_LARGEST_FILE = 4 * 1024 * 1024
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def endpoint_for(address: BrokerAddress, reactor: Any, timeout: float) -> IStreamClientEndpoint:
    """Where and how to connect; the files that TLS needs are read now, so that renewed ones count.

    :param reactor: provides ``IReactorTCP``, ``IReactorTime``, ``IReactorPluggableNameResolver``.
    :param timeout: seconds for the TCP connection.
    :raises BrokerRefused: one of these files can't be used.
    """
    endpoint = HostnameEndpoint(reactor, address.host, address.port, timeout=timeout)
    if address.tls is None:
        return endpoint
    return wrapClientTLS(_connection_creator(address.host, address.tls), endpoint)


def _connection_creator(host: str, tls: TLSConfig) -> IOpenSSLClientConnectionCreator:
    identity = _identity(tls)
    if not tls.verify:
        return _Unverified(host, CertificateOptions(**identity))
    trust = platformTrust() if tls.ca_file is None else trustRootFromCertificates(_authorities(tls.ca_file))
    return optionsForClientTLS(host, trustRoot=trust, extraCertificateOptions=identity)


def _authorities(path: str) -> list[Certificate]:
    return [Certificate(certificate) for certificate in _certificates("tls_ca_file", path)]


def _identity(tls: TLSConfig) -> dict[str, Any]:
    """What ``CertificateOptions`` wants to know of our own certificate; empty if we have none."""
    if tls.certificate_file is None:
        return {}
    own, *chain = _certificates("tls_certificate_file", tls.certificate_file)
    key_name = "tls_key_file" if tls.key_file else "tls_certificate_file"
    key_path = tls.key_file or tls.certificate_file
    try:
        # A passphrase, though empty, keeps OpenSSL from asking for one on the terminal.
        key = crypto.load_privatekey(crypto.FILETYPE_PEM, _read(key_name, key_path), passphrase=b"")
    except crypto.Error:
        raise BrokerRefused(f"[broker] {key_name}: {key_path} holds no unencrypted private key in PEM form") from None
    identity: dict[str, Any] = {"privateKey": key, "certificate": own, "extraCertChain": chain}
    try:
        CertificateOptions(**identity).getContext().check_privatekey()
    except SSL.Error:
        raise BrokerRefused(
            f"[broker] {key_name}: the private key in {key_path} doesn't fit the certificate in {tls.certificate_file}"
        ) from None
    return identity


def _certificates(name: str, path: str) -> list[crypto.X509]:
    try:
        found = [
            crypto.load_certificate(crypto.FILETYPE_PEM, block) for block in _CERTIFICATE.findall(_read(name, path))
        ]
    except crypto.Error:
        raise BrokerRefused(f"[broker] {name}: {path} holds a broken certificate") from None
    if not found:
        raise BrokerRefused(f"[broker] {name}: {path} holds no certificate in PEM form")
    return found


def _read(name: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_LARGEST_FILE)
    except OSError as error:
        raise BrokerRefused(f"[broker] {name}: {path} can't be read: {error.strerror}") from None


@implementer(IOpenSSLClientConnectionCreator)
class _Unverified:
    """TLS with whoever answers, for those who wrote ``tls_verify = no``."""

    def __init__(self, host: str, options: CertificateOptions) -> None:
        self._host = host
        self._options = options

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """See ``IOpenSSLClientConnectionCreator``."""
        connection = SSL.Connection(self._options.getContext(), None)
        if not isIPAddress(self._host) and not isIPv6Address(self._host):
            connection.set_tlsext_host_name(self._host.encode("idna"))
        return connection
