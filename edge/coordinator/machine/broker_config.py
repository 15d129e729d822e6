"""What a broker must be told so that a device can publish as itself only: files of mosquitto, definitions of RabbitMQ.

A device logs in by its name: with a password that it was given when it enrolled, or with a certificate of that name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge.channel.topics import ROOT, check_id
from edge.coordinator.records import Credential

ACL, PASSWORDS, CONFIG, AUTHORITY, REVOKED = "acl", "passwords", "edgeloop.conf", "authority.pem", "revoked.pem"
# Beside the files: logins that hold no more, one a line. Whoever writes the passwords takes them out of what is there.
FORMER = "former"


def mosquitto(
    fleet: str, coordinator: str, credentials: Sequence[Credential], authority: tuple[bytes, bytes] | None, folder: str
) -> dict[str, str]:
    """Files of mosquitto 2, by name.

    Args:
        fleet: Its id.
        coordinator: Login of the coordinator; its password is whoever's that keeps it, see the file.
        credentials: Of devices; those that hold no more are left out, and named under `FORMER`.
        authority: Certificate of the authority and its list of revoked ones; None where none was issued.
        folder: Where the files will lie on the broker's machine.
    """
    own = f"{ROOT}/{check_id(fleet, 'fleet')}"
    acl = [
        "# A device: what it says under its own name, what is said to it and to all. %u is the name of its login.",
        f"pattern write {own}/%u/up/#",
        f"pattern read {own}/%u/dn/#",
        f"pattern read {own}/all/dn/#",
        "# It hears whether it was heard.",
        f"pattern read {own}/%u/up/conn",
        "",
        "# The coordinator: all of its fleet.",
        f"user {check_id(coordinator, 'coordinator')}",
        f"topic readwrite {own}/#",
    ]
    passwords = [f"{each.device}:{each.proof['mosquitto']}" for each in _live(credentials, "password")]
    config = [
        "# listener 1883   # or 8883 with certfile and keyfile",
        "allow_anonymous false",
        f"password_file {folder}/{PASSWORDS}",
        f"acl_file {folder}/{ACL}",
    ]
    live = {each.device for each in _live(credentials, "password")}
    former = sorted({each.device for each in credentials if each.kind == "password"} - live)
    files = {ACL: acl, PASSWORDS: passwords, FORMER: former}
    if authority is not None:
        files |= {AUTHORITY: [authority[0].decode().strip()], REVOKED: [authority[1].decode().strip()]}
        config += [
            "# A listener for devices with certificates needs these too, and certfile and keyfile of its own:",
            f"# cafile {folder}/{AUTHORITY}",
            f"# crlfile {folder}/{REVOKED}",
            "# require_certificate true",
            "# use_identity_as_username true",
        ]
    files[CONFIG] = config
    return {name: "\n".join([*lines, ""]) for name, lines in files.items()}


def rabbitmq(fleet: str, coordinator: str, credentials: Sequence[Credential], vhost: str = "/") -> dict[str, Any]:
    """Definitions of RabbitMQ for its MQTT plugin, to be imported: users, what they may use, and their topics.

    Queues of the plugin have the name of the client in theirs. A device's is its login; coordinators of one login are
    told apart by their names, and take from queues of their own, too (`edge.channel.amqp`).
    """
    own = rf"^edge\.v1\.{check_id(fleet, 'fleet')}\."
    live = _live(credentials, "password")
    users = [
        {
            "name": each.device,
            "password_hash": each.proof["rabbitmq"],
            "hashing_algorithm": "rabbit_password_hashing_sha256",
            "tags": [],
        }
        for each in live
    ]
    permissions, topics = [], []
    for name in [*(each.device for each in live), check_id(coordinator, "coordinator")]:
        is_device = name != coordinator
        queue = rf"mqtt-subscription-{name}qos[01]" if is_device else _queues(fleet)
        permissions.append(
            {
                "user": name,
                "vhost": vhost,
                "configure": f"^({queue})$",
                "write": rf"^({queue}|amq\.topic)$",
                "read": rf"^({queue}|amq\.topic)$",
            }
        )
        topics.append(
            {
                "user": name,
                "vhost": vhost,
                "exchange": "amq.topic",
                "write": rf"{own}{name}\.up\." if is_device else own,
                "read": rf"{own}(({name}|all)\.dn\.|{name}\.up\.conn$)" if is_device else own,
            }
        )
    return {"users": users, "permissions": permissions, "topic_permissions": topics}


def _queues(fleet: str) -> str:
    return rf"mqtt-subscription-[a-z0-9-]+qos[01]|edge\.{fleet}\.(shared|led)"


def _live(credentials: Sequence[Credential], kind: str) -> list[Credential]:
    found: Mapping[str, Credential] = {
        each.device: each for each in credentials if each.kind == kind and not each.revoked_ms
    }
    return [found[device] for device in sorted(found)]
