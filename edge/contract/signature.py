"""Signatures of bundles: a detached document ``model.edge.sig`` in the format of OpenSSF Model Signing.

The document is a Sigstore bundle (JSON) with one DSSE envelope; the envelope holds an in-toto statement that states the
SHA-256 of the file. Keys are elliptic-curve keys in PEM files. Exchangeable with `model-signing` 1.1.1, which signs one
file as a model with the single resource ``.``, so the file may be renamed.

A signature says that the holder of the key signed these bytes. It does not say when, nor that no newer file exists.

Sources: OpenSSF Model Signing 1.0 as `model-signing` 1.1.1 implements it, in-toto Statement v1, DSSE
v1.0.0 (``protocol.md``), RFC 6979.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.contract import strictjson
from edge.contract.digest import is_digest, sha256, sha256_file, short
from edge.contract.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_THE_FILE = "."  # the name of a model's only file relative to the model, which is that file

_HASHES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}  # what goes with a curve in Sigstore
_MAX_DOCUMENT_BYTES = 1 << 20  # ours have about 1,000


def signature_path(path: Path) -> Path:
    """Where the signature of a file stands: beside it, with ``.sig`` added."""
    return path.with_name(f"{path.name}.sig")


def load_private_key(path: Path, password: bytes | None = None) -> EllipticCurvePrivateKey:
    """Read a key to sign with.

    Args:
        path: A PEM file, PKCS #8 or the older SEC 1.
        password: For an encrypted file; not used otherwise.

    Raises:
        ConfigError: `cryptography` is missing, the file cannot be read, is no private key, is encrypted and the
            password is missing or wrong, or the key is not on P-256, P-384 or P-521.
    """
    pem = _read_pem(path)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if b"-----BEGIN PUBLIC KEY" in pem:
        raise ConfigError(f"{path} is a public key; signing needs the private key that belongs to it")
    encrypted = b"ENCRYPTED" in pem
    if encrypted and not password:
        raise ConfigError(f"the key {path} is encrypted; put its password into the variable EDGE_SIGN_PASSWORD")
    try:
        key = load_pem_private_key(pem, password if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        hint = "is the password in EDGE_SIGN_PASSWORD right?" if encrypted else "expected a PEM file with PRIVATE KEY"
        raise ConfigError(f"{path} is not a private key that can be read; {hint}") from exc
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ConfigError(_wrong_key(path, type(key).__name__))
    _check_curve(path, key.curve.name)
    return key


def load_public_key(path: Path) -> EllipticCurvePublicKey:
    """Read a key to verify with, from a PEM file.

    Raises:
        ConfigError: `cryptography` is missing, the file cannot be read, is no public key, or the key is not on P-256,
            P-384 or P-521.
    """
    pem = _read_pem(path)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if b"PRIVATE KEY-----" in pem:
        raise ConfigError(
            f"{path} is a private key; verifying needs the public one: openssl pkey -in {path} -pubout -out PUBLIC_KEY"
        )
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise ConfigError(f"{path} is not a public key that can be read; expected a PEM file with PUBLIC KEY") from exc
    if not isinstance(key, EllipticCurvePublicKey):
        raise ConfigError(_wrong_key(path, type(key).__name__))
    _check_curve(path, key.curve.name)
    return key


def key_digest(public_key: EllipticCurvePublicKey) -> str:
    """SHA-256 of the key as PEM, by which a signature names its key; ``sha256sum`` of a file from OpenSSL gives it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return sha256(public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def sign_file(path: Path, key: EllipticCurvePrivateKey) -> bytes:
    """Sign a file as it is; whether it is a good bundle is the caller's question.

    The same name, bytes and key give the same document (RFC 6979).

    Args:
        path: The file.
        key: From `load_private_key`.

    Returns:
        The document for `signature_path(path)`.

    Raises:
        BundleError: The file cannot be read.
        ConfigError: This `cryptography` cannot sign deterministically.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    payload = strictjson.dumps(_statement(path.name, _digest_of(path)))
    try:
        raw = key.sign(_pae(payload), ECDSA(_hash_for(key.curve.name), deterministic_signing=True))
    except UnsupportedAlgorithm as exc:
        raise ConfigError(
            "this build of cryptography cannot sign deterministically (RFC 6979); install its wheel: "
            "pip install --upgrade cryptography"
        ) from exc
    return strictjson.dumps(
        {
            "mediaType": _MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": key_digest(key.public_key())}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": _PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(raw).decode(), "keyid": ""}],
            },
        }
    )


def verify_file(path: Path, signature: bytes, public_key: EllipticCurvePublicKey) -> None:
    """Check that the holder of a key signed the bytes that are in a file now.

    Args:
        path: The file; its name need not be the one that it was signed under.
        signature: The document.
        public_key: From `load_public_key`, of a signer that you trust.

    Raises:
        BundleError: Another key, another file, or not a signature of one file.
    """
    try:
        signed = _signed_digest(_verified_payload(signature, public_key))
    except ValueError as exc:
        raise BundleError(f"the signature of {path} is refused: {exc}") from exc
    found = _digest_of(path)
    if found != signed:
        raise BundleError(f"{path} is not the file that was signed: its sha256 is {found}, signed was {signed}")


def _verified_payload(document: bytes, public_key: EllipticCurvePublicKey) -> bytes:
    """The payload of an envelope that this key signed; ValueError if it did not."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    bundle = _from_json("signature document", document)
    _expect("mediaType", _at(bundle, "mediaType"), _MEDIA_TYPE)
    hint = _at(bundle, "verificationMaterial", "publicKey", "hint")
    if not is_digest(hint):
        raise ValueError("it names no public key; signatures with certificates or identities are not supported")
    if hint != (ours := key_digest(public_key)):
        raise ValueError(f"it was made with another key: {short(hint)}, the key given is {short(ours)}")
    _expect("payloadType", _at(bundle, "dsseEnvelope", "payloadType"), _PAYLOAD_TYPE)
    payload = _from_base64(_at(bundle, "dsseEnvelope", "payload"))
    raw = _from_base64(_at(_only("signature", _at(bundle, "dsseEnvelope", "signatures")), "sig"))
    try:
        public_key.verify(raw, _pae(payload), ECDSA(_hash_for(public_key.curve.name)))
    except InvalidSignature as exc:
        raise ValueError("it was changed since it was made, or made with another key") from exc
    return payload


def _signed_digest(payload: bytes) -> str:
    """The SHA-256 of the one file that a statement is about; ValueError if it is not such a statement."""
    statement = _from_json("statement", payload)
    _expect("_type", _at(statement, "_type"), _STATEMENT_TYPE)
    _expect("predicateType", _at(statement, "predicateType"), _PREDICATE_TYPE)
    _expect("method", _at(statement, "predicate", "serialization", "method"), "files")
    _expect("hash_type", _at(statement, "predicate", "serialization", "hash_type"), "sha256")
    resource = _only("file", _at(statement, "predicate", "resources"))
    if (name := _at(resource, "name")) != _THE_FILE:
        raise ValueError(f"it is about {str(name)[:80]!r} inside a folder; sign the .edge file itself")
    _expect("algorithm", _at(resource, "algorithm"), "sha256")
    digest = _at(resource, "digest")
    if not isinstance(digest, str) or not is_digest(digest):
        raise ValueError("the digest of the file is not a SHA-256")
    _expect(
        "digest of the subject", _at(_only("subject", _at(statement, "subject")), "digest"), _subject_digest(digest)
    )
    return digest


def _statement(name: str, digest: str) -> dict[str, Any]:
    """What is signed about a file."""
    # The name is for people. One from a disk with another encoding may not be text, which JSON needs.
    name = name.encode(errors="replace").decode()
    return {
        "_type": _STATEMENT_TYPE,
        "subject": [{"name": name, "digest": _subject_digest(digest)}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": [{"name": _THE_FILE, "algorithm": "sha256", "digest": digest}],
        },
    }


def _subject_digest(digest: str) -> dict[str, str]:
    """A model's digest is the SHA-256 of its files' digests, one after the other; here of one."""
    return {"sha256": sha256(bytes.fromhex(digest))}


def _pae(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the bytes that the key signs."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)


def _hash_for(curve: str) -> hashes.HashAlgorithm:
    from cryptography.hazmat.primitives import hashes

    algorithm: hashes.HashAlgorithm = getattr(hashes, _HASHES[curve])()
    return algorithm


def _digest_of(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as exc:
        raise BundleError(f"{path} cannot be read: {exc.strerror}") from exc


def _read_pem(path: Path) -> bytes:
    try:
        import cryptography  # noqa: F401  # only whether it is there; a device that verifies nothing does not need it
    except ImportError as exc:
        raise ConfigError(
            "signatures need the package cryptography: pip install 'edgeloop[convert]', or 'cryptography' on a device"
        ) from exc
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"the key {path} cannot be read: {exc.strerror}") from exc


def _check_curve(path: Path, curve: str) -> None:
    if curve not in _HASHES:
        raise ConfigError(_wrong_key(path, f"key on the curve {curve}"))


def _wrong_key(path: Path, found: str) -> str:
    return f"{path}: expected an elliptic-curve key on P-256 (or P-384, P-521), got a {found}; see docs/signing.md"


def _at(value: object, *keys: str) -> Any:
    """What stands below a path of keys; None if anything on the way is not there or not an object."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _only(what: str, values: object) -> object:
    if not isinstance(values, list) or len(values) != 1:
        found = len(values) if isinstance(values, list) else "none"
        raise ValueError(f"expected one {what} in it, got {found}")
    return values[0]


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ValueError(f"expected the {what} {expected!r}, got {str(found)[:80]!r}")


def _from_base64(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError("its payload or signature is missing")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as exc:  # binascii.Error is one
        raise ValueError(f"its payload or signature is not base64: {exc}") from exc


def _from_json(what: str, data: bytes) -> dict[str, Any]:
    try:
        return strictjson.loads(data, max_bytes=_MAX_DOCUMENT_BYTES)
    except ValueError as exc:
        raise ValueError(f"it is not a {what}: {exc}") from exc
