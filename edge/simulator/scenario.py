"""What a simulated fleet goes through: TOML, read strictly, all faults told at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from edge.contract.documents import Rule, at_least, between
from edge.contract.durations import Duration, seconds
from edge.contract.errors import ConfigError
from edge.contract.tomlfile import read_toml

Share = Annotated[float, between(0.0, 1.0)]
Range = Annotated[tuple[float, ...], Rule(lambda pair: len(pair) == 2 and pair[0] <= pair[1], "[LOW, HIGH]")]
Amount = Annotated[float, at_least(0.0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """What the application on each device does.

    Attributes:
        per_minute: Samples that it asks about.
        labelled: Share of them whose label comes.
        late: How long after the answer it comes.
        wrong: Share of labels that are those of another class.
        classes: How many classes a device ever sees; 0 for all.
    """

    per_minute: Annotated[float, between(0.0, 60_000.0)] = 30.0
    labelled: Share = 0.5
    late: Duration = "0 s"
    wrong: Share = 0.0
    classes: Annotated[int, at_least(0)] = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """How what a device sees differs from what the model was trained on; drawn for each device.

    Attributes:
        gain, offset: Inputs are multiplied by a number out of `gain`, and one out of `offset` times their spread is
            added.
        noise: Standard deviation of what is added to each number, in units of their spread.
        turned: Share of devices whose last two axes are turned by 90 degrees.
    """

    gain: Range = (1.0, 1.0)
    offset: Range = (0.0, 0.0)
    noise: Amount = 0.0
    turned: Share = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Something that happens to a share of the fleet.

    Attributes:
        kind: ``offline``: the line is gone, without a word. ``restart``: the agent stops in good order, and starts
            again afterwards. ``kill``: ``kill -9`` of whole processes, which start again afterwards; as many as come
            nearest to the share, one at least. ``drift``: they see another world, drawn out of `world`. ``wrong``:
            their labels are wrong.
        at: After the start.
        lasts: ``0 s`` of a drift or of wrong labels: until the end.
        share: Of the devices, drawn for each fault.
        wrong: Of ``wrong``: the share of labels that are those of another class.
        world: Of ``drift``.
    """

    kind: Literal["offline", "restart", "kill", "drift", "wrong"]
    at: Duration
    lasts: Duration = "0 s"
    share: Share = 1.0
    wrong: Share = 1.0
    world: World = field(default_factory=World)

    @property
    def begins_s(self) -> float:
        """After the start."""
        return seconds(self.at)

    @property
    def ends_s(self) -> float:
        """After the start; as `begins_s` for one that does not end."""
        return self.begins_s + seconds(self.lasts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """See the module.

    Attributes:
        devices: How many.
        lasts: ``0 s``: until it is stopped.
        seed: Of all that is drawn.
        samples: What applications do.
        world: What devices see.
        faults: What happens to them; ``[[faults]]``.
    """

    devices: Annotated[int, between(1, 100_000)] = 10
    lasts: Duration = "1 min"
    seed: Annotated[int, at_least(0)] = 0
    samples: Samples = field(default_factory=Samples)
    world: World = field(default_factory=World)
    faults: tuple[Fault, ...] = ()

    def moments(self) -> list[tuple[float, int, bool]]:
        """When faults begin and end, in order: seconds after the start, which one, and whether it begins.

        What lasts no time begins before it ends. A drift and wrong labels that last no time stay.
        """
        found = [(fault.begins_s, number, True) for number, fault in enumerate(self.faults)]
        found += [
            (fault.ends_s, number, False)
            for number, fault in enumerate(self.faults)
            if fault.ends_s > fault.begins_s or fault.kind not in ("drift", "wrong")
        ]
        return sorted(found, key=lambda moment: (moment[0], moment[1], not moment[2]))

    def check(self, n_classes: int) -> None:
        """Whether all of it can happen, with samples of so many classes.

        Raises:
            ConfigError: A fault would begin when all is over, or devices see more classes than there are.
        """
        ends_s = seconds(self.lasts)
        late = [i for i, fault in enumerate(self.faults) if ends_s and fault.begins_s >= ends_s]
        if late:
            at = self.faults[late[0]].at
            raise ConfigError(f"faults[{late[0]}].at: all is over after {self.lasts}, this begins after {at}")
        if self.samples.classes > n_classes:
            raise ConfigError(f"samples.classes: the data have {n_classes} classes, got {self.samples.classes}")


def read_scenario(path: Path) -> Scenario:
    """Read a scenario.

    Raises:
        ConfigError: It cannot be read, is not TOML, or has what it must not have.
    """
    return read_toml(Scenario, path)
