"""``edge-bundle``: look into a bundle without running it, or check it on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edge import __version__
from edge.contract.errors import ConfigError, run_to_exit


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="edge-bundle")
def bundle() -> None:
    """Inspect, verify and unpack bundles."""


@bundle.command()
@click.argument("path", type=click.Path(path_type=Path))
def inspect(path: Path) -> None:
    """Print the manifest of a bundle whose digests are right."""
    from edge.contract.bundle import Bundle

    found = Bundle.open(path)
    click.echo(f"sha256 {found.digest}")
    click.echo(json.dumps(json.loads(found.manifest.encode()), indent=1, ensure_ascii=False))


@bundle.command()
@click.argument("path", type=click.Path(path_type=Path))
def verify(path: Path) -> None:
    """Check every digest, and the golden outputs on this CPU."""
    from edge.contract.bundle import Bundle
    from edge.inference.onnx_session import OnnxSession

    found = Bundle.open(path)
    OnnxSession(found)
    click.echo(f"{path}: {len(found.manifest.members)} members and the golden outputs are right, sha256 {found.digest}")


@bundle.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def unpack(path: Path, folder: Path) -> None:
    """Write the members of a bundle into a new FOLDER under their own names."""
    from edge.contract.bundle import Bundle
    from edge.contract.files import replace_file

    found = Bundle.open(path)
    try:
        folder.mkdir(parents=True)
    except OSError as exc:
        raise ConfigError(f"{folder} cannot be made: {exc.strerror}") from exc
    for role in found.manifest.members:
        with replace_file(folder / role) as file:
            file.write(found.read(role))
    with replace_file(folder / "manifest.json") as file:
        file.write(found.manifest.encode())
    click.echo(f"wrote {len(found.manifest.members) + 1} files to {folder}")


def main() -> None:
    """Entry point."""
    run_to_exit(bundle)


if __name__ == "__main__":
    main()
