# SPDX-License-Identifier: GPL-2.0-only
"""The packet filter: each criterion, the order of rejection, both directions."""

from __future__ import annotations

import ipaddress
import random
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from object import packets as p  # noqa: E402
from object.parsing import Parser, harness_fixture, parser_fixture  # noqa: E402

__all__ = ["harness_fixture", "parser_fixture"]

IP4, IP6, ARP = 0x0800, 0x86DD, 0x0806
UDP = p.ip4(p.udp(b"payload!", sport=1000, dport=53), 17)
UDP6 = p.ip6(p.udp(b"payload!", sport=1000, dport=53), 17)
TCP = p.ip4(p.tcp(flags=0x02), 6)
ICMP = p.ip4(p.icmp(kind=8), 1)


def prefix(text: str, side: str = "src") -> dict[str, Any]:
    """Criterion of an address or network."""
    network = ipaddress.ip_network(text)
    return {
        f"{side}_ip": network.network_address.packed,
        f"{side}_mask": network.netmask.packed,
        "family": network.version,
    }


def verdict(parser: Parser, packet: bytes, proto: int, use: str, **fields: Any) -> str:
    """The criterion that refuses the packet, NONE if it is wanted."""
    if "protocol" in fields:
        fields.setdefault("protocol_alt", fields["protocol"])
    filter = {"used": parser.used(*use.split()), **fields}
    result = parser.bytes(packet, proto, filter=filter)
    enum = parser.enum("nt_reject")
    return {value: name for name, value in enum.items()}[result["reject"]][len("NT_REJECT_") :]


def test_empty_filter_takes_everything(parser: Parser) -> None:
    for packet, proto in ((UDP, IP4), (p.arp(), ARP), (b"", IP4), (bytes(40), 0x88CC)):
        assert verdict(parser, packet, proto, "") == "NONE"


@pytest.mark.parametrize("text, good", [
    ("192.0.2.1/32", True), ("192.0.2.0/24", True), ("0.0.0.0/0", True), ("192.0.2.2/32", False),
    ("192.0.3.0/24", False), ("198.51.100.2/32", False), ("::/0", False),
    ("c000:201::/32", False),
])  # fmt: skip
def test_source_address(parser: Parser, text: str, good: bool) -> None:
    want = "NONE" if good else "SRC_IP"
    assert verdict(parser, UDP, IP4, "SRC_IP", **prefix(text)) == want


@pytest.mark.parametrize("text, good", [
    ("2001:db8:7::2/128", True), ("2001:db8:7::/48", True), ("2001:db8::/33", True),
    ("2001:db8:8000::/33", False), ("2001:db8:7::3/128", False), ("32.1.13.184/32", False),
])  # fmt: skip
def test_destination_address(parser: Parser, text: str, good: bool) -> None:
    want = "NONE" if good else "DST_IP"
    assert verdict(parser, UDP6, IP6, "DST_IP", **prefix(text, "dst")) == want


def test_addresses_of_arp(parser: Parser) -> None:
    """An IPv4 address is also asked for by ARP; the family criterion excludes that."""
    assert verdict(parser, p.arp(), ARP, "SRC_IP", **prefix("192.0.2.1/32")) == "NONE"
    assert verdict(parser, p.arp(), ARP, "DST_IP", **prefix("198.51.100.2/32", "dst")) == "NONE"
    assert verdict(parser, p.arp(), ARP, "SRC_IP", **prefix("192.0.2.9/32")) == "SRC_IP"
    fields = prefix("192.0.2.1/32")
    assert verdict(parser, p.arp(), ARP, "FAMILY SRC_IP", **fields) == "FAMILY"
    assert verdict(parser, p.arp(hardware=6), ARP, "SRC_IP", **prefix("0.0.0.0/0")) == "SRC_IP"


def test_protocol(parser: Parser) -> None:
    assert verdict(parser, UDP, IP4, "PROTOCOL", protocol=17) == "NONE"
    assert verdict(parser, TCP, IP4, "PROTOCOL", protocol=17) == "PROTOCOL"
    # Two protocols of one name.
    for packet, proto in ((ICMP, IP4), (p.ip6(p.icmp(kind=128), 58), IP6)):
        assert verdict(parser, packet, proto, "PROTOCOL", protocol=1, protocol_alt=58) == "NONE"
    # Protocol 0 is hop-by-hop, not "no IP at all".
    assert verdict(parser, p.arp(), ARP, "PROTOCOL", protocol=0) == "PROTOCOL"


def test_ports(parser: Parser) -> None:
    assert verdict(parser, UDP, IP4, "SRC_PORT DST_PORT", src_port=1000, dst_port=53) == "NONE"
    assert verdict(parser, UDP, IP4, "SRC_PORT", src_port=53) == "PORT"
    assert verdict(parser, UDP6, IP6, "DST_PORT", dst_port=53) == "NONE"
    assert verdict(parser, UDP6, IP6, "DST_PORT", dst_port=54) == "PORT"


@pytest.mark.parametrize("packet, proto", [
    (ICMP, IP4),
    (p.arp(), ARP),
    (p.ip4(p.udp(b"payload!")[8:], 17, frag=8), IP4),
    (UDP[:24], IP4),
])  # fmt: skip
def test_a_port_filter_takes_no_packet_without_ports(
    parser: Parser, packet: bytes, proto: int
) -> None:
    # Not even port 0, or the number that stands at the place of a port.
    for port in (0, 0x0800, 0x1234):
        for use in ("SRC_PORT", "DST_PORT", "DST_PORT BIDIR"):
            assert verdict(parser, packet, proto, use, src_port=port, dst_port=port) == "PORT"


def test_vlan(parser: Parser) -> None:
    tagged = p.vlan(p.vlan(UDP, 200, IP4), 0x6064, 0x8100)
    assert verdict(parser, tagged, 0x88A8, "VLAN", vlan_id=100) == "NONE"
    assert verdict(parser, tagged, 0x88A8, "VLAN", vlan_id=200) == "VLAN"
    assert verdict(parser, tagged, 0x88A8, "VLAN", vlan_id=0xFFFF) == "VLAN"
    assert verdict(parser, UDP, IP4, "VLAN", vlan_id=0xFFFF) == "NONE"
    assert verdict(parser, UDP, IP4, "VLAN", vlan_id=0) == "VLAN"


def test_ethertype_and_family(parser: Parser) -> None:
    assert verdict(parser, p.arp(), ARP, "ETH_PROTO", eth_proto=ARP) == "NONE"
    assert verdict(parser, UDP, IP4, "ETH_PROTO", eth_proto=ARP) == "ETH_PROTO"
    assert verdict(parser, p.vlan(UDP, 1, IP4), 0x8100, "ETH_PROTO", eth_proto=IP4) == "NONE"
    assert verdict(parser, UDP, IP4, "FAMILY", family=4) == "NONE"
    assert verdict(parser, UDP, IP4, "FAMILY", family=6) == "FAMILY"


def test_icmp_type(parser: Parser) -> None:
    assert verdict(parser, ICMP, IP4, "ICMP_TYPE", icmp_type=8) == "NONE"
    assert verdict(parser, ICMP, IP4, "ICMP_TYPE", icmp_type=0) == "ICMP_TYPE"
    assert verdict(parser, UDP, IP4, "ICMP_TYPE", icmp_type=0) == "ICMP_TYPE"


def test_tcp_flags(parser: Parser) -> None:
    assert verdict(parser, TCP, IP4, "TCP_FLAGS", tcp_mask=0x12, tcp_flags=0x02) == "NONE"
    assert verdict(parser, TCP, IP4, "TCP_FLAGS", tcp_mask=0x12, tcp_flags=0x12) == "TCP_FLAGS"
    assert verdict(parser, UDP, IP4, "TCP_FLAGS", tcp_mask=0, tcp_flags=0) == "TCP_FLAGS"


def test_length(parser: Parser) -> None:
    assert verdict(parser, UDP, IP4, "MIN_LEN", min_len=len(UDP)) == "NONE"
    assert verdict(parser, UDP, IP4, "MIN_LEN", min_len=len(UDP) + 1) == "LENGTH"


def test_mac(parser: Parser) -> None:
    def refused(use: str, **fields: Any) -> int:
        filter = {"used": parser.used(*use.split()), **fields}
        result = parser.skb("eth", p.eth(UDP), 0, filter=filter)
        return result["reject"]

    assert not refused("SRC_MAC DST_MAC", src_mac=p.MAC_A, dst_mac=p.MAC_B)
    assert refused("SRC_MAC", src_mac=p.MAC_B) == parser.enum("nt_reject")["NT_REJECT_MAC"]
    assert refused("DST_MAC", dst_mac=p.MAC_A)
    assert not refused("SRC_MAC DST_MAC BIDIR", src_mac=p.MAC_B, dst_mac=p.MAC_A)
    # The ports, which are the bytes behind an address in the filter, do not matter.
    assert not refused("SRC_MAC", src_mac=p.MAC_A, src_port=77)
    # Without a MAC header there is no match, not even with zeros.
    assert verdict(parser, UDP, IP4, "SRC_MAC", src_mac=bytes(6)) == "MAC"


def test_both_directions(parser: Parser) -> None:
    """Roles are swapped together: source of the one with destination of the other."""
    asked = {**prefix("192.0.2.1/32"), **prefix("198.51.100.2/32", "dst"),
             "src_port": 1000, "dst_port": 53}  # fmt: skip
    answer = p.ip4(p.udp(b"payload!", sport=53, dport=1000), 17, src=p.B4, dst=p.A4)
    use = "SRC_IP DST_IP SRC_PORT DST_PORT"
    assert verdict(parser, UDP, IP4, use, **asked) == "NONE"
    assert verdict(parser, answer, IP4, use, **asked) == "SRC_IP"
    for packet in (UDP, answer):
        assert verdict(parser, packet, IP4, f"{use} BIDIR", **asked) == "NONE"
    # Addresses of the one direction with ports of the other.
    mixed = p.ip4(p.udp(b"payload!", sport=53, dport=1000), 17)
    assert verdict(parser, mixed, IP4, f"{use} BIDIR", **asked) == "PORT"
    half = p.ip4(p.udp(b"payload!", sport=1000, dport=53), 17, src=p.B4, dst=p.B4)
    assert verdict(parser, half, IP4, f"{use} BIDIR", **asked) == "SRC_IP"
    other = p.ip4(p.udp(b"payload!", sport=1000, dport=53), 17, src=p.A4, dst=p.A4)
    assert verdict(parser, other, IP4, f"{use} BIDIR", **asked) == "DST_IP"


def test_order(parser: Parser) -> None:
    """Of several criteria that refuse, the first one in the order of evaluation is named."""
    criteria = {
        "VLAN": {"vlan_id": 7},
        "ETH_PROTO": {"eth_proto": ARP},
        "FAMILY": {"family": 6},
        "SRC_MAC": {"src_mac": p.MAC_B},
        "SRC_IP": {"src_ip": p.B4, "src_mask": b"\xff" * 4},
        "DST_IP": {"dst_ip": p.A4, "dst_mask": b"\xff" * 4},
        "PROTOCOL": {"protocol": 6, "protocol_alt": 6},
        "SRC_PORT": {"src_port": 1},
        "ICMP_TYPE": {"icmp_type": 1},
        "TCP_FLAGS": {"tcp_mask": 1},
        "MIN_LEN": {"min_len": 9999},
    }
    said = {"SRC_MAC": "MAC", "SRC_PORT": "PORT", "MIN_LEN": "LENGTH"}
    names = list(criteria)
    source = random.Random(7)
    for _ in range(200):
        chosen = sorted(source.sample(names, source.randrange(1, 6)), key=names.index)
        fields: dict[str, Any] = {}
        for name in chosen:
            fields.update(criteria[name])
        assert verdict(parser, UDP, IP4, " ".join(chosen), **fields) == said.get(
            chosen[0], chosen[0]
        )
