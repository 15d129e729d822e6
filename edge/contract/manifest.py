"""The manifest of a bundle: what the model takes and gives, how its head learns, and the digest of every member.

Unknown fields are kept, so that an older reader does not lose what a newer writer said. Everything else is checked
here, once; the rest of the house trusts a `Manifest`.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge.contract import strictjson
from edge.contract.digest import is_digest
from edge.contract.errors import BundleError
from edge.contract.projection import Projection
from edge.contract.recipe import TrainingRecipe
from edge.contract.tensorspec import BATCH, MAX_AXES, AxisRange, TensorSpec

FORMAT = "edgeloop-bundle"
SCHEMA_VERSION = 3
MAX_MANIFEST_BYTES = 1 << 20

MODEL = "model.onnx"
HEAD_INFER = "head.infer.onnx"
HEAD_TRAIN = "head.train.onnx"
HEAD_TORCHSCRIPT = "head.torchscript.pt"
HEAD_PARAMETERS = "head.safetensors"
GOLDEN = "golden.safetensors"
GOLDEN_INPUT, GOLDEN_OUTPUT = "input.", "output."  # prefixes of the names in it
REPORT = "report.json"
STATISTICS = "statistics.safetensors"
# What the names in it begin with that are of the features, where the last layer takes something else.
OF_FEATURES = "features."
TORCHSCRIPT = "model.torchscript.pt"

# A role is also a file name when a bundle is unpacked: no path, nothing hidden.
_ROLE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

REQUIRED_MEMBERS = (MODEL, GOLDEN, REPORT)
HEAD_MEMBERS = (HEAD_INFER, HEAD_TRAIN, HEAD_PARAMETERS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A member's SHA-256 and size."""

    digest: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterSpec:
    """A trainable parameter: its name in the source model and its whole shape. Always float32."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearLayer:
    """A linear layer of a head: ``output = input @ weight.T + bias``.

    Attributes:
        weight: Name of the parameter ``(n_outputs, n_inputs)``.
        bias: Name of the parameter ``(n_outputs,)``, or None.
        input: Name of what it takes, ``(batch, n_inputs)``.
    """

    weight: str
    bias: str | None
    input: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningTrial:
    """What the converter found when it let the head learn as a device does, on samples of its own.

    Attributes:
        rate: Of a step on a new sample and replayed ones.
        whitened: The share of the usual rate on whitened features (`edge.learning.sgd.ETA`, `LAYERED_ETA`) that the
            head bears; None where they are not to be whitened.
        labels: How many were learned, one by one, from the first on.
        batch_size: Samples in a step once there was something to replay.
        held_out: Samples that were not learned, on which the losses are.
        own_answers: Whether the labels were what the shipped head answers, because the data had none.
        loss_before: Mean loss of the shipped head.
        loss_after: The same after those labels.
        turned_before: Mean loss of the shipped head when all labels mean something else.
        turned_after: The same after as many of those labels.
    """

    rate: float
    whitened: float | None
    labels: int
    batch_size: int
    held_out: int
    own_answers: bool
    loss_before: float
    loss_after: float
    turned_before: float
    turned_after: float


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadSpec:
    """The trainable head: the part of the model between its features and one of its outputs.

    Attributes:
        features: What the frozen part gives to the head, ``(batch, ...)`` float32.
        output: Name of the model's output that the head computes: logits, one for each class.
        parameters: What a training step changes, in the order of the training graph.
        linear: The last layer, where that is linear: closed-form learners can solve it, and a class can be added to it.
            Its input are the features where it is the whole head, and otherwise the second output of `HEAD_INFER`.
        entry: The layer that alone takes the features, where that is linear: SGD can be preconditioned there.
        projection: Length to which `edge.contract.projection` brings the features of a linear head before their
            statistics are taken; None for as they are.
        learning_rate: Of a step on one sample; `edge.learning.sgd.BATCH_RATE` times as much of one with replay.
        trainable: How the head was chosen, e.g. ``last:1``.
        training: What a training step minimizes, and how.
        trial: What `learning_rate` rests on; None in bundles of edgeloop before 0.3.
    """

    features: TensorSpec
    output: str
    parameters: tuple[ParameterSpec, ...]
    linear: LinearLayer | None
    learning_rate: float
    trainable: str
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    entry: LinearLayer | None = None
    projection: int | None = None
    trial: LearningTrial | None = None

    @property
    def is_linear(self) -> bool:
        """Whether the whole head is one linear layer."""
        return self.linear is not None and self.linear.input == self.features.name

    @property
    def n_inputs(self) -> int:
        """Length of what the last layer takes; only where that is linear."""
        assert self.linear is not None
        weight = self.linear.weight
        return next(spec.shape[1] for spec in self.parameters if spec.name == weight)

    @property
    def n_statistics(self) -> int:
        """Length of what statistics are taken of that devices learn and send; only where the last layer is linear."""
        return self.projection or self.n_inputs

    def project(self) -> Projection | None:
        """The projection, made."""
        return None if self.projection is None else Projection(self.n_inputs, self.projection)


@dataclass(frozen=True, kw_only=True, slots=True)
class StatePair:
    """A recurrent state: what a sample gives as one output, the next sample of the same stream takes as one input.

    Both have the same type and shape, fixed but for the batch axis. The first sample of a stream takes zeros.

    Attributes:
        input: Name of the input.
        output: Name of the output.
    """

    input: str
    output: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """See the module.

    Attributes:
        name: Of the model, for people.
        inputs: What the model takes, in order.
        outputs: What it gives, in order.
        class_names: One for each logit of the output that classifies; empty when none does.
        preprocessing: How raw data become the inputs: a part of the graph, or what the application has to do.
        quantization: How the frozen part was quantized, for people.
        head: What stays trainable, None for nothing.
        golden_min_sqnr_db: How near a device's own outputs must come to the golden ones.
        source_digest: SHA-256 of the file that was converted.
        created_by: Program and version.
        members: Digest and size by role.
        carried: Why the model is in the bundle as its file has it, neither quantized nor with a head; "" where it was
            worked on.
        fixed_batch: So many samples the graph takes at once, along the first axis of every input and output unless
            `batch_axes` say otherwise; None where an axis named ``batch`` is free, or the model has no batch axis.
        batch_axes: Where `fixed_batch` is not None, by input and output the axis along which its samples lie if that is
            not the first; None for an input that is the same for all samples, and for an output without such an axis.
        states: What goes from each sample to the next of its stream; empty when samples do not depend on each other.
        constants: Inputs of the source model that became constants of the graph, by name, for people.
        answer: Name of the output that is for people; None where the converter did not say.
        axes: Sizes that free axes may have, by the name of the axis; one that is not here may have any.
        extra: Fields that this reader does not know.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    class_names: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    quantization: Mapping[str, Any]
    head: HeadSpec | None
    golden_min_sqnr_db: float
    source_digest: str
    created_by: str
    members: Mapping[str, Member]
    carried: str = ""
    fixed_batch: int | None = None
    batch_axes: Mapping[str, int | None] = field(default_factory=dict)
    states: tuple[StatePair, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    answer: str | None = None
    axes: Mapping[str, AxisRange] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sample_inputs(self) -> tuple[TensorSpec, ...]:
        """What each sample brings with it: the inputs that are no states."""
        states = {pair.input for pair in self.states}
        return tuple(spec for spec in self.inputs if spec.name not in states)

    @property
    def backbone_digest(self) -> str:
        """What learned state is bound to: statistics of the features of another model are garbage."""
        return self.members[MODEL].digest

    @property
    def batch(self) -> str:
        """What the model says of samples that are put together, for people."""
        if any(spec.batch_axis is not None for spec in self.inputs):
            return "free"
        return "no batch axis" if self.fixed_batch is None else f"fixed at {self.fixed_batch}"

    def together(self, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """Inputs or outputs of many samples: of a fixed batch, those of several runs put together."""
        if self.fixed_batch is None:
            return tuple(specs)
        found = []
        for spec in specs:
            axis = self.batch_axes.get(spec.name, 0)
            shape = tuple(BATCH if i == axis else size for i, size in enumerate(spec.shape))
            alone = axis is None and self.fixed_batch == 1 and spec in self.outputs
            found.append(dataclasses.replace(spec, shape=(BATCH, *shape) if alone else shape))
        return tuple(found)

    def output(self, name: str) -> TensorSpec:
        """The output of this name."""
        return next(spec for spec in self.outputs if spec.name == name)

    def encode(self) -> bytes:
        """Canonical JSON: the same manifest gives the same bytes."""
        return strictjson.dumps(
            {
                **self.extra,
                "format": FORMAT,
                "schema_version": SCHEMA_VERSION,
                "name": self.name,
                "inputs": [spec.to_json() for spec in self.inputs],
                "outputs": [spec.to_json() for spec in self.outputs],
                **({"axes": {name: sizes.to_json() for name, sizes in self.axes.items()}} if self.axes else {}),
                "class_names": list(self.class_names),
                "preprocessing": dict(self.preprocessing),
                "quantization": dict(self.quantization),
                "head": None if self.head is None else _encode_head(self.head),
                "golden_min_sqnr_db": self.golden_min_sqnr_db,
                "source_digest": self.source_digest,
                "created_by": self.created_by,
                "members": {
                    role: {"digest": member.digest, "size_bytes": member.size_bytes}
                    for role, member in self.members.items()
                },
                **({"carried": self.carried} if self.carried else {}),
                **({} if self.fixed_batch is None else {"fixed_batch": self.fixed_batch}),
                **({"batch_axes": dict(self.batch_axes)} if self.batch_axes else {}),
                # Only where there are some: a manifest without them is what it was before they were known.
                **({"states": [dataclasses.asdict(pair) for pair in self.states]} if self.states else {}),
                **({"constants": dict(self.constants)} if self.constants else {}),
                **({} if self.answer is None else {"answer": self.answer}),
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Read and check a manifest.

        Raises:
            BundleError: Not a manifest, of a newer schema, or a field is missing or of another type.
        """
        try:
            value = strictjson.loads(data, max_bytes=MAX_MANIFEST_BYTES)
            if value.pop("format", None) != FORMAT:
                raise ValueError(f"its format is not {FORMAT!r}")
            version = value.pop("schema_version", None)
            if type(version) is not int or version != SCHEMA_VERSION:
                raise ValueError(
                    f"schema version {version!r}, this program reads {SCHEMA_VERSION}: convert the model again, or "
                    f"update edgeloop"
                )
            manifest = _decode(value)
        except ValueError as exc:
            raise BundleError(f"the manifest cannot be used: {exc}") from exc
        return manifest


def _encode_head(head: HeadSpec) -> dict[str, Any]:
    return {
        "features": head.features.to_json(),
        "output": head.output,
        "parameters": [{"name": p.name, "shape": list(p.shape)} for p in head.parameters],
        "linear": None if head.linear is None else dataclasses.asdict(head.linear),
        "entry": None if head.entry is None else dataclasses.asdict(head.entry),
        "projection": head.projection,
        "learning_rate": head.learning_rate,
        "trainable": head.trainable,
        "training": head.training.to_json(),
        "trial": None if head.trial is None else dataclasses.asdict(head.trial),
    }


def _take(value: dict[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    """Take a field of a given type out of an object."""
    if key not in value:
        raise ValueError(f"{key} is missing")
    found = value.pop(key)
    if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
        raise ValueError(f"{key} has the type {type(found).__name__}")
    return found


def _strings(value: dict[str, Any], key: str) -> tuple[str, ...]:
    found = _take(value, key, list)
    if not all(isinstance(item, str) for item in found):
        raise ValueError(f"{key} must be a list of texts")
    return tuple(found)


def check_class_names(names: Sequence[str]) -> None:
    """Raise ValueError where two classes have one name, but for blanks, or one has none: an answer must mean one class.

    >>> check_class_names(["ok", "a scratch", "a  scratch "])
    Traceback (most recent call last):
    ValueError: class names: 'a scratch' and 'a  scratch ' (1 and 2, from 0) are one name; each class needs its own
    """
    first: dict[str, int] = {}
    for number, name in enumerate(names):
        key = " ".join(unicodedata.normalize("NFC", name).split())
        if not key:
            raise ValueError(f"class names: that of class {number} (from 0) is empty")
        if (other := first.setdefault(key, number)) != number:
            raise ValueError(
                f"class names: {names[other]!r} and {name!r} ({other} and {number}, from 0) are one name; each class "
                f"needs its own"
            )


def _class_names(value: dict[str, Any]) -> tuple[str, ...]:
    names = _strings(value, "class_names")
    check_class_names(names)
    return names


def _decode_head(value: dict[str, Any]) -> HeadSpec:
    parameters = []
    for item in _take(value, "parameters", list):
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise ValueError("head.parameters: each needs a name")
        shape = item.get("shape")
        if not isinstance(shape, list) or not all(type(n) is int and 0 < n < 2**31 for n in shape):
            raise ValueError(f"head.parameters: {item['name']} needs a shape of positive integers")
        parameters.append(ParameterSpec(name=item["name"], shape=tuple(shape)))
    names = [parameter.name for parameter in parameters]
    if not names or len(set(names)) != len(names):
        raise ValueError("head.parameters: there must be one at least, each with a name of its own")
    rate = float(_take(value, "learning_rate", (int, float)))
    if not 0 < rate < 1e6:
        raise ValueError(f"head.learning_rate {rate} is not a positive number")
    return HeadSpec(
        features=TensorSpec.from_json(value.pop("features", None)),
        output=_take(value, "output", str),
        parameters=tuple(parameters),
        linear=_decode_layer(value, "linear", names),
        entry=_decode_layer(value, "entry", names),
        projection=_take(value, "projection", (int, type(None))) if "projection" in value else None,
        learning_rate=rate,
        trainable=_take(value, "trainable", str),
        training=TrainingRecipe.from_json(_take(value, "training", dict)),
        trial=_decode_trial(value.pop("trial", None)),
    )


def _decode_trial(value: object) -> LearningTrial | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError("head.trial must be an object")
    kinds: dict[str, type | tuple[type, ...]] = {"int": int, "bool": bool, "float": (int, float)}
    kinds["float | None"] = (int, float, type(None))
    found = {f.name: _take(value, f.name, kinds[str(f.type)]) for f in dataclasses.fields(LearningTrial)}
    trial = LearningTrial(**found)
    if not 0 < trial.rate < 1e6 or not (trial.whitened is None or 0 < trial.whitened <= 1):
        raise ValueError("head.trial has a rate or a share that is out of range")
    return trial


def _decode_layer(value: dict[str, Any], key: str, names: list[str]) -> LinearLayer | None:
    found = value.pop(key, None)
    if found is None:
        return None
    # Lists, not sets: what stands here may be of any type.
    if not isinstance(found, dict) or found.get("weight") not in names or found.get("bias") not in [*names, None]:
        raise ValueError(f"head.{key} must name parameters of the head")
    if not isinstance(found.get("input"), str):
        raise ValueError(f"head.{key} must name its input")
    return LinearLayer(weight=found["weight"], bias=found.get("bias"), input=found["input"])


def _specs(value: dict[str, Any], key: str) -> tuple[TensorSpec, ...]:
    specs = tuple(TensorSpec.from_json(item) for item in _take(value, key, list))
    if key == "outputs" and not specs:
        raise ValueError("outputs: there must be one at least")
    if len({spec.name for spec in specs}) != len(specs):
        raise ValueError(f"{key}: each must have a name of its own")
    return specs


def _decode_members(value: dict[str, Any]) -> dict[str, Member]:
    members = {}
    for role, item in value.items():
        if not _ROLE.fullmatch(role):
            raise ValueError(f"members: {role!r} is not a name that a member may have")
        if not isinstance(item, dict) or not is_digest(item.get("digest")) or type(item.get("size_bytes")) is not int:
            raise ValueError(f"members: {role!r} needs a digest and size_bytes")
        members[role] = Member(digest=item["digest"], size_bytes=item["size_bytes"])
    missing = [role for role in REQUIRED_MEMBERS if role not in members]
    if missing:
        raise ValueError(f"members: {', '.join(missing)} missing")
    return members


def _decode_states(value: dict[str, Any]) -> tuple[StatePair, ...]:
    pairs = []
    for item in _take(value, "states", list) if "states" in value else []:
        if not isinstance(item, dict) or {type(item.get(key)) for key in ("input", "output")} != {str}:
            raise ValueError("states: each needs the names of an input and an output")
        pairs.append(StatePair(input=item["input"], output=item["output"]))
    return tuple(pairs)


def check_states(
    states: Sequence[StatePair], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], answer: str | None
) -> None:
    """Raise ValueError unless every state can go from one sample to the next, and the answer is none of them."""
    given, made = ({spec.name: spec for spec in specs} for specs in (inputs, outputs))
    for names, known, kind in (
        ([pair.input for pair in states], given, "input"),
        ([pair.output for pair in states], made, "output"),
    ):
        for name in names:
            if name not in known:
                raise ValueError(f"states: {name} is no {kind}; expected one of {', '.join(known) or 'none'}")
            if names.count(name) > 1:
                raise ValueError(f"states: the {kind} {name} stands in two pairs")
    for pair in states:
        one, other = given[pair.input], made[pair.output]
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            raise ValueError(
                f"states: {pair.input} is {one.describe()} {one.dtype}, {pair.output} is {other.describe()} "
                f"{other.dtype}; a state goes from sample to sample as it is"
            )
        if any(isinstance(axis, str) and axis != BATCH for axis in one.shape):
            raise ValueError(f"states: {pair.input} is {one.describe()}; only its batch axis may be free")
    if states and len(states) == len(inputs):
        raise ValueError("states: every input is a state, so no sample could come in")
    if answer is not None and answer not in made:
        raise ValueError(f"answer {answer!r} is not one of the outputs {', '.join(made)}")
    if answer in [pair.output for pair in states]:
        raise ValueError(f"answer {answer!r} is a state")


def _check_head(head: HeadSpec, manifest: Manifest) -> None:
    """Raise ValueError unless the head gives what its loss needs, and a linear last layer has the right shapes."""
    if head.output not in [spec.name for spec in manifest.outputs]:
        raise ValueError(f"head.output {head.output!r} is not one of the outputs")
    output, n_classes = manifest.output(head.output), len(manifest.class_names)
    if output.dtype != "float32" or len(output.sample_shape) != 1:
        raise ValueError(f"the output {head.output} must be float32 (batch, n_outputs)")
    n_outputs = output.sample_shape[0]
    if not head.training.is_regression and n_outputs != n_classes:
        raise ValueError(f"the output {head.output} must be {n_classes} float32 logits, one for each of class_names")
    if head.features.dtype != "float32" or not head.features.sample_shape:
        raise ValueError("head.features must be float32 and have an axis behind the batch axis")
    missing = [role for role in HEAD_MEMBERS if role not in manifest.members]
    if missing:
        raise ValueError(f"members: {', '.join(missing)} missing")
    shapes = {parameter.name: parameter.shape for parameter in head.parameters}
    if head.entry is not None:
        weight = shapes[head.entry.weight]
        if len(weight) != 2 or weight[1:] != head.features.sample_shape or head.entry.input != head.features.name:
            raise ValueError("head.entry: the weight does not fit the features")
        if head.entry.bias is not None and shapes[head.entry.bias] != weight[:1]:
            raise ValueError("head.entry: the bias does not fit the weight")
    if head.projection is not None and not (head.is_linear and 0 < head.projection < head.n_inputs):
        raise ValueError("head.projection must be shorter than the features of a linear head")
    if head.linear is not None:
        weight = shapes[head.linear.weight]
        if len(weight) != 2 or weight[0] != n_outputs:
            raise ValueError("head.linear: the weight must be of the shape (outputs, inputs)")
        if head.is_linear and weight[1:] != head.features.sample_shape:
            raise ValueError("head.linear: the weight does not fit the features")
        if head.linear.bias is not None and shapes[head.linear.bias] != (n_outputs,):
            raise ValueError("head.linear: the bias must be of the shape (outputs,)")


def _fixed_batch(value: dict[str, Any]) -> int | None:
    found = _take(value, "fixed_batch", (int, type(None))) if "fixed_batch" in value else None
    if found is not None and found < 1:
        raise ValueError(f"fixed_batch {found} is not a positive number")
    return found


def _batch_axes(value: dict[str, Any]) -> dict[str, int | None]:
    found = _take(value, "batch_axes", dict) if "batch_axes" in value else {}
    for name, axis in found.items():
        if axis is not None and (type(axis) is not int or not 0 <= axis < MAX_AXES):
            raise ValueError(f"batch_axes: {axis!r} is no axis of {name}")
    return dict(found)


def _decode(value: dict[str, Any]) -> Manifest:
    head = _take(value, "head", (dict, type(None)))
    manifest = Manifest(
        name=_take(value, "name", str),
        inputs=_specs(value, "inputs"),
        outputs=_specs(value, "outputs"),
        class_names=_class_names(value),
        preprocessing=_take(value, "preprocessing", dict),
        quantization=_take(value, "quantization", dict),
        head=None if head is None else _decode_head(head),
        golden_min_sqnr_db=float(_take(value, "golden_min_sqnr_db", (int, float))),
        source_digest=_take(value, "source_digest", str),
        created_by=_take(value, "created_by", str),
        members=_decode_members(_take(value, "members", dict)),
        carried=_take(value, "carried", str) if "carried" in value else "",
        fixed_batch=_fixed_batch(value),
        batch_axes=_batch_axes(value),
        states=_decode_states(value),
        constants=_take(value, "constants", dict) if "constants" in value else {},
        answer=_take(value, "answer", str) if "answer" in value else None,
        axes={name: AxisRange.from_json(item) for name, item in value.pop("axes", {}).items()},
        extra=value,
    )
    check_states(manifest.states, manifest.inputs, manifest.outputs, manifest.answer)
    if manifest.head is not None:
        _check_head(manifest.head, manifest)
    return manifest
