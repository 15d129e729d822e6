"""``edge-convert``: the command. Heavy libraries are imported when the work begins, so that ``--help`` is quick."""

from __future__ import annotations

import atexit
import gc
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from converter import arguments
from converter.plan import CALIBRATION_METHODS, FORMATS, KINDS, QUANTIZE, Constant, ConversionPlan, InputOption
from converter.stopping import stopped_by_signals, without_signals
from edge import __version__
from edge.contract.errors import ConfigError, EdgeError
from edge.contract.exits import run_to_exit
from edge.contract.recipe import LOSSES, OPTIMIZERS, TrainingRecipe

# What torch's C++ parts warn of while a graph is written is checked on the graph; a user's own setting stays.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
# torch's threads otherwise wait for each other by spinning, which took longer than their work; read as torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# torch's own encoder takes them by itself where it is given a mask; nobody who converts a model has a say in it.
warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")

if TYPE_CHECKING:
    from rich.console import Console

    from converter.pipeline import Stage


def _list_targets(context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value != "list" or context.resilient_parsing:
        return value
    from rich.console import Console

    from converter.report.targets import list_targets, render_targets

    Console().print(render_targets(list_targets()))
    raise click.exceptions.Exit(0)


def _init(context: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    if value is None or context.resilient_parsing:
        return
    from converter.options import write_options_template

    click.echo(f"wrote {write_options_template(value)}: read it, change it, then run edge-convert {value}")
    context.exit()


def _beside(context: click.Context, _parameter: click.Parameter, model: Path) -> Path:
    """Take options from the file beside the model; those on the command line win."""
    from converter.options import name_in_file, options_file, read_options
    from edge.contract.errors import ConfigError

    found = read_options(model)
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in found:
            try:
                parameter.process_value(context, found[name])
            except click.BadParameter as exc:
                raise ConfigError(f"{options_file(model)}: {name_in_file(name)}: {exc.message}") from exc
    context.default_map = {**(context.default_map or {}), **found}
    return model


_EPILOG = """\b
Examples:
  edge-convert model.pth                           the checkpoint says all
  edge-convert weights.pth --arch net.py:Net       weights alone: their class
  edge-convert model.onnx --calibrate data.npz     arrays x and y
  edge-convert model.pth --target raspberry-pi-4   for that device
  edge-convert --target list                       devices known by name
  edge-convert --init model.pth                    all options in a file

\b
Environment:
  EDGE_SIGN_PASSWORD   password of the key that --sign names
  EDGE_DEBUG=1         a traceback for an error inside Edgeloop
  TMPDIR               where a conversion works, and cleans up
"""


def _complete_target(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    from edge.contract.profile import shipped_profiles

    return [name for name in ["list", *shipped_profiles()] if name.startswith(incomplete)]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, epilog=_EPILOG)
@click.argument("model", type=click.Path(path_type=Path), callback=_beside, is_eager=True)
@click.option("-o", "--output", multiple=True, callback=arguments.outputs, metavar="PATH|NAME=KIND",
              help="What to write [default: MODEL.edge]. NAME=KIND, repeatable: what an output is and is judged as: "
                   f"{', '.join(KINDS)}.")  # fmt: skip
@click.option("--init", type=click.Path(path_type=Path), is_eager=True, expose_value=False, callback=_init,
              help="Write MODEL.toml with all options beside this model, and stop.")  # fmt: skip
@click.option("--arch", help="Class or function that makes the model: FILE.py:NAME or package.module:NAME.")
@click.option(
    "--arch-arg", "arch_arguments", multiple=True, callback=arguments.arguments, help="key=value for it; repeatable."
)
@click.option("--weights", metavar="KEY", help="Where in the file the weights are, e.g. state_dict or model.generator.")
@click.option("--strip", metavar="PREFIX", help="Take this prefix off the names of the weights, e.g. student.")
@click.option("--allow-unexpected", is_flag=True, help="Leave out weights that the model does not have; listed.")
@click.option("--allow-missing", is_flag=True, help="Buffers may be missing in the file; parameters never.")
@click.option(
    "--input-shape", callback=arguments.only_input, help="Of the only input, without the batch axis, e.g. 3,224,224."
)
@click.option("--input", "inputs", multiple=True, callback=arguments.inputs, metavar="NAME=AXES[:TYPE]",
              help="Axes of an input, e.g. tokens=batch,128:int64, x=batch,3,width@320%32; repeatable.")  # fmt: skip
@click.option("--constant", "constants", multiple=True, callback=arguments.constants, metavar="NAME=VALUE[:TYPE]",
              help="An input that is always the same: a part of the graph, e.g. rate=16000.")  # fmt: skip
@click.option("--state", "states", multiple=True, callback=arguments.states, metavar="INPUT=OUTPUT",
              help="An output that is an input of the next sample; repeatable; or none.  [default: found]")  # fmt: skip
@click.option("--answer", help="The output that is for people.  [default: found]")
@click.option("--class-names", help="Separated by commas.")
@click.option(
    "--preprocess",
    metavar="KIND:...",
    help="Part of the graph: image:mean=..,std=..,size=HxW of the raw image; audio:..; affine:..",
)
@click.option("--trainable", default="auto", help="What stays trainable: last:K, names with wildcards, none, or auto.")
@click.option(
    "--loss", default="auto", type=click.Choice(("auto", *LOSSES)), help="Of the head; auto: what fits the data."
)
@click.option("--optimizer", default="sgd", type=click.Choice(OPTIMIZERS), help="Of the head's training step.")
@click.option("--momentum", default=0.9, type=click.FloatRange(0, 1, max_open=True), help="Of momentum and nesterov.")
@click.option("--weight-decay", default=0.0, type=click.FloatRange(0), help="Of the head.")
@click.option("--proximal", default=0.0, type=click.FloatRange(0), help="FedProx's pull toward the head last merged.")
@click.option("--clip-norm", default=0.0, type=click.FloatRange(0), help="Largest norm of the head's gradient; 0: any.")
@click.option(
    "--huber-delta", default=1.0, type=click.FloatRange(0, min_open=True), help="Error where huber is linear."
)
@click.option("--target", is_eager=True, callback=_list_targets, shell_complete=_complete_target,
              help="The device: a name that 'list' shows, or a .toml file.  [default: like this machine]")  # fmt: skip
@click.option("--quantize", default="auto", type=click.Choice(QUANTIZE), help="Of the frozen layers.")
@click.option(
    "--calibration-method",
    type=click.Choice(CALIBRATION_METHODS),
    help="[default: the best but entropy]",
)
@click.option(
    "--calibrate", "calibration", help="Real samples: .npz (x, y), .npy, folder of images or wav, FILE.py:NAME."
)
@click.option("--evaluate", "evaluation", help="Samples to measure on, instead of the calibration data.")
@click.option("--example", help="Samples to run the model on wherever it must run once; the other data do as well.")
@click.option("--max-drop", default=0.5, type=click.FloatRange(0, 100), help="Points of accuracy that may be lost.")
@click.option("--force", is_flag=True, help="Quantize although the data cannot show what that costs.")
@click.option(
    "--format", "form", default="edge", type=click.Choice(FORMATS), help="A bundle, only one model file, or a folder."
)
@click.option("--torchscript/--no-torchscript", default=None,
              help="Put the float TorchScript into the bundle.  [default: where the target has torch]")  # fmt: skip
@click.option("--sign", "sign_key", type=click.Path(path_type=Path),
              help="Private key (PEM) to sign the bundle with; its password in EDGE_SIGN_PASSWORD.")  # fmt: skip
@click.option("--json", "json_report", type=click.Path(path_type=Path), help="Write the report as JSON; - prints it.")
@click.option("--html", "html_report", type=click.Path(path_type=Path), help="Write the report as one HTML page.")
@click.option(
    "--trust-pickle", is_flag=True, help="Run the code that a pickled model names. Only for files of your own."
)
@click.version_option(__version__, prog_name="edge-convert")
def convert_command(
    model: Path,
    output: tuple[Path | None, dict[str, str]],
    arch: str | None,
    arch_arguments: dict[str, Any],
    weights: str | None,
    strip: str | None,
    allow_unexpected: bool,
    allow_missing: bool,
    input_shape: InputOption | None,
    inputs: tuple[InputOption, ...],
    states: tuple[tuple[str, str], ...] | None,
    answer: str | None,
    constants: dict[str, Constant],
    class_names: str | None,
    preprocess: str | None,
    trainable: str,
    loss: str,
    optimizer: str,
    momentum: float,
    weight_decay: float,
    proximal: float,
    clip_norm: float,
    huber_delta: float,
    target: str | None,
    quantize: str,
    calibration_method: str | None,
    calibration: str | None,
    evaluation: str | None,
    example: str | None,
    max_drop: float,
    force: bool,
    form: str,
    torchscript: bool | None,
    sign_key: Path | None,
    json_report: Path | None,
    html_report: Path | None,
    trust_pickle: bool,
) -> None:
    """Convert a trained MODEL into one verified bundle for edge devices.

    MODEL is a state_dict or checkpoint (.pth, .pt, .ckpt, .safetensors), TorchScript, torch.export (.pt2) or ONNX. The
    frozen layers are quantized as the target likes it, the last layers stay trainable on the device. Nothing is written
    unless every output was verified against the original. Options may stand in MODEL.toml beside the model.
    """
    from edge.contract.files import check_writable, is_special
    from edge.contract.profile import detect_profile, load_profile

    profile = load_profile(target or detect_profile())
    if input_shape is not None and inputs:
        raise ConfigError("give --input-shape for a model with one input, or --input for each of several; not both")
    gc.disable()  # a million objects come with torch and stay: to look through them takes a third of a second
    try:
        from converter.load.files import refuse_bundle
        from converter.pack.output import SUFFIXES, check_places
        from converter.pipeline import convert
    except ImportError as exc:
        raise ConfigError(f"{exc.name} is not installed: pip install 'edgeloop[convert]'") from exc
    gc.freeze()
    gc.enable()
    plan = ConversionPlan(
        source=model,
        output=output[0] or model.parent / f"{model.stem}{SUFFIXES[form]}",
        profile=profile,
        arch=arch,
        arch_arguments=arch_arguments,
        weights=weights,
        strip=strip,
        allow_unexpected=allow_unexpected,
        allow_missing=allow_missing,
        inputs=(input_shape,) if input_shape is not None else inputs,
        constants=constants,
        class_names=tuple(name.strip() for name in class_names.split(",")) if class_names else None,
        preprocess=preprocess,
        trainable=trainable,
        loss=loss,
        training=TrainingRecipe(
            optimizer=optimizer,
            momentum=momentum,
            weight_decay=weight_decay,
            proximal=proximal,
            clip_norm=clip_norm,
            huber_delta=huber_delta,
        ),
        quantize=quantize,
        calibration_method=calibration_method,
        calibration=calibration,
        evaluation=evaluation,
        example=example,
        max_drop=max_drop,
        kinds=output[1],
        force=force,
        trust_pickle=trust_pickle,
        format=form,
        torchscript=torchscript,
        states=states,
        answer=answer,
        target_named=target is not None,
        sign_key=sign_key,
    )
    reports = {"--json": json_report, "--html": html_report}
    paths = {option: path for option, path in reports.items() if path is not None and str(path) != "-"}
    refuse_bundle(plan.source)
    check_places({"--output": plan.output, **paths}, plan.files_read)
    for option, path in paths.items():
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"{option} {path}: {path.parent} is not a folder")
        check_writable(path)
    from rich.console import Console

    from converter.report.text import print_report

    quiet = str(json_report) == "-"
    password = os.environ.get("EDGE_SIGN_PASSWORD")
    with _own_output(quiet) as output_stream:
        console = Console(stderr=quiet, emoji=False)  # whose list takes time to load
        with ExitStack() as late:

            def before_writing() -> None:
                if not any(is_special(path) for path in (plan.output, *paths.values())):  # whose reader may never come
                    late.enter_context(without_signals())

            with _progress(console) as stage:
                key = None if password is None else password.encode()
                report = convert(plan, stage, key, before_writing=before_writing).report
            _write_reports(report, plan.output, json_report, html_report)
        if output_stream is None:
            print_report(console, report)
        else:
            output_stream.write(_as_json(report))


@contextmanager
def _own_output(taken: bool) -> Iterator[TextIO | None]:
    """Standard output for the report alone: what the user's code prints meanwhile goes to standard error."""
    if not taken:
        yield None
        return
    sys.stdout.flush()
    try:
        own = os.dup(1)
    except OSError as exc:
        raise ConfigError(f"--json -: there is no standard output: {exc.strerror}") from exc
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(own), "w", encoding="utf-8", errors="replace") as stream:
            yield stream
    finally:
        sys.stdout.flush()
        os.dup2(own, 1)
        os.close(own)


def _as_json(report: Mapping[str, Any]) -> str:
    return json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _write_reports(
    report: Mapping[str, Any], written: Path, json_report: Path | None, html_report: Path | None
) -> None:
    from edge.contract.files import replace_file

    documents: dict[Path, str] = {}
    if json_report is not None and str(json_report) != "-":
        documents[json_report] = _as_json(report)
    if html_report is not None:
        from converter.report.html import render_html

        documents[html_report] = render_html(dict(report))
    for path, document in documents.items():
        try:
            with replace_file(path) as file:
                file.write(document.encode(errors="replace"))  # names of files need not be UTF-8
        except OSError as exc:
            raise ConfigError(f"{path} cannot be written: {exc.strerror}; {written} is written, and whole") from exc


@contextmanager
def _progress(console: Console) -> Iterator[Stage]:
    """A spinner with the stage and its time on a terminal, plain lines elsewhere; an exception learns where it came."""
    names = ["starting"]
    status = console.status(names[0]) if console.is_terminal else None

    def tell(name: str) -> None:
        names.append(name)
        if status is None:
            console.print(f"- {name}", markup=False, highlight=False)
        else:
            status.update(f"{name} ...")

    try:
        with status or nullcontext():
            yield tell
    except EdgeError:
        raise
    except Exception as exc:
        exc.add_note(names[-1])
        raise


def _run() -> None:
    """The command with its own errors told as all are, and Ctrl-C left to `run_to_exit`."""
    try:
        code = convert_command.main(standalone_mode=False)
    except click.exceptions.Abort as exc:
        raise exc.__cause__ or KeyboardInterrupt from None
    except click.ClickException as exc:
        exc.show()
        code = exc.exit_code
    sys.stdout.flush()  # a full disk is told as all errors are
    if code:
        sys.exit(code)


def main() -> None:
    """Entry point, which ends the process."""
    code: Any = 0
    try:
        with stopped_by_signals():
            run_to_exit(_run)
    except SystemExit as exc:
        code = exc.code
    # At once: threads that the user's code has started would keep the process alive for ever, and to take torch apart
    # takes a second.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    atexit._run_exitfuncs()
    os._exit(code or 0)


if __name__ == "__main__":
    main()
