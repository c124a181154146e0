"""Certificates for tests: a CA, and what it signs, made in memory."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAY = datetime.timedelta(days=1)


@dataclass
class Certificate:
    """A certificate and its key, as PEM."""

    cert: str
    key: str
    signer: tuple


def authority(name: str = "a CA") -> Certificate:
    """Make a CA."""
    return _make(name, None, 30)


def signed(ca: Certificate, name: str = "redis", days: float = 30, since: float = -1) -> Certificate:
    """Make what a CA signs for 127.0.0.1: valid from ``since`` to ``days``, in days from now."""
    return _make(name, ca.signer, days, since)


def encrypted(pair: Certificate) -> str:
    """The key with a passphrase."""
    secret = serialization.BestAvailableEncryption(b"sesame")
    form = serialization.PrivateFormat.PKCS8
    return pair.signer[1].private_bytes(serialization.Encoding.PEM, form, secret).decode()


def _make(name: str, signer: tuple | None, days: float, since: float = -1) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer[0] if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + since * DAY)
        .not_valid_after(now + days * DAY)
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
    )
    certificate = builder.sign(signer[1] if signer else key, hashes.SHA256())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    return Certificate(
        certificate.public_bytes(pem).decode(),
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain).decode(),
        (certificate.subject, key),
    )
