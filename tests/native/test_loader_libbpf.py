# SPDX-License-Identifier: GPL-2.0-only
"""The loader on other versions of libbpf: the old are refused in one line, the others all work."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from object.bpfrun import obstacle
from vm import fetch
from vm.common import CACHE

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=obstacle())

TESTS = Path(__file__).resolve().parents[1]
OPEN = "from ntools._loader import library; print(library().version_text, library().path)"


def environment(**more: str) -> dict[str, str]:
    import ntools

    package = str(Path(ntools.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": package, "PYTHONDONTWRITEBYTECODE": "1", **more}


def stored(label: str) -> tuple[str, list[str]]:
    """Path of a libbpf in the cache of the VM runner, and the interpreter that can load it."""
    if os.uname().machine != "x86_64":
        pytest.skip("the libraries in the cache are for x86_64")
    if not (CACHE / "libbpf" / label).exists():
        pytest.skip(f"libbpf {label} is not in the cache (tests/vm/fetch.py --libbpf)")
    return str(fetch.libbpf_files()[label]), fetch.libbpf_prefix(label, sys.executable)


def run(library: str, interpreter: list[str]) -> subprocess.CompletedProcess:
    script = (
        "import sys\nfrom ntools.errors import NtoolsError\n"
        f"try:\n    {OPEN}\n"
        "except NtoolsError as error:\n    print(error); sys.exit(error.exit_status)\n"
    )
    return subprocess.run(
        [*interpreter, "-c", script],
        env=environment(NTOOLS_LIBBPF=library), capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_too_old_is_refused():
    library, interpreter = stored("0.3")
    done = run(library, interpreter)
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout == (
        f"libbpf 0.5 or older ('{library}') is too old: 0.8 or newer is needed. Install a newer "
        "libbpf or point NTOOLS_LIBBPF at one.\n"
    )


def test_none_at_all():
    done = run("/nonexistent/libbpf.so.1", [sys.executable])
    assert (done.returncode, done.stderr) == (3, "")
    assert re.fullmatch(
        r"cannot open libbpf: .*/nonexistent/libbpf\.so\.1.*\. Install the libbpf package "
        r"\(1\.0 or newer\), or point NTOOLS_LIBBPF at a library\.\n",
        done.stdout,
    )


@pytest.mark.parametrize("label", ["1.1", "1.5"])
def test_whole_loader(label):
    library, interpreter = stored(label)
    done = run(library, interpreter)
    assert done.stdout == f"{label} {library}\n", done.stderr
    done = subprocess.run(
        [*interpreter, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider",
         "--import-mode=importlib", str(TESTS / "native" / "test_loader.py")],
        env=environment(NTOOLS_LIBBPF=library, NTOOLS_TEST_PYTHON=shlex.join(interpreter)),
        cwd=TESTS.parent, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"\b([3-9]\d|\d{3,}) passed", done.stdout), done.stdout[-4000:]
