# SPDX-License-Identifier: GPL-2.0-only
"""Proof that the laboratory itself is right: ``python -m lab.selfcheck [name part...]`` as root.

Every check compares two numbers that were counted by different parties.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from lab import expect, netns
from lab.scenario import Context, Skip, capabilities, load_all, run_one, scenario
from lab.tool import Tool, ToolFailed, bpf_leftovers, bpf_snapshot
from lab.topo import (
    E_IP,
    E_IP6,
    HOST_IP,
    HOST_IP6,
    VM2_IP,
    VM2_IP6,
    VM_IP,
    VM_IP6,
    Topo,
    bridge_topo,
    ovs_topo,
)

_BRIDGE = ("tun", "bridge", "veth")
_OVS = ("tun", "veth", "ovs")


def _delta(before: dict, after: dict) -> dict:
    return {key: after[key] - before[key] for key in after}


def _pings(topo: Topo, count: int, echo: str = "icmp_echo", **options: object) -> dict:
    """Pings of E answered by the machine, and counted by both."""
    before = topo.vm.counters()
    result = topo.ping(count, 0.01, **options)
    seen = _delta(before, topo.vm.counters())
    expect.equal((result.sent, result.received), (count, count), "ping", result.text)
    expect.equal(seen[echo], count, echo, seen)
    return {"rtt_ms": (round(result.min_ms, 3), round(result.max_ms, 3)), **seen}


def _both_families(lab: Context, topo: Topo) -> None:
    lab.log(_pings(topo, 20), _pings(topo, 20, "icmp6_echo", dst=VM_IP6))
    _pings(topo, 3, size=3000, echo="icmp_echo")
    _pings(topo, 3, "icmp6_echo", size=3000, dst=VM_IP6)
    for dst in (HOST_IP, HOST_IP6):
        expect.equal(topo.ping(5, 0.01, dst=dst).received, 5, f"pings to {dst}")
    for dst in (VM_IP, VM_IP6):
        before = topo.vm.counters()
        result = topo.udp(dst, count=50, gap_s=0.002, wait_s=10)
        expect.equal((result.sent, result.received), (50, 50), f"UDP echo {dst}")
        expect.equal(_delta(before, topo.vm.counters())["udp_echo"], 50, "udp_echo")


@scenario(requires=(*_BRIDGE, "ipv6"))
def bridge_both_families(lab: Context) -> None:
    with bridge_topo(ipv6=True) as topo:
        _both_families(lab, topo)


@scenario(requires=_BRIDGE)
def bridge_vlan(lab: Context) -> None:
    with bridge_topo(vlan=100) as topo:
        seen = _pings(topo, 20)
        expect.equal(seen["tagged"], seen["rx"], "tagged frames", seen)
        lab.log("frames by hand" if topo.raw_tags else "8021q", seen)


@scenario(requires=_BRIDGE)
def static_neighbours_are_silent(lab: Context) -> None:
    with bridge_topo(static_neigh=True, vms=2) as topo:
        seen = _pings(topo, 10)
        expect.equal((seen["rx"], seen["arp"], topo.vms[1].counters()["foreign"]), (10, 0, 0))


@scenario(requires=_BRIDGE)
def machine_delay(lab: Context) -> None:
    with bridge_topo(static_neigh=True, vm_options={"delay_ms": 20}) as topo:
        seen = _pings(topo, 10)
        expect.at_least(seen["rtt_ms"][0], 20, "round trip")
        topo.vm.delay(0)
        lab.log(seen, _pings(topo, 10))


@scenario(requires=(*_BRIDGE, "tbf"))
def tbf_drops(lab: Context) -> None:
    with bridge_topo(static_neigh=True, vm_options={"sink_ports": [9000]}) as topo:
        qdisc = topo.tbf("vnet0")
        topo.udp(count=300, size=1000, wait_s=0)
        dropped = qdisc.stats()["drops"]
        arrived = topo.vm.wait_counter("udp_sunk", 300 - dropped)["udp_sunk"]
        expect.same_sum(300, "datagrams", dropped=dropped, arrived=arrived)
        expect.at_least(dropped, 200, "dropped")
        lab.log(qdisc.stats())


@scenario(requires=(*_BRIDGE, "nft_netdev", "nft_bridge"))
def nft_every_nth(lab: Context) -> None:
    with bridge_topo(static_neigh=True) as topo:
        for hook, dst, match in (
            ("ingress:phy0", VM_IP, "ip protocol icmp"),
            ("bridge-forward", VM_IP, f"ip saddr {E_IP} ip protocol icmp"),
            ("input", HOST_IP, "icmp type echo-request"),
        ):
            drop = topo.nft_drop_every(4, hook, match)
            result = topo.ping(20, 0.01, dst=dst, wait_s=2)
            expect.equal((result.received, drop.counter(), drop.seen()), (15, 5, 20), hook)
            drop.remove()


@scenario(requires=_BRIDGE)
def stalled_machine(lab: Context) -> None:
    with bridge_topo(static_neigh=True, vm_options={"sink_ports": [9000]}) as topo:
        topo.vm.stall()
        topo.udp(count=2000, size=100, wait_s=0)
        dropped = topo.link("vnet0")["tx_dropped"]
        topo.vm.resume()
        arrived = topo.vm.wait_counter("udp_sunk", 2000 - dropped)["udp_sunk"]
        expect.same_sum(2000, "datagrams", dropped=dropped, arrived=arrived)
        expect.at_least(dropped, 1, "dropped")
        lab.log(f"dropped {dropped}, arrived {arrived}")


@scenario(requires=(*_BRIDGE, "ipv6"))
def machine_to_machine(lab: Context) -> None:
    with bridge_topo(ipv6=True, vms=2) as topo:
        first, second = topo.vms
        before = second.counters()
        for dst in (VM2_IP, VM2_IP6):
            expect.equal(first.send_udp(dst, 9000, 50, gap_us=500), 50, "sent")
        first.wait_counter("udp_reply", 100)
        expect.equal(_delta(before, second.counters())["udp_echo"], 100, "echoed")
        for dst, name in ((E_IP, "icmp_reply"), (E_IP6, "icmp6_reply")):
            first.ping(dst, 20, gap_us=2000)
            expect.equal(first.wait_counter(name, 20)[name], 20, name)


@scenario(requires=_BRIDGE)
def closed_ports_refuse(lab: Context) -> None:
    with bridge_topo(vm_options={"closed_ports": [99]}) as topo:
        result = topo.udp(port=99, count=10, gap_s=0.05, wait_s=5)
        expect.equal((result.refused, topo.vm.counters()["udp_closed"]), (10, 10), "refused")


@scenario(requires=(*_BRIDGE, "netem"))
def netem_delay(lab: Context) -> None:
    with bridge_topo() as topo:
        topo.netem("phy0", 20)
        seen = _pings(topo, 10)
        expect.at_least(seen["rtt_ms"][0], 20, "round trip")


@scenario(requires=(*_BRIDGE, "bond", "vlan"))
def uplink_variants(lab: Context) -> None:
    for options in ({"bond": True}, {"uplink_vlan": 100}, {"bond": True, "uplink_vlan": 100}):
        with bridge_topo(**options) as topo:
            seen = _pings(topo, 10)
            expect.equal(seen["tagged"], 0, "tagged")
            lab.log(topo.uplink, seen)
    with bridge_topo(vlan=100, bond=True) as topo:
        expect.equal(topo.ping(5, 0.01, dst=HOST_IP).received, 5, "tagged pings to the host")
        expect.equal(_pings(topo, 10)["tagged"], 10, "tagged")


def _names(pattern: str) -> set:
    """Names of tasks; one may end while it is read."""
    found = set()
    for path in Path("/").glob(pattern[1:]):
        with contextlib.suppress(OSError):
            found.add(path.read_text().strip())
    return found


def _vhost(lab: Context, topo: Topo) -> None:
    seen = _pings(topo, 100)
    # Every buffer used by the worker signals: exact.
    topo.vm.wait_counter("calls_tx", topo.vm.counters()["tx"], 5)
    end = topo.vm.counters()
    expect.equal((end["calls_rx"], end["calls_tx"]), (end["rx"], end["tx"]), "calls", end)
    # A kernel thread up to 6.3, a task of the process after that.
    expect.contains(
        _names("/proc/[0-9]*/comm") | _names(f"/proc/{topo.vm.pid}/task/*/comm"),
        f"vhost-{topo.vm.pid}",
        "worker task",
    )
    lab.log(seen, end)
    topo.vm.stall()
    topo.udp(count=2000, size=100, wait_s=0)
    # The worker fills the posted buffers while the ring already overflows.
    time.sleep(0.5)
    dropped = topo.link("vnet0")["tx_dropped"]
    topo.vm.resume()
    arrived = topo.vm.wait_counter("udp_echo", end["udp_echo"] + 2000 - dropped)["udp_echo"]
    expect.same_sum(2000, "datagrams", dropped=dropped, arrived=arrived - end["udp_echo"])
    lab.log(f"stalled: dropped {dropped}")


@scenario(requires=(*_BRIDGE, "vhost_net"))
def bridge_vhost(lab: Context) -> None:
    with bridge_topo(static_neigh=True, vm_options={"vhost": True}) as topo:
        _vhost(lab, topo)


@scenario(requires=_OVS, timeout_s=150)
def ovs_pings(lab: Context) -> None:
    with ovs_topo(ipv6=True) as topo:
        lab.log(_pings(topo, 100))
        _both_families(lab, topo)


@scenario(requires=(*_OVS, "vhost_net"))
def ovs_vhost(lab: Context) -> None:
    with ovs_topo(static_neigh=True, vm_options={"vhost": True}) as topo:
        _vhost(lab, topo)


@scenario(requires=(*_OVS, "vlan", "bond"))
def ovs_vlan_bond(lab: Context) -> None:
    with ovs_topo(vlan=100, bond=True) as topo:
        expect.equal(_pings(topo, 20)["tagged"], 20, "tagged")
        expect.equal(topo.ping(5, 0.01, dst=HOST_IP).received, 5, "pings to the host")


@scenario(requires=_OVS)
def ovs_one_upcall_per_flow(lab: Context) -> None:
    with ovs_topo(static_neigh=True) as topo:
        assert topo.ovs is not None
        topo.ovs.one_upcall_per_flow()
        result = topo.udp(count=50, new_port_each=True, gap_s=0.005, wait_s=10)
        expect.equal(result.received, 50, "echoes")
        flows = [line for line in topo.ovs.dump_flows() if "udp(src=" in line]
        expect.equal(len(flows), 100, "datapath flows", flows[:3])


@scenario(requires=_OVS)
def ovs_conntrack_zone(lab: Context) -> None:
    with ovs_topo() as topo:
        topo.ovs_flows(
            "priority=0,actions=NORMAL",
            "priority=10,udp,ct_state=-trk,actions=ct(table=1,zone=7)",
            "table=1,udp,ct_state=+trk+new,actions=ct(commit,zone=7),NORMAL",
            "table=1,udp,ct_state=+trk+est,actions=NORMAL",
        )
        result = topo.udp(count=20, new_port_each=True, gap_s=0.005, wait_s=10)
        assert topo.ovs is not None
        expect.equal((result.received, len(topo.ovs.conntrack(7))), (20, 20), "connections")


@scenario(requires=_OVS)
def ovs_stopped_switch(lab: Context) -> None:
    with ovs_topo(static_neigh=True) as topo:
        assert topo.ovs is not None
        topo.ovs_del_flows()
        thread = topo.ovs.stop_for(2)
        result = topo.udp(count=1, wait_s=20)
        thread.join()
        expect.equal(result.received, 1, "echo")
        # The sender starts after the stop, a little of the 2 s is over then.
        expect.at_least(result.rtts_ms[0], 1000, "first packet")
        expect.at_most(max(topo.udp(count=5, gap_s=0.01).rtts_ms), 1000, "known flow")
        lab.log(result.rtts_ms)


@scenario(requires=_BRIDGE)
def nothing_is_left(lab: Context) -> None:
    for problem in (ValueError, KeyboardInterrupt):
        vm_pid = child = None
        try:
            with bridge_topo(vms=2) as topo:
                topo.nft_drop_every(2, "input", "ip protocol tcp")
                vm_pid, child = topo.vm.pid, topo.h.popen(["sleep", "1000"])
                if problem is KeyboardInterrupt:
                    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
                    time.sleep(10)
                raise problem
        except problem:
            pass
        assert child is not None
        expect.equal(netns.leaked(), [], f"namespaces after {problem.__name__}")
        expect.equal(Path(f"/proc/{vm_pid}").exists(), False, "machine")
        expect.equal(child.returncode is None, False, "child still runs")


_TOOL = """import json, os, sys, time
print("ready: 0 points attached", file=sys.stderr, flush=True)
print(json.dumps({"type": "header", "devices": sorted(os.listdir("/sys/class/net")),
                  "tracing": os.path.isdir("/sys/kernel/tracing/events")}), flush=True)
try:
    time.sleep(100)
except KeyboardInterrupt:
    print('{"type": "summary", "lost": {"ring_full": 0}}')
"""


@scenario(requires=_BRIDGE)
def tool_in_the_host(lab: Context) -> None:
    before = bpf_snapshot()
    with bridge_topo() as topo, Tool(topo.h, sys.executable, ["-c", _TOOL]) as tool:
        tool.wait_for(bool)
        result = tool.stop()
    expect.equal((result.status, tool.ready_line), (0, "ready: 0 points attached"))
    expect.equal(
        result.header["devices"],
        ["bonding_masters"] * ("bonding_masters" in result.header["devices"])
        + ["br0", "lo", "phy0", "vnet0"],
    )
    expect.equal(result.header["tracing"], os.path.isdir("/sys/kernel/tracing/events"), "tracefs")
    expect.no_loss(result.summary)
    torn = (
        "import sys, time; print('{\"type\":', end='', flush=True); "
        "print('ready: torn', file=sys.stderr, flush=True); time.sleep(100)"
    )
    with Tool(None, sys.executable, ["-c", torn]) as tool:
        expect.equal((tool.kill().records, tool.kill().stdout), ([], '{"type":'), "torn line")
    try:
        with Tool(None, "/bin/sh", ["-c", "echo broken >&2; exit 3"]):
            raise AssertionError("a tool that ends is not ready")
    except ToolFailed as problem:
        expect.contains(str(problem), "broken")
    expect.equal(bpf_leftovers(before).counts(), {"progs": 0, "maps": 0, "links": 0})


@scenario(timeout_s=1)
def limit_is_kept(lab: Context) -> None:
    try:
        time.sleep(5)
    except BaseException as problem:
        if type(problem).__name__ == "ScenarioTimeout":
            raise Skip("the alarm rang, as it should") from None
        raise
    raise AssertionError("no alarm in 5 s")


def main() -> int:
    caps = capabilities()
    out_dir = Path(tempfile.mkdtemp(prefix="ntselfcheck"))
    print(f"{os.uname().release}: {' '.join(sorted(caps))}")
    failed = 0
    for one in load_all("lab.selfcheck"):
        if sys.argv[1:] and not any(part in one.name for part in sys.argv[1:]):
            continue
        record = run_one(one, caps, out_dir)
        failed += record["result"] == "failed"
        print(f"{record['result']:8}{record['seconds']:6.1f} s  {one.name}  {record['reason']}")
        log = out_dir / f"{one.name}.log"
        if log.exists():
            print("".join(f"    {line}\n" for line in log.read_text().splitlines()), end="")
        sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
