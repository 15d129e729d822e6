"""The database: what the coordinator knows, in SQLite by SQLAlchemy. The broker is never asked what was true yesterday.

Every write is one transaction, durable when the method returns. Telemetry is written in batches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Connection,
    Engine,
    Index,
    UniqueConstraint,
    create_engine,
    delete,
    event,
    func,
    inspect,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from edge.channel.messages import EXPERTS, Birth, Conn, Event, Served, State
from edge.contract.errors import ConfigError
from edge.contract.names import is_model_name
from edge.coordinator.migrations import (
    ADD,
    ADDED,
    EXPERTS_TABLE,
    NO_EXPERTS,
    ONE_MODEL,
    PUT_ASIDE,
    TAKE_OVER,
    TELEMETRY_ASIDE,
    TELEMETRY_BACK,
    WITHOUT_FOLDER,
)
from edge.coordinator.migrations import EXPERTS as KNOWN_EXPERTS
from edge.merging.averaging import MergeMemory
from edge.merging.groups import is_meant

MAX_COUNTER = 2**48
# The database itself is at fault and not what it was given: locked, full, damaged, gone.
DatabaseError = OperationalError
_OPTIMIZER, _ACCOUNT = "server-optimizer", "privacy-account"


class Base(DeclarativeBase):
    """Root of the tables."""


class DeviceRow(Base):
    """A device, from its first message on."""

    __tablename__ = "device"
    id: Mapped[str] = mapped_column(primary_key=True)
    online: Mapped[bool] = mapped_column(default=False)
    session: Mapped[int] = mapped_column(default=0)
    boot: Mapped[int] = mapped_column(default=0)
    agent_version: Mapped[str] = mapped_column(default="")
    profile: Mapped[str] = mapped_column(default="")
    hardware: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    born: Mapped[bool] = mapped_column(default=False)
    first_seen_ms: Mapped[int] = mapped_column(default=0)
    last_seen_ms: Mapped[int] = mapped_column(default=0)
    state_id: Mapped[str] = mapped_column(default="")


class ModelRow(Base):
    """A model of a device, and its newest word on its experts: by name weight, accuracy and labels.

    `model` is "" while nobody has said the name: of a device from before there were several, with an unknown bundle.
    """

    __tablename__ = "device_model"
    device: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(default=0)
    bundle: Mapped[str] = mapped_column(default="")
    backbone: Mapped[str] = mapped_column(default="")
    head: Mapped[str] = mapped_column(default="")
    release: Mapped[int] = mapped_column(default=0)
    samples: Mapped[int] = mapped_column(default=0)
    state_seq: Mapped[int] = mapped_column(default=0)
    state: Mapped[str] = mapped_column(default="")
    state_release: Mapped[int] = mapped_column(default=0)
    state_detail: Mapped[str] = mapped_column(default="")
    experts: Mapped[dict[str, list[float]]] = mapped_column(JSON, default=dict)


# What is known of a model that has said nothing yet.
NO_MODEL: dict[str, Any] = {"model": "", "position": 0, "bundle": "", "backbone": "", "head": "", "release": 0}
NO_MODEL |= {"samples": 0, "state_seq": 0, "state": "", "state_release": 0, "state_detail": "", "experts": {}}


class TagRow(Base):
    """What an operator calls a device: ``model=A``."""

    __tablename__ = "device_tag"
    device: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class TelemetryRow(Base):
    """One telemetry message; (device, state_id, boot, seq) tells a repeat."""

    __tablename__ = "telemetry"
    __table_args__ = (UniqueConstraint("device", "state_id", "boot", "seq"), Index("telemetry_received", "received_ms"))
    id: Mapped[int] = mapped_column(primary_key=True)
    device: Mapped[str]
    boot: Mapped[int]
    seq: Mapped[int]
    received_ms: Mapped[int]
    values: Mapped[dict[str, Any]] = mapped_column(JSON)
    state_id: Mapped[str] = mapped_column(default="")


class AgeRow(Base):
    """How long coordinators of this database had run, in seconds, when they had kept telemetry up to an id.

    What is kept "for thirty days" is kept while the coordinator runs for thirty days. No clock has a say in it: one
    that is ahead for a minute, before it is set, would have everything deleted.
    """

    __tablename__ = "age"
    run_s: Mapped[float] = mapped_column(primary_key=True)
    last_id: Mapped[int]


class ContributionRow(Base):
    """The newest contribution of one lineage of learned state."""

    __tablename__ = "contribution"
    device: Mapped[str] = mapped_column(primary_key=True)
    lineage: Mapped[str] = mapped_column(primary_key=True)
    backbone: Mapped[str] = mapped_column(primary_key=True)
    learner: Mapped[str]
    version: Mapped[int]
    n_samples: Mapped[int]
    base_release: Mapped[int]
    digest: Mapped[str]
    received_ms: Mapped[int]
    merged_version: Mapped[int] = mapped_column(default=-1)
    merged_release: Mapped[int] = mapped_column(default=0)
    model: Mapped[str] = mapped_column(default="")
    state_id: Mapped[str] = mapped_column(default="")


class RefusedRow(Base):
    """A version of a contribution that the last merge left out, because its statistics are implausible."""

    __tablename__ = "refused"
    device: Mapped[str] = mapped_column(primary_key=True)
    lineage: Mapped[str] = mapped_column(primary_key=True)
    backbone: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int]
    reason: Mapped[str]


class ForgottenRow(Base):
    """A lineage that an operator had forgotten; nothing of it is taken any more.

    `pending` while the fleet's newest sum of statistics still has it in.
    """

    __tablename__ = "forgotten"
    lineage: Mapped[str] = mapped_column(primary_key=True)
    backbone: Mapped[str] = mapped_column(primary_key=True)
    device: Mapped[str]
    pending: Mapped[bool]
    at_ms: Mapped[int]


class MemoryRow(Base):
    """What merges must remember: a document by name and backbone; "" is the backbone of what is the whole fleet's."""

    __tablename__ = "merge_memory"
    name: Mapped[str] = mapped_column(primary_key=True)
    backbone: Mapped[str] = mapped_column(primary_key=True)
    data: Mapped[bytes]


class BundleRow(Base):
    """A bundle that the coordinator knows, by the digest of its file."""

    __tablename__ = "bundle"
    digest: Mapped[str] = mapped_column(primary_key=True)
    backbone: Mapped[str]
    name: Mapped[str]


class ReleaseRow(Base):
    """Something pushed. Counters only go up; going back is a new release of older bytes.

    `devices` says whom it is meant for, see `edge.merging.groups.is_meant`; `model` which model of these, "" for
    those that it fits: a head its backbone, a bundle the only model of a device.
    """

    __tablename__ = "release"
    counter: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    digest: Mapped[str]
    backbone: Mapped[str]
    devices: Mapped[list[str]] = mapped_column(JSON)
    reason: Mapped[str]
    created_ms: Mapped[int]
    model: Mapped[str] = mapped_column(default="")


class EventRow(Base):
    """Something that happened, on a device or here."""

    __tablename__ = "event"
    id: Mapped[int] = mapped_column(primary_key=True)
    device: Mapped[str]
    name: Mapped[str]
    detail: Mapped[str]
    at_ms: Mapped[int]
    model: Mapped[str] = mapped_column(default="")


def _documents(memory: MergeMemory, backbone: str) -> dict[tuple[str, str], bytes]:
    """By name and backbone. What noise has told of a device adds up over all backbones."""
    return {(_OPTIMIZER, backbone): memory.optimizer, (_ACCOUNT, ""): memory.account}


def as_dict(row: Base) -> dict[str, Any]:
    """A row as JSON-able values."""
    return {column.key: getattr(row, column.key) for column in row.__table__.columns}


def fits(release: ReleaseRow, model: ModelRow, *, is_only: bool) -> bool:
    """Whether a release that is meant for a device is for this model of it, which `is_only` one there or not."""
    if release.kind == "head":
        return release.backbone == model.backbone and release.model in ("", model.model)
    return release.model == model.model or ("" in (release.model, model.model) and is_only)


def _new_model(session: Session, device: str, name: str) -> ModelRow:
    row = ModelRow(device=device, **NO_MODEL | {"model": name})
    session.add(row)
    return row


def _only_model(session: Session, birth: Birth) -> Served:
    """What a device says that knows of one model only; named as its bundle is, where that is known."""
    found = session.scalars(select(BundleRow).where(BundleRow.backbone == birth.backbone).limit(1)).first()
    return Served(
        model=found.name if found is not None and birth.backbone and is_model_name(found.name) else "",
        bundle=birth.bundle,
        backbone=birth.backbone,
        head=birth.head,
        release=birth.release,
        n_labels=birth.n_labels,
    )


def _columns(connection: Connection) -> dict[str, Sequence[Any]]:
    inspector = inspect(connection)
    return {table: inspector.get_columns(table) for table in inspector.get_table_names()}


class Store:
    """The database of one coordinator.

    Args:
        path: SQLite file, created.

    Raises:
        ConfigError: The file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._engine: Engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})

        @event.listens_for(self._engine, "connect")
        def _configure(connection: Any, _: Any) -> None:
            # Readers do not wait for the writer, and a commit survives a power cut.
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")

        try:
            self._prepare()
        except SQLAlchemyError as exc:
            raise ConfigError(f"the database {path} cannot be used: {exc.__cause__ or exc}") from exc

    def _prepare(self) -> None:
        """Make the tables that are missing, and take over those of an earlier version."""
        with self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # else a change of the tables were no part of a transaction
            tables = {table: {c["name"] for c in columns} for table, columns in _columns(connection).items()}
            has_one_model = ONE_MODEL[1] in tables.get(ONE_MODEL[0], ())
            if has_one_model:
                for statement in PUT_ASIDE:
                    connection.exec_driver_sql(statement)
            has_no_folder = "telemetry" in tables and WITHOUT_FOLDER[1] not in tables["telemetry"]
            if has_no_folder:
                for statement in TELEMETRY_ASIDE:
                    connection.exec_driver_sql(statement)
            tables = {table: {c["name"] for c in columns} for table, columns in _columns(connection).items()}
            for table, column in ADDED:
                if table in tables and column not in tables[table]:
                    connection.exec_driver_sql(ADD.format(table=table, column=column))
            Base.metadata.create_all(connection)
            if has_one_model:
                experts = KNOWN_EXPERTS if EXPERTS_TABLE in tables else NO_EXPERTS
                for statement in TAKE_OVER:
                    connection.exec_driver_sql(statement.replace("{experts}", experts))
            if has_no_folder:
                for statement in TELEMETRY_BACK:
                    connection.exec_driver_sql(statement)
            connection.commit()

    def close(self) -> None:
        """Give the file free."""
        self._engine.dispose()

    def _session(self) -> Session:
        return Session(self._engine, expire_on_commit=False)

    @staticmethod
    def _device(session: Session, device: str, now_ms: int) -> DeviceRow:
        row = session.get(DeviceRow, device)
        if row is None:
            row = DeviceRow(id=device, first_seen_ms=now_ms, session=0, boot=0)
            row.online, row.born = False, False
            session.add(row)
        row.last_seen_ms = now_ms
        return row

    @staticmethod
    def _models(session: Session, device: str) -> dict[str, ModelRow]:
        query = select(ModelRow).where(ModelRow.device == device).order_by(ModelRow.position)
        return {row.model: row for row in session.scalars(query)}

    def _model(self, session: Session, device: DeviceRow, name: str) -> ModelRow | None:
        """The model that a message is of; None for one that the device does not have any more.

        Devices from before there were several say no name, or one that their birth did not say.
        """
        rows = self._models(session, device.id)
        if name in rows:
            return rows[name]
        if len(rows) == 1 and "" in (name, *rows):
            return next(iter(rows.values()))
        return None if device.born else _new_model(session, device.id, name)

    # What devices say

    @staticmethod
    def _is_set_up_anew(session: Session, row: DeviceRow, message: Conn | Birth) -> bool:
        """Take another state folder under the same name for what it is: all numbers begin anew within it."""
        if message.state_id in ("", row.state_id):
            return False
        # Where the folder was not known so far, an agent was perhaps only updated; then its numbers go on.
        is_new = row.state_id != "" or message.session < row.session
        row.state_id = message.state_id
        if is_new:
            row.session, row.boot = 0, 0
            begun = {"state_seq": 0, "state": "", "state_release": 0, "state_detail": "", "experts": {}}
            session.execute(update(ModelRow).where(ModelRow.device == row.id).values(**begun))
        return is_new

    def conn(self, device: str, message: Conn, now_ms: int) -> bool:
        """A device came or went. An offline of an older session than the last online is dropped.

        Returns:
            Whether it has another state folder than before: it was set up anew.
        """
        with self._session() as session, session.begin():
            row = self._device(session, device, now_ms)
            if not message.online and row.state_id and message.state_id not in ("", row.state_id):
                return False  # the last word of a folder that is gone
            is_new = self._is_set_up_anew(session, row, message)
            if message.session >= row.session:
                row.online, row.session, row.boot = message.online, message.session, message.boot
            return is_new

    def birth(self, device: str, message: Birth, now_ms: int) -> bool:
        """A device said what it is and runs.

        Returns:
            Whether it has another state folder than before: it was set up anew.
        """
        with self._session() as session, session.begin():
            row = self._device(session, device, now_ms)
            is_new = self._is_set_up_anew(session, row, message)
            row.born = True  # whether it is online, Conn says: a birth may be an old one that the broker kept
            row.session, row.boot = max(row.session, message.session), message.boot
            row.agent_version, row.profile, row.hardware = (
                message.agent_version,
                message.profile,
                dict(message.hardware),
            )
            known = self._models(session, device)
            for position, served in enumerate(message.models or (_only_model(session, message),)):
                is_old = not message.models and len(known) == 1  # then it goes on under the name that it has
                name = served.model if not is_old or "" in known else next(iter(known))
                model = known.pop(name, None)
                if model is None and len(message.models) <= 1 and "" in known:  # its name is known by now
                    model = known.pop("")
                    model.model = name
                model = model or _new_model(session, device, name)
                model.position = position
                model.bundle, model.backbone, model.head = served.bundle, served.backbone, served.head
                model.release, model.samples = served.release, served.n_labels
                if model.state == "refused" and session.get(ReleaseRow, model.state_release) is not None:
                    model.release = max(model.release, model.state_release)  # a device does not count what it refused
            for gone in known.values():
                session.delete(gone)
            return is_new

    def state(self, device: str, message: State, now_ms: int) -> bool:
        """A slot changed its state; False when a newer one is known, or the device does not have the model any more."""
        with self._session() as session, session.begin():
            known = self._device(session, device, now_ms)
            row = self._model(session, known, message.model)
            is_gone = known.state_id and message.state_id not in ("", known.state_id)
            if row is None or is_gone or message.seq <= row.state_seq:
                return False
            row.state_seq, row.state, row.state_detail = message.seq, message.state, message.detail
            row.state_release = message.release
            # What a device refuses counts where it is of ours: anybody may have made it up.
            is_ours = message.state != "refused" or session.get(ReleaseRow, message.release) is not None
            if message.state in ("probation", "active", "refused", "rolled-back") and is_ours:
                row.release = max(row.release, message.release)
            return True

    def telemetry(self, rows: Sequence[tuple[str, Mapping[str, Any], int]]) -> None:
        """Keep telemetry: (device, values, received_ms); repeats are dropped."""
        if not rows:
            return
        with self._session() as session, session.begin():
            for device, values, now_ms in rows:
                name = values.get("model", "")
                is_name = isinstance(name, str) and is_model_name(name)
                row = self._model(session, self._device(session, device, now_ms), name if is_name else "")
                if row is not None and type(values.get("samples")) is int:
                    row.samples = values["samples"]
                if row is not None and EXPERTS in values:
                    row.experts = values[EXPERTS]
                entry = {"device": device, "boot": values.get("boot", 0), "seq": values.get("seq", 0)}
                folder = values.get("state_id", "")
                entry |= {"received_ms": now_ms, "values": dict(values)}
                entry["state_id"] = folder[:64] if isinstance(folder, str) else ""
                session.flush()
                session.execute(insert(TelemetryRow).values(**entry).on_conflict_do_nothing())

    def event(self, device: str, message: Event, now_ms: int) -> None:
        """Something happened; ``device`` is "" for the coordinator itself."""
        with self._session() as session, session.begin():
            if device:
                self._device(session, device, now_ms)
            row = EventRow(device=device, name=message.name, detail=message.detail, at_ms=now_ms)
            row.model = message.model
            session.add(row)

    def owner_of(self, lineage: str, device: str, state_id: str) -> str | None:
        """Whose a lineage is, if neither this device's nor that of the state folder that this device shows to have.

        Every merged head names the lineages in it, so whoever names one proves nothing; of its state folder a device
        tells nobody but the coordinator.
        """
        with self._session() as session:
            rows = session.scalars(select(ContributionRow).filter_by(lineage=lineage)).all()
        if any(row.device == device or (state_id and row.state_id == state_id) for row in rows):
            return None
        return rows[0].device if rows else None

    def contribution(self, row: ContributionRow) -> bool:
        """Keep a contribution unless a newer version of its lineage is known; False when it is not news."""
        with self._session() as session, session.begin():
            known = session.get(ContributionRow, (row.device, row.lineage, row.backbone))
            # A change against a newer head replaces one of the same version against an older head.
            if known is not None and (known.version, known.base_release) >= (row.version, row.base_release):
                return False
            row.merged_version = -1 if known is None else known.merged_version
            row.merged_release = 0 if known is None else known.merged_release
            session.merge(row)
            return True

    # Bundles, merges and releases

    def add_bundle(self, digest: str, backbone: str, name: str) -> None:
        """Know a bundle."""
        with self._session() as session, session.begin():
            session.merge(BundleRow(digest=digest, backbone=backbone, name=name))

    def bundles(self) -> Sequence[BundleRow]:
        """All known bundles."""
        with self._session() as session:
            return session.scalars(select(BundleRow)).all()

    def bundle_of(self, backbone: str) -> BundleRow | None:
        """A known bundle with this backbone."""
        with self._session() as session:
            return session.scalars(select(BundleRow).where(BundleRow.backbone == backbone).limit(1)).first()

    def contributions(self, backbone: str | None = None) -> Sequence[ContributionRow]:
        """The newest contributions, by device and lineage."""
        query = select(ContributionRow).order_by(ContributionRow.device, ContributionRow.lineage)
        if backbone is not None:
            query = query.where(ContributionRow.backbone == backbone)
        with self._session() as session:
            return session.scalars(query).all()

    def release(
        self,
        *,
        kind: str,
        digest: str,
        backbone: str,
        devices: Sequence[str],
        reason: str,
        now_ms: int,
        model: str = "",
        merged: Iterable[ContributionRow] = (),
        memory: MergeMemory | None = None,
        without_forgotten: bool = False,
    ) -> ReleaseRow:
        """Record a release, what it merged, and what the merge after must know, in one transaction.

        Its counter is one above the highest that this database or any device has seen: after yesterday's backup was
        restored the devices know higher ones, and would ignore anything below.
        """
        with self._session() as session, session.begin():
            highest = session.scalar(select(func.max(ReleaseRow.counter))) or 0
            honest = ModelRow.release < MAX_COUNTER  # a device must not be able to use the counters up
            on_devices = session.scalar(select(func.max(ModelRow.release)).where(honest)) or 0
            counter = max(highest, on_devices) + 1
            row = ReleaseRow(counter=counter, kind=kind, digest=digest, backbone=backbone, devices=list(devices))
            row.reason, row.created_ms, row.model = reason, now_ms, model
            session.add(row)
            for part in merged:
                known = session.get(ContributionRow, (part.device, part.lineage, part.backbone))
                if known is not None:
                    known.merged_version = max(known.merged_version, part.version)
                    known.merged_release = row.counter
            if memory is not None:
                for (name, key), data in _documents(memory, backbone).items():
                    if data:
                        session.merge(MemoryRow(name=name, backbone=key, data=data))
            if without_forgotten:
                session.execute(update(ForgottenRow).where(ForgottenRow.backbone == backbone).values(pending=False))
            return row

    def memory(self, backbone: str) -> MergeMemory:
        """What the last merge of a backbone left for the next one."""
        with self._session() as session:
            found = {row.name: row.data for row in session.scalars(select(MemoryRow)) if row.backbone in ("", backbone)}
        return MergeMemory(optimizer=found.get(_OPTIMIZER, b""), account=found.get(_ACCOUNT, b""))

    def refused(self, backbone: str | None = None) -> Sequence[RefusedRow]:
        """What the last merges left out."""
        query = select(RefusedRow)
        if backbone is not None:
            query = query.where(RefusedRow.backbone == backbone)
        with self._session() as session:
            return session.scalars(query).all()

    def refuse(self, backbone: str, rows: Collection[RefusedRow]) -> None:
        """Replace what is left out of a backbone's merges."""
        with self._session() as session, session.begin():
            session.execute(delete(RefusedRow).where(RefusedRow.backbone == backbone))
            session.add_all(rows)

    # Forgetting

    def forget(self, device: str, now_ms: int) -> Sequence[ContributionRow]:
        """Delete all that a device contributed, and take nothing of its lineages any more; in one transaction.

        A copy of its state folder on another device is of the same lineage and folder, and is deleted with it. Where
        changes of it were merged, the server optimizer begins anew: its memory has them in.

        Returns:
            What was deleted.
        """
        with self._session() as session, session.begin():
            theirs = session.scalars(select(ContributionRow).filter_by(device=device)).all()
            own = {(r.lineage, r.backbone) for r in theirs}
            folders = {(r.lineage, r.backbone, r.state_id) for r in theirs}
            rows = [
                r for r in session.scalars(select(ContributionRow)) if (r.lineage, r.backbone, r.state_id) in folders
            ]
            for lineage, backbone in own:
                parts = [r for r in rows if (r.lineage, r.backbone) == (lineage, backbone)]
                pending = any(r.learner == "statistics" and r.merged_version >= 0 for r in parts)
                session.merge(
                    ForgottenRow(lineage=lineage, backbone=backbone, device=device, pending=pending, at_ms=now_ms)
                )
                session.execute(delete(RefusedRow).filter_by(lineage=lineage, backbone=backbone))
                if any(r.learner == "delta" and r.merged_version >= 0 for r in parts):
                    session.execute(delete(MemoryRow).filter_by(name=_OPTIMIZER, backbone=backbone))
            for row in rows:
                session.delete(row)
            return rows

    def is_forgotten(self, lineage: str) -> bool:
        """Whether an operator had this lineage forgotten."""
        with self._session() as session:
            return session.scalars(select(ForgottenRow).filter_by(lineage=lineage).limit(1)).first() is not None

    def to_be_unlearned(self) -> set[str]:
        """Backbones whose newest sum of statistics still has something in that was forgotten."""
        with self._session() as session:
            return set(session.scalars(select(ForgottenRow.backbone).filter_by(pending=True)))

    def releases(self) -> Sequence[ReleaseRow]:
        """All releases, newest first."""
        with self._session() as session:
            return session.scalars(select(ReleaseRow).order_by(ReleaseRow.counter.desc())).all()

    def device(self, device: str) -> DeviceRow | None:
        """A device, or None when it was never seen."""
        with self._session() as session:
            return session.get(DeviceRow, device)

    def devices(self) -> Sequence[DeviceRow]:
        """All devices by id."""
        with self._session() as session:
            return session.scalars(select(DeviceRow).order_by(DeviceRow.id)).all()

    def models(self, device: str | None = None) -> Sequence[ModelRow]:
        """All models of all devices, or of one, in the order that the device gave them."""
        query = select(ModelRow).order_by(ModelRow.device, ModelRow.position)
        if device is not None:
            query = query.where(ModelRow.device == device)
        with self._session() as session:
            return session.scalars(query).all()

    def tag(self, device: str, tags: Mapping[str, str]) -> None:
        """Give a device tags; one with the value "" is taken away."""
        with self._session() as session, session.begin():
            for key, value in tags.items():
                session.execute(delete(TagRow).filter_by(device=device, key=key))
                if value:
                    session.add(TagRow(device=device, key=key, value=value))

    def tags(self, device: str | None = None) -> dict[str, dict[str, str]]:
        """By device, of all or of one."""
        query = select(TagRow).order_by(TagRow.device, TagRow.key)
        if device is not None:
            query = query.where(TagRow.device == device)
        found: dict[str, dict[str, str]] = {}
        with self._session() as session:
            for row in session.scalars(query):
                found.setdefault(row.device, {})[row.key] = row.value
        return found

    def desired(self, model: ModelRow, *, is_only: bool) -> ReleaseRow | None:
        """What a model should run: the newest bundle meant for it until it has dealt with that, then the newest head.

        A head must not overtake a bundle: the model's counter would then be past the bundle's for ever.

        Args:
            model: Of a device.
            is_only: Whether it is the only one there.
        """
        tags = self.tags(model.device).get(model.device, {})
        meant = [row for row in self.releases() if is_meant(row.devices, model.device, tags)]
        meant = [row for row in meant if fits(row, model, is_only=is_only)]
        bundle = next((row for row in meant if row.kind == "bundle"), None)
        head = next((row for row in meant if row.kind == "head"), None)
        if bundle is None or (head is not None and model.release >= bundle.counter and head.counter > bundle.counter):
            return head
        return bundle

    # Reading for people

    def telemetry_after(self, last_id: int, limit: int) -> Sequence[TelemetryRow]:
        """Telemetry rows behind an id, oldest first; with id -1 the newest ones."""
        with self._session() as session:
            if last_id < 0:
                rows = session.scalars(select(TelemetryRow).order_by(TelemetryRow.id.desc()).limit(limit)).all()
                return rows[::-1]
            query = select(TelemetryRow).where(TelemetryRow.id > last_id).order_by(TelemetryRow.id).limit(limit)
            return session.scalars(query).all()

    def events(self, limit: int) -> Sequence[EventRow]:
        """The newest events, newest first."""
        with self._session() as session:
            return session.scalars(select(EventRow).order_by(EventRow.id.desc()).limit(limit)).all()

    def aged(self, more_s: float, keep_s: float) -> None:
        """The coordinator has run for a while more: delete telemetry that came before it ran the last `keep_s`."""
        with self._session() as session, session.begin():
            run_s = (session.scalar(select(func.max(AgeRow.run_s))) or 0.0) + more_s
            session.merge(AgeRow(run_s=run_s, last_id=session.scalar(select(func.max(TelemetryRow.id))) or 0))
            session.flush()
            is_old = AgeRow.run_s <= run_s - keep_s
            old_id = session.scalar(select(func.max(AgeRow.last_id)).where(is_old))
            if old_id is not None:
                session.execute(delete(TelemetryRow).where(TelemetryRow.id <= old_id))
                session.execute(delete(AgeRow).where(is_old))
