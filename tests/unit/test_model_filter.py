# SPDX-License-Identifier: GPL-2.0-only
"""The packet filter: values, text and back, what it takes, and whether one lies within another."""

from __future__ import annotations

import random

import pytest

from ntools.model import filter as f
from ntools.model.filter import PacketFilter, Rule, parse
from ntools.model.flow import Flow
from ntools.model.packet import Packet

A, B = bytes((192, 0, 2, 1)), bytes((198, 51, 100, 2))
UDP = Packet(4, 0x0800, 17, A, B, 1000, 53, b"\1" * 6, b"\2" * 6, None, None, None, 60)
ARP = Packet(0, 0x0806, 0, A, B, total_len=28)


def rule(**texts: str) -> Rule:
    return Rule.from_fields(texts)


def pf(*rules: Rule) -> PacketFilter:
    return PacketFilter(rules)


@pytest.mark.parametrize("name, text, values", [
    ("vlan", "none,5,7-9", ((0xFFFF, 0xFFFF), (5, 5), (7, 9))),
    ("src_port", "80,1000-2000", ((80, 80), (1000, 2000))),
    ("protocol", "icmp,tcp,87", (1, 58, 6, 87)),
    ("protocol", "1", (1,)),
    ("protocol", "all", ()),
    ("protocol", "TCP,6", (6,)),
    ("icmp_type", "echo-request,5", ((4, 8), (6, 128), (4, 5), (6, 5))),
    ("icmp_type", "packet-too-big", ((6, 2),)),
    ("tcp_flags", "syn+~ack,rst", ((0x12, 0x02), (4, 4))),
    ("min_len", "65535", 65535),
    ("eth_type", "arp,0x88b5", (0x0806, 0x88B5)),
    ("dst_mac", "52:54:00:12:34:56,0-1-2-3-4-5",
     (b"\x52\x54\x00\x12\x34\x56", b"\x00\x01\x02\x03\x04\x05")),
])  # fmt: skip
def test_values(name: str, text: str, values: object) -> None:
    assert parse(name, text) == values


@pytest.mark.parametrize("name, text, named", [
    ("vlan", "4095", "'4095' is not a VLAN id"),
    ("vlan", "9-7", "range is empty"),
    ("vlan", "None", "is not a VLAN id"),
    ("src_port", "0", "'0' is not a port"),
    ("src_port", "1-70000", "'70000'"),
    ("src_port", "1,,2", "empty entry"),
    ("src_port", "1-2-3", "'2-3' is not a port"),
    ("dst_ip", "10.0.0.0/33", "prefix length"),
    ("dst_ip", "10.0.0.1,fd00::x", "'fd00::x' is not an IPv6 address"),
    ("protocol", "tpc", "'tpc' is not a protocol"),
    ("protocol", "tcp,all", "stands alone"),
    ("icmp_type", "ping", "'ping' is not an ICMP type"),
    ("icmp_type", "256", "'256' is not an ICMP type"),
    ("tcp_flags", "syn+ak", "'syn+ak' is not a set of TCP flags"),
    ("tcp_flags", "~~syn", "is not a set of TCP flags"),
    ("tcp_flags", "syn+~syn", "syn cannot be set and not set"),
    ("min_len", "0", "'0' is not a length"),
    ("min_len", "65536", "'65536' is not a length"),
    ("src_mac", "52:54:00", "'52:54:00' is not a MAC address"),
    ("eth_type", "0x10000", "'0x10000' is not a frame type"),
    ("src_port", ",".join(str(n) for n in range(1, 259)), "258 values, at most 256"),
])  # fmt: skip
def test_bad_values_are_named_in_one_line(name: str, text: str, named: str) -> None:
    with pytest.raises(ValueError, match="^[^\n]*$") as caught:
        parse(name, text)
    assert named in str(caught.value)


POOL = {
    "vlan": ["none", "5", "1-100", "none,7,9-11"],
    "eth_type": ["arp", "ipv4,ipv6", "0x88b5"],
    "src_mac": ["52:54:00:12:34:56"],
    "dst_mac": ["52:54:00:12:34:56,00:00:00:00:00:01"],
    "family": ["4", "6"],
    "protocol": ["tcp", "icmp", "1", "icmpv6", "udp,tcp,200"],
    "min_len": ["1", "1500"],
    "src_ip": ["10.0.0.0/8", "192.0.2.1,fd00::/64", "0.0.0.0/0"],
    "dst_ip": ["2001:db8::1", "10.1.2.0/24"],
    "src_port": ["80", "1-1024,8080"],
    "dst_port": ["443", "1000-2000"],
    "icmp_type": ["echo-request", "3", "redirect,packet-too-big", "unreachable,5"],
    "tcp_flags": ["syn+~ack", "rst,fin+ack"],
}


def random_rule(source: random.Random) -> Rule:
    names = source.sample(sorted(POOL), source.randrange(1, 5))
    fields: dict[str, object] = {name: source.choice(POOL[name]) for name in names}
    return Rule.from_fields({**fields, "bidir": source.random() < 0.5})


def test_text_and_back() -> None:
    assert set(POOL) == set(f.CRITERIA)
    source = random.Random(4)
    for _ in range(500):
        flt = pf(*(random_rule(source) for _ in range(source.randrange(4))))
        assert PacketFilter.from_fields(flt.fields()) == flt


@pytest.mark.parametrize("fields", [
    {}, {"rules": 5}, {"rules": [1]}, {"rules": [{"colour": "red"}]}, {"rules": [{"vlan": "x"}]},
    {"rules": [{"vlan": "1"}] * 65},
])  # fmt: skip
def test_bad_fields(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        PacketFilter.from_fields(fields)


def test_shown() -> None:
    one = pf(rule(dst_port="53", vlan="7", family="4", src_ip="10.0.0.0/8")._replace(bidir=True))
    assert one.shown() == {
        "dst_port": 53, "vlan_id": 7, "family": "ipv4", "src_ip": "10.0.0.0/8", "bidir": True
    }  # fmt: skip
    two = pf(rule(dst_port="53", protocol="udp"), rule(family="6")._replace(bidir=True))
    assert two.shown() == {"rules": ["--protocol udp --dst-port 53", "--ipv6 --bidir"]}
    assert pf().shown() == {}


def test_used() -> None:
    flt = pf(rule(dst_port="53", vlan="7"), rule(dst_port="80", min_len="9"))
    assert flt.used == {"dst_port", "vlan", "min_len"}
    assert not flt.is_empty and pf().is_empty


def test_without_rules_everything_matches() -> None:
    assert pf().matches(UDP) and pf().matches(Packet())


@pytest.mark.parametrize("texts, takes", [
    ({"src_ip": "192.0.2.0/24"}, {"udp", "arp"}),
    ({"src_ip": "192.0.2.0/24", "family": "4"}, {"udp"}),
    ({"dst_ip": "192.0.2.0/24"}, set()),
    ({"dst_port": "1-100"}, {"udp"}),
    ({"protocol": "0"}, set()),
    ({"vlan": "none"}, {"udp", "arp", "unknown"}),
    ({"vlan": "0-4094"}, set()),
    ({"min_len": "28"}, {"udp", "arp"}),
    ({"src_mac": "01:01:01:01:01:01"}, {"udp"}),
    ({"tcp_flags": "~syn"}, set()),
    ({"icmp_type": "0"}, set()),
])  # fmt: skip
def test_matches(texts: dict[str, str], takes: set[str]) -> None:
    packets = {"udp": UDP, "arp": ARP, "unknown": Packet()}
    found = {name for name, packet in packets.items() if pf(rule(**texts)).matches(packet)}
    assert found == takes


def test_bidir_exchanges_all_ends_at_once() -> None:
    both = rule(src_ip="198.51.100.2", src_port="53")._replace(bidir=True)
    assert pf(both).matches(UDP) and pf(both).matches(UDP.reversed())
    assert not pf(both).matches(UDP._replace(src=B, dst=A))
    assert UDP.reversed().reversed() == UDP


def test_packet_of_a_flow() -> None:
    """What a flow record tells; what it does not tell refuses."""
    packet = Packet.from_flow(Flow(4, 17, A, B, 1000, 53, 0x0800), 7)
    assert pf(rule(dst_port="53", vlan="7", src_ip="192.0.2.1")).matches(packet)
    assert not pf(rule(src_mac="01:01:01:01:01:01")).matches(packet)
    echo = Packet.from_flow(Flow(6, 58, bytes(16), bytes(16), 128 << 8, 77, 0x86DD))
    assert (echo.icmp_type, echo.src_port) == (128, None)
    assert Packet.from_flow(Flow(0, 0, bytes(4), bytes(4), eth_type=0x88CC)).src is None


WITHIN = [
    ({"src_ip": "10.1.0.0/16"}, {"src_ip": "10.0.0.0/8"}, True),
    ({"src_ip": "10.1.0.0/16,fd00::1"}, {"src_ip": "10.0.0.0/8,fd00::/8"}, True),
    ({"src_ip": "10.0.0.0/8"}, {"src_ip": "10.1.0.0/16"}, False),
    ({"src_ip": "10.1.0.0/16"}, {"dst_ip": "10.0.0.0/8"}, False),
    ({"src_ip": "10.1.0.0/16", "dst_port": "80"}, {"src_ip": "10.0.0.0/8"}, True),
    ({"dst_port": "80"}, {"src_ip": "10.0.0.0/8"}, False),
    ({"dst_port": "80-90"}, {"dst_port": "1-85,86-100"}, True),
    ({"dst_port": "80-90"}, {"dst_port": "1-85,87-100"}, False),
    ({"protocol": "tcp"}, {"protocol": "udp,tcp"}, True),
    ({"protocol": "icmp"}, {"protocol": "1"}, False),
    ({"min_len": "100"}, {"min_len": "99"}, True),
    ({"min_len": "98"}, {"min_len": "99"}, False),
    ({"tcp_flags": "syn+~ack"}, {"tcp_flags": "syn"}, True),
    ({"tcp_flags": "syn"}, {"tcp_flags": "syn+~ack"}, False),
    ({"vlan": "5"}, {"vlan": "none,1-10"}, True),
    ({"family": "4"}, {"family": "6"}, False),
    ({"icmp_type": "packet-too-big"}, {"icmp_type": "2"}, True),
]


@pytest.mark.parametrize("narrow, wide, holds", WITHIN)
def test_within(narrow: dict[str, str], wide: dict[str, str], holds: bool) -> None:
    own, other = rule(**narrow), rule(**wide)
    assert pf(own).within(pf(other)) is holds
    assert pf(own).within(pf()) and not pf().within(pf(own))
    assert pf(own, other).within(pf(other)) is holds
    assert pf(own).within(pf(rule(eth_type="lldp"), other)) is holds


def test_within_and_directions() -> None:
    one = rule(src_ip="10.0.0.1", dst_port="80")
    back = rule(dst_ip="10.0.0.1", src_port="80")
    both = one._replace(bidir=True)
    assert pf(one).within(pf(both)) and pf(back).within(pf(both)) and pf(both).within(pf(both))
    assert not pf(both).within(pf(one)) and not pf(one).within(pf(back))
    assert pf(both).within(pf(back._replace(bidir=True)))
    # Without ends the directions are the same.
    assert pf(rule(vlan="5")._replace(bidir=True)).within(pf(rule(vlan="5")))


def random_packet(source: random.Random) -> Packet:
    family = source.choice([4, 4, 6, 0])
    size = 16 if family == 6 else 4
    protocol = source.choice([6, 17, 1, 58]) if family else 0
    ports = protocol in (6, 17) and source.random() < 0.9
    pool = [bytes((10, 1, 2, 3)), bytes((192, 0, 2, 1))] if size == 4 else [
        bytes.fromhex("20010db8000000000000000000000001"), bytes.fromhex("fd" + "00" * 15)
    ]  # fmt: skip
    return Packet(
        family, {4: 0x0800, 6: 0x86DD, 0: 0x0806}[family], protocol,
        source.choice(pool), source.choice(pool),
        source.choice([80, 443, 1500]) if ports else None,
        source.choice([80, 443, 1500]) if ports else None,
        bytes.fromhex("525400123456"), source.choice([bytes.fromhex("525400123456"), b"\1" * 6]),
        source.choice([None, 5, 7]),
        source.choice([3, 5, 8, 128]) if protocol in (1, 58) else None,
        source.choice([2, 0x12, 4]) if protocol == 6 else None,
        source.choice([28, 60, 1500]),
    )  # fmt: skip


def test_within_is_never_wrong() -> None:
    """Of filters made at random: what lies within takes no packet the wider one refuses."""
    source = random.Random(11)
    packets = [random_packet(source) for _ in range(400)]
    proven = 0
    for _ in range(3000):
        wide = pf(*(random_rule(source) for _ in range(source.randrange(1, 3))))
        extra = random_rule(source)
        base = source.choice(wide.rules)
        own = base._replace(**{
            name: getattr(extra, name) for name in extra.used if not getattr(base, name)
        })  # fmt: skip
        narrow = pf(source.choice([own, extra, own._replace(bidir=not own.bidir)]))
        if narrow.within(wide):
            proven += 1
            assert all(wide.matches(one) for one in packets if narrow.matches(one))
    assert 500 < proven < 2900
