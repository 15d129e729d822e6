"""``edge-fleet token`` and ``audit``, and ``edge-coordinator token``, against a coordinator's real HTTP application."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edge.cli import coordinator as coordinator_cli
from edge.cli import fleet as cli
from edge.contract.errors import ConfigError, RolloutError
from edge.coordinator.core import CoordinatorCore
from tests.edge.cli.test_models import ask, born


def test_tokens_are_made_listed_and_revoked_and_the_log_says_by_whom(
    core: CoordinatorCore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    born(core, "gate", {"digits": "e" * 64})
    assert "may do everything" in ask("token", "list")
    ask("tag", "gate", "site=north", "--reason", "\x1b[2Jnew door")
    # The coordinator's database, while it runs.
    (tmp_path / "coordinator.sqlite").symlink_to(tmp_path / "db.sqlite")
    words = ["token", "kim", "--data-dir", str(tmp_path), "--json"]
    made = json.loads(CliRunner().invoke(coordinator_cli.coordinator, words, catch_exceptions=False).output)
    with pytest.raises(ConfigError, match="a bearer token is needed"):
        ask("devices")
    monkeypatch.setenv("EDGE_TOKEN", made["token"])
    done = CliRunner().invoke(cli.fleet, ["token", "new", "lee", "--days", "9"], catch_exceptions=False)
    lee = done.stdout.strip()
    assert lee.startswith("edge_")
    assert "shown this once" in done.stderr
    with pytest.raises(ConfigError, match="lee is viewer; this needs the role operator"):
        ask("--token", lee, "merge")
    assert "gate" in ask("--token", lee, "devices")
    assert ask("token", "revoke", "2", "--reason", "left") == "token 2 of lee holds no more\n"
    with pytest.raises(ConfigError, match="a right one"):
        ask("--token", lee, "devices")
    with pytest.raises(RolloutError, match="there is no token 9"):
        ask("token", "revoke", "9")
    listed = ask("token", "list")
    assert "kim                  admin     for ever" in listed
    assert "revoked" in listed
    told = ask("audit")
    assert "\x1b" not in told
    lines = told.splitlines()
    assert "tags gate: done, because" in lines[0]
    assert "new door" in lines[0]
    assert "made on the coordinator's machine" in lines[1]
    assert "lee          POST /api/merge: refused: lee is viewer" in lines[3]
    assert lee not in told
    rows = [json.loads(line) for line in ask("audit", "--about", "2", "--json").splitlines()]
    assert [(row["who"], row["reason"]) for row in rows] == [("kim", "left")]
    for words in (["pause-all", "--reason", "storm"], ["resume-all"]):
        ask(*words)
    paused, resumed = ask("audit", "--limit", "2").splitlines()
    assert "POST /api/v1/paused (paused true): done, because storm" in paused
    assert "POST /api/v1/paused (paused false): done" in resumed
    told = ask("audit")
    lines = told.splitlines()
    assert ask("audit", "--limit", "1") == lines[-1] + "\n"
    assert ask("audit", "--who", "lee", "--since", "1h") == lines[3] + "\n"


def test_a_token_of_a_folder_without_a_database_is_said_to_be_of_no_coordinator_that_runs(tmp_path: Path) -> None:
    def make(name: str) -> Result:
        words = ["token", name, "--data-dir", str(tmp_path / "wrong")]
        return CliRunner().invoke(coordinator_cli.coordinator, words, catch_exceptions=False)

    first = make("kim")
    assert "of no coordinator that runs" in first.stderr
    assert first.stdout.startswith("edge_")
    assert "of no coordinator" not in make("lee").stderr
