# SPDX-License-Identifier: GPL-2.0-only
"""The packet inside VXLAN, Geneve and GRE."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from object import packets as p  # noqa: E402
from object.parsing import Parser, flags_of, harness_fixture, parser_fixture  # noqa: E402

__all__ = ["harness_fixture", "parser_fixture"]

IP4, IP6, TEB = 0x0800, 0x86DD, 0x6558
INNER = p.ip4(p.tcp(b"inside", sport=7, dport=8), 6, src=p.B4, dst=p.A4, ident=5)
INNER6 = p.ip6(p.ext(p.udp(b"payload!", sport=7, dport=8), "hop", 17), 0, src=p.B6, dst=p.A6)
MAC_C, MAC_D = b"\x02\x00\x00\x00\x00\x0c", b"\x02\x00\x00\x00\x00\x0d"
FRAME = p.eth(INNER, src=MAC_C, dst=MAC_D)


def udp(payload: bytes, port: int) -> bytes:
    return p.ip4(p.udp(payload, dport=port), 17)


TUNNELS = {
    "vxlan": (udp(p.vxlan(FRAME), 4789), IP4, 0x123456),
    "vxlan on the old port": (udp(p.vxlan(FRAME), 8472), IP4, 0x123456),
    "vxlan over IPv6": (p.ip6(p.udp(p.vxlan(FRAME), dport=4789), 17), IP6, 0x123456),
    "geneve": (udp(p.geneve(FRAME), 6081), IP4, 0x654321),
    "geneve with options": (udp(p.geneve(FRAME, options=24), 6081), IP4, 0x654321),
    "geneve, no Ethernet": (udp(p.geneve(INNER, proto=IP4), 6081), IP4, 0x654321),
    "gre": (p.ip4(p.gre(INNER), 47), IP4, 0),
    "gre with Ethernet": (p.ip4(p.gre(FRAME, TEB), 47), IP4, 0),
    "gre with key": (p.ip4(p.gre(INNER, key=0x89ABCDEF), 47), IP4, 0x89ABCDEF),
    "gre with all": (p.ip4(p.gre(INNER, checksum=True, key=77, seq=True), 47), IP4, 77),
    "gre with checksum": (p.ip4(p.gre(INNER, checksum=True), 47), IP4, 0),
    "gre over IPv6": (p.ip6(p.ext(p.gre(INNER), "opts", 47), 60), IP6, 0),
}


@pytest.mark.parametrize("name", TUNNELS)
def test_inner(parser: Parser, name: str) -> None:
    packet, proto, number = TUNNELS[name]
    result = parser.bytes(packet, proto, inner=True)
    pkt, flags = result["pkt"], flags_of(result)
    assert (result["result"], result["inner"]) == (0, 1)
    ethernet = FRAME in packet
    assert flags == {"TUNNEL", "L3", "L4"} | ({"L2"} if ethernet else set())
    assert pkt["tuple"] == {
        "src": p.pad16(p.B4), "dst": p.pad16(p.A4), "src_port": 7, "dst_port": 8,
        "eth_proto": IP4, "family": 4, "protocol": 6,
    }  # fmt: skip
    assert (pkt["tunnel_id"], pkt["ip_id"]) == (number, 5)
    if ethernet:
        assert (pkt["smac"], pkt["dmac"]) == (MAC_C, MAC_D)


def test_inner_ipv6_with_a_tag(parser: Parser) -> None:
    frame = p.eth(p.vlan(INNER6, 33, IP6), 0x8100)
    result = parser.bytes(udp(p.vxlan(frame), 4789), IP4, inner=True)
    pkt = result["pkt"]
    assert flags_of(result) == {"TUNNEL", "L2", "L3", "L4", "PAYLOAD"}
    assert (pkt["tuple"]["src"], pkt["tuple"]["dst_port"], pkt["vlan_id"]) == (p.B6, 8, 33)


def test_filter_and_identity_are_those_of_the_inner_packet(parser: Parser) -> None:
    filter = {"used": parser.used("SRC_PORT"), "src_port": 7, "src_port_last": 7}
    packet, proto, _number = TUNNELS["vxlan"]
    inside = parser.bytes(packet, proto, inner=True, filter=filter)
    alone = parser.bytes(INNER, IP4, filter=filter)
    assert inside["reject"] == alone["reject"] == 0
    assert (inside["digest"], inside["key"]) == (alone["digest"], alone["key"])
    assert parser.bytes(packet, proto, filter=filter)["reject"] != 0


@pytest.mark.parametrize("packet, proto", [
    (p.ip4(p.udp(p.vxlan(FRAME), sport=4789, dport=4790), 17), IP4),
    (udp(p.vxlan(FRAME, flags=0), 4789), IP4),
    (udp(p.geneve(b"\1\2", proto=0x1234), 6081), IP4),
    (p.ip4(p.gre(INNER, version=1), 47), IP4),
    (p.ip4(p.gre(INNER, proto=0x88BE), 47), IP4),
    (p.ip4(p.tcp(p.vxlan(FRAME), dport=4789), 6), IP4),
    (p.ip4(p.gre(INNER), 47, frag=8), IP4),
    (p.ip4(p.udp(p.vxlan(FRAME), dport=4789), 17, frag=8), IP4),
    (p.arp(), 0x0806),
])  # fmt: skip
def test_no_tunnel(parser: Parser, packet: bytes, proto: int) -> None:
    """Then the packet stays as it was."""
    outer, tried = parser.bytes(packet, proto), parser.bytes(packet, proto, inner=True)
    assert tried["inner"] == 0 and tried["pkt"] == outer["pkt"]


@pytest.mark.parametrize("name", ["vxlan", "geneve with options", "gre with all"])
def test_truncated_everywhere(parser: Parser, name: str) -> None:
    packet, proto, _number = TUNNELS[name]
    whole = parser.bytes(packet, proto, inner=True)["pkt"]["tuple"]
    inside = len(packet) - len(INNER)
    for linear in range(len(packet)):
        result: dict[str, Any] = parser.bytes(packet, proto, linear=linear, inner=True)
        pkt, flags = result["pkt"], flags_of(result)
        if "TUNNEL" in flags and "L4" in flags:
            assert linear >= inside + 40 and pkt["tuple"] == whole
        elif "TUNNEL" in flags:
            assert pkt["tuple"]["src_port"] == 0 and "TRUNCATED" in flags
