# SPDX-License-Identifier: GPL-2.0-only
"""Runs ntools-drop and reads what it says."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional

from lab.expect import equal, same_sum
from lab.latency import check_records
from lab.netns import Namespace
from lab.tool import PATIENT, Result, Tool

__all__ = ["accounted", "checked", "gives_reasons", "reason", "rows", "watch"]

# What ends an event or a row on its way to the user.
_LOST = ("ring_full", "perf_lost", "governor_dropped", "group_full")


def watch(ns: Namespace, *args: str, **how: Any) -> Tool:
    """The command in a namespace, limited to it, with JSON records."""
    options = ["--netns", ns.name, "--format", "json", *PATIENT, "--admit-s", "0.2", *args]
    return Tool(ns, "ntools-drop", options, **how)


def gives_reasons(result: Result) -> bool:
    """Whether the kernel of the run gives drop reasons."""
    return not any(row["feature"] == "drop reasons" for row in result.header["degraded"])


def reason(result: Result, rec: Mapping[str, Any]) -> Optional[str]:
    """Reason of a record; it is derived exactly where the kernel gives none."""
    known = gives_reasons(result) and rec.get("reason_code") is not None
    if rec.get("reason") and not (known and rec["reason"] == "not_specified"):
        derived = bool(rec.get("reason_derived"))
        if not known:
            equal(derived, True, "reason_derived", rec)
    found: Optional[str] = rec.get("reason")
    return found


def rows(result: Result, agg: str = "total") -> List[Dict[str, Any]]:
    """Rows of the table for the whole run (or of all intervals), without the row of all others."""
    return [
        rec for rec in result.of_type("drop_group") if rec["agg"] == agg and not rec.get("other")
    ]


def accounted(result: Result) -> Dict[str, int]:
    """The counts of the summary: matched = shown + hidden + after the last + lost."""
    summary = result.summary
    counts: Dict[str, int] = dict(summary["counts"])
    lost = {cause: summary["lost"].get(cause, 0) for cause in _LOST}
    events = summary.get("events", {})
    same_sum(
        counts["matched"],
        "matched",
        shown=counts["shown"],
        hidden=counts["hidden"],
        after_count=counts["after_count"],
        sampled_out=events.get("sampled_out", 0),
        switched_off=events.get("switched_off", 0),
        **lost,
    )
    equal(sum(summary["reasons"].values()), counts["matched"], "sum of the totals by reason")
    table = [rec for rec in result.of_type("drop_group") if rec["agg"] == "total"]
    if table:
        equal(sum(rec["drop_packets"] for rec in table), counts["shown"], "sum of all rows")
    else:
        equal(len(result.of_type("drop")), counts["shown"], "drop records")
    return counts


def checked(result: Result, shown: int, status: int = 0) -> List[Dict[str, Any]]:
    """The drop records of a run without loss: schema, accounting, exactly so many."""
    check_records(result)
    counts = accounted(result)
    equal(result.status, status, "exit status", result.stderr)
    equal(result.summary["lost"], {}, "lost")
    found = result.of_type("drop")
    equal(
        counts["shown"],
        shown,
        "drops shown",
        [(rec.get("reason"), rec.get("caller"), rec.get("dst_port")) for rec in found][:9],
    )
    return found
