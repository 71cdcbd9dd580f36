# SPDX-License-Identifier: GPL-2.0-only
"""Compiles the C helpers of the laboratory: NAME.c together with NAME_*.c, static.

Run ``python -m lab.build`` on the host before a guest boots: a guest only uses what is there.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import List, Sequence

__all__ = ["binary", "build_all"]

_HERE = Path(__file__).resolve().parent
_FLAGS = ["-static", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]


def _sources(name: str, home: Path) -> List[Path]:
    return [home / f"{name}.c", *sorted(home.glob(f"{name}_*.c"))]


def _cache_dir() -> Path:
    """NTOOLS_LAB_BUILD or build/lab of the repository."""
    return Path(os.environ.get("NTOOLS_LAB_BUILD", str(_HERE.parent.parent / "build" / "lab")))


def binary(
    name: str,
    machine: str = platform.machine(),
    home: Path = _HERE,
    flags: Sequence[str] = _FLAGS,
    libraries: Sequence[str] = (),
) -> Path:
    """Path of the compiled helper; built first when its sources changed.

    For another machine than this one a cross compiler is used.

    :param home: directory of the sources.

    The content of the sources is part of the file name, so that a changed clock or a second
    checkout cannot make an old program look new.
    """
    sources = _sources(name, home)
    content = hashlib.sha256(" ".join([*flags, *libraries]).encode())
    for path in [*sources, *sorted(home.glob(f"{name}*.h"))]:
        content.update(path.read_bytes())
    target = _cache_dir() / f"{name}-{machine}-{content.hexdigest()[:12]}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f"{target.name}.{os.getpid()}")
    compiler = "gcc" if machine == platform.machine() else f"{machine}-linux-gnu-gcc"
    command = [compiler, *flags, "-o", str(new), *map(str, sources), *libraries]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if result.returncode:
        raise RuntimeError(f"cannot compile '{name}':\n{result.stderr}")
    os.replace(new, target)
    return target


def build_all(machine: str = platform.machine()) -> List[Path]:
    """Every helper: each C file that has a main function."""
    names = [path.stem for path in sorted(_HERE.glob("*.c")) if "int main(" in path.read_text()]
    return [binary(name, machine) for name in names]


if __name__ == "__main__":
    for built in build_all():
        sys.stdout.write(f"{built}\n")
