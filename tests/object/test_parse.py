# SPDX-License-Identifier: GPL-2.0-only
"""The parser on packets made by hand, byte for byte, in the running kernel."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any, Optional

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from object import packets as p  # noqa: E402
from object.oracle import expect  # noqa: E402
from object.parsing import (  # noqa: E402
    HEADROOM,
    Parser,
    flags_of,
    harness_fixture,
    parser_fixture,
)

__all__ = ["harness_fixture", "parser_fixture"]

IP4, IP6, ARP = 0x0800, 0x86DD, 0x0806
DATA = bytes(range(0xA0, 0xC0))


def parse(
    parser: Parser, packet: bytes, proto: int, linear: Optional[int] = None,
    end: Optional[int] = None,
) -> tuple[dict[str, Any], set[str]]:  # fmt: skip
    """Parses a packet in the kernel; every field has to be what the oracle says."""
    result = parser.bytes(packet, proto, linear, end)
    stop = HEADROOM + (len(packet) if end is None else end)
    readable = stop if linear is None else HEADROOM + linear
    assert result["result"] == 0
    assert result["pkt"] == expect(bytes(HEADROOM) + packet, HEADROOM, readable, stop, proto)
    return result["pkt"], flags_of(result)


def test_tcp(parser: Parser) -> None:
    packet = p.ip4(p.tcp(DATA, sport=41000, dport=443, seq=0xF1020304, flags=0x1B), 6,
                   ident=0xBEEF, ttl=63, tos=0xB8)  # fmt: skip
    pkt, flags = parse(parser, packet, IP4)
    assert flags == {"L3", "L4"}
    assert pkt["tuple"] == {
        "src": p.pad16(p.A4), "dst": p.pad16(p.B4), "src_port": 41000, "dst_port": 443,
        "eth_proto": IP4, "family": 4, "protocol": 6,
    }  # fmt: skip
    assert (pkt["seq"], pkt["ack"], pkt["window"]) == (0xF1020304, 0x05060708, 502)
    assert (pkt["tcp_flags"], pkt["tcp_hdr_len"]) == (0x1B, 20)
    assert (pkt["ip_id"], pkt["ttl"], pkt["tos"]) == (0xBEEF, 63, 0xB8)
    assert (pkt["total_len"], pkt["payload_len"]) == (20 + 20 + 32, 32)
    assert pkt["l4_off"] - pkt["l3_off"] == 20 and pkt["payload_off"] - pkt["l4_off"] == 20


def test_tcp_options(parser: Parser) -> None:
    packet = p.ip4(p.tcp(DATA, options=bytes(12)), 6, options=b"\x94\x04\x00\x00" * 10)
    pkt, flags = parse(parser, packet, IP4)
    assert (pkt["tcp_hdr_len"], pkt["payload_len"]) == (32, 32)
    assert pkt["l4_off"] - pkt["l3_off"] == 60
    assert pkt["tuple"]["dst_port"] == 443


@pytest.mark.parametrize("protocol", [17, 136])
def test_udp(parser: Parser, protocol: int) -> None:
    pkt, flags = parse(parser, p.ip4(p.udp(DATA, sport=5353, dport=53), protocol), IP4)
    assert flags == {"L3", "L4", "PAYLOAD"}
    assert (pkt["tuple"]["src_port"], pkt["tuple"]["dst_port"]) == (5353, 53)
    assert pkt["payload"] == int.from_bytes(DATA[:8], "little")
    assert pkt["payload_len"] == 32


@pytest.mark.parametrize("protocol", [132, 33])
def test_only_ports(parser: Parser, protocol: int) -> None:
    """SCTP, DCCP: a checksum follows that is not the same everywhere."""
    pkt, flags = parse(parser, p.ip4(p.udp(DATA, sport=5353, dport=53), protocol), IP4)
    assert flags == {"L3", "L4"}
    assert (pkt["tuple"]["src_port"], pkt["tuple"]["dst_port"]) == (5353, 53)


@pytest.mark.parametrize("size", range(10))
def test_short_payload(parser: Parser, size: int) -> None:
    """What there is of 8 bytes; link padding behind the packet is not payload."""
    packet = p.ip4(p.udp(DATA[:size]), 17)
    pkt, flags = parse(parser, packet + b"\xee" * 18, IP4)
    assert pkt["payload"] == int.from_bytes(DATA[: min(size, 8)], "little")
    assert ("PAYLOAD" in flags) == bool(size)
    assert (pkt["payload_len"], pkt["total_len"]) == (size, 28 + size)


def test_icmp(parser: Parser) -> None:
    pkt, flags = parse(parser, p.ip4(p.icmp(DATA, ident=0x1234, seq=7), 1), IP4)
    assert flags == {"L3", "ICMP", "ECHO", "PAYLOAD"}
    assert (pkt["icmp_type"], pkt["icmp_code"]) == (8, 0)
    assert (pkt["icmp_id"], pkt["icmp_seq"]) == (0x1234, 7)
    assert (pkt["tuple"]["src_port"], pkt["tuple"]["dst_port"]) == (0x0800, 0x1234)
    pkt, flags = parse(parser, p.ip4(p.icmp(DATA, kind=3, code=1), 1), IP4)
    assert flags == {"L3", "ICMP", "PAYLOAD"}
    assert (pkt["icmp_type"], pkt["icmp_code"], pkt["icmp_id"]) == (3, 1, 0)
    assert (pkt["tuple"]["src_port"], pkt["tuple"]["dst_port"]) == (0x0301, 0)


@pytest.mark.parametrize("kind, echo", [(128, True), (129, True), (135, False), (8, False)])
def test_icmpv6(parser: Parser, kind: int, echo: bool) -> None:
    pkt, flags = parse(parser, p.ip6(p.icmp(DATA, kind=kind, seq=9), p.ICMPV6), IP6)
    assert ("ECHO" in flags) == echo and "ICMP" in flags
    assert pkt["icmp_seq"] == (9 if echo else 0)


@pytest.mark.parametrize("family, protocol", [(4, 58), (6, 1)])
def test_icmp_of_the_other_version(parser: Parser, family: int, protocol: int) -> None:
    make, proto = (p.ip4, IP4) if family == 4 else (p.ip6, IP6)
    _pkt, flags = parse(parser, make(p.icmp(DATA), protocol), proto)
    assert flags == {"L3"}


def test_unknown_protocol(parser: Parser) -> None:
    pkt, flags = parse(parser, p.ip4(DATA, 50, ident=3), IP4)
    assert flags == {"L3"} and pkt["tuple"]["protocol"] == 50 and pkt["ip_id"] == 3


def test_ipv6(parser: Parser) -> None:
    pkt, flags = parse(parser, p.ip6(p.udp(DATA), 17, tos=0xA5, hops=3), IP6)
    assert flags == {"L3", "L4", "PAYLOAD"}
    assert (pkt["tuple"]["src"], pkt["tuple"]["dst"]) == (p.A6, p.B6)
    assert (pkt["tuple"]["family"], pkt["tuple"]["protocol"]) == (6, 17)
    assert (pkt["tos"], pkt["ttl"], pkt["total_len"]) == (0xA5, 3, 40 + 8 + 32)


@pytest.mark.parametrize("kind", ["hop", "routing", "opts", "auth"])
@pytest.mark.parametrize("words", [0, 1, 4])
def test_extension_header(parser: Parser, kind: str, words: int) -> None:
    pkt, flags = parse(parser, p.ip6(p.ext(p.udp(DATA), kind, 17, words), p.NEXT[kind]), IP6)
    assert flags == {"L3", "L4", "PAYLOAD"}
    assert pkt["tuple"]["dst_port"] == 53 and pkt["tuple"]["protocol"] == 17
    size = (words + 2) * 4 if kind == "auth" else (words + 1) * 8
    assert pkt["l4_off"] - pkt["l3_off"] == 40 + size


@pytest.mark.parametrize("count", range(9))
def test_extension_header_count(parser: Parser, count: int) -> None:
    """Six headers are skipped; with more the parser gives up and says so."""
    packet, following = p.udp(DATA), 17
    for i in range(count):
        kind = ("opts", "routing", "hop", "auth")[i % 4]
        packet, following = p.ext(packet, kind, following, i % 3), p.NEXT[kind]
    pkt, flags = parse(parser, p.ip6(packet, following), IP6)
    if count <= 6:
        assert flags == {"L3", "L4", "PAYLOAD"} and pkt["tuple"]["dst_port"] == 53
    else:
        assert flags == {"L3", "DEEP"}
        assert pkt["tuple"]["src_port"] == pkt["tuple"]["dst_port"] == 0


def test_ipv4_fragments(parser: Parser) -> None:
    body = p.udp(DATA)
    pkt, flags = parse(parser, p.ip4(body[:24], 17, ident=77, flags=1), IP4)
    assert flags == {"L3", "L4", "PAYLOAD", "FRAG", "MF"}
    assert (pkt["ip_id"], pkt["frag_off"], pkt["tuple"]["dst_port"]) == (77, 0, 53)
    pkt, flags = parse(parser, p.ip4(body[24:], 17, ident=77, flags=1, frag=24), IP4)
    assert flags == {"L3", "FRAG", "MF"}
    assert (pkt["frag_off"], pkt["tuple"]["src_port"], pkt["tuple"]["dst_port"]) == (24, 0, 0)
    pkt, flags = parse(parser, p.ip4(body[24:], 17, ident=77, frag=65528), IP4)
    assert flags == {"L3", "FRAG"} and pkt["frag_off"] == 65528
    # "Don't fragment" is not a fragment.
    assert parse(parser, p.ip4(body, 17, flags=2), IP4)[1] == {"L3", "L4", "PAYLOAD"}


def test_ipv6_fragments(parser: Parser) -> None:
    body = p.udp(DATA)
    first = p.ip6(p.fragment(body[:24], 17, 0xCAFE0001, more=True), p.NEXT["fragment"])
    pkt, flags = parse(parser, first, IP6)
    assert flags == {"L3", "L4", "PAYLOAD", "FRAG", "MF"}
    assert (pkt["ip_id"], pkt["tuple"]["dst_port"]) == (0xCAFE0001, 53)
    later = p.fragment(body[24:], 17, 0xCAFE0001, offset=24)
    pkt, flags = parse(parser, p.ip6(p.ext(later, "hop", 44), 0), IP6)
    assert flags == {"L3", "FRAG"}
    assert (pkt["frag_off"], pkt["tuple"]["protocol"], pkt["tuple"]["dst_port"]) == (24, 17, 0)
    # What follows the header of a later fragment is data, even if it could be a header.
    pkt, flags = parse(parser, p.ip6(p.fragment(body, 60, 1, offset=8), 44), IP6)
    assert flags == {"L3", "FRAG"} and pkt["tuple"]["protocol"] == 60


def test_arp(parser: Parser) -> None:
    pkt, flags = parse(parser, p.arp(2, tha=p.MAC_B) + bytes(18), ARP)
    assert flags == {"L3"}
    assert pkt["tuple"] == {
        "src": p.pad16(p.A4), "dst": p.pad16(p.B4), "src_port": 0, "dst_port": 0,
        "eth_proto": ARP, "family": 0, "protocol": 0,
    }  # fmt: skip
    assert (pkt["arp_op"], pkt["arp_sha"], pkt["arp_tha"]) == (2, p.MAC_A, p.MAC_B)
    assert pkt["total_len"] == 28
    assert parse(parser, p.arp(3), 0x8035)[0]["arp_op"] == 3
    pkt, flags = parse(parser, p.arp(hardware=6), ARP)
    assert flags == {"BAD"} and pkt["tuple"]["src"] == bytes(16)


def test_other_ethertype(parser: Parser) -> None:
    pkt, flags = parse(parser, DATA, 0x88CC)
    assert flags == {"PAYLOAD"}
    assert (pkt["tuple"]["eth_proto"], pkt["tuple"]["family"]) == (0x88CC, 0)
    assert pkt["payload"] == int.from_bytes(DATA[:8], "little")


def test_tags_in_the_data(parser: Parser) -> None:
    inside = p.ip4(p.udp(DATA), 17)
    pkt, flags = parse(parser, p.vlan(inside, 0x6064, IP4), 0x8100)
    assert (pkt["vlan_id"], pkt["vlan_pcp"], pkt["vlan_proto"]) == (100, 3, 0x8100)
    assert pkt["inner_vlan_id"] == 0xFFFF and pkt["tuple"]["eth_proto"] == IP4
    assert pkt["tuple"]["dst_port"] == 53 and pkt["l3_off"] == HEADROOM + 4
    double = p.vlan(p.vlan(inside, 0xA0C8, IP4), 300, 0x8100)
    pkt, flags = parse(parser, double, 0x88A8)
    assert (pkt["vlan_id"], pkt["vlan_proto"], pkt["inner_vlan_id"]) == (300, 0x88A8, 200)
    assert pkt["inner_vlan_pcp"] == 5 and pkt["tuple"]["dst_port"] == 53
    # A third tag is where the parser stops.
    pkt, flags = parse(parser, p.vlan(double, 400, 0x88A8), 0x88A8)
    assert pkt["tuple"]["eth_proto"] == 0x8100 and "L3" not in flags
    # A priority tag has id 0, which is not "none".
    assert parse(parser, p.vlan(inside, 0xE000, IP4), 0x8100)[0]["vlan_id"] == 0


@pytest.mark.parametrize("packet, proto", [
    (p.ip4(p.udp(DATA), 17, version=5), IP4),
    (p.ip4(p.udp(DATA), 17, version=0), IP4),
    (p.ip6(p.udp(DATA), 17), IP4),
    (p.ip4(p.udp(DATA), 17), IP6),
    (p.ip4(p.udp(DATA), 17, ihl=4), IP4),
    (p.ip4(p.udp(DATA), 17, ihl=0), IP4),
    (b"", IP4),
    (b"", IP6),
])  # fmt: skip
def test_no_ip_header(parser: Parser, packet: bytes, proto: int) -> None:
    pkt, flags = parse(parser, packet, proto)
    assert flags == {"BAD"}
    assert pkt["tuple"]["family"] == 0 and pkt["tuple"]["src"] == bytes(16)


def test_contradictions(parser: Parser) -> None:
    """Lengths that cannot be; addresses stay, ports need their bytes inside the packet."""
    # Longer than what is there: the ports are there.
    pkt, flags = parse(parser, p.ip4(p.udp(DATA), 17, length=1500), IP4)
    assert flags == {"L3", "L4", "PAYLOAD", "BAD"} and pkt["total_len"] == 1500
    # Shorter than its own headers.
    for length in (1, 19, 20, 27):
        pkt, flags = parse(parser, p.ip4(p.udp(DATA), 17, length=length), IP4)
        assert flags == {"L3", "BAD"} and pkt["tuple"]["dst_port"] == 0
    pkt, flags = parse(parser, p.ip4(p.tcp(DATA), 6, length=39), IP4)
    assert flags == {"L3", "BAD"} and pkt["tuple"]["dst_port"] == 0
    # Options behind the end.
    pkt, flags = parse(parser, p.ip4(p.udp(DATA), 17, ihl=15, length=40), IP4)
    assert flags == {"L3", "BAD"}
    # TCP header length below 20 bytes, and behind the end.
    for words in (0, 4, 15):
        segment = bytearray(p.tcp(DATA[:4]))
        segment[12] = words << 4
        pkt, flags = parse(parser, p.ip4(bytes(segment), 6), IP4)
        assert flags == {"L3", "L4", "BAD"} and pkt["payload_len"] == 0
    # An extension header that ends behind the packet.
    broken = bytearray(p.ext(p.udp(DATA), "opts", 17))
    broken[1] = 200
    pkt, flags = parse(parser, p.ip6(bytes(broken), 60), IP6)
    assert flags == {"L3", "BAD"} and pkt["tuple"]["dst_port"] == 0


def test_no_length_in_the_header(parser: Parser) -> None:
    """Packets above 64 KiB have length 0; the packet ends with the skb."""
    for packet, proto in ((p.ip4(p.tcp(DATA), 6, length=0), IP4),
                          (p.ip6(p.tcp(DATA), 6, length=0), IP6)):  # fmt: skip
        pkt, flags = parse(parser, packet, proto, linear=len(packet), end=100000)
        assert flags == {"L3", "L4"}
        assert pkt["total_len"] == 100000
        assert pkt["payload_len"] == 100000 - (len(packet) - len(DATA))


def six_headers(packet: bytes, following: int) -> bytes:
    for _ in range(6):
        packet, following = p.ext(packet, "opts", following), 60
    return packet


SAMPLES = {
    "tcp": (p.ip4(p.tcp(DATA, options=bytes(12)), 6), IP4),
    "udp options": (p.ip4(p.udp(DATA), 17, options=bytes(8)), IP4),
    "icmp": (p.ip4(p.icmp(DATA), 1), IP4),
    "short udp": (p.ip4(p.udp(b"\xd1\xd2\xd3"), 17), IP4),
    "tcp6": (p.ip6(p.tcp(DATA), 6), IP6),
    "udp6 exts": (
        p.ip6(p.ext(p.ext(p.ext(p.udp(DATA), "auth", 17, 4), "routing", 51, 2), "hop", 43), 0),
        IP6,
    ),  # fmt: skip
    "first fragment": (p.ip6(p.ext(p.fragment(p.udp(DATA), 17, 5, more=True), "hop", 44), 0), IP6),
    "six exts": (p.ip6(six_headers(p.icmp(DATA, kind=128), 58), 60), IP6),
    "arp": (p.arp(), ARP),
    "lldp": (DATA, 0x88CC),
    "qinq": (p.vlan(p.vlan(p.ip4(p.udp(DATA), 17), 10, IP4), 20, 0x8100), 0x88A8),
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("cut", ["linear", "packet"])
def test_truncated_everywhere(parser: Parser, name: str, cut: str) -> None:
    """Only so many bytes are linear, or exist: nothing behind them is ever reported.

    The memory behind is filled, so a field read from there would not be 0.
    """
    packet, proto = SAMPLES[name]
    whole = parser.bytes(packet, proto)["pkt"]
    for size in range(len(packet)):
        if cut == "linear":
            pkt, flags = parse(parser, packet, proto, linear=size)
            assert not flags & {"BAD"}
        else:
            pkt, flags = parse(parser, packet[:size], proto)
            # Then the IP header tells a length the packet does not have.
            assert "TRUNCATED" not in flags or "BAD" in flags
        readable = HEADROOM + size
        if flags & {"L4", "ICMP"}:
            assert pkt["l4_off"] + (20 if pkt["tuple"]["protocol"] == 6 else 8) <= readable
        else:
            assert pkt["tuple"]["src_port"] == pkt["tuple"]["dst_port"] == 0
        if "PAYLOAD" in flags and cut == "linear":
            assert pkt["payload_off"] + min(8, pkt["payload_len"]) <= readable
        if pkt["tuple"]["dst_port"]:
            assert pkt["tuple"] == whole["tuple"]


def test_random(parser: Parser) -> None:
    """Damaged packets at random: every field as the oracle says."""
    source = random.Random(4242)
    samples = list(SAMPLES.values())
    seen: set[frozenset[str]] = set()
    for _ in range(6000):
        packet, proto = source.choice(samples)
        data = bytearray(packet)
        for _ in range(source.choice((1, 1, 2, 5))):
            place = source.randrange(min(len(data), 100))
            data[place] = source.choice((0, 4, 6, 17, 43, 44, 51, 60, 255, source.randrange(256)))
        end = source.choice((len(data), len(data), source.randrange(len(data) + 1), 2000))
        linear = source.choice((end, source.randrange(end + 1)))
        linear = min(linear, len(data))
        proto = source.choice((proto, proto, proto, 0x8100, IP4, IP6))
        _pkt, flags = parse(parser, bytes(data), proto, linear, end)
        seen.add(frozenset(flags))
    # Otherwise the packets are not as different as they should be.
    assert len(seen) > 25
    assert {"DEEP", "FRAG", "MF", "TRUNCATED", "BAD", "ECHO"} <= set().union(*seen)


def test_unreadable_memory(parser: Parser) -> None:
    """A fault is an error for the caller to count, not a packet."""
    result = parser.skb("data", b"", 1 << 60, len=1000, protocol=0x0008, mac_header=0xFFFF)
    assert result["result"] == -1 & (1 << 64) - 1
    assert flags_of(result) == {"FAULT"}
