"""No class knows everything, and the face of the agent stays readable."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_METHODS, LONGEST_FACE = 25, 249


def methods() -> dict[str, int]:
    """How many functions each class of ours defines, properties among them."""
    found = {}
    for path in sorted([*(ROOT / "edge").rglob("*.py"), *(ROOT / "converter").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
                name = f"{path.relative_to(ROOT)}: {node.name}"
                found[name] = sum(isinstance(each, kinds) for each in node.body)
    return found


def test_no_class_has_more_than_25_methods() -> None:
    found = methods()
    assert len(found) > 200
    assert {name: count for name, count in found.items() if count > MOST_METHODS} == {}


def test_the_face_of_the_agent_is_short() -> None:
    face = ROOT / "edge" / "agent" / "model" / "on_device_model.py"
    assert len(face.read_text().splitlines()) <= LONGEST_FACE
