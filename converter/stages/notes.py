"""What is to be said of a conversion beside its numbers."""

from __future__ import annotations

import numpy as np

from converter.pack.pack import LEAST_LEARNED, MOST_FEATURES, LearningData, Parts, projection_of
from converter.plan import ANYTHING, ConversionPlan
from converter.program.one_run import as_judged
from converter.search.search import Found


def notes_on(parts: Parts, found: Found, plan: ConversionPlan, learned: LearningData | None) -> list[str]:
    """Sentences for the report.

    Args:
        parts: What is packed.
        found: What the search found.
        plan: What was asked for.
        learned: What devices start learning from.
    """
    notes: list[str] = []
    if not plan.target_named:
        notes.append(
            f"no device was named: made for one like this machine, {plan.profile.name}. Name yours with --target; "
            f"--target list shows them"
        )
    for pair in parts.original.states:
        notes.append(
            f"{pair.input} is a state: {pair.output} of each sample is what the next one takes, the first takes zeros"
            + ("" if plan.states is not None else " (found by its name and shape; --state none if it is not so)")
        )
    if parts.original.source.one_run is None and as_judged(found.chosen.model) is not None:
        notes.append(
            "int8 scales are taken of whatever is in a run, so that samples would change each other's answers: they "
            "were compared one at a time, and devices and edge-bundle run them so"
        )
    if parts.original.source.carried:
        return notes
    if parts.original.stream is None:
        notes.append(
            "no calibration data: compared on random inputs, no int8 convolutions, no statistics for devices to start "
            "learning from. Give --calibrate with real samples (labelled, if the head is to learn)"
        )
    head = parts.parts.head
    if head is not None and parts.recipe.is_classifier and parts.evaluation.kinds[head.output].kind == ANYTHING:
        notes.append(
            f"nothing says what {head.output} is: devices take its {head.n_outputs} values for as many classes, and "
            f"answer with the logarithms of their shares. Class names or labels would say so, --output "
            f"{head.output}=quantities or --trainable none that they are not"
        )
    notes += _unseen(parts)
    if head is not None and plan.format in ("onnx", "torchscript"):
        notes.append("one file holds no training step: what is trainable stays float in it, and no device learns it")
    if found.chosen.head_error < 1.0:
        notes.append(
            f"head corrected for the quantized features: squared error of the logits x {found.chosen.head_error:.2f}"
        )
    if learned is not None and learned.statistics is None:
        notes.append(
            f"no statistics for devices to start learning from: {learned.n_different} different labelled "
            f"sample{'' if learned.n_different == 1 else 's'}, {LEAST_LEARNED} are the least"
        )
    elif learned is not None:
        notes.append(f"statistics of {learned.n_samples} labelled samples for devices to start learning from")
    head = parts.parts.head
    if head is not None and (shorter := projection_of(head, plan.profile)) is not None:
        (n_features,) = head.features.sample_shape
        notes.append(
            f"devices keep statistics of {shorter} random projections of the {n_features} features, which is what "
            f"{plan.profile.name} has memory for"
        )
        if n_features > MOST_FEATURES:
            notes.append(f"no statistics shipped: of more than {MOST_FEATURES} features they would be too large")
    return notes


def _unseen(parts: Parts) -> list[str]:
    """Classes of which no label was measured on: what they lost nobody knows."""
    y, output = parts.evaluation.samples.y, parts.evaluation.classes
    if y is None or output is None or y.dtype.kind not in "iu" or not parts.evaluation.kinds[output].labelled:
        return []
    count = parts.evaluation.reference[output].shape[1]
    missing = np.setdiff1d(np.arange(count), y)
    if not len(missing):
        return []
    names = parts.class_names if len(parts.class_names) == count else [str(i) for i in range(count)]
    shown = ", ".join(names[i] for i in missing[:5]) + (", ..." if len(missing) > 5 else "")
    return [f"no label of {len(missing)} of {count} classes ({shown}): what is lost of them is not known"]
