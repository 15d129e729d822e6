"""A device on 64-bit Arm: verify, run, learn, push, on Cortex-A53, A72 and A76, each emulated by QEMU.

    apt-get install qemu-user mosquitto
    python benchmarks/arm.py [--work FOLDER] [--boards raspberry-pi-3,...]

Debian's Python and C library for arm64 are unpacked into a folder, and the aarch64 wheels of what a device needs are
installed there; nothing of this machine's own system changes. `edge-convert` makes an int8 and a float bundle here for
each board. Then two devices join a fleet with keys: one is `edge-agent` on the emulated CPU, the other is `edge-agent`
on this machine with the same bundle, profile and labels. Broker and coordinator run here. What is asked of both is
compared: before and after labels of a world that has turned (the emulated one is killed with `kill -9` while it learns
them), after a merge of what both learned, and after a signed push of the other bundle.

QEMU computes the instructions of that CPU, and none that it does not have: what is wrong there is wrong here. Times and
memory mean nothing. The exit status is 1 if a line says FAIL.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples" / "01_digits_fleet"))

from model import Digits, load_digits_split, turned
from processes import Fleet, wait_for

from edge.agent.client import AgentClient
from edge.contract.errors import ChannelError

EMULATOR = next((name for name in ("qemu-aarch64", "qemu-aarch64-static") if shutil.which(name)), None)
PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
LABELS, AGAIN, ASKED = 60, 20, 100
# Of the shares of classes: two CPUs add floats in another order, and int8 layers may round one value differently.
MOST_APART = {"int8": 0.02, "float": 1e-4}
PATIENCE_S = 300.0  # labels wait for the learning budget, of which emulation needs much


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """What is emulated.

    Attributes:
        profile: Its device profile, which the agent must find by itself.
        model: As its device tree has it.
        cpu: QEMU's name of the CPU.
        part: The CPU's number in /proc/cpuinfo.
        features: What Linux says there of the CPU.
    """

    profile: str
    model: str
    cpu: str
    part: str
    features: str


_ARMV8 = "fp asimd evtstrm crc32 cpuid"
BOARDS = (
    Board(profile="raspberry-pi-3", model="Raspberry Pi 3 Model B Rev 1.2", cpu="cortex-a53", part="0xd03",
          features=_ARMV8),
    Board(profile="raspberry-pi-4", model="Raspberry Pi 4 Model B Rev 1.4", cpu="cortex-a72", part="0xd08",
          features=_ARMV8),
    Board(profile="raspberry-pi-5", model="Raspberry Pi 5 Model B Rev 1.0", cpu="cortex-a76", part="0xd0b",
          features=f"{_ARMV8} aes pmull sha1 sha2 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"),
)  # fmt: skip


def quietly(line: Sequence[str | Path], what: str, **environment: str) -> str:
    """Run, and give what it printed; end with its error otherwise."""
    done = subprocess.run(line, env=os.environ | environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{what}: exit {done.returncode}: {(done.stderr or done.stdout).strip()[-800:]}")
    return done.stdout


class System:
    """Debian for arm64 in a folder, made once.

    Args:
        folder: Where.
    """

    def __init__(self, folder: Path) -> None:
        self.root, self.wheels = folder / "debian", folder / "wheels"
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self._unpack(folder / "apt")
            self._install()
            (folder / "whole").touch()
        self.python = (self.root / "usr/bin/python3").resolve()

    def _unpack(self, apt: Path) -> None:
        """Packages of this machine's Debian, with apt's state in a folder of its own."""
        for name in ("lists/partial", "cache/archives/partial"):
            (apt / name).mkdir(parents=True)
        (apt / "status").touch()
        given = {
            "APT::Architecture": "arm64", "APT::Architectures": "arm64", "APT::Sandbox::User": "root",
            "Dir::State": apt, "Dir::State::status": apt / "status", "Dir::Cache": apt / "cache",
        }  # fmt: skip
        get = ["apt-get", "-qq", *(part for name, value in given.items() for part in ("-o", f"{name}={value}"))]
        quietly([*get, "update"], "apt-get update")
        quietly([*get, "install", "--download-only", "--no-install-recommends", "--yes", *PACKAGES], "apt-get")
        for package in sorted((apt / "cache/archives").glob("*.deb")):
            quietly(["dpkg", "-x", package, self.root], package.name)

    def _install(self) -> None:
        """The wheels of a device, for the Python that was unpacked."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        version = (self.root / "usr/bin/python3").resolve().name.removeprefix("python")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", self.wheels, "--only-binary=:all:"]
        pip += ["--python-version", version, "--constraint", ROOT / "constraints.txt"]
        pip += [part for name in PLATFORMS for part in ("--platform", name)]
        quietly([*pip, *project["dependencies"], *project["optional-dependencies"]["signed"]], "pip install")

    def become(self, board: Board) -> None:
        """Let programs that are emulated read what they would read on a board.

        QEMU takes a file of the folder where there is one of the name. /proc/cpuinfo of this machine would be of x86,
        and onnxruntime 1.32 crashes on that.
        """
        cores = ""
        for n in range(4):
            cores += f"processor\t: {n}\nFeatures\t: {board.features}\nCPU implementer\t: 0x41\n"
            cores += f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {board.part}\nCPU revision\t: 3\n\n"
        tree = self.root / "proc/device-tree"
        tree.mkdir(parents=True, exist_ok=True)
        (tree / "model").write_text(board.model)
        (self.root / "proc/cpuinfo").write_text(cores + f"Model\t\t: {board.model}\n")

    def line(self, board: Board) -> list[str | Path]:
        """How Python starts there, in front of its arguments.

        By a script, which Python takes for itself: what it starts is started by this machine's own kernel.
        """
        assert EMULATOR is not None
        script = self.root.parent / f"python-{board.profile}"
        words = [EMULATOR, "-cpu", board.cpu, "-L", self.root, "-E", f"PYTHONPATH={self.wheels}:{ROOT}"]
        words += ["-E", f"PYTHONHOME={self.root}/usr", "-0", script, self.python]
        script.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$@"\n')
        script.chmod(0o755)
        return [script]


class Findings:
    """What was found on a board, printed as it comes.

    Attributes:
        failed: Whether a line was wrong.
    """

    def __init__(self) -> None:
        self.failed = False

    def add(self, what: str, came: str, right: bool) -> None:
        """One line: what was asked, what came, whether that is right."""
        self.failed |= not right
        print(f"{'PASS' if right else 'FAIL'}  {what}: {came}", flush=True)


class BoardAndHere(Fleet):
    """A fleet with keys: device `arm` is emulated, device `here` is not."""

    def __init__(self, folder: Path, bundle: Path, system: System, board: Board) -> None:
        super().__init__(folder, bundle, ["arm", "here"])
        self._system, self._board = system, board
        self.keys = folder / "keys"
        self.fleet("keys", "init", str(self.keys), "--root-keys", "1", "--threshold", "1")

    def start_coordinator(self) -> None:
        """With the keys."""
        options = ["--broker", self.broker_url, "--http", f"127.0.0.1:{self.http_port}", "--no-merge"]
        options += ["--signing", str(self.keys / "coordinator"), "--data-dir", str(self.folder / "coordinator")]
        options += ["--bundle", str(self.bundle)]
        self.start("coordinator", [sys.executable, "-m", "edge.cli.coordinator", "serve", *options])

    def start_agent(self, device: str) -> None:
        """On its CPU; the emulated one finds its profile, the other is told it."""
        python = self._system.line(self._board) if device == "arm" else [sys.executable]
        profile = "auto" if device == "arm" else self._board.profile
        options = ["--device", device, "--state-dir", str(self.folder / device), "--profile", profile]
        options += ["--broker", self.broker_url, "--trust", str(self.keys / "device/root.json"), "--provider", "cpu"]
        options += ["--sync-interval", "1", "--probation", "2", "--telemetry-interval", "2"]
        self.start(device, [*map(str, python), "-m", "edge.cli.agent", "run", str(self.bundle), *options])

    def agents(self) -> dict[str, AgentClient]:
        """Connections to both, as soon as they answer."""

        def answers(device: str) -> AgentClient | None:
            try:
                return AgentClient(self.socket_path(device), timeout_s=60.0)
            except ChannelError:
                return None

        return {device: wait_for(device, partial(answers, device), PATIENCE_S) for device in self.devices}

    def live(self, release: int) -> bool:
        """Whether a release is live on both and not watched any more."""
        return all((row["state"], row["state_release"]) == ("active", release) for row in self.known())


def shares(agent: AgentClient, x: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float64]:
    """Shares of the classes, ``(n, classes)``: the softmax of the logits that were answered."""
    logits = np.array([agent.predict(f"{name}-{i}", each)["logits"] for i, each in enumerate(x)])
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True))


def compare(agents: dict[str, AgentClient], data: Digits, kind: str, findings: Findings, what: str) -> None:
    """Ask both for the same turned digits."""
    x, y = turned(data.test_x[:ASKED]), data.test_y[:ASKED]
    there, here = (shares(agents[device], x, what) for device in ("arm", "here"))
    apart = float(np.abs(there - here).max())
    same = int((there.argmax(1) == here.argmax(1)).sum())
    accuracy = " and ".join(f"{(each.argmax(1) == y).mean():.2f}" for each in (there, here))
    came = f"accuracy {accuracy}, {same} of {ASKED} answers the same, shares apart by {apart:.1g}"
    findings.add(what, came, apart <= MOST_APART[kind])


def teach(agents: dict[str, AgentClient], data: Digits, count: int) -> None:
    """Give both the same labels of turned digits."""
    x, y = turned(data.stream_x[:count]), data.stream_y[:count]
    for agent in agents.values():
        for i in range(count):
            agent.predict(f"labelled-{i}", x[i])
            agent.label(f"labelled-{i}", int(y[i]))


def wait_until_learned(agents: dict[str, AgentClient], count: int) -> None:
    """Of exactly so many labels none waits any more."""

    def learned() -> bool:
        found = [agent.status() for agent in agents.values()]
        return all((each["samples"], each["waiting"]) == (count, 0) for each in found)

    wait_for("all labels learned", learned, PATIENCE_S)


def outputs(python: Sequence[str | Path], bundle: Path, samples: Path, folder: Path) -> npt.NDArray[np.float32]:
    """Of `edge-bundle run`."""
    written = folder / "outputs.npz"
    quietly([*python, "-m", "edge.cli.bundle", "run", bundle, samples, "--output", written], "edge-bundle run")
    with np.load(written) as arrays:
        found: npt.NDArray[np.float32] = arrays["output"]
    return found


def convert(folder: Path, model: Path, data: Digits, board: Board) -> dict[str, Path]:
    """An int8 and a float bundle for a board."""
    np.savez(folder / "calibrate.npz", x=data.train_x, y=data.train_y)
    np.savez(folder / "evaluate.npz", x=data.stream_x, y=data.stream_y)
    made = {}
    for kind, quantize in (("int8", "int8"), ("float", "none")):
        (folder / kind).mkdir()
        made[kind] = folder / kind / "digits.edge"
        line = [sys.executable, "-m", "converter.cli", model, "--target", board.profile, "--quantize", quantize]
        line += ["--calibrate", folder / "calibrate.npz", "--evaluate", folder / "evaluate.npz", "-o", made[kind]]
        quietly(line, "edge-convert")
    return made


def verify(system: System, board: Board, bundles: dict[str, Path], data: Digits, findings: Findings) -> None:
    """`edge-bundle verify` and `run` of both bundles."""
    samples = bundles["int8"].parent.parent / "samples.npz"
    np.savez(samples, input=data.test_x)
    for kind, bundle in bundles.items():
        python = system.line(board)
        said = quietly([*python, "-m", "edge.cli.bundle", "verify", bundle], "edge-bundle verify")
        findings.add(f"edge-bundle verify, {kind}", said.strip().partition(": ")[2].partition(", sha256")[0], True)
        there, here = (outputs(each, bundle, samples, bundle.parent) for each in (python, [sys.executable]))
        same = int((there.argmax(1) == here.argmax(1)).sum())
        apart = float(np.abs(there - here).max())
        came = f"{same} of {len(here)} classes the same, logits apart by {apart:.1g}"
        findings.add(f"edge-bundle run, {kind}", came, same >= len(here) * (1.0 if kind == "float" else 0.99))


def live(system: System, board: Board, bundles: dict[str, Path], data: Digits, findings: Findings, place: Path) -> None:
    """See the module."""
    with BoardAndHere(place, bundles["int8"], system, board) as fleet:
        agents = fleet.agents()
        said = fleet.fleet("device", "list", "--where", f'profile = "{board.profile}"', "--json")
        found = {row["id"] for row in json.loads(said)}
        findings.add("edge-agent finds the profile by itself", board.profile, "arm" in found)
        compare(agents, data, "int8", findings, "turned digits, before labels")
        teach(agents, data, LABELS)
        fleet.kill("arm")  # most of them wait for the learning budget
        fleet.start_agent("arm")
        agents = fleet.agents()

        wait_until_learned(agents, LABELS)
        compare(agents, data, "int8", findings, f"after {LABELS} labels and kill -9")

        def contributed() -> bool:
            return sum(row["version"] >= LABELS for row in fleet.asked("contributions")) == len(fleet.devices)

        wait_for("contributions of both", contributed, PATIENCE_S)
        merged = json.loads(fleet.fleet("merge", "--json"))[0]["counter"]
        wait_for("the merged head on both", lambda: fleet.live(merged), PATIENCE_S)
        compare(agents, data, "int8", findings, "after the merge")

        fleet.fleet("keys", "sign", str(bundles["float"]), "--key", str(fleet.keys / "workstation/bundles.pem"))
        # Of two devices one would be the canary, and hold it: the new bundle answers otherwise, and nobody judged it.
        pushed = json.loads(fleet.fleet("push", str(bundles["float"]), "--all-at-once", "--json"))
        wait_for("the float bundle on both", lambda: fleet.live(pushed["counter"]), PATIENCE_S)
        signed = "signed" if pushed["signed"] else "unsigned"
        findings.add(f"edge-fleet push --all-at-once of the float bundle, {signed}", "active on both", pushed["signed"])
        compare(agents, data, "float", findings, "after the push: a new bundle, which has learned nothing yet")
        teach(agents, data, AGAIN)
        wait_until_learned(agents, AGAIN)
        compare(agents, data, "float", findings, f"after {AGAIN} labels")


def main() -> int:
    """Every board."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "edgeloop-arm", help="kept")
    parser.add_argument("--boards", default=",".join(board.profile for board in BOARDS), help="separated by commas")
    options = parser.parse_args()
    asked = options.boards.split(",")
    if unknown := set(asked) - {board.profile for board in BOARDS}:
        parser.error(f"--boards: not known: {', '.join(sorted(unknown))}")
    lacking = [each for each in ("apt-get", "dpkg") if shutil.which(each) is None]
    if lacking or EMULATOR is None:
        print(f"needs {', '.join(lacking) or 'qemu-aarch64: apt-get install qemu-user'}")
        return 2
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    os.environ |= {"EDGE_SIGN_PASSWORD": "emulated"}
    system, data, failed = System(options.work), load_digits_split(), False
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model.pth"
        quietly([sys.executable, ROOT / "examples/01_digits_fleet/model.py", model], "training")
        for board in (board for board in BOARDS if board.profile in asked):
            print(f"{board.model}: {board.cpu}, emulated", flush=True)
            place, findings = Path(name) / board.profile, Findings()
            place.mkdir()
            system.become(board)
            bundles = convert(place, model, data, board)
            verify(system, board, bundles, data, findings)
            live(system, board, bundles, data, findings, place)
            failed |= findings.failed
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
