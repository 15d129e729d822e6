"""The tutorials, as a reader would follow them: every block of code on their pages is run, in order, in one folder.

A block ``python title="FILE"`` is written into that file. A block ``sh`` is run and has to end with 0; with
``title="terminal: NAME"`` it runs on in a terminal of its own, which is waited for until it says the text of
``until``; with ``within="SECONDS"`` it is repeated until it ends with 0, where the page says that something takes a
moment. Blocks of ``console`` say how to install and what came, and are not run. Ports are others than on the page,
because something may listen there.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.ports import free_port

PAGES = Path(__file__).parents[2] / "docs" / "tutorials"
BLOCK = re.compile(r'^```(?P<language>\w+)(?P<options>(?: \w+="[^"]*")*)\n(?P<code>.*?)^```$', re.MULTILINE | re.DOTALL)
PORTS = ("1883", "8470", "8080", "8883")
PATIENCE_S = 60.0


@dataclass
class Reader:
    """Somebody with a page, a folder and terminals."""

    folder: Path
    ports: dict[str, str]
    terminals: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def follow(self, page: Path) -> None:
        """Do everything that a page says, then close its terminals."""
        try:
            for block in BLOCK.finditer(page.read_text()):
                options = dict(re.findall(r'(\w+)="([^"]*)"', block["options"]))
                code, title = self._here(block["code"]), options.get("title", "")
                if block["language"] == "python":
                    (self.folder / title).write_text(code)
                elif block["language"] == "sh" and title.startswith("terminal: "):
                    self._open(title.removeprefix("terminal: "), code, self._here(options["until"]))
                elif block["language"] == "sh":
                    self._run(code, float(options.get("within", "0")))
        finally:
            for terminal in self.terminals.values():
                os.killpg(terminal.pid, signal.SIGINT)
            for terminal in self.terminals.values():
                terminal.wait(PATIENCE_S)
            self.terminals.clear()

    def _here(self, text: str) -> str:
        for port, free in self.ports.items():
            text = text.replace(port, free)
        return text

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        address = f"http://127.0.0.1:{self.ports['8470']}"
        return os.environ | {"PATH": path, "EDGE_COORDINATOR": address, "PYTHONUNBUFFERED": "1", "COLUMNS": "100"}

    def _open(self, name: str, code: str, until: str) -> None:
        if name in self.terminals:  # "press Ctrl-C there", says the page
            os.killpg(self.terminals[name].pid, signal.SIGINT)
            self.terminals[name].wait(PATIENCE_S)
        log = self.folder / f"terminal-{name}.log"
        with log.open("wb") as out:
            terminal = subprocess.Popen(
                ["bash", "-ec", code],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.terminals[name] = terminal
        end = time.monotonic() + PATIENCE_S
        while until not in log.read_text():
            assert terminal.poll() is None, f"{code}\nended with {terminal.returncode}:\n{log.read_text()}"
            assert time.monotonic() < end, f"{code}\ndid not say {until!r}:\n{log.read_text()}"
            time.sleep(0.05)

    def _run(self, code: str, within_s: float) -> None:
        end = time.monotonic() + within_s
        while True:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", code],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=300,
                text=True,
                check=False,
            )
            if done.returncode == 0:
                return
            assert time.monotonic() < end, f"{code}\nended with {done.returncode}:\n{done.stdout}"
            time.sleep(0.5)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """One for all pages: later ones go on with the model of the first."""
    ports = {port: str(free_port()) for port in PORTS}
    return Reader(tmp_path_factory.mktemp("reader"), ports)


@pytest.mark.broker
@pytest.mark.parametrize("page", ["three-devices", "corrections", "rollout", "secured-fleet"])
def test_what_the_page_says_works(reader: Reader, page: str) -> None:
    reader.follow(PAGES / f"{page}.md")
