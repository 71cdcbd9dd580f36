# SPDX-License-Identifier: GPL-2.0-only
"""The wheel: what is in it, that two builds are equal, that it runs where nothing else is."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
#: An object of flights takes 80 to 130 kB, for each architecture.
SIZE_BUDGET_BYTES = 2_500_000
HELP_BUDGET_S = 0.060

# Costly to import or not there at all on a host.
NOT_AT_START = {
    "cffi",
    "elftools",
    "importlib.resources",
    "ipaddress",
    "json",
    "numpy",
    "pycparser",
    "pyroute2",
}
# What our modules may miss in an interpreter that was not prepared.
FOREIGN = {"_cffi_backend", "elftools", "pyroute2"}


@pytest.fixture(scope="module")
def files(wheels) -> dict[str, bytes]:
    """Content of the wheel; data files by their place below the prefix."""
    with zipfile.ZipFile(wheels[0]) as archive:
        names = archive.namelist()
        return {re.sub(r"^ntools-[^/]*\.data/data/", "", n): archive.read(n) for n in names}


@pytest.fixture(scope="module")
def commands(files) -> dict[str, str]:
    """Command -> module."""
    (entry_points,) = (text for name, text in files.items() if name.endswith("entry_points.txt"))
    return dict(re.findall(r"^(\S+) = (\S+):main$", entry_points.decode(), re.MULTILINE))


@pytest.fixture(scope="module")
def fresh(wheels, tmp_path_factory) -> Path:
    """A virtual environment with the wheel and nothing else, not even pip."""
    place = tmp_path_factory.mktemp("fresh")
    venv.create(place, with_pip=False, symlinks=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), "install"]
        + ["--quiet", "--no-deps", "--no-index", str(wheels[0])],
        check=True,
    )
    return place


def test_two_builds_are_equal(wheels):
    assert len({hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels}) == 1


def test_fits_every_platform_and_the_budget(wheels, files):
    assert wheels[0].name.endswith("-py3-none-any.whl")
    (tags,) = (text for name, text in files.items() if name.endswith(".dist-info/WHEEL"))
    assert b"Root-Is-Purelib: true" in tags
    assert wheels[0].stat().st_size <= SIZE_BUDGET_BYTES


def test_contains_what_it_should_and_nothing_else(files, commands):
    source = TOP / "src"
    expected = {
        str(path.relative_to(source))
        for pattern in ("*.py", "*.json", "py.typed")
        for path in (source / "ntools").rglob(pattern)
    }
    expected.add("ntools/_loader/_abi.py")
    objects = re.findall(r"^  \['(\w+)',", (TOP / "bpf/meson.build").read_text(), re.MULTILINE)
    for arch in ("x86", "arm64"):
        expected |= {f"ntools/bpf/{name}.{arch}.bpf.o" for name in objects}
    for command in commands:
        expected.add(f"share/man/man8/{command}.8")
        expected.add(f"share/bash-completion/completions/{command}")
    expected.add("share/licenses/ntools/LICENSE")
    assert {name for name in files if ".dist-info/" not in name} == expected


def test_no_path_of_the_builder_remains(wheels, files):
    place = str(wheels[0].parents[2]).encode()
    assert [name for name, content in files.items() if place in content] == []


def test_objects_keep_types_and_no_debug_information(files, tmp_path):
    elffile = pytest.importorskip("elftools.elf.elffile")
    for name, content in files.items():
        if name.endswith(".o"):
            path = tmp_path / "object"
            path.write_bytes(content)
            with path.open("rb") as stream:
                elf = elffile.ELFFile(stream)
                sections = {section.name for section in elf.iter_sections()}
                assert elf["e_machine"] == "EM_BPF"
            assert {".BTF", ".BTF.ext", "license"} <= sections, name
            assert not any(section.startswith(".debug") for section in sections), name


def test_manual_pages_are_whole(files, commands, tmp_path):
    if not shutil.which("man"):
        pytest.skip("no man")
    for command in commands:
        path = tmp_path / f"{command}.8"
        path.write_bytes(files[f"share/man/man8/{command}.8"])
        done = subprocess.run(
            ["man", "--warnings", "-l", str(path)],
            env=dict(os.environ, LC_ALL="C.UTF-8", MANWIDTH="80", MANPAGER="cat"),
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, ""), command
        headings = re.findall(r'^\.SH "(.*)"$', path.read_text(), re.MULTILINE)
        expected = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "SEE ALSO"]
        if command != "ntools":
            expected[4:4] = ["OUTPUT", "EXAMPLES", "OVERHEAD", "LIMITS"]
        assert [heading for heading in headings if heading in expected] == expected, command


def test_completions_are_bash(files, commands):
    for command in commands:
        script = files[f"share/bash-completion/completions/{command}"]
        subprocess.run(["bash", "-n"], input=script, check=True)


def test_every_command_runs_with_an_empty_path(fresh, commands):
    for command in commands:
        done = subprocess.run(
            [str(fresh / "bin" / command), "--help"], env={"PATH": ""}, capture_output=True
        )
        assert (done.returncode, done.stderr) == (0, b""), command
        assert done.stdout.startswith(b"usage: " + command.encode()), command


def imported_by(python: Path, statement: str) -> set[str]:
    """Modules an interpreter has loaded after a statement."""
    code = (
        f"import sys\ntry:\n    {statement}\nexcept SystemExit:\n    pass\n"
        "print('\\n' + ' '.join(sys.modules))"
    )
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, env={})
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split("\n")[-2].split())


def test_help_imports_nothing_costly(fresh, commands):
    for command, module in commands.items():
        loaded = imported_by(
            fresh / "bin" / "python",
            f"import {module}; sys.argv = ['{command}', '--help']; {module}.main()",
        )
        assert module in loaded
        costly = loaded & (NOT_AT_START | {"_cffi_backend", "ntools._loader"})
        assert costly == set(), command


def test_loader_needs_only_the_backend_of_cffi(fresh, tmp_path):
    backend = pytest.importorskip("_cffi_backend")
    shutil.copy(backend.__file__, tmp_path)
    loaded = imported_by(
        fresh / "bin" / "python",
        f"sys.path.append({str(tmp_path)!r}); import ntools._loader, ntools._loader._abi",
    )
    assert {"_cffi_backend", "ntools._loader._abi"} <= loaded
    assert loaded & NOT_AT_START == set()


def cpu_of(command: list[str]) -> float:
    """Least CPU seconds of five runs: the others waited for a cold cache or a busy machine."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_help_is_quick(fresh, commands):
    bare = cpu_of([str(fresh / "bin" / "python"), "-c", "pass"])
    for command in commands:
        used = cpu_of([str(fresh / "bin" / command), "--help"])
        # On a slow machine the interpreter alone takes most of the budget.
        assert used < max(HELP_BUDGET_S, 3 * bare), f"{command}: {used:.3f} s, bare {bare:.3f} s"


def interpreters() -> dict[str, str]:
    """Version -> path of every Python 3.7 or newer found here."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [*sorted(pyenv.glob("versions/*/bin/python")), *Path("/usr/bin").glob("python3.*")]
    found = {}
    for path in candidates:
        done = subprocess.run(
            [str(path), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
        )
        version = done.stdout.strip()
        if done.returncode == 0 and tuple(map(int, version.split("."))) >= (3, 7):
            found.setdefault(version, str(path))
    return found


INTERPRETERS = interpreters()

IMPORT_ALL = """
import pkgutil, importlib, sys
sys.path.insert(0, sys.argv[1])
import ntools
for module in pkgutil.walk_packages(ntools.__path__, "ntools."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if error.name not in sys.argv[2:]:
            raise
    print(module.name)
"""


@pytest.mark.parametrize("version", INTERPRETERS)
def test_every_module_imports_on(version, wheels, commands, tmp_path):
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extractall(tmp_path)
    done = subprocess.run(
        [INTERPRETERS[version], "-I", "-c", IMPORT_ALL, str(tmp_path), *FOREIGN],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert set(commands.values()) <= set(done.stdout.split())
