# SPDX-License-Identifier: GPL-2.0-only
"""The RPM package, built from source and from a wheel, and installed into a root of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]


def run(*command: object) -> list[str]:
    """Lines of the output of a command that has to succeed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.fixture(scope="module", params=["source", "wheel"])
def packages(request, wheels, tmp_path_factory) -> dict[str, Path]:
    """Built packages by architecture; "src" only where everything was built."""
    if not shutil.which("rpmbuild"):
        pytest.skip("no rpmbuild")
    arguments = [tmp_path_factory.mktemp(request.param) / "rpm"]
    if request.param == "wheel":
        arguments.append(wheels[0])
    built = run(sys.executable, TOP / "build-aux/build_rpm.py", *arguments)
    found = {path.split(".")[-2]: Path(path) for path in built}
    assert set(found) == ({"noarch"} if request.param == "wheel" else {"noarch", "src"})
    return found


def test_contains_commands_pages_completions_and_objects(packages):
    files = run("rpm", "-qlp", packages["noarch"])
    names = {Path(path).name for path in files if path.startswith("/usr/bin/")}
    assert {"ntools", "ntools-btf", "ntools-drop", "ntools-vm-latency"} <= names
    for name in names:
        assert any(path.startswith(f"/usr/share/man/man8/{name}.8") for path in files)
        assert f"/usr/share/bash-completion/completions/{name}" in files
    assert sum(path.endswith(".x86.bpf.o") for path in files) >= 3
    assert sum(path.endswith(".arm64.bpf.o") for path in files) >= 3
    assert "/usr/share/licenses/ntools/LICENSE" in files
    assert not any(path.endswith(("direct_url.json", "RECORD", ".pyc")) for path in files)


def test_requires_what_nothing_finds_by_itself(packages):
    required = run("rpm", "-qRp", packages["noarch"])
    assert "(libbpf.so.1()(64bit) or libbpf.so.0()(64bit))" in required
    assert "python3-cffi" in required
    assert any(line.startswith("python(abi) = 3.") for line in required)


def test_installed_commands_run(packages, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root: rpm changes its root directory")
    run("rpm", "--root", tmp_path, "--dbpath", "/var/lib/rpm", "--initdb")
    run("rpm", "--root", tmp_path, "--dbpath", "/var/lib/rpm", "-i", "--nodeps", packages["noarch"])
    (modules,) = tmp_path.glob("usr/lib/python3*/site-packages")
    commands = sorted(tmp_path.glob("usr/bin/ntools*"))
    assert len(commands) >= 3
    for command in commands:
        assert command.read_text().startswith("#!/usr/bin/python3\n")
        done = subprocess.run(
            [sys.executable, str(command), "--help"],
            env={"PYTHONPATH": str(modules), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("usage: " + command.name)
    # Stripping by the package build would have destroyed them.
    for path in modules.glob("ntools/bpf/*.o"):
        assert b".BTF.ext" in path.read_bytes()
