"""Packages of PyPI and npm, by name and version, as unpacked folders in a cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

TIME_LIMIT_S = 600


class DownloadError(RuntimeError):
    """A package could not be had."""


@dataclass(frozen=True, slots=True)
class Package:
    """One package at one version.

    Attributes:
        name: As its registry spells it.
        version: Exactly this one.
        registry: ``pypi`` or ``npm``.
    """

    name: str
    version: str
    registry: str = "pypi"

    def __str__(self) -> str:
        return f"{self.name} {self.version}" + (" (npm)" if self.registry == "npm" else "")

    def unpacked(self, cache: Path) -> Path:
        """The folder with its files, downloaded if it is not there yet; nothing of it is run.

        Raises:
            DownloadError: The registry's client failed.
        """
        folder = cache / f"{self.registry}-{self.name.strip('@').replace('/', '-')}-{self.version}"
        if folder.is_dir():
            return folder
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            archive = self._download(Path(scratch))
            content = Path(scratch) / "content"
            if archive.suffix == ".whl":
                with zipfile.ZipFile(archive) as opened:
                    opened.extractall(content)
            else:
                with tarfile.open(archive) as opened_tar:
                    # Python before 3.11.4 knows no filters, and later ones want one.
                    opened_tar.extractall(content, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
            try:
                content.rename(folder)
            except OSError:  # another process was quicker
                shutil.rmtree(content, ignore_errors=True)
        return folder

    def _download(self, scratch: Path) -> Path:
        if self.registry == "npm":
            command = ["npm", "pack", "--silent", f"{self.name}@{self.version}"]
        else:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
            command = [*pip, "--no-deps", "--only-binary", ":all:", "--dest", ".", f"{self.name}=={self.version}"]
        try:
            done = subprocess.run(
                command, cwd=scratch, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False, env=os.environ
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise DownloadError(f"{self}: {exc}") from exc
        found = [path for path in scratch.iterdir() if path.suffix in {".whl", ".tgz"}]
        if done.returncode != 0 or len(found) != 1:
            raise DownloadError(f"{self}: {(done.stderr or done.stdout).strip()[-300:] or 'no archive came'}")
        return found[0]
