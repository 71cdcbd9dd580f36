# SPDX-License-Identifier: GPL-2.0-only
"""Print the files of the Python package below a directory, one per line.

usage: python_files.py DIRECTORY
"""

import sys
from pathlib import Path

# A generated module that somebody needed in the tree is not a source.
GENERATED = {"_abi.py"}
SUFFIXES = {".json", ".py", ".typed"}

top = Path(sys.argv[1])
for path in sorted(top.rglob("*")):
    if path.suffix in SUFFIXES and path.name not in GENERATED:
        print(path.relative_to(top).as_posix())
