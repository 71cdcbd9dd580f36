#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Instructions our programs add to a packet, counted in guests: by kernel, mechanism and path.

One boot per kernel, of one emulated CPU whose clock counts instructions; see icount_guest.py. The
figures are the same in each boot, so one is enough, on a busy machine too. Written to
build/bench/icount.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import common  # noqa: E402
import firing_paths as paths  # noqa: E402
from vm import instructions  # noqa: E402
from vm.common import VmProblem, kernel  # noqa: E402
from vm.run import end_on_sigterm  # noqa: E402


def main() -> int:
    """Measures and prints; no figure makes it fail."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boots", type=int, default=1, metavar="N", help="of each kernel")
    parser.add_argument("--kernel", default="7.x,6.1", metavar="NAMES",
                        help="names in tests/vm/kernels.txt (default %(default)s)")  # fmt: skip
    parser.add_argument("--reference", type=Path, metavar="DIR",
                        help="checkout of the reference tools; needs BCC, minutes")  # fmt: skip
    options = parser.parse_args()
    end_on_sigterm()
    boots = max(1, options.boots)
    report = common.Report("icount", boots)
    for name in options.kernel.split(","):
        found = []
        try:
            for turn in range(boots):
                found.append(instructions.measure(name, _guest_options(name, options.reference)))
                print(f"{name}: boot {turn + 1} of {boots}", file=sys.stderr, flush=True)
        except VmProblem as problem:
            report.notes.append(f"{name}: {problem}")
        report.notes += [row["note"] for rows in found[:1] for row in rows if "note" in row]
        if found:
            _add(report, name, found)
            report.notes.append(f"{name}: {kernel(name).release}")
    report.notes.append("instructions: added to a packet, of carrier without a tool; "
                        "body: of one run of a program, less that of an empty one; entry: what "
                        "is left of a packet's instructions per run, to get there")  # fmt: skip
    report.write()
    return 0


def _guest_options(name: str, checkout: Path | None) -> tuple[str, ...]:
    """What the guest is told to count."""
    found = ("--bodies", "--mechanisms", ",".join(paths.MECHANISMS))
    if checkout is None:
        return found
    import reference

    if not reference.has_bcc():
        raise VmProblem("the reference needs BCC ('python3-bpfcc'), which is not here")
    return (*found, "--reference", str(checkout.resolve()), "--interpreter",
            reference.interpreter(), "--headers", str(reference.headers(name)))  # fmt: skip


def _add(report: common.Report, name: str, boots: list[list[dict]]) -> None:
    """Rows of one kernel: of each path, and of each program in it."""
    for row in boots[0]:
        if "instructions" in row:
            key = (row["path"], row["mechanism"])
            same = [one for rows in boots for one in rows
                    if (one.get("path"), one.get("mechanism")) == key]  # fmt: skip
            whole = [one for one in same if "instructions" in one]
            report.add(f"{name} {row['mechanism']:<13} {row['path']}", [
                {"instructions": one["instructions"], "carrier": one["carrier"],
                 **_entry(one, same, len(boots))} for one in whole])  # fmt: skip
            for point in dict.fromkeys(one["point"] for one in same if "body" in one):
                rows = [{"body": one["body"], "runs": one["runs"]}
                        for one in same if one.get("point") == point]  # fmt: skip
                report.add(f"{name} {row['mechanism']:<13}   {point}", rows)


def _entry(whole: dict, same: list[dict], boots: int) -> dict[str, float]:
    """What a run costs besides the body of its program: the way into it."""
    rows = [one for one in same if "body" in one]
    runs = sum(one["runs"] for one in rows) / boots
    inside = sum(one["runs"] * one["body"] for one in rows) / boots
    return {"entry": (whole["instructions"] - inside) / runs} if runs else {}


if __name__ == "__main__":
    sys.exit(main())
