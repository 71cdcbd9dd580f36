# SPDX-License-Identifier: GPL-2.0-only
"""What the parser should find in a packet, said a second time and in another language.

Written on its own, with exceptions and slices where the BPF code has flags and
unrolled steps. The tests compare every field of struct nt_pkt with it.
"""

from __future__ import annotations

import struct
from typing import Any

__all__ = ["FLAGS", "expect"]

FLAGS = {name: 1 << i for i, name in enumerate(
    "L2 L3 L4 ICMP ECHO PAYLOAD FRAG MF VLAN_ACC TUNNEL TRUNCATED BAD DEEP FAULT".split()
)}  # fmt: skip
_VLAN = (0x8100, 0x88A8)
_EXT = (0, 43, 44, 51, 60)
_EMPTY = {
    "dmac": bytes(6), "smac": bytes(6), "vlan_id": 0xFFFF, "inner_vlan_id": 0xFFFF,
    "vlan_proto": 0, "vlan_pcp": 0, "inner_vlan_pcp": 0, "ip_id": 0, "seq": 0, "ack": 0,
    "window": 0, "frag_off": 0, "icmp_id": 0, "icmp_seq": 0, "icmp_type": 0, "icmp_code": 0,
    "tcp_flags": 0, "ttl": 0, "arp_op": 0, "tos": 0, "tcp_hdr_len": 0, "total_len": 0,
    "payload_len": 0, "payload": 0, "tunnel_id": 0, "l3_off": 0, "l4_off": 0, "payload_off": 0,
    "arp_sha": bytes(6), "arp_tha": bytes(6),
}  # fmt: skip


class Short(Exception):
    """A header ends behind what can be read."""


class _Parse:
    def __init__(self, data: bytes, off: int, linear: int, end: int) -> None:
        self.data, self.off, self.linear, self.end = data, off, linear, end
        self.pkt: dict[str, Any] = dict(_EMPTY)
        self.tuple: dict[str, Any] = {"src": bytes(16), "dst": bytes(16), "src_port": 0,
                                      "dst_port": 0, "eth_proto": 0, "family": 0,
                                      "protocol": 0}  # fmt: skip
        self.flags: set[str] = set()

    def take(self, size: int) -> bytes:
        if self.off + size > self.linear:
            raise Short
        return self.data[self.off : self.off + size]

    def all(self, proto: int) -> None:
        for _ in range(2):
            self.tuple["eth_proto"] = proto
            if proto in _VLAN:
                tag, following = struct.unpack("!HH", self.take(4))
                self.tag(proto, tag)
                self.off, proto = self.off + 4, following
        self.tuple["eth_proto"] = proto
        if self.off > self.end:
            self.flags.add("BAD")
            return
        self.pkt["l3_off"] = self.off
        if proto in (0x0806, 0x8035):
            self.arp()
        elif proto == 0x0800:
            self.ip4()
        elif proto == 0x86DD:
            self.ip6()
        else:
            self.pkt["total_len"] = self.end - self.off
            self.payload()

    def tag(self, proto: int, tag: int) -> None:
        if not self.pkt["vlan_proto"]:
            self.pkt.update(vlan_proto=proto, vlan_id=tag & 0xFFF, vlan_pcp=tag >> 13)
        elif self.pkt["inner_vlan_id"] == 0xFFFF:
            self.pkt.update(inner_vlan_id=tag & 0xFFF, inner_vlan_pcp=tag >> 13)

    def arp(self) -> None:
        kind, proto, sizes, op, sha, spa, tha, tpa = struct.unpack("!HHHH6s4s6s4s", self.take(28))
        self.pkt.update(arp_op=op, total_len=28)
        if (kind, proto, sizes) != (1, 0x0800, 0x0604):
            self.flags.add("BAD")
            return
        self.pkt.update(arp_sha=sha, arp_tha=tha)
        self.addresses(spa, tpa)

    def addresses(self, src: bytes, dst: bytes) -> None:
        self.tuple.update(src=src.ljust(16, b"\0"), dst=dst.ljust(16, b"\0"))
        self.flags.add("L3")

    def length(self, told: int) -> None:
        there = self.end - self.off
        if told > there:
            self.flags.add("BAD")
        self.pkt["total_len"] = told or there
        self.end = self.off + (told or there)
        self.linear = min(self.linear, self.end)

    def ip4(self) -> None:
        head = self.take(20)
        first, tos, told, ident, frag, ttl, protocol = struct.unpack_from("!BBHHHBB", head)
        size = (first & 15) * 4
        if first >> 4 != 4 or size < 20:
            self.flags.add("BAD")
            return
        self.tuple.update(family=4, protocol=protocol)
        self.addresses(head[12:16], head[16:20])
        self.pkt.update(ttl=ttl, tos=tos, ip_id=ident, frag_off=(frag & 0x1FFF) * 8)
        if frag & 0x3FFF:
            self.flags.add("FRAG")
        if frag & 0x2000:
            self.flags.add("MF")
        self.length(told)
        self.off += size
        self.l4()

    def ip6(self) -> None:
        head = self.take(40)
        first, told, following, hops = struct.unpack_from("!IHBB", head)
        if first >> 28 != 6:
            self.flags.add("BAD")
            return
        self.tuple["family"] = 6
        self.addresses(head[8:24], head[24:40])
        self.pkt.update(ttl=hops, tos=first >> 20 & 0xFF)
        self.length(told + 40 if told else 0)
        self.off += 40
        self.tuple["protocol"] = following
        fragment = None
        for _ in range(6):
            if following not in _EXT or (fragment and fragment[0]):
                break
            self.tuple["protocol"] = following
            after, size, word, ident = struct.unpack("!BBHI", self.take(8))
            if following == 44:
                fragment = (word & 0xFFF8, word & 1, ident)
                self.off += 8
            elif following == 51:
                self.off += (size + 2) * 4
            else:
                self.off += (size + 1) * 8
            following = self.tuple["protocol"] = after
        else:
            if following in _EXT and not (fragment and fragment[0]):
                self.flags.add("DEEP")
                return
        if fragment:
            self.pkt.update(frag_off=fragment[0], ip_id=fragment[2])
            self.flags.add("FRAG")
            if fragment[1]:
                self.flags.add("MF")
        self.l4()

    def l4(self) -> None:
        self.pkt["l4_off"] = self.off
        if self.pkt["frag_off"]:
            return
        if self.off > self.end:
            self.flags.add("BAD")
            return
        protocol = self.tuple["protocol"]
        icmp = protocol == {4: 1, 6: 58}[self.tuple["family"]]
        if protocol == 6:
            self.tcp()
        elif icmp:
            self.icmp()
        elif protocol in (17, 33, 132, 136):
            self.ports(self.take(8))
            if protocol in (17, 136):
                self.off += 8
                self.payload()

    def ports(self, head: bytes) -> None:
        self.tuple["src_port"], self.tuple["dst_port"] = struct.unpack_from("!HH", head)
        self.flags.add("L4")

    def tcp(self) -> None:
        head = self.take(20)
        self.ports(head)
        seq, ack, words, flags, window = struct.unpack_from("!IIBBH", head, 4)
        size = (words >> 4) * 4
        self.pkt.update(seq=seq, ack=ack, tcp_flags=flags, window=window, tcp_hdr_len=size)
        self.off += size
        if size < 20 or self.off > self.end:
            self.flags.add("BAD")
            return
        self.pkt.update(payload_off=self.off, payload_len=self.end - self.off)

    def icmp(self) -> None:
        kind, code, _sum, ident, seq = struct.unpack("!BBHHH", self.take(8))
        self.flags.add("ICMP")
        self.pkt.update(icmp_type=kind, icmp_code=code)
        self.tuple["src_port"] = kind << 8 | code
        if kind in {4: (0, 8), 6: (128, 129)}[self.tuple["family"]]:
            self.flags.add("ECHO")
            self.pkt.update(icmp_id=ident, icmp_seq=seq)
            self.tuple["dst_port"] = ident
        self.off += 8
        self.payload()

    def payload(self) -> None:
        self.pkt.update(payload_off=self.off, payload_len=self.end - self.off)
        first = self.data[self.off : min(self.off + 8, self.end)]
        if self.off < self.end and self.off + min(8, self.end - self.off) <= self.linear:
            self.pkt["payload"] = int.from_bytes(first, "little")
            self.flags.add("PAYLOAD")


def expect(data: bytes, off: int, linear: int, end: int, proto: int) -> dict[str, Any]:
    """All fields of struct nt_pkt; the arguments are those of nt_parse_bytes()."""
    parse = _Parse(data, off, linear, end)
    try:
        parse.all(proto)
    except Short:
        parse.flags.add("BAD" if parse.linear >= parse.end else "TRUNCATED")
    flags = sum(FLAGS[name] for name in parse.flags)
    return {"tuple": parse.tuple, "flags": flags, **parse.pkt}
