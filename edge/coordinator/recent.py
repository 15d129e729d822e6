"""What devices said last, of so many at most."""

from __future__ import annotations

from typing import TypeVar

# Names are the devices' own choice, and whoever may say one may say a million.
MAX_REMEMBERED = 20_000

_Value = TypeVar("_Value")


class Recent(dict[str, _Value]):
    """What was said last, of the so many devices that said something last.

    Args:
        most: Of so many.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, device: str, value: _Value) -> None:
        """Keep it, in place of the oldest where there are too many."""
        self.pop(device, None)
        if len(self) >= self._most:
            del self[next(iter(self))]
        super().__setitem__(device, value)
