"""``edge-coordinator export``: what is in the database is in the files, while a coordinator may run."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edge.cli.coordinator import coordinator
from edge.contract.errors import ConfigError
from edge.coordinator.export import files, parquet
from edge.coordinator.machine.backup import DATABASE
from edge.coordinator.records import Device, KnownDevice, LoggedEvent, TelemetryEntry
from tests.support.fleet import store_in


def run(*line: str) -> Any:
    done = CliRunner().invoke(coordinator, ["export", *line, "--json"], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return json.loads(done.output)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    store = store_in(tmp_path / DATABASE)
    for name in ("a", "b"):
        store.devices.keep(KnownDevice(device=Device(id=name)), None)
    store.telemetry.add(
        [
            TelemetryEntry(
                device=name, boot=1, seq=i, received_ms=1_800_000_000_000 + 1000 * i,
                values={"model": "digits", "acc": 0.5 + i / 4000, "experts": {"own": [1.0, 0.9, i]}, "note": "x"},
            )
            for name in ("a", "b") for i in range(1, 1201)
        ]
    )  # fmt: skip
    store.events.add(
        LoggedEvent(device="a", name="warning", detail='=HYPERLINK("http://evil")', at_ms=1_800_000_000_000)
    )
    yield tmp_path
    store.close()


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_each_number_once_and_no_formulas(folder: Path) -> None:
    out = folder / "out"
    found = run("csv", str(out), "--data-dir", str(folder))
    assert (found["telemetry.csv"], found["events.csv"]) == (2400, 1)
    rows = read(out / "telemetry.csv")
    assert rows[0] == {
        "device": "a", "model": "digits", "time_utc": "2027-01-15 08:00:01", "ts_ms": "1800000001000", "key": "acc",
        "value": "0.50025",
    }  # fmt: skip
    assert {row["key"] for row in rows} == {"acc"}
    (event,) = read(out / "events.csv")
    assert event["detail"].startswith("'=")
    assert run("csv", str(out), "--data-dir", str(folder), "--device", "b")["telemetry.csv"] == 1200
    assert (
        run("csv", str(out), "--data-dir", str(folder), "--since", "1 h")["telemetry.csv"] == 2400
    )  # they are of later


def test_parquet_has_what_csv_has_with_types(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fastparquet = pytest.importorskip("fastparquet")
    monkeypatch.setattr(parquet, "_AT_ONCE", 1000)  # so that telemetry is three groups of lines

    def frame(name: str) -> Any:
        with (out / name).open("rb") as file:
            return fastparquet.ParquetFile(file).to_pandas()

    out = folder / "out"
    found = run("parquet", str(out), "--data-dir", str(folder))
    assert (found["telemetry.parquet"], found["events.parquet"]) == (2400, 1)
    run("csv", str(out), "--data-dir", str(folder))
    for kind in ("telemetry", "events"):
        told = frame(f"{kind}.parquet")
        rows = read(out / f"{kind}.csv")
        assert list(told.columns) == list(rows[0])
        assert told["time_utc"].dt.strftime("%Y-%m-%d %H:%M:%S").tolist() == [row["time_utc"] for row in rows]
        assert told["ts_ms"].tolist() == [int(row["ts_ms"]) for row in rows]
        assert told["device"].tolist() == [row["device"] for row in rows]
    assert frame("telemetry.parquet")["value"].tolist() == [float(row["value"]) for row in read(out / "telemetry.csv")]
    assert frame("events.parquet")["detail"].tolist() == ['=HYPERLINK("http://evil")'], "no spreadsheet reads that"
    assert run("parquet", str(out), "--data-dir", str(folder), "--device", "b")["events.parquet"] == 0
    assert len(frame("telemetry.parquet")) == 1200, "the file of before is replaced"
    assert list(frame("events.parquet").columns) == ["device", "model", "time_utc", "ts_ms", "event", "detail"]
    assert sorted(each.name for each in out.iterdir()) == [
        "events.csv", "events.parquet", "telemetry.csv", "telemetry.parquet",
    ]  # fmt: skip


def test_parquet_that_cannot_be_written_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "fastparquet", None)
        with pytest.raises(ConfigError, match=r"pip install 'edgeloop\[parquet\]'"):
            run("parquet", str(folder / "none"), "--data-dir", str(folder))
    assert not (folder / "none").exists()
    pytest.importorskip("fastparquet")
    (folder / "file").write_text("no folder")
    with pytest.raises(ConfigError, match="file cannot be written"):
        run("parquet", str(folder / "file"), "--data-dir", str(folder))


def test_a_file_of_before_stays_where_the_new_one_cannot_be_written_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, path: Path) -> int:
        path.write_text("half of it")
        raise OSError(28, "No space left on device")

    store = store_in(folder / DATABASE)
    assert files.write_csv(store, folder / "out")["events.csv"] == 1
    before = (folder / "out" / "events.csv").read_bytes()
    monkeypatch.setattr(files, "_as_csv", full)
    with pytest.raises(ConfigError, match="out cannot be written: No space left on device"):
        files.write_csv(store, folder / "out")
    store.close()
    assert (folder / "out" / "events.csv").read_bytes() == before
    assert sorted(each.name for each in (folder / "out").iterdir()) == ["events.csv", "telemetry.csv"]


def test_tensorboard_has_a_run_for_each_device(folder: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    out = folder / "runs"
    found = run("tensorboard", str(out), "--data-dir", str(folder), "--device", "a")
    assert (found["runs"], found["messages"]) == (1, 1200)
    (file,) = (out / "a" / "digits").glob("events*")
    values: dict[str, list[float]] = {}
    data, at = file.read_bytes(), 0
    while at < len(data):  # length, its checksum, the record, its checksum
        length = int.from_bytes(data[at : at + 8], "little")
        for each in Event.FromString(data[at + 12 : at + 12 + length]).summary.value:
            values.setdefault(each.tag, []).append(each.simple_value)
        at += length + 16
    assert sorted(values) == ["acc", "right/own", "share/own"]
    assert len(values["acc"]) == 1200
    assert values["acc"][-1] == pytest.approx(0.8)


def test_what_cannot_be_exported_is_told(folder: Path, tmp_path: Path) -> None:
    for line, why in (
        (["csv", "x", "--data-dir", str(folder / "none")], "is not there"),
        (["csv", "x", "--data-dir", str(folder), "--device", "zz"], "none of that name"),
        (["csv", "x", "--data-dir", str(folder), "--since", "soon"], "--since"),
        (["csv", str(folder / DATABASE), "--data-dir", str(folder)], "cannot be written"),
    ):
        with pytest.raises(ConfigError, match=why):
            run(*line)
