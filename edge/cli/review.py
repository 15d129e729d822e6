"""``edge-agent review``: answers of late and kept samples, with pictures; labels by hand, and files for relabelling."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.cli.running import agent_of, asking, of_one, print_json, says, target
from edge.cli.terminal import many, say
from edge.contract.errors import ConfigError, LearningError

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge.agent.client import AgentClient

COLUMNS = ("id", "label", "answered", "confidence", "time", "file")
MAX_SHOWN = 200  # that an agent gives
_MOST_WIDE = 48  # of a picture on the terminal, in characters
_SHADES = " .:-=+*#%@"


@click.command(
    epilog="Examples: edge-agent review --ask; edge-agent review --export relabel && edge-agent label "
    "--file relabel/labels.csv"
)
@click.option("--count", default=24, type=click.IntRange(1, 200), help="Samples at most.")
@click.option(
    "--kept/--recent", default=None, help="Those on disk, or the last ones.  [default: kept, if there are any]"
)
@click.option("--wrong", is_flag=True, help="Of the last ones, those whose label says otherwise than the answer.")
@click.option("--pictures/--no-pictures", default=True, help="Draw pictures and sounds on the terminal.")
@click.option("--ask", is_flag=True, help="Ask for the label of each; empty passes one over, q ends.")
@click.option(
    "--export", "folder", type=click.Path(path_type=Path), help="Write pictures, arrays and labels.csv there."
)
@asking
def review(
    count: int,
    kept: bool | None,
    wrong: bool,
    pictures: bool,
    ask: bool,
    folder: Path | None,
    state_dir: Path,
    socket_path: Path | None,
    timeout: float,
    as_json: bool,
    model: str | None,
) -> None:
    """Look at what the running agent answered: samples that it keeps because a label would help, or the last ones.

    It remembers the last ones only with --http or --keep-hard of `edge-agent run`, and keeps some only with the latter.
    """
    if wrong and kept:
        raise ConfigError("--wrong is about the last ones: what is kept has no label yet; leave --kept out")
    with agent_of(state_dir, socket_path, timeout, model) as agent:
        classes = of_one(agent.status()).get("classes", [])
        found = agent.request({"op": "review", "count": MAX_SHOWN if wrong else count}, "recent", "kept")
        if wrong:
            samples = [each for each in found["recent"] if _is_wrong(each, classes)][:count]
        else:
            samples = found["kept"] if (kept if kept is not None else found["kept"]) else found["recent"]
        if folder is not None:
            written = many(_export(agent, samples, folder), "sample")
            say(f"wrote {written} to {folder}; fill in `label` of labels.csv, then edge-agent label --file")
            return
        if as_json:
            for sample in samples:
                print_json(sample)
            return
        if not samples and wrong:
            n = sum(each["label"] is not None for each in found["recent"])
            say(f"none of the last {len(found['recent'])} answers that are remembered has a label that says otherwise; "
                f"{n} have a label")  # fmt: skip
        elif not samples:
            say("there are none; `edge-agent run --keep-hard 50` keeps samples whose label would help")
        for sample in samples:
            say(_line(sample))
            if pictures:
                for row in _drawn(_inputs(agent, sample["id"])):
                    say(f"    {row}")
            if ask and not _asked(agent, sample["id"], classes):
                return


def _is_wrong(sample: Mapping[str, Any], classes: list[str]) -> bool:
    """Whether the label of a sample is another class than was answered, or than was nearest."""
    answer, label = sample["answer"].get("nearest", sample["answer"]), sample["label"]
    if label is None or "class" not in answer:
        return False
    number = classes.index(label) if label in classes else label
    return bool(number != answer["class"])


def _line(sample: Mapping[str, Any]) -> str:
    answer = sample["answer"]
    shown = says(answer) if answer.keys() & {"class", "values"} else "arrays"
    label = "" if sample.get("label") is None else f"; it was {sample['label']}"
    wanted = "; its label would help" if answer.get("label_wanted") and not label else ""
    return f"{sample['id']}  {_time(sample['at_ms'])}  {shown}{wanted}{label}"


def _time(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000))


def _asked(agent: AgentClient, sample_id: str, classes: list[str]) -> bool:
    """Ask for the label of a sample; False to end."""
    while True:
        text = str(click.prompt("    it was", default="", show_default=False)).strip()
        if text == "q":
            return False
        if not text:
            return True
        try:
            found = agent.label(sample_id, target(text, classes))
            say("    learned" if found else f"    not taken: {found.why}")
            return True
        except LearningError as exc:
            say(f"    {exc}")


def _inputs(agent: AgentClient, sample_id: str) -> dict[str, npt.NDArray[Any]]:
    """What a sample was; nothing where that is not remembered."""
    try:
        found: dict[str, npt.NDArray[Any]] = agent.request({"op": "sample", "id": sample_id}, "inputs")["inputs"]
    except LearningError:
        return {}
    return found


def _drawn(inputs: Mapping[str, npt.NDArray[Any]]) -> Iterator[str]:
    """The first input that can be shown, in characters."""
    import numpy as np

    from edge.agent.model.pictures import picture_of

    for array in inputs.values():
        pixels = picture_of(array)
        if pixels is not None:
            grey = pixels.mean(axis=2) if pixels.ndim == 3 else pixels
            step = max(1, -(-grey.shape[1] * 2 // _MOST_WIDE))
            for row in grey[::step, ::step]:
                yield "".join(2 * _SHADES[int(value) * len(_SHADES) // 256] for value in row)
            return
        values = np.asarray(array, np.float64).reshape(-1)
        if values.size > 3:
            bars = "▁▂▃▄▅▆▇█"
            parts = [part.mean() for part in np.array_split(values, min(_MOST_WIDE, values.size))]
            low, high = min(parts), max(parts)
            yield "".join(bars[int((value - low) / (high - low or 1.0) * 7.999)] for value in parts)
            return


def _export(agent: AgentClient, samples: list[dict[str, Any]], folder: Path) -> int:
    """Pictures as PNG, everything as .npz, and a table to fill in."""
    import csv

    import numpy as np

    from edge.agent.model.pictures import picture_of, png
    from edge.contract.files import replace_file

    if (folder / "labels.csv").exists():
        raise ConfigError(f"{folder}/labels.csv exists, and may have labels in it; name another folder, or delete it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(COLUMNS)
        for i, sample in enumerate(samples):
            stem = f"{i:04}-{re.sub(r'[^A-Za-z0-9.-]+', '_', sample['id'])[-60:]}"
            inputs, shown = _inputs(agent, sample["id"]), ""
            if inputs:
                with replace_file(folder / f"{stem}.npz") as file:
                    np.savez(file, **inputs)  # type: ignore[arg-type]
                shown = f"{stem}.npz"
            for array in inputs.values():
                pixels = picture_of(array)
                if pixels is not None:
                    with replace_file(folder / f"{stem}.png") as file:
                        file.write(png(pixels))
                    shown = f"{stem}.png"
                    break
            answer = sample["answer"]
            nearest = answer.get("nearest", answer)
            said = nearest.get("name", nearest.get("class", answer.get("values", "")))
            row = [sample["id"], "", said, nearest.get("confidence", ""), _time(sample["at_ms"]), shown]
            writer.writerow(row)
        with replace_file(folder / "labels.csv") as file:
            file.write(table.getvalue().encode())
    except OSError as exc:
        raise ConfigError(f"{folder} cannot be written: {exc.strerror}") from exc
    return len(samples)
