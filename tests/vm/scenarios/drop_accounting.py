# SPDX-License-Identifier: GPL-2.0-only
"""ntools-drop: nothing vanishes: matched is what was shown, hidden and lost, in every mode."""

from __future__ import annotations

import os
import signal
from typing import Any, Mapping

from lab.drops import accounted, checked, rows, watch
from lab.expect import at_least, equal
from lab.latency import check_records
from lab.netns import Namespace
from lab.scenario import scenario
from lab.tool import side_by_side
from lab.traffic import udp

_LO = "127.0.0.1"
_MANY = 4000


def _flood(env: Mapping[str, str]) -> None:
    """A stopped reader and the smallest channel: the surplus is counted, by cause."""
    with Namespace("h") as ns:
        with watch(
            ns,
            "--dst-port",
            "7777",
            "--ring-size",
            "4K",
            "--strict",
            "--rate-limit",
            "1000000000",
            env=env,
        ) as tool:
            tool.send_signal(signal.SIGSTOP)
            sent = udp(ns, _LO, 7777, _MANY, wait_s=0.2).sent
            tool.send_signal(signal.SIGCONT)
            result = tool.stop()
    check_records(result)
    counts = accounted(result)
    equal(
        counts["matched"] + result.summary["lost"].get("prog_missed", 0),
        sent,
        "matched and missed by recursion",
    )
    at_least(
        result.summary["lost"].get("ring_full", 0) + result.summary["lost"].get("perf_lost", 0),
        1,
        "events lost",
    )
    at_least(counts["shown"], 100, "events shown")
    equal(result.status, 4, "exit status under --strict", result.stderr)


@scenario()
def flood(lab: Any) -> None:
    _flood({})


@scenario()
def flood_without_ring_buffer(lab: Any) -> None:
    _flood({"NTOOLS_REFUSE": "ringbuf"})


@scenario()
def flood_on_the_raw_tracepoint(lab: Any) -> None:
    _flood({"NTOOLS_REFUSE": "tp_btf"})


@scenario()
def rate_limit(lab: Any) -> None:
    """At most so many per second, and a burst of a second's worth; the others are in the totals."""
    with Namespace("h") as ns:
        with watch(ns, "--dst-port", "7777", "--rate-limit", "100", "--no-stack-trace") as tool:
            sent = udp(ns, _LO, 7777, 1000, wait_s=0.2).sent
            result = tool.stop()
    check_records(result)
    counts = accounted(result)
    equal(counts["matched"], sent, "matched")
    at_least(result.summary["lost"]["governor_dropped"], 1, "events above the limit")
    at_least(counts["shown"], 100 // os.cpu_count(), "events shown: the burst of one CPU")
    equal(result.status, 0, "exit status without --strict")
    equal([rec for rec in result.of_type("drop") if "stack" in rec], [], "stacks")


@scenario()
def table(lab: Any) -> None:
    """300 datagrams of 30 flows: rows, intervals and totals agree, however few rows are shown."""
    with Namespace("h") as ns:
        with watch(
            ns, "--dst-port", "7777", "--group-by", "all", "--top", "7", "--interval", "0.5"
        ) as tool:
            sent = udp(ns, _LO, 7777, 300, src_port=20000, new_port_each=True, wait_s=0.2).sent
            tool.wait_for(
                lambda recs: (
                    sum(rec["drop_packets"] for rec in recs if rec["type"] == "drop_group") >= sent
                )
            )
            result = tool.stop()
    checked(result, sent)
    found = rows(result)
    equal(len(found), 7, "rows shown")
    stacks = {rec["id"]: rec for rec in result.of_type("stack")}
    for rec in found:
        equal(rec["interface"], "lo", "interface", rec)
        equal(stacks[rec["stack_id"]]["frames"][0]["function"], rec["caller"], "first frame")
    parts = [rec for rec in result.of_type("drop_group") if rec["agg"] == "delta"]
    equal(sum(rec["drop_packets"] for rec in parts), sent, "sum of the intervals")
    equal(sum(rec["drop_bytes"] for rec in parts), sent * 72, "bytes, headers of UDP included")


@scenario()
def full_table(lab: Any) -> None:
    """More flows than rows: those without room are counted, the totals stay exact."""
    with Namespace("h") as ns:
        with watch(
            ns, "--dst-port", "7777", "--group-by", "fivetuple", "--max-entries", "256", "--strict"
        ) as tool:
            sent = udp(ns, _LO, 7777, 400, src_port=20000, new_port_each=True, wait_s=0.2).sent
            result = tool.stop()
    check_records(result)
    counts = accounted(result)
    equal(counts["matched"], sent, "matched")
    at_least(result.summary["lost"].get("group_full", 0), 1, "drops without a row")
    equal(result.status, 4, "exit status under --strict", result.stderr)


@scenario()
def same_index_in_two_namespaces(lab: Any) -> None:
    """lo is device 1 everywhere: --netns and --interface keep the namespaces apart."""
    with Namespace("a") as a, Namespace("b") as b:
        with (
            side_by_side(
                watch(a),
                watch(b, "--interface", "lo"),
                watch(a, "--interface", f"{b.name}/lo"),
            ) as (in_a, lo_in_b, nothing),
        ):
            udp(a, _LO, 7777, 7, wait_s=0.2)
            udp(b, _LO, 7777, 5, wait_s=0.2)
            results = [tool.stop() for tool in (in_a, lo_in_b, nothing)]
    for result, count, ns in zip(results, (7, 5, 0), (a, b, a)):
        for rec in checked(result, count):
            equal((rec["ifindex"], rec["netns_inum"]), (1, _inode(result, ns)), "device", rec)


def _inode(result: Any, ns: Namespace) -> int:
    """The namespace is gone by now; the header kept its number."""
    return int(result.header["filters"]["netns_inum"])
