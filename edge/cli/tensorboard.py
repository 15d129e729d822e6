"""Replays for TensorBoard, by tensorboardX: loaded on demand, for it is not part of what a device needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.contract.errors import ConfigError

if TYPE_CHECKING:
    from edge.agent.rehearsal import Rehearsal


def open_folder(folder: Path) -> Any:
    """A writer into a folder, before any work.

    Raises:
        ConfigError: tensorboardX is not installed, or the folder cannot be written.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as exc:
        raise ConfigError("--tensorboard needs tensorboardX: pip install 'edgeloop[tensorboard]'") from exc
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return SummaryWriter(str(folder))
    except OSError as exc:
        raise ConfigError(f"--tensorboard {folder} cannot be written: {exc.strerror}") from exc


def write_rehearsal(writer: Any, found: Rehearsal, what: str, numbers: dict[str, Any]) -> None:
    """Curves over the samples, what happened, and the numbers in the end.

    Args:
        writer: Of `open_folder`; it is closed.
        found: The replay.
        what: ``accuracy`` or ``loss``.
        numbers: Of the report.

    Raises:
        ConfigError: It cannot be written.
    """
    running, before = found.running(found.window), found.running(found.window, of=found.before)
    try:
        for i in range(len(found.scores)):
            writer.add_scalar(f"{what}/predict_then_learn", running[i], i + 1)
            writer.add_scalar(f"{what}/without_learning", before[i], i + 1)
            if what != "loss":
                writer.add_scalar("loss/each_sample", found.losses[i], i + 1)
            for name, share in found.shares[i].items():
                writer.add_scalar(f"weight/{name.replace(' ', '_')}", share, i + 1)
            writer.add_scalar("drift/labels_since", found.since_drift[i], i + 1)
            writer.add_scalar("drift/error_in_window", found.window_error[i], i + 1)
        for at, kind, text in found.events:
            writer.add_text(kind, text, at)
        for name, value in numbers.items():
            if isinstance(value, float):
                writer.add_scalar(f"end/{name}", value, len(found.scores))
        writer.close()
    except OSError as exc:
        raise ConfigError(f"the files for TensorBoard cannot be written: {exc.strerror}") from exc
