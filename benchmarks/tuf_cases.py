"""python-tuf's own cases of its client, with our fetcher and our messages in between.

    python benchmarks/tuf_cases.py [--source FOLDER]

python-tuf tests its client against a simulated repository: rollback, freeze, mix and match, wrong keys, thresholds,
rotated keys, expiry, graphs of delegations, damaged targets. The cases are in its source distribution only, which pip
fetches once into --source (with freezegun, which they need); nothing of it is kept here. Each case is run unchanged,
but for what fetches: where a case makes an ``Updater`` on its repository, it gets one as our devices have it. Its
fetcher is ours (`edge.channel.updates`), which has nothing and says what lacks; that is asked for by a message, packed
by the other end, unpacked, and the client begins anew, as `Trust.look` does. Targets come by our pull transfer, in
frames, and are proved by digest on the way as an artifact is.

What passes is printed by case. The exit status is 1 where one fails that is not among those that cannot be driven so.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tarfile
import tempfile
import unittest
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edge.channel import topics, updates
from edge.channel.chunks import chunk_digests, index_digest
from edge.channel.codec import decode, encode
from edge.channel.download import Download, Finished, SendRequest, WriteChunk, serve
from edge.channel.frames import decode_frame, encode_frame
from edge.channel.messages import Meta, Request
from edge.contract.digest import sha256

# Python before 3.11.4, as Debian 12 has it, knows no filters, and later ones want one.
UNPACKING: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}

MODULES = (
    "test_updater_top_level_update", "test_updater_key_rotations", "test_updater_consistent_snapshot",
    "test_updater_delegation_graphs", "test_updater_fetch_target", "test_updater_validation",
)  # fmt: skip
# What a case asks that is not about what is believed.
NOT_DRIVEN = {"test_not_loading_targets_twice": "it counts opened files; a device begins anew for each document"}
_CHUNK = 1024
ASKED: Counter[str] = Counter()
_METADATA, _TARGETS = "https://example.com/metadata/", "https://example.com/targets/"
T = TypeVar("T")


class Device:
    """python-tuf's client as a device of ours runs it; has the methods of `tuf.ngclient.Updater`.

    Args:
        metadata_dir: As the client's.
        metadata_base_url: Of the repository; a device has none.
        target_dir: As the client's.
        target_base_url: Of the repository.
        fetcher: The repository: asked by messages.
        config: As the client's.
        bootstrap: The root document that the device was given.
    """

    def __init__(
        self,
        metadata_dir: str,
        metadata_base_url: str,  # noqa: ARG002  # as the client's
        target_dir: str | None = None,
        target_base_url: str | None = None,
        fetcher: FetcherInterface | None = None,
        config: UpdaterConfig | None = None,
        *,
        bootstrap: bytes | None,
    ) -> None:
        assert fetcher is not None
        self._repository, self._files = fetcher, updates._Files()
        self._target_base_url = target_base_url
        self._make: Callable[[], Updater] = lambda: Updater(
            metadata_dir,
            updates._BASE,
            target_dir,
            None if target_base_url is None else "targets/",
            self._files,
            config=self.config,
            bootstrap=bootstrap,
        )
        self.config = UpdaterConfig() if config is None else config
        self._updater = self._make()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._updater, name)

    def refresh(self) -> None:
        """As the client's."""
        self._do(lambda updater: updater.refresh())

    def get_targetinfo(self, target_path: str) -> Any:
        """As the client's."""
        return self._do(lambda updater: updater.get_targetinfo(target_path))

    def download_target(self, *arguments: Any, **options: Any) -> str:
        """As the client's; what was fetched before is not used again."""
        for name in [name for name in self._files.files if name.startswith("targets/")]:
            del self._files.files[name]
        return self._do(lambda updater: updater.download_target(*arguments, **options))

    def _do(self, operation: Callable[[Updater], T]) -> T:
        """Until nothing lacks any more; from the start each time, as a device looks at a release."""
        while True:
            self._files.missing = None
            try:
                return operation(self._updater)
            except DownloadError:
                if self._files.missing is None:
                    raise
            name = self._files.missing
            self._files.files[name] = self._target(name) if name.startswith("targets/") else self._document(name)
            self._updater = self._make()

    def _document(self, name: str) -> bytes | None:
        """Metadata: asked for and answered by messages."""
        ASKED["documents"] += 1
        question = decode(topics.UP_REQ, encode(Request(op="meta", name=name)))
        assert isinstance(question, Request)
        found = self._fetched(f"{_METADATA}{question.name}")
        answer = decode(topics.DN_META, encode(updates.packed(name, found)))
        assert isinstance(answer, Meta)
        return updates.unpacked(answer)

    def _target(self, name: str) -> bytes | None:
        """A target: in frames, each proved."""
        found = self._fetched(f"{_TARGETS}{name.removeprefix('targets/')}")
        if found is None:
            return None
        index, pieces, is_finished = chunk_digests(found, _CHUNK), dict[int, bytes](), False
        download = Download(
            digest=sha256(found), size_bytes=len(found), chunk_size_bytes=_CHUNK, index_digest=index_digest(index)
        )
        effects = list(download.poll(0.0))
        while effects:
            effect = effects.pop(0)
            if isinstance(effect, WriteChunk):
                pieces[effect.index] = effect.data
            elif isinstance(effect, SendRequest):
                for frame in serve(effect.request, lambda at, n: found[at : at + n], len(found), _CHUNK, index):
                    ASKED["frames"] += 1
                    effects += download.receive(decode_frame(encode_frame(frame)), 0.0)
            is_finished |= isinstance(effect, Finished)
        assert is_finished
        return b"".join(pieces[i] for i in sorted(pieces))

    def _fetched(self, url: str) -> bytes | None:
        try:
            return b"".join(self._repository._fetch(url))
        except DownloadHTTPError as exc:
            if exc.status_code != 404:
                raise
            return None


class Cases(unittest.TestResult):
    """Says of each case how it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: dict[str, str] = {}

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802  # unittest's name
        """It ended well, with all of its parts."""
        self.ended.setdefault(test.id(), "")

    def _add(self, test: unittest.TestCase, error: Any) -> None:
        self.ended[test.id()] = f"{error[0].__name__}: {error[1]}".splitlines()[0][:160]

    def addError(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        """It ended with an error."""
        self._add(test, err)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        """It ended with another result than it wants."""
        self._add(test, err)

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:  # noqa: ARG002, N802
        """A part of it ended."""
        if err is not None:
            self._add(test, err)


def fetch(folder: Path) -> None:
    """The sources of the python-tuf that is installed, and what its cases import, where they are not there yet."""
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    if not (folder / "tests").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sources = ["--no-deps", "--no-binary", "tuf", "--no-build-isolation", f"tuf=={version('tuf')}"]
        subprocess.run([*pip, "download", "-d", str(folder), *sources], check=True)
        name = f"tuf-{version('tuf')}"
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            members = [each for each in archive.getmembers() if each.name.startswith(f"{name}/tests/")]
            archive.extractall(folder, members, **UNPACKING)
        (folder / name / "tests").rename(folder / "tests")
    if not (folder / "freezegun").is_dir():
        subprocess.run([*pip, "install", "--target", str(folder), "freezegun"], check=True)


def main() -> int:
    """Run them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", type=Path, help="Folder with python-tuf's tests; what lacks is fetched into it.")
    parser.add_argument("--only-fetch", action="store_true", help="Run nothing.")
    options = parser.parse_args()
    if options.only_fetch and options.source is not None:
        fetch(options.source)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        source = options.source or Path(folder)
        fetch(source)
        sys.path.insert(0, str(source))
        suite = unittest.TestSuite()
        for name in MODULES:
            module = importlib.import_module(f"tests.{name}")
            module.Updater = Device  # type: ignore[attr-defined]
            suite.addTests(unittest.defaultTestLoader.loadTestsFromModule(module))
        found = Cases()
        suite.run(found)
    n: Counter[str] = Counter()
    for case, why in sorted(found.ended.items()):
        reason = NOT_DRIVEN.get(case.rpartition(".")[2], "") if why else ""
        how = "not driven" if reason else "failed" if why else "passed"
        n[how] += 1
        print(f"{how:10} {case.removeprefix('tests.')} {reason or why}".rstrip())
    print(f"python-tuf {version('tuf')}, {len(found.ended)} cases: {dict(n)}; in between {dict(ASKED)}")
    return 0 if n["passed"] and not n["failed"] else 1


if __name__ == "__main__":
    sys.exit(main())
