"""Labels that a person is asked for, and the samples that they are for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import bindparam, delete, func, or_, select, update

from edge.coordinator.records import AlikeSample, FleetQuestion, QuestionPicture
from edge.coordinator.store.database import Database
from edge.coordinator.store.tables import AlikeRow, PictureRow, QuestionRow, columns

# Whole statements: this is asked for with each birth.
_KNOWN = (
    select(AlikeRow, QuestionRow)
    .join(QuestionRow, QuestionRow.number == AlikeRow.question)
    .where(AlikeRow.state == "open")
    .order_by(AlikeRow.id)
)
_ITS_KNOWN = _KNOWN.where(AlikeRow.device == bindparam("name"))


class QuestionLog:
    """See the module.

    Args:
        database: That has them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, question: FleetQuestion, samples: Iterable[AlikeSample]) -> FleetQuestion:
        """Keep a new one with its samples; with its number."""
        with self._database.transaction() as session:
            row = QuestionRow(**{name: value for name, value in columns(question).items() if name != "number"})
            session.add(row)
            session.flush()
            for each in samples:
                values = {name: value for name, value in columns(each).items() if name != "id"}
                session.add(AlikeRow(**{**values, "question": row.number}))
            return row.to(FleetQuestion)

    def save(self, question: FleetQuestion) -> None:
        """Keep what became of one."""
        with self._database.transaction() as session:
            session.merge(QuestionRow.of(question))

    def save_sample(self, sample: AlikeSample) -> None:
        """Keep what became of the label of one sample."""
        with self._database.transaction() as session:
            session.merge(AlikeRow.of(sample))

    def move(self, question: int, before: str, after: str, detail: str = "") -> None:
        """All samples of a question that are in one state are in another from now on."""
        query = update(AlikeRow).filter_by(question=question, state=before).values(state=after, detail=detail)
        with self._database.transaction() as session:
            session.execute(query)

    def get(self, number: int) -> FleetQuestion | None:
        """One, or None when there is none of that number."""
        with self._database.transaction() as session:
            row = session.get(QuestionRow, number)
            return None if row is None else row.to(FleetQuestion)

    def newest(self, limit: int) -> Sequence[FleetQuestion]:
        """The newest, whether they are open or not."""
        query = select(QuestionRow).order_by(QuestionRow.number.desc()).limit(limit)
        with self._database.transaction() as session:
            return [row.to(FleetQuestion) for row in session.scalars(query)]

    def keep_picture(self, picture: QuestionPicture) -> None:
        """Keep what a sample looks like."""
        with self._database.transaction() as session:
            session.merge(PictureRow.of(picture))

    def picture(self, number: int) -> str:
        """PNG of the asked sample of a question, in base64; "" for none."""
        with self._database.transaction() as session:
            row = session.get(PictureRow, number)
            return "" if row is None else row.png

    def open(self) -> Sequence[FleetQuestion]:
        """Those that nobody has answered, oldest first."""
        query = select(QuestionRow).filter_by(state="open").order_by(QuestionRow.number)
        with self._database.transaction() as session:
            return [row.to(FleetQuestion) for row in session.scalars(query)]

    def samples(self, *questions: int) -> Sequence[AlikeSample]:
        """That questions are for, the most alike first."""
        query = select(AlikeRow).where(AlikeRow.question.in_(questions))
        query = query.order_by(AlikeRow.question, AlikeRow.alike.desc(), AlikeRow.id)
        with self._database.transaction() as session:
            return [row.to(AlikeSample) for row in session.scalars(query)]

    def sample(self, number: int) -> AlikeSample | None:
        """One of them, by the number of its row."""
        with self._database.transaction() as session:
            row = session.get(AlikeRow, number)
            return None if row is None else row.to(AlikeSample)

    def to_say(self, device: str | None) -> Sequence[tuple[AlikeSample, FleetQuestion]]:
        """Samples whose label is known and whose device has not answered, with the question, oldest first."""
        with self._database.transaction() as session:
            found = session.execute(_KNOWN) if device is None else session.execute(_ITS_KNOWN, {"name": device})
            return [(one.to(AlikeSample), two.to(FleetQuestion)) for one, two in found]

    def asked(self, backbone: str) -> frozenset[tuple[str, str, str]]:
        """Device, model and name of every sample that a question of this backbone was for."""
        query = select(AlikeRow.device, AlikeRow.model, AlikeRow.sample)
        query = query.join(QuestionRow, QuestionRow.number == AlikeRow.question).where(QuestionRow.backbone == backbone)
        with self._database.transaction() as session:
            return frozenset((device, model, sample) for device, model, sample in session.execute(query))

    def forget(self, device: str = "", closed_before_ms: int = 0) -> int:
        """Delete what is known of a device, and questions about a sample of it; or those that ended before a moment.

        Returns:
            Samples of the device that were known.
        """
        query = select(QuestionRow.number)
        if device:
            query = query.where(QuestionRow.device == device)
        else:
            query = query.where(QuestionRow.state != "open", QuestionRow.closed_ms < closed_before_ms)
        with self._database.transaction() as session:
            gone = list(session.scalars(query))
            own = AlikeRow.device == (device or None)
            n_alike = session.scalar(select(func.count()).select_from(AlikeRow).where(own)) or 0
            session.execute(delete(AlikeRow).where(or_(AlikeRow.question.in_(gone), own)))
            session.execute(delete(PictureRow).where(PictureRow.question.in_(gone)))
            session.execute(delete(QuestionRow).where(QuestionRow.number.in_(gone)))
        return len(gone) + n_alike
