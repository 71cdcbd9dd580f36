# SPDX-License-Identifier: GPL-2.0-only
"""The wheel, built once for all tests that look into it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]


def build_aux(script: str, *arguments: object, top: Path = TOP) -> str:
    """Run one of the build's own scripts; returns its output."""
    done = subprocess.run(
        [sys.executable, str(top / "build-aux" / script), *map(str, arguments)],
        env=dict(os.environ, SOURCE_DATE_EPOCH="1700000000"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_in_copy(top: Path) -> Path:
    """Build the wheel from a copy of the sources at another place."""
    for name in build_aux("source_files.py").split("\n")[:-1]:
        target = top / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TOP / name, target)
    return Path(build_aux("build_wheel.py", top / "b", top / "w", top=top).strip())


@pytest.fixture(scope="session")
def wheels(tmp_path_factory) -> list[Path]:
    """Two builds of the same sources, at places of different depth."""
    pytest.importorskip("mesonpy")
    if not shutil.which("clang"):
        pytest.skip("no clang")
    top = tmp_path_factory.mktemp("wheel")
    return [build_in_copy(top / "one"), build_in_copy(top / "and" / "another" / "one")]
