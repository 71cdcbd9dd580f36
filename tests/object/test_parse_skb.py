# SPDX-License-Identifier: GPL-2.0-only
"""Where the parser looks in an skb, and what of the skb it believes.

The skb is an image in a map, laid out by the BTF of the running kernel or of another one, and the
program is relocated against the same BTF: so what differs between kernels is run for all of them
on this one. Probe reads and direct loads are compared in every case.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Iterator

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from object import packets as p  # noqa: E402
from object.parsing import (  # noqa: E402
    HEADROOM,
    Parser,
    flags_of,
    harness_fixture,
    parser_fixture,
)
from vm import common, fetch  # noqa: E402

__all__ = ["harness_fixture", "parser_fixture"]

IP4, IP6 = 0x0800, 0x86DD
UNSET = 0xFFFF
UDP = p.ip4(p.udp(b"payload!"), 17, ident=9)
FRAME = p.eth(UDP)
L3 = 14


def swapped(proto: int) -> int:
    """An EtherType as a number of the skb: it is in network byte order there."""
    return int.from_bytes(proto.to_bytes(2, "big"), "little")


def skb(parser: Parser, where: str, frame: bytes, data: int, *, proto: int = IP4, mac: Any = 0,
        net: Any = L3, **fields: Any) -> tuple[dict[str, Any], set[str]]:  # fmt: skip
    """Offsets of the MAC and the network header are from the frame, None is unset."""
    result = parser.skb(
        where, frame, data, protocol=swapped(proto),
        mac_header=UNSET if mac is None else HEADROOM + mac,
        network_header=0 if net is None else HEADROOM + net, **fields,
    )  # fmt: skip
    assert result["result"] == 0
    return result["pkt"], flags_of(result)


def check(pkt: dict[str, Any], flags: set[str], mac: bool = True) -> None:
    """The packet is FRAME."""
    assert flags - {"VLAN_ACC"} == {"L3", "L4", "PAYLOAD"} | ({"L2"} if mac else set())
    assert pkt["tuple"]["dst_port"] == 53 and pkt["tuple"]["eth_proto"] == IP4
    assert (pkt["ip_id"], pkt["payload"]) == (9, int.from_bytes(b"payload!", "little"))
    assert (pkt["smac"], pkt["dmac"]) == ((p.MAC_A, p.MAC_B) if mac else (bytes(6), bytes(6)))


@pytest.mark.parametrize("net", [None, L3, 3, 60])
def test_at_data_does_not_use_the_network_offset(parser: Parser, net: Any) -> None:
    check(*skb(parser, "data", FRAME, L3, net=net))


@pytest.mark.parametrize("net, mac", [(None, None), (L3, 0), (3, 7)])
def test_at_eth_uses_only_data(parser: Parser, net: Any, mac: Any) -> None:
    check(*skb(parser, "eth", FRAME, 0, net=net, mac=mac, proto=0x1234))


@pytest.mark.parametrize("data", [0, L3, L3 + 20, L3 + 28])
def test_at_net_does_not_use_data(parser: Parser, data: int) -> None:
    """Data is at Ethernet while sending, at L4 or behind it in the receiving stack."""
    pkt, flags = skb(parser, "net", FRAME, data)
    check(pkt, flags)
    assert pkt["total_len"] == len(UDP)


@pytest.mark.parametrize("mac", [None, 6, L3, -20, -9, 4])
def test_old_mac_header(parser: Parser, mac: Any) -> None:
    """A MAC header that does not end at L3, or a tag or two before, is of another packet."""
    pkt, flags = skb(parser, "net", FRAME, L3, mac=mac)
    check(pkt, flags, mac=False)


def test_mac_addresses_not_wanted(parser: Parser) -> None:
    check(*skb(parser, "nomac", FRAME, L3), mac=False)


def test_protocol_not_set_yet(parser: Parser) -> None:
    """Before __ip_local_out() skb->protocol is 0, the version nibble decides."""
    check(*skb(parser, "net", FRAME, L3, proto=0, mac=None), mac=False)
    frame = p.eth(p.ip6(p.tcp(), 6), IP6)
    pkt, flags = skb(parser, "net", frame, L3, proto=0)
    assert flags == {"L2", "L3", "L4"} and pkt["tuple"]["family"] == 6


def test_length_not_set_yet(parser: Parser) -> None:
    """There the length in the IP header is whatever the memory held before."""
    for told in (0, 17, 40000):
        packet = p.ip4(p.udp(b"payload!"), 17, ident=9, length=told)
        check(*skb(parser, "out", p.eth(packet), L3, proto=0))
        packet = p.ip6(p.udp(b"payload!"), 17, length=told)
        pkt, flags = skb(parser, "out", p.eth(packet, IP6), L3, proto=0)
        assert flags == {"L2", "L3", "L4", "PAYLOAD"} and pkt["total_len"] == len(packet)


@pytest.mark.parametrize("where, data", [("data", L3), ("eth", 0), ("net", 0), ("any", L3)])
def test_tags_in_the_data(parser: Parser, where: str, data: int) -> None:
    """skb->protocol names the tag, data is at it; the network offset is behind it or not."""
    frame = p.eth(p.vlan(p.vlan(UDP, 20, IP4), 10, 0x8100), 0x88A8)
    for net in (L3, L3 + 4, L3 + 8):
        pkt, flags = skb(parser, where, frame, data, proto=0x88A8, net=net)
        check(pkt, flags)
        assert (pkt["vlan_id"], pkt["inner_vlan_id"], pkt["vlan_proto"]) == (10, 20, 0x88A8)
        assert pkt["l3_off"] == HEADROOM + L3 + 8


def test_tag_behind_an_ip_offset(parser: Parser) -> None:
    """Sent by the IP stack through a VLAN device: the protocol is IP, the tag precedes L3."""
    frame = p.eth(p.vlan(UDP, 10, IP4), 0x8100)
    pkt, flags = skb(parser, "net", frame, 0, net=L3 + 4)
    check(pkt, flags)


def test_tag_without_mac_header(parser: Parser) -> None:
    """The version nibble tells an offset behind the tag from one at the tag."""
    check(*skb(parser, "net", FRAME, L3, proto=0x8100, mac=None), mac=False)
    tagged = bytes(L3) + p.vlan(UDP, 10, IP4)
    pkt, flags = skb(parser, "net", tagged, L3, proto=0x8100, mac=None)
    check(pkt, flags, mac=False)
    assert pkt["vlan_id"] == 10


@pytest.mark.parametrize("where, data", [("data", L3), ("eth", 0), ("net", 0), ("any", L3)])
def test_tag_in_the_skb(parser: Parser, where: str, data: int) -> None:
    tag = acc(parser, 0x8100, 0x6064)
    pkt, flags = skb(parser, where, FRAME, data, **tag)
    check(pkt, flags)
    assert "VLAN_ACC" in flags
    assert (pkt["vlan_id"], pkt["vlan_pcp"], pkt["vlan_proto"]) == (100, 3, 0x8100)
    assert pkt["inner_vlan_id"] == 0xFFFF
    # With another one in the data, that of the skb is the outer one.
    frame = p.eth(p.vlan(UDP, 20, IP4), 0x8100)
    pkt, flags = skb(parser, where, frame, data, proto=0x8100, **acc(parser, 0x88A8, 10))
    check(pkt, flags)
    assert (pkt["vlan_id"], pkt["inner_vlan_id"], pkt["vlan_proto"]) == (10, 20, 0x88A8)


def test_any_prefers_the_network_offset(parser: Parser) -> None:
    check(*skb(parser, "any", FRAME, L3 + 28))
    check(*skb(parser, "any", FRAME, L3, mac=None), mac=False)
    check(*skb(parser, "any", FRAME, L3, proto=0, mac=None), mac=False)


# Of the wrong ones the last points to a byte that could begin IPv6.
@pytest.mark.parametrize("net", [None, 3, 0, 2000, L3 + 29])
def test_any_falls_back(parser: Parser, net: Any) -> None:
    """The network offset is unset, wrong or outside: MAC header, without that skb->data."""
    check(*skb(parser, "any", FRAME, L3, net=net))
    check(*skb(parser, "any", FRAME, 0, net=net))
    check(*skb(parser, "any", FRAME, L3, net=net, mac=None), mac=False)


def test_any_without_a_packet(parser: Parser) -> None:
    """Socket messages are freed, too."""
    pkt, flags = skb(parser, "any", b"\x45" * 64, 0, proto=0, net=None, mac=None)
    assert not flags & {"L2", "L3", "L4"} and pkt["tuple"]["eth_proto"] == 0


def test_any_arp(parser: Parser) -> None:
    frame = p.eth(p.arp(), 0x0806)
    for net in (L3, None, 500):
        pkt, flags = skb(parser, "any", frame, L3, proto=0x0806, net=net)
        assert flags == {"L2", "L3"} and pkt["arp_op"] == 1


@pytest.mark.parametrize("linear", range(len(FRAME)))
def test_part_of_the_packet_is_linear(parser: Parser, linear: int) -> None:
    """len - data_len bytes from data on."""
    rest = len(FRAME) - linear
    pkt, flags = skb(parser, "eth", FRAME, 0, data_len=rest)
    assert ("L2" in flags) == (linear >= 14)
    assert ("L3" in flags) == (linear >= 34)
    assert ("L4" in flags) == (linear >= 42)
    assert ("PAYLOAD" in flags) == (linear >= 50)
    assert ("TRUNCATED" in flags) == (linear < 42) and "BAD" not in flags


def test_length_field_of_the_mac_header(parser: Parser) -> None:
    """802.3 frames: the kernel calls what follows 0x0004, so does the parser."""
    pkt, flags = skb(parser, "eth", p.eth(b"\x42\x42\x03" + bytes(40), 43), 0)
    assert pkt["tuple"]["eth_proto"] == 4


def acc(parser: Parser, proto: int, tag: int) -> dict[str, int]:
    """Fields of an skb with a tag, as this kernel would have them."""
    fields = {"vlan_proto": swapped(proto), "vlan_tci": tag}
    if parser.has("vlan_present"):
        fields["vlan_present"] = 1
    elif not parser.has("vlan_all"):
        fields["vlan_tci"] |= 0x1000
    return fields


def cached() -> Iterator[str]:
    for name, kernel in common.kernels().items():
        known = (common.CACHE / "kernels" / name / "stamp.json").exists()
        if known and kernel.arch == "amd64":
            yield name


@pytest.mark.parametrize("name", cached())
def test_other_kernels(harness: Path, name: str) -> None:
    """The same with the types of every kernel of the matrix."""
    with Parser(harness, fetch.btf_files(name)["vmlinux"]) as other:
        assert other.has("vlan_all") != other.has("vlan_present")
        for where, data in (("data", L3), ("eth", 0), ("net", 0), ("any", 20)):
            check(*skb(other, where, FRAME, data))
            # What an old tag left behind is not a tag; only 6.2 and later clear it all.
            if other.has("vlan_present"):
                stale = {"vlan_proto": swapped(0x8100), "vlan_tci": 5}
                pkt, _flags = skb(other, where, FRAME, data, **stale)
                assert pkt["vlan_id"] == 0xFFFF
        test_tag_in_the_skb(other, "net", 0)
        test_tags_in_the_data(other, "data", L3)
        test_protocol_not_set_yet(other)
        test_any_falls_back(other, None)
