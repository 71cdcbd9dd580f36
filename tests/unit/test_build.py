# SPDX-License-Identifier: GPL-2.0-only
"""The lists of the build agree with the tree, and the tree keeps its own rules."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ntools
from ntools.cli import commands as tools

try:
    import tomllib
except ImportError:  # before Python 3.11
    from pip._vendor import tomli as tomllib

TOP = Path(__file__).resolve().parents[2]
PACKAGE = TOP / "src" / "ntools"
PYPROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())
SCRIPTS = PYPROJECT["project"]["scripts"]
MODULES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}

# What each room may import; errors.py and the package itself are open to all.
MAY_IMPORT = {
    "tools": {"cli", "engine", "output", "host", "_loader", "model"},
    "cli": {"engine", "output", "host", "_loader", "model"},
    "engine": {"output", "host", "_loader", "model"},
    # A recording is shown on machines without BPF.
    "output": {"model"},
    "host": {"model"},
    "_loader": {"model"},
    "model": set(),
    "errors": set(),
}


def room_of(path: Path) -> str:
    """The first directory below the package, or the name of a module beside them."""
    return path.relative_to(PACKAGE).parts[0].replace(".py", "")


def imported_rooms(path: Path, tree: ast.Module) -> set[str]:
    """Rooms of ours a module imports, inside functions and under TYPE_CHECKING, too."""
    package = ["ntools", *path.relative_to(PACKAGE).parts[:-1]]
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            names += [f"{start}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("ntools.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    room = room_of(path)
    if room == "__init__":
        assert imported_rooms(path, MODULES[path]) == set()
        return
    assert room in MAY_IMPORT, f"'{room}' has no place in the table of rooms"
    rooms = imported_rooms(path, MODULES[path]) & set(MAY_IMPORT)
    assert rooms <= MAY_IMPORT[room] | {room, "errors"}


def test_import_check_sees_every_form(tmp_path):
    source = (
        "import ntools.cli.app\n"
        "from ntools import engine\n"
        "def f():\n    from ..output import jsonl\n"
        "    from . import units\n    from .. import host\n"
    )
    rooms = imported_rooms(PACKAGE / "model" / "x.py", ast.parse(source))
    assert rooms == {"cli", "engine", "output", "model", "host"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_syntax_is_python_37(path):
    ast.parse(path.read_text(), feature_version=(3, 7))


def test_library_use_is_python_37():
    pytest.importorskip("vermin")
    vermin = [sys.executable, "-c", "import vermin; vermin.main()"]
    done = subprocess.run(
        [*vermin, "--no-tips", "--violations", "-t=3.7-", str(PACKAGE)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_every_command_has_a_script():
    tools = [path.stem for path in (PACKAGE / "tools").glob("[!_]*.py")]
    expected = {"ntools-" + name.replace("_", "-"): f"ntools.tools.{name}:main" for name in tools}
    expected["ntools"] = "ntools.cli.umbrella:main"
    expected["ntools-btf"] = "ntools.cli.btf:main"
    expected["ntools-path-merge"] = "ntools.cli.merge:main"
    assert expected == SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS)
def test_command_has_parser_and_main(script):
    module = importlib.import_module(SCRIPTS[script].split(":")[0])
    assert module.parser().prog == script
    assert callable(module.main)


@pytest.mark.parametrize("script", SCRIPTS)
def test_command_is_documented(script):
    """Every option says what it does; the sections of the manual that cannot be made up exist."""
    module = importlib.import_module(SCRIPTS[script].split(":")[0])
    parser = module.parser()
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            assert action.help, action.option_strings or action.dest
    assert parser.description
    if script != "ntools":
        assert {"OUTPUT", "OVERHEAD", "LIMITS"} <= set(module.MANUAL)
        assert parser.epilog or "EXAMPLES" in module.MANUAL


def bpf_objects() -> dict[str, str]:
    """Object name -> source, from the list in bpf/meson.build."""
    text = (TOP / "bpf" / "meson.build").read_text()
    return dict(re.findall(r"^  \['(\w+)', '([\w.]+)', \[.*\]\],$", text, re.MULTILINE))


def test_every_bpf_source_is_built():
    assert set(bpf_objects().values()) == {path.name for path in (TOP / "bpf").glob("*.bpf.c")}


def test_every_object_is_installed():
    installed = {path.name for path in (Path(ntools.__file__).parent / "bpf").iterdir()}
    arches = ("x86", "arm64")
    assert installed == {f"{name}.{arch}.bpf.o" for name in bpf_objects() for arch in arches}


def test_every_object_is_used():
    """An object that no command loads would only be carried along."""
    assert set(bpf_objects()) == {*tools.objects(), "doctor"}


def test_one_version_everywhere():
    meson = re.findall(r"^ *version: '([^']+)'", (TOP / "meson.build").read_text(), re.MULTILINE)
    packaging = (TOP / "packaging" / "ntools.spec").read_text()
    spec = re.findall(r"^Version: *(\S+)$", packaging, re.MULTILINE)
    assert meson == spec == [ntools.__version__]
