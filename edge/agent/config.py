"""What an agent is told at its start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge.agent.line.data_cap import DataCap
from edge.agent.model.streams import StreamLimits
from edge.contract.bundle import read_manifest
from edge.contract.errors import BundleError, ConfigError
from edge.contract.names import MAX_NAME_CHARS, is_model_name
from edge.contract.profile import DeviceProfile
from edge.learning.compression import EXACT, Compression
from edge.learning.disclosure import Noise

MAX_MODELS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpOptions:
    """Where the local HTTP interface listens.

    Attributes:
        host: Address.
        port: 0 for any that is free.
        token: That requests must bring; needed where others than this device can reach the address.
    """

    host: str
    port: int
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentConfig:
    """Options of one agent, checked at the roof.

    Attributes:
        bundles: By the name of a model the bundle that the device came with; at most `MAX_MODELS`.
        state_dir: Everything the agent keeps.
        fleet: Fleet id.
        device: Device id; also its MQTT client id.
        profile: What the device can do.
        learner: One of `edge.contract.choices.LEARNERS`.
        executor: Of training steps, one of `edge.contract.choices.EXECUTORS`.
        provider: Who runs the frozen part, one of `edge.contract.choices.PROVIDERS`.
        mixture: Whether heads compete; else the first learner answers alone.
        reject_unknown: Share of known samples that may be answered by "none of these"; 0 never answers so.
        telemetry_interval_s: Between two telemetry messages.
        sync_interval_s: Least time between two uploads of what was learned.
        upload: How uploads of what was learned are made shorter.
        noise: On all that is told of labelled samples; None sends what was learned as it is.
        probation_s: How long a pushed head or bundle is watched before it counts as active.
        probation_labels: A probation also ends, judged, after so many labels.
        seed: Of SGD's replay draws.
        streams: How many streams a model with recurrent state may remember, of each model.
        outbox_mb: What may wait for a connection, MiB; 0 for nothing, where there is no broker.
        data_cap: What may be sent and received in a period; None for as much as comes.
        http: The local HTTP interface; None for none.
        batch_ms: Samples of several requests that come at once run together as long as that takes no longer; 0: never.
        keep_hard_mb: Disk for the hard samples of each model, MiB; 0 keeps none.
        fleet_labels: Whether the coordinator is sent sketches of samples whose label would help, and may give labels.
        share_pictures: Whether the coordinator may see the sample that a person is asked about.
        evaluate_candidates: Whether the fleet may ask how candidate heads do on the labels that came last here.
        home_assistant: Prefix below which Home Assistant is told of this device; "" tells it nothing.
        trust_root: The root document below which releases must be signed; None takes unsigned ones.
        checkpoint_every_s: Between two checkpoints that are sent by plan; 0 for only when they are asked for.
        checkpoint_samples: Whether a checkpoint has samples in it, kept for replay and to judge heads by.
        checkpoint_key: Public key that checkpoints are sealed to; None sends them open.
    """

    bundles: Mapping[str, Path]
    state_dir: Path
    fleet: str
    device: str
    profile: DeviceProfile
    learner: str = "auto"
    executor: str = "auto"
    provider: str = "auto"
    mixture: bool = True
    reject_unknown: float = 0.0
    telemetry_interval_s: float = 60.0
    sync_interval_s: float = 600.0
    upload: Compression = EXACT
    noise: Noise | None = None
    probation_s: float = 60.0
    probation_labels: int = 32
    seed: int = 0
    streams: StreamLimits = field(default_factory=StreamLimits)
    outbox_mb: float = 8.0
    data_cap: DataCap | None = None
    trust_root: Path | None = None
    checkpoint_every_s: float = 0.0
    checkpoint_samples: bool = False
    checkpoint_key: Path | None = None
    http: HttpOptions | None = None
    batch_ms: float = 5.0
    keep_hard_mb: float = 0.0
    fleet_labels: bool = False
    share_pictures: bool = False
    evaluate_candidates: bool = False
    home_assistant: str = ""


def named_bundles(arguments: Sequence[str]) -> dict[str, Path]:
    """Bundles by the names of their models: as their manifests say, or as ``NAME=path`` does.

    Of several, one that is damaged goes by the name of its file: the others shall be served all the same.

    Raises:
        ConfigError: A name that is none, two of one name, or too many.
        BundleError: A file that does not exist, or the only one is no bundle.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        name, separator, rest = argument.partition("=")
        is_named = bool(separator) and not Path(argument).exists()
        path = Path(rest if is_named else argument)
        if not is_named:
            name = _name_of(path, is_only=len(arguments) == 1)
        elif not path.exists():
            raise BundleError(f"{path} does not exist")
        if not is_model_name(name):
            raise ConfigError(
                f"{path}: the name of a model has 1 to {MAX_NAME_CHARS} characters that can be shown, "
                f"got {name[:40]!r}; name it with NAME={path}"
            )
        if name in found:
            raise ConfigError(
                f"{found[name]} and {path} are both of the model {name!r}; name one of them otherwise: NAME={path}"
            )
        found[name] = path
    if len(found) > MAX_MODELS:
        raise ConfigError(f"{len(found)} bundles: an agent serves at most {MAX_MODELS}; start another one")
    return found


def _name_of(path: Path, *, is_only: bool) -> str:
    try:
        return read_manifest(path).name or path.stem
    except BundleError:
        if is_only or not path.exists():
            raise
        return path.stem
