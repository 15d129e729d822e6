"""Statements that one party signs and any other can check: JSON in a DSSE envelope, by Ed25519.

``{"payloadType": …, "payload": base64, "signatures": [{"keyid": …, "sig": base64}]}``; signed is
``DSSEv1 LEN(type) type LEN(payload) payload``. Source: DSSE v1.0.0 (``protocol.md``), RFC 8032. `cryptography` is
imported on demand.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from edge.contract import strictjson
from edge.contract.digest import sha256
from edge.contract.errors import BundleError, ConfigError

FORGOTTEN = "application/vnd.edgeloop.forgotten+json"
_MAX_BYTES = 16 << 20


def make_key() -> bytes:
    """A new private key, PEM.

    Raises:
        ConfigError: `cryptography` is not installed.
    """
    ed25519, serialization = _parts()
    key = ed25519.Ed25519PrivateKey.generate()
    found: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return found


def public_of(key_pem: bytes) -> bytes:
    """The public key that belongs to a private one, PEM.

    Raises:
        ConfigError: It is no such key.
    """
    _, serialization = _parts()
    public = _private(key_pem).public_key()
    found: bytes = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return found


def sign(statement: Mapping[str, Any], kind: str, key_pem: bytes) -> bytes:
    """Sign a statement of a kind; the envelope."""
    payload = strictjson.dumps(dict(statement))
    signature = {
        "keyid": sha256(public_of(key_pem)),
        "sig": base64.b64encode(_private(key_pem).sign(_signed(kind, payload))).decode(),
    }
    document = {"payloadType": kind, "payload": base64.b64encode(payload).decode(), "signatures": [signature]}
    return strictjson.dumps(document)


def verify(envelope: bytes, kind: str, public_pem: bytes) -> dict[str, Any]:
    """The statement in an envelope, proved to be of the owner of a key.

    Raises:
        BundleError: It is damaged, of another kind, or of somebody else.
        ConfigError: The key is none.
    """
    _, serialization = _parts()
    from cryptography.exceptions import InvalidSignature

    try:
        key = serialization.load_pem_public_key(public_pem)
    except ValueError as exc:
        raise ConfigError("expected a PEM file with PUBLIC KEY") from exc
    try:
        found = strictjson.loads(envelope, max_bytes=_MAX_BYTES)
        payload = base64.b64decode(found["payload"], validate=True)
        signature = base64.b64decode(found["signatures"][0]["sig"], validate=True)
        if found["payloadType"] != kind:
            raise BundleError(f"a statement of the kind {str(found['payloadType'])[:80]!r}, expected {kind!r}")
        key.verify(signature, _signed(kind, payload))
        return strictjson.loads(payload, max_bytes=_MAX_BYTES)
    except (ValueError, KeyError, IndexError, TypeError) as exc:
        raise BundleError(f"no signed statement: {exc}") from exc
    except InvalidSignature as exc:
        raise BundleError("the statement is not signed by the owner of this key, or it was changed since") from exc


def _signed(kind: str, payload: bytes) -> bytes:
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)


def _private(key_pem: bytes) -> Any:
    ed25519, serialization = _parts()
    try:
        key = serialization.load_pem_private_key(key_pem, None)
    except (ValueError, TypeError) as exc:
        raise ConfigError("expected a PEM file with PRIVATE KEY, without a password") from exc
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError("expected a key of Ed25519")
    return key


def _parts() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as exc:
        raise ConfigError("receipts need cryptography: pip install cryptography") from exc
    return ed25519, serialization
