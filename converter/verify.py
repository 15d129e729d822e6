"""Is what came out near enough to what went in? Compares programs; changes nothing and writes nothing."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import onnx
import torch
from torch import nn

from converter.checkpoint import trace
from converter.data import Data
from converter.measure import Measurement
from converter.program import FloatArray, Run, onnx_program, outputs, torch_program
from converter.reason import reason
from converter.scratch import scratch_folder
from edge.contract.bundle import Bundle, write_bundle
from edge.contract.errors import BundleError, ConversionError
from edge.contract.manifest import Manifest
from edge.inference.onnx_session import OnnxSession
from edge.inference.session import sqnr_db

# Float programs compute the same sums in another order: 60 dB is a relative error of 0.001.
MIN_FLOAT_SQNR_DB = 60.0
# Int8 on random inputs, where accuracy means nothing.
MIN_INT8_SQNR_DB = 20.0


def check_float(exported: onnx.ModelProto, data: Data, reference: FloatArray) -> Run:
    """The whole float graph, compared with torch, at more than one batch size.

    Raises:
        ConversionError: It does not run, or gives other outputs.
    """
    run = onnx_program(exported, "the exported graph")
    try:
        found = outputs(run, data.x)
        single = np.concatenate([run(data.x[i : i + 1]) for i in range(min(4, len(data.x)))])
    except Exception as exc:  # onnxruntime's exceptions have no common base
        raise ConversionError(f"the exported graph does not run at every batch size: {reason(exc)}") from exc
    for what, expected, got in (("", reference, found), (" one by one", reference[: len(single)], single)):
        if expected.shape != got.shape:
            raise ConversionError(f"the exported graph gives outputs {got.shape}{what}, torch gives {expected.shape}")
        ratio = sqnr_db(expected, got)
        if ratio < MIN_FLOAT_SQNR_DB:
            raise ConversionError(
                f"the exported graph gives other outputs than torch{what}: {ratio:.1f} dB, at least "
                f"{MIN_FLOAT_SQNR_DB:.0f} dB expected. The model may have branches that tracing cannot follow"
            )
    return run


def too_different(row: Measurement, original: Measurement, data: Data, max_drop: float) -> str | None:
    """Why an int8 program may not be shipped; None when it may."""
    if not np.isfinite(row.sqnr_db):
        return f"gives values that are not finite on {data.origin}"
    if not data.real:
        if row.sqnr_db < MIN_INT8_SQNR_DB:
            return f"reaches {row.sqnr_db:.1f} dB on random inputs, at least {MIN_INT8_SQNR_DB:.0f} dB expected"
        return None
    if row.accuracy is not None and original.accuracy is not None:
        drop, what = 100 * (original.accuracy - row.accuracy), "loses {:.2f} points of accuracy"
    else:
        drop, what = 100 * (1 - row.agreement), "disagrees on {:.2f} % of the samples"
    if drop > max_drop + 1e-9:
        return f"{what.format(drop)} on {data.origin}, at most {max_drop} allowed (--max-drop)"
    return None


def checked_torchscript(model: nn.Module, data: Data, reference: FloatArray) -> bytes:
    """The whole float model as TorchScript, loaded again and compared.

    Raises:
        ConversionError: It gives other outputs than the model.
    """
    script = trace(model, torch.from_numpy(data.x[:2]))
    archive = io.BytesIO()
    torch.jit.save(script, archive)
    loaded = torch.jit.load(io.BytesIO(archive.getvalue()))  # type: ignore[no-untyped-call]
    ratio = sqnr_db(reference, outputs(torch_program(loaded), data.x))
    if ratio < MIN_FLOAT_SQNR_DB:
        raise ConversionError(f"the TorchScript gives other outputs than the model: {ratio:.1f} dB")
    return archive.getvalue()


def check_bundle(manifest: Manifest, blobs: Mapping[str, bytes]) -> str:
    """Open a bundle as a device opens it, digests and golden outputs, in a folder that is thrown away.

    Returns:
        Its digest.

    Raises:
        ConversionError: A device would refuse it.
    """
    with scratch_folder() as folder:
        path = folder / "bundle.edge"
        try:
            write_bundle(path, manifest, blobs)
            bundle = Bundle.open(path)
            OnnxSession(bundle)
        except BundleError as exc:
            raise ConversionError(f"a device would refuse the bundle: {exc}. Nothing was written") from exc
        return bundle.digest
