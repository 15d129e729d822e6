"""Certificates by which devices log in: a key made on the device, a request, and what an authority signs.

Keys are on P-256, files are PEM. `cryptography` is imported on demand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from edge.contract.errors import ConfigError

DEVICE_DAYS, AUTHORITY_DAYS, LIST_DAYS = 365, 3650, 30
_SKEW = timedelta(hours=1)  # of the clocks of two machines


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate of a device.

    Attributes:
        pem: It.
        serial: Its number, in hexadecimal.
        expires_ms: Milliseconds since 1970.
    """

    pem: bytes
    serial: str
    expires_ms: int


def make_request(name: str) -> tuple[bytes, bytes]:
    """A new key, and the request for a certificate of this name.

    Raises:
        ConfigError: `cryptography` is not installed.
    """
    x509, hashes, ec = _parts()
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(name)).sign(key, hashes.SHA256())
    return _pem_of_key(key), _pem(request)


def make_authority(name: str, now_ms: int) -> tuple[bytes, bytes]:
    """The key of an authority, and its certificate, signed by itself.

    Raises:
        ConfigError: `cryptography` is not installed.
    """
    x509, hashes, ec = _parts()
    key, begin = ec.generate_private_key(ec.SECP256R1()), _time(now_ms)
    subject = _name(name)
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - _SKEW)
        .not_valid_after(begin + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem_of_key(key), _pem(made)


def issue(key_pem: bytes, authority_pem: bytes, request_pem: bytes, name: str, now_ms: int) -> Issued:
    """Sign a request; whatever else it asks for, the certificate is of a client of this name.

    Raises:
        ConfigError: It is no request, or not proved by its key.
    """
    x509, hashes, ec = _parts()
    key, authority = _authority(key_pem, authority_pem)
    try:
        request = x509.load_pem_x509_csr(request_pem)
        public = request.public_key()
        is_good = request.is_signature_valid and isinstance(public, ec.EllipticCurvePublicKey)
    except Exception as exc:  # whatever the parser raises is about what came
        raise ConfigError(f"the request for a certificate cannot be read: {exc}") from exc
    if not is_good:
        raise ConfigError("the request for a certificate is not signed by its own key, or that is not on a curve")
    end = _time(now_ms) + timedelta(days=DEVICE_DAYS)
    made = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(authority.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(now_ms) - _SKEW)
        .not_valid_after(min(end, authority.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Issued(_pem(made), f"{made.serial_number:x}", int(made.not_valid_after_utc.timestamp() * 1000))


def revocations(key_pem: bytes, authority_pem: bytes, serials: Iterable[tuple[str, int]], now_ms: int) -> bytes:
    """The list of certificates that hold no more, with when that was; brokers ask for one that is not old."""
    x509, hashes, _ = _parts()
    key, authority = _authority(key_pem, authority_pem)
    begin = _time(now_ms)
    made = x509.CertificateRevocationListBuilder(authority.subject, begin - _SKEW, begin + timedelta(days=LIST_DAYS))
    for serial, at_ms in serials:
        one = x509.RevokedCertificateBuilder(int(serial, 16), _time(at_ms)).build()
        made = made.add_revoked_certificate(one)
    return _pem(made.sign(key, hashes.SHA256()))


def _parts() -> tuple[Any, Any, Any]:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as exc:
        raise ConfigError("certificates need cryptography: pip install cryptography; or enrol by a password") from exc
    return x509, hashes, ec


def _authority(key_pem: bytes, authority_pem: bytes) -> tuple[Any, Any]:
    x509, _, _ = _parts()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    return load_pem_private_key(key_pem, None), x509.load_pem_x509_certificate(authority_pem)


def _name(name: str) -> Any:
    x509, _, _ = _parts()
    return x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)])


def _time(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _pem(made: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    found: bytes = made.public_bytes(Encoding.PEM)
    return found


def _pem_of_key(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    found: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return found
