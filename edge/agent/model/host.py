"""The live model of a device, and how another takes its place: opened on trial, swapped in, confirmed or taken back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from edge.agent.config import AgentConfig
from edge.agent.device import health
from edge.agent.model.answering import LearningLimits
from edge.agent.model.cost import Cost, sample_ms
from edge.agent.model.on_device_model import OnDeviceModel, of_bundle
from edge.agent.slots.slots import MAX_ATTEMPTS, Slots
from edge.contract.bundle import Bundle
from edge.contract.digest import sha256_file
from edge.contract.errors import BundleError, EdgeError
from edge.learning.learned import Happened


class ModelHost:
    """Owns the live `OnDeviceModel` of one name, and its folder.

    Args:
        config: Of the agent.
        name: Of the model.
        folder: Of the model, in a state folder that is this process's alone.
        resident_mb: Memory of this process, MiB; None where nobody can tell.
        stopwatch: Gives seconds.

    Attributes:
        model: The live model.
        slots: What is on disk.
        warnings: What went wrong at the start and was survived, for the operator.
        opening_ms: What opening it took at the start, with what its journal says.

    Raises:
        OSError: The folder cannot be used.
        BundleError: No usable bundle: neither a pushed one nor the one that the device came with.
    """

    def __init__(
        self,
        config: AgentConfig,
        name: str,
        folder: Path,
        resident_mb: Callable[[], float | None] = health.resident_mb,
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._config = config
        self._stopwatch = stopwatch
        self._resident_mb = resident_mb
        self.name = name
        self.slots = Slots(folder, name)
        self.warnings: list[str] = []
        self.rolled_back_at_start = False
        self._own_digest = ""  # of the file that the device came with
        if self.slots.record.trying:
            record = self.slots.note(attempts=self.slots.record.attempts + 1)
            if record.attempts > MAX_ATTEMPTS:
                self._give_up_bundle(f"started {record.attempts} times without passing its probation")
        begun = stopwatch()
        self.model = self._open_live()
        self.opening_ms = (stopwatch() - begun) * 1e3

    def _path(self, digest: str) -> Path:
        return self.slots.bundle_path(digest) if digest else self._config.bundles[self.name]

    def _open(self, path: Path, state_dir: Path | None) -> OnDeviceModel:
        profile = self._config.profile
        bundle = Bundle.open(path)
        size_mb = path.stat().st_size / 2**20
        if size_mb > profile.inference.max_bundle_mb:
            limit = profile.inference.max_bundle_mb
            raise BundleError(f"{path} has {size_mb:.0f} MiB, the profile {profile.name} takes at most {limit}")
        return of_bundle(
            bundle,
            learner=self._config.learner,
            threads=profile.inference.threads,
            seed=self._config.seed,
            limits=LearningLimits(
                label_ring_size=profile.learning.label_ring_size,
                label_expiry_s=profile.learning.label_expiry_s,
                replay_per_class=profile.learning.replay_per_class,
                max_state_mb=profile.learning.max_state_mb,
                label_requests=profile.learning.label_requests,
                reject_unknown=self._config.reject_unknown,
            ),
            streams=self._config.streams,
            executor=self._config.executor,
            # On trial a bundle must give its golden outputs on the CPU; who runs it is measured when it goes live.
            provider="cpu" if state_dir is None else self._config.provider,
            mixture=self._config.mixture,
            noise=self._config.noise,
            state_dir=state_dir,
        )

    def _open_live(self) -> OnDeviceModel:
        while True:
            digest = self.slots.record.bundle
            try:
                return self._open(self._path(digest), self.slots.folder)
            except EdgeError as exc:
                if not digest:
                    raise
                self._give_up_bundle(str(exc))

    def _give_up_bundle(self, why: str) -> None:
        record = self.slots.record
        self.warnings.append(f"the bundle {record.bundle[:12]} was given up: {why}")
        self.rolled_back_at_start = True
        self.slots.note(bundle=record.previous, previous="", trying=False, attempts=0, state="rolled-back")

    def try_bundle(self, digest: str) -> Cost:
        """Open a fetched bundle without using it: digests, golden outputs, and the memory and time that it takes.

        Raises:
            BundleError: It is not to be used.
        """
        path, record = self.slots.adopt_bundle(digest), self.slots.record
        begun = record.tests if record.tested == digest else 0
        try:
            if begun >= MAX_ATTEMPTS:
                raise BundleError(f"the agent ended {begun} times while it was opened: perhaps memory is too small")
            self.slots.note(tested=digest, tests=begun + 1)  # the system may end us, with no word to anybody
            cost = self._try(path)
        except Exception as exc:
            self.slots.note(tested="", tests=0)
            if isinstance(exc, MemoryError) or "bad_alloc" in str(exc):
                raise BundleError("there is not enough memory to open it") from exc
            raise
        self.slots.note(tested="", tests=0)
        return cost

    def _try(self, path: Path) -> Cost:
        profile, before = self._config.profile, self._resident_mb()
        model = self._open(path, None)
        try:
            took_ms, slowest = sample_ms(model, self._stopwatch), profile.inference.max_latency_ms
            if took_ms > slowest > 0:  # something else may have had the processor
                took_ms = min(took_ms, sample_ms(model, self._stopwatch))
            after, limit = self._resident_mb(), profile.memory_mb // 2
        finally:
            model.close()
        cost = Cost(took_ms, None if before is None or after is None else after - before)
        if cost.memory_mb is not None and cost.memory_mb > limit:
            raise BundleError(
                f"it takes {cost.memory_mb:.0f} MiB of memory, the profile {profile.name} allows {limit}: half of "
                f"memory_mb; convert the model for this device (--target)"
            )
        is_on_cpu = self.model.serving.provider.name == "cpu"  # else who runs it is measured when it goes live
        if took_ms > slowest > 0 and is_on_cpu:
            raise BundleError(
                f"a sample takes {took_ms:.3g} ms, the profile {profile.name} allows {slowest:g} (max_latency_ms); "
                f"convert the model for this device (--target), or a smaller one"
            )
        return cost

    def activate_bundle(self, digest: str) -> None:
        """Make a tried bundle the live one. The previous one stays on disk until `confirm`.

        Raises:
            EdgeError: It did not open after all; the previous one is live again.
            OSError: The disk is full; the previous one is still live.
        """
        self.model.save()
        streams = len(self.model.streams)
        before, older = self.slots.record.bundle, self.slots.record.previous
        # The same bundle once more does not become the one before itself.
        self.slots.update(bundle=digest, previous=older if digest == before else before, trying=True, attempts=0)
        self.model.close()
        try:
            self.model = self._open(self._path(digest), self.slots.folder)
        except Exception:  # whatever it is, this model must answer on
            self.model = self._open(self._path(before), self.slots.folder)
            self.slots.note(bundle=before, previous=older, trying=False)
            raise
        finally:
            self._tell_of_streams(streams)

    def _tell_of_streams(self, count: int) -> None:
        """What one bundle remembers means nothing to another, nor to itself after a time without samples."""
        if count:
            streams = f"{count} streams begin" if count > 1 else "1 stream begins"
            self.model.events.append(Happened("streams-begin-anew", f"another bundle is live: {streams} anew"))

    def bases(self) -> dict[str, Path]:
        """By digest, the artifacts that are here and that the next release may be made of."""
        own = self._config.bundles[self.name]
        if not self._own_digest:
            with contextlib.suppress(OSError):
                self._own_digest = sha256_file(own)
        return self.slots.bases() | ({self._own_digest: own} if self._own_digest else {})

    def confirm_bundle(self) -> None:
        """The live bundle has passed its probation. The one before it stays on disk, for who wants to go back."""
        self.slots.note(trying=False, attempts=0)
        self.slots.clean()

    def roll_back_bundle(self) -> None:
        """Go back to the bundle before the live one, or to the one that the device came with.

        Raises:
            OSError: The disk is full; nothing changed.
        """
        self.model.save()
        record, streams = self.slots.record, len(self.model.streams)
        self.slots.update(bundle=record.previous, previous="", trying=False, attempts=0)
        self.model.close()
        self.model = self._open_live()
        self._tell_of_streams(streams)

    def close(self) -> None:
        """Save what was learned."""
        self.model.close()
