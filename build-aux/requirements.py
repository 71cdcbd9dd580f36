# SPDX-License-Identifier: GPL-2.0-only
"""Print what pyproject.toml requires, one requirement per line.

usage: requirements.py [EXTRA...]

What the build and the package need is always printed; an extra adds its own.
"""

import sys
from pathlib import Path

try:
    import tomllib
except ImportError:  # before Python 3.11
    from pip._vendor import tomli as tomllib

settings = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text("utf-8"))
required = settings["build-system"]["requires"] + settings["project"]["dependencies"]
for extra in sys.argv[1:]:
    required += settings["project"]["optional-dependencies"][extra]
print("\n".join(dict.fromkeys(required)))
