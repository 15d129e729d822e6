"""Signatures: what the right key made for this very file is accepted, anything else is refused with a reason."""

from __future__ import annotations

import base64
import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract.digest import sha256
from edge.contract.errors import BundleError, ConfigError
from edge.contract.signature import (
    key_digest,
    load_private_key,
    load_public_key,
    sign_file,
    signature_path,
    verify_file,
)

# Throwaway keys for these tests: anybody can make them from the numbers here.
TEST_KEY = ec.derive_private_key(20260101, ec.SECP256R1())
OTHER_TEST_KEY = ec.derive_private_key(20260102, ec.SECP256R1())
PASSWORD = b"correct horse"

# The signature was made once by the reference implementation, with TEST_KEY in throwaway.pem and signed.txt's bytes:
#   model_signing sign key signed.edge --private_key throwaway.pem --signature signed-by-model-signing-1.1.1.sig
SIGNED = Path(__file__).parent / "data" / "signed.txt"
REFERENCE = SIGNED.with_name("signed-by-model-signing-1.1.1.sig")
CONTENT = SIGNED.read_bytes()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "signed.edge"
    path.write_bytes(CONTENT)
    return path


def private_pem(key: Any, password: bytes | None = None) -> bytes:
    return key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password) if password else NoEncryption()
    )


def public_pem(key: Any) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def statement_of(content: bytes = CONTENT) -> dict[str, Any]:
    """What the reference implementation signs about one file, without the ignored paths."""
    digest = sha256(content)
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "signed.edge", "digest": {"sha256": sha256(bytes.fromhex(digest))}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": [{"name": ".", "algorithm": "sha256", "digest": digest}],
        },
    }


def envelope_of(payload: bytes) -> dict[str, Any]:
    """A document in which TEST_KEY signed a payload, written without the module under test."""
    signed = b"DSSEv1 28 application/vnd.in-toto+json " + str(len(payload)).encode() + b" " + payload
    raw = TEST_KEY.sign(signed, ec.ECDSA(hashes.SHA256()))
    return {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": sha256(public_pem(TEST_KEY))}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": base64.b64encode(raw).decode(), "keyid": ""}],
        },
    }


def encode(document: object) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_accepts_what_it_signed(file: Path, curve: ec.EllipticCurve) -> None:
    key = ec.derive_private_key(7, curve)
    verify_file(file, sign_file(file, key), key.public_key())


def test_accepts_what_the_reference_implementation_signed(file: Path) -> None:
    verify_file(file, REFERENCE.read_bytes(), TEST_KEY.public_key())


def test_signs_the_same_statement_as_the_reference_implementation(file: Path) -> None:
    def statement(document: bytes) -> Any:
        return json.loads(base64.b64decode(json.loads(document)["dsseEnvelope"]["payload"]))

    theirs = statement(REFERENCE.read_bytes())
    del theirs["predicate"]["serialization"]["ignore_paths"]  # four names of Git, which say nothing about one file
    assert statement(sign_file(file, TEST_KEY)) == theirs


def test_the_same_file_and_key_give_the_same_bytes(file: Path) -> None:
    document = sign_file(file, TEST_KEY)
    assert document == sign_file(file, TEST_KEY)
    assert sha256(document) == "b4ab386a7efb0f5c0e9c3809268e71035d4f78400d27684d1c61a4ca742c6538"


def test_the_file_may_be_renamed(file: Path) -> None:
    document = sign_file(file, TEST_KEY)
    verify_file(file.rename(file.with_name("renamed.edge")), document, TEST_KEY.public_key())


def test_signs_a_file_whose_name_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / b"caf\xe9.edge".decode(errors="surrogateescape")
    path.write_bytes(CONTENT)
    verify_file(path, sign_file(path, TEST_KEY), TEST_KEY.public_key())


def test_the_signature_stands_beside_the_file() -> None:
    assert signature_path(Path("a/model.edge")) == Path("a/model.edge.sig")


def test_names_the_key_by_the_digest_of_its_file(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "key.pub"
    path.write_bytes(public_pem(TEST_KEY))
    hint = json.loads(sign_file(file, TEST_KEY))["verificationMaterial"]["publicKey"]["hint"]
    assert key_digest(load_public_key(path)) == hint == sha256(path.read_bytes())


def test_refuses_the_signature_of_another_key(file: Path) -> None:
    with pytest.raises(BundleError, match=r"made with another key: [0-9a-f]{12}, the key given is [0-9a-f]{12}$"):
        verify_file(file, sign_file(file, OTHER_TEST_KEY), TEST_KEY.public_key())


def test_refuses_another_key_that_is_passed_off_as_this_one(file: Path) -> None:
    document = json.loads(sign_file(file, OTHER_TEST_KEY))
    document["verificationMaterial"]["publicKey"]["hint"] = key_digest(TEST_KEY.public_key())
    with pytest.raises(BundleError, match="changed since it was made, or made with another key"):
        verify_file(file, encode(document), TEST_KEY.public_key())


@pytest.mark.parametrize("position", range(len(CONTENT)))
def test_refuses_a_file_with_one_changed_byte(file: Path, position: int) -> None:
    document = sign_file(file, TEST_KEY)
    changed = bytearray(CONTENT)
    changed[position] ^= 1
    file.write_bytes(changed)
    with pytest.raises(BundleError, match="is not the file that was signed"):
        verify_file(file, document, TEST_KEY.public_key())


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT + b"\0"], ids=["empty", "cut short", "longer"])
def test_refuses_a_file_of_another_length(file: Path, content: bytes) -> None:
    document = sign_file(file, TEST_KEY)
    file.write_bytes(content)
    with pytest.raises(BundleError, match="is not the file that was signed"):
        verify_file(file, document, TEST_KEY.public_key())


@pytest.mark.parametrize("field", ["payload", "sig"])
def test_refuses_one_flipped_bit_in_payload_or_signature(file: Path, field: str) -> None:
    document = json.loads(sign_file(file, TEST_KEY))
    envelope = document["dsseEnvelope"]
    holder = envelope if field == "payload" else envelope["signatures"][0]
    right = base64.b64decode(holder[field])
    for position in range(len(right)):
        wrong = bytearray(right)
        wrong[position] ^= 1 << position % 8
        holder[field] = base64.b64encode(wrong).decode()
        with pytest.raises(BundleError, match="changed since it was made"):
            verify_file(file, encode(document), TEST_KEY.public_key())


def test_refuses_a_document_cut_short_anywhere(file: Path) -> None:
    document = sign_file(file, TEST_KEY)
    for length in range(len(document)):
        with pytest.raises(BundleError, match="not a signature document"):
            verify_file(file, document[:length], TEST_KEY.public_key())


def test_a_file_that_is_gone_is_a_bundle_error(tmp_path: Path, file: Path) -> None:
    document = sign_file(file, TEST_KEY)
    with pytest.raises(BundleError, match="cannot be read: No such file"):
        verify_file(tmp_path / "gone.edge", document, TEST_KEY.public_key())
    with pytest.raises(BundleError, match="cannot be read: No such file"):
        sign_file(tmp_path / "gone.edge", TEST_KEY)


Change = Callable[[dict[str, Any]], object]

wrong_documents: dict[str, tuple[Change, str]] = {
    "another media type": (lambda d: d.update(mediaType="text/plain"), "expected the mediaType"),
    "no media type": (lambda d: d.pop("mediaType"), "expected the mediaType"),
    "a certificate": (lambda d: d.update(verificationMaterial={"certificate": {}}), "names no public key"),
    "a hint that is no digest": (
        lambda d: d["verificationMaterial"]["publicKey"].update(hint=5),
        "names no public key",
    ),
    "no envelope": (lambda d: d.pop("dsseEnvelope"), "expected the payloadType"),
    "another payload type": (lambda d: d["dsseEnvelope"].update(payloadType="x"), "expected the payloadType"),
    "no payload": (lambda d: d["dsseEnvelope"].pop("payload"), "payload or signature is missing"),
    "a payload that is not base64": (lambda d: d["dsseEnvelope"].update(payload="*"), "not base64"),
    "a payload beyond ASCII": (lambda d: d["dsseEnvelope"].update(payload="é\ud800"), "not base64"),
    "no signature": (lambda d: d["dsseEnvelope"].update(signatures=[]), "expected one signature in it, got 0"),
    "two signatures": (lambda d: d["dsseEnvelope"]["signatures"].append({}), "expected one signature in it, got 2"),
    "signatures that are no list": (lambda d: d["dsseEnvelope"].update(signatures="x"), "expected one signature"),
    "a signature that is no object": (lambda d: d["dsseEnvelope"].update(signatures=["x"]), "signature is missing"),
    "an empty signature": (lambda d: d["dsseEnvelope"].update(signatures=[{"sig": ""}]), "changed since it was made"),
}


@pytest.mark.parametrize(("change", "reason"), wrong_documents.values(), ids=list(wrong_documents))
def test_refuses_a_document_with(file: Path, change: Change, reason: str) -> None:
    document = envelope_of(encode(statement_of()))
    verify_file(file, encode(document), TEST_KEY.public_key())
    change(document)
    with pytest.raises(BundleError, match=f"the signature of .*signed.edge is refused: .*{reason}"):
        verify_file(file, encode(document), TEST_KEY.public_key())


def test_refuses_a_document_in_which_a_key_stands_twice(file: Path) -> None:
    document = sign_file(file, TEST_KEY)
    with pytest.raises(BundleError, match="'mediaType' stands twice"):
        verify_file(file, b'{"mediaType":"",' + document[1:], TEST_KEY.public_key())


def test_refuses_a_document_that_is_too_long(file: Path) -> None:
    with pytest.raises(BundleError, match="at most 1048576 are accepted"):
        verify_file(file, sign_file(file, TEST_KEY) + b" " * (1 << 20), TEST_KEY.public_key())


def _serialization(statement: dict[str, Any]) -> dict[str, Any]:
    return statement["predicate"]["serialization"]


def _resources(statement: dict[str, Any]) -> list[dict[str, Any]]:
    return statement["predicate"]["resources"]


wrong_statements: dict[str, tuple[Change, str]] = {
    "another type": (lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"), "expected the _type"),
    "another predicate": (lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"), "the predicateType"),
    "the predicate before 1.0": (
        lambda s: s.update(predicateType="https://model_signing/Digests/v0.1"),
        "the predicateType",
    ),
    "no predicate": (lambda s: s.pop("predicate"), "expected the method"),
    "shards": (lambda s: _serialization(s).update(method="shards"), "expected the method 'files', got 'shards'"),
    "another hash": (lambda s: _serialization(s).update(hash_type="blake2b"), "expected the hash_type"),
    "no file": (lambda s: _resources(s).clear(), "expected one file in it, got 0"),
    "a second file": (lambda s: _resources(s).append({"name": "b"}), "expected one file in it, got 2"),
    "the file twice": (lambda s: _resources(s).extend(_resources(s)), "expected one file in it, got 2"),
    "files that are no list": (lambda s: s["predicate"].update(resources={"name": "."}), "got none"),
    "a file that is no object": (lambda s: s["predicate"].update(resources=["."]), "inside a folder"),
    "a file in a folder": (
        lambda s: _resources(s)[0].update(name="signed.edge"),
        "about 'signed.edge' inside a folder",
    ),
    "another algorithm": (lambda s: _resources(s)[0].update(algorithm="sha512"), "expected the algorithm"),
    "half a digest": (lambda s: _resources(s)[0].update(digest="ab"), "not a SHA-256"),
    "no digest": (lambda s: _resources(s)[0].pop("digest"), "not a SHA-256"),
    "no subject": (lambda s: s.pop("subject"), "expected one subject in it, got none"),
    "two subjects": (lambda s: s["subject"].append(s["subject"][0]), "expected one subject in it, got 2"),
    "a subject with another digest": (lambda s: s["subject"][0]["digest"].update(sha256="0" * 64), "of the subject"),
}


@pytest.mark.parametrize(("change", "reason"), wrong_statements.values(), ids=list(wrong_statements))
def test_refuses_a_statement_that_the_key_signed_with(file: Path, change: Change, reason: str) -> None:
    statement = statement_of()
    verify_file(file, encode(envelope_of(encode(statement))), TEST_KEY.public_key())
    change(statement)
    with pytest.raises(BundleError, match=f"the signature of .*signed.edge is refused: .*{reason}"):
        verify_file(file, encode(envelope_of(encode(statement))), TEST_KEY.public_key())


@pytest.mark.parametrize("payload", [b"", b"[]", b"\xff", b'{"_type":1,"_type":1}'])
def test_refuses_a_payload_that_is_not_strict_json(file: Path, payload: bytes) -> None:
    with pytest.raises(BundleError, match="it is not a statement"):
        verify_file(file, encode(envelope_of(payload)), TEST_KEY.public_key())


def test_unknown_fields_and_ignored_paths_do_not_matter(file: Path) -> None:
    """The format asks verifiers to pass over them; for one file there is nothing that could be ignored."""
    statement = statement_of()
    statement["predicate"]["model_card"] = {"a": 1}
    _serialization(statement)["ignore_paths"] = [".git", "."]
    verify_file(file, encode(envelope_of(encode(statement)) | {"new": 1}), TEST_KEY.public_key())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64) | st.text('[]{}",:0123456789abcdef', max_size=40).map(str.encode))
def test_strange_bytes_are_a_bundle_error(data: bytes) -> None:
    with pytest.raises(BundleError):
        verify_file(SIGNED, data, TEST_KEY.public_key())


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in ((*path, key), *places(item, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], item: object) -> Any:
    changed = copy.deepcopy(value)
    inside = changed
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = item
    return changed


STATEMENT = statement_of()
DOCUMENT = envelope_of(encode(STATEMENT))
strange = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
# What nobody signs, or what is not about the file: any value will do.
FREE = {
    ("verificationMaterial", "tlogEntries"),
    ("dsseEnvelope", "signatures", 0, "keyid"),
    ("subject", 0, "name"),
    ("predicate", "serialization", "allow_symlinks"),
}


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*places(DOCUMENT), *(("payload", *place) for place in places(STATEMENT))]), strange)
def test_a_strange_value_anywhere_is_a_bundle_error(place: tuple[Any, ...], value: object) -> None:
    in_statement = place[0] == "payload"
    place = place[in_statement:]
    original = STATEMENT if in_statement else DOCUMENT
    changed = put(original, place, value)
    document = encode(envelope_of(encode(changed)) if in_statement else changed)
    if place in FREE or changed == original:
        verify_file(SIGNED, document, TEST_KEY.public_key())
        return
    with pytest.raises(BundleError):
        verify_file(SIGNED, document, TEST_KEY.public_key())


@pytest.mark.parametrize("password", [None, b"", PASSWORD])
def test_reads_a_private_key(tmp_path: Path, password: bytes | None) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(private_pem(TEST_KEY))
    assert load_private_key(path, password).private_numbers() == TEST_KEY.private_numbers()


def test_reads_an_encrypted_private_key(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(private_pem(TEST_KEY, PASSWORD))
    assert load_private_key(path, PASSWORD).private_numbers() == TEST_KEY.private_numbers()


wrong_private_keys: dict[str, tuple[bytes, bytes | None, str]] = {
    "a public key": (public_pem(TEST_KEY), None, "is a public key"),
    "encrypted, no password": (
        private_pem(TEST_KEY, PASSWORD),
        None,
        "encrypted; put its password into .*EDGE_SIGN_PA",
    ),
    "encrypted, empty password": (private_pem(TEST_KEY, PASSWORD), b"", "is encrypted"),
    "encrypted, another password": (private_pem(TEST_KEY, PASSWORD), b"x", "the password in EDGE_SIGN_PASSWORD right"),
    "nothing": (b"", None, "expected a PEM file"),
    "not PEM": (CONTENT, None, "expected a PEM file"),
    "damaged PEM": (private_pem(TEST_KEY)[:90] + private_pem(TEST_KEY)[94:], None, "expected a PEM file"),
    "Ed25519": (private_pem(ed25519.Ed25519PrivateKey.from_private_bytes(b"\1" * 32)), None, "got a .*Ed25519"),
    "RSA": (private_pem(rsa.generate_private_key(65537, 2048)), None, "expected an elliptic-curve key.* got a .*RSA"),
    "P-224": (private_pem(ec.derive_private_key(7, ec.SECP224R1())), None, "on the curve secp224r1"),
    "secp256k1": (private_pem(ec.derive_private_key(7, ec.SECP256K1())), None, "on the curve secp256k1"),
}


@pytest.mark.parametrize(("pem", "password", "reason"), wrong_private_keys.values(), ids=list(wrong_private_keys))
def test_refuses_as_a_private_key(tmp_path: Path, pem: bytes, password: bytes | None, reason: str) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(pem)
    with pytest.raises(ConfigError, match=reason):
        load_private_key(path, password)


wrong_public_keys: dict[str, tuple[bytes, str]] = {
    "a private key": (private_pem(TEST_KEY), "is a private key; verifying needs the public one: openssl pkey"),
    "an encrypted private key": (private_pem(TEST_KEY, PASSWORD), "is a private key"),
    "nothing": (b"", "expected a PEM file"),
    "not PEM": (CONTENT, "expected a PEM file"),
    "Ed25519": (public_pem(ed25519.Ed25519PrivateKey.from_private_bytes(b"\1" * 32)), "got a .*Ed25519"),
    "P-224": (public_pem(ec.derive_private_key(7, ec.SECP224R1())), "on the curve secp224r1"),
}


@pytest.mark.parametrize(("pem", "reason"), wrong_public_keys.values(), ids=list(wrong_public_keys))
def test_refuses_as_a_public_key(tmp_path: Path, pem: bytes, reason: str) -> None:
    path = tmp_path / "key.pub"
    path.write_bytes(pem)
    with pytest.raises(ConfigError, match=reason):
        load_public_key(path)


@pytest.mark.parametrize("load", [load_private_key, load_public_key])
def test_a_key_that_is_not_there_is_a_config_error(tmp_path: Path, load: Callable[[Path], object]) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "gone.pem")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)


@pytest.mark.parametrize("load", [load_private_key, load_public_key])
def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, load: Callable[[Path], object]) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ConfigError, match=r"pip install 'edgeloop\[convert\]'"):
        load(tmp_path / "key.pem")


def test_importing_the_module_does_not_import_cryptography() -> None:
    code = "import sys, edge.contract.signature; print('cryptography' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
