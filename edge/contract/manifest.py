"""The manifest of a bundle: what the model takes and gives, how its head learns, and the digest of every member.

Unknown fields are kept, so that an older reader does not lose what a newer writer said. Everything else is checked
here, once; the rest of the house trusts a `Manifest`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from edge.contract import documents, strictjson
from edge.contract.digest import Digest
from edge.contract.documents import STRICT, Rule, at_least
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
# Squared distances of known samples from all classes, see `converter.head.known`.
DISTANCES = "distances"
TORCHSCRIPT = "model.torchscript.pt"

# A role is also a file name when a bundle is unpacked: no path, nothing hidden.
_ROLE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

REQUIRED_MEMBERS = (MODEL, GOLDEN, REPORT)
HEAD_MEMBERS = (HEAD_INFER, HEAD_TRAIN, HEAD_PARAMETERS)

# What may stand behind a head's logits.
SOFTMAX, SIGMOID = "softmax", "sigmoid"
ACTIVATIONS = ("", SOFTMAX, SIGMOID)

_Size = Annotated[int, Rule(lambda size: 0 < size < 2**31, "a positive number")]
_Rate = Annotated[float, Rule(lambda rate: 0 < rate < 1e6, "a positive number")]
_Share = Annotated[float, Rule(lambda share: 0 < share <= 1, "a share")]
_Activation = Annotated[str, Rule(lambda name: name in ACTIVATIONS, "softmax, sigmoid or nothing")]
_Position = Annotated[int, Rule(lambda axis: 0 <= axis < MAX_AXES, "an axis")]
_STATED = Rule(lambda value: value is not None, "there or left out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A member's SHA-256 and size."""

    digest: Digest
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterSpec:
    """A trainable parameter: its name in the source model and its whole shape. Always float32."""

    name: str
    shape: tuple[_Size, ...]


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
        whitened: The share of the usual rate on whitened features (`edge.learning.sgd.ETA`, `LAYERED_ETA`): 1 for a
            linear head, what the layered learner gets for others; None where they are not to be whitened.
        labels: How many were learned, one by one, from the first on.
        batch_size: Samples in a step once there was something to replay.
        held_out: Samples that were not learned, on which the losses are.
        own_answers: Whether the labels were what the shipped head answers, because the data had none.
        loss_before: Mean loss of the shipped head.
        loss_after: The same after those labels.
        turned_before: Mean loss of the shipped head when all labels mean something else.
        turned_after: The same after as many of those labels.
    """

    rate: _Rate
    whitened: _Share | None
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
        output: Name of the model's output that the head computes: one value for each class.
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
        activation: What the model does to the head's logits before it gives them as its output: `SOFTMAX`, `SIGMOID`,
            or "" for nothing. `HEAD_INFER` and `HEAD_TRAIN` are without it.
    """

    features: TensorSpec
    output: str
    parameters: tuple[ParameterSpec, ...]
    linear: LinearLayer | None
    learning_rate: _Rate
    trainable: str
    training: Annotated[TrainingRecipe, STRICT]
    entry: LinearLayer | None = None
    projection: int | None = None
    trial: LearningTrial | None = None
    activation: _Activation = ""

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
class OutputKind:
    """What an output is, so that a device can say what it means.

    Attributes:
        kind: ``classes``, ``sequences``, ``yes-or-no``, ``quantities``, ``embedding``, ``boxes``, ``scores`` or
            ``anything``; one that a reader does not know is anything.
        axis: Along which its classes or columns lie, in the output of many samples; None where there is just one.
        threshold: Above it an answer is yes.
        probabilities: Whether its values are probabilities, and not logits.
    """

    kind: Annotated[str, Rule(bool, "a name")]
    axis: _Position | None = None
    threshold: float = 0.0
    probabilities: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """See the module.

    Attributes:
        name: Of the model, for people.
        inputs: What the model takes, in order.
        outputs: What it gives, in order.
        class_names: One for each logit of the output that classifies; empty when none does.
        preprocessing: How raw data become the inputs: a part of the graph, or what the application has to do.
        quantization: How the frozen part was quantized, for people; of it only `one_by_one` makes use.
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
        kinds: What outputs are, by name; one that is not here is anything.
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
    fixed_batch: Annotated[int, at_least(1)] | None = None
    batch_axes: Mapping[str, _Position | None] = field(default_factory=dict)
    states: tuple[StatePair, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    answer: Annotated[str | None, _STATED] = None
    axes: Mapping[str, AxisRange] = field(default_factory=dict)
    kinds: Mapping[str, OutputKind] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sample_inputs(self) -> tuple[TensorSpec, ...]:
        """What each sample brings with it: the inputs that are no states."""
        states = {pair.input for pair in self.states}
        return tuple(spec for spec in self.inputs if spec.name not in states)

    @property
    def one_by_one(self) -> bool:
        """Whether each sample is given alone: a stream has an order, and dynamic int8 one scale for all of a run."""
        return bool(self.states) or self.quantization.get("scheme") == "dynamic"

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
            found.append(replace(spec, shape=(BATCH, *shape) if alone else shape))
        return tuple(found)

    def output(self, name: str) -> TensorSpec:
        """The output of this name."""
        return next(spec for spec in self.outputs if spec.name == name)

    def encode(self) -> bytes:
        """Canonical JSON: the same manifest gives the same bytes."""
        # Without what has its default: a manifest without states is what it was before those were known.
        return strictjson.dumps(
            {**documents.encode(self, defaults=False), "format": FORMAT, "schema_version": SCHEMA_VERSION}
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
            manifest = documents.decode(cls, value)
            _check(manifest)
        except ValueError as exc:
            raise BundleError(f"the manifest cannot be used: {exc}") from exc
        return manifest


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


def _check(manifest: Manifest) -> None:
    """Raise ValueError unless what the fields say goes together."""
    check_class_names(manifest.class_names)
    if not manifest.outputs:
        raise ValueError("outputs: there must be one at least")
    for key, specs in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        if len({spec.name for spec in specs}) != len(specs):
            raise ValueError(f"{key}: each must have a name of its own")
    for role in manifest.members:
        if not _ROLE.fullmatch(role):
            raise ValueError(f"members: {role!r} is not a name that a member may have")
    needed = (*REQUIRED_MEMBERS, *(HEAD_MEMBERS if manifest.head is not None else ()))
    if missing := [role for role in needed if role not in manifest.members]:
        raise ValueError(f"members: {', '.join(missing)} missing")
    check_states(manifest.states, manifest.inputs, manifest.outputs, manifest.answer)
    ranks = {spec.name: len(spec.shape) for spec in manifest.together(manifest.outputs)}
    for name, is_a in manifest.kinds.items():
        if name not in ranks:
            raise ValueError(f"kinds: {name!r:.40} is not one of the outputs")
        if is_a.axis is not None and is_a.axis >= ranks[name]:
            raise ValueError(f"kinds.{name}.axis: the output has {ranks[name]} axes, got {is_a.axis}")
    if manifest.head is not None:
        _check_head(manifest.head, manifest)


def _check_head(head: HeadSpec, manifest: Manifest) -> None:
    """Raise ValueError unless the head gives what its loss needs, and its linear layers have the right shapes."""
    shapes = {parameter.name: parameter.shape for parameter in head.parameters}
    if not shapes or len(shapes) != len(head.parameters):
        raise ValueError("head.parameters: there must be one at least, each with a name of its own")
    for key, layer in (("linear", head.linear), ("entry", head.entry)):
        if layer is not None and not {layer.weight, layer.bias or layer.weight} <= shapes.keys():
            raise ValueError(f"head.{key} must name parameters of the head")
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
