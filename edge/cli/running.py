"""``edge-agent status | predict | label | rollback | export``: talk to an agent that runs on this device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edge.cli.configured import config_option
from edge.cli.terminal import many, shown
from edge.contract.errors import ConfigError, LearningError, harmless

if TYPE_CHECKING:
    from edge.agent.client import AgentClient
    from edge.contract.tensorspec import TensorSpec
    from edge.inference.session import Arrays

F = TypeVar("F", bound=Callable[..., None])
_PATH = click.Path(path_type=Path)
_SHORT = 12  # digits of a digest


def asking(function: F) -> F:
    """The options by which the running agent is found."""
    for option in reversed(
        [
            config_option(exposed=False),
            click.option("--state-dir", default="edge-state", type=_PATH, help="As `edge-agent run` was told."),
            click.option("--socket", "socket_path", type=_PATH, help="[default: STATE_DIR/agent.sock]"),
            click.option("--model", help="Name of the model that is meant.  [default: the only one]"),
            click.option(
                "--timeout", default=10.0, type=click.FloatRange(0.01, 3600), help="Seconds to wait for an answer."
            ),
            click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object a line."),
        ]
    ):
        function = option(function)
    return function


def agent_of(state_dir: Path, socket_path: Path | None, timeout: float, model: str | None) -> AgentClient:
    """A connection to the running agent."""
    from edge.agent.client import AgentClient

    return AgentClient(socket_path or state_dir / "agent.sock", timeout, model=model)


def _say(text: str) -> None:
    click.echo(harmless(text))


def print_json(answer: Mapping[str, Any]) -> None:
    """An answer as one object on a line."""
    from edge.agent.wire import encode_line

    click.echo(encode_line(answer), nl=False)


@click.command(epilog="Example: edge-agent status --state-dir /var/lib/edge")
@asking
def status(state_dir: Path, socket_path: Path | None, timeout: float, as_json: bool, model: str | None) -> None:
    """Say what the running agent runs, what it learned, and what it waits for."""
    with agent_of(state_dir, socket_path, timeout, model) as agent:
        found = agent.status()
    if as_json:
        print_json(found)
        return
    for line in _status_lines(found):
        _say(line)


def of_one(found: dict[str, Any]) -> dict[str, Any]:
    """The status of one model.

    Raises:
        ConfigError: There are several, and none was named.
    """
    if "bundle" not in found:
        raise ConfigError(
            f"this agent has several models; name one of {', '.join(found.get('models', ()))} with --model"
        )
    return found


def _status_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What the status says, for people. What an agent does not say is left out."""
    models: dict[str, Any] = {"": found} if "bundle" in found else found.get("models", {})
    started, connected = (
        "started once" if found.get("boot") == 1 else f"started {found.get('boot', '?')} times",
        "connected" if found.get("connected") else "not connected",
    )
    if found.get("coordinator") == "gone":
        connected += ", no coordinator listens"
    for name, model in models.items():
        yield f"{found['device']}{name and ' ' + name}: bundle {model['bundle'][:_SHORT]}, {started}"
        yield from _model_lines(model, connected)
    for name, why in found.get("not_served", {}).items():
        yield f"{found['device']} {name}: not served, {why}"
    if says := found.get("admission", {}).get("says"):
        yield f"  fleet     {says}"
    if found.get("releases"):
        yield f"  releases  {found['releases']}"
    if data := found.get("data"):
        yield f"  data      {data['used_mb']:g} MB used, {data['left_mb']:g} MB left until {data['until']}"
    for trouble in found.get("broker_troubles", ()):
        yield f"  broker    {trouble}"
    if found.get("resident_mb") is not None:
        yield f"  memory    {found['resident_mb']:.0f} MiB"


def _of_quantities(found: Mapping[str, Any]) -> str:
    """What labels of quantities say."""
    late = "" if found.get("loss") is None else f", mean loss {found['loss']:.4g} on the last that came"
    if found.get("goes_with") is None:
        return late
    late += f"; they go with the samples by {found['goes_with']:.2f} of 1"
    if found["counts"] >= 1.0:
        return late
    if not found["counts"]:
        return f"{late}, too little to be believed: the head that was trusted before answers"
    return f"{late}, and count by {found['counts']:.0%}"


def _model_lines(found: Mapping[str, Any], connected: str) -> Iterator[str]:
    if found.get("head"):
        yield f"  head      {found['head'][:_SHORT]}, of {found.get('believed', '')}"
    if found.get("learners"):
        yield f"  learners  {', '.join(found['learners'])}"
    for name, (share, accuracy, labels) in sorted(found.get("experts", {}).items(), key=lambda item: -item[1][0]):
        right = f", right on {accuracy:.0%} of late labels" if labels else ""
        if labels and "quantities" in found:
            right = f", loss {found['quantities']['times_usual'][name]:.1f} times the usual one on late labels"
        yield f"  expert    {share:>4.0%} of the say  {name}{right}"
    if found.get("learner") == "none":
        yield f"  labels    none: {found.get('why', '')}"
    waiting = f", {found['waiting']} wait for {found.get('waiting_for', '')}" if found.get("waiting") else ""
    late = "" if found.get("accuracy") is None else f", right on {found['accuracy']:.1%} of the last that came"
    late += _of_quantities(found.get("quantities", {}))
    if "samples" in found:
        yield f"  labels    {found['samples']} learned{late}{waiting}"
    if noise := found.get("noise"):
        more = noise["told_epsilon"] > noise["epsilon"]
        before = f" (some with epsilon {noise['told_epsilon']:g})" if more else ""
        told = noise["why_not"] or f"{noise['told']} labels told of{before}, {noise['pending']} not yet"
        yield f"  noise     epsilon {noise['epsilon']:g}, delta {noise['delta']:g}: {told}"
    if streams := found.get("streams"):
        yield f"  streams   {streams['open']} of at most {streams['most']}, {streams['forgotten']} made room for others"
    if found.get("provider"):
        yield f"  runs on   {_provider(found['provider'])}"
    for key, title in (("paused", "paused"), ("unsafe", "unsafe")):
        if found.get(key):
            yield f"  {title:<9} {found[key]}"
    yield f"  release   {found.get('release', 0)}, {found.get('state', '')}; broker: {connected}"
    if found.get("merge"):
        yield f"  merge     {found['merge'].removeprefix('the merge ')}"


def _provider(found: Mapping[str, Any]) -> str:
    """The execution provider that is used, and what else there was."""
    times = sorted(found["latency_ms"].items(), key=lambda item: item[1])
    said = [f"{name} takes {ms:.3g} ms" for name, ms in times]
    said += [f"{name} left out: {why}" for name, why in found["left_out"].items()]
    return str(found["name"]) + (f" ({'; '.join(said)})" if said else "")


@click.command(
    epilog="Examples: edge-agent predict frame.png --id frame-17; edge-agent predict samples.npz --index 3 --json"
)
@click.argument("files", nargs=-1, required=True, type=_PATH)
@click.option("--id", "sample_id", help="Name by which its label comes, of one sample.  [default: FILE or FILE:INDEX]")
@click.option("--index", type=click.IntRange(0), help="Only this sample of each file, from 0.")
@click.option("--stream", help="Whose samples they are, of a model that remembers.")
@click.option("--reset", is_flag=True, help="The stream begins anew with the first of them.")
@asking
def predict(
    files: tuple[Path, ...],
    sample_id: str | None,
    index: int | None,
    stream: str | None,
    reset: bool,
    state_dir: Path,
    socket_path: Path | None,
    timeout: float,
    as_json: bool,
    model: str | None,
) -> None:
    """Ask the running agent for its answer to samples in FILES.

    A file is an .npy (one sample, or several along its first axis), an .npz (the inputs by name; of one input under any
    name, else x) or an image (.png, .jpg, .bmp: needs Pillow). Arrays of an answer are printed whole with --json only.
    """
    from edge.contract.tensorspec import TensorSpec

    with agent_of(state_dir, socket_path, timeout, model) as agent:
        specs = [TensorSpec.from_json(spec) for spec in of_one(agent.status())["inputs"]]
        samples = [each for file in files for each in _samples(file, specs, index)]
        if sample_id is not None and len(samples) != 1:
            raise ConfigError(f"--id names one sample, there are {len(samples)}; choose one with --index")
        for i, (name, x) in enumerate(samples):
            answer = agent.predict(sample_id or name, x, stream=stream, reset=reset and i == 0)
            if as_json:
                print_json({"id": sample_id or name, **answer})
            else:
                _say(f"{sample_id or name}: {_answer(answer)}")


def _samples(file: Path, specs: list[TensorSpec], index: int | None) -> Iterator[tuple[str, Arrays]]:
    """The samples of a file with their names, by input and each with a batch axis of 1."""
    from edge.inference.named_arrays import fitted, read_array, read_arrays
    from edge.inference.pictures import SUFFIXES, PictureReader

    spec = specs[0]
    is_npz = file.suffix.lower() not in (*SUFFIXES, ".npy")
    names = [spec.name for spec in specs]
    if len(specs) > 1 and not is_npz:
        raise ConfigError(f"{file}: the model takes several inputs; give an .npz with the arrays {', '.join(names)}")
    if file.suffix.lower() in SUFFIXES:
        arrays = {spec.name: PictureReader(spec, str(file))(file)}
    elif file.suffix.lower() == ".npy":
        arrays = {spec.name: read_array(file)}
    else:
        arrays = read_arrays(file)
        if len(specs) == 1 and ((name := spec.name) in arrays or (name := "x") in arrays):
            arrays = {spec.name: arrays[name]}
        elif len(specs) > 1:  # as `edge-agent replay` takes it
            arrays = {name: array for name, array in arrays.items() if name in names or name not in ("y", "weights")}
    try:
        found = fitted(arrays, specs)
    except ConfigError as exc:
        raise ConfigError(f"{file}: {exc}") from exc
    axes = {spec.name: spec.batch_axis for spec in specs}
    counts = {found[name].shape[axis] for name, axis in axes.items() if axis is not None}
    if len(counts) > 1:
        raise ConfigError(f"{file}: expected as many samples of each input, got {', '.join(map(str, sorted(counts)))}")
    count = counts.pop() if counts else 1
    if index is not None and index >= count:
        raise ConfigError(f"--index {index}: {file} has the samples 0 to {count - 1}")
    for i in range(count) if index is None else [index]:
        one = {n: array if (a := axes[n]) is None else array.take([i], axis=a) for n, array in found.items()}
        yield file.name if count == 1 else f"{file.name}:{i}", one


def _answer(answer: Mapping[str, Any]) -> str:
    """An answer for people."""
    wanted = "; its label would help" if answer.get("label_wanted") else ""
    parts = [says(answer)] if answer.keys() & {"class", "classes", "values"} else []
    parts += [f"{name} {says(what)}" for name, what in answer.get("outputs", {}).items()]
    return "; ".join(parts) + wanted


def says(what: Mapping[str, Any]) -> str:
    """What one output says, for people."""
    if "class" in what and what["class"] is None:
        return f"none of these (nearest {says(what['nearest'])}; {what['novelty']:.2f} times as far as known ones)"
    if "class" in what:
        name = f"{shown(what['name'], 128)} (class {what['class']})" if "name" in what else f"class {what['class']}"
        return f"{name}, confidence {what['confidence']:.3f}" if "confidence" in what else name
    found = next(what[key] for key in ("values", "classes", "array") if key in what)
    if not isinstance(found, list):  # only as large as people like to read
        return f"{found.dtype} of shape {tuple(found.shape)}"
    return ", ".join(f"{value:.6g}" for value in found)


# A quantity may be negative, which looks like an option.
@click.command(
    epilog="Examples: edge-agent label frame-17 scratch; edge-agent label room-3 -1.5,0.25; edge-agent label --file L",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("sample_id", metavar="[ID]", required=False)
@click.argument("label", metavar="[LABEL]", required=False)
@click.option("--weight", default=1.0, type=click.FloatRange(0, 1), help="How much the label is trusted.")
@click.option("--file", "file", type=_PATH, help="Labels of a CSV with the columns id and label, or of JSON lines.")
@asking
def label(
    sample_id: str | None,
    label: str | None,
    weight: float,
    file: Path | None,
    state_dir: Path,
    socket_path: Path | None,
    timeout: float,
    as_json: bool,
    model: str | None,
) -> None:
    """Tell the running agent what the sample ID was, that it has answered.

    LABEL is the name of a class or its number; of a model of quantities or of several yes-or-no answers, one number for
    each output with commas between. Ends with 7 when the agent does not remember the sample; with --file all that it
    remembers are learned, and which it does not is said.
    """
    if (file is None) == (sample_id is None) or (sample_id is None) != (label is None):
        raise click.UsageError("expected ID and LABEL, or --file FILE")
    from edge.cli.label_files import read_labels

    given = (
        [{"id": sample_id, "label": label, "weight": weight}] if file is None
        else [{**each, "weight": each["weight"] * weight} for each in read_labels(file)]
    )  # fmt: skip
    if file is not None and not given:
        click.echo(f"{file}: no label is filled in, nothing was told", err=True)
    missed = []
    with agent_of(state_dir, socket_path, timeout, model) as agent:
        classes = of_one(agent.status()).get("classes", [])
        for each in given:
            said = each["label"]
            y = target(said, classes) if isinstance(said, str) else said
            try:
                answer = agent.request({"op": "label", "id": each["id"], "y": y, "weight": each["weight"]}, "joined")
            except LearningError as exc:
                if file is None:
                    raise
                answer = {"joined": False, "why": str(exc)}
            if as_json:
                print_json(answer if file is None else {"id": each["id"], **answer})
            if not answer["joined"]:
                missed.append(f"{each['id']}: the label was not taken: {answer.get('why', '')}")
            elif not as_json:
                kept = "is kept; it waits for the learning budget" if answer.get("queued") else "was learned"
                unsafe = f", and not on the disk: {answer['unsafe']}" if answer.get("unsafe") else ""
                _say(f"{each['id']}: {said} {kept}{unsafe}")
    if missed:
        raise LearningError("; ".join(missed[:3]) + (f"; and {len(missed) - 3} more" if len(missed) > 3 else ""))


def target(text: str, classes: list[str]) -> Any:
    """A label as the agent takes it: names first, since a class may have a number for a name."""
    if text in classes:
        return text
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return text if classes else [float(part) for part in text.split(",")]
    return text  # the agent says what it expected


@click.command(epilog="Example: edge-agent rollback --state-dir /var/lib/edge")
@asking
def rollback(state_dir: Path, socket_path: Path | None, timeout: float, as_json: bool, model: str | None) -> None:
    """Go back to what was there before the newest head or bundle that was pushed and took its place.

    A head on probation is taken back, and the one before learns the labels since. One that has its probation behind it,
    too, but then labels since are lost. Else the bundle before the live one is live again. A merge competes and takes
    nobody's place: labels decide how far it is believed. Ends with 7 when there is nothing to go back to.
    """
    with agent_of(state_dir, socket_path, timeout, model) as agent:
        found = agent.rollback()
    if as_json:
        print_json(found)
        return
    was, now = found["was"], found["now"]
    if found["slot"] == "bundle":
        _say(
            f"went back from the bundle {was['name']} ({was['bundle'][:_SHORT]}) to {now['name']} "
            f"({now['bundle'][:_SHORT]}), and what that had learned"
        )
        return
    base = f"what was there before, of release {now['release']}" if now["release"] else "what was there before it"
    lost = f"; {found['labels_lost']} labels that came since are not in it" if found.get("labels_lost") else ""
    _say(f"went back from the head of release {was['release']} to {base}{lost}")


@click.command(epilog="Examples: edge-agent export head.safetensors; edge-agent export stick/camera-1 --for-fleet")
@click.argument("path", type=_PATH)
@click.option("--for-fleet", is_flag=True, help="What the coordinator would have been told, for `edge-fleet import`.")
@click.option("--checkpoint", is_flag=True, help="With --for-fleet: all that was learned along with it.")
@asking
def export(
    path: Path,
    for_fleet: bool,
    checkpoint: bool,
    state_dir: Path,
    socket_path: Path | None,
    timeout: float,
    as_json: bool,
    model: str | None,
) -> None:
    """Write a head of the running agent to PATH, as `edge-fleet push` and PyTorch take it.

    It is the one with the most say of those in the form of the bundle's. `converter.load_head_into(model, PATH)`
    puts it into the model that the bundle was made from.

    With --for-fleet, for sites without a network: who this device is, where its releases stand, and what it learned.
    """
    from edge.contract.files import check_writable

    if checkpoint and not for_fleet:
        raise ConfigError("--checkpoint needs --for-fleet")
    check_writable(path)
    with agent_of(state_dir, socket_path, timeout, model) as agent:
        if for_fleet:
            carried = agent.carry_out(path, checkpoint=checkpoint)
            if as_json:
                print_json({"path": str(path), **carried})
            else:
                documents = many(carried["documents"], "document")
                _say(f"wrote {path}: {documents}, {carried['bytes']} bytes; `edge-fleet import` it")
            return
        found = agent.export_head(path)
    if as_json:
        print_json({"path": str(path), **found})
        return
    _say(f"wrote {path}: the head {found['origin']}, {many(found['samples'], 'label')}, {found['bytes']} bytes")


@click.command("import", epilog="Example: edge-agent import stick/release-7")
@click.argument("path", type=_PATH)
@asking
def take_in(
    path: Path, state_dir: Path, socket_path: Path | None, timeout: float, as_json: bool, model: str | None
) -> None:
    """Give the running agent what `edge-fleet export-release` wrote to PATH, for sites without a network.

    It is proved, tried and watched as what comes over the line; `edge-agent status` says what became of it. The agent
    itself must be able to read PATH.
    """
    with agent_of(state_dir, socket_path, timeout, model) as agent:
        taken = agent.carry_in(path)
    if as_json:
        print_json({"taken": taken})
    elif not taken:
        _say(f"{path} has nothing for this device, which took nothing")
    for each in () if as_json else taken:
        _say(f"took {each}")
