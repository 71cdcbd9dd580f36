#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Run the benchmarks, one after another, and make docs/performance.md of what they left.

Each is a program of its own in this folder and leaves build/bench/NAME.json. No figure makes this
fail; a benchmark that breaks is said at the end.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: In the order they run.
ALL = ("start", "firing", "icount", "impact", "share", "growth", "filters")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help=f"of {', '.join(ALL)} (default: all)")  # fmt: skip
    parser.add_argument("--rounds", type=int, metavar="N", help="at least 5")
    parser.add_argument("--reference", type=Path, metavar="DIR",
                        help="checkout of the reference tool set, to compare with")  # fmt: skip
    parser.add_argument("--no-document", action="store_true",
                        help="leave docs/performance.md as it is")  # fmt: skip
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in ALL]
    if unknown:
        parser.error(f"no benchmark '{unknown[0]}', there are {', '.join(ALL)}")
    return args


def command_of(name: str, rounds: int | None, checkout: Path | None) -> list[str]:
    """How one benchmark is called: with the options it knows."""
    path = HERE / f"{name}.py"
    command = [sys.executable, str(path)]
    known = path.read_text()
    if rounds is not None and "options(" in known:
        command += ["--rounds", str(rounds)]
    if checkout is not None and '"--reference"' in known:
        command += ["--reference", str(checkout.resolve())]
    return command


def main() -> int:
    args = _options()
    broken = []
    for name in args.names or ALL:
        if not (HERE / f"{name}.py").exists():
            print(f"{name}: there is no such benchmark, skipped")
            continue
        print(f"\n== {name}", flush=True)
        began = time.monotonic()
        status = subprocess.run(command_of(name, args.rounds, args.reference)).returncode
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
        if status:
            broken.append(f"{name} (status {status})")
    if not args.no_document:
        subprocess.run([sys.executable, str(HERE / "document.py")], check=True)
    if broken:
        print("did not end well: " + ", ".join(broken))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
