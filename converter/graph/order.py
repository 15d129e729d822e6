"""Nodes in an order in which they can run, as ONNX asks for; not every tool that rewrites graphs keeps to it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import onnx

from converter.graph.build import reads
from converter.graph.nodes import inner_graphs


def in_running_order(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes, each behind those whose outputs it reads; otherwise in the order in which they come.

    Nodes that wait for each other in a circle stay where they are, at the end: whoever loads the graph refuses them.
    """
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    needs = [{maker[name] for name in reads(node) if name in maker} for node in nodes]
    placed: set[int] = set()
    order: list[int] = []
    for start in range(len(nodes)):
        waiting = [start]
        seen = {start}
        while waiting:
            i = waiting[-1]
            missing = sorted(needs[i] - placed - seen) if i not in placed else []
            if missing:
                waiting.append(missing[0])
                seen.add(missing[0])
                continue
            waiting.pop()
            if i not in placed:
                placed.add(i)
                order.append(i)
    return [nodes[i] for i in order]


def sort_nodes(graph: onnx.GraphProto) -> bool:
    """Bring the nodes of a graph, and those of the graphs inside it, into running order, in place.

    Returns:
        Whether anything had to be moved.
    """
    moved = False
    for node in graph.node:
        for inner in inner_graphs(node):
            moved |= sort_nodes(inner)
    ordered = in_running_order(graph.node)
    if any(one is not other for one, other in zip(ordered, graph.node, strict=True)):
        copies = [deepcopy(node) for node in ordered]
        del graph.node[:]
        graph.node.extend(copies)
        moved = True
    return moved
