# SPDX-License-Identifier: GPL-2.0-only
"""Text of flows on a path: what came in and what left, what was lost and by whom."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence

from ..model.flow import flow_text
from ..model.hist import Histogram
from .flight import evidence_text
from .text import (
    TIMES,
    Column,
    attach_lines,
    hint_lines,
    number,
    table,
    time_cells,
    us,
    wrap,
)

__all__ = ["datagram_lines", "flow_lines", "header_lines", "unit_lines"]

_PACKETS = (
    Column("packets", left=True),
    Column("in"),
    Column("out"),
    Column("lost"),
    Column("split"),
    Column("MiB in"),
    Column("MiB out"),
    Column("retrans out/in"),
    Column("dup ack"),
)


_DATAGRAMS = ("complete", "dropped", "partial", "incomplete", "open")


def header_lines(rec: Mapping[str, Any], explain: bool) -> List[str]:
    """The two sides, and with --explain how the points were attached."""
    sides: Dict[str, List[str]] = {"rx": [], "tx": []}
    for device in rec["devices"]:
        end = " (stack)" if device["end"] == "stack" else ""
        sides[device["role"]].append(device["interface"] + end)
    lines = wrap("in {}, out {}".format(",".join(sides["rx"]), ",".join(sides["tx"])))
    return lines + (attach_lines(dict(rec)) if explain else [])


def flow_lines(rows: Sequence[Mapping[str, Any]], hists: Sequence[Mapping[str, Any]]) -> List[str]:
    """Totals of both directions; times; what was lost."""
    from ..model.clock import wall_text

    whole = "  whole run" if rows[0]["agg"] == "total" else ""
    lines = ["", wall_text(rows[0]["utc_ns"], 3) + whole]
    cells = []
    for rec in rows:
        lost = rec["dropped"] + rec["timed_out"]
        cells.append(
            [
                rec["direction"],
                number(rec["units_in"]),
                number(rec["units_out"]),
                number(lost),
                number(rec["split"]),
                "{:.1f}".format(rec["bytes_in"] / 2**20),
                "{:.1f}".format(rec["bytes_out"] / 2**20),
                "{}/{}".format(rec["retrans_after"], rec["retrans_before"]),
                number(rec["dup_ack"]),
            ]
        )
    lines += table(_PACKETS, cells)
    for rec in rows:
        if rec.get("datagrams"):
            ends = ["{} {}".format(name, number(rec["datagrams_" + name])) for name in _DATAGRAMS]
            text = "{} datagrams in fragments {}: {}; fragments in {}, out {}".format(
                rec["direction"],
                number(rec["datagrams"]),
                ", ".join(ends),
                number(rec["fragments_in"]),
                number(rec["fragments_out"]),
            )
            lines += wrap(text)
    times = [[rec["labels"]["direction"], *time_cells(Histogram.from_fields(rec))] for rec in hists]
    lines += table((Column("us", left=True), *TIMES), times) if times else []
    for rec in rows:
        for group in rec["by"]:
            text = "{} {} {}".format(number(group["count"]), rec["direction"], group["end"])
            text = text.replace("_", " ") + ", last seen at {}".format(group["interface"] or "?")
            if group.get("reason") or group.get("caller"):
                text += "; freed: " + evidence_text(group)
            lines += hint_lines("  !", text + "; e.g. " + flow_text(group["example"]))
        if rec.get("holds") is False:
            lines.append("  these numbers do not add up: please report it")
    return lines


def unit_lines(rec: Mapping[str, Any]) -> List[str]:
    """One packet: who, how long, how it ended."""
    from ..model.clock import wall_text

    sequence = rec.get("tcp_seq")
    lines = [
        "{} {} {}{} len {} {} {} us".format(
            wall_text(rec["utc_ns"], 6),
            rec["direction"],
            flow_text(rec),
            "" if sequence is None else " seq {}".format(sequence),
            rec["len_bytes"],
            rec["end"].upper(),
            us(rec["total_ns"]),
        )
    ]
    if rec.get("evidence"):
        lines.append("    freed: " + evidence_text(rec["evidence"]))
    return lines


def datagram_lines(rec: Mapping[str, Any]) -> List[str]:
    """One datagram in fragments: who, how much came in and left, how it ended."""
    from ..model.clock import wall_text

    lines = [
        "{} {} {} id {}".format(
            wall_text(rec["utc_ns"], 6), rec["direction"], flow_text(rec), rec["ip_id"]
        ),
        "    {}: {} of {} bytes in {} fragments came in, {} in {} left".format(
            rec["status"].upper(),
            rec["bytes_in"],
            rec.get("datagram_bytes") or "?",
            rec["fragments_in"],
            rec["bytes_out"],
            rec["fragments_out"],
        ),
    ]
    if rec.get("evidence"):
        lines.append("    freed: " + evidence_text(rec["evidence"]))
    return lines
