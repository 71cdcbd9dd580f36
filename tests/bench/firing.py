#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Nanoseconds per run of our BPF programs on this machine, by path and mechanism.

Packets take one path each (firing_paths.py) while the kernel's own statistics of programs are on.
Reading the clock twice is part of what these say, so programs that do nothing run at the same
places at the same time, and theirs is subtracted. What the kernel does to get into a program is
not in there. It is in the time of whole packets, with the command and without it in the same round,
statistics off. What programs are made of (clock, lookups, reads) is timed, too: the profile.
Needs root; written to build/bench/firing.json.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import struct
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import common  # noqa: E402
import firing_paths as paths  # noqa: E402
from lab import bpfsys  # noqa: E402
from lab.tool import ToolFailed  # noqa: E402
from object import bpfrun  # noqa: E402

BATCHES, PACKETS = 15, 400
_EMPTY = "empty"
_PLACES = ("kfree_skb", "netif_receive_skb")


def _per_run(before: dict, after: dict, numbers: list[int]) -> tuple[float, int]:
    """(ns per run, runs) of programs together."""
    took = sum(after[number][0] - before[number][0] for number in numbers)
    runs = sum(after[number][1] - before[number][1] for number in numbers)
    return (took / runs if runs else 0.0), runs


def _batches(traffic, points: dict[str, list[int]]) -> dict[str, dict[str, float]]:
    """By point: ns per run less that of an empty program; medians.

    "foreign" is the share of batches with other packets in them; those count only where there is
    nothing else.
    """
    found: dict[str, list[tuple[bool, float]]] = {}
    numbers = [number for group in points.values() for number in group]
    traffic.send(PACKETS)
    for _ in range(BATCHES):
        before = paths.runs_of(numbers)
        traffic.send(PACKETS)
        after = paths.runs_of(numbers)
        empty, _ = _per_run(before, after, points[_EMPTY])
        for point, group in points.items():
            ns, runs = _per_run(before, after, group)
            if runs:
                own = ns if point == _EMPTY else ns - empty
                found.setdefault(point, []).append((runs % PACKETS == 0, own))
    result = {}
    for point, rows in found.items():
        clean = [ns for alone, ns in rows if alone]
        result[point] = {"ns": statistics.median(clean or [ns for _, ns in rows]),
                         "foreign": 1 - len(clean) / len(rows)}  # fmt: skip
    return result


class _Parts:
    """Parts of programs, ten times in each; a sample has ns of each."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        source = Path(__file__).resolve().parent / "firing_parts.bpf.c"
        built = bpfrun.build(source, folder / "firing_parts.o")
        self._names = re.findall(r"^PART\((\w+)", source.read_text(), re.M)
        self._object = stack.enter_context(bpfrun.RunObject(built, self._names))

    def __call__(self) -> dict[str, float]:
        took = {}
        with bpfsys.run_statistics():
            for name in self._names:
                before = _spent(self._object.fd(name))
                self._object.run(name, PACKETS)
                after = _spent(self._object.fd(name))
                took[name] = (after[0] - before[0]) / (after[1] - before[1])
        nothing = took.pop("nothing")
        return {name: (ns - nothing) / 10 for name, ns in took.items()}


def _spent(descriptor: int) -> tuple[int, int]:
    """(run time in ns, runs) of a program."""
    return struct.unpack_from("<QQ", bpfsys._info(descriptor), bpfsys._RUN_TIME_AT)


def _packet(traffic) -> float:
    """Nanoseconds a packet takes from its sender to its reader."""
    traffic.send(PACKETS)
    return statistics.median(traffic.send(PACKETS) for _ in range(BATCHES)) / PACKETS


class _Case:
    """One command with one mechanism; a sample is a start of it, with all its traffic."""

    def __init__(self, topo, traffic, run: paths.Run, mechanism: str) -> None:
        self._topo, self._traffic, self._run, self._mechanism = topo, traffic, run, mechanism
        self.obstacle = ""

    def __call__(self) -> dict[str, float]:
        sample: dict[str, float] = {}
        without = {kind: _packet(self._traffic[kind]) for kind in self._run.paths.values()}
        with paths.start(self._topo, self._run, self._mechanism) as tool:
            for path, kind in self._run.paths.items():
                sample[f"{path}|packet"] = _packet(self._traffic[kind]) - without[kind]
                sample[f"{path}|without"] = without[kind]
            with bpfsys.run_statistics(), paths.attached_empty(*_PLACES) as empty:
                points: dict[str, list[int]] = {_EMPTY: empty}
                for number, name in paths.programs_of(tool.pid).items():
                    points.setdefault(name.partition("__")[0], []).append(number)
                for path, kind in self._run.paths.items():
                    for point, row in _batches(self._traffic[kind], points).items():
                        sample[f"{path}|{point}"] = row["ns"]
                        sample[f"{path}|{point}|foreign"] = row["foreign"]
            result = tool.stop()
        lost = result.summary["lost"]
        if result.status or lost:
            self.obstacle = f"status {result.status}, lost {lost}"
        return sample


def main() -> int:
    """Measures and prints; no figure makes it fail."""
    rounds = common.options(__doc__.splitlines()[0]).parse_args().rounds
    rounds = max(common.MIN_ROUNDS, rounds)
    report = common.Report("firing", rounds)
    with contextlib.ExitStack() as stack:
        topo, traffic = stack.enter_context(paths.laboratory())
        parts = _Parts(stack)
        cases = {}
        for mechanism, refused in (("tp_btf", ""), ("raw_tp", "tp_btf")):
            for name, run in paths.RUNS.items():
                case = _Case(topo, traffic, run, refused)
                try:
                    case()  # warm the page cache
                except ToolFailed as problem:
                    report.notes.append(f"{name}, {mechanism}: {str(problem).splitlines()[0]}")
                    continue
                cases[name, mechanism] = case
        samples = common.in_turn(
            {"parts": parts, **{str(key): case for key, case in cases.items()}}, rounds
        )
    parts_found = samples.pop("parts")
    for mechanism in ("tp_btf", "raw_tp"):
        for path, point, what in paths.FIRINGS:
            name = next(name for name, run in paths.RUNS.items() if path in run.paths)
            rows = samples.get(str((name, mechanism)), ())
            key = f"{path}|{point}"
            rows = [{"ns": row[key], "empty_ns": row[f"{path}|{_EMPTY}"]}
                    for row in rows if key in row]  # fmt: skip
            if rows:
                report.add(f"{path.partition(':')[0]} {point} {mechanism}: {what}", rows)
    for (name, mechanism), _ in cases.items():
        for path in paths.RUNS[name].paths:
            rows = samples[str((name, mechanism))]
            report.add(f"packet, {mechanism}, {path}", [
                {"added_ns": row[f"{path}|packet"], "without_ns": row[f"{path}|without"]}
                for row in rows])  # fmt: skip
    for name in parts_found[0]:
        report.add(f"part, {name}", [{"ns": row[name]} for row in parts_found])
    for (name, mechanism), case in cases.items():
        if case.obstacle:
            report.notes.append(f"{name}, {mechanism}: {case.obstacle}")
    report.notes += _foreign(samples)
    report.notes.append("ns: run time of the program less that of an empty one, empty_ns, in the "
                        "same packets; getting into the program is in neither, but in added_ns, "
                        "which is of a packet with all its firings, statistics off")  # fmt: skip
    report.write()
    return 0


def _foreign(samples) -> list[str]:
    """A note when packets of somebody else went through the programs and nothing was without."""
    odd = sum(value == 1 for rows in samples.values() for row in rows
              for key, value in row.items() if key.endswith("|foreign"))  # fmt: skip
    return [f"{odd} figures have other packets in them: this machine was not quiet"] if odd else []


if __name__ == "__main__":
    sys.exit(main())
