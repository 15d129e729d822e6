"""Samples whose label would help most, kept on disk with what was answered: bounded, and only where somebody wishes it.

One file for each, whole or absent, its name begins with when it came; the oldest make room. What the disk does not take
is told once and kept nowhere: no answer depends on it. A sample leaves when its label was taken.
"""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.contract.digest import sha256
from edge.contract.errors import ConfigError
from edge.contract.files import replace_file
from edge.inference.named_arrays import read_arrays
from edge.inference.session import Arrays

EVERY_S = 1.0  # at most one in that time: a flash wears out
_MAX_SHARE = 8  # of what may be kept, one sample may take the eighth part
_ABOUT, _INPUT = "about", "input."


@dataclass(frozen=True, eq=False, slots=True)
class HardSample:
    """One kept sample.

    Attributes:
        id: Its name.
        at_ms: When it was answered, ms since 1970.
        said: What was answered.
        path: Its file.
    """

    id: str
    at_ms: int
    said: Mapping[str, Any]
    path: Path


class HardSamples:
    """See the module.

    Args:
        folder: Of the model's.
        max_bytes: That all files take together.

    Attributes:
        warnings: What went wrong and was survived; they may be cleared.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._kept: OrderedDict[str, HardSample] = OrderedDict()
        self._sizes: dict[Path, int] = {}
        self._next_s = float("-inf")
        self._is_troubled = False
        self.warnings: list[str] = []
        for path in sorted(folder.glob("*.npz")):
            with suppress(ConfigError, OSError):  # what is damaged is left where it is, and counts
                self._sizes[path] = path.stat().st_size
                about = _about(path)
                self._kept[about.id] = about

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, sample_id: str, inputs: Arrays, said: Mapping[str, Any], now_s: float, at_ms: int) -> bool:
        """Keep a sample, where it is time for one; an older one of this name makes room.

        Args:
            sample_id: Its name.
            inputs: By name, of one sample.
            said: What was answered: JSON.
            now_s: Monotonic time.
            at_ms: Of the clock.
        """
        if now_s < self._next_s or self._max_bytes <= 0:
            return False
        file = io.BytesIO()
        about = json.dumps({"id": sample_id, "at_ms": at_ms, "said": said}, default=_left_out).encode()
        np.savez(file, **{_INPUT + name: array for name, array in inputs.items()}, about=np.frombuffer(about, np.uint8))  # type: ignore[arg-type]
        data = file.getvalue()
        if len(data) * _MAX_SHARE > self._max_bytes:
            self._tell(f"a sample of {len(data)} bytes is not kept: --keep-hard allows for {self._max_bytes} in all")
            return False
        self._next_s = now_s + EVERY_S
        path = self._folder / f"{at_ms:015}-{sha256(sample_id.encode())[:12]}.npz"
        self.forget(sample_id)
        while self._sizes and sum(self._sizes.values()) + len(data) > self._max_bytes:
            self._remove(min(self._sizes))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with replace_file(path) as whole:
                whole.write(data)
        except OSError as exc:
            self._tell(f"hard samples cannot be kept: {exc.strerror}")
            return False
        self._is_troubled = False
        self._sizes[path] = len(data)
        self._kept[sample_id] = HardSample(sample_id, at_ms, said, path)
        return True

    def newest(self, count: int) -> list[HardSample]:
        """Those that came last, the newest first."""
        return list(reversed(self._kept.values()))[:count]

    def inputs(self, sample_id: str) -> Arrays | None:
        """What a kept sample was; None where it is not kept, or not readable."""
        found = self._kept.get(sample_id)
        if found is None:
            return None
        try:
            arrays = read_arrays(found.path)
        except ConfigError as exc:
            self._tell(f"a hard sample cannot be read: {exc}")
            return None
        return {name.removeprefix(_INPUT): array for name, array in arrays.items() if name.startswith(_INPUT)}

    def forget(self, sample_id: str) -> None:
        """Its label was taken."""
        if (found := self._kept.get(sample_id)) is not None:
            self._remove(found.path)

    def _remove(self, path: Path) -> None:
        self._sizes.pop(path, None)
        for name in [name for name, each in self._kept.items() if each.path == path]:
            del self._kept[name]
        try:
            path.unlink(missing_ok=True)
        except OSError as exc:
            self._tell(f"a hard sample cannot be removed: {exc.strerror}")

    def _tell(self, text: str) -> None:
        if not self._is_troubled:
            self.warnings.append(text)
        self._is_troubled = True


def _about(path: Path) -> HardSample:
    """What a file says of its sample.

    Raises:
        ConfigError: It is none of ours, or damaged.
    """
    arrays = read_arrays(path)
    try:
        found = json.loads(arrays[_ABOUT].tobytes())
        return HardSample(str(found["id"]), int(found["at_ms"]), dict(found["said"]), path)
    except (KeyError, TypeError, ValueError) as exc:
        raise ConfigError(f"{path} is no hard sample") from exc


def _left_out(value: object) -> str:
    return f"{type(value).__name__}"
