"""The devices that ``edge-convert`` knows by name, for ``--target list``.

Reads the shipped profiles and lays them out; printing is the command's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from edge.contract.profile import DeviceProfile, load_profile, shipped_profiles

if TYPE_CHECKING:
    from rich.table import Table


def list_targets() -> tuple[DeviceProfile, ...]:
    """The shipped profiles, by name.

    Raises:
        ConfigError: A shipped file has faults.
    """
    return tuple(load_profile(name) for name in shipped_profiles())


def render_targets(profiles: Iterable[DeviceProfile]) -> Table:
    """One row for each profile, in 80 columns: the description stands below the name and takes the lines it needs."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("name", min_width=21)
    table.add_column("arch.", no_wrap=True)
    table.add_column("memory\nMiB", justify="right", no_wrap=True)
    table.add_column("int8\ndot\nproduct", no_wrap=True)
    table.add_column("values,\nweights", no_wrap=True)
    table.add_column("threads", justify="right", no_wrap=True)
    table.add_column("max\nbundle\nMiB", justify="right", no_wrap=True)
    for profile in profiles:
        quantization, inference = profile.quantization, profile.inference
        table.add_row(
            Text.assemble((profile.name, "bold"), "\n", profile.description),  # a profile's words are not markup
            profile.architecture,
            str(profile.memory_mb),
            "yes" if quantization.int8_dot_product else "no",
            f"{quantization.activation_type}\n{quantization.weight_type}"
            + (", 7 bit" if quantization.reduce_range else ""),
            str(inference.threads),
            str(inference.max_bundle_mb),
        )
    return table
