#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Put the figures of build/bench/*.json into docs/performance.md.

The document is written by hand but for what stands between ``<!-- figures: NAME -->`` and
``<!-- end -->``: the tables of one report, or of all whose names begin so (``NAME*``), or the goals
(``goals``). A report that was not made this time leaves its figures as they are, and what was not
measured again keeps its verdict.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Iterable, Mapping, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import REPORTS  # noqa: E402

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
_BLOCK = re.compile(r"(<!-- figures: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
#: Figure -> heading and factor; others are shown as they are called.
_HEADINGS = {
    "wall_s": ("wall time, ms", 1e3),
    "cpu_s": ("CPU time, ms", 1e3),
    "peak_mib": ("peak memory, MiB", 1.0),
    "steady_mib": ("memory 2 s later, MiB", 1.0),
}
_NOT_FIGURES = ("case", "ratio", "to", "figure", "goal")


@dataclass(frozen=True)
class Goal:
    """A promise, and where the figures are that keep it.

    :ivar cases, to, figures: regular expressions of the rows and figures it is about.
    :ivar ratio: whether it is about the ratio of the row; else about the figure itself.
    :ivar most, least: a median beyond it misses the goal; ``by`` "max": the largest of all.
    """

    text: str
    reports: str
    figures: str
    cases: str = ""
    to: str = ""
    ratio: bool = False
    most: float | None = None
    least: float | None = None
    by: str = "median"

    @property
    def limit(self) -> str:
        return f"at most {self.most:g}" if self.most is not None else f"at least {self.least:g}"

    def rows(self, reports: Mapping[str, dict]) -> Iterable[tuple[str, dict]]:
        """(case, spread) of everything it is about."""
        for name, report in reports.items():
            for row in report["rows"] if fnmatchcase(name, self.reports) else ():
                if not re.search(self.cases, row["case"]):
                    continue
                if not self.ratio:
                    yield from (
                        (row["case"], value)
                        for figure, value in row.items()
                        if figure not in _NOT_FIGURES and re.fullmatch(self.figures, figure)
                    )
                elif row.get("ratio") and re.fullmatch(self.figures, row.get("figure", "")):
                    if re.search(self.to, row.get("to", "")):
                        yield row["case"], row["ratio"]

    def _keeps(self, value: float) -> bool:
        return value <= self.most if self.most is not None else value >= (self.least or 0)

    def verdict(self, reports: Mapping[str, dict]) -> tuple[str, str] | None:
        """("met" or "missed", the worst case); None: not measured."""
        found = [(case, value) for case, value in self.rows(reports) if value]
        if not found:
            return None
        worst = (min if self.most is None else max)(found, key=lambda one: one[1][self.by])
        missed = sum(not self._keeps(value[self.by]) for _, value in found)
        met = not missed
        count = "" if met else f" by {missed} of {len(found)}"
        return ("met" if met else f"**missed**{count}"), f"{_text(worst[1])}: {worst[0]}"


_BOTH = "^floor and interpreter$"
GOALS = (
    Goal("CPU time of a start, of the reference's", "start", "cpu_s", to="^reference", ratio=True,
         most=0.1),
    Goal("Peak memory of a start, of the reference's", "start", "peak_mib", to="^reference",
         ratio=True, most=0.25),
    Goal("CPU time of a start, of floor and interpreter", "start", "cpu_s", to=_BOTH, ratio=True,
         most=1.5),
    Goal("A packet that is not wanted, raw tracepoints, ns", "firing", "ns",
         r"raw_tp: (rejected|not followed)", most=60),
    Goal("A packet that is counted in a histogram or table, raw tracepoints, ns", "firing", "ns",
         r"raw_tp: (matched, table|followed, one histogram)", most=150),
    Goal("TCP round trip with a drop tracer that matches nothing, of no tool", "impact-rr",
         "tcp_rtt_us", r"^drop .*nothing", ratio=True, most=1.02),
    Goal("TCP round trip with the latency summary, of no tool", "impact-rr", "tcp_rtt_us",
         r"^vm-latency summary", ratio=True, most=1.02),
    Goal("Throughput of one stream with the latency summary, of no tool", "impact-stream",
         r".*_1_gbit_per_s", r"^vm-latency summary", ratio=True, least=0.97),
    Goal("Packets neither seen nor counted as lost, at full rate", "share", "missing", most=0,
         by="max"),
    Goal("CPU of a summary under traffic, percent of one core", "*", "(tool_|user_)cpu_pct",
         r"^(?!bpftrace|reference).*summary", most=2),
    Goal("CPU of reports as flows, devices, points grow, percent of one core", "growth-*",
         "default_cpu_pct", most=2),
)  # fmt: skip


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}"


def _text(value: Mapping[str, float], factor: float = 1.0) -> str:
    """A median with its spread."""
    median, low, high = (_number(value[name] * factor) for name in ("median", "min", "max"))
    return median if low == high else f"{median} ({low} to {high})"


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows),
        "",
    ]


def tables(report: Mapping) -> list[str]:
    """Tables of one report: rows with the same figures in one."""
    groups: dict[tuple[str, ...], list[Mapping]] = {}
    for row in report["rows"]:
        groups.setdefault(tuple(name for name in row if name not in _NOT_FIGURES), []).append(row)
    lines: list[str] = []
    for figures, rows in groups.items():
        with_ratio = any(row.get("ratio") for row in rows)
        head = ["case"] + [_HEADINGS.get(name, (name, 1.0))[0] for name in figures]
        head += ["ratio", "of what"] if with_ratio else []
        cells = []
        for row in rows:
            line = [row["case"]]
            line += [_text(row[name], _HEADINGS.get(name, ("", 1.0))[1]) for name in figures]
            if with_ratio:
                of = f"{_HEADINGS.get(row['figure'], (row['figure'],))[0].split(',')[0]} of " if (
                    row.get("figure")) else ""  # fmt: skip
                line += [_text(row["ratio"]), of + row["to"]] if row.get("ratio") else ["", ""]
            cells.append(line)
        lines += _lines(head, cells)
    return lines


def section(report: Mapping) -> list[str]:
    """What stands in the block of one report."""
    machine = report["machine"]
    lines = [
        "{} rounds; kernel {}, {} x {}, Python {}. Median (smallest to largest).".format(
            report["rounds"], machine["kernel"], machine["cpus"], machine["cpu"] or "CPU",
            machine["python"],
        ),
        "",
        *tables(report),
    ]  # fmt: skip
    for note in report["notes"]:
        lines.append(f"* {note}")
    return [*lines, ""] if report["notes"] else lines


def goals(reports: Mapping[str, dict], before: str) -> list[str]:
    """The table of goals; a goal that was not measured now keeps its line."""
    kept = {
        row.split(" | ")[0].lstrip("| "): row
        for row in before.splitlines() if row.startswith("| ")
    }  # fmt: skip
    lines = _lines(["goal", "limit", "verdict", "worst case"], [])[:-1]
    for goal in GOALS:
        verdict = goal.verdict(reports)
        if verdict is not None:
            lines += _lines([goal.text, goal.limit, *verdict], [])[:1]
        else:
            lines.append(kept.get(goal.text, f"| {goal.text} | {goal.limit} | not measured | |"))
    return [*lines, ""]


def filled(text: str, reports: Mapping[str, dict]) -> tuple[str, list[str]]:
    """The document with the figures in it, and the names of reports it has no place for."""
    used: set[str] = set()

    def block(match: re.Match) -> str:
        name, before = match[2], match[3]
        if name == "goals":
            content = goals(reports, before)
        else:
            found = sorted(one for one in reports if fnmatchcase(one, name))
            used.update(found)
            several = "*" in name
            content = []
            for one in found:
                content += [f"#### {one}", ""] * several + section(reports[one])
        return match[1] + ("\n".join(content) or before or "Not measured yet.\n\n") + match[4]

    return _BLOCK.sub(block, text), sorted(set(reports) - used)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=DOCUMENT, metavar="FILE")
    parser.add_argument("reports", nargs="*", type=Path, metavar="JSON",
                        help="default: build/bench/*.json")  # fmt: skip
    args = parser.parse_args()
    paths = args.reports or sorted(REPORTS.glob("*.json"))
    reports = {one["name"]: one for one in (json.loads(path.read_text()) for path in paths)}
    text, left = filled(args.to.read_text(), reports)
    args.to.write_text(text)
    print(f"{args.to}: figures of {', '.join(reports) or 'nothing'}")
    if left:
        print(f"no place for {', '.join(left)}: add '<!-- figures: {left[0]} -->' and an end")
    return 0


if __name__ == "__main__":
    sys.exit(main())
