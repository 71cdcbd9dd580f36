# SPDX-License-Identifier: GPL-2.0-only
"""Text of echoes on a path: a line each, counts, times of the parts of the way."""

from __future__ import annotations

from typing import Any, List, Mapping, Sequence

from ..model.hist import Histogram
from .flight import evidence_text
from .text import TIMES, Column, hint_lines, number, table, time_cells, us, wrap

__all__ = ["echo_lines", "stats_lines"]

_STAGES = {
    "req_rx": "request in",
    "req_tx": "out",
    "rep_rx": "reply in",
    "rep_tx": "out",
}
_ENDS = ("complete", "internal_drop_req", "external_drop", "internal_drop_rep", "timeout")
_NAMES = {
    "req_internal": "request inside",
    "external": "outside",
    "rep_internal": "reply inside",
    "total": "total",
}


def echo_lines(rec: Mapping[str, Any]) -> List[str]:
    """One echo: how it ended; where it was seen, and the time since the stage before."""
    from ..model.clock import wall_text

    lines = [
        "{} id {} seq {}  {}{}".format(
            wall_text(rec["utc_ns"], 3),
            rec.get("icmp_id", "?"),
            rec["icmp_seq"],
            rec["status"].upper(),
            "  {} us".format(us(rec["total_ns"])) if "total_ns" in rec else "",
        )
    ]
    parts: List[str] = []
    before = None
    for name, text in _STAGES.items():
        stage = rec["stages"].get(name)
        if stage is not None:
            later = "" if before is None else " +" + us(stage["ts_ns"] - before)
            parts.append("{} {}{}".format(text, stage.get("interface") or "?", later))
            before = stage["ts_ns"]
    lines.append("    " + "  ".join(parts))
    nat = rec.get("nat")
    if nat:
        lines.append(
            "    translated to {} -> {} id {}".format(
                nat.get("src_ip", "?"), nat.get("dst_ip", "?"), nat.get("icmp_id", "?")
            )
        )
    evidence = rec.get("evidence")
    if evidence:
        last = max(stage["ts_ns"] for stage in rec["stages"].values())
        lines.append(
            "    freed: {}, {} us later".format(
                evidence_text(evidence), us(max(0, evidence["ts_ns"] - last))
            )
        )
    return lines


def stats_lines(rec: Mapping[str, Any], hists: Sequence[Mapping[str, Any]]) -> List[str]:
    """Counts of the interval or of the run, and times by part of the way."""
    ends = ["{} {}".format(name, number(rec[name])) for name in _ENDS]
    whole = " (whole run)" if rec["agg"] == "total" else ""
    lines = ["", *wrap("echoes {}{}: {}".format(number(rec["echoes"]), whole, ", ".join(ends)))]
    if rec["unpaired"] or rec["duplicate"]:
        lines.append(f"not followed: unpaired {rec['unpaired']}, duplicate {rec['duplicate']}")
    if rec["unpaired"] >= 5 and rec["unpaired"] > rec["echoes"]:
        lines += hint_lines(
            "  ?",
            "echoes are seen at a stage, but not at the one before: are --rx-iface and --tx-iface "
            "the wrong way round, does the host itself send them, or do they take another way in?",
        )
    rows = [
        [_NAMES[one["labels"]["part"]], *time_cells(Histogram.from_fields(one))] for one in hists
    ]
    return lines + (table((Column("us", left=True), *TIMES), rows) if rows else [])
