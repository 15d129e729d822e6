"""``edge-agent replay`` and ``edge-agent explain``, as people call them."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edge.agent.model.on_device_model import OnDeviceModel
from edge.cli.agent import agent
from edge.cli.terminal_plot import heat_map, line_plot
from edge.contract.errors import ConfigError, LearningError


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(agent, [str(argument) for argument in arguments])


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """160 samples of ten kinds that the shipped head knows nothing of."""
    rng = np.random.default_rng(3)
    kinds, y = rng.random((10, 1, 8, 8)), rng.integers(0, 10, 160)
    x = np.clip(kinds[y] + rng.normal(0, 0.1, (160, 1, 8, 8)), 0, 1).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=x, y=y)
    return tmp_path / "samples.npz"


def test_replays_a_file_and_says_what_came_of_it(tmp_path: Path, digits_bundle: Path, samples: Path) -> None:
    report, plot = tmp_path / "report.json", tmp_path / "plot.png"
    found = invoke("replay", digits_bundle, samples, "--test", samples, "--json", report, "--plot", plot)
    assert found.exit_code == 0, found.output
    numbers = json.loads(report.read_text())
    assert numbers["samples"] == 160
    assert numbers["without_learning_accuracy"] < 0.3
    assert numbers["predict_then_learn_accuracy"] > 0.6
    assert numbers["test_accuracy"] > 0.7 > numbers["test_accuracy_before"]
    assert numbers["believed"] in numbers["learners"] == ["statistics", "lifted", "sgd"]
    assert {event["kind"] for event in numbers["events"]} <= {"believed", "drift"}
    for text in ("predict-then-learn accuracy", f"believed most: {numbers['believed']}, ", "█", "- 16 of 160 samples"):
        assert text in found.output
    assert plot.read_bytes()[:4] == b"\x89PNG"


def test_nothing_is_kept_without_a_folder_and_all_with_one(tmp_path: Path, digits_bundle: Path, samples: Path) -> None:
    state = tmp_path / "state"
    invoke("replay", digits_bundle, samples)
    assert not state.exists()
    assert invoke("replay", digits_bundle, samples, "--state-dir", state).exit_code == 0
    model = OnDeviceModel.open(digits_bundle, state)
    assert (model.n_samples, model.state.warnings) == (160, [])
    model.close()


def test_late_labels_are_learned_in_the_end(tmp_path: Path, digits_bundle: Path, samples: Path) -> None:
    report = tmp_path / "report.json"
    found = invoke("replay", digits_bundle, samples, "--late", 1000, "--test", samples, "--json", report)
    assert found.exit_code == 0, found.output
    numbers = json.loads(report.read_text())
    assert numbers["predict_then_learn_accuracy"] == numbers["without_learning_accuracy"]
    assert numbers["test_accuracy"] > 0.7


def test_class_names_are_understood_and_new_ones_added_when_asked(tmp_path: Path, digits_bundle: Path) -> None:
    x = np.random.default_rng(0).random((20, 1, 8, 8), np.float32)
    names = np.array(["3"] * 10 + ["smudge"] * 10)
    np.savez(tmp_path / "named.npz", x=x, y=names)
    refused = invoke("replay", digits_bundle, tmp_path / "named.npz")
    assert isinstance(refused.exception, ConfigError)
    assert "smudge" in str(refused.exception)
    state = tmp_path / "state"
    added = invoke("replay", digits_bundle, tmp_path / "named.npz", "--add-classes", "--state-dir", state)
    assert added.exit_code == 0, added.output
    model = OnDeviceModel.open(digits_bundle, state)
    assert model.class_names[10:] == ("smudge",)
    model.close()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((3, 1, 8, 8), np.float32)}, "expected the arrays x and y"),
        ({"x": np.zeros((3, 1, 8, 8), np.float32), "y": np.zeros(2, int)}, "as many y as x"),
        ({"x": np.zeros((0, 1, 8, 8), np.float32), "y": np.zeros(0, int)}, "one at least"),
        ({"x": np.zeros((3, 9), np.float32), "y": np.zeros(3, int)}, "expected shape"),
        ({"x": np.full((3, 1, 8, 8), np.nan, np.float32), "y": np.zeros(3, int)}, "not finite"),
        ({"x": np.zeros((3, 1, 8, 8), np.float32), "y": np.full(3, 10)}, "labels must lie in 0..9"),
        ({"x": np.zeros((3, 1, 8, 8), np.float32), "y": np.zeros(3)}, "integer labels"),
        ({"x": np.zeros((3, 1, 8, 8), np.float32), "y": np.zeros(3, int), "weights": np.full(3, 2.0)}, "weights"),
    ],
)
def test_refuses_files_that_do_not_fit(
    tmp_path: Path, digits_bundle: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)  # type: ignore[arg-type]
    found = invoke("replay", digits_bundle, tmp_path / "bad.npz")
    assert isinstance(found.exception, ConfigError | LearningError)
    assert message in str(found.exception)


def test_a_plot_of_another_kind_is_refused_before_any_work(tmp_path: Path, digits_bundle: Path, samples: Path) -> None:
    found = invoke("replay", digits_bundle, samples, "--plot", tmp_path / "plot.gif", "--state-dir", tmp_path / "state")
    assert isinstance(found.exception, ConfigError)
    assert OnDeviceModel.open(digits_bundle, tmp_path / "state").n_samples == 0


def test_explains_a_sample_by_name_and_draws_it(tmp_path: Path, digits_bundle: Path, samples: Path) -> None:
    plot = tmp_path / "why.svg"
    found = invoke("explain", digits_bundle, samples, "--index", 2, "--output", "7", "--plot", plot)
    assert found.exit_code == 0, found.output
    assert "sample 2: 7 with" in found.output
    assert "darker: covering this place" in found.output
    assert b"<svg" in plot.read_bytes()
    blank = tmp_path / "blank.npz"
    np.savez(blank, x=np.zeros((1, 1, 8, 8), np.float32), y=[0])
    found = invoke("explain", digits_bundle, blank)
    assert "nothing to show: wherever it is covered, this answer is not lowered" in found.output
    for arguments in (("--index", 160), ("--output", "seven")):
        refused = invoke("explain", digits_bundle, samples, *arguments)
        assert isinstance(refused.exception, ConfigError)


def test_plots_of_text_show_what_they_are_given() -> None:
    lines = line_plot(np.linspace(0, 1, 50), "rising", 40).splitlines()
    assert lines[0] == "rising"
    heights = [sum(len(line) > column and line[column] not in " ─└" for line in lines[1:9]) for column in (8, 20, 38)]
    assert heights[0] < heights[1] < heights[2]
    shades = heat_map(np.array([[0.0, 1.0], [-1.0, 0.5]]), 10).splitlines()
    assert shades[0] == "  ██"
    assert shades[1].startswith("  ")
    assert shades[1][2] in "▒▓"


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own."""
    line = [sys.executable, "-m", "edge.cli.agent", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)


def test_a_file_that_is_read_is_not_written_and_what_cannot_be_written_is_said_before_learning(
    tmp_path: Path, digits_bundle: Path, samples: Path
) -> None:
    before = samples.read_bytes()
    for options, words in (
        (["--json", samples], "it would be lost"),
        (["--json", "."], "cannot be written"),
        (["--json", tmp_path / "no" / "x.json"], "No such file"),
        (["--plot", tmp_path / "no" / "x.png"], "No such file"),
    ):
        done = command("replay", digits_bundle, samples, *options, "--state-dir", tmp_path / "s")
        assert (done.returncode, words in done.stderr) == (3, True), done.stderr
        assert "Traceback" not in done.stderr
    assert samples.read_bytes() == before
    again = OnDeviceModel.open(digits_bundle, tmp_path / "s")
    assert again.n_samples == 0
    again.close()


def test_explaining_changes_nothing_and_takes_whichever_learner_there_is(
    tmp_path: Path, digits_bundle: Path, samples: Path
) -> None:
    done = command("replay", digits_bundle, samples, "--state-dir", tmp_path / "s", "--learner", "ridge")
    assert done.returncode == 0, done.stderr
    before = {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()}
    done = command("explain", digits_bundle, samples, "--state-dir", tmp_path / "s", "--plot", tmp_path / "a$^$[b].png")
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()} == before
    done = command("explain", digits_bundle, samples, "--state-dir", tmp_path / "typo")
    assert (done.returncode, "no state folder" in done.stderr) == (3, True)
    assert not (tmp_path / "typo").exists()


def test_odd_names_and_a_terminal_without_characters_do_no_harm(
    tmp_path: Path, digits_bundle: Path, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "x $a^$ [bold]b.npz"
    odd.write_bytes(samples.read_bytes())
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = command("replay", digits_bundle, odd, "--plot", tmp_path / "t[bold]1.png")
    assert done.returncode == 0, done.stderr
    assert "t[bold]1.png" in done.stdout
    assert done.stderr == ""


def test_explaining_writes_nothing_where_files_are_damaged_or_an_agent_has_the_folder(
    tmp_path: Path, digits_bundle: Path, samples: Path
) -> None:
    state = tmp_path / "s"
    with OnDeviceModel.open(digits_bundle, state) as model:
        for i in range(3):
            model.learn(np.full((1, 1, 8, 8), i / 3, np.float32), np.array([i]))
            model.state.save()
        model.learn(np.zeros((1, 1, 8, 8), np.float32), np.array([3]))
        kept = tree_of(state)
        found = invoke("explain", digits_bundle, samples, "--state-dir", state)
        assert found.exit_code == 0, found.output
        assert tree_of(state) == kept, "the folder is locked, and nothing is written"
    folder = next((state / "learned").iterdir())
    for damage in ("state.bin", "state.previous.bin"):
        data = bytearray((folder / damage).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / damage).write_bytes(data)
        kept = tree_of(state)
        found = invoke("explain", digits_bundle, samples, "--state-dir", state)
        assert found.exit_code == 0, found.output
        assert "damaged" in found.output
        assert tree_of(state) == kept


def tree_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its contents and when it changed."""
    found = {str(path): path for path in sorted(folder.rglob("*"))}
    return {name: (p.read_bytes() if p.is_file() else b"", p.stat().st_mtime_ns) for name, p in found.items()}


def test_what_cannot_be_explained_is_said_of_the_option_or_the_sample(tmp_path: Path, digits_bundle: Path) -> None:
    """Also the largest numbers there are, whose mean does not fit their type: warnings are errors here."""
    x = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    x[1] = 3e38
    x[2] = np.nan
    np.savez(tmp_path / "x.npz", x=x)
    for options, words in (
        (["--output", "12"], "--output 12: expected 0 to 9"),
        (["--window", "99"], "--window 99: "),
        (["--on", "features", "--window", "100"], "--window 100: "),
        (["--index", "2"], "x.npz, sample 2: "),
    ):
        found = invoke("explain", digits_bundle, tmp_path / "x.npz", *options)
        assert isinstance(found.exception, ConfigError), (options, found.exception)
        assert words in str(found.exception)
    for on in ("input", "features"):
        found = invoke("explain", digits_bundle, tmp_path / "x.npz", "--index", 1, "--on", on)
        assert found.exit_code == 0 or "not finite" in str(found.exception)
        assert found.exit_code == 0 or isinstance(found.exception, ConfigError), found.exception


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.array(3.0)}, "one at least"),
        ({"x": np.zeros((0, 1, 8, 8), np.float32)}, "one at least"),
    ],
)
def test_explain_needs_a_sample(tmp_path: Path, digits_bundle: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    done = command("explain", digits_bundle, tmp_path / "a.npz")
    assert (done.returncode, words in done.stderr) == (3, True), done.stderr


def test_a_weight_far_behind_is_found_before_anything_is_learned(tmp_path: Path, digits_bundle: Path) -> None:
    x, weights = np.zeros((100, 1, 8, 8), np.float32), np.ones(100)
    weights[90] = 2.0
    np.savez(tmp_path / "a.npz", x=x, y=np.zeros(100, np.int64), weights=weights)
    done = command("replay", digits_bundle, tmp_path / "a.npz", "--state-dir", tmp_path / "s")
    assert (done.returncode, "weights must be" in done.stderr) == (3, True), done.stderr
    again = OnDeviceModel.open(digits_bundle, tmp_path / "s")
    assert again.n_samples == 0
    again.close()


def records(path: Path) -> list[Any]:
    """The events in a file of TensorBoard: length, its checksum, the event, its checksum (TFRecord)."""
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event

    def masked(data: bytes) -> int:
        found = crc32c(data)
        return ((found >> 15 | found << 17) + 0xA282EAD8) & 0xFFFFFFFF

    data, at, events = path.read_bytes(), 0, []
    while at < len(data):
        length, of_length = struct.unpack_from("<QI", data, at)
        body = data[at + 12 : at + 12 + length]
        assert of_length == masked(data[at : at + 8])
        assert struct.unpack_from("<I", data, at + 12 + length)[0] == masked(body)
        events.append(Event.FromString(body))
        at += 16 + length
    return events


def test_a_replay_can_be_looked_at_in_tensorboard(tmp_path: Path, digits_bundle: Path, samples: Path) -> None:
    report, folder = tmp_path / "report.json", tmp_path / "runs" / "one"
    found = invoke("replay", digits_bundle, samples, "--json", report, "--tensorboard", folder)
    assert found.exit_code == 0, found.output
    (file,) = folder.iterdir()
    curves: dict[str, dict[int, float]] = {}
    for event in records(file):
        for value in event.summary.value:
            curves.setdefault(value.tag, {})[event.step] = value.simple_value
    numbers = json.loads(report.read_text())
    n = 160
    for tag in ("accuracy/predict_then_learn", "accuracy/without_learning", "loss/each_sample", "drift/labels_since"):
        assert list(curves[tag]) == list(range(1, n + 1)), tag
    whole = np.mean([curves["accuracy/predict_then_learn"][i] for i in range(16, n + 1, 16)])
    assert whole == pytest.approx(numbers["predict_then_learn_accuracy"], abs=0.02), "windows of 16 side by side"
    weights = {tag: curve for tag, curve in curves.items() if tag.startswith("weight/")}
    assert {"weight/shipped", "weight/trusted", "weight/statistics", "weight/sgd"} <= set(weights)
    for step in (1, n):
        assert sum(curve.get(step, 0.0) for curve in weights.values()) == pytest.approx(1.0, abs=1e-5)
    assert curves["loss/each_sample"][n] < curves["loss/each_sample"][1]
    end = curves["end/predict_then_learn_accuracy"]
    assert end[n] == pytest.approx(numbers["predict_then_learn_accuracy"])
    (tmp_path / "file").write_text("")
    refused = invoke(
        "replay", digits_bundle, samples, "--tensorboard", tmp_path / "file", "--state-dir", tmp_path / "s"
    )
    assert isinstance(refused.exception, ConfigError)
    assert "--tensorboard" in str(refused.exception)


def test_the_old_name_of_replay_works_and_says_the_new_one(digits_bundle: Path, samples: Path) -> None:
    found = invoke("learn", digits_bundle, samples, "--order", "shuffled")
    assert found.exit_code == 0, found.output
    assert "edge-agent learn is called edge-agent replay now" in found.stderr
    assert "160 samples" in found.output
    assert "learn " not in invoke("--help").output.partition("Commands:")[2]
    assert invoke("learn", "--nonsense").exit_code == 2


def test_several_inputs_are_learned_and_explained_by_name(
    tmp_path: Path, masked_bundles: tuple[Path, Path], spotter_bundle: Path
) -> None:
    rng = np.random.default_rng(0)
    y = np.where(np.arange(60) % 3, 2, 0)
    mask = rng.random((60, 3, 4)) < np.where(y, 0.9, 0.2)[:, None, None]
    names = np.array(["ok", "scratch", "dent"])[y]
    given = {"image": rng.random((60, 1, 3, 4), np.float32), "mask": mask}
    np.savez(tmp_path / "two.npz", **given, y=names)
    report = tmp_path / "report.json"
    for order in ("file", "shuffled", "class"):
        found = invoke("replay", masked_bundles[0], tmp_path / "two.npz", "--order", order, "--json", report)
        assert found.exit_code == 0, found.output
        numbers = json.loads(report.read_text())
        assert numbers["samples"] == 60
        assert numbers["last_quarter_accuracy"] > 0.8 > numbers["without_learning_accuracy"]
    for on in ("image", "mask", "features"):
        line = ["explain", masked_bundles[0], tmp_path / "two.npz", "--index", 1, "--on", on, "--output", "dent"]
        found = invoke(*line, "--plot", tmp_path / f"{on}.png")
        assert found.exit_code == 0, found.output
        assert "sample 1: dent with" in found.output
        assert (tmp_path / f"{on}.png").exists()
    wrong = invoke("explain", masked_bundles[0], tmp_path / "two.npz", "--on", "input")
    assert "expected image, mask or features" in str(wrong.exception)
    np.savez(tmp_path / "one.npz", x=given["image"], y=y)
    np.savez(tmp_path / "uneven.npz", image=given["image"], mask=mask[:50], y=y)
    for file, words in (("one", "expected the arrays image, mask and y"), ("uneven", "'mask': 50")):
        refused = invoke("replay", masked_bundles[0], tmp_path / f"{file}.npz")
        assert isinstance(refused.exception, ConfigError)
        assert words in str(refused.exception)
    refused = invoke("replay", masked_bundles[1], tmp_path / "two.npz")
    assert isinstance(refused.exception, LearningError)
    assert "no trainable head; convert with --trainable" in str(refused.exception)
    # Why it answers so can be said without a head; but there are no features.
    found = invoke("explain", masked_bundles[1], tmp_path / "two.npz", "--on", "mask", "--output", 1)
    assert found.exit_code == 0, found.output
    for option, words in (("features", "no trainable head, and so no features"), ("input", "expected image or mask")):
        refused = invoke("explain", masked_bundles[1], tmp_path / "two.npz", "--on", option)
        assert isinstance(refused.exception, ConfigError)
        assert words in str(refused.exception)
    refused = invoke("explain", masked_bundles[1], tmp_path / "two.npz", "--on", "mask", "--output", 9)
    assert "there is no output 9; expected 0 to 2" in str(refused.exception)

    frames = rng.normal(size=(100, 6)).astype(np.float32)  # one stream, more than go into a run
    np.savez(tmp_path / "stream.npz", frame=frames, y=np.array(["on"] * 100))
    found = invoke("replay", spotter_bundle, tmp_path / "stream.npz", "--json", report)
    assert found.exit_code == 0, found.output
    with OnDeviceModel.open(spotter_bundle) as model:
        shipped = (model.predict(frames).argmax(axis=1) == 0).mean()
    assert json.loads(report.read_text())["without_learning_accuracy"] == pytest.approx(shipped)
