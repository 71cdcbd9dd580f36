# SPDX-License-Identifier: GPL-2.0-only
"""The packet filter: each criterion, lists, the order of rejection, both directions, many rules.

Every verdict is taken three times: with constants, with sets of rules, and by the Python filter.
"""

from __future__ import annotations

import ipaddress
import random
import struct
import sys
from pathlib import Path
from typing import Any, Callable, List

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from object import packets as p  # noqa: E402
from object.btfread import elf_sections  # noqa: E402
from object.filtering import (  # noqa: E402
    Bench,
    bench_fixture,
    filter_of,
    forced_sets,
    harness_object,
)
from object.parsing import Parser, harness_fixture, parser_fixture  # noqa: E402

from ntools.engine import filter as engine_filter  # noqa: E402

__all__ = ["bench_fixture", "harness_fixture", "parser_fixture"]

IP4, IP6, ARP = 0x0800, 0x86DD, 0x0806
UDP = p.eth(p.ip4(p.udp(b"payload!", sport=1000, dport=53), 17))
UDP6 = p.eth(p.ip6(p.udp(b"payload!", sport=1000, dport=53), 17), IP6)
TCP = p.eth(p.ip4(p.tcp(flags=0x02), 6))
ICMP = p.eth(p.ip4(p.icmp(kind=8), 1))
ICMP6 = p.eth(p.ip6(p.icmp(kind=128), 58), IP6)
ARPS = p.eth(p.arp(), ARP)
LLDP = p.eth(bytes(40), 0x88CC)

Verdict = Callable[..., str]


@pytest.fixture(name="verdict", scope="module")
def verdict_fixture(parser: Parser, bench: Bench) -> Verdict:
    """(frame, options) -> the criterion that refuses, NONE for a wanted packet."""

    def verdict(frame: bytes, *lines: str, **fields: Any) -> str:
        return bench.one(parser.skb("eth", frame, 0, **fields)["pkt"], "\n".join(lines))

    return verdict


def test_empty_filter_takes_everything(verdict: Verdict) -> None:
    for frame in (UDP, ARPS, LLDP, b"", UDP[:20]):
        assert verdict(frame) == "NONE"


@pytest.mark.parametrize("text, good", [
    ("192.0.2.1", True), ("192.0.2.0/24", True), ("0.0.0.0/0", True), ("192.0.2.2", False),
    ("192.0.3.0/24", False), ("198.51.100.2", False), ("::/0", False), ("c000:201::/32", False),
    ("192.0.2.0/31", True), ("192.0.2.2/31", False), ("128.0.0.0/1", True), ("0.0.0.0/1", False),
    ("10.0.0.0/8,192.0.2.1", True), ("10.0.0.0/8,::/0", False), ("::/0,192.0.0.0/16", True),
])  # fmt: skip
def test_source_address(verdict: Verdict, text: str, good: bool) -> None:
    assert verdict(UDP, f"--src-ip {text}") == ("NONE" if good else "SRC_IP")


@pytest.mark.parametrize("text, good", [
    ("2001:db8:7::2", True), ("2001:db8:7::/48", True), ("2001:db8::/33", True),
    ("2001:db8:8000::/33", False), ("2001:db8:7::3", False), ("32.1.13.184", False),
    ("192.0.2.0/24,2001:db8:7::2/127", True), ("::/0", True), ("8000::/1", False),
])  # fmt: skip
def test_destination_address(verdict: Verdict, text: str, good: bool) -> None:
    assert verdict(UDP6, f"--dst-ip {text}") == ("NONE" if good else "DST_IP")


def test_addresses_of_arp(verdict: Verdict) -> None:
    """An IPv4 address is also asked for by ARP; the IP version excludes that."""
    assert verdict(ARPS, "--src-ip 192.0.2.1") == "NONE"
    assert verdict(ARPS, "--dst-ip 198.51.100.2,10.0.0.1") == "NONE"
    assert verdict(ARPS, "--src-ip 192.0.2.9") == "SRC_IP"
    assert verdict(ARPS, "-4 --src-ip 192.0.2.1") == "FAMILY"
    assert verdict(p.eth(p.arp(hardware=6), ARP), "--src-ip 0.0.0.0/0") == "SRC_IP"
    assert verdict(LLDP, "--src-ip 0.0.0.0/0,::/0") == "SRC_IP"


def test_protocol(verdict: Verdict) -> None:
    assert verdict(UDP, "--protocol udp") == "NONE"
    assert verdict(TCP, "--protocol udp") == "PROTOCOL"
    assert verdict(TCP, "--protocol udp,sctp,6") == "NONE"
    # Two protocols of one name.
    for frame in (ICMP, ICMP6):
        assert verdict(frame, "--protocol icmp") == "NONE"
    # Protocol 0 is hop-by-hop, not "no IP at all".
    assert verdict(ARPS, "--protocol 0") == "PROTOCOL"
    assert verdict(ARPS, "--protocol 0,1,2") == "PROTOCOL"


def test_ports(verdict: Verdict) -> None:
    assert verdict(UDP, "--src-port 1000 --dst-port 53") == "NONE"
    assert verdict(UDP, "--src-port 53") == "PORT"
    assert verdict(UDP6, "--dst-port 53") == "NONE"
    assert verdict(UDP6, "--dst-port 54") == "PORT"


@pytest.mark.parametrize("text, good", [
    ("1000-2000", True), ("1-1000", True), ("999-999", False), ("1001-65535", False),
    ("1-999", False), ("1-65535", True), ("1,1000", True), ("1-999,1001-2000", False),
    ("512-767,1000,1024-65535", True), ("768-1023", True), ("1-767,1024-2000", False),
])  # fmt: skip
def test_ranges_of_ports(verdict: Verdict, text: str, good: bool) -> None:
    assert verdict(UDP, f"--src-port {text}") == ("NONE" if good else "PORT")


def test_ends_of_the_port_numbers(verdict: Verdict) -> None:
    for port, text, good in (
        (65535, "65535", True), (65535, "60000-65535", True), (65535, "1-65534", False),
        (1, "1", True), (0, "1-65535", False), (256, "255,257", False), (256, "256", True),
    ):  # fmt: skip
        frame = p.eth(p.ip4(p.udp(b"x", sport=port, dport=9), 17))
        assert verdict(frame, f"--src-port {text}") == ("NONE" if good else "PORT"), (port, text)


@pytest.mark.parametrize("frame", [
    ICMP,
    ARPS,
    p.eth(p.ip4(p.udp(b"payload!")[8:], 17, frag=8)),
    p.eth(p.ip6(p.fragment(p.udp(b"payload!"), 17, 7, offset=64), 44), IP6),
    UDP[:38],
])  # fmt: skip
def test_a_port_filter_takes_no_packet_without_ports(verdict: Verdict, frame: bytes) -> None:
    # Not even all ports, or the number that stands at the place of a port.
    for text in ("--src-port 2048", "--dst-port 1-65535", "--dst-port 2048,4660 --bidir"):
        assert verdict(frame, text) == "PORT"
    # But a rule that does not ask for ports takes it.
    assert verdict(frame, "--dst-port 1-65535", "--min-len 1") == "NONE"


def test_first_fragment_has_ports(verdict: Verdict) -> None:
    whole = p.udp(b"payload!", sport=1000, dport=53)
    assert verdict(p.eth(p.ip4(whole, 17, flags=1)), "--dst-port 53") == "NONE"
    frame = p.eth(p.ip6(p.ext(p.fragment(whole, 17, 7, more=True), "hop", 44), 0), IP6)
    assert verdict(frame, "--dst-port 53 --protocol udp") == "NONE"


def test_behind_extension_headers(verdict: Verdict) -> None:
    data = p.ext(p.ext(p.ext(p.tcp(flags=0x12, dport=80), "opts", 6), "routing", 60), "hop", 43)
    frame = p.eth(p.ip6(data, 0), IP6)
    assert verdict(frame, "--protocol tcp --dst-port 80 --tcp-flags syn+ack") == "NONE"
    assert verdict(frame, "--protocol 0") == "PROTOCOL"
    assert verdict(frame, "--tcp-flags syn+~ack,rst") == "TCP_FLAGS"


def test_vlan(verdict: Verdict) -> None:
    tagged = p.eth(p.vlan(p.vlan(UDP[14:], 200, IP4), 0x6064, 0x8100), 0x88A8)
    assert verdict(tagged, "--vlan 100") == "NONE"
    assert verdict(tagged, "--vlan 200") == "VLAN"
    assert verdict(tagged, "--vlan none") == "VLAN"
    assert verdict(UDP, "--vlan none") == "NONE"
    assert verdict(UDP, "--vlan 0") == "VLAN"
    assert verdict(tagged, "--vlan none,100") == "NONE"
    assert verdict(UDP, "--vlan none,100") == "NONE"
    assert verdict(tagged, "--vlan 1-99,101-4094") == "VLAN"
    assert verdict(tagged, "--vlan 90-110 --dst-port 53") == "NONE"
    assert verdict(UDP, "--vlan 0-4094") == "VLAN"


def test_ethertype_and_family(verdict: Verdict) -> None:
    assert verdict(ARPS, "--eth-type arp") == "NONE"
    assert verdict(UDP, "--eth-type arp") == "ETH_PROTO"
    assert verdict(LLDP, "--eth-type arp,lldp") == "NONE"
    assert verdict(p.eth(p.vlan(UDP[14:], 1, IP4), 0x8100), "--eth-type ipv4") == "NONE"
    assert verdict(UDP, "-4") == "NONE"
    assert verdict(UDP, "-6") == "FAMILY"
    assert verdict(UDP6, "-6") == "NONE"
    assert verdict(ARPS, "-4", "-6") == "FAMILY"
    assert verdict(UDP6, "-4", "-6") == "NONE"


def test_icmp_type(verdict: Verdict) -> None:
    assert verdict(ICMP, "--icmp-type 8") == "NONE"
    assert verdict(ICMP, "--icmp-type 0") == "ICMP_TYPE"
    assert verdict(UDP, "--icmp-type 0") == "ICMP_TYPE"
    # The same name is another number in ICMPv6; a number is the same in both.
    for frame in (ICMP, ICMP6):
        assert verdict(frame, "--icmp-type echo-request") == "NONE"
    assert verdict(ICMP6, "--icmp-type 8") == "ICMP_TYPE"
    assert verdict(p.eth(p.ip4(p.icmp(kind=128), 1)), "--icmp-type echo-request") == "ICMP_TYPE"
    assert verdict(p.eth(p.ip4(p.icmp(kind=2), 1)), "--icmp-type packet-too-big") == "ICMP_TYPE"
    assert verdict(ICMP6, "--icmp-type redirect,echo-reply,128") == "NONE"


def test_tcp_flags(verdict: Verdict) -> None:
    assert verdict(TCP, "--tcp-flags syn") == "NONE"
    assert verdict(TCP, "--tcp-flags syn+~ack") == "NONE"
    assert verdict(TCP, "--tcp-flags syn+ack") == "TCP_FLAGS"
    assert verdict(TCP, "--tcp-flags ~syn") == "TCP_FLAGS"
    assert verdict(TCP, "--tcp-flags rst,syn+ack,cwr,syn+~fin") == "NONE"
    assert verdict(UDP, "--tcp-flags ~syn") == "TCP_FLAGS"


def test_length(verdict: Verdict) -> None:
    size = len(UDP) - 14
    assert verdict(UDP, f"--min-len {size}") == "NONE"
    assert verdict(UDP, f"--min-len {size + 1}") == "LENGTH"
    assert verdict(UDP, f"--min-len {size + 1}", f"--min-len {size}") == "NONE"
    assert verdict(UDP, f"--min-len {size + 1}", "--min-len 65535") == "LENGTH"
    # Larger than the length field can tell: segments of one large packet.
    big = p.eth(p.ip4(b"x" * 8, 50, length=0))
    assert verdict(big, "--min-len 65535", "--vlan 1", len=100000, data_len=99958) == "NONE"


def test_mac(parser: Parser, verdict: Verdict) -> None:
    a, b = "52:54:00:09:00:aa", "52:54:00:09:00:bb"
    assert verdict(UDP, f"--src-mac {a} --dst-mac {b}") == "NONE"
    assert verdict(UDP, f"--src-mac {b}") == "MAC"
    assert verdict(UDP, f"--dst-mac {a}") == "MAC"
    assert verdict(UDP, f"--src-mac {b} --dst-mac {a} --bidir") == "NONE"
    assert verdict(UDP, f"--src-mac {b},00-11-22-33-44-55,{a}") == "NONE"
    # The ports, which are the bytes behind an address in the filter, do not matter.
    assert verdict(UDP, f"--src-mac {a} --src-port 1000") == "NONE"


def test_without_link_header_no_mac_fits(parser: Parser, bench: Bench) -> None:
    packet = parser.bytes(UDP[14:], IP4)["pkt"]
    assert bench.one(packet, "--src-mac 00:00:00:00:00:00") == "MAC"
    assert bench.one(packet, "--src-mac 00:00:00:00:00:00\n--vlan none") == "NONE"


def test_both_directions(verdict: Verdict) -> None:
    """Roles are swapped together: source of the one with destination of the other."""
    asked = "--src-ip 192.0.2.1 --dst-ip 198.51.100.2 --src-port 1000 --dst-port 53"
    answer = p.eth(p.ip4(p.udp(b"payload!", sport=53, dport=1000), 17, src=p.B4, dst=p.A4))
    assert verdict(UDP, asked) == "NONE"
    assert verdict(answer, asked) == "SRC_IP"
    for frame in (UDP, answer):
        assert verdict(frame, f"{asked} --bidir") == "NONE"
    # Addresses of the one direction with ports of the other.
    mixed = p.eth(p.ip4(p.udp(b"payload!", sport=53, dport=1000), 17))
    assert verdict(mixed, f"{asked} --bidir") == "PORT"
    half = p.eth(p.ip4(p.udp(b"payload!", sport=1000, dport=53), 17, src=p.B4, dst=p.B4))
    assert verdict(half, f"{asked} --bidir") == "SRC_IP"
    other = p.eth(p.ip4(p.udp(b"payload!", sport=1000, dport=53), 17, src=p.A4, dst=p.A4))
    assert verdict(other, f"{asked} --bidir") == "DST_IP"


def test_each_rule_has_its_own_direction(verdict: Verdict) -> None:
    rules = "--src-ip 192.0.2.1 --dst-port 53 --bidir", "--src-ip 198.51.100.2 --dst-port 80"
    for src, dst, sport, dport, good in (
        (p.A4, p.B4, 1000, 53, True), (p.B4, p.A4, 53, 1000, True), (p.B4, p.A4, 1000, 80, True),
        (p.A4, p.B4, 80, 1000, False), (p.B4, p.A4, 1000, 53, False),
    ):  # fmt: skip
        frame = p.eth(p.ip4(p.udp(b"x", sport=sport, dport=dport), 17, src=src, dst=dst))
        found = verdict(frame, *rules)
        assert (found == "NONE") == good, (src, dst, sport, dport, found)


def test_prefixes_inside_prefixes(parser: Parser, bench: Bench) -> None:
    """A rule per prefix length, each also wanting its own port: all that cover must be found."""
    rules = [f"--dst-ip 198.51.100.2/{bits} --dst-port {1000 + bits}" for bits in range(33)]
    rules += [
        f"--dst-ip 2001:db8:7::2/{bits} --dst-port {2000 + bits}" for bits in range(0, 129, 5)
    ]
    flt = filter_of("\n".join(rules[:60]))
    source = random.Random(5)
    frames = []
    for _ in range(400):
        flip = source.randrange(33)
        address = int.from_bytes(p.B4, "big") ^ (1 << source.randrange(32) if flip else 0)
        dport = 1000 + source.randrange(34)
        frames.append((address.to_bytes(4, "big"), dport))
    bench.load([
        parser.skb("eth", p.eth(p.ip4(p.udp(b"x", dport=dport), 17, dst=dst)), 0)["pkt"]
        for dst, dport in frames
    ])  # fmt: skip
    found = [one == "NONE" for one in bench.judge(flt)]
    wanted = []
    for dst, dport in frames:
        bits = dport - 1000
        network = ipaddress.ip_network((p.B4, min(bits, 32)), strict=False)
        wanted.append(bits <= 32 and ipaddress.ip_address(dst) in network)
    assert found == wanted
    assert 50 < sum(wanted) < 350


def test_64_rules(parser: Parser, bench: Bench) -> None:
    """Rule n wants its own port and VLAN; packets that fit two halves fit nothing."""
    lines = [
        f"--vlan {100 + n} --dst-port {5000 + 7 * n} --src-ip 10.0.{n}.0/24" for n in range(64)
    ]
    flt = filter_of("\n".join(lines))
    frames, wanted = [], []
    for n in range(64):
        for vlan, port, net in ((n, n, n), (n, n, (n + 1) % 64), (n, (n + 9) % 64, n)):
            src = bytes((10, 0, net, 77))
            packet = p.ip4(p.udp(b"x", dport=5000 + 7 * port), 17, src=src)
            frames.append(p.eth(p.vlan(packet, 100 + vlan, IP4), 0x8100))
            wanted.append("NONE" if vlan == port == net else "SRC_IP" if net != n else "PORT")
    bench.load([parser.skb("eth", frame, 0)["pkt"] for frame in frames])
    assert bench.judge(flt) == wanted
    assert [flt.matches(one) for one in bench.packets] == [one == "NONE" for one in wanted]


def test_order(parser: Parser, bench: Bench) -> None:
    """Of several criteria that refuse, the first one in the order of evaluation is named."""
    criteria = {
        "VLAN": "--vlan 7",
        "ETH_PROTO": "--eth-type 0x88b5",
        "MAC": "--src-mac 52:54:00:09:00:bb",
        "FAMILY": "-6",
        "PROTOCOL": "--protocol tcp",
        "LENGTH": "--min-len 9999",
        "SRC_IP": "--src-ip 198.51.100.2",
        "DST_IP": "--dst-ip 192.0.2.1",
        "PORT": "--src-port 1",
        "ICMP_TYPE": "--icmp-type 1",
        "TCP_FLAGS": "--tcp-flags syn",
    }
    names = list(criteria)
    bench.load([parser.skb("eth", UDP, 0)["pkt"]])
    source = random.Random(7)
    parse = filter_of  # without the check for contradictions, which some of these are
    for _ in range(150):
        chosen = sorted(source.sample(names, source.randrange(1, 6)), key=names.index)
        rules = [parse(criteria[name]).rules[0] for name in chosen]
        rule = rules[0]._replace(**{
            name: getattr(one, name) for one in rules for name in one.used
        })  # fmt: skip
        flt = parse("-4")._replace(rules=(rule,))
        assert bench.judge(flt) == [chosen[0]], chosen
        with forced_sets():
            assert bench.judge(flt) == [chosen[0]], chosen


def test_the_last_rule_left_gives_the_reason(verdict: Verdict) -> None:
    rules = ["--vlan 7", "--src-ip 192.0.2.1 --dst-port 80", "--protocol tcp"]
    assert verdict(UDP, *rules) == "PORT"
    assert verdict(UDP, *rules[::2]) == "PROTOCOL"
    # The swapped direction came further.
    assert verdict(UDP, "--src-ip 198.51.100.2 --src-port 80 --bidir", "--vlan 7") == "PORT"


@pytest.mark.parametrize("there, text, sure", [
    (14 + 20, "--dst-port 53", False), (14 + 20, "--src-ip 10.0.0.1 --dst-port 53", True),
    (14 + 10, "--src-ip 192.0.2.1", False), (14, "--protocol udp", False),
    (14 + 20, "--protocol tcp", True), (14 + 20, "--tcp-flags syn --protocol udp,tcp", False),
    (14 + 28, "--dst-port 80", True), (14, "--vlan 7", True), (14 + 4, "-4", False),
])  # fmt: skip
def test_headers_that_are_not_linear(
    parser: Parser, bench: Bench, there: int, text: str, sure: bool
) -> None:
    """A packet refused for a header that could not be read is not known to be unwanted."""
    fields = {"len": len(UDP), "data_len": len(UDP) - there}
    packet = parser.skb("eth", UDP, 0, **fields)["pkt"]
    for lines in (text, f"{text}\n--vlan 9"):
        bench.load([packet])
        assert bench.judge(filter_of(lines)) != ["NONE"]
        assert bench.unsure == [not sure]


def test_only_lists_and_several_rules_need_maps() -> None:
    constants = (
        "--src-ip 10.0.0.0/8 --dst-ip 10.1.0.0/16 --src-port 1000-2000 --bidir -4",
        "--protocol icmp --icmp-type echo-request", "--vlan none --tcp-flags syn+~ack",
        "--protocol tcp,udp --min-len 100", "--src-mac 52:54:00:09:00:aa --eth-type arp",
    )  # fmt: skip
    sets = (
        "--src-ip 10.0.0.0/8,fd00::/8", "--dst-port 1,2", "--vlan 1-2", "--tcp-flags syn,fin",
        "--icmp-type 1,2", "--protocol 1,2,3", "--eth-type arp,ipv4", "-4\n-6",
    )  # fmt: skip
    assert [engine_filter.has_sets(filter_of(text)) for text in constants] == [False] * 5
    assert [engine_filter.has_sets(filter_of(text)) for text in sets] == [True] * 8


def sizes(lines: str, bench: Bench) -> List[int]:
    """Entries the engine asks for."""
    asked = {}

    class Object:
        types = bench.types

        def configure(self, **values: Any) -> None:
            pass

        def resize(self, name: str, entries: int) -> None:
            asked[name] = entries

    engine_filter.prepare(Object(), filter_of(lines))  # type: ignore[arg-type]
    return [asked["nt_tables"], asked["nt_prefixes"]]


def test_maps_are_as_small_as_the_filter(bench: Bench) -> None:
    assert sizes("", bench) == [1, 1]
    assert sizes("--src-ip 10.0.0.0/8 --dst-port 1-9", bench) == [1, 1]
    # The first step of all tables, a page with the port, one without, one of the other side.
    assert sizes("--dst-port 80,443", bench) == [256 * (8 + 4), 1]
    assert sizes("--src-ip 10.0.0.0/8,10.1.0.0/16\n--dst-ip fd00::/8", bench) == [256 * 8, 3]
    # All that differs: no more than 64 rules of different ports in every page.
    lines = [
        f"--dst-port {','.join(str(256 * high + n + 1) for high in range(256))}" for n in range(64)
    ]
    entries, _ = sizes("\n".join(lines), bench)
    assert entries == 256 * (8 + 1 + 1)
    source = random.Random(3)
    lines = [
        f"--{side}-port " + ",".join(str(source.randrange(1, 65536)) for _ in range(256))
        for side in ("src", "dst") for _ in range(32)
    ]  # fmt: skip
    assert sizes("\n".join(lines), bench)[0] <= 256 * (8 + 512)


@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_instructions(arch: str) -> None:
    """What the filter adds to a program of 4096 instructions, constants and sets together."""
    sections = elf_sections(harness_object(arch))
    symbols = next(section for section in sections if section.name == ".symtab")
    names = sections[symbols.link].data
    found = {}
    for name, info, _other, _number, _start, size in struct.iter_unpack("<IBBHQQ", symbols.data):
        if info & 15 == 2:
            found[names[name : names.index(b"\0", name)].decode()] = size // 8
    assert sum(found.values()) - 2 * found["idle"] <= 720, found
