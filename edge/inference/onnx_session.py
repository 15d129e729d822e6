"""The onnxruntime door for inference: opens a bundle's backbone and head on the CPU provider.

Promises that a bundle is used only after it gave its golden outputs on this very CPU: the same int8 file gives other
answers on a processor whose 8-bit instructions saturate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.errors import BundleError
from edge.inference.session import FloatArray, sqnr_db


def session_options(threads: int) -> ort.SessionOptions:
    """Options for a small device: a given number of threads, no spinning, no memory arena kept between runs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3  # errors only: they come back as exceptions with the same text
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_onnx(model: bytes, what: str, threads: int = 1) -> ort.InferenceSession:
    """Load a graph; whatever onnxruntime raises becomes a BundleError."""
    try:
        return ort.InferenceSession(model, session_options(threads), providers=["CPUExecutionProvider"])
    except Exception as exc:  # the door: onnxruntime's exceptions have no common base
        raise BundleError(f"{what} does not load in onnxruntime {ort.__version__}: {exc}") from exc


class OnnxSession:
    """A bundle's backbone and head on onnxruntime.

    Args:
        bundle: Opened, so its digests are right.
        threads: For the backbone; the head always runs on one thread.

    Raises:
        BundleError: A graph does not load, or the golden outputs are not met.
    """

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self.manifest = bundle.manifest
        self._backbone = open_onnx(bundle.read(m.BACKBONE), m.BACKBONE, threads)
        self._head = open_onnx(bundle.read(m.HEAD_INFER), m.HEAD_INFER)
        self._input = self.manifest.input.name
        self._features = self.manifest.features.name
        check_golden(self, bundle)

    def features(self, samples: npt.NDArray[Any]) -> FloatArray:
        """See `edge.inference.session.Session.features`."""
        found: FloatArray = self._backbone.run(None, {self._input: samples})[0]
        return found

    def logits(self, features: FloatArray, parameters: Mapping[str, FloatArray]) -> FloatArray:
        """See `edge.inference.session.Session.logits`."""
        found: FloatArray = self._head.run(None, {self._features: features, **parameters})[0]
        return found


def check_golden(session: OnnxSession, bundle: Bundle) -> None:
    """Compare this CPU's outputs on the golden inputs with the outputs in the bundle.

    Raises:
        BundleError: They differ by more than the manifest allows.
    """
    golden = bundle.tensors(m.GOLDEN)
    if set(golden) != {"input", "output"}:
        raise BundleError(f"{m.GOLDEN} must hold input and output, it holds {sorted(golden)}")
    try:
        bundle.manifest.input.check(golden["input"])
        outputs = session.logits(session.features(golden["input"]), bundle.head_parameters())
        bundle.manifest.output.check(outputs)
        ratio = sqnr_db(golden["output"], outputs)
    except BundleError:
        raise
    except Exception as exc:  # the door: onnxruntime's exceptions have no common base
        raise BundleError(f"the bundle does not run on its own golden inputs: {exc}") from exc
    least = bundle.manifest.golden_min_sqnr_db
    if not ratio >= least:
        raise BundleError(
            f"this CPU gives other answers than the CPU that built the bundle: {ratio:.1f} dB on the golden inputs, "
            f"at least {least:.0f} dB expected. Convert the model with this device's profile (--target)"
        )
