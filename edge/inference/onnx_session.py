"""The onnxruntime door for inference: opens a bundle's backbone on a provider, and its head on the CPU.

Promises that a bundle is used only after it gave its golden outputs on this very CPU: the same int8 file gives other
answers on a processor whose 8-bit instructions saturate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.errors import BundleError, ConfigError
from edge.contract.tensorspec import AxisRange, TensorSpec
from edge.inference.onnx_bound_run import BoundRun
from edge.inference.onnx_providers import CPU, provider_list
from edge.inference.session import Arrays, FloatArray, activated, sqnr_db

# int8 products are added in 32 bits on any CPU. An x86 CPU without VNNI otherwise adds two of them in 16 bits, which
# can saturate; there it is slower, elsewhere it changes nothing.
EXACT = {"session.x64quantprecision": "1"}

_FLOAT = 1  # TensorProto.FLOAT
_ANY = AxisRange()

# A model and its input that have less together keep nothing between runs.
_SMALL_BYTES = 512 << 10

# What a column must keep about its mean, of golden outputs that have so many values of it: 3 % of its variance may go.
_COLUMN_DB = 15.0
_COLUMN_ROWS = 8
# Errors that are rounding alone, relative to a column's largest value; of 16-bit floats to the output's.
_ROUNDS, _HALF_ROUNDS = 2.0**-18, 2.0**-8


def session_options(
    threads: int, config: Mapping[str, str] | None = None, keeps_memory: bool = False
) -> ort.SessionOptions:
    """Options for a small device: a given number of threads, no spinning.

    Args:
        threads: Of one session.
        config: Further configuration entries of onnxruntime, e.g. `EXACT`.
        keeps_memory: What a run took is kept for the next one, in an arena of this process; see `worth_keeping`.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = keeps_memory
    options.log_severity_level = 4  # not even errors: they come back as exceptions with the same text
    if keeps_memory:
        _make_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    for key, value in {"session.intra_op.allow_spinning": "0", **(config or {})}.items():
        options.add_session_config_entry(key, value)
    return options


@cache
def _make_arena() -> None:
    """One for all sessions that keep memory: it grows by what they need, that of a session of its own to twice that."""
    grows = ort.OrtArenaCfg({"arena_extend_strategy": 1})  # kSameAsRequested
    kind = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    ort.create_and_register_allocator(ort.OrtMemoryInfo("Cpu", kind, 0, ort.OrtMemType.DEFAULT), grows)


def worth_keeping(model_bytes: int, sample_bytes: int) -> bool:
    """Whether the memory of a run is kept for the next one.

    Otherwise it goes back to the system and is fetched again, page by page: of MobileNetV2 in an agent that took nearly
    as long as the network. In a model of a few layers malloc finds the same memory by itself, and is a microsecond
    quicker than an arena.

    Args:
        model_bytes: Size of the graph with its weights.
        sample_bytes: Size of one sample, all inputs.
    """
    return model_bytes + sample_bytes > _SMALL_BYTES


def open_onnx(
    model: bytes | str,
    what: str,
    threads: int = 1,
    config: Mapping[str, str] | None = None,
    providers: Sequence[str | tuple[str, dict[str, str]]] = (CPU,),
    options: ort.SessionOptions | None = None,
    keeps_memory: bool = False,
) -> ort.InferenceSession:
    """Load a graph, from its bytes or from a file; whatever onnxruntime raises becomes a BundleError.

    So does a provider that is asked for first and is not there: onnxruntime would take the CPU without a word. A graph
    with an int8 operator that has no exact form (QGemm of two signed ones) is loaded without `EXACT`.
    """
    made = options or session_options(threads, config, keeps_memory)
    try:
        session = ort.InferenceSession(model, made, providers=list(providers))
    except Exception as exc:  # the door: onnxruntime's exceptions have no common base
        inexact = {key: value for key, value in (config or {}).items() if key not in EXACT}
        if options is None and len(inexact) < len(config or {}):
            return open_onnx(model, what, threads, inexact, providers, keeps_memory=keeps_memory)
        raise BundleError(f"{what} does not load in onnxruntime {ort.__version__}: {exc}") from exc
    first = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if first not in session.get_providers():
        raise BundleError(f"onnxruntime {ort.__version__} cannot use {first}: its libraries or its device are missing")
    return session


def with_defaults(model: bytes, values: Mapping[str, FloatArray]) -> bytes:
    """A graph whose inputs of these names need not be given: each run then costs a few microseconds less.

    ONNX calls an initializer that is an input, too, the default of that input. The file is protobuf, where two messages
    one behind the other are their union, so that no library is needed: ``ModelProto.graph`` is field 7,
    ``GraphProto.initializer`` 5, and of ``TensorProto`` ``dims`` is 1, ``data_type`` 2, ``name`` 8, ``raw_data`` 9.

    Args:
        model: ONNX.
        values: By name of input, float32.
    """
    initializers = b""
    for name, array in values.items():
        shape = b"".join(_field(1, size) for size in array.shape)
        data = np.ascontiguousarray(array, "<f4").tobytes()
        initializers += _field(5, shape + _field(2, _FLOAT) + _field(8, name.encode()) + _field(9, data))
    return model + (_field(7, initializers) if values else b"")


def _field(number: int, value: int | bytes) -> bytes:
    """A protobuf field: of the wire type 0, a varint, or 2, bytes with their length in front."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last have the eighth bit set."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


class OnnxSession:
    """A bundle on onnxruntime.

    Args:
        bundle: Opened, so its digests are right.
        threads: For the model; the head alone always runs on one thread.
        config: See `session_options`; for the model.
        provider: Who runs the model, see `edge.inference.onnx_providers.NAMES`. Another one than the CPU runs what no
            head changes, and the head is run on the CPU: some providers take its shipped parameters for constants.

    Raises:
        BundleError: A graph does not load, or the golden outputs are not met.
    """

    def __init__(
        self, bundle: Bundle, threads: int = 1, config: Mapping[str, str] | None = None, provider: str = "cpu"
    ) -> None:
        self.manifest, self.provider = bundle.manifest, provider
        manifest = bundle.manifest
        shipped = bundle.head_parameters()
        graph, places = with_defaults(bundle.read(m.MODEL), shipped), provider_list(provider, threads)
        keeps = provider == "cpu" and worth_keeping(len(graph), _sample_bytes(bundle))
        self._model = open_onnx(graph, m.MODEL, threads, config, places, keeps_memory=keeps)
        self._shipped = shipped
        self._is_split = provider != "cpu" and manifest.head is not None
        needed = {spec.name for spec in manifest.inputs}
        found = (
            {item.name for item in self._model.get_inputs()},
            {item.name for item in self._model.get_overridable_initializers()},
        )
        if found != (needed, set(shipped)):
            raise BundleError(
                f"{m.MODEL} does not have the inputs that the manifest states: {sorted(needed | set(shipped))}"
            )
        self._whole = BoundRun(self._model, [spec.name for spec in manifest.outputs], keeps)
        self._served = self._whole
        self._head: ort.InferenceSession | None = None
        if manifest.head is not None:
            self._head = open_onnx(bundle.read(m.HEAD_INFER), m.HEAD_INFER)
            self._features, self._logits = manifest.head.features.name, manifest.head.output
            self._activation = manifest.head.activation
            self._learned = BoundRun(self._model, [self._features, self._logits], keeps)
            self._frozen = BoundRun(self._model, [self._features], keeps)
            self._of_head = BoundRun(self._head, [self._logits])
            others = [spec.name for spec in manifest.outputs if spec.name != self._logits]
            self._served = BoundRun(self._model, [self._features, *others], keeps)
            linear = manifest.head.linear
            self._layer_input = "" if linear is None or manifest.head.is_linear else linear.input
        check_golden(self, bundle)

    def run(self, inputs: Mapping[str, npt.NDArray[Any]], parameters: Mapping[str, FloatArray] | None = None) -> Arrays:
        """See `edge.inference.session.Session.run`; without parameters, the head that was shipped is used.

        Raises:
            ConfigError: An input is missing, not known, or of another shape or type.
        """
        if self._is_split:
            found = self._served(inputs, self._check)
            logits = self.logits(found[self._features], parameters or self._shipped)
            found[self._logits] = activated(logits, self._activation)
            return {spec.name: found[spec.name] for spec in self.manifest.outputs}
        if parameters is None:
            return self._whole(inputs, self._check)
        return self._whole({**inputs, **parameters}, lambda _: self._check(inputs))

    def served(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """What no head changes: all outputs, or with a head the features in the place of its output.

        Raises:
            ConfigError: An input is missing, not known, or of another shape or type.
        """
        return self._served(inputs, self._check)

    def _check(self, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        expected = {spec.name: spec for spec in self.manifest.inputs}
        if inputs.keys() != expected.keys():
            raise ConfigError(f"expected the inputs {', '.join(expected)}; got {', '.join(inputs) or 'none'}")
        free: dict[str, int] = {}
        for name, spec in expected.items():
            try:
                spec.check(inputs[name])
            except ValueError as exc:
                raise ConfigError(str(exc)) from exc
            for axis, size in zip(spec.shape, inputs[name].shape, strict=True):
                if isinstance(axis, str) and free.setdefault(axis, size) != size:
                    raise ConfigError(f"{name}: the axis {axis} has {size} entries, another input has {free[axis]}")
        for axis, size in free.items():
            sizes = self.manifest.axes.get(axis, _ANY)
            if size not in sizes:
                taken = "1 or more" if sizes == _ANY else sizes.describe()
                raise ConfigError(f"the axis {axis} has {size} entries, the model takes {taken}")

    def predict(
        self, inputs: Mapping[str, npt.NDArray[Any]], parameters: Mapping[str, FloatArray]
    ) -> tuple[FloatArray, FloatArray]:
        """See `edge.inference.session.Session.predict`."""
        if self._is_split or self._activation:
            features = self.features(inputs)
            return features, self.logits(features, parameters)
        found = self._learned({**inputs, **parameters})
        return found[self._features], found[self._logits]

    def features(self, inputs: Mapping[str, npt.NDArray[Any]]) -> FloatArray:
        """What the frozen part gives to the head, ``(batch, *features)``."""
        return self._frozen(inputs)[self._features]

    def logits(self, features: FloatArray, parameters: Mapping[str, FloatArray]) -> FloatArray:
        """See `edge.inference.session.Session.logits`."""
        assert self._head is not None
        return self._of_head({self._features: features, **parameters})[self._logits]

    def layer_input(self, features: FloatArray, parameters: Mapping[str, FloatArray]) -> FloatArray:
        """What the head's last layer takes, ``(batch, n_inputs)``, where that is linear."""
        if not self._layer_input:
            return features
        assert self._head is not None
        found: FloatArray = self._head.run([self._layer_input], {self._features: features, **parameters})[0]
        return found


def _near(wanted: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    """SQNR in dB over what is finite; minus infinity unless the same values are not."""
    if wanted.shape != found.shape:
        return float("-inf")
    if wanted.dtype.kind != "f":
        return sqnr_db(wanted, found)
    finite = np.isfinite(wanted)
    if not np.array_equal(wanted[~finite], found[~finite], equal_nan=True):
        return float("-inf")
    return sqnr_db(wanted[finite], found[finite])


def lost_column(
    spec: TensorSpec, wanted: npt.NDArray[Any], found: npt.NDArray[Any], half: bool
) -> tuple[float, str] | None:
    """The worst column that is not kept, with what it keeps: dB of its signal about its mean. None if all are.

    An SQNR does not see what a column lost whose values lie far from 0, or are small beside those of its neighbours.

    Args:
        spec: The output's axes.
        wanted: Golden.
        found: This CPU's.
        half: Whether 16-bit floats were computed with, whose rounding differs between CPUs.
    """
    if wanted.dtype.kind != "f" or wanted.ndim == 0 or not wanted.size:
        return None
    axis = 1 if wanted.ndim >= 4 else wanted.ndim - 1
    single = axis == spec.batch_axis or not isinstance(spec.shape[axis], int)
    rows = [
        a.reshape(-1, 1) if single else np.moveaxis(a, axis, -1).reshape(-1, a.shape[axis])
        for a in (wanted.astype(np.float64), found.astype(np.float64))
    ]
    one, other = rows
    if len(one) < _COLUMN_ROWS or not one.size:
        return None
    one, other = (np.where(np.isfinite(one), array, 0.0) for array in (one, other))
    signal, noise = one.var(axis=0), np.square(one - other).mean(axis=0)
    size = np.abs(one).max(axis=0)
    rounding = _HALF_ROUNDS * size.max() if half or wanted.dtype.itemsize == 2 else _ROUNDS * size
    # One value at the border between two codes may fall on its other side.
    several = (np.abs(one - other) > rounding).sum(axis=0) > 1
    lost = several & (noise * 10 ** (_COLUMN_DB / 10) > signal) & (signal > np.square(rounding))
    if not lost.any():
        return None
    ratio = np.where(lost, signal / np.where(lost, noise, 1.0), np.inf)
    worst = int(ratio.argmin())
    name = spec.name if single else f"{spec.name}[{worst}]"
    return 10.0 * float(np.log10(ratio[worst])), name


def check_golden(session: OnnxSession, bundle: Bundle) -> None:
    """Compare this CPU's outputs on the golden inputs with the outputs in the bundle.

    Raises:
        BundleError: They differ by more than the manifest allows.
    """
    golden, inputs = bundle.tensors(m.GOLDEN), golden_inputs(bundle)
    wanted = {name.removeprefix(m.GOLDEN_OUTPUT): a for name, a in golden.items() if name.startswith(m.GOLDEN_OUTPUT)}
    specs = {spec.name: spec for spec in bundle.manifest.outputs}
    if wanted.keys() != specs.keys():
        raise BundleError(f"{m.GOLDEN} must hold the outputs {sorted(specs)}, it holds {sorted(wanted)}")
    try:
        outputs = session.run(inputs, bundle.head_parameters())
        for name, spec in specs.items():
            spec.check(outputs[name])
        why = difference(bundle, wanted, outputs)
    except BundleError:
        raise
    except Exception as exc:  # the door: onnxruntime's exceptions have no common base
        raise BundleError(f"the bundle does not run on its own golden inputs: {exc}") from exc
    if why:
        raise BundleError(
            f"{'this CPU' if session.provider == 'cpu' else session.provider} gives other answers than one of the "
            f"target: {why} on the golden inputs. Convert the model with this device's profile (--target)"
        )


def golden_inputs(bundle: Bundle) -> Arrays:
    """The golden samples of a bundle by input."""
    golden = bundle.tensors(m.GOLDEN)
    return {name.removeprefix(m.GOLDEN_INPUT): a for name, a in golden.items() if name.startswith(m.GOLDEN_INPUT)}


def _sample_bytes(bundle: Bundle) -> int:
    """What one golden sample takes; nothing is said of golden inputs that are wrong, which `check_golden` finds."""
    inputs, found = golden_inputs(bundle), 0
    for spec in bundle.manifest.inputs:
        array, axis = inputs.get(spec.name), spec.batch_axis
        if array is not None and array.size:
            if axis is None or axis >= array.ndim or bundle.manifest.fixed_batch is not None:
                found += array.nbytes
            else:
                found += array.nbytes // array.shape[axis]
    return found


def difference(bundle: Bundle, wanted: Arrays, found: Arrays) -> str:
    """What a bundle's outputs lost that were to be the same, for people; empty where they are near enough."""
    specs = {spec.name: spec for spec in bundle.manifest.outputs}
    ratio = min(_near(wanted[name], found[name]) for name in specs)
    half = bundle.manifest.quantization.get("scheme") == "fp16"
    lost = [lost_column(spec, wanted[name], found[name], half) for name, spec in specs.items()]
    least, where = bundle.manifest.golden_min_sqnr_db, ""
    if ratio >= least and any(lost):
        (ratio, name), least = min(each for each in lost if each is not None), _COLUMN_DB
        where = f" of {name} about its mean"
    return "" if ratio >= least else f"{ratio:.1f} dB{where}, at least {least:.0f} dB expected"
