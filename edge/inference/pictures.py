"""One sample out of one image file: the same for calibration on a workstation and for a prediction on a device."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import ConfigError
from edge.contract.foreign import foreign
from edge.contract.tensorspec import BATCH, TensorSpec

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
_FORMATS = ("PNG", "JPEG", "BMP")
_MODES = {1: "L", 3: "RGB"}


class PictureReader:
    """Reads images for one input: upright, as RGB or grey, resized where the model's height and width are fixed.

    A uint8 input gets the pixels, (height, width, channels); a float32 input (channels, height, width), divided by 255.
    Whichever of these axes has a size of 1 or 3 is taken for the channels if the usual one cannot be.

    Args:
        spec: The input.
        what: Where the images are, in front of messages.

    Raises:
        ConfigError: Images cannot be given for this input, or Pillow is not installed.
    """

    def __init__(self, spec: TensorSpec, what: str) -> None:
        try:
            import PIL  # noqa: F401  # whether it is there; a device does not need it otherwise
        except ImportError as exc:
            raise ConfigError(f"{what}: images need Pillow: pip install pillow; or give an .npy or .npz") from exc
        self._what = what
        axes = tuple(axis for axis in spec.shape if axis != BATCH)
        if len(axes) != 3 or spec.dtype not in ("uint8", "float32"):
            raise ConfigError(
                f"{what} has images, but the model takes {spec.dtype} {spec.describe()}; images can be given for "
                f"float32 (batch, channels, height, width) or uint8 (batch, height, width, channels): give an .npz"
            )
        self._dtype = np.dtype(spec.dtype)
        usual, other = (2, 0) if spec.dtype == "uint8" else (0, 2)
        self._axis = other if axes[usual] not in _MODES and axes[other] in _MODES else usual
        channels = axes[self._axis]
        if isinstance(channels, int) and channels not in _MODES:
            raise ConfigError(
                f"{what} has images, but the model takes {channels} channels, {spec.describe()}; images give 3 (RGB) "
                f"or 1 (grey): give an .npz instead"
            )
        self._mode = _MODES[channels] if isinstance(channels, int) else "RGB"
        height, width = (axis for position, axis in enumerate(axes) if position != self._axis)
        self._size = (width, height) if isinstance(width, int) and isinstance(height, int) else None

    def decoded(self, data: bytes) -> npt.NDArray[Any]:
        """One image out of the bytes of its file, without a batch axis.

        Raises:
            ConfigError: It is damaged or too large.
        """
        return self._read(io.BytesIO(data), self._what)

    def __call__(self, path: Path) -> npt.NDArray[Any]:
        """One image, without a batch axis.

        Raises:
            ConfigError: It is damaged or too large.
        """
        return self._read(path, f"{self._what}: {path.name}" if self._what != str(path) else self._what)

    def _read(self, path: Path | io.BytesIO, what: str) -> npt.NDArray[Any]:
        from PIL import Image, ImageOps, UnidentifiedImageError

        with foreign(f"{what} is not an image that can be read", ConfigError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                image = Image.open(path, formats=_FORMATS)
            except UnidentifiedImageError:  # its text names where the bytes lie in memory
                raise ConfigError(f"{what} is not an image that can be read: it is no PNG, JPEG or BMP") from None
            with image:
                shown = _converted(ImageOps.exif_transpose(image), self._mode)
                if self._size is not None:
                    shown = shown.resize(self._size, Image.Resampling.BILINEAR)
                pixels = np.asarray(shown, np.uint8)
        pixels = pixels if pixels.ndim == 3 else pixels[..., None]
        ordered = np.moveaxis(pixels, 2, self._axis)
        return ordered if self._dtype.kind == "u" else ordered.astype(np.float32) / np.float32(255)


def _converted(image: Any, mode: str) -> Any:
    """A PIL image in another mode."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits for each pixel, which Pillow would clip
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "P":
        image = image.convert("RGBA")
    return image.convert(mode)
