#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Guest instructions per packet against the table in instructions.txt; one short boot.

    instructions.py            compare, as the matrix does
    instructions.py --write    measure and rewrite the table

Instructions are counted, not timed: the load of the machine makes no difference, two boots give
the same. A program that costs more than the table says by more than a twentieth is a change
somebody has to want.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Callable, Mapping

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vm import common  # noqa: E402
from vm.common import VmProblem  # noqa: E402
from vm.run import Guest, end_on_sigterm, new_out_dir  # noqa: E402

__all__ = ["KERNEL", "TABLE", "check", "judge", "measure", "read_table", "write_table"]

TABLE = common.HERE / "instructions.txt"
#: The kernel the table is made on.
KERNEL = "6.12"
_GUEST = common.PROJECT / "tests" / "bench" / "icount_guest.py"
_LIMIT_S = 420
# The reference is compiled in the guest.
_LIMIT_REFERENCE_S = 1800
# A count may differ by a twentieth, a small one by a few instructions.
_SHARE, _FEW = 0.05, 6
_ROW = re.compile(r"(\d+)\s+(\S+)\s+(\S.*)")

#: Instructions per packet by (mechanism, path).
Counts = Mapping["tuple[str, str]", int]

_HEAD = """\
# SPDX-License-Identifier: GPL-2.0-only
#
# Instructions each command adds to one packet, counted in a guest of {kernel}:
# instructions, mechanism, path (tests/bench/firing_paths.py says which packets those are).
#
# The test suite allows a difference of 5 %. When a change is meant to cost more, or saves more:
#
#     python tests/vm/instructions.py --write
#
# and the commit says what the instructions are spent on.
"""


def measure(kernel: str, options: tuple[str, ...] = ()) -> list[dict]:
    """Rows of one boot of a kernel; see icount_guest.py.

    :raises VmProblem: the guest did not get to the end.
    """
    sys.path.insert(0, str(_GUEST.parent))
    import firing_paths

    firing_paths.program()
    k = common.kernel(kernel)
    out = new_out_dir(k.name)
    command = [common.guest_python(k.arch), str(_GUEST), *options]
    guest = Guest(k.name, command, out, count=True)
    status = guest.run(_LIMIT_REFERENCE_S if "--reference" in options else _LIMIT_S)
    text = (out / "stdout").read_text(errors="replace")
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    if status or not rows or not rows[-1].get("done"):
        error = (out / "stderr").read_text(errors="replace").strip()[-1500:]
        raise VmProblem(f"counting on {k.name} ended with {status}; see {out}\n{error}")
    for row in rows:
        if "problem" in row:
            raise VmProblem(f"counting on {k.name}: {row['path']}: {row['problem']}")
    return rows


def counts_of(rows: list[dict]) -> dict[tuple[str, str], int]:
    """What the table holds of the rows of a boot."""
    return {(row["mechanism"], row["path"]): round(row["instructions"])
            for row in rows if "instructions" in row}  # fmt: skip


def read_table(path: Path = TABLE) -> dict[tuple[str, str], int]:
    """The table.

    :raises ValueError: a line that is none of it.
    """
    found: dict[tuple[str, str], int] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        row = _ROW.fullmatch(line.strip())
        if row is None:
            raise ValueError(f"{path.name}, line {number}: '{line}'")
        found[row[2], row[3]] = int(row[1])
    return found


def write_table(counts: Counts, kernel: str, path: Path = TABLE) -> None:
    """Replaces the table."""
    rows = [f"{count:>6}  {mechanism:<13}  {name}\n"
            for (mechanism, name), count in counts.items()]  # fmt: skip
    path.write_text(_HEAD.format(kernel=kernel) + "".join(rows))


def judge(table: Counts, found: Counts) -> list[str]:
    """What does not fit, a line each."""
    problems = []
    for key, want in table.items():
        mechanism, path = key
        have = found.get(key)
        if have is None:
            problems.append(f"{path}, {mechanism}: in the table, but not measured")
        elif abs(have - want) > max(_SHARE * want, _FEW):
            problems.append(f"{path}, {mechanism}: {have} instructions per packet, the table "
                            f"says {want} ({have - want:+d}, {have / want - 1:+.0%})")  # fmt: skip
    problems += [f"{path}, {mechanism}: measured, but not in the table"
                 for mechanism, path in found if (mechanism, path) not in table]  # fmt: skip
    return problems


def _measured_or_again() -> list[dict]:
    """A guest that does not get to the end says nothing about the programs: a second one may."""
    try:
        return measure(KERNEL)
    except VmProblem as problem:
        print(f"  {problem}\n  counted again", flush=True)
        return measure(KERNEL)


def check(settle: Callable[[dict], None]) -> None:
    """One row per command for the report of the matrix."""
    began = time.monotonic()
    try:
        table, found = read_table(), counts_of(_measured_or_again())
        tools = list(dict.fromkeys(path.partition(":")[0] for _, path in [*table, *found]))
        problems = judge(table, found)
    except (VmProblem, ValueError) as problem:
        tools, problems, found = ["all"], [f"all: {problem}"], {}
    seconds = time.monotonic() - began
    for tool in tools:
        row = {"name": f"instructions.{tool}", "result": "passed", "seconds": seconds}
        mine = [text for text in problems if text.startswith(f"{tool}:")]
        if mine:
            row["result"] = "failed"
            row["reason"] = "; ".join(mine) + (
                "; if that is meant: python tests/vm/instructions.py --write, and commit "
                "the table with the reason" if found else "")  # fmt: skip
        settle(row)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="rewrite the table")
    options = parser.parse_args()
    end_on_sigterm()
    if options.write:
        try:
            before = read_table() if TABLE.exists() else {}
            rows = measure(KERNEL)
        except VmProblem as problem:
            print(problem, file=sys.stderr)
            return 1
        found = counts_of(rows)
        write_table(found, common.kernel(KERNEL).release)
        print("\n".join(judge(before, found)) or "no difference of more than 5 %")
        return 0
    rows = []
    check(rows.append)
    for row in rows:
        print(common.result_line(row))
    return 1 if any(row["result"] == "failed" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
