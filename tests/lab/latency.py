# SPDX-License-Identifier: GPL-2.0-only
"""Runs ntools-vm-latency and reads what it says."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

from lab.expect import all_of, equal
from lab.tool import PATIENT, Result, Tool
from lab.topo import Topo

__all__ = ["ENDS", "check_records", "complete", "ends", "follow", "hist", "hists", "stages_seen"]

ENDS = ("completed", "dropped", "elsewhere", "timed_out", "stale", "lost_track", "merged", "open")
#: Records of one type that are validated: an emulated machine takes 5 ms for each.
_CHECKED = 300


def follow(topo: Topo, *args: str, **options: Any) -> Tool:
    """The command on vnet0 of the topology, with JSON records."""
    return Tool(
        topo.h,
        "ntools-vm-latency",
        ["--vm-interface", "vnet0", "--format", "json", *PATIENT, *args],
        **options,
    )


def hists(result: Result, direction: Optional[str] = None) -> List[Dict[str, Any]]:
    """Histograms of the whole run."""
    return [
        rec
        for rec in result.of_type("hist")
        if rec["agg"] == "total" and direction in (None, rec["labels"]["direction"])
    ]


def hist(result: Result, direction: str, first: str, last: str) -> Dict[str, Any]:
    """The one histogram of a pair."""
    found = [
        rec
        for rec in hists(result, direction)
        if (rec["labels"]["from"], rec["labels"]["to"]) == (first, last)
    ]
    equal(
        len(found),
        1,
        f"histograms of {direction} {first} -> {last}",
        [rec["labels"] for rec in hists(result, direction)],
    )
    return found[0]


def ends(result: Result, direction: str) -> Dict[str, Any]:
    """How the packets of the whole run ended; checks that they add up."""
    found = [
        rec
        for rec in result.of_type("ends")
        if rec["agg"] == "total" and rec["direction"] == direction
    ]
    equal(len(found), 1, f"ends records of {direction}")
    rec = found[0]
    equal(rec["started"], sum(rec[name] for name in ENDS), f"{direction}: started = sum of ends")
    all_of(found, "ends", holds=True)
    return rec


def complete(result: Result, count: int, directions: Sequence[str] = ("rx", "tx")) -> None:
    """Per direction exactly this many packets started and all of them completed; nothing lost."""
    for direction in directions:
        rec = ends(result, direction)
        equal(
            (rec["started"], rec["completed"]),
            (count, count),
            f"{direction}: started, completed",
            rec["by"],
        )
    equal(result.summary["lost"], {}, "lost")
    equal(result.status, 0, "exit status", result.stderr)


def stages_seen(result: Result) -> List[str]:
    """Stages that are attached."""
    return [point["stage"] for point in result.header["points"] if point["attach"]]


def check_records(result: Result) -> None:
    """Records fit their schema, fields that are not described included; first and last fit.

    Of thousands of one type, as after a flood, :data:`_CHECKED` are looked at, evenly spread.
    """
    from jsonschema import Draft7Validator

    from ntools.output import schema

    for kind in {rec["type"] for rec in result.records}:
        validator = Draft7Validator(schema.load(kind, closed=True))
        found = result.of_type(kind)
        for rec in found[:: -(-len(found) // _CHECKED)]:
            problems = [error.message for error in validator.iter_errors(rec)]
            equal(problems, [], f"schema of {kind}", rec)
    equal(result.records[0]["type"], "header", "first record")
    equal(result.records[-1]["type"], "summary", "last record")
    equal([rec["seq"] for rec in result.records[1:]], list(range(1, len(result.records))), "seq")
