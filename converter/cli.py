"""``edge-convert``: the command. Heavy libraries are imported when the work begins, so that ``--help`` is quick."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge import __version__
from edge.contract.errors import ConfigError, run_to_exit

if TYPE_CHECKING:
    from rich.console import Console

    from converter.pipeline import Conversion, Stage


def _shape(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    parts = [part.strip() for part in value.replace("x", ",").split(",")]
    if not all(part.isascii() and part.isdigit() and 0 < int(part) < 2**31 for part in parts):
        raise click.BadParameter(f"{value!r}: expected sizes without the batch axis, e.g. 3,224,224")
    return tuple(int(part) for part in parts)


def _arguments(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    arguments = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key.isidentifier():
            raise click.BadParameter(f"{value!r}: expected key=value")
        try:
            arguments[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # what literal_eval documents
            arguments[key] = text
    return arguments


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Bundle to write.  [default: MODEL.edge]")
@click.option("--arch", help="Class or function that makes the model: FILE.py:NAME or package.module:NAME.")
@click.option("--arch-arg", "arch_arguments", multiple=True, callback=_arguments, help="key=value for it; repeatable.")
@click.option("--input-shape", callback=_shape, help="Without the batch axis, e.g. 3,224,224.")
@click.option("--class-names", help="Separated by commas.")
@click.option("--trainable", default="last:1", help="Which layers stay trainable: last:K.")
@click.option("--target", default="generic-x86_64", help="Device profile: a shipped name or a .toml file.")
@click.option("--quantize", default="auto", type=click.Choice(["auto", "int8", "none"]), help="Of the frozen layers.")
@click.option("--calibrate", type=click.Path(path_type=Path), help=".npz with x, and y if labelled.")
@click.option(
    "--evaluate", type=click.Path(path_type=Path), help=".npz to measure on, instead of the calibration data."
)
@click.option("--max-drop", default=0.5, type=click.FloatRange(0, 100), help="Points of accuracy that int8 may cost.")
@click.version_option(__version__, prog_name="edge-convert")
def convert_command(
    model: Path,
    output: Path | None,
    arch: str | None,
    arch_arguments: dict[str, Any],
    input_shape: tuple[int, ...] | None,
    class_names: str | None,
    trainable: str,
    target: str,
    quantize: str,
    calibrate: Path | None,
    evaluate: Path | None,
    max_drop: float,
) -> None:
    """Convert a trained PyTorch MODEL into one verified bundle for edge devices.

    The frozen layers become int8 ONNX, the last layers stay trainable on the device. Nothing is written unless every
    output was verified against the original.
    """
    from edge.contract.profile import load_profile

    profile = load_profile(target)
    try:
        from converter.pipeline import convert
        from converter.plan import ConversionPlan
    except ImportError as exc:
        raise ConfigError(f"{exc.name} is not installed: pip install 'edgeloop[convert]'") from exc
    plan = ConversionPlan(
        source=model,
        output=output or model.parent / f"{model.stem}.edge",
        profile=profile,
        arch=arch,
        arch_arguments=arch_arguments,
        input_shape=input_shape,
        class_names=tuple(name.strip() for name in class_names.split(",")) if class_names else None,
        trainable=trainable,
        quantize=quantize,
        calibration=calibrate,
        evaluation=evaluate,
        max_drop=max_drop,
    )
    from rich.console import Console

    console = Console()
    with _progress(console) as stage:
        conversion = convert(plan, stage)
    _print_report(console, plan.output, conversion)


@contextmanager
def _progress(console: Console) -> Iterator[Stage]:
    """A spinner with the stage on a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        yield lambda name: console.print(f"- {name}")
        return
    with console.status("starting") as status:
        yield status.update


def _print_report(console: Console, output: Path, conversion: Conversion) -> None:
    from rich.table import Table
    from rich.text import Text

    report = conversion.report
    # Names come from the user and may look like markup, e.g. "model[/x].pth".
    table = Table(title=Text(f"{report['source']} for {report['target']}, measured on {report['data']}, 1 thread"))
    table.add_column("")
    for heading in ("KiB", "accuracy", "agreement", "SQNR dB", "ms"):
        table.add_column(heading, justify="right")
    for row in conversion.measurements:
        table.add_row(
            row.name,
            f"{row.size_bytes / 1024:.1f}",
            "-" if row.accuracy is None else f"{row.accuracy:.4f}",
            f"{row.agreement:.4f}",
            f"{row.sqnr_db:.1f}",
            f"{row.latency_ms:.3f}",
        )
    console.print(table)
    for note in report["notes"]:
        console.print(f"- {note}", highlight=False, markup=False, soft_wrap=True)
    size_kib = output.stat().st_size / 1024
    console.print(
        f"wrote {output} ({size_kib:.0f} KiB), sha256 {conversion.bundle_digest}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def main() -> None:
    """Entry point."""
    run_to_exit(convert_command)


if __name__ == "__main__":
    main()
