"""``edge-bundle``: look into a bundle without running it, check it, run it and measure it on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge import __version__
from edge.cli.terminal import say, shown
from edge.contract.choices import PROVIDERS
from edge.contract.errors import BundleError, ConfigError
from edge.contract.exits import run_to_exit
from edge.contract.foreign import foreign

if TYPE_CHECKING:
    from edge.contract.bundle import Bundle

_PATH = click.Path(path_type=Path)
_on_provider = click.option(
    "--provider",
    default="cpu",
    type=click.Choice(PROVIDERS),
    help="Execution provider of the installed onnxruntime; auto measures all that there are.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="edge-bundle")
def bundle() -> None:
    """Inspect, verify, run, measure, compare, sign and unpack bundles."""


@bundle.command()
@click.argument("path", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="The whole manifest.")
def inspect(path: Path, as_json: bool) -> None:
    """Print what a bundle is; its digests are checked."""
    from edge.contract.bundle import Bundle

    found = Bundle.open(path)
    manifest = json.loads(found.manifest.encode())
    if as_json:
        click.echo(json.dumps(manifest | {"sha256": found.digest}, indent=1, ensure_ascii=False))
        return
    say(f"{found.manifest.name}, sha256 {found.digest}, by {found.manifest.created_by}")
    notes = {("output", found.manifest.answer): ", the answer"}
    for pair in found.manifest.states:
        notes["input", pair.input] = f", state: {pair.output} of the sample before, at first zeros"
        notes["output", pair.output] = f", state: {pair.input} of the next sample"
    for title, specs in (("input", found.manifest.inputs), ("output", found.manifest.outputs)):
        for spec in specs:
            said = notes.get((title, spec.name), "")
            if title == "output" and spec.name in found.manifest.kinds:
                said += f", {found.manifest.kinds[spec.name].kind}"
            say(f"  {title:<8} {spec.name} {spec.describe()} {spec.dtype}{said}")
    for name, value in found.manifest.constants.items():
        say(f"  constant {name} = {json.dumps(value, ensure_ascii=False)}")
    say(f"  batch    {found.manifest.batch}")
    if found.manifest.carried:
        say(f"  carried as its file has it, because {found.manifest.carried}")
    names = found.manifest.class_names
    if names:
        first = ", ".join(shown(name, 128) for name in names[:12])
        say(f"  classes  {len(names)}: {first}{', ...' if len(names) > 12 else ''}")
    for key in ("preprocessing", "quantization"):
        if manifest[key]:
            say(f"  {key}: {json.dumps(manifest[key], ensure_ascii=False)}")
    head = found.manifest.head
    if head is None:
        say("  head     none: nothing is trainable")
    else:
        shapes = ", ".join(f"{parameter.name} {tuple(parameter.shape)}" for parameter in head.parameters)
        say(f"  head     {head.features.describe()} -> {head.output}: {shapes}")
    for role, member in found.manifest.members.items():
        say(f"  {member.size_bytes:>10} bytes  {role}  {member.digest[:12]}")


@bundle.command()
@click.argument("path", type=_PATH)
@click.option("--key", type=_PATH, help="Public key (PEM): the bundle must be signed with its private key.")
@click.option("--signature", type=_PATH, help="[default: PATH.sig]")
@_on_provider
def verify(path: Path, key: Path | None, signature: Path | None, provider: str) -> None:
    """Check every digest, the golden outputs on this CPU, and with --key the signature."""
    from edge.contract.bundle import Bundle
    from edge.inference.providers import open_session

    signed = ""
    if key is not None:
        signed = f", signed by {_verified_by(path, key, signature)}"
    elif signature is not None:
        raise ConfigError("--signature needs --key, the public key to check it with")
    found = Bundle.open(path)
    _, chosen = open_session(found, 1, provider)
    click.echo(
        f"{path}: {len(found.manifest.members)} members and the golden outputs are right, sha256 {found.digest}{signed}"
    )
    if provider != "cpu":
        click.echo(f"  provider     {chosen}")


def _verified_by(path: Path, key: Path, signature: Path | None) -> str:
    from edge.contract.digest import short
    from edge.contract.signature import key_digest, load_public_key, signature_path, verify_file

    public = load_public_key(key)
    place = signature or signature_path(path)
    try:
        document = place.read_bytes()
    except FileNotFoundError as exc:
        raise BundleError(f"{path} is not signed: there is no {place}") from exc
    except OSError as exc:
        raise BundleError(f"{place} cannot be read: {exc.strerror}") from exc
    verify_file(path, document, public)
    return short(key_digest(public))


@bundle.command()
@click.argument("path", type=_PATH)
@click.option("--key", type=_PATH, required=True, help="Private key (PEM); its password in EDGE_SIGN_PASSWORD.")
def sign(path: Path, key: Path) -> None:
    """Write the signature PATH.sig of a bundle whose digests are right."""
    from edge.contract.bundle import Bundle
    from edge.contract.files import replace_file
    from edge.contract.signature import load_private_key, sign_file, signature_path

    password = os.environ.get("EDGE_SIGN_PASSWORD")
    private = load_private_key(key, None if password is None else password.encode())
    Bundle.open(path)
    document = sign_file(path, private)
    with _writing(signature_path(path)), replace_file(signature_path(path)) as file:
        file.write(document)
    click.echo(f"wrote {signature_path(path)}")


@bundle.command()
@click.argument("path", type=_PATH)
@click.argument("arrays", type=_PATH)
@click.option("--output", type=_PATH, required=True, help="Where to write the outputs (.npz).")
@click.option("--threads", default=1, type=click.IntRange(1, 64), help="Of the session.")
@click.option("--batch", default=64, type=click.IntRange(1), help="Samples at a time.")
@_on_provider
def run(path: Path, arrays: Path, output: Path, threads: int, batch: int, provider: str) -> None:
    """Run a bundle on the named ARRAYS of an .npz file and write its named outputs.

    The names are those that `inspect` shows; the array of a model with one input may have any name.

    A model that remembers takes the samples in their order, as one stream: its states begin with zeros, or with what
    ARRAYS has under their names, and of the states the last ones are written.
    """
    import numpy as np

    from edge.contract.bundle import Bundle
    from edge.inference.named_arrays import fitted, read_arrays, write_arrays
    from edge.inference.providers import open_session
    from edge.inference.streams import Stream

    if not output.absolute().parent.is_dir():
        raise ConfigError(f"--output {output}: {output.parent} is not a folder")
    session, chosen = open_session(Bundle.open(path), threads, provider)
    manifest = session.manifest
    given = read_arrays(arrays)
    first = {pair.input: given.pop(pair.input) for pair in manifest.states if pair.input in given}
    samples, made = manifest.together(manifest.sample_inputs), manifest.together(manifest.outputs)
    inputs = fitted(given, samples)
    initial = fitted(first, [spec for spec in manifest.inputs if spec.name in first]) if first else {}
    for spec in manifest.inputs:
        if spec.name in initial and (axis := spec.batch_axis) is not None and initial[spec.name].shape[axis] != 1:
            raise ConfigError(
                f"{spec.name}: expected the state of one stream, got those of {initial[spec.name].shape[axis]}"
            )
    batch = manifest.fixed_batch or (1 if manifest.one_by_one else batch)
    axes = {spec.name: spec.batch_axis for spec in samples}
    count = max((inputs[name].shape[axis] for name, axis in axes.items() if axis is not None), default=1)
    if manifest.fixed_batch is not None and count % batch:
        raise ConfigError(f"{arrays} has {count} samples; the model takes {batch} at once: expected a multiple of that")
    stream = Stream(session.run, manifest.inputs, manifest.states, initial)
    found: list[dict[str, Any]] = []
    for start in range(0, count, batch):
        rows = slice(start, start + batch)
        part = {
            name: array if axes[name] is None else array[(*[slice(None)] * (axes[name] or 0), rows)]
            for name, array in inputs.items()
        }
        with foreign(f"the model does not run on what {arrays} holds", ConfigError):
            found.append(stream.step(part))
    last = {pair.output for pair in manifest.states}
    joined = {
        spec.name: found[-1][spec.name]
        if spec.batch_axis is None or spec.name in last
        else np.stack([outputs[spec.name] for outputs in found])
        if manifest.batch_axes.get(spec.name, 0) is None
        else np.concatenate([outputs[spec.name] for outputs in found], axis=spec.batch_axis)
        for spec in made
    }
    write_arrays(output, joined)
    click.echo(f"wrote {output}: " + ", ".join(f"{name} {tuple(a.shape)}" for name, a in joined.items()))
    if provider != "cpu":
        click.echo(f"provider {chosen}")


@bundle.command()
@click.argument("path", type=_PATH)
@click.option("--threads", default=1, type=click.IntRange(1, 64), help="Of the session.")
@click.option("--batch", default=1, type=click.IntRange(1), help="Samples in a run.")
@click.option("--seconds", default=2.0, type=click.FloatRange(0.01, 3600), help="How long to repeat it.")
@_on_provider
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(path: Path, threads: int, batch: int, seconds: float, provider: str, as_json: bool) -> None:
    """Measure start-up, latency and peak memory of a bundle on this machine, in a fresh process.

    Those are of the CPU. With --provider auto each execution provider is tried, too: one sample at a time, against the
    golden outputs, in a process of its own; or only the one that is named.
    """
    import dataclasses
    import tempfile

    import numpy as np
    import safetensors.numpy

    from edge.contract import manifest as m
    from edge.contract.bundle import Bundle
    from edge.inference.onnx_benchmark import Benchmark

    found = Bundle.open(path)
    golden = found.tensors(m.GOLDEN)
    feeds: dict[str, Any] = dict(found.head_parameters())
    for spec in found.manifest.inputs:
        array = golden[m.GOLDEN_INPUT + spec.name]
        if spec.batch_axis is not None:
            array = np.take(array, np.arange(batch) % array.shape[spec.batch_axis], axis=spec.batch_axis)
        feeds[spec.name] = np.asarray(array, order="C")
    with tempfile.TemporaryDirectory() as folder, Benchmark() as benchmark:
        model, inputs = Path(folder) / "model.onnx", Path(folder) / "feeds"
        model.write_bytes(found.read(m.MODEL))
        safetensors.numpy.save_file(feeds, inputs)
        timing = benchmark.measure(model, inputs, threads=threads, budget_s=seconds)
    chosen = None
    if provider != "cpu":
        from edge.inference.providers import open_session

        _, chosen = open_session(found, threads, provider)
    if as_json:
        measured = {} if chosen is None else {"provider": chosen.to_json()}
        click.echo(json.dumps({"threads": threads, "batch": batch, **dataclasses.asdict(timing), **measured}))
        return
    click.echo(
        f"{path}, {threads} thread{'s' if threads > 1 else ''}, batch of {batch}:\n"
        f"  latency      {timing.latency_ms:.3f} ms median, {timing.latency_p90_ms:.3f} ms 90th percentile "
        f"({timing.runs} runs)\n"
        f"  loading      {timing.load_s * 1e3:.1f} ms, first run {timing.first_ms:.3f} ms\n"
        f"  peak memory  {timing.peak_memory_bytes / (1 << 20):.1f} MiB, Python and onnxruntime included"
    )
    if chosen is not None:
        click.echo(f"  provider     {chosen}, one sample")


@bundle.command()
@click.argument("one", type=_PATH)
@click.argument("other", type=_PATH)
def diff(one: Path, other: Path) -> None:
    """Compare two bundles: fields, members, head and outputs. Exits with 1 when they differ."""
    from edge.contract.bundle import Bundle

    bundles = Bundle.open(one), Bundle.open(other)
    lines = list(_differences(*bundles))
    for line in lines:
        click.echo(line)
    if not lines:
        click.echo("the same")
        return
    raise SystemExit(1)


def _differences(one: Bundle, other: Bundle) -> Iterator[str]:
    import numpy as np

    from edge.contract import manifest as m
    from edge.contract.errors import EdgeError
    from edge.inference.onnx_session import OnnxSession
    from edge.inference.session import sqnr_db

    fields = [json.loads(found.manifest.encode()) for found in (one, other)]
    members = [found.pop("members") for found in fields]
    for key in sorted(fields[0].keys() | fields[1].keys()):
        left, right = (json.dumps(found.get(key), ensure_ascii=False) for found in fields)
        if left != right:
            yield f"{key}: {left} | {right}"
    for role in sorted(members[0].keys() | members[1].keys()):
        sizes = [str(found[role]["size_bytes"]) + " bytes" if role in found else "absent" for found in members]
        if members[0].get(role) != members[1].get(role):
            yield f"{role}: {' | '.join(sizes)}"
    heads = one.head_parameters(), other.head_parameters()
    for name in heads[0].keys() & heads[1].keys():
        if heads[0][name].shape == heads[1][name].shape and not np.array_equal(heads[0][name], heads[1][name]):
            yield f"{name}: largest difference {np.abs(heads[0][name] - heads[1][name]).max():.4g}"
    if one.manifest.inputs == other.manifest.inputs and members[0].get(m.MODEL) != members[1].get(m.MODEL):
        golden = one.tensors(m.GOLDEN)
        inputs = {spec.name: golden[m.GOLDEN_INPUT + spec.name] for spec in one.manifest.inputs}
        try:
            outputs = [OnnxSession(found).run(inputs) for found in (one, other)]
        except EdgeError as exc:
            yield f"outputs cannot be compared: {exc}"
            return
        for name in outputs[0].keys() & outputs[1].keys():
            if outputs[0][name].shape == outputs[1][name].shape:
                ratio = sqnr_db(outputs[0][name], outputs[1][name])
                yield f"output {name} on the golden inputs: {ratio:.1f} dB"


@bundle.command()
@click.argument("path", type=_PATH)
@click.argument("folder", type=_PATH)
def unpack(path: Path, folder: Path) -> None:
    """Write the members of a bundle into a new FOLDER under their own names."""
    from edge.contract.bundle import Bundle
    from edge.contract.files import replace_file

    found = Bundle.open(path)
    with _writing(folder):
        folder.mkdir(parents=True)
        for role in found.manifest.members:
            with replace_file(folder / role) as file:
                file.write(found.read(role))
        with replace_file(folder / "manifest.json") as file:
            file.write(found.manifest.encode())
    click.echo(f"wrote {len(found.manifest.members) + 1} files to {folder}")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ConfigError(f"{path} cannot be made: {exc.strerror}") from exc


def main() -> None:
    """Entry point."""
    run_to_exit(bundle)


if __name__ == "__main__":
    main()
