# SPDX-License-Identifier: GPL-2.0-only
"""Packets of all kinds, filters with the same meaning in pcap syntax, and libpcap's verdict.

Addresses, ports and ids come from small pools, so that filters of these pools fit often.
"""

from __future__ import annotations

import ipaddress
import random
import struct
import subprocess
from pathlib import Path
from typing import Any, Dict, FrozenSet, List, NamedTuple, Optional, Sequence, Set

from object import packets as p

__all__ = ["Frame", "TABLE", "corpus", "expression", "random_filter", "tcpdump", "write_pcap"]

IP4, IP6, ARP, VLAN, QINQ = 0x0800, 0x86DD, 0x0806, 0x8100, 0x88A8
NETS4 = [
    "192.0.2.1",
    "192.0.2.2",
    "192.0.2.77",
    "192.0.3.5",
    "198.51.100.2",
    "10.1.2.3",
    "10.1.9.9",
]
NETS6 = ["2001:db8::1", "2001:db8::2", "2001:db8:7::2", "2001:db8:7:1::5", "fd00::1", "fd00:1::9"]
PREFIXES = [
    "192.0.2.0/24", "192.0.2.0/30", "192.0.0.0/16", "10.0.0.0/8", "10.1.2.0/24", "0.0.0.0/0",
    "2001:db8::/32", "2001:db8:7::/48", "fd00::/16", "::/0", "2001:db8::/127",
]  # fmt: skip
PORTS = [1, 22, 53, 80, 443, 1000, 1500, 2000, 2047, 2048, 8080, 41000, 65535]
VLANS = [0, 1, 5, 100, 200, 4094]
MACS = ["52:54:00:09:00:aa", "52:54:00:09:00:bb", "52:54:00:09:00:cc", "ff:ff:ff:ff:ff:ff"]


class Frame(NamedTuple):
    """A frame, and what the tests know of it.

    :ivar data: the whole frame.
    :ivar linear: how much of it can be read.
    :ivar twin: the same without extension headers, as long as this; what libpcap judges for it.
    :ivar kinds: why libpcap may see something else, names of ``test_filter_pcap.REASONS``.
    """

    data: bytes
    linear: int
    twin: bytes
    kinds: FrozenSet[str]


def _address(source: random.Random, pool: Sequence[str]) -> bytes:
    return ipaddress.ip_address(source.choice(pool)).packed


def _mac(source: random.Random) -> bytes:
    return bytes.fromhex(source.choice(MACS[:3]).replace(":", ""))


def _transport(source: random.Random, family: int) -> tuple[int, bytes, Set[str]]:
    """(protocol, bytes, kinds)."""
    text = bytes(range(source.choice([0, 1, 8, 30, 200])))
    ends = {"sport": source.choice(PORTS), "dport": source.choice(PORTS)}
    kind = source.choice(["tcp"] * 5 + ["udp"] * 5 + ["icmp"] * 3 + ["sctp", "udplite", "esp"])
    if kind == "tcp":
        options = b"\x01" * 4 * source.choice([0, 0, 3])
        flags = source.choice([0x02, 0x12, 0x10, 0x18, 0x11, 0x04, 0x14, 0, 0xFF, 0xC2, 0x29])
        return 6, p.tcp(text, flags=flags, options=options, **ends), set()
    if kind == "udp":
        return 17, p.udp(text, **ends), set()
    if kind == "icmp":
        types = [0, 3, 5, 8, 11, 12] if family == 4 else [1, 2, 3, 128, 129, 135, 136, 137]
        return (1 if family == 4 else 58), p.icmp(text, kind=source.choice(types)), set()
    if kind == "sctp":
        return 132, struct.pack("!HHII", ends["sport"], ends["dport"], 7, 0) + text, set()
    if kind == "udplite":
        return 136, p.udp(text, **ends), {"udplite"}
    return 50, struct.pack("!II", 0x01020304, 9) + text, set()


def _ip4(source: random.Random) -> tuple[bytes, bytes, Set[str]]:
    protocol, data, kinds = _transport(source, 4)
    options: Dict[str, Any] = {
        "src": _address(source, NETS4), "dst": _address(source, NETS4),
        "ident": source.randrange(65536), "ttl": source.choice([1, 64, 255]),
    }  # fmt: skip
    if source.random() < 0.15:
        options["options"] = b"\x94\x04\0\0" * source.choice([1, 2, 10])
    if source.random() < 0.15:
        options.update(flags=1)
    elif source.random() < 0.15:
        options.update(frag=8 * source.choice([1, 185, 8191]), flags=source.choice([0, 1]))
    packet = p.ip4(data, protocol, **options)
    return packet, packet, kinds


def _ip6(source: random.Random) -> tuple[bytes, bytes, Set[str]]:
    """With up to 7 extension headers; the twin has none, or only that of a later fragment."""
    protocol, data, kinds = _transport(source, 6)
    ends = {"src": _address(source, NETS6), "dst": _address(source, NETS6)}
    names = ["opts", "routing", "auth"]
    chain = [source.choice(names) for _ in range(source.choice([0, 0, 0, 0, 1, 1, 2, 3, 5, 7]))]
    if chain and source.random() < 0.5:
        chain[0] = "hop"
    fragment = source.random()
    body, following, plain, plain_next = data, protocol, data, protocol
    behind, before = chain[: len(chain) // 2], chain[len(chain) // 2 :]
    offset = 0
    if fragment < 0.3:
        offset = 0 if fragment < 0.1 else 8 * source.choice([1, 90])
        more = not offset or source.random() < 0.5
        behind = [] if offset else behind
        before = [name for name in chain if name not in behind][:5] if offset else before
    for name in behind:
        words = source.choice([0, 0, 1, 2])
        body, following = p.ext(body, name, following, words), p.NEXT[name]
    if fragment < 0.3:
        if offset:
            plain = p.fragment(plain, plain_next, 7, offset, more)
            plain_next = p.NEXT["fragment"]
        body = p.fragment(body, following, 7, offset, more)
        following = p.NEXT["fragment"]
    for name in before:
        words = source.choice([0, 0, 1])
        body, following = p.ext(body, name, following, words), p.NEXT[name]
    if len(behind) + len(before) + (fragment < 0.3) > 6:
        kinds.add("deep")
    if body != plain:
        kinds.add("extension")
    length = len(body)
    return (
        p.ip6(body, following, **ends),
        p.ip6(plain.ljust(length, b"\x7e"), plain_next, **ends),
        kinds,
    )


def _arp(source: random.Random) -> bytes:
    ends = {"spa": _address(source, NETS4), "tpa": _address(source, NETS4)}
    return p.arp(source.choice([1, 2]), **ends)


def _frame(source: random.Random) -> Frame:
    kinds: Set[str] = set()
    kind = source.choice(["ip4"] * 9 + ["ip6"] * 9 + ["arp"] * 2 + ["lldp"])
    if kind == "ip4":
        proto, (packet, twin, kinds) = IP4, _ip4(source)
    elif kind == "ip6":
        proto, (packet, twin, kinds) = IP6, _ip6(source)
    elif kind == "arp":
        proto, packet = ARP, _arp(source)
        twin = packet
    else:
        proto, packet = 0x88CC, bytes(range(source.choice([20, 60])))
        twin = packet
    tags = source.choice([(), (), (), (VLAN,), (VLAN,), (QINQ,), (VLAN, QINQ), (VLAN, VLAN)])
    for tag in tags:
        number = source.choice(VLANS) | source.choice([0, 0x6000])
        packet, twin, proto = p.vlan(packet, number, proto), p.vlan(twin, number, proto), tag
    ends = {"src": _mac(source), "dst": _mac(source)}
    data, twin = p.eth(packet, proto, **ends), p.eth(twin, proto, **ends)
    if source.random() < 0.2:
        data, twin = data.ljust(60, b"\0"), twin.ljust(60, b"\0")
    linear = len(data)
    if source.random() < 0.08:
        linear = min(source.randrange(14 + 4 * len(tags), 120), linear)
    return Frame(data, linear, twin, frozenset(kinds))


def corpus(seed: int, count: int) -> List[Frame]:
    """So many frames, the same for the same seed."""
    source = random.Random(seed)
    return [_frame(source) for _ in range(count)]


# -- filters ------------------------------------------------------------------------------------

TAGGED = "(ether[12:2] = 0x8100 or ether[12:2] = 0x88a8)"


def vlan(low: int, high: Optional[int] = None) -> str:
    """The outer tag, told without the word that moves everything behind it."""
    number = "ether[14:2] & 0xfff"
    return f"({TAGGED} and {number} >= {low} and {number} <= {low if high is None else high})"


def flags(mask: int, value: int) -> str:
    """TCP flags of both IP versions; behind IPv6 libpcap has no word for them."""
    return (
        f"((ip and tcp[13] & {mask} = {value}) or "
        f"(ip6 and ip6[6] = 6 and ip6[53] & {mask} = {value}))"
    )


def icmp(v4: Optional[int], v6: Optional[int]) -> str:
    parts = [f"(icmp and icmp[0] = {v4})"] if v4 is not None else []
    parts += [f"(ip6 and ip6[6] = 58 and ip6[40] = {v6})"] if v6 is not None else []
    return f"({' or '.join(parts)})"


UNTAGGED = f"(not {TAGGED})"
#: Options, and the same in pcap syntax for a packet behind its tags.
TABLE: List[tuple[str, str]] = [
    ("--src-ip 192.0.2.1", "src host 192.0.2.1"),
    ("--dst-ip 192.0.2.0/24", "dst net 192.0.2.0/24"),
    ("--src-ip 0.0.0.0/0", "ip or arp"),
    ("--src-ip 0.0.0.0/0 -4", "ip"),
    ("--dst-ip ::/0", "ip6"),
    ("--src-ip 2001:db8::1", "src host 2001:db8::1"),
    ("--dst-ip 2001:db8:7::/48", "dst net 2001:db8:7::/48"),
    ("--src-ip 192.0.2.1,2001:db8::/32", "src host 192.0.2.1 or src net 2001:db8::/32"),
    ("--src-ip 192.0.0.0/16,192.0.2.0/30,10.1.2.3 --dst-ip 10.0.0.0/8,192.0.2.0/24",
     "(src net 192.0.0.0/16 or src host 10.1.2.3) and (dst net 10.0.0.0/8 or "
     "dst net 192.0.2.0/24)"),
    ("--src-ip 192.0.2.1 --dst-ip 198.51.100.2 --bidir",
     "(src host 192.0.2.1 and dst host 198.51.100.2) or "
     "(src host 198.51.100.2 and dst host 192.0.2.1)"),
    ("--src-ip 192.0.2.0/24 --bidir", "net 192.0.2.0/24"),
    ("--src-port 53", "src port 53"),
    ("--dst-port 80,443", "dst port 80 or dst port 443"),
    ("--dst-port 1000-2047", "dst portrange 1000-2047"),
    ("--src-port 1-52,54-65535", "src portrange 1-52 or src portrange 54-65535"),
    ("--src-port 53 --bidir", "port 53"),
    ("--src-port 53,80 --dst-port 1000-65535 --bidir",
     "((src port 53 or src port 80) and dst portrange 1000-65535) or "
     "((dst port 53 or dst port 80) and src portrange 1000-65535)"),
    ("--protocol tcp", "tcp"),
    ("--protocol udp", "udp"),
    ("--protocol icmp", "icmp or icmp6"),
    ("--protocol tcp,udp,sctp", "tcp or udp or sctp"),
    ("--protocol 50,icmpv6", "ip proto 50 or ip6 proto 50 or icmp6"),
    ("--protocol tcp --dst-port 443 --src-ip 192.0.2.0/24",
     "tcp dst port 443 and src net 192.0.2.0/24"),
    ("--protocol udp --dst-port 53 --bidir -6", "ip6 and udp port 53"),
    ("--vlan 100", vlan(100)),
    ("--vlan none", UNTAGGED),
    ("--vlan none,5", f"{UNTAGGED} or {vlan(5)}"),
    ("--vlan 1-100,4094", f"{vlan(1, 100)} or {vlan(4094)}"),
    ("--vlan 100 --dst-port 53", f"{vlan(100)} and dst port 53"),
    ("--vlan none --protocol tcp", f"{UNTAGGED} and tcp"),
    ("-4", "ip"),
    ("-6", "ip6"),
    ("--eth-type arp", "arp"),
    ("--eth-type lldp,ipv6", "ether proto 0x88cc or ip6"),
    ("--eth-type arp --dst-ip 192.0.2.0/24", "arp dst net 192.0.2.0/24"),
    ("--src-mac 52:54:00:09:00:aa", "ether src 52:54:00:09:00:aa"),
    ("--src-mac 52:54:00:09:00:aa --dst-mac 52:54:00:09:00:bb --bidir",
     "(ether src 52:54:00:09:00:aa and ether dst 52:54:00:09:00:bb) or "
     "(ether src 52:54:00:09:00:bb and ether dst 52:54:00:09:00:aa)"),
    ("--dst-mac 52:54:00:09:00:bb,52:54:00:09:00:cc --protocol udp",
     "(ether dst 52:54:00:09:00:bb or ether dst 52:54:00:09:00:cc) and udp"),
    ("--icmp-type echo-request", icmp(8, 128)),
    ("--icmp-type unreachable,time-exceeded -4", f"{icmp(3, None)} or {icmp(11, None)}"),
    ("--icmp-type packet-too-big", icmp(None, 2)),
    ("--icmp-type 3", icmp(3, 3)),
    ("--icmp-type 135,136", f"{icmp(135, 135)} or {icmp(136, 136)}"),
    ("--tcp-flags syn", flags(2, 2)),
    ("--tcp-flags syn+~ack", flags(0x12, 2)),
    ("--tcp-flags syn+ack,rst", f"{flags(0x12, 0x12)} or {flags(4, 4)}"),
    ("--tcp-flags ~fin+~syn+~rst --dst-port 80", f"{flags(7, 0)} and dst port 80"),
    ("--min-len 100 -4", "ip and ip[2:2] >= 100"),
    ("--min-len 200 -6", "ip6 and ip6[4:2] >= 160"),
    ("--min-len 241 --protocol udp,tcp -4", "ip[2:2] >= 241 and (udp or tcp)"),
    # Files of rules.
    ("--src-ip 10.0.0.0/8\n--dst-port 53", "src net 10.0.0.0/8 or dst port 53"),
    ("--vlan 100 --src-ip 192.0.2.0/24\n--vlan 200 --dst-port 1000-2000 --bidir\n--eth-type arp",
     f"({vlan(100)} and src net 192.0.2.0/24) or ({vlan(200)} and portrange 1000-2000) or arp"),
    ("--protocol tcp --tcp-flags rst\n--icmp-type unreachable\n-6 --dst-port 443",
     f"{flags(4, 4)} or {icmp(3, 1)} or (ip6 and dst port 443)"),
    ("--src-ip 192.0.2.1 --dst-port 80 --bidir\n--src-ip 2001:db8::/32 --dst-port 53",
     "(src host 192.0.2.1 and dst port 80) or (dst host 192.0.2.1 and src port 80) or "
     "(src net 2001:db8::/32 and dst port 53)"),
]  # fmt: skip


def expression(inner: str) -> str:
    """The expression behind no tag, one or two; each ``vlan`` moves what follows by one tag."""
    return f"({inner}) or (vlan and (({inner}) or (vlan and ({inner}))))"


class _Words:
    """One criterion of a random rule: its option, and pcap syntax for both directions."""

    def __init__(self, option: str, there: str, back: Optional[str] = None) -> None:
        self.option, self.there, self.back = option, there, there if back is None else back


def _either(parts: Sequence[str]) -> str:
    return f"({' or '.join(parts)})"


def _side_words(name: str, side: str, texts: Sequence[str], form: str) -> _Words:
    other = "dst" if side == "src" else "src"
    return _Words(
        f"--{side}-{name} {','.join(texts)}",
        _either([form.format(side, _word(text)) for text in texts]),
        _either([form.format(other, _word(text)) for text in texts]),
    )


def _word(text: str) -> str:
    return text if "/" not in text else str(ipaddress.ip_network(text))


def _random_words(source: random.Random, name: str) -> _Words:
    side = source.choice(["src", "dst"])
    count = source.choice([1, 1, 2, 4])
    if name == "ip":
        pool = [*(f"{one}/32" for one in NETS4), *(f"{one}/128" for one in NETS6), *PREFIXES]
        return _side_words("ip", side, source.sample(pool, count), "{} net {}")
    if name == "port":
        texts = []
        for _ in range(count):
            first, last = sorted(source.sample(PORTS, 2))
            texts.append(source.choice([str(first), f"{first}-{last}"]))
        return _side_words("port", side, texts, "{} portrange {}")
    if name == "mac":
        return _side_words("mac", side, source.sample(MACS, min(count, 3)), "ether {} {}")
    if name == "protocol":
        known = {"tcp": "tcp", "udp": "udp", "icmp": "(icmp or icmp6)", "sctp": "sctp",
                 "esp": "(ip proto 50 or ip6 proto 50)"}  # fmt: skip
        chosen = source.sample(sorted(known), min(count, 3))
        return _Words(f"--protocol {','.join(chosen)}", _either([known[one] for one in chosen]))
    if name == "vlan":
        low, high = sorted(source.sample(VLANS, 2))
        options = [(f"{low}-{high}", vlan(low, high)), ("none", UNTAGGED), (str(high), vlan(high))]
        chosen = source.sample(options, min(count, 3))
        return _Words(
            f"--vlan {','.join(text for text, _ in chosen)}", _either([e for _, e in chosen])
        )
    if name == "family":
        return source.choice([_Words("-4", "ip"), _Words("-6", "ip6")])
    if name == "flags":
        text, there = source.choice(
            [("syn+~ack", flags(0x12, 2)), ("fin,rst", _either([flags(1, 1), flags(4, 4)]))]
        )
        return _Words(f"--tcp-flags {text}", there)
    assert name == "type"
    text, there = source.choice(
        [("echo-request", icmp(8, 128)), ("3,redirect", _either([icmp(3, 3), icmp(5, 137)]))]
    )
    return _Words(f"--icmp-type {text}", there)


def random_filter(source: random.Random, rules: int) -> tuple[str, str]:
    """(lines of options, pcap syntax) of a filter of so many rules."""
    lines, parts = [], []
    for _ in range(rules):
        names = source.sample(
            ["ip", "port", "mac", "protocol", "vlan", "family", "flags", "type"],
            source.choice([1, 1, 2, 2, 3]),
        )
        if "ip" in names and "family" in names:
            names.remove("family")
        for one, other in (("flags", "type"), ("flags", "protocol"), ("type", "protocol"),
                           ("type", "port")):  # fmt: skip
            if one in names and other in names:
                names.remove(other)
        words = [_random_words(source, name) for name in names]
        if "port" in names and "protocol" in names:
            words = [one for one in words if "--protocol" not in one.option]
        there = " and ".join(one.there for one in words)
        if source.random() < 0.4:
            back = " and ".join(one.back for one in words)
            lines.append(" ".join([one.option for one in words] + ["--bidir"]))
            parts.append(f"(({there}) or ({back}))")
        else:
            lines.append(" ".join(one.option for one in words))
            parts.append(f"({there})")
    return "\n".join(lines), " or ".join(parts)


# -- libpcap --------------------------------------------------------------------------------------


def write_pcap(path: Path, frames: Sequence[bytes]) -> None:
    """A capture file; the seconds of the time are the number of the frame."""
    with path.open("wb") as stream:
        stream.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for number, data in enumerate(frames):
            stream.write(struct.pack("<IIII", number, 0, len(data), len(data)) + data)


def tcpdump(path: Path, text: str) -> Set[int]:
    """Numbers of the packets of a file that fit an expression."""
    with path.open("rb") as stream:
        done = subprocess.run(
            ["tcpdump", "-n", "-Z", "root", "-r", "-", "-w", "-", text],
            stdin=stream, capture_output=True,
        )  # fmt: skip
    assert not done.returncode, (text, done.stderr)
    found, at = set(), 24
    while at < len(done.stdout):
        number, _, size, _ = struct.unpack_from("<IIII", done.stdout, at)
        found.add(number)
        at += 16 + size
    return found
