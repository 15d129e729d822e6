"""Pages say how right devices were by class, with how many labels, and where answers and labels disagree."""

from __future__ import annotations

import re
from pathlib import Path

from edge.channel.confusion import OTHERS
from edge.contract.bundle import Bundle
from edge.coordinator.pages import confusion_view, render
from edge.coordinator.pages.confusion_view import matrix
from edge.coordinator.records import Confusion, FleetQuestion, KnownBundle, Model
from edge.coordinator.store.store import Store
from edge.learning.exchange import HeadUpdate
from edge.learning.statistics import HeadStatistics
from tests.support.contributions import samples
from tests.support.light_fleet import Fleet, ends


def shown(counts: dict[str, dict[str, int]]) -> str:
    made = render._ENVIRONMENT.from_string("{{ confusion.classes(m, 'x') }}{{ confusion.drawn(m, 'x') }}")
    return " ".join(re.sub(r"<[^>]*>", " ", made.render(m=matrix(counts))).split())


def test_a_class_with_few_labels_has_no_share_and_one_without_a_label_no_row() -> None:
    found = matrix({"10": {"10": 3, "9": 1}, "9": {"9": 18, "10": 2}, "2": {"11": 1}})
    assert found is not None
    assert ([row.label for row in found.rows], found.columns) == (["2", "9", "10"], ["2", "9", "10", "11"])
    assert [(row.n, row.right, row.taken_for) for row in found.rows] == [
        (1, 0, ("11", 1)), (20, 18, ("10", 2)), (4, 3, ("9", 1)),
    ]  # fmt: skip
    assert (found.n, found.right) == (25, 21)
    said = shown({"9": {"9": 18, "10": 2}, "10": {"10": 2, "9": 1}})
    assert "9 20 90 % 10 ×2" in said
    assert "10 3 n=3, 2 right 9 ×1" in said


def test_what_was_not_told_is_counted_and_stands_for_no_class() -> None:
    found = matrix({"a": {"a": 20, OTHERS: 5}, OTHERS: {OTHERS: 7}})
    assert found is not None
    assert (found.n, found.right, found.untold, found.columns) == (32, 20, 7, ["a", OTHERS])
    assert found.rows[0].taken_for is None, "others are no class"
    assert "7 more labels, of classes for which the message had no room." in shown({"a": {"a": 1}, OTHERS: {OTHERS: 7}})
    assert matrix({}) is None


def test_more_classes_than_can_be_drawn_are_a_list() -> None:
    counts = {f"class {i}": {f"class {i}": 12} for i in range(40)}
    found = matrix(counts)
    assert found is not None
    assert (len(found.rows), found.is_drawn) == (40, False)


def test_the_fleet_is_summed_by_backbone_and_each_device_stands_with_what_it_mixes_up(store: Store) -> None:
    def has(device: str, counts: dict[str, dict[str, int]], backbone: str = "b") -> Model:
        if counts:
            store.confusions.keep(Confusion(device=device, model="m", said_ms=5, counts=counts))
        return Model(device=device, model="m", backbone=backbone)

    store.releases.add_bundle(KnownBundle(digest="f" * 64, backbone="b", name="digits"))
    models = [
        has("good", {"8": {"8": 30}, "3": {"3": 10}}),
        has("bad", {"8": {"8": 5, "3": 6}}),
        has("other", {"cat": {"cat": 1}}, "c"),
        has("silent", {}),
    ]
    store.confusions.keep(Confusion(device="gone", model="m", said_ms=5, counts={"8": {"3": 99}}))
    question = FleetQuestion(
        backbone="b", device="good", model="m", sample="s", answered_ms=1, said="3", confidence=0.9, devices=2,
        samples=2, asked_ms=1,
    )  # fmt: skip
    for label, state in (("8", "answered"), ("3", "answered"), ("8", "open")):
        kept = store.questions.add(question, [])
        store.questions.save(FleetQuestion(**{**_fields(kept), "label": label, "state": state}))
    found = confusion_view.of_fleet(store, models)
    digits, cats = found["confusions"]
    assert (digits["name"], digits["n_devices"], cats["name"]) == ("digits", 2, "m")
    assert [(row.label, row.n, row.right) for row in digits["matrix"].rows] == [("3", 10, 10), ("8", 41, 35)]
    assert [row["said"].device for row in digits["devices"]] == ["bad", "good"], "most wrong answers first"
    assert [(each.said.device, each.label, each.answer, each.n, each.of) for each in found["mixed"]] == [
        ("bad", "8", "3", 6, 11)
    ]
    assert (found["n_told"], found["n_untold"]) == (3, 1)
    assert [each.label for each in found["contradicted"]] == ["8"]
    assert found["contradicted"][0].said == "3"


def _fields(question: FleetQuestion) -> dict[str, object]:
    return {name: getattr(question, name) for name in FleetQuestion.__dataclass_fields__}


def test_what_a_device_contributed_is_forgotten_with_what_it_answered(tmp_path: Path, digits_bundle: Path) -> None:
    fleet = Fleet(tmp_path, digits_bundle, 2, ends("active"))
    assert fleet.store is not None
    for name in ("d000", "d001"):
        fleet.store.confusions.keep(Confusion(device=name, model="digits", said_ms=5, counts={"8": {"3": 9}}))
    x, y = samples(Bundle.open(digits_bundle).manifest.class_names, 0, 20)
    update = HeadUpdate(
        learner="statistics", backbone=fleet.backbone, lineage="lineage", version=20, n_samples=20, base_release=0,
        tensors=dict(HeadStatistics.of(x, y, 10).to_tensors()), model="digits",
    )  # fmt: skip
    fleet.core.learning.take("d000", update.encode(), fleet.now)
    fleet.core.forget("d000", fleet.now)
    assert [each.device for each in fleet.store.confusions.all()] == ["d001"]
    fleet.close()
