"""How much of each column of an output a program keeps, as values: what reports show and ``--max-drop`` limits."""

from __future__ import annotations

from dataclasses import dataclass

from converter.plan import CLASSES

ACCURACY, AGREEMENT, R2, CORRELATION = "accuracy", "agreement", "R2", "correlation"
COSINE, BOXES_KEPT, EQUAL = "cosine", "boxes kept", "equal"
DETECTIONS_KEPT, R2_SHOWN = "detections kept", "R2 of rows that are shown"
SEQUENCES_KEPT, RARE_AGREEMENT = "sequences kept", "agreement on what is rare"
EXPECTED_ACCURACY, EXPECTED_AGREEMENT = "expected accuracy", "expected agreement"
EXPECTED_SEQUENCES = "sequences expected to be kept"
SHARES = (
    ACCURACY, AGREEMENT, BOXES_KEPT, DETECTIONS_KEPT, EQUAL, SEQUENCES_KEPT, RARE_AGREEMENT, EXPECTED_ACCURACY,
    EXPECTED_AGREEMENT, EXPECTED_SEQUENCES,
)  # fmt: skip
"""Measures that are shares of samples; the others are no per cent of anything."""
_ANSWERS = (AGREEMENT, EQUAL, SEQUENCES_KEPT)
MOST_LOSS = 100.0
# Of the points that a loss is told in: of columns that lose nothing, rounding would choose one.
_LOSS_DIGITS = 2
"""Of a column that is finite: ``--max-drop 100`` allows any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """How much a program keeps of one column of an output, or of an output that is judged whole.

    Attributes:
        output: Name.
        column: Which one; None for all together. Of classes, the class.
        kind: What it was judged as, one of `converter.plan.KINDS`.
        measure: ``accuracy``, ``agreement``, ``R2``, ...
        against: ``labels`` or ``original``.
        value: By that measure; None where there is none, because it is constant or not finite.
        original: The original's own.
        loss: By how much it is worse, in points of 100: what ``--max-drop`` limits.
        constant: Whether the original gives one value for all samples, of which no measure says anything.
        at: Where that is, if not on the samples as they are: at other sizes, or in a stream.
    """

    output: str
    column: int | None
    kind: str
    measure: str
    against: str
    value: float | None
    original: float | None
    loss: float
    constant: bool = False
    at: str = ""

    @property
    def name(self) -> str:
        """What it is the quality of.

        >>> Quality(output="o", column=2, kind="quantities", measure="R2", against="original", value=1.0, original=1.0,
        ...         loss=0.0).name
        'o[2]'
        """
        name = self.output
        if self.column is not None:
            name = f"class {self.column} of {name}" if self.kind == CLASSES else f"{name}[{self.column}]"
        return f"{name} {self.at}" if self.at else name


@dataclass(frozen=True, kw_only=True, slots=True)
class Deviation:
    """How far a program's outputs are from the original's.

    Attributes:
        qualities: Of every output and column.
        sqnr_db: Signal to quantization noise ratio against the original, the smallest over all float outputs.
        max_error: Largest absolute difference.
        relative_error: That difference relative to the largest absolute value of its output.
        column_db: Signal about its mean to noise, of the worst column that is not constant.
        elsewhere: At other sizes and in a stream, where these were tried.
        expected: Of other samples, by output that has answers; where the samples are enough to count, nothing.
    """

    qualities: tuple[Quality, ...]
    sqnr_db: float
    max_error: float
    relative_error: float
    column_db: float
    elsewhere: tuple[Deviation, ...] = ()
    expected: tuple[Quality, ...] = ()

    @property
    def everywhere(self) -> tuple[Quality, ...]:
        """On the samples, and elsewhere."""
        return (*self.qualities, *(quality for one in self.elsewhere for quality in one.qualities))

    @property
    def least_db(self) -> float:
        """The smallest SQNR of an output, or of a column about its mean, on the samples and elsewhere."""
        return min(db for one in (self, *self.elsewhere) for db in (one.sqnr_db, one.column_db))

    @property
    def worst(self) -> Quality:
        """The column that decides: with the largest loss, and of those that lose as much that with the lowest value."""

        def order(quality: Quality) -> tuple[bool, float, float]:
            value = quality.value if quality.value is not None else float("inf")
            return (quality.constant and quality.loss == 0, -round(quality.loss, _LOSS_DIGITS), value)

        return min(self.everywhere, key=order)

    @property
    def score(self) -> float | None:
        """Accuracy, or the worst column's R², against the labels; None without any."""
        found = [q.value for q in self.qualities if q.against == "labels" and q.value is not None]
        whole = [q.value for q in self.qualities if q.against == "labels" and q.column is None and q.value is not None]
        return min(whole or found, default=None)

    @property
    def original_score(self) -> float | None:
        """The original's own."""
        found = [q for q in self.qualities if q.against == "labels"]
        whole = [q for q in found if q.column is None]
        return min((q.original for q in whole or found if q.original is not None), default=None)

    @property
    def agreement(self) -> float | None:
        """The smallest share of the original's answers that are given, too; None where outputs are no answers."""
        return min((q.value for q in self.qualities if q.measure in _ANSWERS and q.value is not None), default=None)
