# SPDX-License-Identifier: GPL-2.0-only
"""Filters on live packets: the counts of the commands are those of tcpdump on the interface."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from lab.capture import Capture
from lab.drops import accounted, watch
from lab.expect import at_least, equal, same_sum
from lab.faults import NftDrop
from lab.latency import check_records, ends, follow
from lab.netns import Namespace
from lab.raw import RawSocket
from lab.scenario import scenario
from lab.tool import PATIENT, Result, Tool, side_by_side
from lab.topo import E_IP, VM_IP, bridge_topo
from lab.traffic import udp
from object import packets as p
from object.filter_corpus import expression, flags, icmp, vlan

_IP4, _IP6, _ARP, _TAG, _QINQ = 0x0800, 0x86DD, 0x0806, 0x8100, 0x88A8
_A4, _B4, _C4 = (bytes((10, 9, net, 7)) for net in (1, 2, 3))
_A6, _B6 = bytes.fromhex("fd09" + "00" * 13 + "07"), bytes.fromhex("fd0a" + "00" * 13 + "07")


def _transports() -> Iterator[Tuple[int, bytes]]:
    """(protocol, header and data)."""
    for sport, dport in ((1000, 53), (53, 1000), (40000, 443), (40001, 8080)):
        yield 17, p.udp(bytes(40), sport=sport, dport=dport)
        for bits in (0x02, 0x12, 0x10, 0x04):
            yield 6, p.tcp(b"data", sport=sport, dport=dport, flags=bits)


def _packets() -> Iterator[Tuple[int, bytes]]:
    """(EtherType, packet): both IP versions, options, extension headers, fragments, ARP."""
    for src, dst in ((_A4, _B4), (_B4, _A4), (_C4, _A4)):
        yield _ARP, p.arp(1, spa=src, tpa=dst)
        yield _IP4, p.ip4(p.icmp(bytes(16), kind=8), 1, src=src, dst=dst)
        yield _IP4, p.ip4(p.icmp(bytes(16), kind=3, code=3), 1, src=src, dst=dst)
        for protocol, data in _transports():
            yield _IP4, p.ip4(data, protocol, src=src, dst=dst)
        protocol, data = 17, p.udp(bytes(64), sport=1000, dport=53)
        yield _IP4, p.ip4(data, protocol, src=src, dst=dst, options=b"\x94\x04\0\0")
        yield _IP4, p.ip4(data, protocol, src=src, dst=dst, ident=9, flags=1)
        yield _IP4, p.ip4(data, protocol, src=src, dst=dst, ident=9, frag=72)
    for src, dst in ((_A6, _B6), (_B6, _A6)):
        ends = {"src": src, "dst": dst}
        yield _IP6, p.ip6(p.icmp(bytes(16), kind=128), 58, **ends)
        for protocol, data in _transports():
            yield _IP6, p.ip6(data, protocol, **ends)
            yield _IP6, p.ip6(p.ext(data, "hop", protocol), p.NEXT["hop"], **ends)
        data = p.udp(bytes(64), sport=1000, dport=53)
        yield _IP6, p.ip6(p.fragment(data, 17, 9, more=True), p.NEXT["fragment"], **ends)
        yield _IP6, p.ip6(p.fragment(data, 17, 9, offset=72), p.NEXT["fragment"], **ends)


def _frames() -> List[bytes]:
    """Each packet untagged, in two VLANs, and under two tags."""
    found = [p.eth(bytes(50), 0x88CC)]
    for proto, packet in _packets():
        found.append(p.eth(packet, proto))
        for number in (100, 200):
            found.append(p.eth(p.vlan(packet, number, proto), _TAG))
        inner = p.vlan(packet, 100, proto)
        found.append(p.eth(p.vlan(inner, 300, _TAG), _QINQ))
    return found


def _l4(protocol: int, tests: str) -> str:
    """Behind one hop-by-hop header of 8 bytes, or first fragment, where libpcap does not look.

    :param tests: on bytes of the transport header, ``{0}`` + their offset.
    """
    parts = [
        f"(ip6[6] = 0 and ip6[40] = {protocol} and {tests.format(48)})",
        f"(ip6[6] = 44 and ip6[40] = {protocol} and ip6[42:2] & 0xfff8 = 0 and {tests.format(48)})",
    ]
    return f"(ip6 and ({' or '.join(parts)}))"


def _dst_port(low: int, high: int) -> str:
    test = f"ip6[{{0}}+2:2] >= {low} and ip6[{{0}}+2:2] <= {high}"
    return f"(dst portrange {low}-{high} or {_l4(17, test)} or {_l4(6, test)})"


def _src_port(low: int, high: int) -> str:
    test = f"ip6[{{0}}:2] >= {low} and ip6[{{0}}:2] <= {high}"
    return f"(src portrange {low}-{high} or {_l4(17, test)} or {_l4(6, test)})"


_UDP = "(udp or (ip6 and ip6[6] = 0 and ip6[40] = 17))"
_SYN = f"({flags(0x12, 2)} or {_l4(6, 'ip6[{0}+13] & 0x12 = 2')})"
_NO_TAG = "(not (ether[12:2] = 0x8100 or ether[12:2] = 0x88a8))"

#: Options, and what tcpdump is asked: a single rule of constants.
_CONSTANTS: Tuple[Tuple[str, str], ...] = (
    ("--src-ip 10.9.1.0/24", "src net 10.9.1.0/24"),
    ("--vlan 100 --protocol udp", f"{vlan(100)} and {_UDP}"),
    ("--dst-port 53", _dst_port(53, 53)),
    ("--dst-port 400-9000 -6", f"ip6 and {_dst_port(400, 9000)}"),
    ("--src-ip 10.9.1.7 --dst-ip 10.9.2.7 --src-port 1000 --bidir",
     f"(src host 10.9.1.7 and dst host 10.9.2.7 and {_src_port(1000, 1000)}) or "
     f"(dst host 10.9.1.7 and src host 10.9.2.7 and {_dst_port(1000, 1000)})"),
    ("--eth-type arp --dst-ip 10.9.2.7", "arp dst host 10.9.2.7"),
    ("--tcp-flags syn+~ack", _SYN),
    ("--icmp-type echo-request", icmp(8, 128)),
)  # fmt: skip
#: Lists and files of rules.
_SETS: Tuple[Tuple[str, str], ...] = (
    ("--src-ip 10.9.1.7,fd09::/16", "src host 10.9.1.7 or src net fd09::/16"),
    ("--vlan 200,300-400,none --dst-port 53,443",
     f"({vlan(200)} or {vlan(300, 400)} or {_NO_TAG}) and "
     f"({_dst_port(53, 53)} or {_dst_port(443, 443)})"),
    ("--src-ip 10.9.1.0/24,10.9.3.7 --dst-ip 10.9.0.0/16,10.9.2.0/24 --bidir",
     "((src net 10.9.1.0/24 or src host 10.9.3.7) and dst net 10.9.0.0/16) or "
     "((dst net 10.9.1.0/24 or dst host 10.9.3.7) and src net 10.9.0.0/16)"),
    ("--protocol udp,icmp --src-mac 52:54:00:09:00:aa,52:54:00:09:00:cc",
     f"{_UDP} or icmp or icmp6"),
    ("--vlan 100 --eth-type arp\n--src-ip fd0a::/16 --dst-port 1000\n--tcp-flags rst -4",
     f"({vlan(100)} and arp) or (src net fd0a::/16 and {_dst_port(1000, 1000)}) or "
     "(ip and tcp[13] & 4 = 4)"),
    ("--src-ip 10.9.2.7 --src-port 53 --bidir\n--vlan 300 --src-port 8080 --bidir\n--eth-type lldp",
     f"(src host 10.9.2.7 and {_src_port(53, 53)}) or (dst host 10.9.2.7 and {_dst_port(53, 53)}) "
     f"or ({vlan(300)} and ({_src_port(8080, 8080)} or {_dst_port(8080, 8080)})) or "
     "ether proto 0x88cc"),
    # Of 64 rules one is about these frames.
    ("\n".join(f"--dst-port {8020 + n} --vlan {40 + n}" for n in range(64)),
     f"{vlan(100)} and {_dst_port(8080, 8080)}"),
)  # fmt: skip


def _options(text: str, home: Path) -> Sequence[str]:
    """A line as options, several as a file of rules."""
    if "\n" not in text:
        return text.split()
    path = home / f"rules{len(list(home.iterdir()))}"
    path.write_text(f"# rules of a test\n\n{text}\n")
    return "--filters-file", str(path)


def _steps_add_up(result: Result) -> None:
    """Every drop the command saw ended at one step, was matched, or could not be judged."""
    explain: Dict[str, int] = dict(result.summary["explain"])
    same_sum(
        explain.pop("seen"),
        "seen",
        matched=result.summary["counts"]["matched"],
        unparsed=result.summary["lost"].get("unparsed", 0),
        **explain,
    )


def _drops(lab: Any, cases: Sequence[Tuple[str, str]]) -> None:
    """All frames are dropped at the ingress of one device; each command counts its own."""
    frames = _frames()
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ntools-rules-")))
        ns = stack.enter_context(Namespace("f"))
        ns.ip("link add va type veth peer name vb", "link set va up", "link set vb up")
        drop = NftDrop(ns, 1, "ingress:vb")
        stack.callback(drop.remove)
        capture = stack.enter_context(Capture(ns, "vb"))
        tools = [
            stack.enter_context(
                watch(ns, "--interface", "vb", "--group-by", "reason", "--explain",
                      *_options(text, home))
            )
            for text, _ in cases
        ]  # fmt: skip
        with RawSocket(ns, "va") as sock:
            for frame in frames:
                sock.send(frame)
        capture.wait_for(len(frames))
        results = [tool.stop() for tool in tools]
        capture.stop()
        equal(capture.count(""), len(frames), "frames captured")
        equal(drop.counter(), len(frames), "frames dropped")
        for (text, inner), result in zip(cases, results):
            wanted = capture.count(expression(inner))
            lab.log(f"{wanted:4} of {len(frames)}: {text[:70]!r}")
            check_records(result)
            counts = accounted(result)
            equal(counts["matched"], wanted, f"matched by {text!r}", result.summary["explain"])
            at_least(min(wanted, len(frames) - wanted), 1, "frames on either side")
            equal(result.summary["lost"], {}, "lost")
            _steps_add_up(result)


@scenario(requires=("nft_netdev",), timeout_s=240)
def drops_by_constants(lab: Any) -> None:
    _drops(lab, _CONSTANTS)


@scenario(requires=("nft_netdev",), timeout_s=240)
def drops_by_sets(lab: Any) -> None:
    _drops(lab, _SETS)


@scenario(requires=("tun", "bridge"), timeout_s=240)
def flights(lab: Any) -> None:
    """Packets followed to and from the VM: those tcpdump counts on its tap, no others."""
    cases = (
        ("--protocol icmp,sctp", "icmp"),
        ("--dst-port 9701,9703-9704 --bidir", "port 9701 or portrange 9703-9704"),
        ("--src-ip 10.9.0.2,fd09::/64 --min-len 29", "src host 10.9.0.2"),
        (f"--src-ip {E_IP} --dst-port 9702 --bidir\n--icmp-type echo-reply\n--vlan 7",
         f"(src host {E_IP} and dst port 9702) or (dst host {E_IP} and src port 9702) or "
         "icmp[0] = 0"),
        ("--dst-port 9709,9710\n--src-ip 10.9.0.77 --bidir", ""),
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ntools-rules-")))
        topo = stack.enter_context(bridge_topo(static_neigh=True))
        capture = stack.enter_context(Capture(topo.h, "vnet0"))
        tools = [
            stack.enter_context(follow(topo, "--explain", *_options(text, home)))
            for text, _ in cases
        ]
        pinged = topo.ping(6)
        for port, count in ((9701, 5), (9702, 4), (9703, 3), (9705, 2)):
            answered = topo.udp(port=port, count=count, gap_s=0.01, wait_s=5)
            equal(answered.received, count, f"answers from {port}")
        equal(pinged.received, 6, "pings")
        capture.wait_for(40)
        results = [tool.stop() for tool in tools]
        capture.stop()
        equal(capture.count("ip"), 40, "packets on the tap")
        for (text, inner), result in zip(cases, results):
            wanted = capture.count(inner) if inner else 0
            check_records(result)
            both = [ends(result, direction) for direction in ("rx", "tx")]
            lab.log(f"{wanted:4}: {text!r}", result.summary["explain"])
            equal(sum(rec["started"] for rec in both), wanted, f"started by {text!r}")
            equal(sum(rec["completed"] for rec in both), wanted, f"completed of {text!r}")
            # Entry stages of the devices of this VM: taken, or refused by a step of the filter.
            refused = sum(
                count for name, count in result.summary["explain"].items()
                if name.startswith("filter_")
            )  # fmt: skip
            equal(refused + wanted, 40, f"refused and started by {text!r}")
    equal(sum(rec["started"] for rec in both), 0, "the last filter takes nothing")


@scenario()
def devices_of_two_namespaces(lab: Any) -> None:
    """--interface takes a list, and names devices of other namespaces."""
    with Namespace("a") as a, Namespace("b") as b:
        for ns in (a, b):
            ns.ip("link add va type veth peer name vb", "link set va up", "link set vb up")
        names = f"vb,lo,{b.name}/lo"
        with (
            side_by_side(
                Tool(a, "ntools-drop", ["--format", "json", "--interface", names, *PATIENT]),
                Tool(
                    a, "ntools-drop", ["--format", "json", "--interface", f"{b.name}/lo", *PATIENT]
                ),
                Tool(a, "ntools-drop", ["--format", "json", "--interface", "va,vb", *PATIENT]),
            ) as (three, one, none),
        ):
            udp(a, "127.0.0.1", 7777, 3, wait_s=0.2)
            udp(b, "127.0.0.1", 7777, 5, wait_s=0.2)
            results = [tool.stop() for tool in (three, one, none)]
        found = [
            {rec["netns_inum"] for rec in result.of_type("drop")} for result in results
        ]  # fmt: skip
        equal(found, [{a.inode, b.inode}, {b.inode}, set()], "namespaces")
    equal([accounted(result)["shown"] for result in results], [8, 5, 0], "drops")
    at_least(len(results[0].header["devices"]), 3, "devices in the header")


@scenario(requires=("tun", "bridge"))
def drops_of_a_vm(lab: Any) -> None:
    """--vm: its taps, whatever they are called; packets dropped on other devices do not count."""
    with bridge_topo(static_neigh=True) as topo:
        drop = topo.nft_drop_every(1, "ingress:vnet0", "udp sport 9701")
        name = str(topo.vm.pid)
        with (
            side_by_side(
                watch(topo.h, "--vm", name, "--protocol", "udp"),
                watch(topo.h, "--vm", name, "--interface", "lo", "--protocol", "udp"),
            ) as (tool, both),
        ):
            topo.udp(port=9701, count=4, gap_s=0.01, wait_s=0.5)
            udp(topo.h, "127.0.0.1", 7777, 3, wait_s=0.2)
            results = [tool.stop(), both.stop()]
        equal(drop.counter(), 4, "dropped on the tap")
    equal([accounted(result)["shown"] for result in results], [4, 7], "drops")
    equal({rec["interface"] for rec in results[0].of_type("drop")}, {"vnet0"}, "interfaces")
    equal({rec["src_ip"] for rec in results[0].of_type("drop")}, {VM_IP}, "senders")
