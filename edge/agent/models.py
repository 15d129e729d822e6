"""The state folder of an agent: whose it is, and the models side by side in it.

::

    lock                       held by the running agent
    device.json                identity of the folder, boot and session numbers
    models/<level>/            one for each model, see `edge.agent.slots.slots`; <level> is `level_of` its name
    learned                    of the only model: a link for whoever looks where it was before there were several
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from edge.agent.config import AgentConfig
from edge.agent.model.host import ModelHost
from edge.agent.slots.slots import RECORD, DeviceRecord, ModelRecord, read_record, write_record
from edge.agent.state_folder import MODELS, clear, is_old, take_over
from edge.contract.bundle import Bundle
from edge.contract.errors import ConfigError, EdgeError
from edge.contract.files import lock_folder
from edge.contract.names import level_of, passing_name


class Models:
    """All models of an agent, opened. One that cannot be opened is left out, unless no other can be.

    Args:
        config: Of the agent.

    Attributes:
        hosts: By name, those that are served.
        failed: By name, why a model is not served.
        warnings: What else went wrong and was survived; they may be cleared.

    Raises:
        ConfigError: The state folder cannot be used.
        BundleError: There is not one usable bundle.
    """

    def __init__(self, config: AgentConfig) -> None:
        self._folder = config.state_dir
        self._locks = [lock_folder(self._folder)]
        self.hosts: dict[str, ModelHost] = {}
        self.failed: dict[str, str] = {}
        self.warnings: list[str] = []
        try:
            if is_old(self._folder):
                take_over(self._folder, level_of(_whose(self._folder, config)))
            clear(self._folder)
            self.record = read_record(self._folder / "device.json", DeviceRecord, self.warnings)
            self._begin(config.device)
            self._open(config)
            self._link(list(config.bundles))
        except BaseException:
            self.close()
            raise
        for name in self.not_served:
            self.warnings.append(f"the model {name!r} is not served, no bundle of it was named; what it has is kept")

    def _open(self, config: AgentConfig) -> None:
        first: Exception | None = None
        for name in config.bundles:
            try:
                folder = self._folder / MODELS / level_of(name)
                # Nor may anybody learn in the folder of one model meanwhile, which is a state folder by itself.
                self._locks.append(lock_folder(folder))
                self.hosts[name] = ModelHost(config, name, folder)
            except Exception as exc:  # noqa: BLE001  # whatever it is, the other models are not at fault
                first = first or exc
                self.failed[name] = str(exc) if isinstance(exc, EdgeError) else f"{type(exc).__name__}: {exc}"
                self.warnings.append(f"the model {name!r} is not served: {self.failed[name]}")
        if first is not None and not self.hosts:
            if isinstance(first, OSError):
                raise ConfigError(f"the state folder {self._folder} cannot be used: {first.strerror}") from first
            raise first

    def _link(self, names: list[str]) -> None:
        link = self._folder / "learned"
        with suppress(OSError):  # a file system without links does without
            if link.is_symlink():
                link.unlink()
            if len(names) == 1 and not link.exists():
                link.symlink_to(Path(MODELS, level_of(names[0]), "learned"))

    @property
    def not_served(self) -> list[str]:
        """Models that have a folder, and no bundle was named of; none where the folder cannot be read."""
        known = {level_of(name) for name in [*self.hosts, *self.failed]}
        try:
            folders = [path for path in sorted((self._folder / MODELS).iterdir()) if path.is_dir()]
        except OSError:
            return []
        return [read_record(path / RECORD, ModelRecord).name or path.name for path in folders if path.name not in known]

    def _begin(self, device: str) -> None:
        """Count this start, in a folder that has an identity from its first start on.

        Who cannot keep the count would be taken for an earlier start of itself at the next one, and what it says
        would be dropped as old news: then it has a name of its own, which tells whose it is, for as long as the disk
        takes nothing.
        """
        state_id = self.record.state_id or os.urandom(8).hex()
        if not self.update(boot=self.record.boot + 1, state_id=state_id, device=device):
            self.record = replace(self.record, state_id=passing_name(state_id))

    def update(self, **changes: int | str) -> bool:
        """Change what is known of the device; where the disk takes nothing it is known until the process ends.

        Returns:
            Whether it is on disk.
        """
        self.record = replace(self.record, **changes)  # type: ignore[arg-type]  # the fields are these
        try:
            write_record(self._folder / "device.json", self.record)
        except OSError as exc:
            self.warnings.append(f"device.json could not be written: {exc.strerror}")
            return False
        return True

    def close(self) -> None:
        """Save what was learned, each model for itself, and give the folder free."""
        with ExitStack() as stack:
            for lock in self._locks:
                stack.callback(os.close, lock)
            for host in self.hosts.values():
                stack.callback(host.close)


def _whose(folder: Path, config: AgentConfig) -> str:
    """The model that a state folder of one model belonged to: what it learned, or what was pushed to it, says so."""
    names = list(config.bundles)
    if len(names) > 1:
        pushed = read_record(folder / "device.json", ModelRecord).bundle
        for name, path in config.bundles.items():
            with suppress(EdgeError):
                if (folder / "learned" / Bundle.open(path).digest[:16]).is_dir():
                    return name
        with suppress(EdgeError):
            if pushed and (name := Bundle.open(folder / "bundles" / f"{pushed}.edge").manifest.name) in names:
                return name
    return names[0]
