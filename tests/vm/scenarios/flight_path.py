# SPDX-License-Identifier: GPL-2.0-only
"""ntools-vm-latency: every packet is seen at every stage it passes, and at no other."""

from __future__ import annotations

from typing import Any, Sequence

from lab.expect import equal
from lab.latency import check_records, complete, follow, hist, hists, stages_seen
from lab.scenario import scenario
from lab.tool import side_by_side
from lab.topo import VM_IP, VM_IP6, bridge_topo, ovs_topo

_OVS = ("ovs.in", "ovs.lookup", "ovs.exec", "ovs.send")


def _chain(stages: Sequence[str], seen: Sequence[str]) -> Any:
    """Pairs of stages a packet passes, given those that can be seen here."""
    here = [stage for stage in stages if stage in seen]
    return list(zip(here, here[1:]))


def _check_pairs(result: Any, direction: str, stages: Sequence[str], count: int) -> None:
    """Each pair of the way has exactly so many samples, and there is no other pair."""
    wanted = _chain(stages, stages_seen(result))
    for first, last in wanted:
        equal(hist(result, direction, first, last)["count"], count, f"{direction} {first} {last}")
    equal(hist(result, direction, stages[0], "total")["count"], count, f"{direction} total")
    found = {(rec["labels"]["from"], rec["labels"]["to"]) for rec in hists(result, direction)}
    equal(found - {*wanted, (stages[0], "total"), ("vm.kick", "dev.rx")}, set(), "other pairs")


def _pings(
    topo: Any, count: int, middle: Sequence[str], vhost: bool = False, dst: str = VM_IP
) -> Any:
    """Pings from outside to the machine; the fake machine's own counter is the witness."""
    before = topo.vm.counters()
    with follow(topo) as tool:
        pinged = topo.ping(count, 0.01, dst=dst)
        result = tool.stop()
    equal((pinged.sent, pinged.received), (count, count), "pings")
    echoes = "icmp6_echo" if ":" in dst else "icmp_echo"
    equal(topo.vm.counters()[echoes] - before[echoes], count, "echoes the machine saw")
    complete(result, count)
    taken = ["vm.take"] if vhost else []
    _check_pairs(result, "rx", ["dev.rx", *middle, "dev.queue", "dev.xmit"], count)
    _check_pairs(
        result,
        "tx",
        ["dev.rx", *middle, "dev.queue", "dev.xmit", "vm.xmit", *taken, "vm.copied"],
        count,
    )
    check_records(result)
    return result


@scenario(requires=("tun", "bridge"))
def pings_over_a_bridge(lab: Any) -> None:
    with bridge_topo(static_neigh=True) as topo:
        result = _pings(topo, 100, ["br.fwd"])
    roles = {device["interface"]: device["role"] for device in result.header["devices"]}
    equal(roles, {"vnet0": "vnet", "br0": "int", "phy0": "other"}, "devices")


@scenario(requires=("tun", "ovs"))
def pings_over_ovs(lab: Any) -> None:
    with ovs_topo(static_neigh=True) as topo:
        _pings(topo, 100, _OVS)


@scenario(requires=("tun", "bridge", "vhost_net"))
def pings_over_a_bridge_with_vhost(lab: Any) -> None:
    with bridge_topo(static_neigh=True, vm_options={"vhost": True}) as topo:
        result = _pings(topo, 100, ["br.fwd"], vhost=True)
    equal(hist(result, "rx", "vm.kick", "dev.rx")["count"], 100, "vhost rounds")


@scenario(requires=("tun", "ovs", "vhost_net"))
def pings_over_ovs_with_vhost(lab: Any) -> None:
    with ovs_topo(static_neigh=True, vm_options={"vhost": True}) as topo:
        _pings(topo, 100, _OVS, vhost=True)


@scenario(requires=("tun", "bridge"))
def pings_with_arp(lab: Any) -> None:
    """Nothing is known beforehand: ARP is part of the count, and explains the difference."""
    with bridge_topo() as topo:
        topo.e.ip("neigh flush dev wire0")
        before = topo.vm.counters()
        with follow(topo) as tool:
            pinged = topo.ping(20)
            result = tool.stop()
        arp = topo.vm.counters()["arp"] - before["arp"]
    equal(pinged.received, 20, "pings")
    assert arp >= 1, arp
    # The request is broadcast: not followed to the machine. The answer comes from it.
    complete(result, 20 + arp, ["rx"])
    complete(result, 20, ["tx"])


@scenario(requires=("tun", "bridge", "ipv6"))
def pings_over_a_bridge_ipv6(lab: Any) -> None:
    with bridge_topo(static_neigh=True, ipv6=True) as topo:
        _pings(topo, 30, ["br.fwd"], dst=VM_IP6)


@scenario(requires=("tun", "ovs", "ipv6"))
def pings_over_ovs_ipv6(lab: Any) -> None:
    with ovs_topo(static_neigh=True, ipv6=True) as topo:
        _pings(topo, 30, _OVS, dst=VM_IP6)


@scenario(requires=("tun", "bridge"))
def tagged_pings(lab: Any) -> None:
    """VLAN 100 up to the machine: the filter of that VLAN takes all, of another one nothing."""
    with bridge_topo(vlan=100, static_neigh=True) as topo:
        before = topo.vm.counters()["arp"]
        with (
            side_by_side(
                follow(topo, "--vlan", "100"),
                follow(topo, "--vlan", "200"),
                follow(topo, "--vlan", "none"),
            ) as (right, wrong, untagged),
        ):
            pinged = topo.ping(20)
            results = [tool.stop() for tool in (right, wrong, untagged)]
        arp = topo.vm.counters()["arp"] - before
    equal(pinged.received, 20, "pings")
    complete(results[0], 20 + arp, ["rx"])
    complete(results[0], 20, ["tx"])
    complete(results[1], 0)
    complete(results[2], 0)


@scenario(requires=("tun", "bridge", "vlan"))
def uplink_is_a_vlan_device(lab: Any) -> None:
    """phy0.100 is the bridge's port: found, resolved to phy0, and only its VLAN is taken."""
    with bridge_topo(uplink_vlan=100, static_neigh=True) as topo:
        with follow(topo) as tool:
            pinged = topo.ping(20)
            result = tool.stop()
    equal(pinged.received, 20, "pings")
    complete(result, 20)
    names = {device["interface"] for device in result.header["devices"]}
    assert "phy0" in names, names
    equal(hist(result, "rx", "dev.rx", "total")["labels"]["peer_interface"], "phy0", "end")


@scenario(requires=("tun", "ovs", "bond"))
def uplink_is_a_bond(lab: Any) -> None:
    """Packets end at the slave, not at the bond above it."""
    with ovs_topo(bond=True, static_neigh=True) as topo:
        with follow(topo) as tool:
            pinged = topo.ping(20)
            result = tool.stop()
    equal(pinged.received, 20, "pings")
    complete(result, 20)
    equal(hist(result, "rx", "dev.rx", "total")["labels"]["peer_interface"], "phy0", "end")


@scenario(requires=("tun", "bridge"))
def neighbour_and_host(lab: Any) -> None:
    """Traffic of another machine is not counted; that of host and neighbour is told apart."""
    with bridge_topo(vms=2, static_neigh=True) as topo:
        before = topo.vm.counters()["arp"]
        with follow(topo) as tool:
            others = topo.ping(20, dst="10.9.0.3")
            host = topo.ping(10, ns=topo.h)
            topo.vms[1].ping(VM_IP, count=5)
            topo.vms[1].wait_counter("icmp_reply", 5)
            result = tool.stop()
        arp = topo.vm.counters()["arp"] - before  # the neighbour asks for the address first
    equal((others.received, host.received), (20, 10), "pings")
    complete(result, 15 + arp, ["rx"])
    complete(result, 15, ["tx"])
    totals = {
        rec["labels"]["peer_interface"]: (rec["labels"]["peer_kind"], rec["count"])
        for rec in hists(result)
        if rec["labels"]["to"] == "total" and rec["labels"]["direction"] == "rx"
    }
    equal(totals, {"br0": ("host", 10), "vnet1": ("vm", 5 + arp)}, "where its packets went")
