# SPDX-License-Identifier: GPL-2.0-only
"""ntools-drop: faults with a known number of drops show exactly so often, with reason and place."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

from lab.drops import checked, gives_reasons, reason, rows, watch
from lab.expect import all_of, at_least, contains, equal
from lab.raw import RawSocket, ethernet, ipv4, udp_datagram
from lab.scenario import scenario
from lab.tool import PATIENT, Tool, side_by_side
from lab.topo import E_IP, E_IP6, E_MAC, HOST_IP, HOST_IP6, HOST_MAC, VM_IP, bridge_topo

# Where datagrams without a socket end; compilers inline one into the other.
_UDP_ENTRY = ("__udp4_lib_rcv", "__udp6_lib_rcv", "udp_rcv", "udpv6_rcv", "udp_unicast_rcv_skb")


def _no_socket(topo: Any, dst: str, src: str, family: str) -> None:
    with (
        side_by_side(
            watch(topo.h, "--dst-port", "7777"),
            watch(topo.h, "--dst-port", "7778", "--explain"),
        ) as (tool, other),
    ):
        sent = topo.udp(dst, 7777, 23)
        none = other.stop()
        result = tool.stop()
    equal(sent.sent, 23, "datagrams sent")
    found = checked(result, 23)
    for rec in found:
        equal(reason(result, rec), "no_socket", "reason", rec)
        contains(_UDP_ENTRY, rec["caller"], "caller")
        equal(rec["stack"][0]["function"], rec["caller"], "first frame")
    all_of(
        found,
        "drop",
        family=family,
        protocol="udp",
        src_ip=src,
        dst_ip=dst,
        dst_port=7777,
        src_port=sent.src_ports[0],
        interface="br0",
        netns_inum=topo.h.inode,
    )
    all_of(found, "drop", **{"class": "drop"})
    checked(none, 0)
    at_least(none.summary["explain"]["filter_port"], 23, "rejected by the port filter")


@scenario(requires=("bridge",))
def no_socket(lab: Any) -> None:
    """23 datagrams to a closed port: 23 records; a filter on another port shows none."""
    with bridge_topo(vms=0, static_neigh=True) as topo:
        _no_socket(topo, HOST_IP, E_IP, "ipv4")


@scenario(requires=("bridge", "ipv6"))
def no_socket_ipv6(lab: Any) -> None:
    with bridge_topo(vms=0, static_neigh=True, ipv6=True) as topo:
        _no_socket(topo, HOST_IP6, E_IP6, "ipv6")


@scenario(requires=("bridge",))
def foreign_frames(lab: Any) -> None:
    """9 frames to a foreign address and 4 with a tag nobody knows: none is for us."""

    def frame(mac: str, vlan: Any) -> bytes:
        packet = ipv4(E_IP, HOST_IP, 17, udp_datagram(1000, 7777, b"Z" * 40))
        return ethernet(mac, E_MAC, 0x0800, packet, vlan)

    with bridge_topo(vms=0, static_neigh=True) as topo:
        # Promiscuous, so that the bridge hands up what is not for it.
        topo.h.ip("link set br0 promisc on")
        with (
            side_by_side(
                watch(topo.h, "--interface", "br0"),
                watch(topo.h, "--normal", "hide"),
            ) as (every, hiding),
            RawSocket(topo.e, topo.wire) as sock,
        ):
            for _ in range(9):
                sock.send(frame("52:54:00:09:00:99", None))
            for _ in range(4):
                sock.send(frame(HOST_MAC, 100))
            every.wait_for(lambda recs: sum(r["type"] == "drop" for r in recs) >= 13)
            result, hidden = every.stop(), hiding.stop()
    found = checked(result, 13)
    for rec in found:
        equal(reason(result, rec), "otherhost", "reason", rec)
    all_of(found, "drop", **{"class": "not-for-us", "interface": "br0"})
    checked(hidden, 0)
    equal(hidden.summary["counts"]["hidden"], 13, "hidden")


@scenario(requires=("bridge", "nft"))
def packet_filter(lab: Any) -> None:
    """Every 5th of 20 datagrams: 4 records with the flow, at the function of this kernel."""
    with bridge_topo(vms=0, static_neigh=True) as topo:
        drop = topo.nft_drop_every(5, "input", "udp dport 7777")
        with watch(topo.h, "--location", "nf_hook_slow,nft_do_chain*") as tool:
            sent = topo.udp(HOST_IP, 7777, 20)
            result = tool.stop()
        counted = drop.counter()
    equal(counted, 4, "counter of the rule")
    found = checked(result, 4)
    caller = "nft_do_chain" if lab.kernel >= (6, 1) else "nf_hook_slow"
    for rec in found:
        equal(reason(result, rec), "netfilter_drop", "reason", rec)
    all_of(
        found,
        "drop",
        caller=caller,
        protocol="udp",
        src_ip=E_IP,
        dst_ip=HOST_IP,
        dst_port=7777,
        src_port=sent.src_ports[0],
        interface="br0",
    )


@scenario(requires=("bridge", "nft"))
def wanted_reasons(lab: Any) -> None:
    """--reason and --not-reason part the drops between them; a kernel without reasons says so."""
    with bridge_topo(vms=0, static_neigh=True) as topo:
        topo.nft_drop_every(5, "input", "udp dport 7777")
        with watch(topo.h) as tool:
            kernel_has = gives_reasons(tool.stop())
        if not kernel_has:
            with Tool(topo.h, "ntools-drop", ["--reason", "no_socket"], ready=False) as tool:
                result = tool.wait()
            equal(result.status, 3, "exit status", result.stderr)
            contains(result.stderr, "gives no drop reasons")
            return
        with (
            side_by_side(
                watch(topo.h, "--reason", "netfilter_drop,NO_SUCH_REASON"),
                watch(topo.h, "--not-reason", "netfilter_drop", "--dst-port", "7777"),
            ) as (only, without),
        ):
            topo.udp(HOST_IP, 7777, 20)
            results = only.stop(), without.stop()
    all_of(checked(results[0], 4), "drop", reason="netfilter_drop")
    contains(results[0].stderr, "NO_SUCH_REASON")
    all_of(checked(results[1], 16), "drop", reason="no_socket")


@scenario(requires=("bridge", "tbf"))
def full_qdisc(lab: Any) -> None:
    """A tbf over its limit: as many records as tc counts, at the one who queued, not the helper."""
    with bridge_topo(vms=0, static_neigh=True) as topo:
        qdisc = topo.tbf("phy0", rate="100kbit", burst="2kb", limit="3kb")
        with (
            watch(topo.h, "--location", "__dev_queue_xmit", "--src-ip", HOST_IP) as tool,
            watch(
                topo.h,
                "--mode",
                "summary",
                "--interval",
                "0.5",
                "--src-ip",
                HOST_IP,
                "--dst-port",
                "7777",
                "--group-by",
                "reason,location,device,fivetuple",
            ) as table,
        ):
            sent = topo.udp(E_IP, 7777, 100, 900, ns=topo.h, wait_s=0.2)
            table.wait_for(lambda recs: [rec for rec in recs if rec["type"] == "interval"])
            results = tool.stop(), table.stop()
        dropped = qdisc.stats()["drops"]
    at_least(dropped, 50, "drops of tc -s qdisc")
    found = checked(results[0], dropped)
    for rec in found:
        equal(reason(results[0], rec), "qdisc_drop", "reason", rec)
    all_of(found, "drop", caller="__dev_queue_xmit", interface="phy0", dst_ip=E_IP, dst_port=7777)
    checked(results[1], dropped)
    lines = rows(results[1])
    equal(len(lines), 1, "rows of one reason, place and flow", lines)
    all_of(
        lines,
        "row",
        drop_packets=dropped,
        caller="__dev_queue_xmit",
        interface="phy0",
        src_port=sent.src_ports[0],
        dst_port=7777,
        protocol="udp",
    )
    deltas = [
        rec["drop_packets"] for rec in results[1].of_type("drop_group") if rec["agg"] == "delta"
    ]
    at_least(dropped, sum(deltas), "drops of the whole run against those of the intervals")


@scenario(requires=("bridge", "tbf"))
def full_qdisc_tag_in_the_frame(lab: Any) -> None:
    """Tagged and untagged frames at a tbf over its limit: --vlan takes those with the tag."""
    packet = ipv4(HOST_IP, E_IP, 17, udp_datagram(1000, 7777, b"Z" * 900))
    with bridge_topo(vms=0, static_neigh=True) as topo:
        qdisc = topo.tbf("phy0", rate="100kbit", burst="2kb", limit="3kb")
        with (
            side_by_side(
                watch(topo.h, "--src-ip", HOST_IP),
                watch(topo.h, "--vlan", "100"),
                watch(topo.h, "--vlan", "none", "--src-ip", HOST_IP),
            ) as (every, tagged, untagged),
            RawSocket(topo.h, "phy0") as sock,
        ):
            for number in range(60):
                vlan = 100 if number % 3 else None
                with contextlib.suppress(OSError):  # it learns that the frame was dropped
                    sock.send(ethernet(E_MAC, HOST_MAC, 0x0800, packet, vlan))
            results = [tool.stop() for tool in (every, tagged, untagged)]
        dropped = qdisc.stats()["drops"]
    found = checked(results[0], dropped)
    count = sum("vlan_id" in rec for rec in found)
    at_least(count, 20, "tagged drops")
    all_of(checked(results[1], count), "drop", vlan_id=100, interface="phy0", dst_port=7777)
    checked(results[2], dropped - count)


@scenario(requires=("bridge", "tbf", "vlan"))
def full_qdisc_tag_in_the_skb(lab: Any) -> None:
    """The tag of a VLAN device travels beside the data: --vlan finds it there."""
    with bridge_topo(vms=0, static_neigh=True, vlan=100) as topo:
        qdisc = topo.tbf("phy0", rate="100kbit", burst="2kb", limit="3kb")
        with (
            side_by_side(
                watch(topo.h, "--vlan", "100", "--dst-port", "7777"),
                watch(topo.h, "--vlan", "101"),
            ) as (tool, other),
        ):
            topo.udp(E_IP, 7777, 60, 900, ns=topo.h, wait_s=0.2)
            results = tool.stop(), other.stop()
        dropped = qdisc.stats()["drops"]
    at_least(dropped, 40, "drops of tc -s qdisc")
    all_of(checked(results[0], dropped), "drop", vlan_id=100, src_ip=HOST_IP, dst_ip=E_IP)
    checked(results[1], 0)


@scenario(requires=("bridge", "tun"))
def stalled_tap(lab: Any) -> None:
    """A machine that does not read: what its ring of 10 does not hold is dropped and shown."""
    with bridge_topo(vms=1, static_neigh=True, start_vms=False) as topo:
        topo.h.ip("link set vnet0 txqueuelen 10")
        topo.start_vm(0, stall_s=0)
        before = topo.link("vnet0")["tx_dropped"]
        with (
            side_by_side(
                watch(topo.h, "--dst-ip", VM_IP, "--interface", "vnet0"),
                watch(topo.h, "--dst-ip", VM_IP, "--normal", "hide"),
            ) as (tool, hiding),
        ):
            topo.udp(VM_IP, 7777, 60, wait_s=0.2)
            dropped = topo.link("vnet0")["tx_dropped"] - before
            hidden = hiding.stop()
            topo.vm.stop()
            tool.wait_for(lambda recs: [rec for rec in recs if rec.get("class") == "purge"])
            result = tool.stop()
    at_least(dropped, 40, "tx_dropped of the tap")
    full = [rec for rec in result.of_type("drop") if rec["class"] == "drop"]
    equal(len(full), dropped, "drops at the tap")
    checked(hidden, dropped)
    for rec in full:
        equal(reason(result, rec), "full_ring", "reason", rec)
    all_of(full, "drop", caller="tun_net_xmit", interface="vnet0", dst_ip=VM_IP, dst_port=7777)
    # What was in the ring went when the machine did.
    checked(result, 60)


@scenario(requires=("bridge",))
def full_socket(lab: Any) -> None:
    """A socket nobody reads: the surplus is a drop, the rest is purged when it is closed.

    What waits in the socket belongs to no device and no namespace any more.
    """
    port = str(20000 + os.getpid() % 10000)
    with bridge_topo(vms=0, static_neigh=True) as topo:
        with topo.h.entered():
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
            sock.bind((HOST_IP, int(port)))
            with Tool(
                topo.h, "ntools-drop", ["--dst-port", port, "--format", "json", *PATIENT]
            ) as tool:
                topo.udp(HOST_IP, int(port), 50, 500, wait_s=0.2)
                sock.close()
                tool.wait_for(lambda recs: sum(rec["type"] == "drop" for rec in recs) >= 50)
                result = tool.stop()
    found = checked(result, 50)
    full = [rec for rec in found if rec["class"] == "drop"]
    at_least(len(full), 30, "drops at the full socket")
    for rec in full:
        equal(reason(result, rec), "socket_rcvbuff", "reason", rec)
    all_of(full, "drop", interface="br0")
    purged = [rec for rec in found if rec not in full]
    all_of(purged, "drop", **{"class": "purge"})
    equal([rec["interface"] for rec in purged if "interface" in rec], [], "devices of the purged")


@scenario(requires=("bridge",))
def unknown_frame_type(lab: Any) -> None:
    """5 frames of a type nobody handles; --type finds them, and finds no IPv4 among them."""
    with bridge_topo(vms=0, static_neigh=True) as topo:
        with (
            side_by_side(
                watch(topo.h, "--type", "0x88b5"),
                watch(topo.h, "--type", "ipv4"),
            ) as (tool, other),
            RawSocket(topo.e, topo.wire) as sock,
        ):
            for _ in range(5):
                sock.send(ethernet(HOST_MAC, E_MAC, 0x88B5, b"Z" * 50))
            tool.wait_for(lambda recs: sum(rec["type"] == "drop" for rec in recs) >= 5)
            results = tool.stop(), other.stop()
    found = checked(results[0], 5)
    all_of(found, "drop", **{"class": "no-handler", "eth_type": "0x88b5", "eth_src": E_MAC})
    checked(results[1], 0)
