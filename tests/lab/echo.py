# SPDX-License-Identifier: GPL-2.0-only
"""Runs ntools-icmp-path and reads what it says."""

from __future__ import annotations

from typing import Any, Dict, List

from lab.expect import equal
from lab.tool import PATIENT, Result, Tool
from lab.topo import Topo

__all__ = ["STATUSES", "echoes", "stats", "watch"]

STATUSES = ("complete", "internal_drop_req", "external_drop", "internal_drop_rep", "timeout")


def watch(topo: Topo, src: str, dst: str, rx: str, tx: str, *args: str) -> Tool:
    """The command in H, with JSON records, complete echoes too."""
    ends = ["--src-ip", src, "--dst-ip", dst, "--rx-iface", rx, "--tx-iface", tx]
    form = ["--format", "json", "-v", "--exit-code"]
    return Tool(topo.h, "ntools-icmp-path", [*ends, *form, *PATIENT, *args])


def echoes(result: Result, status: str) -> List[Dict[str, Any]]:
    """Records with one status."""
    return [rec for rec in result.of_type("echo") if rec["status"] == status]


def stats(result: Result, **expected: int) -> Dict[str, Any]:
    """Counts of the whole run: those named, no others; as many records; they add up."""
    (rec,) = [one for one in result.of_type("path_stats") if one["agg"] == "total"]
    wanted = {name: expected.get(name, 0) for name in (*STATUSES, "unpaired", "duplicate")}
    equal({name: rec[name] for name in wanted}, wanted, "counts", result.of_type("echo")[-3:])
    equal(rec["echoes"], sum(rec[name] for name in STATUSES), "sum of the ends", rec)
    for status in STATUSES:
        equal(len(echoes(result, status)), rec[status], f"{status} records")
    equal(result.summary["lost"], {}, "lost")
    lost = {name for name in wanted if "_drop" in name and wanted[name]}
    equal(result.status, 10 if lost else 0, "exit status", result.stderr)
    return rec
