"""Merging changes of heads by an operator's policy, and what must be remembered between merges.

The rules themselves are in `deltas`, `robust`, `server_optimizers` and `privacy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edge.contract import tensorfile
from edge.contract.errors import BundleError, LearningError
from edge.contract.training import FloatArray, Parameters
from edge.merging.deltas import Change, Delta, apply_change, mean_change
from edge.merging.policy import MergePolicy
from edge.merging.privacy import PrivacyAccountant, private_mean
from edge.merging.robust import coordinate_median, krum, trimmed_mean
from edge.merging.server_optimizers import Rule, ServerOptimizer

_OPTIMIZERS: dict[str, Rule] = {"fedadam": "adam", "fedyogi": "yogi", "fedadagrad": "adagrad"}
_OPTIMIZER, _ACCOUNT = "server-optimizer", "privacy-account"


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeMemory:
    """What must survive a restart, as documents of `edge.contract.tensorfile`.

    Attributes:
        optimizer: Of one backbone's server optimizer; empty at the beginning.
        account: What noisy merges of the whole fleet have told so far; empty at the beginning.
    """

    optimizer: bytes = b""
    account: bytes = b""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Contributed:
    """One device's change, as wide as the head that it is merged into.

    Attributes:
        device: Whose it is.
        delta: The change; zero in rows of classes that the device does not have.
        has: By parameter name, ``(n_outputs,)`` which rows of a last layer with added classes it speaks for. Empty
            for all of them.
    """

    device: str
    delta: Delta
    has: Mapping[str, np.ndarray[tuple[int], np.dtype[np.bool_]]]


def merge_changes(
    policy: MergePolicy,
    base: Mapping[str, FloatArray],
    contributed: Sequence[Contributed],
    memory: MergeMemory,
    rng: np.random.Generator | None,
) -> tuple[Parameters, MergeMemory]:
    """The next head.

    Args:
        policy: The rule.
        base: The current head.
        contributed: The changes, each with samples behind it.
        memory: Of the merge before.
        rng: For the noise; needed where the policy asks for any.

    Returns:
        The head, and what the merge after must be given. Robust rules, limits and noise count one voice a device: its
        several changes are averaged first. A device without a row does not count in the mean of that row; for the
        robust rules and under noise it says that the row stays.

    Raises:
        LearningError: There is nothing to merge, too few devices for the rule, or the result is not finite; or the
            privacy account cannot be read: it is never begun anew by itself.
    """
    if not contributed:
        raise LearningError("there are no samples behind the changes to merge")
    if policy.rule in ("median", "trimmed-mean", "krum"):
        deltas = _one_voice_each(base, contributed, policy.clip_norm)
        n_garbage = policy.n_garbage(len(deltas))
        rule = {"median": coordinate_median, "trimmed-mean": trimmed_mean, "krum": krum}[policy.rule]
        return rule(base, deltas, n_garbage), memory
    if policy.noise_multiplier > 0:
        if rng is None:
            raise LearningError("noise needs a generator of random numbers")
        mean = private_mean(
            base,
            _one_voice_each(base, contributed, 0.0),
            largest_norm=policy.clip_norm,
            noise_multiplier=policy.noise_multiplier,
            n_expected=policy.expected_devices,
            rng=rng,
        )
        account = account_of(memory)
        account.spend(policy.noise_multiplier)
        memory = replace(memory, account=tensorfile.encode(_ACCOUNT, {}, account.state()))
    else:
        mean = _mean_by_rows(base, contributed, policy.clip_norm)
    if policy.rule == "mean":
        return apply_change(base, mean), memory
    optimizer = _optimizer(policy, base, memory)
    parameters = optimizer.step(base, mean)
    saved = tensorfile.encode(_OPTIMIZER, {"rule": policy.rule}, optimizer.state())
    return parameters, replace(memory, optimizer=saved)


def account_of(memory: MergeMemory) -> PrivacyAccountant:
    """The privacy account.

    Raises:
        LearningError: It cannot be read.
    """
    account = PrivacyAccountant()
    if memory.account:
        try:
            _, state = tensorfile.decode(memory.account, _ACCOUNT, "the privacy account")
        except BundleError as exc:
            raise LearningError(f"{exc}; what was spent is not known, so nothing is merged with noise") from exc
        account.restore(state)
    return account


def _optimizer(policy: MergePolicy, base: Mapping[str, FloatArray], memory: MergeMemory) -> ServerOptimizer:
    """The optimizer, as the merge before left it; from the beginning where the rule or the head's shape is another."""
    optimizer = ServerOptimizer(_OPTIMIZERS[policy.rule], policy.server_rate)
    if memory.optimizer:
        try:
            description, state = tensorfile.decode(memory.optimizer, _OPTIMIZER, "the server optimizer's state")
        except BundleError:
            return optimizer
        shapes = {f"m.{name}": array.shape for name, array in base.items()}
        if description.get("rule") == policy.rule and shapes.items() <= {n: a.shape for n, a in state.items()}.items():
            optimizer.restore(state)
    return optimizer


def _one_voice_each(base: Mapping[str, FloatArray], contributed: Sequence[Contributed], limit: float) -> list[Delta]:
    """One change a device, by device: the mean of its several ones."""
    by_device: dict[str, list[Delta]] = {}
    for each in contributed:
        by_device.setdefault(each.device, []).append(each.delta)
    found = []
    for _, deltas in sorted(by_device.items()):
        delta = deltas[0]
        if len(deltas) > 1:
            change = {name: array.astype(np.float32) for name, array in mean_change(base, deltas).items()}
            samples = sum(delta.n_samples for delta in deltas)
            delta = Delta(change=change, n_samples=samples, staleness=max(delta.staleness for delta in deltas))
        found.append(delta.clipped(limit) if limit > 0 else delta)
    return found


def _mean_by_rows(base: Mapping[str, FloatArray], contributed: Sequence[Contributed], limit: float) -> Change:
    """`mean_change`, where each row of a last layer is averaged over the devices that have its class."""
    deltas = [each.delta.clipped(limit) if limit > 0 else each.delta for each in contributed]
    mean = mean_change(base, deltas)
    weights = np.array([delta.n_samples / np.sqrt(1.0 + delta.staleness) for delta in deltas])
    for name in {name for each in contributed for name in each.has}:
        rows = len(base[name])
        has = np.array([each.has.get(name, np.ones(rows, bool)) for each in contributed])
        heard = weights @ has
        factor = np.where(heard > 0, weights.sum() / np.where(heard > 0, heard, 1.0), 0.0)
        mean[name] = mean[name] * factor.reshape(-1, *(1,) * (mean[name].ndim - 1))
    return mean
