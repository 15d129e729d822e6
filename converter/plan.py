"""What the user asked for, checked whole before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge.contract.profile import DeviceProfile
from edge.contract.recipe import TrainingRecipe

QUANTIZE = ("auto", "int8", "dynamic", "fp16", "int4", "none")
CALIBRATION_METHODS = ("minmax", "percentile", "entropy", "mse")
FORMATS = ("edge", "onnx", "torchscript", "dir")
# What an output may be, which decides how it is judged: see `converter.verify.kinds`.
CLASSES, YES_OR_NO, QUANTITIES, EMBEDDING = "classes", "yes-or-no", "quantities", "embedding"
SEQUENCES, BOXES, SCORES, ANYTHING = "sequences", "boxes", "scores", "anything"
KINDS = (CLASSES, SEQUENCES, YES_OR_NO, QUANTITIES, EMBEDDING, BOXES, SCORES, ANYTHING)


@dataclass(frozen=True, kw_only=True, slots=True)
class InputOption:
    """One ``--input NAME=AXES[:DTYPE]``.

    Attributes:
        name: The input's name, or "" for the only one (``--input-shape``).
        shape: Sizes and names of free axes, the batch axis (``batch``) included.
        dtype: numpy name, or None for float32.
        sizes: Sizes to try for free axes other than the batch axis: ``time@50`` gives ``{"time": 50}``.
        multiples: What sizes of free axes are multiples of: ``width@320%32`` gives ``{"width": 32}``.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    multiples: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    """One ``--constant NAME=VALUE[:TYPE]``.

    Attributes:
        value: A Python literal.
        dtype: numpy name of the tensor that it is to be, or None for what the model takes.
    """

    value: Any
    dtype: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model, what it takes and gives, and samples for it: what loading it needs to know.

    Attributes:
        source: The model file.
        arch: ``FILE.py:NAME`` or ``package.module:NAME`` for a bare state_dict.
        arch_arguments: Keyword arguments for it.
        weights: Where in the file the weights lie, keys joined by dots; None to find them.
        strip: The prefix of their names to take off; None to find it.
        allow_unexpected: Leave out weights that the model does not have.
        allow_missing: Take what the model makes itself for buffers that the file does not have; never for parameters.
        trust_pickle: Run the code that a pickle names.
        inputs: What the user said about the inputs; empty to take it from the file or to infer it.
        constants: Arguments of the model that are always the same, by name; they become part of the graph.
        class_names: None to take them from the checkpoint or the data, or to number them.
        preprocess: What becomes part of the graph, see `converter.export.preprocessing`, or None.
        calibration: Where samples come from: a path, or ``FILE.py:NAME`` of a callable; or None.
        evaluation: The same, for measuring only.
        example: The same, to run the model on wherever it must run on something; these count first.
        kinds: What outputs are, by name: one of `KINDS` each. Empty to take it from labels and graph.
        states: Inputs and outputs that are one recurrent state, by name; None to find them.
        answer: Name of the output that is for people, or None.
    """

    source: Path
    arch: str | None = None
    arch_arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    strip: str | None = None
    allow_unexpected: bool = False
    allow_missing: bool = False
    trust_pickle: bool = False
    inputs: tuple[InputOption, ...] = ()
    constants: Mapping[str, Constant] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    preprocess: str | None = None
    calibration: str | None = None
    evaluation: str | None = None
    example: str | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)
    states: tuple[tuple[str, str], ...] | None = None
    answer: str | None = None


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is written, and where.

    Attributes:
        output: The file or, with ``dir``, the folder.
        format: One of `FORMATS`.
        sign_key: Private key to sign the bundle with, or None.
    """

    output: Path
    format: str = "edge"
    sign_key: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ConversionPlan(ModelOptions, OutputOptions):
    """Options of one conversion: these, and those of the model and of the output.

    Attributes:
        profile: The target device.
        target_named: Whether the user said what device it is for; else the profile is that of this machine.
        trainable: ``last:K``, names with wildcards separated by commas, ``none``, or ``auto``: ``last:1`` where that
            can be trained, else ``none``.
        loss: One of `edge.contract.recipe.LOSSES`, or ``auto``: cross-entropy for classes, binary cross-entropy for
            several yes-or-no targets, mean squared error for quantities.
        training: How a training step moves the head; its loss counts for nothing where `loss` is ``auto``.
        quantize: One of `QUANTIZE`.
        calibration_method: One of `CALIBRATION_METHODS`, or None to try them.
        max_drop: Accuracy, in points of 100, that quantization may cost.
        force: Quantize although the data cannot show what that costs.
        torchscript: Put the TorchScript into the bundle; None where the target runs torch.
    """

    profile: DeviceProfile
    target_named: bool = True
    trainable: str = "auto"
    loss: str = "auto"
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    quantize: str = "auto"
    calibration_method: str | None = None
    max_drop: float = 0.5
    force: bool = False
    torchscript: bool | None = None

    @property
    def with_torchscript(self) -> bool:
        """Whether the bundle holds TorchScript, which only torch can run."""
        return self.profile.inference.torch if self.torchscript is None else self.torchscript

    @property
    def files_read(self) -> dict[str, Path]:
        """Files that no output may take the place of, by what they are."""
        said = {"--arch": self.arch, "--calibrate": self.calibration, "--evaluate": self.evaluation}
        read = {
            f"read by {option}": Path(value.rpartition(":")[0] if ".py:" in value else value)
            for option, value in said.items()
            if value
        }
        return {"the model itself": self.source, **read} | ({} if self.sign_key is None else {"the key": self.sign_key})
