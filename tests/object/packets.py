# SPDX-License-Identifier: GPL-2.0-only
"""Packets by hand, from the inside out: every function puts its header before the payload."""

from __future__ import annotations

import ipaddress
import struct

__all__ = [
    "A4", "A6", "B4", "B6", "ICMPV6", "MAC_A", "MAC_B", "NEXT", "arp", "eth", "ext", "fragment",
    "geneve", "gre", "icmp", "ip4", "ip6", "pad16", "tcp", "udp", "vlan", "vxlan",
]  # fmt: skip

MAC_A, MAC_B = bytes.fromhex("5254000900aa"), bytes.fromhex("5254000900bb")
A4, B4 = ipaddress.ip_address("192.0.2.1").packed, ipaddress.ip_address("198.51.100.2").packed
A6, B6 = ipaddress.ip_address("2001:db8::1").packed, ipaddress.ip_address("2001:db8:7::2").packed
ICMPV6 = 58
NEXT = {"hop": 0, "routing": 43, "fragment": 44, "auth": 51, "opts": 60}


def pad16(address: bytes) -> bytes:
    """An address as it is in struct nt_tuple."""
    return address.ljust(16, b"\0")


def eth(payload: bytes, proto: int = 0x0800, src: bytes = MAC_A, dst: bytes = MAC_B) -> bytes:
    return dst + src + struct.pack("!H", proto) + payload


def vlan(payload: bytes, tag: int, proto: int) -> bytes:
    """Behind the EtherType of the tag; ``proto`` is what follows."""
    return struct.pack("!HH", tag, proto) + payload


def ip4(payload: bytes, protocol: int, *, src: bytes = A4, dst: bytes = B4, ident: int = 0,
        options: bytes = b"", frag: int = 0, flags: int = 0, ttl: int = 64, tos: int = 0,
        length: int | None = None, version: int = 4, ihl: int | None = None) -> bytes:  # fmt: skip
    words = 5 + len(options) // 4
    total = words * 4 + len(payload) if length is None else length
    return struct.pack("!BBHHHBBH", version << 4 | (words if ihl is None else ihl), tos, total,
                       ident, flags << 13 | frag >> 3, ttl, protocol, 0) + src + dst + options + \
        payload  # fmt: skip


def ip6(payload: bytes, next_header: int, *, src: bytes = A6, dst: bytes = B6, hops: int = 64,
        tos: int = 0, length: int | None = None) -> bytes:  # fmt: skip
    size = len(payload) if length is None else length
    return struct.pack("!IHBB", 6 << 28 | tos << 20, size, next_header, hops) + src + dst + payload


def ext(payload: bytes, kind: str, following: int, words: int = 0) -> bytes:
    """An IPv6 extension header; ``words`` is what its length byte says."""
    size = (words + 2) * 4 if kind == "auth" else (words + 1) * 8
    return struct.pack("!BB", following, words).ljust(size, b"\x11") + payload


def fragment(payload: bytes, following: int, ident: int, offset: int = 0,
             more: bool = False) -> bytes:  # fmt: skip
    # The reserved byte must not be taken for a length.
    return struct.pack("!BBHI", following, 0xEE, offset | more, ident) + payload


def tcp(payload: bytes = b"", *, sport: int = 41000, dport: int = 443, seq: int = 0x01020304,
        ack: int = 0x05060708, flags: int = 0x18, window: int = 502,
        options: bytes = b"") -> bytes:  # fmt: skip
    return struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 5 + len(options) // 4 << 4, flags,
                       window, 0, 0) + options + payload  # fmt: skip


def udp(payload: bytes = b"", *, sport: int = 41000, dport: int = 53) -> bytes:
    return struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload


def icmp(payload: bytes = b"", *, kind: int = 8, code: int = 0, ident: int = 0x1234,
         seq: int = 1) -> bytes:  # fmt: skip
    return struct.pack("!BBHHH", kind, code, 0, ident, seq) + payload


def arp(op: int = 1, *, sha: bytes = MAC_A, spa: bytes = A4, tha: bytes = bytes(6),
        tpa: bytes = B4, hardware: int = 1) -> bytes:  # fmt: skip
    return struct.pack("!HHBBH", hardware, 0x0800, 6, 4, op) + sha + spa + tha + tpa


def vxlan(payload: bytes, vni: int = 0x123456, flags: int = 0x08) -> bytes:
    return struct.pack("!BxxxI", flags, vni << 8) + payload


def geneve(payload: bytes, vni: int = 0x654321, proto: int = 0x6558, options: int = 0) -> bytes:
    return struct.pack("!BxHI", options // 4, proto, vni << 8) + b"\x22" * options + payload


def gre(payload: bytes, proto: int = 0x0800, *, checksum: bool = False, key: int | None = None,
        seq: bool = False, version: int = 0) -> bytes:  # fmt: skip
    flags = checksum << 7 | (key is not None) << 5 | seq << 4
    head = struct.pack("!BBH", flags, version, proto)
    head += b"\x33" * 4 if checksum else b""
    head += struct.pack("!I", key) if key is not None else b""
    return head + (b"\x44" * 4 if seq else b"") + payload
