"""Follow a tutorial: every block of code on its page is run, in order, in one folder.

    python examples/03_tutorials/follow.py three-devices [corrections rollout secured-fleet] [--folder FOLDER]

Later pages go on with the model of the first. A block ``python title="FILE"`` is written into that file. A block ``sh``
is run and has to end with 0; with ``title="terminal: NAME"`` it runs on in a terminal of its own, which is waited for
until it says the text of ``until``; with ``within="SECONDS"`` it is repeated until it ends with 0, where the page says
that something takes a moment. Blocks of ``console`` say how to install and what came, and are not run. Other ports than
those of the page are taken, because something may listen there.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PAGES = Path(__file__).parents[2] / "docs" / "tutorials"
PORTS = ("1883", "8470", "8080", "8883")
BLOCK = re.compile(r'^```(?P<language>\w+)(?P<options>(?: \w+="[^"]*")*)\n(?P<code>.*?)^```$', re.MULTILINE | re.DOTALL)
PATIENCE_S = 60.0


class NotAsSaidError(Exception):
    """What a page says does not come."""


@dataclass
class Reader:
    """Somebody with a page, a folder and terminals.

    Attributes:
        folder: That everything is done in.
        ports: Those of the page, and which are used instead.
        say: Is given what was typed and what came.
        terminals: That are open.
    """

    folder: Path
    ports: dict[str, str]
    say: Callable[[str], object] = lambda _: None
    terminals: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def follow(self, page: Path) -> None:
        """Do everything that a page says, then close its terminals."""
        try:
            for block in BLOCK.finditer(page.read_text()):
                options = dict(re.findall(r'(\w+)="([^"]*)"', block["options"]))
                code, title = self._here(block["code"]), options.get("title", "")
                if block["language"] == "python":
                    (self.folder / title).write_text(code)
                    self.say(f"wrote {title}")
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
            if terminal.poll() is not None:
                raise NotAsSaidError(f"{code}\nended with {terminal.returncode}:\n{log.read_text()}")
            if time.monotonic() > end:
                raise NotAsSaidError(f"{code}\ndid not say {until!r}:\n{log.read_text()}")
            time.sleep(0.05)
        self.say(f"[{name}] {code}{log.read_text()}")

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
                self.say(f"{code}{done.stdout}")
                return
            if time.monotonic() > end:
                raise NotAsSaidError(f"{code}\nended with {done.returncode}:\n{done.stdout}")
            time.sleep(0.5)


def free_ports() -> dict[str, str]:
    """By port of the pages one that nobody listens on."""
    found = {}
    for port in PORTS:
        with socket.create_server(("127.0.0.1", 0)) as server:
            found[port] = str(server.getsockname()[1])
    return found


def main() -> int:
    """Follow pages; 1 where something does not come as it is said."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", choices=sorted(path.stem for path in PAGES.glob("*.md")))
    parser.add_argument("--folder", type=Path, help="made; a new one by default")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="edgeloop-"))
    folder.mkdir(parents=True, exist_ok=True)
    reader = Reader(folder, free_ports(), lambda text: print(text, flush=True))
    try:
        for page in options.pages:
            reader.follow(PAGES / f"{page}.md")
    except NotAsSaidError as exc:
        print(f"{page}: {exc}", file=sys.stderr)
        return 1
    print(f"all as the pages say; what was made is in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
