"""A fleet through its streams, by the rules."""

from __future__ import annotations

import numpy as np

from benchmarks.fleet_learning.methods import Method
from benchmarks.fleet_learning.tasks import Array, Task


def answers(method: Method, device: int, x: Array) -> Array:
    """What a device answers, ``(n,)`` classes.

    Raises:
        ValueError: Another shape: one number for many samples would be compared with each of them.
    """
    found = np.asarray(method.predict(device, x))
    if found.shape != (len(x),):
        raise ValueError(f"predict: expected {len(x)} classes for {len(x)} samples, got the shape {found.shape}")
    return found


def played(task: Task, method: Method) -> dict[str, float]:
    """One fleet through its streams."""
    hits: list[list[bool]] = [[] for _ in task.devices]
    sent = 0
    for i in range(max(len(device.y) for device in task.devices)):
        for number, device in enumerate(task.devices):
            if i < len(device.y):
                hits[number].append(bool(answers(method, number, device.x[i : i + 1])[0] == device.y[i]))
                method.learn(number, device.x[i], int(device.labels[i]))
        if (i + 1) % task.exchange_every == 0:
            sent += method.exchange()
    sent += method.exchange()
    ends = [float((answers(method, n, d.test_x) == d.test_y).mean()) for n, d in enumerate(task.devices)]
    return {
        "on_the_way": float(np.mean([np.mean(each) for each in hits])),
        "end": float(np.mean(ends)),
        "worst": min(ends),
        "kb": sent / len(task.devices) / 1e3,
    }
