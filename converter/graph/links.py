"""Who makes and who reads each value of a graph."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import onnx
from onnx import numpy_helper

from converter.graph.build import reads
from converter.graph.nodes import attribute


class Links:
    """The values of a graph as it is now; nodes that are added later are not seen.

    Attributes:
        constants: Initializers, and the tensors of ``Constant`` nodes, by name.
        outputs: Names of the graph's outputs.
        made_by: By value, the node that makes it.
        readers: By value, the nodes that read it, each once, also where a graph inside them does.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = {info.name for info in graph.output}
        self.made_by: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            if node.op_type == "Constant" and (tensor := attribute(node, "value")) is not None:
                self.constants[node.output[0]] = tensor
            self.made_by.update((name, node) for name in node.output if name)
            for name in dict.fromkeys(reads(node)):
                self.readers.setdefault(name, []).append(node)

    def array(self, constant: str) -> npt.NDArray[Any]:
        """The value of a constant."""
        found: npt.NDArray[Any] = numpy_helper.to_array(self.constants[constant])
        return found

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """The node that alone sees a value; None where there are none or several, or it is an output, too."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None
