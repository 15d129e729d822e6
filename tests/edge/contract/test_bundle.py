"""A bundle on disk: every digest in it is checked before anything is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from edge.contract import manifest as m
from edge.contract.archive import write_archive
from edge.contract.bundle import Bundle, blob_name, check_parameters, members_of, read_tensors, write_bundle
from edge.contract.errors import BundleError
from edge.contract.manifest import HeadSpec, LinearLayer, Manifest, Member, ParameterSpec
from edge.contract.recipe import TrainingRecipe
from edge.contract.tensorspec import TensorSpec


def head(weight: float = 1.0) -> dict[str, np.ndarray]:
    return {"w": np.full((2, 3), weight, np.float32), "b": np.zeros(2, np.float32)}


def blobs(parameters: Mapping[str, np.ndarray] | None = None) -> dict[str, bytes]:
    """Members of a bundle; only the head is read here."""
    texts = {role: role.encode() for role in (*m.REQUIRED_MEMBERS, *m.HEAD_MEMBERS)}
    return texts | {m.HEAD_PARAMETERS: safetensors.numpy.save(dict(parameters or head()))}


def manifest_of(members: Mapping[str, bytes]) -> Manifest:
    return Manifest(
        name="tiny",
        inputs=(TensorSpec(name="input", dtype="float32", shape=("batch", 4)),),
        outputs=(TensorSpec(name="output", dtype="float32", shape=("batch", 2)),),
        class_names=("no", "yes"),
        preprocessing={},
        quantization={"scheme": "none"},
        head=HeadSpec(
            features=TensorSpec(name="features", dtype="float32", shape=("batch", 3)),
            output="output",
            parameters=(ParameterSpec(name="w", shape=(2, 3)), ParameterSpec(name="b", shape=(2,))),
            linear=LinearLayer(weight="w", bias="b", input="features"),
            learning_rate=0.1,
            trainable="last:1",
            training=TrainingRecipe(),
        ),
        golden_min_sqnr_db=60.0,
        source_digest="0" * 64,
        created_by="test",
        members=members_of(members),
    )


def forge(path: Path, manifest: Manifest, members: Mapping[str, bytes]) -> Path:
    """A well-formed archive that holds what it is told."""
    with path.open("wb") as file:
        write_archive(file, {"manifest.json": manifest.encode(), **members})
    return path


def test_gives_back_what_was_written(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a.edge", manifest_of(blobs()), blobs())
    bundle = Bundle.open(tmp_path / "a.edge")
    assert bundle.manifest == manifest_of(blobs())
    assert {role: bundle.read(role) for role in blobs()} == blobs()
    assert bundle.has(m.MODEL)
    assert not bundle.has(m.STATISTICS)
    found = bundle.head_parameters()
    assert {name: array.tolist() for name, array in found.items()} == {n: a.tolist() for n, a in head().items()}


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a.edge", manifest_of(blobs()), blobs())
    backwards = dict(reversed(blobs().items()))
    write_bundle(tmp_path / "b.edge", manifest_of(backwards), backwards)
    assert (tmp_path / "a.edge").read_bytes() == (tmp_path / "b.edge").read_bytes()


def test_a_real_bundle_opens_and_can_be_written_again_byte_for_byte(tmp_path: Path, digits_bundle: Path) -> None:
    bundle = Bundle.open(digits_bundle)
    write_bundle(
        tmp_path / "again.edge", bundle.manifest, {role: bundle.read(role) for role in bundle.manifest.members}
    )
    assert (tmp_path / "again.edge").read_bytes() == digits_bundle.read_bytes()


def test_two_members_with_the_same_data_are_stored_once(tmp_path: Path) -> None:
    members = blobs() | {m.GOLDEN: b"same", m.REPORT: b"same"}
    write_bundle(tmp_path / "a.edge", manifest_of(members), members)
    assert Bundle.open(tmp_path / "a.edge").read(m.REPORT) == b"same"
    assert (tmp_path / "a.edge").read_bytes().count(b"same") == 1


def test_refuses_to_write_a_manifest_that_describes_other_members(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        write_bundle(tmp_path / "a.edge", manifest_of(blobs()), blobs() | {m.REPORT: b"other"})
    assert list(tmp_path.iterdir()) == []


def test_refuses_swapped_members(tmp_path: Path) -> None:
    manifest = manifest_of(blobs())
    stored = {blob_name(manifest.members[role].digest): data for role, data in blobs().items()}
    one, other = blob_name(manifest.members[m.MODEL].digest), blob_name(manifest.members[m.HEAD_INFER].digest)
    Bundle.open(forge(tmp_path / "a.edge", manifest, stored))
    swapped = stored | {one: stored[other], other: stored[one]}
    with pytest.raises(BundleError, match=r"digest|size"):
        Bundle.open(forge(tmp_path / "a.edge", manifest, swapped))


def test_refuses_a_member_of_another_size_than_stated(tmp_path: Path) -> None:
    manifest = manifest_of(blobs())
    stored = {blob_name(manifest.members[role].digest): data for role, data in blobs().items()}
    stated = manifest.members[m.REPORT]
    wrong = dict(manifest.members) | {m.REPORT: Member(digest=stated.digest, size_bytes=stated.size_bytes + 1)}
    with pytest.raises(BundleError, match="size"):
        Bundle.open(forge(tmp_path / "a.edge", replace(manifest, members=wrong), stored))


def test_refuses_a_missing_and_an_additional_member(tmp_path: Path) -> None:
    manifest = manifest_of(blobs())
    stored = {blob_name(manifest.members[role].digest): data for role, data in blobs().items()}
    for role in m.REQUIRED_MEMBERS:
        without = {name: data for name, data in stored.items() if name != blob_name(manifest.members[role].digest)}
        with pytest.raises(BundleError, match="do not match"):
            Bundle.open(forge(tmp_path / "a.edge", manifest, without))
    with pytest.raises(BundleError, match="do not match"):
        Bundle.open(forge(tmp_path / "a.edge", manifest, stored | {"hidden": b"code"}))


def test_refuses_a_damaged_bundle_wherever_it_is_damaged(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a.edge", manifest_of(blobs()), blobs())
    whole = (tmp_path / "a.edge").read_bytes()
    for position in range(0, len(whole), 7):
        data = bytearray(whole)
        data[position] ^= 0x10
        (tmp_path / "b.edge").write_bytes(data)
        with pytest.raises(BundleError):
            Bundle.open(tmp_path / "b.edge")
        (tmp_path / "b.edge").write_bytes(whole[:position])
        with pytest.raises(BundleError):
            Bundle.open(tmp_path / "b.edge")


def test_refuses_a_member_that_changed_since_it_was_opened(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a.edge", manifest_of(blobs()), blobs())
    bundle = Bundle.open(tmp_path / "a.edge")
    other = blobs(head(2.0))
    write_bundle(tmp_path / "a.edge", manifest_of(other), other)
    with pytest.raises(BundleError):
        bundle.read(m.HEAD_PARAMETERS)
    with pytest.raises(BundleError, match="has no nothing"):
        bundle.read("nothing")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_a_head_that_is_not_finite(tmp_path: Path, value: float) -> None:
    members = blobs(head(value))
    write_bundle(tmp_path / "a.edge", manifest_of(members), members)
    with pytest.raises(BundleError, match="not finite"):
        Bundle.open(tmp_path / "a.edge").head_parameters()


@pytest.mark.parametrize(
    "parameters",
    [
        {"w": np.zeros((2, 3), np.float32)},
        {"w": np.zeros((3, 2), np.float32), "b": np.zeros(2, np.float32)},
        {"w": np.zeros((2, 3), np.float64), "b": np.zeros(2, np.float32)},
        {"w": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32), "c": np.zeros(1, np.float32)},
    ],
    ids=["one is missing", "another shape", "another type", "one too many"],
)
def test_refuses_parameters_that_are_not_those_of_the_head(parameters: dict[str, np.ndarray]) -> None:
    check_parameters(head(), manifest_of(blobs()), "it")
    with pytest.raises(BundleError, match="it: "):
        check_parameters(parameters, manifest_of(blobs()), "it")


@pytest.mark.parametrize("data", [b"", b"\x80\x04.", bytes(8), b"\xff" * 100, b"PK\3\4" + bytes(100)])
def test_refuses_what_is_not_a_tensor_document(data: bytes) -> None:
    with pytest.raises(BundleError, match="not a safetensors document"):
        read_tensors(data, "it")
