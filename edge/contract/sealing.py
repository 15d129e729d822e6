"""Documents that one reader can open: sealed to a public key, X25519 with ChaCha20-Poly1305.

Whoever has the public key seals; only who has the private one opens. The 60 bytes before the text are a fresh public
key, a random number used once, and behind it the 16 of the tag. What the document says about itself in the open is
authenticated with it: it cannot be exchanged. Source: RFC 7748 (X25519), RFC 5869 (HKDF), RFC 8439.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

from edge.contract.digest import sha256
from edge.contract.errors import BundleError, ConfigError
from edge.contract.files import replace_file

_KEY_BYTES, _NONCE_BYTES, _TAG_BYTES = 32, 12, 16
_MAX_PEM_BYTES = 1 << 16
_INFO = b"edgeloop sealed document 1"
# A public key of X25519 is this and its 32 bytes (RFC 8410): what is so is read without a library.
_SPKI = bytes.fromhex("302a300506032b656e032100")
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----\s([A-Za-z0-9+/=\s]{1,128})-----END PUBLIC KEY-----\s*")


class OpeningKey:
    """A private key: it opens what was sealed to the public one.

    Args:
        key: An ``X25519PrivateKey``; nobody else needs to know that.

    Attributes:
        public: The public key, 32 bytes.
    """

    def __init__(self, key: Any) -> None:
        self._key = key
        self.public: bytes = key.public_key().public_bytes_raw()

    def shared_with(self, public: bytes) -> bytes:
        """What only the owners of the two private keys know; ValueError for a key that nobody honest has."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

        found: bytes = self._key.exchange(X25519PublicKey.from_public_bytes(public))
        return found


def key_name(public: bytes) -> str:
    """What a key is called: the first 16 hexadecimal digits of its SHA-256."""
    return sha256(public)[:16]


def make_key(path: Path) -> bytes:
    """Write a new private key, for its owner alone; returns the public one.

    Raises:
        ConfigError: `cryptography` is missing.
        OSError: It cannot be written.
    """
    _installed()
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = X25519PrivateKey.generate()
    with replace_file(path) as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key.public_key().public_bytes_raw()


def write_public(path: Path, public: bytes) -> None:
    """Write a public key as PEM.

    Raises:
        OSError: It cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    with replace_file(path) as file:
        key = X25519PublicKey.from_public_bytes(public)
        file.write(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def read_public(path: Path) -> bytes:
    """The public key in a PEM file.

    Raises:
        ConfigError: `cryptography` is missing, or the file holds no public key for sealing.
    """
    pem = _read(path)
    found = _PEM.fullmatch(pem)
    der = b"" if found is None else _decoded(found[1])
    if der.startswith(_SPKI) and len(der) == len(_SPKI) + _KEY_BYTES:
        return der[len(_SPKI) :]
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if b"PRIVATE KEY-----" in pem:
        raise ConfigError(f"{path} is a private key: a device needs the public one only, the file that ends in .pub")
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise ConfigError(f"{path} is not a public key that can be read; `edge-fleet keys seal` makes one") from exc
    if not isinstance(key, X25519PublicKey):
        raise ConfigError(f"{path} is no key for sealing, expected X25519; `edge-fleet keys seal` makes one")
    return key.public_bytes_raw()


def read_private(path: Path) -> OpeningKey:
    """The private key in a PEM file.

    Raises:
        ConfigError: `cryptography` is missing, or the file holds no private key for sealing.
    """
    pem = _read(path)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise ConfigError(f"{path} is not a private key that can be read; `edge-fleet keys seal` makes one") from exc
    if not isinstance(key, X25519PrivateKey):
        raise ConfigError(f"{path} is no key for sealing, expected X25519; `edge-fleet keys seal` makes one")
    return OpeningKey(key)


def seal(data: bytes, to: bytes, about: bytes) -> bytes:
    """Seal data to a public key, bound to what is said about them in the open."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    own, nonce = OpeningKey(X25519PrivateKey.generate()), os.urandom(_NONCE_BYTES)
    key = _derived(own.shared_with(to), own.public + to)
    return own.public + nonce + ChaCha20Poly1305(key).encrypt(nonce, data, about)


def unseal(sealed: bytes, key: OpeningKey, about: bytes, what: str) -> bytes:
    """What was sealed to the public key that belongs to this private one.

    Raises:
        BundleError: It was sealed to another key, or is damaged, or something else was said about it.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    start = _KEY_BYTES + _NONCE_BYTES
    if len(sealed) < start + _TAG_BYTES:
        raise BundleError(f"{what} is damaged: {len(sealed)} bytes are no sealed document")
    fresh, nonce = sealed[:_KEY_BYTES], sealed[_KEY_BYTES:start]
    try:
        derived = _derived(key.shared_with(fresh), fresh + key.public)
        return ChaCha20Poly1305(derived).decrypt(nonce, sealed[start:], about)
    except (InvalidTag, ValueError) as exc:
        raise BundleError(f"{what} was sealed to another key, or is damaged") from exc


def _derived(shared: bytes, salt: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=salt, info=_INFO).derive(shared)


def _decoded(text: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except ValueError:
        return b""


def _installed() -> None:
    """Whether the library is there; it is imported where it is used, and takes 6 MiB."""
    if importlib.util.find_spec("cryptography") is None:
        raise ConfigError("sealing needs the package cryptography: pip install 'edgeloop[signed]'")


def _read(path: Path) -> bytes:
    _installed()
    try:
        with path.open("rb") as file:
            return file.read(_MAX_PEM_BYTES)
    except OSError as exc:
        raise ConfigError(f"the key {path} cannot be read: {exc.strerror}") from exc
