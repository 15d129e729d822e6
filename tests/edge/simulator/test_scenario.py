from dataclasses import replace
from pathlib import Path

import pytest

from edge.contract.errors import ConfigError
from edge.simulator.scenario import Scenario, read_scenario
from edge.simulator.service import struck


def test_a_scenario_without_anything_is_the_usual_one(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("")
    assert read_scenario(tmp_path / "s.toml") == Scenario()


def test_all_faults_of_a_scenario_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('devices = 0\nlasts = "soon"\nsample = {}\n[world]\ngain = [2, 1]\n[[faults]]\nkind = "fire"\n')
    with pytest.raises(ConfigError) as caught:
        read_scenario(path)
    said = str(caught.value)
    for part in ("devices", "lasts", "samples", "world.gain", "faults[0].kind", "faults[0].at"):
        assert part in said, said
    for text in (b"\xff", b"devices =", b"a = " + b"[" * 100_000):
        path.write_bytes(text)
        with pytest.raises(ConfigError, match=r"s\.toml"):
            read_scenario(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_scenario(tmp_path / "none.toml")


def test_a_fault_strikes_its_share_of_the_devices_and_the_same_ones_each_time(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(
        'devices = 40\n[[faults]]\nkind = "offline"\nat = "1 s"\nshare = 0.25\n'
        '[[faults]]\nkind = "kill"\nat = "1 s"\nshare = 0.01\n[[faults]]\nkind = "drift"\nat = "1 s"\nshare = 0.0\n'
    )
    scenario = read_scenario(tmp_path / "s.toml")
    assert len(struck(scenario, 0)) == 10
    assert struck(scenario, 0) == struck(scenario, 0) < set(range(40))
    assert len(struck(scenario, 1, 4)) == 1, "of processes one at least"
    assert struck(scenario, 2) == set()


def test_what_could_not_happen_is_refused_once_it_is_known_how_long_and_with_what(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('[samples]\nclasses = 4\n[[faults]]\nkind = "kill"\nat = "2 min"\n')
    scenario = read_scenario(path)
    with pytest.raises(ConfigError, match=r"faults\[0\]\.at: all is over after 1 min, this begins after 2 min"):
        scenario.check(10)
    for lasts in ("10 min", "0 s"):  # what --duration says, and until it is stopped
        replace(scenario, lasts=lasts).check(10)
    with pytest.raises(ConfigError, match=r"samples\.classes: the data have 3 classes, got 4"):
        replace(scenario, lasts="0 s").check(3)


def test_what_lasts_no_time_begins_before_it_ends(tmp_path: Path) -> None:
    kinds = {"offline": 2, "restart": 2, "kill": 2, "drift": 1, "wrong": 1}  # the last two stay
    for kind, n in kinds.items():
        (tmp_path / "s.toml").write_text(
            f'[[faults]]\nkind = "{kind}"\nat = "2 s"\n[[faults]]\nkind = "{kind}"\nat = "1 s"\nlasts = "1 s"\n'
        )
        moments = read_scenario(tmp_path / "s.toml").moments()
        assert moments == sorted(moments, key=lambda moment: moment[0])
        assert [begins for _, number, begins in moments if number == 0] == [True, False][:n], kind
        assert [begins for _, number, begins in moments if number == 1] == [True, False], kind
