"""Preprocessing: against torch's own formulas, module against graph, and every message."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from converter.export.preprocessing import AFFINE_DTYPES, parse_preprocessing, preprocessing_onnx
from converter.program.programs import onnx_program
from edge.contract.errors import ConfigError
from edge.contract.tensorspec import TensorSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = "mean=0.485|0.456|0.406,std=0.229|0.224|0.225"


def spec_of(*shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name="x", dtype=dtype, shape=("batch", *shape))


def prepared(text: str, spec: TensorSpec, raw: np.ndarray, within: float = 1e-5) -> np.ndarray:
    """What the module gives, after the graph, the trace and the script gave the same."""
    preprocessing = parse_preprocessing(text)
    preprocessing.raw_input(spec).check(raw)
    module = preprocessing.module(spec)
    tensor = torch.from_numpy(raw)
    found = module(tensor).numpy()
    model = preprocessing_onnx(preprocessing, spec)
    assert model.graph.input[0].name == "x"
    assert model.graph.output[0].name == "preprocessing/x"
    made = onnx_program(model, "the preprocessing")({"x": raw})["preprocessing/x"]
    assert made.dtype == found.dtype == np.float32
    np.testing.assert_allclose(made, found, rtol=1e-5, atol=within)
    # Traced on one sample: the batch axis stays free.
    assert torch.equal(torch.jit.trace(module, tensor[:1])(tensor), torch.from_numpy(found))
    assert torch.equal(torch.jit.script(module)(tensor), torch.from_numpy(found))
    spec.check(found)
    return found


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def normalized(raw: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    x = torch.from_numpy(raw).permute(0, 3, 1, 2).float() / 255
    x = x if size is None else functional.interpolate(x, size, mode="bilinear", align_corners=False)
    return ((x - torch.tensor(MEAN).reshape(3, 1, 1)) / torch.tensor(STD).reshape(3, 1, 1)).numpy()


def test_image_in_the_models_size() -> None:
    spec = spec_of(3, 8, 6)
    raw = pixels(2, 8, 6, 3)
    np.testing.assert_allclose(prepared(f"image:{IMAGENET}", spec, raw), normalized(raw), atol=2e-6)
    assert parse_preprocessing(f"image:{IMAGENET}").raw_input(spec) == spec_of(8, 6, 3, dtype="uint8")


def test_plain_image_is_0_to_1_by_few_nodes() -> None:
    raw = pixels(2, 4, 4, 1)
    np.testing.assert_allclose(prepared("image", spec_of(1, 4, 4), raw), raw.transpose(0, 3, 1, 2) / 255, atol=1e-7)
    plain = preprocessing_onnx(parse_preprocessing("image"), spec_of(1, 4, 4))
    assert [node.op_type for node in plain.graph.node] == ["Transpose", "Cast", "Mul"]
    full = preprocessing_onnx(parse_preprocessing(f"image:size=9x9,{IMAGENET}"), spec_of(3, 4, 4))
    assert [node.op_type for node in full.graph.node] == [
        *("Transpose", "Cast", "Shape", "Concat", "Resize", "Mul", "Add")
    ]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (5, 31), (4, 4), (8, 6)])
def test_image_is_resized_as_torch_does(height: int, width: int) -> None:
    raw = pixels(3, height, width, 3)
    found = prepared(f"image:{IMAGENET},size={height}x{width}", spec_of(3, 8, 6), raw)
    np.testing.assert_allclose(found, normalized(raw, (8, 6)), atol=5e-6)


def test_image_of_any_size() -> None:
    spec = spec_of(3, 8, 6)
    text = f"image:{IMAGENET},size=any"
    assert parse_preprocessing(text).raw_input(spec).shape == ("batch", "height", "width", 3)
    for height, width in [(8, 6), (13, 7), (1, 1)]:
        raw = pixels(2, height, width, 3)
        np.testing.assert_allclose(prepared(text, spec, raw), normalized(raw, (8, 6)), atol=5e-6)


def test_camera_image_differs_from_the_module_by_less_than_the_stated_part_of_a_grey_level() -> None:
    prepared("image:scale=1,size=480x640", spec_of(3, 224, 224), pixels(1, 480, 640, 3), within=0.05)


def test_bgr_is_turned_around() -> None:
    raw = pixels(2, 4, 4, 3)
    found = prepared(f"image:{IMAGENET},order=bgr", spec_of(3, 4, 4), raw)
    np.testing.assert_allclose(found, normalized(raw[..., ::-1].copy()), atol=2e-6)


def test_image_for_a_model_of_free_size() -> None:
    spec = spec_of(3, "h", "w")
    assert parse_preprocessing("image").raw_input(spec).shape == ("batch", "h", "w", 3)
    assert parse_preprocessing("image:size=any").raw_input(spec).shape == ("batch", "height", "width", 3)
    assert parse_preprocessing("image:size=5x7").raw_input(spec).shape == ("batch", 5, 7, 3)
    raw = pixels(2, 5, 7, 3)
    np.testing.assert_allclose(prepared(f"image:{IMAGENET},size=5x7", spec, raw), normalized(raw), atol=2e-6)


def test_image_of_free_channels() -> None:
    raw = parse_preprocessing(f"image:channels=3,{IMAGENET}").raw_input(spec_of("c", 4, 4))
    assert raw.shape == ("batch", 4, 4, 3)


@pytest.mark.parametrize("shape", [(100,), (1, 100), (2, "samples")])
def test_audio(shape: tuple[int | str, ...]) -> None:
    size = [2, *(100 if axis == "samples" else axis for axis in shape)]
    raw = np.random.default_rng(0).integers(-32768, 32768, size, np.int16)
    spec = spec_of(*shape)
    np.testing.assert_allclose(prepared("audio", spec, raw), raw / 32768, atol=1e-7)
    found = prepared("audio:scale=1000,mean=0.5,std=2", spec, raw)
    np.testing.assert_allclose(found, (raw / 1000 - 0.5) / 2, atol=1e-5)


def test_audio_by_channel() -> None:
    raw = np.random.default_rng(0).integers(-32768, 32768, (2, 2, 50), np.int16)
    found = prepared("audio:mean=0.1|0.2,std=1|2", spec_of(2, 50), raw)
    mean, std = np.array([0.1, 0.2]).reshape(2, 1), np.array([1, 2]).reshape(2, 1)
    np.testing.assert_allclose(found, (raw / 32768 - mean) / std, atol=1e-6)


@pytest.mark.parametrize("dtype", AFFINE_DTYPES)
def test_affine_of_every_type(dtype: str) -> None:
    raw = (np.random.default_rng(0).random((3, 4)) * 100).astype(dtype)
    spec = spec_of(4)
    found = prepared(f"affine:scale=10,mean=1|2|3|4,std=0.5,dtype={dtype}", spec, raw)
    np.testing.assert_allclose(found, (raw.astype(float) / 10 - [1, 2, 3, 4]) / 0.5, atol=1e-5)
    assert parse_preprocessing(f"affine:dtype={dtype}").raw_input(spec) == spec_of(4, dtype=dtype)


def test_affine_along_an_axis() -> None:
    raw = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    by_channel = prepared("affine:mean=1|2|3|4|5", spec_of(5, 3), raw)
    np.testing.assert_allclose(by_channel, raw - np.arange(1, 6).reshape(5, 1), atol=1e-6)
    by_feature = prepared("affine:axis=2,mean=1|2|3,std=2", spec_of("time", 3), raw)
    np.testing.assert_allclose(by_feature, (raw - [1, 2, 3]) / 2, atol=1e-6)


def test_fixed_batch_is_kept() -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 1, 4, 4))
    assert parse_preprocessing("image").raw_input(spec).shape == (1, 4, 4, 1)


@pytest.mark.parametrize("text", ["image:size=4x5,order=bgr", "image:size=any,channels=3", "image", "audio", "affine"])
def test_description_is_json_with_units(text: str) -> None:
    described = parse_preprocessing(text).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["kind"] == text.partition(":")[0]
    assert described["units"].keys() == {"x", "scale", "mean", "std"}


def test_description_says_what_is_done() -> None:
    described = parse_preprocessing(f"image:{IMAGENET},size=480x640,order=bgr").describe()
    assert (described["scale"], described["mean"], described["std"]) == (255.0, list(MEAN), list(STD))
    assert (described["size"], described["order"]) == ("480x640", "bgr")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagge", "expected image, audio, affine; did you mean 'image'"),
        ("", "'' is not known, expected image, audio, affine"),
        ("image:meann=1", "'meann' is not known, expected scale, mean.*did you mean 'mean'"),
        ("audio:size=4x4", "'size' is not known, expected scale, mean, std"),
        ("image:mean", "expected mean=VALUE once"),
        ("image:mean=1,mean=2", "expected mean=VALUE once"),
        ("image:mean=1,", "'' is not known"),
        ("image:mean=a", r"mean=a: expected numbers separated by \|"),
        ("image:mean=", r"expected numbers separated by \|"),
        ("image:mean=nan", "finite numbers"),
        ("image:mean=1|inf", "finite numbers"),
        ("image:std=0", "numbers greater than 0"),
        ("image:std=1|-1", "numbers greater than 0"),
        ("image:scale=0", "greater than 0"),
        ("image:scale=1|2", "one number"),
        ("image:size=224", "HEIGHTxWIDTH in pixels, each from 1 to 16384"),
        ("image:size=0x4", "HEIGHTxWIDTH"),
        ("image:size=99999x4", "HEIGHTxWIDTH"),
        ("image:channels=0", "whole number from 1 to 4096"),
        ("image:channels=x", "whole number"),
        ("image:resize=bilinaer", "one of bilinear, none; did you mean 'bilinear'"),
        ("image:order=gbr", "one of rgb, bgr"),
        ("affine:dtype=int46", "one of float32, .*did you mean 'int16'"),
        ("affine:axis=0", "whole number from 1 to 15"),
    ],
)
def test_wrong_text(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_preprocessing(text)


@pytest.mark.parametrize(
    ("text", "spec", "message"),
    [
        ("image", spec_of(10), "takes \\(batch, channels, height, width\\), got x \\(batch, 10\\)"),
        ("image", TensorSpec(name="x", dtype="float32", shape=(3, "batch", 4, 4)), "takes \\(batch, channels"),
        ("image", spec_of(3, 4, 4, dtype="uint8"), "takes x as uint8"),
        ("affine", spec_of(4, dtype="int64"), "takes x as int64"),
        ("audio", spec_of(4, dtype="float16"), "takes x as float16"),
        ("audio", spec_of(1, 2, 3), "\\(batch, samples\\) or"),
        ("image:mean=1|2", spec_of(3, 4, 4), "mean has 2 values, but axis 1 of the model's input .* has 3"),
        ("image:std=1|2", spec_of(1, 4, 4), "std has 2 values"),
        ("audio:mean=1|2", spec_of("samples"), "axis 1 of .* has samples"),
        ("affine:axis=2,mean=1|2", spec_of(2), "axis 2 of .* has nothing"),
        ("affine:scale=1e-60", spec_of(2), "too large or too small"),
        ("affine:scale=1e60", spec_of(2), "too large or too small"),
        ("affine:mean=1e60", spec_of(2), "too large or too small"),
        ("affine:scale=1e-300,std=1e-300", spec_of(2), "too large or too small"),
        ("image", spec_of("c", 4, 4), "add channels=3"),
        ("image:channels=1", spec_of(3, 4, 4), "channels=1, but .* has 3"),
        ("image:order=bgr", spec_of(1, 4, 4), "needs 3 channels"),
        ("image:size=5x5,resize=none", spec_of(1, 4, 4), "size=5x5, but .* and resize=none"),
        ("image:size=any,resize=none", spec_of(1, 4, 4), "size=any, but .* and resize=none"),
        ("image:size=5x5", spec_of(1, 4, "w"), "nothing can be resized"),
    ],
)
def test_model_that_does_not_fit(text: str, spec: TensorSpec, message: str) -> None:
    preprocessing = parse_preprocessing(text)
    with pytest.raises(ConfigError, match=message):
        preprocessing.raw_input(spec)
    with pytest.raises(ConfigError, match=message):
        preprocessing.module(spec)
    with pytest.raises(ConfigError, match=message):
        preprocessing_onnx(preprocessing, spec)
