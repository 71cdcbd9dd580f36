# SPDX-License-Identifier: GPL-2.0-only
"""ntools-icmp-path: which of four stages an echo did not reach, whoever dropped it, and when."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, Tuple

from lab.echo import echoes, stats, watch
from lab.expect import all_of, at_least, at_most, between, equal
from lab.latency import check_records
from lab.netns import Namespace
from lab.replay import replay, replayed_equal
from lab.scenario import scenario
from lab.tool import PATIENT, Tool
from lab.topo import E_IP, E_IP6, VM_IP, VM_IP6, Topo, bridge_topo, ovs_topo
from lab.traffic import ping

_MASQUERADE = """\
table ip nat {
  chain out {
    type nat hook postrouting priority 100;
    oifname "hb" masquerade
  }
}
"""
_ORDER = ("req_rx", "req_tx", "rep_rx", "rep_tx")


def _complete(topo: Topo, rx: str = "phy0", tx: str = "vnet0", dst: str = VM_IP) -> Any:
    """23 pings from E to the machine: each seen at all four stages, in order, in ping's time."""
    src = E_IP6 if ":" in dst else E_IP
    with watch(topo, src, dst, rx, tx) as tool:
        pinged = topo.ping(23, 0.05, dst=dst)
        result = tool.stop()
    equal(pinged.received, 23, "answers")
    stats(result, complete=23)
    check_records(result)
    found = echoes(result, "complete")
    equal(sorted(rec["icmp_seq"] for rec in found), list(range(1, 24)), "sequence numbers")
    all_of(found, "echo", src_ip=src, dst_ip=dst)
    for rec in found:
        times = [rec["stages"][name]["ts_ns"] for name in _ORDER]
        equal(times, sorted(times), "order of stages", rec)
        parts = [rec[f"{name}_ns"] for name in ("req_internal", "external", "rep_internal")]
        equal(sum(parts), rec["total_ns"], "sum of the parts", rec)
        at_most(rec["total_ns"] / 1e6, pinged.max_ms, "total, ms", rec)
    return found


def _devices(found: Any) -> Tuple[str, ...]:
    """The devices of all echoes, by stage; the same for each."""
    rows = {tuple(rec["stages"][name]["interface"] for name in _ORDER) for rec in found}
    equal(len(rows), 1, "ways", rows)
    return rows.pop()


@scenario(requires=("tun", "bridge"))
def complete_over_a_bridge(lab: Any) -> None:
    with bridge_topo(static_neigh=True) as topo:
        found = _complete(topo)
    equal(_devices(found), ("phy0", "vnet0", "vnet0", "phy0"), "devices")
    equal(any(rec.get("nat") for rec in found), False, "translated")


@scenario(requires=("tun", "ovs"))
def complete_over_ovs(lab: Any) -> None:
    """The first request of a flow leaves in a new buffer: it was in user space."""
    with ovs_topo(static_neigh=True) as topo:
        topo.ovs_del_flows()
        _complete(topo)


@scenario(requires=("tun", "bridge", "ipv6"))
def complete_ipv6(lab: Any) -> None:
    with bridge_topo(static_neigh=True, ipv6=True) as topo:
        _complete(topo, dst=VM_IP6)


@scenario(requires=("tun", "bridge", "bond", "vlan"))
def bond_and_vlan_device(lab: Any) -> None:
    """Named is the VLAN device on the bond; packets are seen at the slave."""
    with bridge_topo(static_neigh=True, bond=True, uplink_vlan=100) as topo:
        found = _complete(topo, rx=topo.uplink)
    equal(_devices(found), ("phy0", "vnet0", "vnet0", "phy0"), "devices")


def _dropped(lab: Any, kind: str, status: str) -> None:
    with bridge_topo(static_neigh=True) as topo:
        rule = topo.nft_drop_every(5, "bridge-forward", f"icmp type {kind}")
        with watch(topo, E_IP, VM_IP, "phy0", "vnet0") as tool:
            pinged = topo.ping(23, 0.05, wait_s=1)
            time.sleep(1.5)
            result = tool.stop()
        equal((rule.counter(), pinged.received), (4, 19), "dropped by the rule, answers")
    stats(result, complete=19, **{status: 4})
    check_records(result)
    for rec in echoes(result, status):
        evidence = rec["evidence"]
        equal(evidence["reason"], "netfilter_drop", "reason", rec)
        equal(evidence["caller"], "nf_hook_slow" if lab.kernel < (6, 1) else "nft_do_chain", "by")
        last = max(stage["ts_ns"] for stage in rec["stages"].values())
        at_least(evidence["ts_ns"], last, "time of the drop", rec)


@scenario(requires=("tun", "bridge", "nft", "nft_bridge"))
def requests_dropped_inside(lab: Any) -> None:
    _dropped(lab, "echo-request", "internal_drop_req")


@scenario(requires=("tun", "bridge", "nft", "nft_bridge"))
def replies_dropped_inside(lab: Any) -> None:
    _dropped(lab, "echo-reply", "internal_drop_rep")


@scenario(requires=("tun", "bridge", "nft"))
def dropped_outside(lab: Any) -> None:
    """The machine pings; E throws every fifth request away."""
    with bridge_topo(static_neigh=True) as topo:
        rule = topo.nft_drop_every(5, "input", "icmp type echo-request", ns=topo.e)
        with watch(topo, VM_IP, E_IP, "vnet0", "phy0") as tool:
            topo.vm.ping(E_IP, 20, gap_us=50000)
            time.sleep(1 + 1.5)
            result = tool.stop()
        equal((rule.seen(), rule.counter()), (20, 4), "requests and drops at E")
    stats(result, complete=16, external_drop=4)
    all_of(echoes(result, "external_drop"), "echo", evidence=None)


@scenario(requires=("tun", "bridge", "netem"))
def only_the_slow_part_is_slow(lab: Any) -> None:
    """20 ms on the way out to E are in the reply inside this host, and nowhere else."""
    with bridge_topo(static_neigh=True) as topo:
        topo.netem("phy0", 20)
        with watch(topo, E_IP, VM_IP, "phy0", "vnet0") as tool:
            topo.ping(10, 0.1)
            result = tool.stop()
    stats(result, complete=10)
    hists = {rec["labels"]["part"]: rec for rec in result.of_type("hist") if rec["agg"] == "total"}
    at_least(hists["rep_internal"]["min"], 20_000_000, "reply inside, ns")
    for part in ("req_internal", "external"):
        at_most(hists[part]["p"]["50"][0], 10_000_000, f"{part}, ns")


@scenario(requires=("conntrack", "nft_nat"))
def translated(lab: Any) -> None:
    """H routes and masquerades: the reply comes to another address than the request came from."""
    a_ip, b_ip, out_ip = "192.168.70.2", "192.168.80.2", "192.168.80.1"
    with Namespace("a") as a, Namespace("h") as h, Namespace("b") as b:
        for ns, dev, peer, own, far in ((a, "ea", "ha", a_ip, "70"), (b, "eb", "hb", b_ip, "80")):
            h.ip(f"link add {peer} type veth peer name {dev} netns {ns.name}",
                 f"addr add 192.168.{far}.1/24 dev {peer}", f"link set {peer} up")  # fmt: skip
            ns.ip(f"addr add {own}/24 dev {dev}", f"link set {dev} up",
                  f"route add default via 192.168.{far}.1")  # fmt: skip
        h.sysctl("net.ipv4.ip_forward", 1)
        h.run(["nft", "-f", "-"], _MASQUERADE)
        ping(a, b_ip, 1, 0.1, 56, 5)  # neighbours are known
        names = ["--src-ip", a_ip, "--dst-ip", b_ip, "--rx-iface", "ha", "--tx-iface", "hb"]
        with Tool(h, "ntools-icmp-path", [*names, "--format", "json", "-v", *PATIENT]) as tool:
            pinged = ping(a, b_ip, 23, 0.05, 56, 5)
            result = tool.stop()
    equal(pinged.received, 23, "answers")
    stats(result, complete=23)
    check_records(result)
    for rec in echoes(result, "complete"):
        equal((rec["src_ip"], rec["nat"]["src_ip"]), (a_ip, out_ip), "before and after", rec)
        equal(rec["nat"]["dst_ip"], b_ip, "to whom", rec)


@scenario(requires=("tun", "bridge"))
def sides_the_wrong_way_round(lab: Any) -> None:
    with bridge_topo(static_neigh=True) as topo:
        with watch(topo, E_IP, VM_IP, "vnet0", "phy0") as tool:
            topo.ping(23, 0.05)
            result = tool.stop()
    stats(result, unpaired=23)


@scenario(requires=("tun", "bridge"))
def the_host_pings_itself(lab: Any) -> None:
    """From the bridge device, whose other end is the host's own stack, to the machine."""
    with bridge_topo(static_neigh=True) as topo:
        with watch(topo, "10.9.0.254", VM_IP, "br0", "vnet0") as tool:
            pinged = topo.ping(10, 0.05, ns=topo.h)
            result = tool.stop()
    equal(pinged.received, 10, "answers")
    stats(result, complete=10)


@scenario(requires=("tun", "bridge", "nft", "nft_bridge"))
def the_end_of_the_run_is_no_verdict(lab: Any) -> None:
    with bridge_topo(static_neigh=True) as topo:
        topo.nft_drop_every(1, "bridge-forward", "icmp type echo-request")
        with watch(topo, E_IP, VM_IP, "phy0", "vnet0", "--timeout-ms", "5000") as tool:
            topo.ping(1, wait_s=0.2)
            result = tool.stop()
    stats(result, timeout=1)


@scenario(requires=("tun", "bridge", "nft", "nft_bridge"))
def the_recording_says_the_same(lab: Any) -> None:
    with bridge_topo(static_neigh=True) as topo, tempfile.TemporaryDirectory() as home:
        path = Path(home) / "run"
        topo.nft_drop_every(5, "bridge-forward", "icmp type echo-request")
        kept = ("--record", str(path), "--interval", "1")
        with watch(topo, E_IP, VM_IP, "phy0", "vnet0", *kept) as tool:
            topo.ping(10, 0.05, wait_s=1)
            time.sleep(1.5)
            live = tool.stop()
        stats(live, complete=8, internal_drop_req=2)
        replayed_equal(live, replay("ntools-icmp-path", path, "-v"))


@scenario(requires=("tun", "bridge"))
def the_budget_makes_no_verdict(lab: Any) -> None:
    """Records above the budget are not shown: then nobody is said to have dropped anything."""
    with bridge_topo(static_neigh=True) as topo:
        with watch(topo, E_IP, VM_IP, "phy0", "vnet0", "--max-events", "20") as tool:
            pinged = topo.ping(200, 0.005)
            time.sleep(2.5)
            result = tool.stop()
    equal(pinged.received, 200, "answers")
    (rec,) = [one for one in result.of_type("path_stats") if one["agg"] == "total"]
    at_least(result.summary["lost"]["governor_dropped"], 1, "above the budget")
    at_least(rec["timeout"], 1, "not to be told", rec)
    equal(rec["complete"] + rec["timeout"], 200, "echoes", rec)
    for name in ("external_drop", "internal_drop_req", "internal_drop_rep", "unpaired"):
        equal(rec[name], 0, name, rec)


@scenario(requires=("tun", "bridge"))
def the_sample_has_both_halves(lab: Any) -> None:
    """--sample 1/4: replies are chosen together with their requests, and all are counted."""
    with bridge_topo(static_neigh=True) as topo:
        with watch(topo, E_IP, VM_IP, "phy0", "vnet0", "--sample", "1/4") as tool:
            pinged = topo.ping(200, 0.005)
            result = tool.stop()
    equal(pinged.received, 200, "answers")
    (rec,) = [one for one in result.of_type("path_stats") if one["agg"] == "total"]
    between(rec["complete"], 25, 80, "of 200, chosen twice: of 16 one")
    equal(rec["complete"] + rec["timeout"], 200, "echoes", rec)
    equal(len(echoes(result, "complete")), rec["complete"], "shown")
    equal(result.summary["lost"], {}, "sampling is no loss")
    for name in ("external_drop", "internal_drop_req", "internal_drop_rep", "unpaired"):
        equal(rec[name], 0, name, rec)


@scenario(requires=("tun", "bridge"))
def one_ping_of_two(lab: Any) -> None:
    """--icmp-id takes the echoes of one process."""
    with bridge_topo(static_neigh=True) as topo:
        with watch(topo, E_IP, VM_IP, "phy0", "vnet0") as tool:
            topo.ping(3)
            first = tool.stop()
        one = first.of_type("echo")[0]["icmp_id"]
        wrong = str((one + 7) % 65536)
        with watch(topo, E_IP, VM_IP, "phy0", "vnet0", "--icmp-id", wrong) as tool:
            topo.ping(3)
            result = tool.stop()
    stats(first, complete=3)
    seen = {rec["icmp_id"] for rec in result.of_type("echo")}
    equal(seen <= {int(wrong)}, True, "identifiers", seen)
