"""Options of the agent from a file: what goes before what, and what is no option."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from edge.agent.config_file import AgentFile, read_options, write_options
from edge.channel.url import BrokerUrl
from edge.cli.agent import agent, run
from edge.cli.configured import bundles_of, key_of, password_of
from edge.contract.errors import ConfigError


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("EDGE_BROKER", "EDGE_BROKER_PASSWORD", "EDGE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("edge.cli.configured.SYSTEM_FILE", tmp_path / "etc" / "agent.toml")


def context(*arguments: str) -> click.Context:
    return run.make_context("run", list(arguments))


def test_flags_go_before_the_environment_and_that_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(
        'bundles = ["a.edge", "east=b.edge"]\nbroker = "mqtt://of-file"\nfleet = "file"\nseed = 7\n'
        'mixture = false\nsocket = "s.sock"\nstate_dir = "/var/lib/e"\n'
    )
    found = context("--config", str(file), "--fleet", "flag")
    assert found.params["fleet"] == "flag"
    assert (found.params["seed"], found.params["mixture"], found.params["broker"]) == (7, False, "mqtt://of-file")
    assert found.params["socket_path"] == tmp_path / "s.sock"
    assert found.params["state_dir"] == Path("/var/lib/e")
    assert bundles_of(found, found.params["bundles"]) == (f"{tmp_path}/a.edge", f"east={tmp_path}/b.edge")
    assert bundles_of(found, ("c.edge",)) == ("c.edge",)
    monkeypatch.setenv("EDGE_BROKER", "mqtt://of-environment")
    assert context("--config", str(file)).params["broker"] == "mqtt://of-environment"
    assert context("--config", str(file), "--broker", "mqtt://f").params["broker"] == "mqtt://f"


def test_the_file_of_the_system_is_found_before_that_of_the_user(tmp_path: Path) -> None:
    bare = context("m.edge").params
    assert (bare["config"], bare["fleet"]) == (None, "default")
    for folder in ("xdg/edgeloop", "etc"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "agent.toml").write_text(f'fleet = "{folder[:3]}"')
        assert context("m.edge").params["fleet"] == folder[:3]
    with pytest.raises(click.UsageError, match="name it here, or as `bundles`"):
        bundles_of(context(), ())


def test_commands_find_the_agent_that_runs_by_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('bundles = ["m.edge"]\nstate_dir = "s"\nsocket = "x.sock"\nfleet = "lab"\n')
    for name, arguments in [("status", []), ("predict", ["a.npy"]), ("rollback", []), ("export", ["h"])]:
        command = agent.get_command(click.Context(agent), name)
        assert command is not None
        found = command.make_context(name, [*arguments, "--config", str(file)]).params
        assert (found["state_dir"], found["socket_path"]) == (tmp_path / "s", tmp_path / "x.sock")
        found = command.make_context(name, [*arguments, "--config", str(file), "--state-dir", "/t"]).params
        assert found["state_dir"] == Path("/t")
        assert "config" not in found


def test_a_file_that_others_keep_to_themselves_is_not_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc" / "agent.toml").mkdir(parents=True)  # for root every file can be read: a folder is none
    assert context("m.edge").params["fleet"] == "default"
    (tmp_path / "etc" / "agent.toml").rmdir()
    (tmp_path / "etc" / "agent.toml").write_text('fleet = "etc"')
    monkeypatch.setattr("os.access", lambda *_: False)
    assert context("m.edge").params["fleet"] == "default"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('flet = "x"', r"flet is not known; did you mean 'fleet'\?"),
        ('broker_password = "x"', "broker_password is not known; did you mean 'broker_password_file'"),
        ('bundels = ["x"]\nseed = "1"', "bundels is not known; did you mean 'bundles'.*seed must be an integer"),
        ("bundles = 'x'", "bundles must be a list"),
        ("learner = 'sdg'", "agent.toml: learner: 'sdg' is not one of"),
        ("reject_unknown = 0.9", "agent.toml: reject_unknown: 0.9 is not in the range"),
        ("seed = -1", "agent.toml: seed: -1 is not in the range"),
        ("seed = ", "expected TOML"),
        ("[seed]", "seed must be an integer"),
        ("fleet = '\udcff'", "expected text in UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_option_is_told_with_what_was_meant(text: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    if text is not None:
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=said):
        context("m.edge", "--config", str(file))


def test_every_option_may_stand_in_the_file_but_the_password() -> None:
    options = {key_of(each) for each in run.params}
    assert options - {"config", "broker_password", "stdin"} == set(AgentFile.__dataclass_fields__)


def test_all_paths_are_meant_from_the_folder_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "of a site" / "agent.toml"
    (file.parent / "tls").mkdir(parents=True)
    (file.parent / "tls" / "ca.pem").touch()
    (tmp_path / "key").touch()
    file.write_text(
        """bundles = ["a=m.edge"]
        broker = "mqtts://ann@h:1,g?ca=tls/ca.pem&cert=../key"
        source = ["box?after=delete", "folder:box", "/srv/x", "mqtts://h/a/+/#?fields=b,c&password_file=p", "-",
                  "camera:/dev/v"]
        answers = ["answers.jsonl", "-", "mqtt://h/{model}"]
        trust = "root.json"
        """
    )
    found, at = read_options(file), str(file.parent)
    quoted = at.replace(" ", "%20")
    assert found["broker"] == f"mqtts://ann@h:1,g?ca={quoted}/tls/ca.pem&cert={quoted}/../key"
    assert BrokerUrl.parse(found["broker"]).ca == file.parent / "tls" / "ca.pem"
    assert found["source"] == (
        f"{at}/box?after=delete", f"folder:{at}/box", "/srv/x", f"mqtts://h/a/+/#?fields=b,c&password_file={quoted}/p",
        "-", "camera:/dev/v",
    )  # fmt: skip
    assert found["answers"] == (f"{at}/answers.jsonl", "-", "mqtt://h/{model}")
    assert (found["bundles"], found["trust"]) == ((f"a={at}/m.edge",), f"{at}/root.json")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "bundles": ("/a b.edge", "n=/c\x7f\t\"\\'ü😀.edge"), "seed": 3, "mixture": False, "outbox": 0.5, "device": "d",
    }  # fmt: skip
    (tmp_path / "f.toml").write_text(write_options(given))
    assert read_options(tmp_path / "f.toml") == given


def test_a_password_comes_from_its_file_unless_it_is_given(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("from file\n")
    assert password_of(None, secret) == "from file"
    assert password_of("", secret) == ""
    assert password_of(None, None) is None
    with pytest.raises(ConfigError, match="cannot be read"):
        password_of(None, tmp_path / "none")


def test_an_agent_runs_by_its_file(tmp_path: Path, digits_bundle: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(write_options({"bundles": [str(digits_bundle)], "state_dir": "state", "device": "by-file"}))
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-m", "edge.cli.agent", "run", "--config", str(file), "--stdin"],
        input='{"op":"status"}\n', capture_output=True, text=True, timeout=120, env=dict(os.environ), check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["device"] == "by-file"
    assert f"options of {file}" in ran.stderr
    assert (tmp_path / "state" / "device.json").exists()


@pytest.mark.parametrize("way", [["--stdin"], ["--source", "-", "--answers", "-"]])
def test_an_agent_that_waits_for_a_line_ends_when_it_is_told_to(
    tmp_path: Path, digits_bundle: Path, way: list[str]
) -> None:
    command = [sys.executable, "-m", "edge.cli.agent", "run", str(digits_bundle), "--state-dir", "state", *way]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        said = ""
        while "ready" not in said:
            said = process.stderr.readline()
            assert said, "it ended"
        time.sleep(0.3)  # until it reads
        process.terminate()
        assert process.wait(20) == 0
        assert "Fatal" not in process.stderr.read()


def test_a_delta_alone_is_no_noise(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected --noise EPSILON with it"):
        CliRunner().invoke(
            agent, ["run", "m.edge", "--state-dir", str(tmp_path), "--noise-delta", "0.001"], catch_exceptions=False
        )
