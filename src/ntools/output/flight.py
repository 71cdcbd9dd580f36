# SPDX-License-Identifier: GPL-2.0-only
"""Text of the flight engine's records: tables of stage pairs, verdicts, single packets."""

from __future__ import annotations

from typing import Any, List, Mapping, Sequence

from ..model.flow import flow_text
from ..model.hist import Histogram
from ..model.stages import ENDS, TOTAL
from .text import (
    Column,
    hint_lines,
    histogram_lines,
    number,
    rejection_lines,
    table,
    time_cells,
    us,
)

__all__ = ["direction_block", "evidence_text", "packet_lines", "summary_lines"]

_TITLES = {"rx": "rx: from the VM", "tx": "tx: to the VM"}
_PAIRS = (
    Column("", left=True),
    Column("from", left=True),
    Column("to", left=True, least=14),
    Column("count"),
    Column("min us"),
    Column("avg us"),
    Column("p50 us"),
    Column("p99 us"),
    Column("max us"),
)


def direction_block(
    ends: Mapping[str, Any], hists: Sequence[Mapping[str, Any]], bars: bool
) -> List[str]:
    """One direction of a report: ends, pairs, verdicts."""
    whole = " (whole run)" if ends["agg"] == "total" else ""
    lines = ["", _TITLES[ends["direction"]] + whole, "  " + _ends_text(ends)]
    if ends.get("holds") is False:
        lines.append("  these numbers do not add up: please report it")
    if hists:
        lines += table(_PAIRS, _pair_rows(hists))
    if bars:
        for rec in hists:
            if rec["labels"]["to"] == TOTAL:
                lines.append("  total, us, {}".format(_place(rec["labels"])))
                lines += histogram_lines(Histogram.from_fields(rec), indent=2)
    lines += _verdicts(ends["by"])
    return lines


def packet_lines(rec: Mapping[str, Any]) -> List[str]:
    """One packet: who, how long, how it ended; then its stages."""
    from ..model.clock import wall_text

    names = [rec["interface"], rec.get("peer_interface", "?")]
    way = " > ".join(names if rec["direction"] == "rx" else reversed(names))
    sequence = rec.get("icmp_seq", rec.get("tcp_seq"))
    lines = [
        "{} {} {}{} len {} {} {} us {}".format(
            wall_text(rec["utc_ns"], 6),
            rec["direction"],
            flow_text(rec),
            "" if sequence is None else " seq {}".format(sequence),
            rec["len_bytes"],
            way,
            us(rec["total_ns"]),
            rec["end"],
        )
    ]
    for hop in rec["stages"]:
        lines.append(
            "    {:<11} {:<15} cpu {:<3} {:>12}".format(
                hop["stage"],
                hop["interface"] or "",
                hop["cpu"],
                "" if hop["delta_ns"] is None else "+" + us(hop["delta_ns"]),
            )
        )
    if rec.get("next_stage"):
        lines.append("    not seen at {}".format(rec["next_stage"]))
    evidence = rec.get("evidence")
    if evidence:
        lines.append("    freed: " + evidence_text(evidence))
    return lines


def summary_lines(rec: Mapping[str, Any]) -> List[str]:
    """Totals of the run, and with --explain what the filter rejected."""
    invariant = rec["invariant"]
    lines = [
        "",
        "{:.1f} s, {}: {}".format(
            rec["duration_ns"] / 1e9,
            "all packets accounted for" if invariant["holds"] else "PACKETS NOT ACCOUNTED FOR",
            _ends_text(invariant),
        ),
    ]
    return lines + rejection_lines(rec)


def _ends_text(ends: Mapping[str, Any]) -> str:
    parts = ["started {}".format(number(ends["started"]))]
    parts += [
        "{} {}".format(name.replace("_", " "), number(ends[name]))
        for name in ENDS
        if ends.get(name) or name == "completed"
    ]
    return ", ".join(parts)


def _pair_rows(hists: Sequence[Mapping[str, Any]]) -> List[List[Any]]:
    pairs = [rec for rec in hists if rec["labels"]["to"] != TOTAL]
    largest = max((rec["sum"] for rec in pairs if _is_inside(rec)), default=0)
    rows = []
    for rec in hists:
        labels = rec["labels"]
        hist = Histogram.from_fields(rec)
        mark = "*" if largest and rec["sum"] == largest and _is_inside(rec) else ""
        rows.append(
            [
                mark,
                labels["from"],
                _place(labels),
                *time_cells(hist),
            ]
        )
    return rows


def _is_inside(rec: Mapping[str, Any]) -> bool:
    """Whether a pair lies between entry and end: the wait for vhost comes before."""
    labels = rec["labels"]
    return bool(labels["to"] != TOTAL and labels["from"] != "vm.kick")


def _place(labels: Mapping[str, Any]) -> str:
    if labels["to"] == TOTAL:
        return "{} {} {}".format(TOTAL, labels["peer_kind"], labels["peer_interface"])
    where = labels.get("interface")
    return "{}@{}".format(labels["to"], where) if where else str(labels["to"])


def _verdicts(groups: Sequence[Mapping[str, Any]]) -> List[str]:
    lines: List[str] = []
    for group in groups:
        where = group.get("interface")
        text = "{} {}: last seen at {}{}".format(
            number(group["count"]),
            group["end"].replace("_", " "),
            group["last_stage"],
            "@" + where if where else "",
        )
        if group.get("next_stage"):
            text += ", not at {}".format(group["next_stage"])
        if group.get("reason") or group.get("caller"):
            text += "; freed: " + evidence_text(group)
        if group.get("example"):
            text += "; e.g. " + flow_text(group["example"])
        lines += hint_lines("  !", text)
    return lines


def evidence_text(evidence: Mapping[str, Any]) -> str:
    """Reason and function of a free event."""
    parts: List[str] = []
    if evidence.get("reason"):
        derived = "~" if evidence.get("reason_derived") else ""
        parts.append(derived + evidence["reason"].upper())
    if evidence.get("caller"):
        parts.append("in " + evidence["caller"])
    return " ".join(parts)
