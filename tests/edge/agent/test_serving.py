"""Any bundle: named arrays in, named arrays out; what does not fit is refused, and says what would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.agent.model.serving import ModelError, Serving
from edge.contract.bundle import Bundle
from edge.contract.errors import LearningError
from edge.inference.onnx_session import OnnxSession
from edge.inference.streams import Stream

RNG = np.random.default_rng(0)


def masked(n: int | None = None) -> dict[str, Any]:
    """Samples of the bundles with an image and a mask; one without its batch axis when None."""
    several = () if n is None else (n,)
    return {"image": RNG.random((*several, 1, 3, 4), np.float32), "mask": RNG.integers(0, 2, (*several, 3, 4))}


def test_inputs_go_in_by_name_in_any_order_and_number_type(masked_bundles: tuple[Path, Path]) -> None:
    bundle = Bundle.open(masked_bundles[1])
    serving, given = Serving(bundle), masked(5)
    expected = OnnxSession(bundle).run(given)
    for same in (
        given,
        {"mask": given["mask"].astype(np.uint8), "image": given["image"].astype(np.float64)},
        {"mask": (given["mask"] > 0), "image": given["image"].tolist()},
        {"mask": given["mask"].astype(np.float32), "image": given["image"]},
    ):
        found = serving.run(serving.many(same))
        assert list(found) == list(expected)
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-6)
    one = {name: array[0] for name, array in given.items()}
    for alone in (one, {name: array[None] for name, array in one.items()}, {**one, "mask": one["mask"][None]}):
        outputs, _ = serving.step(serving.one(alone), {})
        for name, array in serving.alone(outputs).items():
            np.testing.assert_allclose(array, expected[name][0], rtol=1e-5)


def test_what_does_not_fit_is_refused_and_told_what_would(masked_bundles: tuple[Path, Path]) -> None:
    serving = Serving(Bundle.open(masked_bundles[1]))
    good = masked()
    image, mask = good["image"], good["mask"]
    for given, words in (
        (image, "by name: image (batch, 1, 3, 4) float32, mask (batch, 3, 4) int64; got one array"),
        ({}, "image is missing"),
        ({"image": image}, "mask is missing"),
        ({**good, "msk": mask}, "'msk' is none of them"),
        ({**good, "image": image[0, 0]}, "image: expected shape (1, 3, 4), got (4,)"),
        ({**good, "image": image[0]}, "got (3, 4); x[None] has the axis that is missing"),
        ({**good, "image": masked(2)["image"]}, "image: expected one sample, got 2"),
        ({**good, "image": image * np.nan}, "image: the sample has values that are not finite"),
        ({**good, "image": image + np.inf}, "image: the sample has values that are not finite"),
        ({**good, "image": image.astype(np.float64) + 1e39}, "do not fit float32"),
        ({**good, "image": image.astype(np.complex64)}, "image: expected numbers of type float32, got complex64"),
        ({**good, "image": image.astype(str)}, "image: expected numbers"),
        ({**good, "image": [[[1, 2], [3]]]}, "image: expected numbers in a regular shape"),
        ({**good, "image": None}, "image: expected numbers"),
        ({**good, "mask": mask + 0.5}, "mask: expected whole numbers, int64"),
        ({**good, "mask": np.full((3, 4), 2**64 - 1, np.uint64)}, "mask: the sample has values"),
    ):
        with pytest.raises(LearningError) as told:
            serving.one(given)
        assert words in str(told.value)
    many = masked(3)
    for given, words in (
        (good, "image: expected shape (batch, 1, 3, 4), got (1, 3, 4); x[None] has the axis that is missing"),
        ({**many, "image": image[0]}, "got (3, 4); x[None, None] has the axis that is missing"),
        ({**many, "image": many["image"][:, 0]}, "got (3, 3, 4); x[:, None] has the axis that is missing"),
        ({**many, "mask": many["mask"][:2]}, "as many samples of each input, got image 3, mask 2"),
        ({name: array[:0] for name, array in many.items()}, "expected shape (batch, 1, 3, 4), got (0, 1, 3, 4)"),
    ):
        with pytest.raises(LearningError) as told:
            serving.run(serving.many(given))
        assert words in str(told.value)


def test_constants_and_states_need_not_be_given(voice_bundle: Path) -> None:
    serving = Serving(Bundle.open(voice_bundle))
    audio = RNG.random(128, np.float32)
    assert list(serving.inputs) == ["audio"]
    expected = serving.one(audio)["audio"]
    assert (serving.one({"audio": audio, "sr": 8000})["audio"] == expected).all(), "it says what is so anyway"
    with pytest.raises(LearningError, match="sr is a constant of this bundle, 8000; leave it out"):
        serving.one({"audio": audio, "sr": 16000})
    with pytest.raises(LearningError, match="state is what the model remembers; it is kept here, leave it out"):
        serving.one({"audio": audio, "state": np.zeros((1, 1, 16), np.float32)})


def test_samples_of_a_model_that_remembers_are_a_stream_of_their_own(voice_bundle: Path) -> None:
    bundle = Bundle.open(voice_bundle)
    serving, audio = Serving(bundle), RNG.random((6, 128), np.float32)
    stream = Stream(OnnxSession(bundle).run, bundle.manifest.inputs, bundle.manifest.states)
    expected = [stream.step({"audio": frame[None]})["speech"][0] for frame in audio]
    for _ in range(2):
        found = serving.run(serving.many(audio))
        assert list(found) == ["speech"]
        np.testing.assert_allclose(found["speech"], expected, rtol=1e-5)


def test_free_axes_take_the_sizes_that_the_model_takes(detector_bundle: Path) -> None:
    serving = Serving(Bundle.open(detector_bundle))
    for shape, cells in (((3, 32, 32), 16), ((3, 16, 48), 12)):
        outputs, _ = serving.step(serving.one(RNG.random(shape, np.float32)), {})
        found = serving.alone(outputs)
        assert (found["boxes"].shape, found["scores"].shape) == ((cells, 4), (cells, 3))
    with pytest.raises(LearningError, match=r"images: expected shape \(3, height, width\), got \(32, 32\)$"):
        serving.one(np.zeros((32, 32)))


def test_a_model_that_fails_or_answers_nothing_finite_is_a_model_error(fragile_bundle: Path) -> None:
    serving = Serving(Bundle.open(fragile_bundle))
    x = np.full(4, 0.5, np.float32)
    outputs, _ = serving.step(serving.one({"x": x, "word": 7}), {})
    serving.check_finite(outputs, {})
    with pytest.raises(ModelError, match="the model failed on this sample"):
        serving.step(serving.one({"x": x, "word": 8}), {})
    outputs, _ = serving.step(serving.one({"x": -x, "word": 7}), {})
    with pytest.raises(ModelError, match="is not finite"):
        serving.check_finite(outputs, {})
