"""ExecuTorch with the XNNPACK backend: pt2e static int8 per channel, run by its own Python runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.process import Model, calibration_samples, load_network

DISTRIBUTIONS = ("executorch", "torchao", "torch")
INSTALL = "pip install torch executorch"
VARIANTS = ("int8",)
SUFFIX = ".pte"


def convert(variant: str, arch: str, folder: Path, artifact: Path) -> None:  # noqa: ARG001 - there is one variant
    """See `benchmarks.peers.process.Peer.convert`."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    samples = torch.from_numpy(calibration_samples(folder))
    example = (samples[:1],)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(load_network(arch, folder), example).module(), quantizer)
    with torch.no_grad():
        for sample in samples.split(1):
            prepared(sample)
    exported = torch.export.export(convert_pt2e(prepared), example)
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    artifact.write_bytes(program.buffer)


def open_model(artifact: Path) -> Model:
    """See `benchmarks.peers.process.Peer.open_model`."""
    import torch
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    torch.set_num_threads(1)
    _unsafe_reset_threadpool(1)
    method = Runtime.get().load_program(artifact).load_method("forward")
    assert method is not None
    execute = method.execute

    def run(x: Any) -> Any:
        return execute((torch.from_numpy(x),))[0].numpy()

    return run
