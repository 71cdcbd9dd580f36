# SPDX-License-Identifier: GPL-2.0-only
"""ntools-vm-latency: how a run starts and ends, what it does when it cannot follow."""

from __future__ import annotations

import signal
import time
from typing import Any

from lab.expect import at_least, equal, same_sum
from lab.latency import check_records, complete, ends, follow, hist
from lab.scenario import scenario
from lab.tool import PATIENT, Tool, bpf_leftovers, bpf_snapshot, side_by_side
from lab.topo import E_IP, VM_IP, bridge_topo


def _summary_is_whole(result: Any, count: int, end: str) -> None:
    complete(result, count)
    equal(result.summary["end"], end, "end")
    equal(result.summary["invariant"]["holds"], True, "invariant")
    check_records(result)


@scenario(requires=("tun", "bridge"), timeout_s=150)
def every_way_to_end(lab: Any) -> None:
    """SIGINT, SIGTERM, --duration and --count: the summary is complete each time."""
    with bridge_topo(static_neigh=True) as topo:
        for sig in (signal.SIGINT, signal.SIGTERM):
            with follow(topo) as tool:
                topo.ping(10)
                _summary_is_whole(tool.stop(sig), 10, "signal")
        with follow(topo, "--duration", "4") as tool:
            topo.ping(10)
            _summary_is_whole(tool.wait(), 10, "duration")
        with follow(topo, "--interval", "2", "--count", "2") as tool:
            topo.ping(10)
            result = tool.wait()
        _summary_is_whole(result, 10, "count")
        equal(len(result.of_type("interval")), 2, "intervals")
        with follow(topo, "--details", "--force", "--count", "6") as tool:
            topo.ping(10)
            result = tool.wait()
        equal(result.summary["end"], "count", "end")
        at_least(len(result.of_type("packet")), 6, "packets")


@scenario(requires=("tun", "bridge"))
def intervals_add_up(lab: Any) -> None:
    """The deltas of all intervals together, with what came after the last, are the total."""
    with bridge_topo(static_neigh=True) as topo:
        with follow(topo, "--interval", "1") as tool:
            topo.ping(40, interval_s=0.1)
            tool.wait_for(lambda recs: len([r for r in recs if r["type"] == "interval"]) >= 5, 60)
            result = tool.stop()
    complete(result, 40)
    deltas = [rec for rec in result.of_type("hist") if rec["agg"] == "delta"]
    total = hist(result, "tx", "dev.rx", "total")
    same = [rec for rec in deltas if rec["labels"] == total["labels"]]
    at_least(len(same), 2, "intervals with packets")
    equal(sum(rec["count"] for rec in same), 40, "count")
    equal(sum(rec["sum"] for rec in same), total["sum"], "sum")
    equal(min(rec["min"] for rec in same), total["min"], "min")
    equal(max(rec["max"] for rec in same), total["max"], "max")
    check_records(result)


@scenario(requires=("tun", "bridge"))
def details(lab: Any) -> None:
    """One record per packet, its stages in the order of time; the threshold is kept."""
    with bridge_topo(static_neigh=True) as topo:
        topo.vm.delay(20)
        with (
            side_by_side(
                follow(topo, "--details", "--force"),
                follow(topo, "--details", "--latency-ms", "15"),
            ) as (everything, slow),
        ):
            topo.ping(10, interval_s=0.1)
            results = [everything.stop(), slow.stop()]
    complete(results[0], 10)
    packets = results[0].of_type("packet")
    equal(len(packets), 20, "packets")
    for rec in packets:
        times = [hop["ts_ns"] for hop in rec["stages"]]
        equal(times, sorted(times), "order", rec)
        equal(rec["total_ns"], times[-1] - times[0], "total", rec)
        equal(rec["stages"][0]["stage"], "dev.rx", "entry", rec)
        last = "vm.copied" if rec["direction"] == "tx" else "dev.xmit"
        equal((rec["stages"][-1]["stage"], rec["end"]), (last, "completed"), "end", rec)
        equal({rec["src_ip"], rec["dst_ip"]}, {VM_IP, E_IP}, "addresses", rec)
    equal(
        sorted(rec["icmp_seq"] for rec in packets if rec["direction"] == "tx"),
        list(range(1, 11)),
        "sequence numbers",
    )
    slow_ones = results[1].of_type("packet")
    equal([rec["direction"] for rec in slow_ones], ["tx"] * 10, "slow packets")
    for result in results:
        check_records(result)


@scenario(requires=("tun", "bridge"))
def filters(lab: Any) -> None:
    """A filter takes its packets in both directions, and no other; --explain counts the others."""
    with bridge_topo(static_neigh=True) as topo:
        flow = ("--protocol", "udp", "--dst-port", "9701", "--bidir")
        with (
            side_by_side(
                follow(topo, *flow, "--explain"),
                follow(topo, "--vm-ip", VM_IP),
                follow(topo, "--src-ip", "10.9.0.77"),
            ) as (one, all_of_vm, none),
        ):
            topo.ping(5)
            topo.udp(port=9701, count=7, gap_s=0.01, wait_s=3)
            topo.udp(port=9702, count=3, gap_s=0.01, wait_s=3)
            results = [tool.stop() for tool in (one, all_of_vm, none)]
    complete(results[0], 7)
    complete(results[1], 15)
    complete(results[2], 0)
    explain = results[0].summary["explain"]
    equal(explain.get("filter_protocol"), 10, "rejected: protocol", explain)
    equal(explain.get("filter_port"), 6, "rejected: port", explain)
    at_least(explain.get("device", 0), 15, "rejected: device", explain)


@scenario(requires=("tun", "bridge"), timeout_s=150)
def flood_into_the_smallest_channel(lab: Any) -> None:
    """Packet records nobody reads: completed = shown + lost, by cause; --strict ends with 4."""
    with bridge_topo(static_neigh=True) as topo:
        with follow(
            topo,
            "--details",
            "--force",
            "--max-events",
            "0",
            "--direction",
            "tx",
            "--ring-size",
            "4K",
            "--strict",
            "--duration",
            "60",
        ) as tool:
            tool.send_signal(signal.SIGSTOP)
            topo.udp(port=9000, count=3000, gap_s=0.0005, wait_s=5)
            tool.send_signal(signal.SIGCONT)
            result = tool.stop()
    rec = ends(result, "tx")
    lost = result.summary["lost"]
    shown = [one for one in result.of_type("packet") if one["end"] == "completed"]
    cause = "perf_lost" if "perf_lost" in lost else "ring_full"
    at_least(lost.get(cause, 0), 1, f"lost: {cause}", lost)
    same_sum(rec["completed"], "completed", shown=len(shown), lost=lost[cause])
    equal(hist(result, "tx", "dev.rx", "total")["count"], rec["completed"], "histogram")
    equal(result.status, 4, "exit status", result.stderr)


@scenario(requires=("tun", "bridge"))
def no_room_for_flights(lab: Any) -> None:
    """More packets under way than room for them: counted, and the run says so."""
    with bridge_topo(static_neigh=True) as topo:
        topo.vm.stall()
        with follow(
            topo, "--direction", "tx", "--max-flights", "16", "--timeout-ms", "60000", "--strict"
        ) as tool:
            topo.udp(port=9000, count=100, wait_s=0)
            time.sleep(0.3)
            result = tool.stop()
    rec = ends(result, "tx")
    same_sum(100, "sent", followed=rec["started"], lost=result.summary["lost"]["map_full"])
    at_least(result.summary["lost"]["map_full"], 50, "lost")
    equal(rec["started"], rec["open"], "open")
    equal(result.status, 4, "exit status", result.stderr)


@scenario(requires=("tun", "bridge"), timeout_s=240)
def every_fallback(lab: Any) -> None:
    """The same counts when mechanisms are taken away one by one."""
    ways = ("fentry", "fentry,tp_btf", "tp_btf", "batch", "ringbuf", "ringbuf,batch,tp_btf,fentry")
    with bridge_topo(static_neigh=True) as topo:
        for refuse in ways:
            with follow(topo, "--details", "--force", env={"NTOOLS_REFUSE": refuse}) as tool:
                topo.ping(10)
                result = tool.stop()
            complete(result, 10)
            equal(len(result.of_type("packet")), 20, f"packets without {refuse}")
            used = {point["attach"] for point in result.header["points"]}
            equal(used & set(refuse.split(",")), set(), "mechanisms used")


@scenario(requires=("tun", "bridge"))
def kill_leaves_nothing(lab: Any) -> None:
    with bridge_topo(static_neigh=True) as topo:
        before = bpf_snapshot()
        with follow(topo) as tool:
            topo.ping(5)
            at_least(len(bpf_leftovers(before, settle_s=0).progs), 2, "programs running")
            tool.kill()
        equal(
            bpf_leftovers(before, settle_s=20).counts(),
            {"progs": 0, "maps": 0, "links": 0},
            "left behind",
        )


@scenario(requires=("tun", "bridge"), timeout_s=120)
def same_ifindex_elsewhere(lab: Any) -> None:
    """A device with the index of vnet0 in another namespace is not vnet0."""
    with bridge_topo(static_neigh=True) as topo:
        index = topo.h.json(["ip", "-j", "link", "show", "dev", "vnet0"])[0]["ifindex"]
        there = {link["ifindex"]: link["ifname"] for link in topo.e.json(["ip", "-j", "link"])}
        if index not in there:
            topo.e.ip(
                f"link add twin0 index {index} type veth peer name twin1 index {index + 50}",
                "link set twin0 up",
                "link set twin1 up",
                "addr add 10.8.0.1/24 dev twin0",
            )
        lab.log(f"index {index} in the other namespace:", there.get(index, "twin0"))
        with follow(topo) as tool:
            if index not in there:  # received by the twin: packets from "the VM", were it vnet0
                for _ in range(5):
                    topo.e.run(
                        ["ping", "-b", "-c", "1", "-W", "1", "-I", "twin1", "10.8.0.255"],
                        check=False,
                    )
            topo.ping(7)
            result = tool.stop()
    complete(result, 7)


@scenario(requires=("tun", "bridge"))
def text_for_people(lab: Any) -> None:
    """80 columns, the invariant, and nothing but printable characters."""
    with bridge_topo(static_neigh=True) as topo:
        with Tool(
            topo.h, "ntools-vm-latency", ["--vm-interface", "vnet0", "--histogram", *PATIENT]
        ) as tool:
            topo.ping(10)
            result = tool.stop()
    too_wide = [line for line in result.text.splitlines() if len(line) > 80]
    equal(too_wide, [], "lines over 80 columns")
    equal("all packets accounted for: started 20, completed 20" in result.text, True, result.text)
