"""Whom our HTTP client trusts over TLS."""

from __future__ import annotations

import re
from typing import Any

from OpenSSL import SSL
from twisted.internet.ssl import Certificate, platformTrust, trustRootFromCertificates

from edxagent.words import brief

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def trust_root_of(ca_file: str) -> Any:
    """The authorities in a PEM file, or the platform's for ``""``.

    :raises ValueError: it holds none, or can't be read.
    """
    if not ca_file:
        return platformTrust()
    try:
        with open(ca_file, "rb") as file:
            certificates = [Certificate.loadPEM(pem) for pem in _CERTIFICATE.findall(file.read(16 * 1024 * 1024))]
    except (OSError, SSL.Error) as error:
        raise ValueError(f"ca_file: {ca_file} can't be read: {brief(str(error))}") from error
    if not certificates:
        raise ValueError(f"ca_file: {ca_file} holds no certificate in PEM form")
    return trustRootFromCertificates(certificates)
