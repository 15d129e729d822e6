"""What ``kill -9`` leaves behind."""

from __future__ import annotations

import os

from edge.agent.model.on_device_model import OnDeviceModel


def kill(model: OnDeviceModel) -> None:
    """The kernel closes the files of a process that was killed; nothing else happens."""
    if model.learns:
        store = model.state._store
        assert store is not None
        store.close()
    if model._lock is not None:
        os.close(model._lock)
        model._lock = None
