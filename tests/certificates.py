"""Certificates for tests: an authority of one's own, good for an hour."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@frozen
class Pair:
    """Paths of a certificate and its private key."""

    certificate: str
    key: str


class Authority:
    """Signs certificates. ``path`` is its own."""

    def __init__(self, base: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(base.name)
        certificate = _builder(self._name, self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        pair = _write(base, certificate.sign(self._key, hashes.SHA256()), self._key)
        self.path, self.key_path = pair.certificate, pair.key

    def issue(self, base: Path, name: str) -> Pair:
        """A certificate for a host name or IP address."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _builder(_name(name), self._name, key).add_extension(
            x509.SubjectAlternativeName([_general_name(name)]), critical=False
        )
        return _write(base, certificate.sign(self._key, hashes.SHA256()), key)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - datetime.timedelta(minutes=5),
        not_valid_after=now + datetime.timedelta(hours=1),
    )


def _write(base: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    pem = serialization.Encoding.PEM
    base.with_suffix(".pem").write_bytes(certificate.public_bytes(pem))
    base.with_suffix(".key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return Pair(str(base.with_suffix(".pem")), str(base.with_suffix(".key")))
