# SPDX-License-Identifier: GPL-2.0-only
"""List or pack the files that belong to the project.

usage: source_files.py              print their names
       source_files.py DIRECTORY    write DIRECTORY/ntools-VERSION.tar.gz, print its name

Files are those under version control and new ones that are not ignored; in an unpacked
tarball all files. Equal files make an equal tarball.
"""

import gzip
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import List

TOP = Path(__file__).resolve().parents[1]


def version() -> str:
    """The version of the project, as meson.build has it."""
    text = (TOP / "meson.build").read_text(encoding="utf-8")
    return re.findall(r"^ *version: '([^']+)'", text, re.MULTILINE)[0]


def source_files() -> List[str]:
    """Paths relative to the top of the project, sorted."""
    if (TOP / ".git").exists():
        # The user who builds need not be the one who owns the checkout.
        git = ["git", "-c", "safe.directory=*", "-C", str(TOP)]
        listed = subprocess.run(
            [*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            check=True,
            stdout=subprocess.PIPE,
        ).stdout.decode()
        names = {name for name in listed.split("\0") if name and (TOP / name).is_file()}
    else:
        names = {str(path.relative_to(TOP)) for path in TOP.rglob("*") if path.is_file()}
    return sorted(names)


def pack(directory: Path) -> Path:
    """Write the files with owner, mode and time that do not depend on the checkout."""
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    name = "ntools-" + version()

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = "root"
        info.mtime = epoch
        info.mode = 0o755 if info.mode & 0o100 else 0o644
        return info

    directory.mkdir(parents=True, exist_ok=True)
    output = directory / (name + ".tar.gz")
    with output.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=epoch) as packed:
        with tarfile.open(mode="w", fileobj=packed, format=tarfile.GNU_FORMAT) as tar:
            for path in source_files():
                tar.add(str(TOP / path), name + "/" + path, filter=plain)
    return output


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(pack(Path(sys.argv[1])))
    else:
        print("\n".join(source_files()))
