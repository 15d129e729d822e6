"""Names of models: what they may be, and how one is written as a level of a topic or of a path; of state folders."""

from __future__ import annotations

import os
import re

from edge.contract.digest import sha256

MAX_NAME_CHARS = 100
_ID_CHARS = 16  # of the name that a state folder is given at its first start
_AS_IT_IS = re.compile(r"[a-z0-9-]{1,48}")
# What the salts of devices' passwords begin with, in base64, so that in a broker's file their lines are told from those
# of people; 72 bits are left.
DEVICE_SALT = "edge"


def is_model_name(text: str) -> bool:
    r"""Whether a model may have this name: 1 to 100 characters that can be shown.

    >>> is_model_name("voice detector"), is_model_name(""), is_model_name("a\nb")
    (True, False, False)
    """
    return 0 < len(text) <= MAX_NAME_CHARS and text.isprintable()


def level_of(name: str) -> str:
    """A name as 1 to 64 of a-z, 0-9, dash and underscore: the same for no other name, whatever is in it.

    An underscore is in it only where the name was not of that form already.

    >>> level_of("meter-digits")
    'meter-digits'
    >>> level_of("../Meter digits")
    'meter-digits_a9e51c55e0a6'
    """
    if _AS_IT_IS.fullmatch(name):
        return name
    shown = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:48]
    return f"{shown}_{sha256(name.encode(errors='surrogatepass'))[:12]}"


def passing_name(own: str) -> str:
    """Name of a state folder for one start that it could not count: its own, and digits that no other start has.

    Args:
        own: The folder's; "" where it has none yet.
    """
    return own[:_ID_CHARS] + os.urandom(8).hex()


def is_passing(state_id: str, own: str) -> bool:
    """Whether a state folder has had this name for one start.

    Args:
        state_id: The name.
        own: That of the folder.

    >>> is_passing(passing_name("0123456789abcdef"), "0123456789abcdef")
    True
    >>> is_passing("0123456789abcdef", "0123456789abcdef"), is_passing(passing_name("f" * 16), "0123456789abcdef")
    (False, False)
    """
    is_of_it = len(own) >= _ID_CHARS and state_id.startswith(own[:_ID_CHARS])
    return is_of_it and len(state_id) > _ID_CHARS and state_id != own
