"""The file beside the model, ``MODEL.toml``, that may hold all options of ``edge-convert``."""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from converter.plan import KINDS
from edge.contract.errors import ConfigError
from edge.contract.files import replace_file

_MAX_BYTES = 1 << 20
_PATHS = ("output", "calibrate", "evaluate", "example", "sign", "json", "html", "arch")
_SWITCHES = ("torchscript", "allow-unexpected", "allow-missing", "force")
# Names in the file, as on the command line, and those of the command's parameters.
_PARAMETERS = {
    "output": "output",
    "arch": "arch",
    "arch-arg": "arch_arguments",
    "weights": "weights",
    "strip": "strip",
    "allow-unexpected": "allow_unexpected",
    "allow-missing": "allow_missing",
    "input-shape": "input_shape",
    "input": "inputs",
    "state": "states",
    "answer": "answer",
    "constant": "constants",
    "class-names": "class_names",
    "preprocess": "preprocess",
    "trainable": "trainable",
    "loss": "loss",
    "optimizer": "optimizer",
    "momentum": "momentum",
    "weight-decay": "weight_decay",
    "proximal": "proximal",
    "clip-norm": "clip_norm",
    "huber-delta": "huber_delta",
    "target": "target",
    "quantize": "quantize",
    "calibration-method": "calibration_method",
    "calibrate": "calibration",
    "evaluate": "evaluation",
    "example": "example",
    "max-drop": "max_drop",
    "force": "force",
    "format": "form",
    "torchscript": "torchscript",
    "sign": "sign_key",
    "json": "json_report",
    "html": "html_report",
}

_TEMPLATE = """\
# Options of edge-convert for {name}. They hold whenever that file is converted; what stands on the command line wins.
# Take away the # in front of a line to use it. Paths are relative to this file.

# output = "{stem}.edge"               # or a list, with what outputs are: ["{stem}.edge", "embedding=embedding"]

# Weights without a model need the class or function that makes it. Its code is run.
# arch = "net.py:Net"                  # or "package.module:NAME"
# [arch-arg]                           # at the end of this file
# width = 64

# weights = "state_dict"               # where in the file they are, keys joined by dots
# strip = "student."                   # prefix of their names to take off
# allow-unexpected = true              # leave out weights that the model does not have
# allow-missing = true                 # buffers may be missing in the file, parameters never

# Inputs, where the file and the data do not say what they are.
# input-shape = [3, 224, 224]          # of the only input, without the batch axis
# input = ["tokens=batch,128:int64", "state=2,batch,64"]
# state = ["state=stateN"]             # that output is that input of the next sample; found where names are plain
# answer = "scores"                    # the output that is for people
# constant = ["rate=16000"]            # inputs that are always the same

# class-names = ["cat", "dog"]
# preprocess = "image:mean=0.485|0.456|0.406,std=0.229|0.224|0.225,size=480x640"  # of the raw image

# trainable = "last:1"                 # last:K, names with wildcards, none, or auto
# loss = "auto"                        # auto, cross-entropy, binary-cross-entropy, mean-squared-error, huber
# optimizer = "sgd"                    # sgd, momentum, nesterov, adam, adamw: the head's training step
# momentum = 0.9
# weight-decay = 0.0
# proximal = 0.0                       # FedProx's pull toward the head last merged
# clip-norm = 0.0                      # largest norm of the head's gradient, 0 for any
# huber-delta = 1.0
# target = "raspberry-pi-4"            # edge-convert --target list
# quantize = "auto"                    # auto, int8, dynamic, fp16, int4, none
# calibration-method = "percentile"    # minmax, percentile, entropy, mse; best of all when not given
# calibrate = "calibration.npz"        # arrays x and y; or .npy, a folder of images or wav, FILE.py:NAME
# evaluate = "test.npz"
# example = "one.npz"                  # to run the model on, where no other data are given
# max-drop = 0.5                       # points of accuracy that may be lost
# force = false                        # quantize although the data cannot show what that costs

# format = "edge"                      # edge, onnx, torchscript, dir
# torchscript = true                   # only for devices with torch
# sign = "key.pem"
# json = "report.json"
# html = "report.html"
"""


def options_file(model: Path) -> Path:
    """Where the options of a model stand."""
    return model.with_suffix(".toml")


def name_in_file(parameter: str) -> str:
    """What a parameter of the command is called in the file."""
    return next((name for name, own in _PARAMETERS.items() if own == parameter), parameter)


def read_options(model: Path) -> dict[str, Any]:
    """The options beside a model, by the names of the command's parameters, as the command line would give them.

    Raises:
        ConfigError: The file is not TOML, or holds something that is no option.
    """
    if not model.name or (path := options_file(model)) == model or not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise ConfigError(f"{path} is larger than 1 MiB")
        document = tomllib.loads(text.decode())
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError(f"{path} is not TOML: {exc}") from exc
    options: dict[str, Any] = {}
    for key, value in document.items():
        if key == "trust-pickle":
            raise ConfigError(f"{path}: trust-pickle cannot stand in a file; type --trust-pickle if the model is yours")
        if key not in _PARAMETERS:
            near = get_close_matches(key, _PARAMETERS, n=1)
            raise ConfigError(f"{path}: {key} is not an option" + (f"; did you mean {near[0]}?" if near else ""))
        options[_PARAMETERS[key]] = _value(path, key, value)
    return options


def _value(path: Path, key: str, value: Any) -> Any:
    """As the command line would give it."""
    if key == "arch-arg" and isinstance(value, dict):
        return [f"{name}={item!r}" if not isinstance(item, str) else f"{name}={item}" for name, item in value.items()]
    if (
        key in ("input", "constant", "state")
        and isinstance(value, list)
        and all(isinstance(item, str) for item in value)
    ):
        return value
    if key in ("input-shape", "class-names") and isinstance(value, list):
        return ",".join(map(str, value))
    if key == "output":
        values = value if isinstance(value, list) else [value]
        if all(isinstance(item, str) for item in values):
            return [item if item.rpartition("=")[2] in KINDS else str(path.parent / item) for item in values]
    if key in _SWITCHES and isinstance(value, bool):
        return value
    if key == "state" and isinstance(value, str):
        return [value]
    if isinstance(value, bool | list | dict) or key in ("arch-arg", *_SWITCHES):
        raise ConfigError(f"{path}: {key} = {value!r} is not of the right type; edge-convert --init shows examples")
    if key in _PATHS and isinstance(value, str) and value != "-":
        place, colon, name = (
            value.rpartition(":") if key in ("arch", "calibrate", "evaluate", "example") else (value, "", "")
        )
        if not colon:
            return str(path.parent / value)
        return f"{path.parent / place}:{name}" if place.endswith(".py") else value
    return str(value)


def write_options_template(model: Path) -> Path:
    """Write the file with every option explained and none set.

    Raises:
        ConfigError: It is there already, or cannot be written.
    """
    if not model.name or (path := options_file(model)) == model:
        raise ConfigError(f"{model} is no model file; give the model that the options are for")
    if path.exists():
        raise ConfigError(f"{path} is there already; it was not changed")
    try:
        with replace_file(path) as file:
            file.write(_TEMPLATE.format(name=model.name, stem=model.stem).encode())
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written: {exc.strerror}") from exc
    return path
