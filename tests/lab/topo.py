# SPDX-License-Identifier: GPL-2.0-only
"""The two topologies of the laboratory.

::

    namespace E                  namespace H, "the host"
    wire0 10.9.0.1 ==veth== phy0 --+-- br0 (10.9.0.254), or br-int (OVS) with mgmt0 (10.9.0.254)
                                   +-- vnet0, tap of the fake machine 10.9.0.2
                                   +-- vnet1, tap of the second one 10.9.0.3 (option)
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence

from lab import traffic
from lab.caps import link_types
from lab.fakevm import FakeVm
from lab.faults import NftDrop, Qdisc, qdisc_stats
from lab.netns import Namespace, call, lines
from lab.ovs import Ovs, ovs_host
from lab.raw import raw_ping

__all__ = [
    "E_IP",
    "E_IP6",
    "E_MAC",
    "HOST_IP",
    "HOST_IP6",
    "HOST_MAC",
    "VM_IP",
    "VM_IP6",
    "VM_MAC",
    "VM2_IP",
    "VM2_IP6",
    "VM2_MAC",
    "Topo",
    "bridge_topo",
    "ovs_topo",
]

E_IP, E_IP6, E_MAC = "10.9.0.1", "fd09::1", "52:54:00:09:00:01"
HOST_IP, HOST_IP6, HOST_MAC = "10.9.0.254", "fd09::254", "52:54:00:09:00:fe"
VM_IP, VM_IP6, VM_MAC = "10.9.0.2", "fd09::2", "52:54:00:09:00:02"
VM2_IP, VM2_IP6, VM2_MAC = "10.9.0.3", "fd09::3", "52:54:00:09:00:03"
PHY_MAC = "52:54:00:09:00:f0"


class Topo:
    """One topology with its faults and counters; made by the functions below.

    ``e`` and ``h`` are the namespaces, ``uplink`` the bridge's port to E (``phy0``, ``bond0``,
    ``phy0.100``), ``wire`` the device with E's address, ``host_dev`` the one with the host's (None
    where the kernel cannot tag), ``vms`` the fake machines, ``ovs`` the switch or None.
    """

    def __init__(self, stack: contextlib.ExitStack, e: Namespace, h: Namespace, kind: str) -> None:
        self.stack, self.e, self.h, self.kind = stack, e, h, kind
        self.ovs: Optional[Ovs] = None
        self.bridge, self.host_dev = "", None  # type: str, Optional[str]
        self.uplink, self.wire = "phy0", "wire0"
        self.vlan: Optional[int] = None
        self.raw_tags = False
        self.taps: List[str] = []
        self.vms: List[FakeVm] = []

    @property
    def vm(self) -> FakeVm:
        """The first fake machine."""
        return self.vms[0]

    def ping(
        self,
        count: int = 10,
        interval_s: float = 0.02,
        dst: str = VM_IP,
        size: int = 56,
        wait_s: float = 5,
        ns: Optional[Namespace] = None,
    ) -> traffic.Ping:
        """Echo requests from E (or another namespace), tagged when the topology is."""
        if self.raw_tags and ns is None:
            return raw_ping(
                self.e, "wire0", (E_MAC, E_IP), dst, count, interval_s, size, self.vlan, wait_s
            )
        return traffic.ping(ns or self.e, dst, count, interval_s, size, wait_s)

    def udp(
        self,
        dst: str = VM_IP,
        port: int = 9000,
        count: int = 1,
        size: int = 64,
        gap_s: float = 0.0,
        ns: Optional[Namespace] = None,
        **options: Any,
    ) -> traffic.Udp:
        """Datagrams from E (or another namespace); options of :func:`lab.traffic.udp`."""
        return traffic.udp(ns or self.e, dst, port, count, size, gap_s, **options)

    def link(self, dev: str, ns: Optional[Namespace] = None) -> Dict[str, int]:
        """``ip -s link`` flattened: rx_packets, tx_dropped, ... of a device of H."""
        ns = ns or self.h
        stats = ns.json(["ip", "-s", "-j", "link", "show", "dev", dev])[0]["stats64"]
        return {f"{side}_{name}": value for side in stats for name, value in stats[side].items()}

    def qdisc(
        self, dev: str, ns: Optional[Namespace] = None, kind: Optional[str] = None
    ) -> Dict[str, int]:
        """``tc -s qdisc`` of a device of H."""
        return qdisc_stats(ns or self.h, dev, kind)

    def netem(
        self, dev: str, delay_ms: float, ns: Optional[Namespace] = None, extra: str = ""
    ) -> Qdisc:
        """Delays what a device of H sends."""
        return self._qdisc(ns, dev, f"netem delay {delay_ms}ms limit 10000 {extra}".strip())

    def tbf(
        self,
        dev: str,
        rate: str = "1mbit",
        burst: str = "2k",
        limit: str = "4k",
        ns: Optional[Namespace] = None,
    ) -> Qdisc:
        """Limits what a device of H sends; the surplus is dropped and counted."""
        return self._qdisc(ns, dev, f"tbf rate {rate} burst {burst} limit {limit}")

    def _qdisc(self, ns: Optional[Namespace], dev: str, text: str) -> Qdisc:
        qdisc = Qdisc(ns or self.h, dev, text)
        self.stack.callback(qdisc.remove)
        return qdisc

    def nft_drop_every(
        self, every: int, hook: str, match: str = "", ns: Optional[Namespace] = None
    ) -> NftDrop:
        """Drops every Nth matching packet; see :class:`lab.faults.NftDrop`."""
        drop = NftDrop(ns or self.h, every, hook, match)
        self.stack.callback(drop.remove)
        return drop

    def ovs_flows(self, *flows: str) -> None:
        """Replaces the OpenFlow rules; none: back to NORMAL."""
        assert self.ovs is not None, "not an OVS topology"
        self.ovs.flows(*flows)

    def ovs_del_flows(self) -> None:
        """Empties the kernel datapath, so that flows need upcalls again."""
        assert self.ovs is not None, "not an OVS topology"
        self.ovs.del_flows()

    def start_vm(self, index: int = 0, **options: Any) -> FakeVm:
        """Starts the fake machine behind a tap; options of :class:`lab.fakevm.FakeVm`."""
        vm = FakeVm(self.h, self.taps[index], number=2 + index, **options)
        self.stack.enter_context(vm)
        self.vms.append(vm)
        return vm

    def wait_ready(self, limit_s: float = 30) -> None:
        """Waits until every machine answers; then addresses and ports are known everywhere."""
        for vm in self.vms:
            targets = [vm.ip, vm.ip6] if self.e.ipv6 and not self.raw_tags else [vm.ip]
            for target in targets:
                self._wait_answer(target, limit_s)
        if self.host_dev and not self.raw_tags:
            # A closed port answers too.
            self._wait_answer(HOST_IP, limit_s)

    def _wait_answer(self, target: str, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if self.raw_tags:
                with contextlib.suppress(RuntimeError):
                    if self.ping(1, dst=target, wait_s=1).received:
                        return
            else:
                result = self.udp(target, 7, 1, wait_s=0.5)
                if result.received or result.refused:
                    return
        raise RuntimeError(f"{target} does not answer in {limit_s:g} s")


def _uplink(
    topo: Topo, vlan: Optional[int], bond: bool, uplink_vlan: Optional[int], ipv6: bool
) -> None:
    """The veth pair, what is stacked on its H end, and E's addresses."""
    call(
        ["ip", "-batch", "-"],
        lines(
            f"link add wire0 address {E_MAC} netns {topo.e.name} type veth "
            f"peer name phy0 address {PHY_MAC} netns {topo.h.name}"
        ),
    )
    # The other end goes with it; explicit, because a namespace removes its devices later.
    topo.stack.callback(topo.e.run, ["ip", "link", "del", "wire0"], check=False)
    tag = uplink_vlan if vlan is None else vlan
    topo.vlan = vlan
    topo.raw_tags = vlan is not None and "vlan" not in link_types()
    host: List[str] = []
    if bond:
        host += [
            "link add bond0 type bond mode active-backup miimon 100",
            "link set phy0 master bond0",
            "link set bond0 up",
        ]
        topo.uplink = "bond0"
    host.append("link set phy0 up")
    if uplink_vlan is not None:
        host += [
            f"link add link {topo.uplink} name {topo.uplink}.{uplink_vlan} type vlan "
            f"id {uplink_vlan}",
            f"link set {topo.uplink}.{uplink_vlan} up",
        ]
        topo.uplink = f"{topo.uplink}.{uplink_vlan}"
    for index in range(len(topo.taps)):
        host += [
            f"tuntap add dev vnet{index} mode tap vnet_hdr",
            f"link set vnet{index} address fe:54:00:09:00:{index + 2:02x} up",
        ]
    topo.h.ip(host)
    wire = ["link set wire0 up"]
    if tag is not None and not topo.raw_tags:
        topo.wire = f"wire0.{tag}"
        wire += [
            f"link add link wire0 name {topo.wire} type vlan id {tag}",
            f"link set {topo.wire} up",
        ]
    if not topo.raw_tags:
        wire += [
            f"link set {topo.wire} addrgenmode none",
            f"addr add {E_IP}/24 dev {topo.wire}",
            f"addr add {E_IP6}/64 dev {topo.wire} nodad" if ipv6 else "",
        ]
    topo.e.ip(wire)


def _host_address(topo: Topo, dev: str, ipv6: bool, mac: Optional[str] = None) -> None:
    topo.host_dev = dev
    if ipv6:
        topo.h.ip(f"link set {dev} addrgenmode none")
        topo.h.sysctl(f"net.ipv6.conf.{dev.replace('.', '/')}.disable_ipv6", 0)
    topo.h.ip(
        f"link set {dev} {f'address {mac}' if mac else ''} up",
        f"addr add {HOST_IP}/24 dev {dev}",
        f"addr add {HOST_IP6}/64 dev {dev} nodad" if ipv6 else "",
    )


def _known_neighbours(topo: Topo, ipv6: bool) -> None:
    """Permanent entries, so that no ARP and no flooding mixes with the counted packets."""

    def entries(dev: str, peers: Sequence[Sequence[str]]) -> List[str]:
        return [
            f"neigh replace {address} lladdr {peer[-1]} dev {dev} nud permanent"
            for peer in peers
            for address in peer[: 2 if ipv6 else 1]
        ]

    vms = [(VM_IP, VM_IP6, VM_MAC), (VM2_IP, VM2_IP6, VM2_MAC)][: len(topo.taps)]
    if not topo.raw_tags:
        topo.e.ip(entries(topo.wire, [*vms, (HOST_IP, HOST_IP6, HOST_MAC)]))
    if topo.host_dev:
        topo.h.ip(entries(topo.host_dev, [*vms, (E_IP, E_IP6, E_MAC)]))
    if topo.kind == "bridge":
        fdb = [(E_MAC, topo.uplink), *((vm[2], tap) for vm, tap in zip(vms, topo.taps))]
        topo.h.run(
            ["bridge", "-batch", "-"],
            lines([f"fdb replace {mac} dev {dev} master static" for mac, dev in fdb]),
        )


def _finish(
    topo: Topo,
    ipv6: bool,
    static_neigh: bool,
    start_vms: bool,
    vm_options: Sequence[Optional[Mapping[str, Any]]],
) -> None:
    if static_neigh:
        _known_neighbours(topo, ipv6)
    if start_vms:
        for index in range(len(topo.taps)):
            topo.start_vm(index, **{"vlan": topo.vlan, **(vm_options[index] or {})})
        if not any("stall_s" in (options or {}) for options in vm_options):
            topo.wait_ready()


@contextlib.contextmanager
def bridge_topo(
    vlan: Optional[int] = None,
    ipv6: bool = False,
    bond: bool = False,
    uplink_vlan: Optional[int] = None,
    vms: int = 1,
    start_vms: bool = True,
    vm_options: Optional[Mapping[str, Any]] = None,
    vm2_options: Optional[Mapping[str, Any]] = None,
    static_neigh: bool = False,
) -> Iterator[Topo]:
    """E, H with the Linux bridge br0, and the fake machines, all answering.

    :param vlan: E sends tagged and the machines see the tag. Without 8021q in the kernel E's
        echo requests are made by hand and the host itself has no address.
    :param uplink_vlan: the bridge's port is a VLAN device: tagged on the wire, not in the machine.
    :param bond: the uplink is bond0 with the one slave phy0.
    :param vms: 0 to 2 taps; ``start_vms`` off leaves them without a machine.
    :param static_neigh: no ARP, no neighbour discovery, no flooding.
    """
    with contextlib.ExitStack() as stack:
        e = stack.enter_context(Namespace("e", ipv6))
        h = stack.enter_context(Namespace("h"))
        topo = Topo(stack, e, h, "bridge")
        topo.bridge = "br0"
        topo.taps = [f"vnet{index}" for index in range(vms)]
        _uplink(topo, vlan, bond, uplink_vlan, ipv6)
        h.ip(
            f"link add br0 address {HOST_MAC} type bridge stp_state 0 forward_delay 0 "
            "mcast_snooping 0",
            "link set br0 addrgenmode none",
            [f"link set {port} master br0" for port in [topo.uplink, *topo.taps]],
            "link set br0 up",
            f"link add link br0 name br0.{vlan} type vlan id {vlan}"
            if vlan is not None and not topo.raw_tags
            else "",
        )
        if vlan is None or not topo.raw_tags:
            _host_address(topo, "br0" if vlan is None else f"br0.{vlan}", ipv6)
        _finish(topo, ipv6, static_neigh, start_vms, [vm_options, vm2_options])
        yield topo


@contextlib.contextmanager
def ovs_topo(
    vlan: Optional[int] = None,
    ipv6: bool = False,
    bond: bool = False,
    uplink_vlan: Optional[int] = None,
    vms: int = 1,
    start_vms: bool = True,
    vm_options: Optional[Mapping[str, Any]] = None,
    vm2_options: Optional[Mapping[str, Any]] = None,
    static_neigh: bool = False,
) -> Iterator[Topo]:
    """The same with Open vSwitch: br-int on the kernel datapath, the host's address on mgmt0.

    H is the namespace of the daemons and outlives the topology; bridge and devices do not.
    """
    ovs = ovs_host()
    with contextlib.ExitStack() as stack:
        topo = Topo(stack, stack.enter_context(Namespace("e", ipv6)), ovs.ns, "ovs")
        topo.ovs, topo.bridge = ovs, ovs.bridge
        topo.taps = [f"vnet{index}" for index in range(vms)]
        # Undone in reverse order: machines, bridge, then the devices that were its ports.
        for device in ("vnet0", "vnet1", "bond0"):
            stack.callback(ovs.ns.run, ["ip", "link", "del", device], check=False)
        _uplink(topo, vlan, bond, uplink_vlan, ipv6)
        stack.callback(ovs.del_bridge)
        tags = [f"mgmt0 tag={vlan}"] if vlan is not None else []
        ovs.add_bridge([topo.uplink, *topo.taps], ["mgmt0"], tags)
        _host_address(topo, "mgmt0", ipv6, HOST_MAC)
        _finish(topo, ipv6, static_neigh, start_vms, [vm_options, vm2_options])
        yield topo
