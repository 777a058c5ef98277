"""Who may import whom; and what `import cnnjax` may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "errors": set(),
    "settings": set(),
    "atomic": {"errors"},
    "paths": set(),
    "processes": {"errors"},
    "environment": {"ops", "settings"},
    "compilation_cache": {"environment", "atomic", "paths"},
    "geometry": {"errors"},
    "explicit_axes": set(),
    "config": {"errors"},
    "ops": {"geometry", "errors", "explicit_axes"},
    "tracing": {"ops", "geometry", "errors"},
    "models": {"tracing", "ops", "geometry", "errors", "config"},
    "data": {"config", "errors", "explicit_axes", "atomic", "paths"},
    "train": {"models", "ops", "data", "config", "errors", "atomic", "paths", "settings", "environment", "processes"},
    "visualize": {"tracing", "ops", "models", "geometry", "errors"},
    "figures": {"geometry", "errors", "atomic"},
    "report": {"geometry", "errors", "atomic"},
    "sweep": {"train", "models", "ops", "data", "config", "errors", "atomic", "settings", "environment"},
    "cli": {"config", "errors", "paths", "settings", "compilation_cache", "environment", "processes"},
}
HEAVY = ("matplotlib", "skimage", "sklearn", "tensorflow_datasets", "grain", "orbax", "rich", "tyro", "PIL", "jinja2")


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "cnnjax").parts[0].removesuffix(".py")


def imported(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


MODULES = sorted(
    path for path in (ROOT / "cnnjax").rglob("*.py") if path.parent.name != "cnnjax" or path.stem != "__init__"
)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_those_it_may(path):
    room = room_of(path)
    rooms = {name.split(".")[1] for name in imported(ast.parse(path.read_text())) if name.startswith("cnnjax.")}
    # `from cnnjax import x` lists x itself; a name that is no room is a package attribute
    rooms = {name for name in rooms if name in MAY_IMPORT}
    assert rooms - {room} <= MAY_IMPORT[room]


def test_every_room_has_a_rule():
    assert {room_of(path) for path in MODULES} == set(MAY_IMPORT)


def test_no_room_imports_the_experiments():
    for path in MODULES:
        assert not any(name.split(".")[0] == "experiments" for name in imported(ast.parse(path.read_text()))), path


@pytest.mark.parametrize(
    "module", ["cnnjax", "cnnjax.train.run", "cnnjax.data", "cnnjax.cli", "cnnjax.visualize.evolution"]
)
def test_heavy_libraries_are_imported_where_they_are_used(module):
    code = f"import sys, flax.linen, optax; old = set(sys.modules); import {module}; print(*(set(sys.modules) - old))"
    added = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {name.split(".")[0] for name in added.split()} & set(HEAVY)
