"""Check a receipt of forgetting without Edgeloop: by its key, and against the heads that it names.

    python examples/check_receipt.py receipt.json key.pem [HEAD.safetensors ...]

`edge-fleet receipt download N -o receipt.json --key key.pem` writes the first two; have the key on a way that you
trust. A head comes from `edge-fleet release download N`. Needs `cryptography` only. Ends with 0 where all is as stated.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import sys
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_public_key

KIND = "application/vnd.edgeloop.forgotten+json"


def signed_statement(envelope: dict[str, Any], key: Any) -> dict[str, Any]:
    """What is stated, proved to be of the owner of the key (DSSE v1.0.0)."""
    kind, payload = envelope["payloadType"], base64.b64decode(envelope["payload"])
    text = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    key.verify(base64.b64decode(envelope["signatures"][0]["sig"]), text)
    assert kind == KIND, f"a statement of another kind: {kind}"
    found: dict[str, Any] = json.loads(payload)
    return found


def lineages_in(head: bytes) -> set[str]:
    """Whose learning a head says to have in it: the header of a safetensors file."""
    (size,) = struct.unpack_from("<Q", head)
    described = json.loads(json.loads(head[8 : 8 + size])["__metadata__"]["edgeloop"])
    return set(described["included"])


def main() -> int:
    """See the module."""
    if len(sys.argv) < 3:
        print(__doc__)
        return 2
    key = load_pem_public_key(Path(sys.argv[2]).read_bytes())
    try:
        stated = signed_statement(json.loads(Path(sys.argv[1]).read_bytes()), key)
    except InvalidSignature:
        print("WRONG: this was not signed by the owner of the key, or it was changed since")
        return 1
    gone = {each["lineage"] for each in stated["contributions"]} | set(stated.get("lineages", ()))
    print(f"signed: {stated['device']} of the fleet {stated['fleet']}, {len(gone)} lineages forgotten")
    if not gone:
        print(
            "note: it never contributed, so there is no lineage to look for; that it did not is the coordinator's word"
        )
    without = {each["digest"]: each for each in stated["heads_without"]}
    with_it = {each["digest"] for each in stated["heads_with"]}
    if wrong := [each for each in without.values() if gone & set(each["lineages"])]:
        print(f"WRONG: release {wrong[0]['release']} is stated to be without it, and names it")
        return 1
    if not sys.argv[3:]:
        print("note: no head was given, so nothing was compared with what is stated")
    if not stated["is_whole"]:
        print("note: changes that were merged stay in the mean that later heads go on from")
    for name in sys.argv[3:]:
        data = Path(name).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        has = bool(lineages_in(data) & gone)
        if digest in without and not has:
            print(f"right: {name} is release {without[digest]['release']}, and nothing of the device is in it")
        elif digest in with_it and has:
            print(f"right: {name} has it in, as stated")
        else:
            print(f"WRONG: {name} is not as stated: {'it has it in' if has else 'it is not named there'}")
            return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as exc:
        sys.exit(f"{exc.filename} cannot be read: {exc.strerror}")
    except (ValueError, KeyError, TypeError, AssertionError, struct.error) as exc:
        sys.exit(f"what was given is no receipt, key in PEM and heads of releases: {type(exc).__name__}: {exc}")
