"""Which outputs of a model are its inputs for the next sample: recurrent state, and which output is for people."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from edge.contract.errors import ConfigError
from edge.contract.manifest import StatePair, check_states
from edge.contract.tensorspec import BATCH, TensorSpec

# What people call a state. Other names tell nothing: a denoiser has audio_in and audio_out of one shape.
_STATE = {"h", "c", "hc", "hx", "cx", "hidden", "state", "states", "cell", "cells", "rnn", "gru", "lstm"}
# And these, where an output has the same name: on their own they may be what a decoder attends to.
_KEPT = _STATE | {"memory", "mem", "cache", "caches", "past", "context", "carry"}
# And this, which may be empty.
_CACHE = {"cache", "caches", "past"}
# Words that say which of the two it is.
_BEFORE = {"in", "input", "prev", "previous", "past", "init", "initial", "old", "last"}
_AFTER = {"out", "output", "new", "next", "present", "final", "updated"}
# Names that the converter gave because the model has none.
_UNNAMED = re.compile(r"output(?:_\d+)?")


def find_states(
    asked: Sequence[tuple[str, str]] | None,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    answer: str | None,
) -> tuple[StatePair, ...]:
    """The pairs that were asked for, or those that are plain from name and shape.

    Args:
        asked: Names of input and output, or None to look for them.
        inputs: What the model takes.
        outputs: What it gives.
        answer: The output that is for people, where that was said: it is no state.

    Raises:
        ConfigError: What was asked for cannot be.
    """
    if asked is None:
        pairs = _found(inputs, [spec for spec in outputs if spec.name != answer])
    else:
        pairs = tuple(StatePair(input=one, output=other) for one, other in asked)
    try:
        check_states(pairs, inputs, outputs, answer)
    except ValueError as exc:
        option = "--answer" if str(exc).startswith("answer") else "--state"
        raise ConfigError(f"{option}: {exc}") from exc
    return pairs


def may_be_states(asked: Sequence[tuple[str, str]] | None, inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Inputs that may turn out to be states when the outputs are known, so that they can be zeros until then."""
    named = None if asked is None else {name for name, _ in asked}
    return tuple(
        spec
        for spec in inputs
        if (_is_candidate(spec) if named is None else spec.name in named)
        and all(isinstance(axis, int) or axis == BATCH for axis in spec.shape)
    )


def axes_of_caches(inputs: Sequence[TensorSpec]) -> frozenset[str]:
    """Free axes along which lies what came before, by the names of inputs: at the first step that is nothing."""
    caches = [spec for spec in inputs if spec.dtype.startswith("float") and _CACHE.intersection(_words(spec.name))]
    free = {axis for spec in caches for axis in spec.shape if isinstance(axis, str) and axis != BATCH}
    return frozenset(free.difference(*(spec.shape for spec in inputs if spec not in caches)))


def answer_of(
    asked: str | None, head: str | None, classes: str | None, outputs: Sequence[TensorSpec], states: Sequence[StatePair]
) -> str:
    """The output for people: asked for, learned, the one with classes, or else the first that is no state."""
    passed_on = {pair.output for pair in states}
    first = next((spec.name for spec in outputs if spec.name not in passed_on), outputs[0].name)
    return asked or next((name for name in (head, classes) if name and name not in passed_on), first)


def _found(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> tuple[StatePair, ...]:
    """States by their names; where outputs have none, by their shapes. What is not plain is none."""
    candidates = [spec for spec in inputs if _is_candidate(spec)]
    pairs = []
    for spec in candidates:
        stems = _stems(spec.name, _BEFORE, "0")
        named = [o for o in outputs if _alike(spec, o) and stems & _stems(o.name, _AFTER, "n")]
        if len(named) == 1:
            pairs.append(StatePair(input=spec.name, output=named[0].name))
    taken = {pair.input for pair in pairs} | {pair.output for pair in pairs}
    groups: dict[tuple[str, tuple[int | str, ...]], list[str]] = defaultdict(list)
    for spec in candidates:
        if spec.name not in taken and _STATE.intersection(_words(spec.name)):
            groups[spec.dtype, spec.shape].append(spec.name)
    for (dtype, shape), names in groups.items():
        same = [o.name for o in outputs if (o.dtype, o.shape) == (dtype, shape) and o.name not in taken]
        # As many of each, and no other input of that shape that one of the outputs could be made of.
        rivals = [s.name for s in inputs if (s.dtype, s.shape) == (dtype, shape) and s.name not in names]
        if len(same) == len(names) and not rivals and all(map(_UNNAMED.fullmatch, same)):
            pairs += [StatePair(input=one, output=other) for one, other in zip(names, same, strict=True)]
    order = [spec.name for spec in inputs]
    made = tuple(sorted(pairs, key=lambda pair: order.index(pair.input)))
    try:
        check_states(made, inputs, outputs, None)
    except ValueError:
        return ()
    return made if len(made) < len(outputs) else ()


def _is_candidate(spec: TensorSpec) -> bool:
    return len(spec.shape) > 1 and spec.dtype.startswith("float") and bool(_KEPT.intersection(_words(spec.name)))


def _alike(one: TensorSpec, other: TensorSpec) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape)


def _words(name: str) -> list[str]:
    """``stateN``, ``state.out`` and ``h0`` as words."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Za-z])(?=\d)|^([hc])(?=n$)", r"\1 ", name)
    return re.findall(r"[a-z0-9]+", split.lower())


def _stems(name: str, around: set[str], ending: str) -> set[tuple[str, ...]]:
    """What the state may be called of which this is one: a name without the words around it, and without its ending."""
    words = tuple(word for word in _words(name) if word not in around)
    return {words} | ({words[:-1]} if words[-1:] == (ending,) else set())
