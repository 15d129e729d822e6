"""Graphs of ``torch.export`` rewritten: inputs without a nest, and a number of samples that is not written down."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
import torch.utils._pytree as pytree
from torch.fx import GraphModule, Node
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo

_RESHAPES = (torch.ops.aten.view.default, torch.ops.aten.reshape.default, torch.ops.aten._unsafe_view.default)
# Operators with sizes in a list, by the place of that list among their arguments.
_SIZES_AT = {
    torch.ops.aten.expand.default: 1,
    torch.ops.aten.new_zeros.default: 1,
    torch.ops.aten.new_ones.default: 1,
    torch.ops.aten.new_full.default: 1,
    torch.ops.aten.new_empty.default: 1,
    torch.ops.aten.repeat.default: 1,
    torch.ops.aten.zeros.default: 0,
    torch.ops.aten.ones.default: 0,
    torch.ops.aten.full.default: 0,
    torch.ops.aten.empty.memory_format: 0,
}


# aten.lstm.input and the like; their states are the second argument.
_RECURRENT = ("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")


def take_tensors(module: GraphModule, names: Sequence[str]) -> None:
    """Let a program take its tensors by position, in place: those inside of dictionaries and lists, too.

    Arguments that were no tensors when it was exported are a part of it, and are taken no more.

    Args:
        module: Of an exported program.
        names: Of its inputs that are tensors.
    """
    codegen = module.graph._codegen
    assert isinstance(codegen, _PyTreeCodeGen)
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    plain = pytree.tree_structure((tuple(range(len(names))), {}))
    if codegen.pytree_info.orig_args == list(names) and len(placeholders) == len(names):
        return
    for node in placeholders:
        if node.name not in names and not node.users:
            module.graph.erase_node(node)
    module.graph.set_codegen(
        _PyTreeCodeGen(_PyTreeInfo(orig_args=list(names), in_spec=plain, out_spec=codegen.pytree_info.out_spec))
    )
    module.recompile()


def opened(module: GraphModule, size: int) -> Iterator[GraphModule]:
    """The program itself, and copies of it in which sizes that are written down follow from the first input.

    Whether they are right is to be tried: what is meant by a number nobody wrote.

    Args:
        module: Of a program that was exported with so many samples.
        size: So many.
    """
    if _states_follow(module):
        yield module
    for place in (0, 1):  # samples lie along the first axis; along the second one in the state of recurrent layers
        made = copy.deepcopy(module)
        if _open(made, size, place) and _states_follow(made):
            made.graph.lint()
            made.recompile()
            yield made


def _states_follow(module: GraphModule) -> bool:
    """Whether what recurrent layers begin with has as many samples as there are: torch itself does not check it here.

    oneDNN's LSTM reads and writes beyond a state of fewer samples than its input has.
    """
    follows: set[Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder" or any(before in follows for before in node.all_input_nodes):
            follows.add(node)
        if str(node.target).startswith(_RECURRENT):
            states = [state for state in pytree.tree_leaves(node.args[1]) if isinstance(state, Node)]
            if not all(state in follows for state in states):
                return False
    return True


def _open(module: GraphModule, size: int, place: int) -> bool:
    """Whether anything was changed."""
    graph, changed = module.graph, False
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    count: Node | None = None
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        reshapes = node.target in _RESHAPES
        at, axis = (1, 0) if reshapes else (_SIZES_AT.get(node.target, len(node.args)), place)
        sizes = node.args[at] if at < len(node.args) else None
        if not isinstance(sizes, list | tuple) or len(sizes) <= axis or sizes[axis] != size:
            continue
        rest = node.meta["val"].shape[1:] if "val" in node.meta else ("?",)
        if reshapes and all(isinstance(other, int) for other in rest):
            new: list[object] = [-1, *rest]
        else:
            if count is None:
                with graph.inserting_after(placeholders[-1]):
                    count = graph.call_method("size", (placeholders[0], 0))
            new = [*sizes[:axis], count, *sizes[axis + 1 :]]
        node.args = (*node.args[:at], new, *node.args[at + 1 :])
        changed = True
    return changed
