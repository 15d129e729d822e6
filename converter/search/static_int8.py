"""Static int8 of one problem: which ranges, equalized or not, and which layers hurt.

Ranges are chosen on a few samples by squared error; what comes of it is compared on all of
them by `converter.search.search`.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import onnx

from converter.program.programs import onnx_program, outputs
from converter.program.tensors import Arrays, batch_size, in_batches, select
from converter.quantization.align import align_channels
from converter.quantization.equalize import equalize
from converter.quantization.observe import Observations, observe
from converter.quantization.sensitivity import layer_sensitivity
from converter.quantization.static import quantize_static
from converter.quantization.stock import is_another, quantize_stock
from converter.search.candidates import Apart, Problem, in_this_process
from edge.contract.errors import ConversionError
from edge.contract.profile import QuantizationProfile
from edge.inference.session import sqnr_db

# Tried when none is asked for. They are judged by squared error, which entropy does not mean to keep small.
_METHODS = ("minmax", "percentile", "mse")
_FEW = 16
# Below this, equalization is tried; an int8 net that is well conditioned has 30 dB and more.
_GOOD_SQNR_DB = 30.0
# Smallest and largest value is the simplest choice: another one must be better by this much.
_CLEARLY_DB = 0.5
_SENSITIVITY_SAMPLES = 4
_SKETCH_SAMPLES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A form of static int8.

    Attributes:
        is_stock: onnxruntime's, see `converter.quantization.stock`.
        per_channel: Weights have a scale for each channel, where the profile has them so; else one for all.
    """

    is_stock: bool = False
    per_channel: bool = True

    @property
    def name(self) -> str:
        """For the report, behind that of the ranges."""
        return (", onnxruntime's recipe" if self.is_stock else "") + ("" if self.per_channel else ", per tensor")


OURS = Recipe()


class StaticInt8:
    """The float backbone, what was seen in it, and the best way found to choose ranges.

    Args:
        problem: With calibration data.
        profile: Types, per-channel weights, and whether weights keep to 7 bits.
        method: How ranges are chosen; None to find the best.
        apart: Runs what is quantized.

    Attributes:
        backbone: Float, perhaps equalized, its channels aligned.
        method: How ranges are chosen.
        equalized: Whether the backbone is.
        note: What was tried.
    """

    def __init__(self, problem: Problem, profile: QuantizationProfile, method: str | None, apart: Apart) -> None:
        self._problem = problem
        self._apart = apart
        self._profile = profile
        plain = align_channels(problem.backbone)
        n = batch_size(problem.evaluation.samples.x, problem.inputs)
        self._few = select(problem.evaluation.samples.x, problem.inputs, slice(0, n, max(1, n // _FEW)))
        self._wanted = self._outputs(plain, "the backbone", in_this_process)
        seen = self._observe(plain)
        tried = [(self._sqnr_db(plain, seen, name), name, False) for name in ([method] if method else _METHODS)]
        best = max(tried)
        level = plain
        if best[0] < _GOOD_SQNR_DB and (level := equalize(plain)) != plain:
            seen_level = self._observe(level)
            tried.append((self._sqnr_db(level, seen_level, best[1]), best[1], True))
        best = max(tried, key=lambda item: item[0] + (_CLEARLY_DB if item[1:] == ("minmax", False) else 0.0))
        _, self.method, self.equalized = best
        self.backbone, self._seen = (level, seen_level) if self.equalized else (plain, seen)
        self.note = "ranges: " + ", ".join(f"{m}{' equalized' if e else ''} {db:.1f} dB" for db, m, e in tried)

    @property
    def name(self) -> str:
        """For the report."""
        return f"int8 static, {self.method}{', equalized' if self.equalized else ''}"

    def recipes(self, exclude: Collection[str]) -> list[Recipe]:
        """Others than ours that may be faster.

        onnxruntime's only where it takes other operators than ours, and nothing has to stay in float: with its recipe
        its own optimizer quantizes those layers all the same.

        Args:
            exclude: Names of layers to leave in float.
        """
        scales = (True, False) if self._profile.per_channel else (False,)
        stock = (False, True) if is_another(self.backbone, self._profile) and not exclude else (False,)
        found = [Recipe(is_stock=s, per_channel=p) for s in stock for p in scales]
        return [recipe for recipe in found if recipe.is_stock or recipe.per_channel != self._profile.per_channel]

    def quantized(self, recipe: Recipe, exclude: Collection[str] = ()) -> onnx.ModelProto:
        """The backbone in int8.

        Args:
            recipe: How.
            exclude: Names of layers to leave in float, see `recipes`.

        Raises:
            ConversionError: The recipe is onnxruntime's, which cannot do it.
        """
        profile = replace(self._profile, per_channel=self._profile.per_channel and recipe.per_channel)
        if not recipe.is_stock:
            return quantize_static(self.backbone, self._seen, profile, method=self.method, exclude=exclude)
        return quantize_stock(self.backbone, self._calibration(), profile)

    def stock_sketch(self) -> onnx.ModelProto:
        """The backbone by onnxruntime's recipe with ranges of a few samples: as fast as with those of all.

        Raises:
            ConversionError: The recipe cannot do it.
        """
        return quantize_stock(self.backbone, itertools.islice(self._calibration(), _SKETCH_SAMPLES), self._profile)

    @cached_property
    def sensitivity(self) -> tuple[tuple[str, float], ...]:
        """By layer, the SQNR in dB when only that layer is int8; worst first."""
        inputs = self._problem.inputs
        few = select(self._problem.evaluation.samples.x, inputs, slice(0, _SENSITIVITY_SAMPLES))
        reference = onnx_program(self.backbone, "the backbone")(few)

        def run(quantized: onnx.ModelProto, what: str) -> Arrays | None:
            try:
                with self._apart(quantized, what, {}) as program:
                    return program(few)
            except ConversionError:
                return None

        return layer_sensitivity(self.backbone, self._seen, self._profile, self.method, reference, run)

    def _calibration(self) -> Iterator[Arrays]:
        assert self._problem.calibration is not None
        return in_batches(self._problem.calibration.x, self._problem.inputs, 1)

    def _observe(self, backbone: onnx.ModelProto) -> Observations:
        return observe(backbone, self._calibration())

    def _sqnr_db(self, backbone: onnx.ModelProto, seen: Observations, method: str) -> float:
        """On a few samples, the smallest over all float outputs."""
        quantized = quantize_static(backbone, seen, self._profile, method=method)
        found = self._outputs(quantized, f"the model quantized by {method}", self._apart)
        ratios = [sqnr_db(array, found[name]) for name, array in self._wanted.items() if array.dtype.kind == "f"]
        return min(ratios, default=200.0)

    def _outputs(self, backbone: onnx.ModelProto, what: str, apart: Apart) -> Arrays:
        with apart(backbone, what, {}) as program:
            return outputs(program, self._few, self._problem.inputs, self._problem.outputs)
