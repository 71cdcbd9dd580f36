# SPDX-License-Identifier: GPL-2.0-only
"""Text of softirqs and their threads: rows per CPU, and waits one by one."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence

from ..model.hist import Histogram
from .text import WIDTH, number, percentile_us, us, wrap

__all__ = ["event_lines", "heading", "stats_lines"]

_ROW = "{:>4}  {:<19} {:>8} {:>7} {:>11} {:>11} {:>12}"
_WHAT = {"wake": "woken", "preempt": "preempted", "delay": "raised"}
_KINDS = {"wake": "woken", "preempt": "preempted", "raise": "raised"}


def heading(threshold_ns: int) -> str:
    """Above the rows of a report."""
    over = ">={:g} us".format(threshold_ns / 1000)
    return _ROW.format("CPU", "waited after", "count", over, "p50 us", "p99 us", "max us")


def stats_lines(rec: Mapping[str, Any], hists: Sequence[Mapping[str, Any]]) -> List[str]:
    """One CPU: a row per kind of wait, then how it ran."""
    times: Dict[Any, Histogram] = {
        (hist["labels"].get("thread") or hist["labels"]["vector"], hist["labels"]["time"]):
            Histogram.from_fields(hist)
        for hist in hists
    }  # fmt: skip
    lines: List[str] = []
    for row in rec["threads"]:
        name = row["thread"]
        rows = [
            (which, times[name, which]) for which in ("wake", "preempt") if (name, which) in times
        ]
        for place, (which, hist) in enumerate(rows):
            # Counted for both together.
            over = number(row["over"]) if not place else "" if row["over"] else "0"
            lines.append(_row(rec["cpu"], "{} {}".format(name, _WHAT[which]), hist, over))
        if row["runs"]:
            turn = times.get((name, "turn"))
            text = "ran {} times, {:.1f} ms in all".format(number(row["runs"]), row["run_ns"] / 1e6)
            lines += _note(text + (", {} us at most".format(us(turn.max)) if turn else ""))
    for row in rec["vectors"]:
        if not row["entries"]:
            continue
        name = row["vector"]
        if (name, "delay") in times:
            hist = times[name, "delay"]
            lines.append(_row(rec["cpu"], name + " raised", hist, number(row["over"])))
        lines += _note(_ran(row))
    napi = rec["napi"]
    if napi["polls"]:
        lines += _note("NAPI: {} polls, {} packets, budget exhausted {} times".format(
            number(napi["polls"]), number(napi["packets"]), number(napi["exhausted"])))  # fmt: skip
    for one in rec["waiting"]:
        lines += _note("! {} ({}) still waits, {} {:.1f} ms ago".format(
            one["comm"], one["pid"], _KINDS[one["kind"]], one["waiting_ns"] / 1e6))  # fmt: skip
    if rec.get("holds") is False:
        lines.append("  these numbers do not add up: please report it")
    return lines


def event_lines(rec: Mapping[str, Any]) -> List[str]:
    """One wait: who, how long, who held the CPU."""
    from ..model.clock import wall_text

    who = rec.get("comm") or rec.get("vector") or "?"
    text = "{} cpu {} {} {} {:.1f} us".format(
        wall_text(rec["utc_ns"], 6), rec["cpu"], who, _KINDS[rec["kind"]], rec["delay_ns"] / 1000
    )
    if rec.get("context"):
        text += ", in ksoftirqd" if rec["context"] == "ksoftirqd" else ""
    if rec.get("prev_comm"):
        text += ", after {}[{}] prio {}".format(rec["prev_comm"], rec["prev_pid"], rec["prev_prio"])
    lines = wrap(text)
    return lines[:1] + ["    " + line for line in lines[1:]]


def _row(cpu: int, what: str, hist: Histogram, over: str) -> str:
    return _ROW.format(
        cpu, what, number(hist.count), over, percentile_us(hist, 0.5), percentile_us(hist, 0.99),
        us(hist.max),
    ).rstrip()  # fmt: skip


def _ran(row: Mapping[str, Any]) -> str:
    where = ["{} {}".format(number(row["entries_" + name]), text) for name, text in
             (("idle", "on an idle CPU"), ("ksoftirqd", "in ksoftirqd"), ("task", "on a task"))
             if row["entries_" + name]]  # fmt: skip
    ran_ns = sum(row["run_ns_" + name] for name in ("idle", "ksoftirqd", "task"))
    text = "{} ran {} times ({}), {:.1f} ms".format(
        row["vector"], number(row["entries"]), ", ".join(where), ran_ns / 1e6
    )
    part = row.get("ksoftirqd_pct")
    return text + (", {:.1f} % of it in ksoftirqd".format(part) if part else "")


def _note(text: str) -> List[str]:
    return wrap(text, WIDTH, 6)
