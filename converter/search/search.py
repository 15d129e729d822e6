"""Searching: build the candidates for the target, measure each, ship the fastest that keeps the accuracy.

Static int8 needs real samples to take ranges from. Without them only what needs none is tried (weights alone, or
activations quantized as they come, never for convolutions, which that ruins), and the report says what data would gain.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx

from converter.graph.build import other_floats
from converter.head.split import joined
from converter.plan import ConversionPlan
from converter.program.one_run import one_feed
from converter.program.programs import onnx_program
from converter.program.scratch import scratch_folder
from converter.program.tensors import Arrays
from converter.quantization.dynamic import quantize_dynamic
from converter.quantization.float16 import to_float16
from converter.quantization.int4 import quantize_int4
from converter.quantization.layers import has_convolutions, has_recurrent, quantizable_layers, running_in_int8
from converter.quantization.saturation import layers_with_least_weight, multiplies_int8
from converter.search.candidates import (
    TIE,
    Bench,
    Candidate,
    Problem,
    build,
    compared,
    corrected_head,
    in_this_process,
)
from converter.search.static_int8 import OURS, Recipe, StaticInt8
from converter.verify.columns import compare
from converter.verify.measure import Evaluation
from converter.verify.quality import (
    ACCURACY,
    AGREEMENT,
    BOXES_KEPT,
    CORRELATION,
    DETECTIONS_KEPT,
    EXPECTED_ACCURACY,
    EXPECTED_AGREEMENT,
    EXPECTED_SEQUENCES,
    RARE_AGREEMENT,
    SEQUENCES_KEPT,
    SHARES,
    Quality,
)
from edge.contract.errors import ConversionError
from edge.contract.profile import DeviceProfile
from edge.inference.onnx_benchmark import Benchmark
from edge.inference.onnx_session import EXACT
from edge.inference.session import sqnr_db

Stage = Callable[[str], None]

# On random inputs accuracy means nothing; 20 dB is a relative error of 0.1.
MIN_RANDOM_SQNR_DB = 20.0
_FEW = 16
# So many of the first convolutions may stay in float because that is faster.
_FIRST = 4
# One scale for each channel or for all is as much of a recipe's time, at most.
_MAY_BE_FASTER = 1.15
# A gap of more than this between exact and usual arithmetic is saturation (measured gaps: 13 to 25 dB).
_SATURATION_DB = 3.0
_MIB = 1 << 20
# What each scheme needs.
_WANTS = {
    "int8": "it takes convolutions and products with constant weights",
    "dynamic": "it takes products with constant weights and LSTMs, not GRUs",
    "fp16": "it takes frozen layers with weights",
    "int4": "it takes products with constant weights (MatMul, Gemm)",
}


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Found:
    """The outcome of a search.

    Attributes:
        chosen: What to ship.
        candidates: All that were built, the chosen one among them.
        reason: Why it was chosen.
        by_latency: Whether latency decided.
        sensitivity: By layer, the SQNR in dB when only that layer is int8; worst first.
        saturation: What the saturation check found.
        saturation_db: Gap between exact and usual arithmetic, None when not run.
        latency_spread: Part by which latencies of one candidate differed while all were compared.
        notes: For the report.
    """

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    reason: str
    by_latency: bool = False
    sensitivity: tuple[tuple[str, float], ...] = ()
    saturation: str = ""
    saturation_db: float | None = None
    latency_spread: float = 0.0
    notes: tuple[str, ...] = ()


class Search:
    """One search; see the module."""

    def __init__(self, problem: Problem, plan: ConversionPlan, stage: Stage) -> None:
        self._problem = problem
        self._plan = plan
        self._stage = stage
        self._profile = plan.profile
        self._sensitivity: tuple[tuple[str, float], ...] = ()
        self._notes: list[str] = []
        self._static: StaticInt8 | None = None

    def run(self, benchmark: Benchmark) -> Found:
        """Build, measure and choose.

        Args:
            benchmark: To measure with.

        Raises:
            ConversionError: The scheme that was asked for cannot be had, or costs more than the plan allows.
        """
        sample = one_feed(self._problem.backbone, self._problem.evaluation.samples.x, self._problem.inputs)
        with scratch_folder() as folder:
            self._bench = Bench(benchmark, folder, sample)
            candidates = self._candidates()
        chosen, reason = self._choose(candidates)
        text, gap = self._check_saturation(chosen)
        return Found(
            chosen=chosen,
            candidates=tuple(candidates),
            reason=reason,
            by_latency=self._plan.quantize == "auto" and measured_like_target(self._profile),
            sensitivity=self._sensitivity,
            saturation=text,
            saturation_db=gap,
            latency_spread=self._bench.spread,
            notes=tuple(self._notes),
        )

    def _candidates(self) -> list[Candidate]:
        """All of them, compared and timed."""
        own = running_in_int8(self._problem.backbone)[0] > 0  # nothing is done to a file that is int8 already
        name = "the int8 of the file" if own else "float"
        floating = build(self._problem, name, "none", self._problem.backbone)
        floating = compared(floating, self._problem.evaluation, float("inf"), in_this_process)
        candidates = [floating]
        for candidate in self._quantized():
            candidates.append(candidate if candidate.failed else self._compared(candidate))
        candidates = self._quickened(self._mended(candidates))
        self._stage("measuring latency and memory")
        worth = [candidate for candidate in candidates if not candidate.failed and not candidate.why]
        allowed = [c for c in worth if c.scheme == "none" or self._fault(c) is None]
        measured = iter(self._bench.timed(worth, allowed))
        return [self._judged(c if c.failed or c.why else next(measured)) for c in candidates]

    # Building

    def _quantized(self) -> Iterator[Candidate]:
        wanted, backbone = self._plan.quantize, self._problem.backbone
        if wanted == "none" or self._plan.format == "torchscript":  # which has no quantized form
            return
        if (findings := self._problem.evaluation.findings) and not self._plan.force:
            why = "; ".join(finding.text for finding in findings)
            if wanted == "auto":
                self._notes.append("nothing was quantized, because the data cannot show what it costs (--force does)")
                return
            raise ConversionError(f"--quantize {wanted} on these data needs --force: {why}")
        layers = quantizable_layers(backbone)
        kinds = other_floats(backbone)
        if kinds and wanted == "auto":
            self._notes.append(f"weights that are {kinds} are not quantized: export the model in float32")
        if kinds and not layers:
            if wanted == "auto":
                return
            raise ConversionError(f"the weights are {kinds}, and only float32 ones are quantized: export it in float32")
        if not layers and not has_recurrent(backbone):
            self._notes.append(_nothing_to_quantize(backbone, wanted))
            return
        auto = wanted == "auto"
        if (auto or wanted == "int8") and self._problem.calibration is not None and layers:
            self._stage("calibrating")
            method, profile = self._plan.calibration_method, self._profile.quantization
            try:
                self._static = StaticInt8(self._problem, profile, method, self._bench.program)
            except ConversionError as exc:
                if not auto:
                    raise
                yield _failed("int8 static", "int8", exc)
            else:
                self._notes.append(self._static.note)
                yield self._static_candidate()
        elif wanted == "int8" and has_convolutions(backbone):
            raise ConversionError("int8 convolutions need calibration data: give --calibrate with real samples")
        elif auto and has_convolutions(backbone):
            self._notes.append("int8 convolutions need calibration data; without them the convolutions stay float")
        only_products = not has_convolutions(backbone)
        if wanted == "dynamic" or (wanted == "int8" and (self._problem.calibration is None or not layers)):
            if (
                not only_products
                and not has_recurrent(backbone)
                and not any(layer.op_type in ("Gemm", "MatMul") for layer in layers)
            ):
                raise ConversionError(
                    "dynamic int8 is never used for convolutions, and there is nothing else to quantize"
                )
            yield self._made("int8 dynamic", "dynamic", lambda: quantize_dynamic(backbone, self._profile.quantization))
        elif auto and (only_products or has_recurrent(backbone)):
            yield self._made("int8 dynamic", "dynamic", lambda: quantize_dynamic(backbone, self._profile.quantization))
            if self._profile.quantization.per_channel:  # one scale for all is what onnxruntime's own recipe has
                plain = replace(self._profile.quantization, per_channel=False)
                yield self._made("int8 dynamic, per tensor", "dynamic", lambda: quantize_dynamic(backbone, plain))
        if auto or wanted == "fp16":
            yield self._made("fp16", "fp16", lambda: to_float16(backbone))
        if wanted == "int4" or (auto and any(layer.weight and layer.op_type in ("Gemm", "MatMul") for layer in layers)):
            yield self._made("int4 weights", "int4", lambda: quantize_int4(backbone))

    def _made(
        self,
        name: str,
        scheme: str,
        quantize: Callable[[], onnx.ModelProto],
        is_sketch: bool = False,
        **kept: Any,
    ) -> Candidate:
        """A candidate, or why it cannot be had; a sketch, which may turn out too slow, with the head as it is."""
        self._stage(f"quantizing: {name}")
        problem = self._problem
        try:
            backbone = quantize()
            corrected = None
            # It is run apart before it is loaded here.
            if problem.corrects_head and not is_sketch:
                corrected = corrected_head(problem, backbone, self._bench.program)
            else:
                head = problem.parts.head
                self._bench.check(joined(backbone, problem.parts), {} if head is None else head.parameters)
            if not _changed(backbone, scheme):
                raise ConversionError(f"nothing in it would be {scheme.replace('dynamic', 'int8')}: {_WANTS[scheme]}")
            made = build(problem, name, scheme, backbone, corrected, **kept)
            if scheme in ("int8", "dynamic") and made.layers_in_int8 is not None and not made.layers_in_int8[0]:
                raise ConversionError(
                    f"none of its {made.layers_in_int8[1]} layers would run in int8: {_WANTS[scheme]}"
                )
            return made
        except ConversionError as exc:
            if self._plan.quantize != "auto" and not kept.get("left_in_float"):  # of less int8 the first one says why
                raise
            return _failed(name, scheme, exc)

    def _static_candidate(
        self, exclude: Sequence[str] = (), what: str = "", recipe: Recipe = OURS, is_sketch: bool = False
    ) -> Candidate:
        static = self._static
        assert static is not None
        return self._made(
            static.name + recipe.name + what,
            "int8",
            lambda: static.quantized(recipe, exclude),
            is_sketch,
            left_in_float=tuple(exclude),
            weight_bits=7 if self._profile.quantization.reduce_range else 8,
        )

    # Mending

    def _mended(self, candidates: list[Candidate]) -> list[Candidate]:
        """With the layers that hurt left in float, where static int8 costs too much; measures them in any case."""
        static = next((c for c in candidates if c.scheme == "int8" and not c.failed), None)
        if static is None:
            return candidates
        fault = self._fault(static)
        assert self._static is not None
        if self._plan.quantize == "auto" or fault is not None:
            self._stage("finding the layers that hurt")
            self._sensitivity = self._static.sensitivity
        if fault is None:
            return candidates
        worst = [layer for layer, _ in self._sensitivity]
        count, mended = 1, None
        while count < max(2, len(worst)):
            mended = self._with_in_float(worst[:count])
            if mended.failed or self._fault(mended) is None:
                break
            count *= 2
        if mended is None or mended.failed or self._fault(mended) is not None:
            return candidates
        fewer = count // 2
        while count - fewer > 1:  # as few as will do
            middle = (fewer + count) // 2
            tried = self._with_in_float(worst[:middle])
            if self._fault(tried) is None:
                count, mended = middle, tried
            else:
                fewer = middle
        return [*candidates, mended]

    def _with_in_float(self, layers: Sequence[str]) -> Candidate:
        made = self._static_candidate(layers, _in_float(layers))
        return made if made.failed else self._compared(made, self._plan.max_drop)

    def _compared(self, candidate: Candidate, most_loss: float = float("inf")) -> Candidate:
        return compared(candidate, self._problem.evaluation, most_loss, self._bench.program)

    def _quickened(self, candidates: list[Candidate]) -> list[Candidate]:
        """With other forms of static int8, too, where they are faster: first another recipe, then less of it."""
        base = next((c for c in reversed(candidates) if c.scheme == "int8" and not c.failed), None)
        searched = self._plan.quantize == "auto" and measured_like_target(self._profile)
        if base is None or not searched or self._fault(base) is not None:
            return candidates
        self._stage("trying faster forms of int8")
        assert self._static is not None
        left = base.left_in_float
        recipes = self._static.recipes(left)
        if any(recipe.is_stock for recipe in recipes) and not self._stock_may_be_faster(base):
            recipes = [recipe for recipe in recipes if not recipe.is_stock]
        made = {recipe: self._static_candidate(left, _in_float(left), recipe, is_sketch=True) for recipe in recipes}
        candidates = [*candidates, *(candidate for candidate in made.values() if candidate.failed)]
        candidates, best = self._faster(candidates, base, [c for c in made.values() if not c.failed])
        recipe = next((recipe for recipe, candidate in made.items() if candidate.name == best.name), OURS)
        if recipe.is_stock:
            return candidates
        candidates, found = self._faster(candidates, best, self._first_in_float(best, recipe))
        if more := len(found.left_in_float) - len(best.left_in_float):
            self._notes.append(f"the network is faster with {more} of its first convolutions in float")
        return candidates

    def _first_in_float(self, base: Candidate, recipe: Recipe) -> list[Candidate]:
        """With the first, the first two, ... convolutions in float: few channels have no quick int8 kernel."""
        convolutions = [layer.name for layer in quantizable_layers(self._problem.backbone) if layer.op_type == "Conv"]
        made = [base]
        for count in range(1, min(_FIRST, len(convolutions) - 1) + 1):
            exclude = tuple(dict.fromkeys([*base.left_in_float, *convolutions[:count]]))
            if len(exclude) > len(made[-1].left_in_float):
                made.append(self._static_candidate(exclude, _in_float(exclude), recipe, is_sketch=True))
        return [candidate for candidate in made[1:] if not candidate.failed]

    def _stock_may_be_faster(self, base: Candidate) -> bool:
        """Whether onnxruntime's recipe is worth its time: looked at in a sketch, which lacks ranges of all samples."""
        assert self._static is not None
        parts = self._problem.parts
        try:
            model = joined(self._static.stock_sketch(), parts)
        except ConversionError:
            return True  # it is tried, to be listed with the reason
        name = base.name + Recipe(is_stock=True).name
        sketch = replace(
            base, name=name, model=model, parameters={} if parts.head is None else dict(parts.head.parameters)
        )
        return bool(self._bench.faster(base, [sketch], _MAY_BE_FASTER))

    def _faster(
        self, candidates: list[Candidate], base: Candidate, others: Sequence[Candidate]
    ) -> tuple[list[Candidate], Candidate]:
        """With those sketches that are faster than a base, up to the first that may be shipped; and it, or the base."""
        for sketch in self._bench.faster(base, others) if others else ():
            found = self._finished(sketch)
            candidates = [*candidates, found]
            if self._fault(found) is None:
                return candidates, found
        return candidates, base

    def _finished(self, sketch: Candidate) -> Candidate:
        """Its head corrected, compared; or with the reason why it does not run."""
        if self._problem.corrects_head:
            try:
                parameters, error = corrected_head(self._problem, sketch.backbone, self._bench.program)
            except ConversionError as exc:
                return replace(sketch, why=str(exc), failed=True)
            sketch = replace(sketch, parameters=parameters, head_error=error)
        return self._compared(sketch, self._plan.max_drop)

    # Choosing

    def _fault(self, candidate: Candidate) -> str | None:
        """Why a candidate may not be shipped: it is too far from the original. None when it may."""
        found, evaluation = candidate.deviation, self._problem.evaluation
        if found is None:
            return candidate.why or "was not compared"
        if not found.sqnr_db > float("-inf"):
            return "gives values that are not finite"
        if not evaluation.real:
            if found.least_db < MIN_RANDOM_SQNR_DB:
                return (
                    f"reaches {found.least_db:.1f} dB on random inputs, at least {MIN_RANDOM_SQNR_DB:.0f} dB expected"
                )
            if self._plan.quantize == "auto" and found.worst.loss > self._plan.max_drop + 1e-9:
                return f"{_lost(found.worst)} on random inputs; what it loses on real ones only data can tell"
            return None
        worst = found.worst
        if worst.loss > self._plan.max_drop + 1e-9:
            return f"{_lost(worst)}, at most {self._plan.max_drop} allowed (--max-drop)"
        likely = max(found.expected, key=lambda quality: quality.loss, default=None)
        if likely is not None and likely.loss > self._plan.max_drop + 1e-9:
            return (
                f"{_lost(likely)}, at most {self._plan.max_drop} allowed (--max-drop): "
                f"the {evaluation.count} samples are too few to show it"
            )
        return None

    def _judged(self, candidate: Candidate) -> Candidate:
        if candidate.failed:
            return candidate
        why = (self._fault(candidate) or "") if candidate.scheme != "none" else ""
        memory, limit = candidate.timing and candidate.timing.peak_memory_bytes, self._profile.memory_mb * _MIB // 2
        if not why and memory and memory > limit:
            why = f"takes {memory / _MIB:.0f} MiB at its peak, half of the target's memory is {limit / _MIB:.0f} MiB"
        if not why and candidate.size_bytes > self._profile.inference.max_bundle_mb * _MIB:
            size, most = candidate.size_bytes / _MIB, self._profile.inference.max_bundle_mb
            why = f"has {size:.0f} MiB, the target takes bundles of {most} MiB (max_bundle_mb)"
        return replace(candidate, why=why or candidate.why)

    def _choose(self, candidates: Sequence[Candidate]) -> tuple[Candidate, str]:
        allowed = [candidate for candidate in candidates if not candidate.why and candidate.timing is not None]
        if self._plan.quantize != "auto":
            asked = [c for c in allowed if (c.scheme == "none") == (self._plan.quantize == "none")]
            if not asked:
                self._refuse([c for c in candidates if (c.scheme == "none") == (self._plan.quantize == "none")])
            return asked[-1], f"--quantize {self._plan.quantize} was asked for"
        if not allowed:
            self._refuse(candidates)
        if not measured_like_target(self._profile):
            return self._by_rule(allowed)
        fastest = min(allowed, key=lambda c: c.timing.latency_ms if c.timing else 0.0)
        near = [
            c
            for c in allowed
            if c.timing and fastest.timing and c.timing.latency_ms <= (1 + TIE) * fastest.timing.latency_ms
        ]
        smallest = min(candidate.size_bytes for candidate in near)
        small = [candidate for candidate in near if candidate.size_bytes <= (1 + TIE) * smallest]
        chosen = min(small, key=lambda c: c.timing.latency_ms if c.timing else 0.0)
        reason = f"the fastest of {len(allowed)} candidates within {self._limits()}"
        if len(near) > 1:
            reason = f"the smallest of {len(near)} that are equally fast (within {TIE:.0%}), within {self._limits()}"
        if chosen.scheme == "none":
            only = "nothing else was tried" if len(candidates) == 1 else f"only float is within {self._limits()}"
            reason = f"float is the fastest on this CPU within {self._limits()}" if len(allowed) > 1 else only
            reason += _of_int8(candidates, chosen)
        return chosen, reason

    def _by_rule(self, allowed: Sequence[Candidate]) -> tuple[Candidate, str]:
        """Latency on another architecture says nothing: more layers in int8 and a smaller file come first."""

        def merit(candidate: Candidate) -> tuple[float, int]:
            in_int8, of = candidate.layers_in_int8 or (0, 0)
            share = in_int8 / of if of and candidate.scheme in ("int8", "dynamic") else 0.0
            return (-share, candidate.size_bytes)

        useful = [c for c in allowed if c.scheme != "fp16"]
        chosen = min(useful or allowed, key=merit)
        return chosen, (
            f"most layers in int8, then the smallest, within {self._limits()}; latency was measured on this machine "
            f"({platform.machine()}), which says little about {self._profile.name} ({self._profile.architecture})"
        )

    def _limits(self) -> str:
        return f"{self._plan.max_drop} points and {self._profile.memory_mb // 2} MiB"

    def _refuse(self, candidates: Sequence[Candidate]) -> None:
        faults = "; ".join(f"{candidate.name} {candidate.why}" for candidate in candidates if candidate.why)
        worst = f". The layer that hurts most is {self._sensitivity[0][0]}" if self._sensitivity else ""
        if any(c.deviation is not None and c.deviation.worst.at.startswith("at ") for c in candidates if c.why):
            worst += ". Where the size is always the same, fix it with --input"
        raise ConversionError(
            f"too far from the original: {faults or 'nothing could be built'}{worst}. Nothing was written"
        )

    # Saturation

    def _check_saturation(self, chosen: Candidate) -> tuple[str, float | None]:
        """Run the chosen file with and without exact arithmetic, where it uses 8-bit products on x86."""
        profile = self._profile
        if chosen.scheme not in ("int8", "dynamic") and not multiplies_int8(chosen.model):
            return "", None
        if profile.architecture == "aarch64":
            layers = layers_with_least_weight(chosen.model)
            if layers:
                raise ConversionError(f"{layers[0]} has int8 weights of -128, with which Arm's int8 sums overflow")
        promise = (
            "no int8 weight is below -127, so two products fit the 16-bit sums of Arm's int8 kernels"
            if profile.architecture == "aarch64"
            else "the file was quantized before"
            if chosen.scheme == "none"
            else "weights keep to 7 bits, so that two products of 8 bits fit the 16-bit sums of a CPU without VNNI"
            if profile.quantization.reduce_range
            else "8-bit weights are safe, because the target adds 8-bit products in 32 bits (VNNI)"
            if profile.quantization.int8_dot_product
            else "8-bit weights on a CPU without VNNI may saturate: the profile should set reduce_range"
        )
        if platform.machine() != "x86_64":
            return promise, None
        if any(node.op_type == "QGemm" for node in chosen.model.graph.node):  # loaded without `EXACT`, see `open_onnx`
            return f"{promise}; onnxruntime has no exact form of its QGemm, so its sums were not compared", None
        few = self._problem.evaluation.first(_FEW)
        ratios = [
            _nearness(few, few.run(onnx_program(chosen.model, chosen.name, chosen.parameters, 1, config)))
            for config in ({}, EXACT)
        ]
        said, gap = judged_sums(ratios[0], ratios[1], profile, chosen.scheme)
        return f"{promise}; {said}", gap


# What the sums of a file that came quantized may lose on such a CPU: its maker quantized it so.
_FOREIGN_DB = 30.0


def judged_sums(usual_db: float, exact_db: float, profile: DeviceProfile, scheme: str) -> tuple[str, float]:
    """What the 8-bit sums of this CPU mean for a file, nothing or not to run it here, and the gap in dB.

    Args:
        usual_db: Nearness of the outputs as this CPU gives them.
        exact_db: With exact arithmetic.
        profile: What the file is for.
        scheme: How it was quantized, ``none`` where it came so.

    Raises:
        ConversionError: The target is such a CPU, and they saturate: of a file that came quantized, by far.
    """
    gap = 0.0 if usual_db == exact_db else exact_db - usual_db
    if gap <= _SATURATION_DB:
        return f"on this CPU exact arithmetic changes the outputs by {gap:.1f} dB", gap
    if profile.architecture == "aarch64" or profile.quantization.int8_dot_product:
        here = f"{usual_db:.1f} dB of the worst column instead of {exact_db:.1f} dB"
        return f"the 8-bit sums of this CPU saturate, {here}: do not run the bundle here", gap
    if scheme == "none" and usual_db >= _FOREIGN_DB:  # it is what its maker's users get on such a CPU
        return f"its 8-bit sums saturate a little on this CPU: {usual_db:.1f} dB of {exact_db:.1f} dB", gap
    what_to_do = (
        "the file was quantized so: convert the float model, or quantize it again with 7-bit weights"
        if scheme == "none"
        else "use a target with reduce_range = true"
    )
    raise ConversionError(
        f"the int8 sums saturate on this CPU: {usual_db:.1f} dB, {exact_db:.1f} dB with exact arithmetic; "
        f"{what_to_do}. Nothing was written"
    )


def _nothing_to_quantize(backbone: onnx.ModelProto, wanted: str) -> str:
    """Why, for the report; raises ConversionError where a scheme was asked for."""
    is_done = running_in_int8(backbone)[0] > 0
    if wanted == "auto":
        why = "the file is int8 already" if is_done else "no convolution or matrix product is frozen"
        return f"{why}; nothing {'more ' if is_done else ''}is quantized"
    if is_done:
        raise ConversionError("the file is int8 already: give the float model that it was made of")
    raise ConversionError("the frozen layers have no convolution or matrix product to quantize")


def _nearness(evaluation: Evaluation, found: Arrays) -> float:
    """SQNR in dB of the worst output, and of the worst column about its mean: an offset hides what a column lost."""
    ratios = []
    for name, array in found.items():
        wanted = evaluation.reference[name]
        ratios.append(sqnr_db(wanted, array))
        if wanted.dtype.kind == "f":
            columns = compare(wanted, array, evaluation.kinds[name].axis)
            ratios.append(float(columns.noise_db[~columns.constant].min(initial=200.0)))
    return min(ratios)


def _failed(name: str, scheme: str, exc: ConversionError) -> Candidate:
    """What could not be built or run, to be listed with the reason."""
    empty = onnx.ModelProto()
    return Candidate(name=name, scheme=scheme, backbone=empty, model=empty, why=str(exc), failed=True)


def _in_float(layers: Sequence[str]) -> str:
    """Of a candidate's name."""
    return f", {len(layers)} in float" if layers else ""


def _changed(backbone: onnx.ModelProto, scheme: str) -> bool:
    """Whether a backbone has anything of what it was to be."""
    if scheme == "int4":
        return any(node.op_type == "MatMulNBits" for node in backbone.graph.node)
    if scheme == "fp16":
        half = onnx.TensorProto.FLOAT16
        return any(tensor.data_type == half for tensor in backbone.graph.initializer)
    return True


def _lost(worst: Quality) -> str:
    """What the column that decides lost, in words."""
    if worst.constant:
        return f"changes {worst.name}, which is constant"
    if worst.value is None:
        return f"gives a {worst.name} that is not finite"
    where = f" of {worst.name}" if worst.column is not None else f" {worst.at}" if worst.at else ""
    if worst.measure == AGREEMENT:
        return f"disagrees on {worst.loss:.2f} % of the samples{where}"
    others = f"of others{f' of {worst.name}' if worst.column is not None else ''}, as its margins move"
    if worst.measure == EXPECTED_ACCURACY:
        return f"is expected to lose {worst.loss:.2f} points of accuracy {others}"
    if worst.measure == EXPECTED_AGREEMENT:
        return f"is expected to disagree on {worst.loss:.2f} % {others}"
    if worst.measure == EXPECTED_SEQUENCES:
        return f"is expected to read {100 * (1 - worst.value):.2f} % otherwise {others}"
    if worst.measure == SEQUENCES_KEPT:
        what = f"{100 * (1 - worst.value):.2f} % of the sequences otherwise{where or f' of {worst.output}'}"
        return f"reads {what}, a loss of {worst.loss:.2f} points"
    if worst.measure == RARE_AGREEMENT:
        return f"disagrees on {100 * (1 - worst.value):.2f} % of what is rare{where or f' in {worst.output}'}"
    if worst.measure in (BOXES_KEPT, DETECTIONS_KEPT):
        return f"loses {worst.loss:.2f} % of the {worst.measure.split()[0]} that {worst.output} shows{where}"
    if worst.measure in SHARES:
        what = "points of accuracy" if worst.measure == ACCURACY else f"% of the {worst.output}: {worst.measure}"
        return f"loses {worst.loss:.2f} {what}{where}"
    unit = "of 100 points" if worst.measure != CORRELATION else "points"
    shape = worst.measure == CORRELATION and worst.loss > 2 * 100 * (1 - worst.value)
    moves = "it moves, shrinks or grows, at a " if shape else ""
    return (
        f"loses {worst.loss:.2f} {unit} of {worst.name}: {moves}{worst.measure} {worst.value:.4f}, "
        f"the original {worst.original:.4f}"
    )


def _of_int8(candidates: Sequence[Candidate], floating: Candidate) -> str:
    """What was found out about int8, where float is shipped: nothing but what was measured."""
    tried = [c for c in candidates if c.scheme in ("int8", "dynamic")]
    allowed = [c for c in tried if not c.why and c.timing is not None]
    if allowed and floating.timing is not None:
        mine = floating.timing.latency_ms
        if any(c.why and c.timing is not None and c.timing.latency_ms < (1 - TIE) * mine for c in tried):
            return "; int8 that is faster is too far from the original"
        fastest = min(c.timing.latency_ms for c in allowed if c.timing)
        return "; int8 would be slower here" if fastest > mine else "; int8 is no faster here"
    if any(not c.failed for c in tried):
        return "; int8 is too far from the original"
    return "; int8 cannot be had" if tried else ""


def measured_like_target(profile: DeviceProfile) -> bool:
    """Whether this machine has the target's instruction set."""
    machine = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    return machine == profile.architecture
