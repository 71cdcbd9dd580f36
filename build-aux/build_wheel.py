# SPDX-License-Identifier: GPL-2.0-only
"""Build the wheel through meson-python, keeping the build directory.

usage: build_wheel.py BUILD_DIR WHEEL_DIR

The same as ``pip wheel -Cbuild-dir=...`` without its second start of the build. The output of
the build is kept in BUILD_DIR.log and shown only if it fails. Prints the path of the wheel.
"""

import os
import subprocess
import sys
from pathlib import Path

HOOK = """
import sys, mesonpy
print(mesonpy.build_wheel(sys.argv[2], {"build-dir": sys.argv[1]}), file=sys.stderr)
"""

build_dir, wheel_dir = (Path(argument).absolute() for argument in sys.argv[1:])
wheel_dir.mkdir(parents=True, exist_ok=True)
for old in wheel_dir.glob("ntools-*.whl"):
    old.unlink()
build_dir.mkdir(parents=True, exist_ok=True)
# meson lies beside the interpreter of a virtual environment that need not be active.
path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
log = build_dir.with_name(build_dir.name + ".log")
with log.open("wb") as stream:
    status = subprocess.run(
        [sys.executable, "-c", HOOK, str(build_dir), str(wheel_dir)],
        cwd=str(Path(__file__).parents[1]),
        env=dict(os.environ, PATH=path),
        stdout=stream,
        stderr=subprocess.STDOUT,
    ).returncode
if status != 0:
    sys.exit("{}\nbuild failed, see '{}'".format(log.read_text(errors="replace"), log))
(wheel,) = wheel_dir.glob("ntools-*.whl")
print(wheel)
