# SPDX-License-Identifier: GPL-2.0-only
"""Build RPM packages with the Python of the virtual environment.

usage: build_rpm.py TOPDIR            source and binary package, from source
       build_rpm.py TOPDIR WHEEL      binary package, from a wheel

For machines whose packages rpm does not know, such as Debian: what the specification requires
is not looked up there. The output is kept in TOPDIR/build.log and shown only if the build
fails. Prints the packages.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import source_files

topdir = Path(sys.argv[1]).absolute()
wheels = [Path(wheel).absolute() for wheel in sys.argv[2:]]
shutil.rmtree(str(topdir), ignore_errors=True)
source_files.pack(topdir / "SOURCES")
for wheel in wheels:
    shutil.copy(str(wheel), str(topdir / "SOURCES"))

definitions = {
    "_topdir": topdir,
    "_licensedir": "/usr/share/licenses",
    "__python3": sys.executable,
    "run_python": "/usr/bin/python3",
    # Steps of a distribution whose scripts do not run on another one.
    "__brp_compress": "%{nil}",
    "__brp_python_bytecompile": "%{nil}",
    "__brp_mangle_shebangs": "%{nil}",
}
command = ["rpmbuild", "--nodeps", *(["-bb", "--with", "wheel"] if wheels else ["-ba"])]
for name, value in definitions.items():
    command += ["--define", "{} {}".format(name, value)]
command.append(str(source_files.TOP / "packaging" / "ntools.spec"))

# meson lies beside the interpreter of a virtual environment that need not be active.
path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
log = topdir / "build.log"
with log.open("wb") as stream:
    status = subprocess.run(
        command, env=dict(os.environ, PATH=path), stdout=stream, stderr=subprocess.STDOUT
    ).returncode
if status != 0:
    sys.exit("{}\nrpmbuild failed, see '{}'".format(log.read_text(errors="replace"), log))
for package in sorted(topdir.glob("*RPMS/**/*.rpm")):
    print(package)
