"""Shorter forms give back the artifact, or a clear error; never anything else, and never more memory than was said."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from edge.channel import forms
from edge.channel.forms import CODECS, restore, shorten
from edge.contract.errors import ChannelError

RNG = np.random.default_rng(0)
HEAD = RNG.normal(size=5000).astype(np.float32)
TRAINED = (HEAD + 1e-3 * RNG.normal(size=5000)).astype(np.float32)


@given(st.binary(min_size=1, max_size=4000), st.one_of(st.none(), st.binary(min_size=1, max_size=4000)))
def test_a_form_gives_back_the_artifact(target: bytes, base: bytes | None) -> None:
    made = shorten(target * 3, base)
    if made is not None:
        codec, form = made
        assert codec in CODECS
        assert len(form) <= 0.95 * len(target * 3)
        assert restore(codec, form, len(target * 3), base) == target * 3


def test_each_way_is_taken_where_it_is_shortest() -> None:
    text = b"layer.weight layer.bias " * 200
    moved = RNG.bytes(20_000)
    for codec, target, base, most in (
        ("zstd", text, None, 100),
        ("zstd-patch", b"new header" + moved + b"new tail", moved, 200),
        ("zstd-xor", TRAINED.tobytes(), HEAD.tobytes(), 0.75 * HEAD.nbytes),
    ):
        made = shorten(target, base)
        assert made is not None
        assert made[0] == codec
        assert len(made[1]) < most
        assert restore(*made, len(target), base) == target
    assert shorten(RNG.bytes(5000)) is None, "what does not become shorter is sent as it is"


def test_what_is_not_whole_or_not_of_this_base_is_refused_or_found_by_the_digest() -> None:
    target, base = TRAINED.tobytes()[:2000] + b"x" * 500, HEAD.tobytes()[:2000] + b"y" * 500
    for made, before in ((shorten(target, base), base), (shorten(target), None)):
        assert made is not None
        codec, form = made
        for end in range(len(form)):
            with pytest.raises(ChannelError):
                restore(codec, form[:end], len(target), before)
        for size in (0, 1, len(target) - 1, len(target) + 1):
            with pytest.raises(ChannelError):
                restore(codec, form, size, before)
        with pytest.raises(ChannelError):
            restore(codec, form + b"\0", len(target), before)
        with pytest.raises(ChannelError):
            restore(codec, form, len(target), None if before else base)
        with pytest.raises(ChannelError):
            restore("brotli", form, len(target), before)


@given(st.sampled_from(sorted(CODECS)), st.binary(max_size=300), st.integers(0, 10_000), st.binary(max_size=64))
def test_any_bytes_end_with_bytes_of_that_size_or_an_error(codec: str, form: bytes, size: int, base: bytes) -> None:
    with contextlib.suppress(ChannelError):
        assert len(restore(codec, form, size, base if codec != "zstd" else None)) == size


def test_a_form_that_grows_beyond_what_was_announced_uses_no_memory_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zstd.compress(bytes(1 << 28))
    with pytest.raises(ChannelError):
        restore("zstd", bomb, 1000)
    monkeypatch.setattr(forms, "MAX_BYTES", 5000)
    assert shorten(bytes(5001)) is None
    with pytest.raises(ChannelError, match="fetch it whole"):
        restore("zstd", zstd.compress(bytes(5001)), 5001)
