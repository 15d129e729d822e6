"""Real samples by what the user typed: a file, a folder, or the name of a callable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from converter.data.callables import CallableSamples
from converter.data.fit import Fitter
from converter.data.folder import FolderSamples
from converter.data.npy import NpySamples
from converter.data.npz import NpzSamples
from converter.data.samples import SampleStream
from edge.contract.errors import ConfigError
from edge.contract.tensorspec import TensorSpec

_EXPECTED = "expected an .npz, an .npy, a folder of images or .wav files, or FILE.py:NAME"


def open_samples(value: str, option: str, inputs: Sequence[TensorSpec]) -> SampleStream:
    """Open samples for a model; in all data they lie along axis 0.

    ``FILE.npz``
        ``x`` for a model with one input (its own name does as well), or one array for each input by its name, and
        ``y`` if there are class numbers (integers) or targets (floats).
    ``FILE.npy``
        ``x`` alone.
    ``FOLDER``
        Images or ``.wav`` files; sub-folders are classes.
    ``FILE.py:NAME``, ``package.module:NAME``
        See `converter.data.callables`.

    What can be told from headers is checked at once, values as they are read.

    Args:
        value: What the user typed.
        option: Where, for messages.
        inputs: What the model takes.

    Raises:
        ConfigError: There is no such thing, or it is not what the model takes. `SampleStream.batches` raises it, too.
    """
    what = f"{option}: {value}"
    fitter = Fitter(inputs, what)
    path = Path(value)
    try:
        exists, is_folder = bool(value) and path.exists(), path.is_dir()
    except OSError as exc:
        raise ConfigError(f"{what} cannot be read: {exc.strerror}") from exc
    if not exists:
        if ":" in value:
            return CallableSamples(value, option, fitter)
        raise ConfigError(f"{what} does not exist; {_EXPECTED}")
    if is_folder:
        return FolderSamples(path, fitter)
    if path.suffix.lower() == ".npz":
        return NpzSamples(path, fitter)
    if path.suffix.lower() == ".npy":
        return NpySamples(path, fitter)
    raise ConfigError(f"{what} is a file of another kind; {_EXPECTED}")
