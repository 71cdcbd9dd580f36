# SPDX-License-Identifier: GPL-2.0-only
"""What every benchmark does the same way: rounds in turn, medians with spread, ratios, a report.

A figure here is a ratio of two things that ran in the same round, one after the other: what the
machine does besides meets both. Nothing in here fails because of a figure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Mapping, Sequence

__all__ = ["MIN_ROUNDS", "REPORTS", "Report", "Sample", "in_turn", "options", "paired", "spread"]

#: NTOOLS_BENCH_OUT: for what runs in a guest and leaves its figures outside.
REPORTS = Path(
    os.environ.get("NTOOLS_BENCH_OUT") or Path(__file__).resolve().parents[2] / "build" / "bench"
)
MIN_ROUNDS = 5

#: One measurement: figure by name, the unit at the end of the name (cpu_s, rtt_us, peak_mib).
Sample = Mapping[str, float]


def options(what: str, rounds: int = 9) -> argparse.ArgumentParser:
    """A parser with the option every benchmark has."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--rounds", type=int, default=rounds, metavar="N",
                        help=f"at least {MIN_ROUNDS} (default {rounds})")  # fmt: skip
    return parser


def in_turn(cases: Mapping[str, Callable[[], Sample]], rounds: int) -> dict[str, list[Sample]]:
    """Samples of every case, one of each per round; every round begins with another case."""
    rounds = max(MIN_ROUNDS, rounds)
    names = list(cases)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in [*names[first:], *names[:first]]:
            samples[name].append(cases[name]())
        print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    return samples


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest, largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def paired(samples: Sequence[Sample], base: Sequence[Sample], figure: str) -> dict[str, float]:
    """The ratio of a figure to that of the base in the same round: median, smallest, largest."""
    ratios = [one[figure] / other[figure] for one, other in zip(samples, base) if other[figure]]
    return spread(ratios) if ratios else {}


@dataclass
class Report:
    """Figures of one benchmark; :meth:`write` leaves them where the document is made from them.

    :ivar name: of the file, as in build/bench/start.json.
    :ivar rows: one per case: "case", and by name of the figure its spread; with "ratio" a spread,
        and "to" the case it is a ratio to.
    :ivar notes: lines a reader of the figures needs.
    """

    name: str
    rounds: int
    rows: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(
        self, case: str, samples: Sequence[Sample], base: str = "",
        of: Sequence[Sample] = (), figure: str = "",
    ) -> dict:  # fmt: skip
        """A row of every figure of the samples; with a base, the ratio of one figure to it."""
        row: dict = {"case": case}
        for name in samples[0]:
            row[name] = spread([one[name] for one in samples])
        if base:
            row["ratio"], row["to"], row["figure"] = paired(samples, of, figure), base, figure
        self.rows.append(row)
        return row

    def machine(self) -> dict:
        """What the figures depend on."""
        model = ""
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
        return {
            "kernel": platform.release(), "machine": platform.machine(), "cpu": model,
            "cpus": os.cpu_count(), "python": platform.python_version(),
            "load": round(os.getloadavg()[0], 2),
        }  # fmt: skip

    def write(self) -> Path:
        """Print the table and write the file."""
        machine = self.machine()
        where = "kernel {kernel}, {cpus} CPUs, load {load}".format(**machine)
        print(f"\n{self.name}: {self.rounds} rounds on {where}; median (min to max)")
        for row in self.rows:
            print("  " + text_of(row))
        for note in self.notes:
            print("  note: " + note)
        REPORTS.mkdir(parents=True, exist_ok=True)
        path = REPORTS / f"{self.name}.json"
        content = {"name": self.name, "rounds": self.rounds, "machine": machine,
                   "rows": self.rows, "notes": self.notes}  # fmt: skip
        path.write_text(json.dumps(content, indent=1) + "\n")
        return path


def text_of(row: Mapping) -> str:
    """A row as a line."""
    parts = []
    for name, value in row.items():
        if isinstance(value, Mapping) and name != "ratio" and value:
            parts.append("{} {:.4g} ({:.4g} to {:.4g})".format(
                name, value["median"], value["min"], value["max"]))  # fmt: skip
    if row.get("ratio"):
        ratio = row["ratio"]
        parts.append("{:.3g} x {} ({:.3g} to {:.3g})".format(
            ratio["median"], row["to"], ratio["min"], ratio["max"]))  # fmt: skip
    return "{:<34} {}".format(row["case"], ", ".join(parts))
