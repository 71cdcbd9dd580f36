# SPDX-License-Identifier: GPL-2.0-only
"""Text of the qdisc engine's records: what became of the packets of a queue, and their times."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence

from ..model.clock import wall_text
from ..model.flow import flow_text
from ..model.hist import Histogram
from .flight import evidence_text
from .text import (
    TIMES,
    Column,
    hint_lines,
    histogram_lines,
    number,
    rejection_lines,
    share,
    table,
    time_cells,
    us,
    wrap,
)

__all__ = ["packet_lines", "queue_lines", "summary_lines"]

_ENDS = ("dequeued", "bypassed", "dropped", "split", "consumed", "stale", "timed_out", "open")
_TAKEN = (
    "taken_dropped", "taken_split", "taken_consumed", "taken_stale", "taken_timed_out",
    "taken_open",
)  # fmt: skip
_TIMES = ("wait", "driver", "retry")


def queue_lines(
    rec: Mapping[str, Any], hists: Mapping[str, Mapping[str, Any]], bars: bool
) -> List[str]:
    """One queue of a report: ends, times, lengths, what was dropped.

    :param hists: its hist records by name.
    """
    whole = "  (whole run)" if rec["agg"] == "total" else ""
    lines = ["", _place(rec) + whole]
    text = ", ".join(_counted(rec, _ENDS, "dequeued")) or "none of them has ended"
    lines += wrap("queued {}: {}".format(number(rec["queued"]), text), indent=2)
    after = [text.replace("taken ", "") for text in _counted(rec, _TAKEN)]
    if after:
        lines += wrap("of those dequeued: " + ", ".join(after), indent=2)
    if rec.get("holds") is False:
        lines.append("  these numbers do not add up: please report it")
    rows = [[n, *time_cells(Histogram.from_fields(hists[n]))] for n in _TIMES if n in hists]
    lines += table((Column("us", left=True), *TIMES), rows, indent=2) if rows else []
    if bars and "wait" in hists:
        lines += histogram_lines(Histogram.from_fields(hists["wait"]), indent=2)
    lines += wrap("; ".join(_more(rec, hists)), indent=2)
    for drop in rec.get("drops") or ():
        text = "{} dropped {}: {}".format(
            number(drop["count"]),
            "while queued" if drop["state"] == "queued" else "after the queue",
            evidence_text(drop),
        )
        lines += hint_lines("  !", text)
    return lines


def packet_lines(rec: Mapping[str, Any]) -> List[str]:
    """One packet: where, who, how long, how it ended."""
    when = wall_text(rec["utc_ns"], 6) + " "
    who = "segment of " if rec.get("child") else ""
    lines = wrap(
        "{} {}{} len {}".format(_place(rec), who, flow_text(rec), rec["len_bytes"]),
        indent=len(when),
    )
    lines[0] = when + lines[0].lstrip()
    parts = [rec["end"].replace("_", " ").upper()]
    if rec.get("wait_ns") is not None:
        parts.append("wait {} us".format(us(rec["wait_ns"])))
    if rec.get("driver_ns") is not None:
        parts.append("driver {} us".format(us(rec["driver_ns"])))
    if rec.get("qlen_packets") is not None:
        parts.append("found {}".format(number(rec["qlen_packets"])))
    if rec.get("bulk_packets"):
        parts.append("place {} of {}".format(rec["position"] + 1, rec["bulk_packets"]))
    if rec.get("segs", 1) > 1:
        parts.append("segments {}".format(rec["segs"]))
    if rec.get("requeues"):
        parts.append("taken again {}".format(rec["requeues"]))
    if rec.get("reordered"):
        parts.append("OVERTAKEN")
    if rec.get("reason"):
        parts.append(evidence_text(rec))
    return lines + wrap(", ".join(parts), indent=4)


def summary_lines(rec: Mapping[str, Any]) -> List[str]:
    """Totals of all queues."""
    holds = "all packets accounted for" if rec["invariant"]["holds"] else "NOT ACCOUNTED FOR"
    counts = rec["counts"]
    text = ["queued {}".format(number(counts["queued"])), *_counted(counts, _ENDS, "dequeued")]
    lines = wrap("{:.1f} s, {}: {}".format(rec["duration_ns"] / 1e9, holds, ", ".join(text)))
    return ["", *lines, *rejection_lines(rec)]


def _place(rec: Mapping[str, Any]) -> str:
    return "{} queue {} {} {}".format(
        rec.get("interface", "?"), rec["tx_queue"], rec.get("qdisc", "?"), rec.get("handle", "")
    ).rstrip()


def _counted(rec: Mapping[str, Any], names: Sequence[str], always: str = "") -> List[str]:
    return [
        "{} {}".format(name.replace("_", " "), number(rec[name]))
        for name in names
        if rec.get(name) or name == always
    ]


def _more(rec: Mapping[str, Any], hists: Mapping[str, Mapping[str, Any]]) -> List[str]:
    found: Dict[str, Histogram] = {
        name: Histogram.from_fields(hists[name]) for name in ("qlen", "bulk") if name in hists
    }
    parts = []
    for name, text in (("qlen", "queue found {:.1f} long"), ("bulk", "bulks of {:.1f}")):
        if name in found:
            hist = found[name]
            parts.append(text.format(hist.mean() or 0))
            if hist.max is not None:
                parts[-1] += ", at most {}".format(number(hist.max))
    if rec["segments"]:
        made, seen = number(rec["segments"]), number(rec["children"])
        parts.append("{} segments, {} seen".format(made, seen))
    for name in ("requeued", "refused"):
        if rec[name]:
            parts.append("{} {} times".format(name, number(rec[name])))
    if rec["reordered"]:
        percent = share(rec["reordered"], rec["dequeued"] + rec["bypassed"])
        parts.append("overtaken {} ({} %)".format(number(rec["reordered"]), percent))
    return parts
