# SPDX-License-Identifier: GPL-2.0-only
"""ntools-vm-latency: a delay shows at the stage where it was put, a loss where it happened."""

from __future__ import annotations

import time
from typing import Any

from lab.expect import all_of, at_least, at_most, equal, only_pair_slow
from lab.latency import check_records, complete, ends, follow, hist, hists
from lab.scenario import scenario
from lab.tool import PATIENT, Tool
from lab.topo import VM_IP, VM_IP6, bridge_topo, ovs_topo


def _netem(topo: Any) -> None:
    topo.netem("phy0", 20)
    with follow(topo) as tool:
        pinged = topo.ping(20, 0.05)
        result = tool.stop()
    equal(pinged.received, 20, "pings")
    at_least(pinged.min_ms, 20, "round trip")
    complete(result, 20)
    only_pair_slow(
        hists(result), ("dev.queue", "dev.xmit"), 20, "rx", 20, whole=[("dev.rx", "total")]
    )


@scenario(requires=("tun", "ovs", "netem"))
def netem_on_the_uplink_of_ovs(lab: Any) -> None:
    with ovs_topo(static_neigh=True) as topo:
        _netem(topo)


@scenario(requires=("tun", "bridge", "netem"))
def netem_on_the_uplink_of_a_bridge(lab: Any) -> None:
    with bridge_topo(static_neigh=True) as topo:
        _netem(topo)


@scenario(requires=("tun", "bridge"))
def slow_reader_of_the_tap(lab: Any) -> None:
    """The machine takes each frame 50 ms late: only the step into its memory is slow."""
    with bridge_topo(static_neigh=True) as topo:
        topo.vm.delay(50)
        with follow(topo) as tool:
            pinged = topo.ping(10, interval_s=0.2)
            result = tool.stop()
    equal(pinged.received, 10, "pings")
    complete(result, 10)
    last = [rec for rec in hists(result, "tx") if rec["labels"]["to"] == "vm.copied"]
    equal(len(last), 1, "pairs that end in guest memory")
    only_pair_slow(
        hists(result),
        (last[0]["labels"]["from"], "vm.copied"),
        50,
        "tx",
        10,
        whole=[("dev.rx", "total")],
    )


@scenario(requires=("tun", "ovs"))
def upcall(lab: Any) -> None:
    """One datagram of a new flow while ovs-vswitchd is stopped for 300 ms."""
    with ovs_topo(static_neigh=True) as topo:
        topo.ovs.one_upcall_per_flow()
        topo.ovs_del_flows()
        with follow(
            topo,
            "--direction",
            "tx",
            "--protocol",
            "udp",
            "--dst-port",
            "9700",
            "--timeout-ms",
            "5000",
        ) as tool:
            waker = topo.ovs.stop_for(0.3)
            time.sleep(0.05)
            sent = topo.udp(port=9700, count=1, wait_s=5)
            waker.join()
            result = tool.stop()
    equal(sent.received, 1, "answers")
    complete(result, 1, ["tx"])
    only_pair_slow(
        hists(result), ("ovs.upq", "ovs.back"), 200, "tx", 1, whole=[("dev.rx", "total")]
    )


def _nft(lab: Any, topo: Any, hook: str, dst: str = VM_IP) -> Any:
    """4 of 20 requests dropped inside the host; both commands say so. Returns the group of drops.

    The reason is given by name, derived where the kernel gives none, and the function is the one
    that frees the packet on that kernel.
    """
    six = ":" in dst
    match = f"icmp{'v6' if six else ''} type echo-request"
    rule = topo.nft_drop_every(5, hook, match)
    drops = Tool(topo.h, "ntools-drop", ["--format", "json", "--dst-ip", dst, *PATIENT])
    with follow(topo) as tool, drops:
        pinged = topo.ping(20, 0.05, dst=dst, wait_s=2)
        time.sleep(1.6)
        result, dropped = tool.stop(), drops.stop()
    equal((pinged.received, rule.counter(), rule.seen()), (16, 4, 20), "answers, dropped, seen")
    to_vm, from_vm = ends(result, "tx"), ends(result, "rx")
    equal((to_vm["started"], to_vm["completed"], to_vm["dropped"]), (20, 16, 4), "tx", to_vm)
    equal((from_vm["started"], from_vm["completed"]), (16, 16), "rx", from_vm)
    equal(result.summary["lost"], {}, "lost")
    check_records(result)
    equal(len(to_vm["by"]), 1, "ways to end", to_vm["by"])
    group = to_vm["by"][0]
    caller = "nf_hook_slow" if lab.kernel < (6, 1) else "nft_do_chain"
    equal((group["end"], group["count"]), ("dropped", 4), "end", group)
    equal((group["reason"], group["caller"]), ("netfilter_drop", caller), "evidence", group)
    equal(bool(group.get("reason_derived")), lab.kernel < (5, 17), "derived", group)
    protocol = "icmpv6" if six else "icmp"
    equal((group["example"]["dst_ip"], group["example"]["protocol"]), (dst, protocol), "flow")
    records = [rec for rec in dropped.of_type("drop") if rec["reason"] == "netfilter_drop"]
    equal(len(records), 4, "drops", dropped.of_type("drop"))
    all_of(records, "drop", caller=caller, dst_ip=dst, protocol=protocol)
    equal(dropped.summary["lost"], {}, "lost by ntools-drop")
    return group


@scenario(requires=("tun", "bridge", "nft", "nft_bridge"))
def nft_drops_in_the_bridge(lab: Any) -> None:
    with bridge_topo(static_neigh=True) as topo:
        group = _nft(lab, topo, "bridge-forward")
    # The hook lies inside the forwarding function.
    inside = "br.fwd" in (group["last_stage"], group["next_stage"])
    equal(inside or group["next_stage"] == "dev.queue", True, "stages", group)


@scenario(requires=("tun", "bridge", "nft", "nft_bridge", "ipv6"))
def nft_drops_in_the_bridge_ipv6(lab: Any) -> None:
    with bridge_topo(static_neigh=True, ipv6=True) as topo:
        _nft(lab, topo, "bridge-forward", VM_IP6)


@scenario(requires=("tun", "ovs", "nft_netdev"))
def nft_drops_in_front_of_ovs(lab: Any) -> None:
    with ovs_topo(static_neigh=True) as topo:
        group = _nft(lab, topo, "ingress:phy0")
    equal((group["last_stage"], group["next_stage"]), ("dev.rx", "ovs.in"), "stages", group)


@scenario(requires=("tun", "bridge", "netem", "vlan"))
def netem_under_a_vlan_device(lab: Any) -> None:
    """The port of the bridge is phy0.100: the delay of phy0 shows behind the VLAN device."""
    with bridge_topo(static_neigh=True, uplink_vlan=100) as topo:
        topo.netem("phy0", 20)
        with follow(topo) as tool:
            topo.ping(10, 0.05)
            result = tool.stop()
    complete(result, 10)
    queues = {
        rec["labels"]["interface"]: rec
        for rec in hists(result, "rx")
        if (rec["labels"]["from"], rec["labels"]["to"]) == ("dev.queue", "dev.xmit")
    }
    equal(sorted(queues), ["phy0", "phy0.100"], "devices passed")
    at_least(queues["phy0"]["min"], 20_000_000, "queue of phy0, ns")
    at_most(queues["phy0.100"]["max"], 10_000_000, "queue of phy0.100, ns")


@scenario(requires=("tun", "bridge"))
def tap_ring_overflows(lab: Any) -> None:
    """The machine does not read: what the tap counts as dropped is dropped at the tap."""
    with bridge_topo(static_neigh=True) as topo:
        topo.h.ip("link set vnet0 txqueuelen 100")
        topo.vm.stall()
        before = topo.link("vnet0")["tx_dropped"]
        with follow(topo, "--direction", "tx", "--timeout-ms", "500") as tool:
            topo.udp(port=9000, count=300, wait_s=0)
            time.sleep(1.2)
            dropped = topo.link("vnet0")["tx_dropped"] - before
            result = tool.stop()
    rec = ends(result, "tx")
    at_least(dropped, 150, "dropped by the tap")
    equal((rec["started"], rec["completed"]), (300, 0), "tx", rec)
    equal(rec["dropped"], dropped, "dropped", rec)
    equal(rec["timed_out"] + rec["open"], 300 - dropped, "still in the ring", rec)
    group = next(row for row in rec["by"] if row["end"] == "dropped")
    equal(group["reason"], "full_ring", "reason", group)
    equal(group["interface"], "vnet0", "interface", group)


@scenario(requires=("tun", "bridge", "tbf"))
def queue_drops(lab: Any) -> None:
    """What tbf on the uplink throws away is what the host's packets lose between queue and wire."""
    with bridge_topo(static_neigh=True) as topo:
        qdisc = topo.tbf("phy0", "500kbit", "2k", "4k")
        with follow(topo, "--direction", "rx", "--timeout-ms", "500") as tool:
            topo.vm.send_udp(port=9000, count=60, size=1000, gap_us=100)
            time.sleep(1.5)
            result = tool.stop()
        drops = qdisc.stats()["drops"]
    rec = ends(result, "rx")
    at_least(drops, 20, "dropped by tbf")
    equal(rec["started"], 60, "rx", rec)
    equal((rec["completed"], rec["dropped"]), (60 - drops, drops), "completed, dropped", rec)
    group = rec["by"][0]
    equal((group["last_stage"], group["next_stage"]), ("dev.queue", "dev.xmit"), "stage", group)
    equal(hist(result, "rx", "dev.queue", "dev.xmit")["count"], 60 - drops, "sent")
