# SPDX-License-Identifier: GPL-2.0-only
"""What the arm64 guest runs: the commands from the wheel, and the C helpers of the laboratory.

The wheel is the one built for this machine, for it serves both. The guest has no pip, so it is
unpacked, and each command gets a script that calls it.
"""

from __future__ import annotations

import shutil
import zipfile

from lab import build

from vm.common import GUEST_PROJECT, PROJECT, VmProblem

_SITE = PROJECT / "build" / "arm64"
_SCRIPT = """\
#!/usr/bin/python3
import sys
from {module} import {function}
sys.exit({function}())
"""


def environment() -> list[str]:
    """Prepare build/arm64; the words to put before a command in the guest."""
    wheels = sorted((PROJECT / "build" / "wheel").glob("ntools-*.whl"))
    if len(wheels) != 1:
        raise VmProblem(f"{len(wheels)} wheels in build/wheel instead of one: run 'make build'")
    shutil.rmtree(_SITE, ignore_errors=True)
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(_SITE / "site")
    points = next((_SITE / "site").glob("*.dist-info/entry_points.txt")).read_text()
    (_SITE / "bin").mkdir()
    for line in points.splitlines():
        name, found, target = line.partition(" = ")
        if found:
            module, _, function = target.strip().partition(":")
            script = _SITE / "bin" / name.strip()
            script.write_text(_SCRIPT.format(module=module, function=function))
            script.chmod(0o755)
    try:
        build.build_all("aarch64")
    except (OSError, RuntimeError) as error:
        raise VmProblem(f"no C helpers for arm64: {error}") from error
    site = f"{GUEST_PROJECT}/build/arm64"
    return ["env", f"PYTHONPATH={site}/site", f"NTOOLS_BIN={site}/bin"]
