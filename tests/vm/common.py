# SPDX-License-Identifier: GPL-2.0-only
"""Paths, the kernel table and constants shared by the VM runner's files."""

from __future__ import annotations

import configparser
import os
import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
CACHE = Path(os.environ.get("NTOOLS_VM_CACHE") or Path.home() / ".cache" / "ntools-vm")
OUT_ROOT = CACHE / "out"

# What the guest sees.
GUEST_OUT = "/run/out"
GUEST_PROJECT = "/run/project"

# Exit statuses of the runner which do not come from the command.
RC_TIMEOUT = 124
RC_DIED = 125

# Seconds.
DEFAULT_TIMEOUT_S = 600
SCENARIO_TIMEOUT_S = 90
BOOT_LIMIT_S = 90
# From QEMU's start to the first result line: two boots and the warm-up.
FIRST_LINE_S = 2 * BOOT_LIMIT_S + 90
HANG_GRACE_S = 45

RESULTS = "results.jsonl"
# Type information of a kernel and its modules, made for kernels that keep none of modules.
JOINED_BTF = "joined.btf"


class VmProblem(Exception):
    """Something the runner needs is missing; the text is for the user."""


@dataclass(frozen=True)
class Kernel:
    """One section of kernels.txt."""

    name: str
    arch: str
    release: str
    version: str
    series: str
    packages: tuple[str, ...]
    suites: tuple[str, ...]
    required: frozenset[str]
    default: bool
    scenarios: tuple[str, ...]
    excluded: tuple[str, ...]
    debug_package: str
    debug_modules: tuple[str, ...]

    @property
    def pin(self) -> str:
        return f"{self.release}={self.version}"


def kernels() -> dict[str, Kernel]:
    """All kernels of the matrix by name, in the order of the file."""
    table = configparser.ConfigParser(interpolation=configparser.ExtendedInterpolation())
    table.read(HERE / "kernels.txt")
    return {
        name: Kernel(
            name=name,
            arch=row["arch"],
            release=row["release"],
            version=row["version"],
            series=row["series"],
            packages=tuple(row["packages"].split()),
            suites=tuple(row["suites"].split()),
            required=frozenset(row["required"].split()),
            default=row.getboolean("default"),
            scenarios=tuple(row["scenarios"].split()),
            excluded=tuple(row["excluded"].split()),
            debug_package=row["debug_package"],
            debug_modules=tuple(row["debug_modules"].split()),
        )
        for name, row in table.items()
        if name != "DEFAULT"
    }


def kernel(name: str) -> Kernel:
    """Kernel by its name in kernels.txt; '7', '7.3' and a full release work too."""
    known = kernels()
    if name in known:
        return known[name]
    for item in known.values():
        if item.release == name or re.match(re.escape(name) + r"\b", item.release):
            if item.arch == "amd64" or item.release == name:
                return item
    raise VmProblem(f"unknown kernel '{name}'; known: {', '.join(known)}")


def guest_python(arch: str) -> str:
    """Interpreter to use inside the guest."""
    venv = PROJECT / ".venv" / "bin" / "python"
    if arch == "amd64" and venv.exists():
        return str(venv)
    return "python3"


def result_line(row: dict) -> str:
    """One finished scenario as text."""
    text = f"{row['result']:<7} {row['seconds']:6.1f}s  {row['name']}"
    return f"{text}: {row['reason']}" if row.get("reason") else text
