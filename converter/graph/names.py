"""Names of nodes. ONNX makes them optional and does not ask them to differ; what is said of a layer needs one."""

from __future__ import annotations

import itertools
from collections.abc import Container
from copy import deepcopy

import onnx

from converter.graph.nodes import inner_graphs


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own, in place: where it has none, or another has it, that of its first output.

    The same in the graphs inside; onnxruntime refuses two nodes of one name in a graph.
    """
    given = [node.name for node in graph.node]
    taken = set(given)
    seen: set[str] = set()
    for node in graph.node:
        if not node.name or node.name in seen:
            wished = next((name for name in node.output if name), node.op_type)
            node.name = next(
                name
                for name in itertools.chain([wished], (f"{wished}_{i}" for i in itertools.count(2)))
                if name not in taken
            )
            taken.add(node.name)
        seen.add(node.name)
        for inner in inner_graphs(node):
            name_nodes(inner)


def _not_in(taken: Container[str], wished: str) -> str:
    numbered = (f"{wished}_{i}" for i in itertools.count(2))
    return next(name for name in itertools.chain([wished], numbered) if name not in taken)


class FreshNames:
    """Names for new values of a graph: what was asked for, or, where the graph has that, the same with a number.

    A node ``fc`` with the weight ``fc.weight`` is what most frameworks write.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._taken = {tensor.name for tensor in graph.initializer} | {info.name for info in graph.input}
        self._taken |= {name for node in graph.node for name in node.output}
        self._given: dict[str, str] = {}

    def __call__(self, wished: str) -> str:
        """The same name whenever the same is asked for."""
        if wished not in self._given:
            self._given[wished] = _not_in(self._taken, wished)
            self._taken.add(self._given[wished])
        return self._given[wished]


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every node has a name of its own, see `name_nodes`."""
    found = deepcopy(model)
    name_nodes(found.graph)
    return found
