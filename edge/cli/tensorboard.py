"""Replays for TensorBoard, by tensorboardX: loaded on demand, for it is not part of what a device needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.contract.errors import ConfigError

if TYPE_CHECKING:
    from edge.agent.model.rehearsal import Rehearsal
    from edge.coordinator.store.store import Store

# Files that are open at one time.
_MAX_OPEN_RUNS = 100


def open_folder(folder: Path) -> Any:
    """A writer into a folder, before any work.

    Raises:
        ConfigError: tensorboardX is not installed, or the folder cannot be written.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as exc:
        raise ConfigError("tensorboard needs tensorboardX: pip install 'edgeloop[tensorboard]'") from exc
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


def write_fleet(store: Store, folder: Path, device: str, since_ms: int) -> dict[str, int]:
    """A run for each model of each device: its numbers and the say of its heads over time; one for merges.

    Args:
        store: The coordinator's database.
        folder: For the runs.
        device: Only of this one; "" for all.
        since_ms: Only from then on, milliseconds since 1970.

    Returns:
        Runs, and messages in them.

    Raises:
        ConfigError: tensorboardX is not installed, or the folder cannot be written.
    """
    from edge.channel.messages import EXPERTS
    from edge.coordinator.export.files import telemetry
    from edge.coordinator.records import is_merge
    from edge.coordinator.summaries import measures

    writers: dict[str, Any] = {}
    n_messages = 0

    def run(*names: str) -> Any:
        name = "/".join(re.sub(r"[^A-Za-z0-9._-]", "_", each) for each in names if each)
        if name not in writers:
            if len(writers) >= _MAX_OPEN_RUNS:  # each holds a file and a thread
                for each in writers.values():
                    each.close()
                writers.clear()
            writers[name] = open_folder(folder / name)
            runs.add(name)
        return writers[name]

    runs: set[str] = set()
    try:
        for message in telemetry(store, device, since_ms):
            writer = run(message.device, str(message.values.get("model", "")))
            at_s, n_messages = message.received_ms / 1000, n_messages + 1
            for key, value in measures(message).items():
                writer.add_scalar(key, value, int(at_s), walltime=at_s)
            experts = message.values.get(EXPERTS)
            for name, (share, right, labels) in (experts if isinstance(experts, dict) else {}).items():
                writer.add_scalar(f"share/{name}", share, int(at_s), walltime=at_s)
                if labels > 0:
                    writer.add_scalar(f"right/{name}", right, int(at_s), walltime=at_s)
        merges = [] if device else [each for each in store.releases.all() if is_merge(each)][::-1]
        for release in merges:
            if release.created_ms >= since_ms:
                run("merges").add_text("merge", release.reason, release.counter, walltime=release.created_ms / 1000)
        for each in writers.values():
            each.close()
    except OSError as exc:
        raise ConfigError(f"the files for TensorBoard cannot be written: {exc.strerror}") from exc
    return {"runs": len(runs), "messages": n_messages, "merges": len(merges)}
