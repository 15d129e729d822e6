"""The house plan, checked on the syntax trees: which room knows which, and which file opens which door."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Room: the rooms that it may import besides itself. `edge` is the version.
ROOMS: dict[str, set[str]] = {
    "edge": set(),
    "edge.contract": {"edge"},
    "edge.inference": {"edge", "edge.contract"},
    "edge.learning": {"edge", "edge.contract"},
    "edge.merging": {"edge", "edge.contract", "edge.learning"},
    "edge.channel": {"edge", "edge.contract"},
    "edge.agent": {"edge", "edge.contract", "edge.inference", "edge.learning", "edge.channel"},
    "edge.coordinator": {"edge", "edge.contract", "edge.inference", "edge.learning", "edge.merging", "edge.channel"},
    "edge.simulator": {"edge", "edge.contract", "edge.channel", "edge.agent"},
    "edge.cli": {
        "edge",
        "edge.contract",
        "edge.inference",
        "edge.learning",
        "edge.merging",
        "edge.channel",
        "edge.agent",
        "edge.coordinator",
        "edge.simulator",
    },
    "converter": {"edge", "edge.contract", "edge.inference", "edge.learning"},
    "firmware_configs": set(),
}

SERVICES = ("edge/agent/service.py", "edge/coordinator/service.py")
SHELL = (
    *SERVICES,
    "edge/simulator/service.py",
    "edge/agent/http/server.py",
    "edge/channel/mqtt.py",
    "edge/channel/amqp.py",
    "edge/channel/apart.py",
    "edge/channel/judge.py",
    "edge/coordinator/door.py",
    "edge/coordinator/machine/broker.py",
    "edge/cli/*",
    "edge/inference/onnx_benchmark.py",
    "edge/inference/onnx_provider_trial.py",
    "converter/verify/measure.py",
    "converter/pipeline.py",
)

# Library: the files that may import it. What is not listed here may be imported nowhere.
DOORS: dict[str, tuple[str, ...]] = {
    "numpy": ("edge/*", "converter/*"),
    "torch": ("converter/*", "edge/inference/torchscript_*.py"),
    "onnx": ("converter/*",),
    "onnxscript": ("converter/export/*",),
    "onnxruntime": ("edge/inference/onnx_*.py", "converter/quantization/*", "converter/load/onnx_file.py"),
    "PIL": ("edge/inference/pictures.py",),
    "matplotlib": ("converter/report/plots.py", "edge/cli/plots.py"),
    "tensorboardX": ("edge/cli/tensorboard.py",),
    "fastparquet": ("edge/coordinator/export/parquet.py",),
    "pandas": ("edge/coordinator/export/parquet.py",),
    "cryptography": (
        "edge/contract/signature.py",
        "edge/contract/sealing.py",
        "edge/contract/certificates.py",
        "edge/contract/receipts.py",
        "edge/coordinator/signing/*",
    ),
    "tuf": ("edge/channel/updates.py", "edge/coordinator/signing/*"),
    "securesystemslib": ("edge/channel/updates.py", "edge/coordinator/signing/*"),
    "safetensors": (
        "edge/contract/*",
        "converter/*",
        "edge/coordinator/releases/intake.py",
        "edge/inference/onnx_benchmark.py",
        "edge/cli/bundle.py",
    ),
    "paho": ("edge/channel/mqtt.py",),
    "pika": ("edge/channel/amqp.py",),
    "sqlite3": ("edge/agent/line/outbox.py",),
    "backports": ("edge/channel/forms.py",),  # zstd
    "compression": ("edge/channel/forms.py",),
    "sqlalchemy": ("edge/coordinator/store/*", "edge/coordinator/migrations/*"),
    "alembic": ("edge/coordinator/migrations/*",),
    "fastapi": (
        "edge/coordinator/http/api.py",
        "edge/coordinator/http/*.py",
        "edge/coordinator/pages/actions.py",
        "edge/coordinator/pages/routes.py",
        "edge/coordinator/service.py",
    ),
    "prometheus_client": ("edge/coordinator/export/prometheus.py",),
    "jinja2": ("edge/coordinator/pages/render.py",),
    "markupsafe": ("edge/coordinator/pages/render.py",),
    "uvicorn": ("edge/coordinator/http/api.py", "edge/coordinator/service.py"),
    "starlette": ("edge/coordinator/http/api.py",),
    "pydantic": ("edge/coordinator/http/api.py", "edge/coordinator/http/*.py"),  # FastAPI's
    "httpx": ("edge/cli/fleet.py",),
    "click": ("edge/cli/*", "converter/cli.py", "converter/arguments.py"),
    "rich": ("edge/cli/*", "converter/cli.py", "converter/report/text.py", "converter/report/targets.py"),
    "threading": (*SHELL, "edge/coordinator/inbox.py", "edge/agent/model/turns.py"),
    "queue": (*SHELL, "edge/agent/sources/topics.py"),
    "signal": (*SHELL, "converter/stopping.py", "edge/contract/errors.py", "edge/contract/exits.py"),
    "time": SHELL,
    "asyncio": (*SERVICES, "edge/coordinator/pages/live.py"),
    "concurrent": SERVICES,
    "multiprocessing": (),
    "random": ("edge/channel/mqtt.py", "edge/channel/memory.py"),  # memory.py is given its generator, see below
    "pickle": (),
}

# (file, what it uses of a closed library): reasons in architecture.md and in the file.
# Default arguments, stopwatches that are handed in.
ALLOWED_USES = {
    (file, "time.perf_counter")
    for file in (
        "edge/agent/client.py",
        "edge/agent/core.py",
        "edge/agent/model/host.py",
        "edge/agent/model/rehearsal.py",
        "edge/inference/trainers.py",
    )
}

# The one thing that is set in the environment outside the shell, before anybody can import onnxruntime.
NO_TELEMETRY = "os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')"


def sources() -> list[Path]:
    return sorted(path for room in ("edge", "converter", "firmware_configs") for path in (ROOT / room).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sources()}


@cache  # not when this file is imported: each process that runs tests does that
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_bytes())


@cache
def nodes_of(module: str) -> list[ast.AST]:
    return list(ast.walk(tree_of(module)))


def dotted(node: ast.AST) -> str:
    """``a.b`` of the expression that ends in it: the last two names, "" for an expression that ends in no name."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
        return f"{node.value.id if isinstance(node.value, ast.Name) else node.value.attr}.{node.attr}"
    return ""


def room_of(module: str) -> str:
    """The longest room that the module lies in."""
    return max((room for room in ROOMS if module == room or module.startswith(room + ".")), key=len)


def is_ours(name: str) -> bool:
    return name.partition(".")[0] in ("edge", "converter", "firmware_configs")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def import_nodes(node: ast.AST, *, at_start: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports below a node; `at_start`: only those that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif at_start and (
            isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(child)
        ):
            continue
        else:
            yield from import_nodes(child, at_start=at_start)


@cache
def imported(module: str, *, at_start: bool = False) -> set[str]:
    """The modules that a module imports; ``from edge.contract import manifest`` is ``edge.contract.manifest``."""
    found = set()
    for node in import_nodes(tree_of(module), at_start=at_start):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
    return found


def file_of(module: str) -> str:
    return MODULES[module].relative_to(ROOT).as_posix()


def faults(check: Callable[[str], str]) -> str:
    """What a check says against modules, one line each; a check says nothing against a module that is right."""
    found = ((module, check(module)) for module in MODULES)
    return "\n".join(f"{file_of(module)} {fault}" for module, fault in found if fault)


def test_there_is_a_house() -> None:
    assert {room_of(module) for module in MODULES} == set(ROOMS)
    assert len(MODULES) > 60


def test_a_room_knows_only_the_rooms_below_it() -> None:
    def check(module: str) -> str:
        room = room_of(module)
        wrong = {name for name in imported(module) if is_ours(name) and room_of(name) not in {room} | ROOMS[room]}
        return f"imports {sorted(wrong)}" if wrong else ""

    assert faults(check) == ""


def test_libraries_are_opened_at_their_doors_only() -> None:
    def check(module: str) -> str:
        file = file_of(module)
        for name in imported(module):
            library = name.partition(".")[0]
            if is_ours(name) or (library in sys.stdlib_module_names and library not in DOORS):
                continue
            if library not in DOORS:
                return f"imports {library}, which has no door"
            used = uses(module, library)
            allowed = {use for of, use in ALLOWED_USES if of == file}
            if used & allowed:
                if not used <= allowed:
                    return f"uses {sorted(used - allowed)}"
            elif not any(fnmatch(file, pattern) for pattern in DOORS[library]):
                return f"imports {library}"
        return ""

    assert faults(check) == ""


def uses(module: str, library: str) -> set[str]:
    """What a module uses of a library, as ``library.name``."""
    return {
        ast.unparse(node)
        for node in nodes_of(module)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == library
    }


def test_clock_environment_and_exits_are_used_in_the_shell_only() -> None:
    def check(module: str) -> str:
        file = file_of(module)
        if any(fnmatch(file, pattern) for pattern in SHELL):
            return ""
        closed = {"os.getenv", "os._exit", "sys.argv", "datetime.now", "datetime.utcnow", "date.today"}
        if file not in ("edge/contract/exits.py", "converter/cli.py"):
            closed |= {"os.environ", "sys.exit", "sys.stdin", "sys.stdout"}
        if file == "converter/cli.py":  # it ends at once, whatever threads the user's code has started
            closed.remove("os._exit")
        if file == "edge/__init__.py":  # what it does stands in a test of its own
            closed.remove("os.environ")
        used = {dotted(node) for node in nodes_of(module) if isinstance(node, ast.Attribute)}
        return f"uses {sorted(used & closed)}" if used & closed else ""

    assert faults(check) == ""


def test_numpy_randomness_is_seeded_or_given() -> None:
    seeded = ("random.default_rng", "random.PCG64")

    def check(module: str) -> str:
        for node in nodes_of(module):
            of_numpy = isinstance(node, ast.Attribute) and dotted(node.value) == "np.random"
            if of_numpy and node.attr not in ("default_rng", "Generator", "PCG64"):
                return f"uses np.random.{node.attr}"
            if isinstance(node, ast.Call) and not node.args and dotted(node.func) in seeded:
                return "makes a generator without a seed"
        return ""

    assert faults(check) == ""


def test_the_broker_in_memory_is_given_its_randomness() -> None:
    assert uses("edge.channel.memory", "random") == {"random.Random"}
    calls = [node.func for node in nodes_of("edge.channel.memory") if isinstance(node, ast.Call)]
    assert "random.Random" not in {ast.unparse(func) for func in calls}


def test_nothing_imports_by_a_relative_name_or_a_star() -> None:
    def check(module: str) -> str:
        for node in import_nodes(tree_of(module), at_start=False):
            if isinstance(node, ast.ImportFrom) and (node.level or any(alias.name == "*" for alias in node.names)):
                return f"says {ast.unparse(node)}"
        return ""

    assert faults(check) == ""


def test_submodules_never_import_the_init_of_their_own_package() -> None:
    def check(module: str) -> str:
        package = module.rpartition(".")[0]
        is_init = file_of(module).endswith("__init__.py")
        return f"imports {package}" if not is_init and package in imported(module) else ""

    assert faults(check) == ""


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module: {name for name in imported(module, at_start=True) if name in MODULES} for module in MODULES}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as exc:
        pytest.fail(f"a circle of imports: {' -> '.join(exc.args[1])}")
    assert set(order) == set(MODULES)


# Rooms of the converter, lowest first: each imports only those in front of it.
CONVERTER_ROOMS = (
    "plan", "options", "program", "graph", "data", "load", "export", "verify", "checkpoint", "head", "quantization",
    "search", "pack", "report", "stages", "pipeline", "arguments", "stopping", "cli",
)  # fmt: skip


def test_rooms_of_the_converter_import_one_way() -> None:
    def place(name: str) -> int:
        return CONVERTER_ROOMS.index(name.split(".")[1])

    def check(module: str) -> str:
        names = [name for name in imported(module) if name.startswith("converter.")]
        above = [name for name in names if module.startswith("converter.") and place(name) > place(module)]
        return f"imports {sorted(above)}" if above else ""

    assert faults(check) == ""


def test_the_house_has_its_version_at_the_door_and_sends_nobody_usage_data() -> None:
    body = [ast.unparse(node) for node in tree_of("edge").body[1:]]
    assert [line.partition(" = ")[0] for line in body] == ["import os", "__version__", NO_TELEMETRY]
    assert "import edge" in [ast.unparse(node) for node in tree_of("converter").body]


def test_every_module_says_what_it_is_for() -> None:
    assert [file_of(module) for module in MODULES if not ast.get_docstring(tree_of(module))] == []


def named_in_the_codemap() -> set[str]:
    """What its first column names: in the folder of its part, or beside the name before it."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    found = set()
    for part in text.partition("\n## Codemap")[2].partition("\n## ")[0].split("\n### ")[1:]:
        title, *rows = part.splitlines()
        home = "" if "," in title else f"{title}/"
        for row in rows:
            folder = home
            for name in re.findall(r"`([\w/]+(?:\.py|/))`", row.split("|")[1] if row.startswith("| `") else ""):
                if "/" in name.rstrip("/"):
                    folder = f"{home}{name.rstrip('/').rpartition('/')[0]}/"
                found.add(f"{folder}{name.rstrip('/').rpartition('/')[2]}{'/' * name.endswith('/')}")
    return found


def test_the_codemap_names_every_module_where_it_is() -> None:
    named = named_in_the_codemap()
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "edge").rglob("*.py")}
    modules |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "converter").glob("*.py")}
    modules |= {f"{path.parent.relative_to(ROOT).as_posix()}/" for path in (ROOT / "converter").glob("*/*.py")}
    folders = tuple(name for name in named if name.endswith("/"))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    is_named = {name for name in modules if name in named or name.startswith(folders) or name.endswith("__init__.py")}
    assert sorted(modules - is_named) == []


def test_revisions_of_the_database_are_one_line_in_the_order_of_their_files() -> None:
    """Two that are written at once have one number: the later one takes the next, in its name and inside."""
    files = sorted((ROOT / "edge/coordinator/migrations/versions").glob("r*.py"))
    found = []
    for path in files:
        values = {
            node.targets[0].id: node.value.value
            for node in ast.parse(path.read_bytes()).body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
        }
        found.append((path.name[1:5], values["revision"], values["down_revision"]))
    numbers = [f"{i + 1:04}" for i in range(len(files))]
    assert found == list(zip(numbers, numbers, [None, *numbers], strict=False))


def test_only_the_boundary_to_foreign_code_catches_everything() -> None:
    """See `edge.contract.foreign`; what catches everything to clean up raises it again."""
    last_ones = ("converter/cli.py", "converter/load/inert.py")  # the roof; the loader of pickles, which goes on asking

    def check(module: str) -> str:
        if not file_of(module).startswith("converter/") or file_of(module) in last_ones:
            return ""
        for node in nodes_of(module):
            if isinstance(node, ast.ExceptHandler):
                caught = "" if node.type is None else ast.unparse(node.type)
                everything = node.type is None or "Exception" in caught.split("(")[-1].replace(")", "").split(", ")
                cleans_up = caught == "BaseException" and ast.unparse(node.body[-1]) == "raise"
                if (everything or "BaseException" in caught) and not cleans_up:
                    return f"catches everything in line {node.lineno}"
        return ""

    assert faults(check) == ""
