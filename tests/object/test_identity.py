# SPDX-License-Identifier: GPL-2.0-only
"""Digest and key: equal for the same packet at another place, different for the next one."""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from object import packets as p  # noqa: E402
from object.parsing import Parser, harness_fixture, parser_fixture  # noqa: E402

from ntools.engine.budget import identity  # noqa: E402

__all__ = ["harness_fixture", "parser_fixture"]

IP4, IP6, ARP = 0x0800, 0x86DD, 0x0806
TEXT = b"abcdefgh" * 8


def digest(parser: Parser, packet: bytes, proto: int = IP4) -> int:
    return parser.bytes(packet, proto)["digest"]


def key(parser: Parser, packet: bytes, proto: int = IP4) -> int:
    return parser.bytes(packet, proto)["key"]


@pytest.mark.parametrize("packet, proto", [
    (p.ip4(p.tcp(TEXT), 6, ident=1), IP4),
    (p.ip4(p.udp(TEXT), 17, ident=1), IP4),
    (p.ip4(p.icmp(TEXT), 1, ident=1), IP4),
    (p.ip4(TEXT, 50, ident=1), IP4),
    (p.ip6(p.udp(TEXT), 17), IP6),
    (p.ip6(p.fragment(TEXT, 17, 9, offset=8), 44), IP6),
    (p.arp(), ARP),
    (TEXT, 0x88CC),
])  # fmt: skip
def test_same_packet_elsewhere(parser: Parser, packet: bytes, proto: int) -> None:
    """At skb->data, at the network offset, at Ethernet, with a tag in the skb or the data."""
    frame, be = p.eth(packet, proto), int.from_bytes(proto.to_bytes(2, "big"), "little")
    places = {"mac_header": 64, "network_header": 78, "protocol": be}
    found = [parser.bytes(packet, proto)]
    for where, data in (("data", 14), ("eth", 0), ("net", 0), ("any", 14)):
        found.append(parser.skb(where, frame, data, **places))
    tagged = p.eth(p.vlan(packet, 5, proto), 0x8100)
    found.append(parser.skb("eth", tagged, 0))
    # Link padding and a part of the payload that is not linear do not matter.
    found.append(parser.skb("eth", frame + bytes(20), 0))
    rest = len(TEXT) - 16 if len(packet) >= len(TEXT) else 0
    found.append(parser.skb("eth", frame, 0, data_len=rest))
    assert len({(result["digest"], result["key"]) for result in found}) == 1


def test_next_packet_of_a_flow_is_another(parser: Parser) -> None:
    """Consecutive pings; UDP with id 0 and other payload; TCP with other sequence."""
    streams = {
        "ping": [p.ip4(p.icmp(TEXT, seq=i), 1) for i in range(200)],
        "ping6": [p.ip6(p.icmp(TEXT, kind=128, seq=i), 58) for i in range(200)],
        "udp": [p.ip4(p.udp(i.to_bytes(8, "big") + TEXT), 17) for i in range(200)],
        "short udp": [p.ip4(p.udp(bytes([i])), 17) for i in range(200)],
        "udp length": [p.ip4(p.udp(TEXT[:8] + bytes(i)), 17) for i in range(200)],
        "udp id": [p.ip4(p.udp(TEXT), 17, ident=i) for i in range(200)],
        "tcp": [p.ip4(p.tcp(TEXT, seq=1460 * i), 6) for i in range(200)],
        "ack": [p.ip4(p.tcp(ack=1460 * i), 6) for i in range(200)],
        "neighbours": [p.ip6(p.icmp(i.to_bytes(8, "big"), kind=135), 58) for i in range(200)],
        "esp": [p.ip4(TEXT, 50, ident=i) for i in range(200)],
        "fragments": [p.ip4(TEXT, 17, ident=7, frag=8 + 8 * i) for i in range(200)],
    }
    for name, packets in streams.items():
        proto = IP6 if name in ("ping6", "neighbours") else IP4
        assert len({digest(parser, packet, proto) for packet in packets}) == 200, name
        assert len({key(parser, packet, proto) for packet in packets}) == 200, name


def test_echo_and_its_reply(parser: Parser) -> None:
    request, reply = (p.ip4(p.icmp(TEXT, kind=kind), 1) for kind in (8, 0))
    assert digest(parser, request) != digest(parser, reply)


def test_what_hops_change_is_not_in_the_digest(parser: Parser) -> None:
    """Addresses, ports, TTL, TOS: NAT and routing; the key has addresses and ports in it."""
    for one, other in (
        (p.ip4(p.tcp(TEXT), 6, ttl=64),
         p.ip4(p.tcp(TEXT, sport=1, dport=2), 6, ttl=1, tos=9, src=p.B4, dst=p.A4)),
        (p.ip4(p.udp(TEXT), 17, ident=3),
         p.ip4(p.udp(TEXT, sport=1, dport=2), 17, ident=3, ttl=2, src=p.B4)),
        (p.ip4(p.icmp(TEXT, ident=1), 1), p.ip4(p.icmp(TEXT, ident=2), 1, ttl=9, dst=p.A4)),
    ):  # fmt: skip
        assert digest(parser, one) == digest(parser, other)
        assert key(parser, one) != key(parser, other)


def test_what_segmentation_changes(parser: Parser) -> None:
    """PSH, FIN, CWR and the length; SYN, RST and ACK tell packets apart."""
    packet = p.ip4(p.tcp(TEXT * 4, flags=0x18), 6, ident=5)
    first = p.ip4(p.tcp(TEXT, flags=0x10), 6, ident=5)
    assert digest(parser, packet) == digest(parser, first)
    assert key(parser, packet) == key(parser, first)
    for flags in (0x12, 0x14, 0x00):
        assert digest(parser, first) != digest(parser, p.ip4(p.tcp(TEXT, flags=flags), 6, ident=5))
    datagram, part = p.ip4(p.udp(TEXT * 4), 17, ident=5), p.ip4(p.udp(TEXT), 17, ident=5)
    assert digest(parser, datagram) != digest(parser, part)


def test_arp_digest(parser: Parser) -> None:
    ask = digest(parser, p.arp(1, tpa=p.A4), ARP)
    assert ask != digest(parser, p.arp(2, tpa=p.A4), ARP)
    assert ask != digest(parser, p.arp(1, tpa=p.B4), ARP)


def test_spread(parser: Parser) -> None:
    """5,000 packets of one flow: no more equal digests than chance, bits evenly used."""
    source = random.Random(1)
    seen = [digest(parser, p.ip4(p.udp(source.randbytes(8)), 17)) for _ in range(5000)]
    assert len(set(seen)) >= 4999
    for bit in range(32):
        assert 2300 < sum(value >> bit & 1 for value in seen) < 2700
    assert 0 not in seen


def test_user_space_computes_the_same_key(parser: Parser) -> None:
    """Records made there are sampled as those of the kernel."""
    for number in range(20):
        found = parser.bytes(p.ip4(p.udp(TEXT[number:]), 17, ident=number), IP4)
        flow = found["pkt"]["tuple"]
        ports = struct.pack("<HHH", flow["src_port"], flow["dst_port"], flow["eth_proto"])
        raw = bytes(flow["src"]) + bytes(flow["dst"]) + ports
        raw += bytes([flow["family"], flow["protocol"]])
        assert identity(raw, found["digest"]) == found["key"]
