"""``edge-agent init``: what it writes is what `run` reads; it replaces nothing, and keeps secrets apart."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edge.agent.config_file import read_options
from edge.cli import setup
from edge.cli.agent import agent, run
from edge.contract.errors import BundleError, ChannelError, ConfigError, NoBundleError


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("EDGE_BROKER", "EDGE_BROKER_PASSWORD", "EDGE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("edge.cli.configured.SYSTEM_FILE", tmp_path / "etc" / "agent.toml")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """No bundle, but a file: of a model with a name `init` leaves it to the doctor to look inside."""
    path = tmp_path / "m.edge"
    path.write_bytes(b"PK")
    return path


def init(*arguments: object, given: str | None = None) -> Result:
    return CliRunner().invoke(agent, ["init", *map(str, arguments)], input=given)


def test_by_flags_it_asks_nothing_and_writes_what_run_reads(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "agent.toml"
    done = init(f"east={bundle}", "--config", file, "--device", "pi-7", "--fleet", "lab", "--data-cap", "20MB/day",
                "--state-dir", tmp_path / "s", "--yes")  # fmt: skip
    assert done.exit_code == 0, done.exception
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["agent.toml"]
    found = run.make_context("run", ["--config", str(file)])
    assert found.default_map is not None
    assert found.default_map["bundles"] == (f"east={bundle}",)
    assert {found.params[key] for key in ("device", "fleet", "data_cap")} == {"pi-7", "lab", "20MB/day"}
    assert found.params["state_dir"] == tmp_path / "s"
    before = file.read_bytes()
    again = init(f"a={bundle}", "--config", file, "--yes")
    assert isinstance(again.exception, ConfigError)
    assert file.read_bytes() == before
    assert init(f"a={bundle}", "--config", file, "--yes", "--force").exit_code == 0
    assert read_options(file)["bundles"] == (f"a={bundle}",)


@pytest.mark.broker
def test_it_asks_tries_the_broker_and_keeps_the_password_apart(
    bundle: Path, tmp_path: Path, mosquitto: Callable[..., int]
) -> None:
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "ann", "s3cret:@/"], check=True, capture_output=True)
    port = mosquitto("allow_anonymous false", f"password_file {passwords}")
    file = tmp_path / "agent.toml"
    answers = [f"m={bundle}", "", f"mqtt://ann@127.0.0.1:{port}", "s3cret:@/", "lab", str(tmp_path / "s"), "pi-7"]
    done = init("--config", file, given="\n".join(answers) + "\n")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "takes the login" in done.output
    assert "s3cret" not in done.output + file.read_text()
    secret = tmp_path / "broker-password"
    assert (secret.read_text(), secret.stat().st_mode & 0o777) == ("s3cret:@/", 0o600)
    assert read_options(file) == {
        "bundles": (f"m={bundle}",), "state_dir": str(tmp_path / "s"), "device": "pi-7", "fleet": "lab",
        "broker": f"mqtt://ann@127.0.0.1:{port}", "broker_password_file": str(secret),
    }  # fmt: skip
    other = tmp_path / "other" / "agent.toml"
    wrong = init(f"m={bundle}", "--config", other, "--broker", f"mqtt://ann:no@127.0.0.1:{port}", "--yes")
    assert isinstance(wrong.exception, ChannelError)
    assert not other.parent.exists()


def test_what_is_wrong_is_said_before_anything_is_written(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "agent.toml"
    (tmp_path / "junk.json").write_text("{}")
    for arguments, kind in [
        ((), ConfigError),
        ((tmp_path / "none.edge",), NoBundleError),
        ((bundle,), BundleError),
        ((f"m={bundle}", "--device", "Pi 7"), ConfigError),
        ((f"m={bundle}", "--fleet", "all"), ConfigError),
        ((f"m={bundle}", "--broker", "broker:1883"), ConfigError),
        ((f"m={bundle}", "--data-cap", "much"), ConfigError),
        ((f"m={bundle}", "--trust", tmp_path / "none.json"), ConfigError),
        ((f"m={bundle}", "--trust", tmp_path / "junk.json"), ConfigError),
    ]:
        found = init(*arguments, "--config", file, "--yes")
        assert type(found.exception) is kind, (arguments, found.exception)
    assert not file.parent.exists()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"mqtt://ann:geheim@127.0.0.1:{taken.getsockname()[1]}"
        done = init(f"m={bundle}", "--config", file, "--broker", address, "--no-check", "--yes")
    assert done.exit_code == 0, done.exception
    assert "geheim" not in file.read_text()
    assert read_options(file)["broker"] == address.replace(":geheim", "")
    assert (file.parent / "broker-password").read_text() == "geheim"


def test_a_broker_that_cannot_be_used_is_written_only_by_somebody_s_word(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        answers = ["", str(tmp_path / "s"), ""]
        for word in ("n", "y"):
            done = init(
                f"m={bundle}", "--config", file, "--broker", f"mqtt://127.0.0.1:{taken.getsockname()[1]}",
                given="\n".join([*answers, word]) + "\n",
            )  # fmt: skip
            assert "is the broker running?" in done.output
            assert file.exists() == (word == "y")
    assert read_options(file).keys() == {"bundles", "state_dir", "broker"}
    assert init(f"m={bundle}", "--config", tmp_path / "b.toml", given="").exit_code == 1  # nobody answers


def test_two_at_once_do_not_replace_each_other(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    setup._write(file, "first", force=False)
    with pytest.raises(ConfigError, match="stays as it is"):
        setup._write(file, "second", force=False)
    assert file.read_text() == "first"
    setup._write(file, "third", force=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("agent.toml", "third")]
    with pytest.raises(ConfigError, match="cannot be written"):
        setup._write(Path("/proc/agent.toml"), "x", force=False)
