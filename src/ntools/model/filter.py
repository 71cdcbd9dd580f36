# SPDX-License-Identifier: GPL-2.0-only
"""The packet filter of all commands: rules of criteria, one of which a packet has to fit.

The text of a criterion is the value of the option of its name, so a filter goes through the
command line, a file of rules, the header of a recording and back without a second notation. What
:meth:`PacketFilter.matches` says of a packet is what ``bpf/include/nt_filter.h`` says of it.

A criterion whose field a packet does not have refuses it: a port filter takes no packet without
ports. An address criterion also takes ARP, unless the rule names the IP version.
"""

from __future__ import annotations

from typing import (
    Any,
    Callable,
    Dict,
    FrozenSet,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Sequence,
    Tuple,
)

from . import flow
from .flow import Network
from .packet import Packet

__all__ = [
    "CRITERIA",
    "MAX_RULES",
    "MAX_VALUES",
    "PacketFilter",
    "Rule",
    "VLAN_NONE",
    "parse",
]

#: Rules of one filter: a bit each in the kernel.
MAX_RULES = 64
#: Values of one option.
MAX_VALUES = 256
#: The VLAN id of a packet without a tag.
VLAN_NONE = 0xFFFF
#: ``min_len`` at most; longer packets are not told apart.
MAX_LENGTH = 0xFFFF

#: First and last of a range.
Range = Tuple[int, int]

_IP_TYPES = {4: 0x0800, 6: 0x86DD}
_TCP = 6
_ICMP_FAMILY = {1: 4, 58: 6}
_TCP_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")
#: Names of ICMP types: (of IPv4, of IPv6); None: that one has no such type.
_ICMP_TYPES: Dict[str, Tuple[Any, Any]] = {
    "echo-reply": (0, 129),
    "unreachable": (3, 1),
    "packet-too-big": (None, 2),
    "redirect": (5, 137),
    "echo-request": (8, 128),
    "router-advertisement": (9, 134),
    "router-solicitation": (10, 133),
    "time-exceeded": (11, 3),
    "parameter-problem": (12, 4),
    "neighbor-solicitation": (None, 135),
    "neighbor-advertisement": (None, 136),
}


class Rule(NamedTuple):
    """Criteria that all have to fit. Of the values of one, any will do; an empty one is not used.

    :ivar vlan: ranges of ids of the outer tag; :data:`VLAN_NONE`: no tag.
    :ivar eth_type: EtherTypes behind all tags.
    :ivar family: IP version 4 or 6, 0: any packet.
    :ivar protocol: IP protocols, behind all extension headers.
    :ivar src_port, dst_port: ranges.
    :ivar icmp_type: (IP version, type).
    :ivar tcp_flags: (mask, value): of the flags in the mask exactly those in the value are set.
    :ivar min_len: bytes from the IP header on, 0: any.
    :ivar bidir: packets with source and destination exchanged fit, too.
    """

    vlan: Tuple[Range, ...] = ()
    eth_type: Tuple[int, ...] = ()
    src_mac: Tuple[bytes, ...] = ()
    dst_mac: Tuple[bytes, ...] = ()
    family: int = 0
    protocol: Tuple[int, ...] = ()
    min_len: int = 0
    src_ip: Tuple[Network, ...] = ()
    dst_ip: Tuple[Network, ...] = ()
    src_port: Tuple[Range, ...] = ()
    dst_port: Tuple[Range, ...] = ()
    icmp_type: Tuple[Range, ...] = ()
    tcp_flags: Tuple[Range, ...] = ()
    bidir: bool = False

    @property
    def used(self) -> Tuple[str, ...]:
        """Names of the criteria in use, in the order of evaluation."""
        return tuple(name for name in CRITERIA if getattr(self, name))

    def matches(self, packet: Packet) -> bool:
        """Whether a packet fits, in one of the directions the rule is about."""
        return self._matches(packet) or (self.bidir and self._matches(packet.reversed()))

    def _matches(self, packet: Packet) -> bool:
        return all(_PARTS[name].fits(getattr(self, name), packet) for name in self.used)

    def check(self) -> None:
        """Whether any packet can fit.

        :raises ValueError: none can; the text names the options that contradict each other.
        """
        families = self._families()
        if self.src_ip and self.dst_ip and not _families(self.src_ip) & _families(self.dst_ip):
            raise ValueError(
                "--src-ip '{}' and --dst-ip '{}' are of different address families".format(
                    self.text("src_ip"), self.text("dst_ip")
                )
            )
        if not families:
            raise ValueError(f"no packet fits {' and '.join(self._family_options())}")
        self._check_protocol("src_port", flow.PORT_PROTOCOLS, "with ports", "--protocol tcp or udp")
        self._check_protocol("dst_port", flow.PORT_PROTOCOLS, "with ports", "--protocol tcp or udp")
        self._check_protocol("icmp_type", flow.ICMP_PROTOCOLS, "with ICMP types", "--protocol icmp")
        self._check_protocol("tcp_flags", (_TCP,), "with TCP flags", "--protocol tcp")
        types = self._eth_types()
        if self.eth_type and types and not types & set(self.eth_type):
            name = next(name for name in self.used if name in _OF_IP + _OF_ARP)
            raise ValueError(
                f"no packet of --eth-type '{self.text('eth_type')}' fits {self._option_text(name)}"
            )

    def _check_protocol(self, name: str, good: Iterable[int], what: str, instead: str) -> None:
        if getattr(self, name) and self.protocol and not set(self.protocol) & set(good):
            raise ValueError(
                "{} needs a protocol {}, not '{}'. Use {}".format(
                    _option(name, self), what, self.text("protocol"), instead
                )
            )

    def _families(self) -> FrozenSet[int]:
        """IP versions a packet may have, as far as addresses, version and ICMP types tell."""
        found = frozenset((4, 6))
        if self.family:
            found &= {self.family}
        for networks in (self.src_ip, self.dst_ip):
            if networks:
                found &= _families(networks)
        if self.icmp_type:
            found &= {family for family, _ in self.icmp_type}
        return found

    def _family_options(self) -> List[str]:
        names = ("family", "src_ip", "dst_ip", "icmp_type")
        return [self._option_text(name) for name in names if getattr(self, name)]

    def _option_text(self, name: str) -> str:
        option = _option(name, self)
        return option if name == "family" else f"{option} '{self.text(name)}'"

    def _eth_types(self) -> FrozenSet[int]:
        """EtherTypes of which the other criteria can take packets; empty: of any."""
        used = set(self.used)
        if not used & set(_OF_IP + _OF_ARP):
            return frozenset()
        found = frozenset(_IP_TYPES[family] for family in self._families())
        arp = 4 in self._families() and not used & set(_OF_IP)
        return found | flow.ARP_TYPES if arp else found

    def text(self, name: str) -> str:
        """A criterion as the value of its option."""
        return _PARTS[name].text(getattr(self, name))

    def __str__(self) -> str:
        """The rule as options, a line of a file of rules."""
        words = [self._option_text(name) for name in self.used]
        return " ".join([*words, "--bidir"] if self.bidir else words).replace("'", "")

    def fields(self) -> Dict[str, Any]:
        """The criteria in use as text, for JSON."""
        fields: Dict[str, Any] = {name: self.text(name) for name in self.used}
        if self.bidir:
            fields["bidir"] = True
        return fields

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Rule:
        """The rule of :meth:`fields`.

        :raises ValueError: not the fields of a rule.
        """
        unknown = set(fields) - set(CRITERIA) - {"bidir"}
        if unknown:
            raise ValueError(f"'{min(unknown)}' is not a criterion")
        values = {
            name: parse(name, str(value)) for name, value in fields.items() if name != "bidir"
        }
        return cls(**values, bidir=bool(fields.get("bidir")))

    def within(self, other: Rule) -> bool:
        """Whether every packet that fits here certainly fits ``other``; in doubt False."""
        return all(
            any(own._within(wide) for wide in other._directions()) for own in self._directions()
        )

    def _within(self, other: Rule) -> bool:
        return all(
            getattr(self, name) and _PARTS[name].covers(getattr(other, name), getattr(self, name))
            for name in other.used
        )

    def _directions(self) -> Tuple[Rule, ...]:
        return (self, self.reversed()) if self.bidir else (self,)

    def reversed(self) -> Rule:
        """The rule of the other direction."""
        return self._replace(
            src_mac=self.dst_mac, dst_mac=self.src_mac, src_ip=self.dst_ip, dst_ip=self.src_ip,
            src_port=self.dst_port, dst_port=self.src_port,
        )  # fmt: skip


class _Part(NamedTuple):
    """What is known of one criterion.

    :ivar fits: whether a packet fulfils these values.
    :ivar covers: whether these values fulfil all that the second ones do.
    :ivar parse, text: from and to the value of the option.
    """

    fits: Callable[[Any, Packet], bool]
    covers: Callable[[Any, Any], bool]
    parse: Callable[[str], Any]
    text: Callable[[Any], str]


class PacketFilter(NamedTuple):
    """Rules of which one has to fit; without rules every packet is wanted."""

    rules: Tuple[Rule, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether it takes every packet."""
        return not self.rules

    @property
    def used(self) -> FrozenSet[str]:
        """Names of the criteria any rule uses: fields of :class:`Rule`."""
        return frozenset(name for rule in self.rules for name in rule.used)

    def matches(self, packet: Packet) -> bool:
        """Whether the packet is wanted: the kernel's verdict."""
        return not self.rules or any(rule.matches(packet) for rule in self.rules)

    def within(self, other: PacketFilter) -> bool:
        """Whether this filter certainly takes no packet that ``other`` refuses.

        Each rule has to lie within one rule of the other filter, so False does not prove that
        there is such a packet.
        """
        if not other.rules:
            return True
        return bool(self.rules) and all(
            any(rule.within(wider) for wider in other.rules) for rule in self.rules
        )

    def shown(self) -> Dict[str, Any]:
        """For people: one rule by names of record fields, several as lines of options."""
        if len(self.rules) > 1:
            return {"rules": [str(rule) for rule in self.rules]}
        found: Dict[str, Any] = {}
        for rule in self.rules:
            for name, value in rule.fields().items():
                if name in _NUMBERS and value.isdecimal():
                    value = int(value)
                found[_SHOWN.get(name, name)] = f"ipv{value}" if name == "family" else value
        return found

    def fields(self) -> Dict[str, Any]:
        """For JSON, to be read back by :meth:`from_fields`."""
        return {"rules": [rule.fields() for rule in self.rules]}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> PacketFilter:
        """The filter of :meth:`fields`.

        :raises ValueError: not the fields of a filter, or too many rules.
        """
        rules = fields.get("rules")
        if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
            raise ValueError("no list of rules")
        if len(rules) > MAX_RULES:
            raise ValueError(f"{len(rules)} rules, at most {MAX_RULES} are possible")
        return cls(tuple(Rule.from_fields(rule) for rule in rules))


def parse(name: str, text: str) -> Any:
    """The values of a criterion from the value of its option.

    :raises ValueError: cannot be read; one line that names what is wrong.
    """
    return _PARTS[name].parse(text)


# -- values and their text ----------------------------------------------------------------------


def _items(text: str) -> List[str]:
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise ValueError(f"'{text}' has an empty entry")
    if len(found) > MAX_VALUES:
        raise ValueError(f"{len(found)} values, at most {MAX_VALUES} are possible")
    return found


def _list_of(one: Callable[[str], Any]) -> Callable[[str], Tuple[Any, ...]]:
    def convert(text: str) -> Tuple[Any, ...]:
        return tuple(dict.fromkeys(one(part) for part in _items(text)))

    return convert


def _lists_of(some: Callable[[str], Sequence[Any]]) -> Callable[[str], Tuple[Any, ...]]:
    def convert(text: str) -> Tuple[Any, ...]:
        return tuple(dict.fromkeys(value for part in _items(text) for value in some(part)))

    return convert


def _range_of(one: Callable[[str], int]) -> Callable[[str], Range]:
    def convert(text: str) -> Range:
        first, dash, last = text.partition("-")
        found = (one(first), one(last if dash else first))
        if found[0] > found[1]:
            raise ValueError(f"'{text}': the range is empty")
        return found

    return convert


def _parse_vlan(text: str) -> Range:
    if text == "none":
        return (VLAN_NONE, VLAN_NONE)
    return _range_of(_vlan_id)(text)


def _vlan_id(text: str) -> int:
    if not _is_number(text, 4094):
        raise ValueError(f"'{text}' is not a VLAN id (0 to 4094) or 'none'")
    return int(text)


def _parse_protocols(text: str) -> Tuple[int, ...]:
    if text.lower() == "all":
        return ()
    found = _lists_of(flow.parse_protocol)(text)
    if "all" in (part.strip().lower() for part in text.split(",")):
        raise ValueError(f"'{text}': 'all' stands alone")
    return found


def _protocols_text(values: Sequence[int]) -> str:
    """``icmp`` means both; one of them alone is ``1`` or ``icmpv6``."""
    both = set(flow.ICMP_PROTOCOLS) <= set(values)
    words = []
    for value in values:
        name = flow.protocol_name(value)
        if both and value in flow.ICMP_PROTOCOLS:
            words.append("icmp")
        else:
            words.append(str(value) if value == 1 or name.startswith("unknown") else name)
    return ",".join(dict.fromkeys(words))


def _parse_icmp_types(text: str) -> Tuple[Range, ...]:
    if _is_number(text, 255):
        return ((4, int(text)), (6, int(text)))
    if text.lower() not in _ICMP_TYPES:
        names = ", ".join(_ICMP_TYPES)
        raise ValueError(f"'{text}' is not an ICMP type ({names}, or 0 to 255)")
    pair = _ICMP_TYPES[text.lower()]
    return tuple((family, value) for family, value in zip((4, 6), pair) if value is not None)


def _icmp_types_text(values: Sequence[Range]) -> str:
    """Numbers where both versions have them, else the first name all of whose types are here."""
    here = set(values)
    words = []
    for value in values:
        known = [str(value[1]), *_ICMP_TYPES]
        word = next(
            word
            for word in known
            if value in _parse_icmp_types(word) and here.issuperset(_parse_icmp_types(word))
        )
        words.append(word)
    return ",".join(dict.fromkeys(words))


def _parse_tcp_flags(text: str) -> Range:
    mask = value = 0
    for word in text.lower().split("+"):
        name = word.lstrip("~")
        if name not in _TCP_FLAGS or len(word) - len(name) > 1:
            raise ValueError(
                f"'{text}' is not a set of TCP flags: {', '.join(_TCP_FLAGS)}, several joined by "
                "'+', '~' before one that must not be set"
            )
        bit = 1 << _TCP_FLAGS.index(name)
        if mask & bit and bool(value & bit) != (word == name):
            raise ValueError(f"'{text}': {name} cannot be set and not set")
        mask |= bit
        value |= bit if word == name else 0
    return (mask, value)


def _tcp_flags_text(values: Sequence[Range]) -> str:
    return ",".join(
        "+".join(
            name if value >> bit & 1 else "~" + name
            for bit, name in enumerate(_TCP_FLAGS)
            if mask >> bit & 1
        )
        for mask, value in values
    )


def _parse_length(text: str) -> int:
    if not _is_number(text, MAX_LENGTH) or not int(text):
        raise ValueError(f"'{text}' is not a length from 1 to {MAX_LENGTH} bytes")
    return int(text)


def _parse_family(text: str) -> int:
    if text not in ("4", "6"):
        raise ValueError(f"'{text}' is not an IP version")
    return int(text)


def _is_number(text: str, most: int) -> bool:
    return text.isdecimal() and text.isascii() and len(text) < 7 and int(text) <= most


def _ranges_text(values: Sequence[Range]) -> str:
    return ",".join(
        "none" if first == VLAN_NONE else str(first) if first == last else f"{first}-{last}"
        for first, last in values
    )


def _ports_text(values: Sequence[Range]) -> str:
    return ",".join(str(one) if one == last else f"{one}-{last}" for one, last in values)


def _joined(text: Callable[[Any], str]) -> Callable[[Sequence[Any]], str]:
    return lambda values: ",".join(text(value) for value in values)


def _option(name: str, rule: Rule) -> str:
    return f"--ipv{rule.family}" if name == "family" else "--" + name.replace("_", "-")


# -- what values mean ----------------------------------------------------------------------------


def _in_ranges(ranges: Sequence[Range], value: Any) -> bool:
    return value is not None and any(first <= value <= last for first, last in ranges)


def _in_networks(networks: Sequence[Network], address: Any) -> bool:
    return address is not None and any(network.contains(address) for network in networks)


def _has_flags(wanted: Sequence[Range], flags: Any) -> bool:
    return flags is not None and any(flags & mask == value for mask, value in wanted)


def _families(networks: Sequence[Network]) -> FrozenSet[int]:
    return frozenset(network.family for network in networks)


def _set_covers(wide: Sequence[Any], narrow: Sequence[Any]) -> bool:
    return set(narrow) <= set(wide)


def _ranges_cover(wide: Sequence[Range], narrow: Sequence[Range]) -> bool:
    merged: List[List[int]] = []
    for first, last in sorted(wide):
        if merged and first <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    return all(any(first <= low and high <= last for first, last in merged) for low, high in narrow)


def _networks_cover(wide: Sequence[Network], narrow: Sequence[Network]) -> bool:
    return all(
        any(
            one.family == each.family
            and one.prefix_bits <= each.prefix_bits
            and one.contains(each.address)
            for one in wide
        )
        for each in narrow
    )


def _flags_cover(wide: Sequence[Range], narrow: Sequence[Range]) -> bool:
    return all(
        any(mask & own == mask and own_value & mask == value for mask, value in wide)
        for own, own_value in narrow
    )


_PARTS: Dict[str, _Part] = {
    "vlan": _Part(
        lambda ranges, p: _in_ranges(ranges, VLAN_NONE if p.vlan_id is None else p.vlan_id),
        _ranges_cover, _list_of(_parse_vlan), _ranges_text,
    ),
    "eth_type": _Part(
        lambda types, p: p.eth_type in types,
        _set_covers, _list_of(flow.parse_eth_type), _joined(flow.eth_type_name),
    ),
    "src_mac": _Part(
        lambda macs, p: p.src_mac in macs,
        _set_covers, _list_of(flow.parse_mac), _joined(flow.mac_text),
    ),
    "dst_mac": _Part(
        lambda macs, p: p.dst_mac in macs,
        _set_covers, _list_of(flow.parse_mac), _joined(flow.mac_text),
    ),
    "family": _Part(
        lambda family, p: p.family == family,
        lambda wide, narrow: bool(wide == narrow), _parse_family, str,
    ),
    "protocol": _Part(
        lambda protocols, p: bool(p.family) and p.protocol in protocols,
        _set_covers, _parse_protocols, _protocols_text,
    ),
    "min_len": _Part(
        lambda length, p: bool(p.total_len >= length),
        lambda wide, narrow: bool(narrow >= wide), _parse_length, str,
    ),
    "src_ip": _Part(
        lambda networks, p: _in_networks(networks, p.src),
        _networks_cover, _list_of(flow.parse_network), _joined(str),
    ),
    "dst_ip": _Part(
        lambda networks, p: _in_networks(networks, p.dst),
        _networks_cover, _list_of(flow.parse_network), _joined(str),
    ),
    "src_port": _Part(
        lambda ranges, p: _in_ranges(ranges, p.src_port),
        _ranges_cover, _list_of(_range_of(flow.parse_port)), _ports_text,
    ),
    "dst_port": _Part(
        lambda ranges, p: _in_ranges(ranges, p.dst_port),
        _ranges_cover, _list_of(_range_of(flow.parse_port)), _ports_text,
    ),
    "icmp_type": _Part(
        lambda types, p: (p.family, p.icmp_type) in types,
        _set_covers, _lists_of(_parse_icmp_types), _icmp_types_text,
    ),
    "tcp_flags": _Part(
        lambda wanted, p: _has_flags(wanted, p.tcp_flags),
        _flags_cover, _list_of(_parse_tcp_flags), _tcp_flags_text,
    ),
}  # fmt: skip

#: Names of all criteria, in the order of evaluation.
CRITERIA: Tuple[str, ...] = tuple(_PARTS)
#: Criteria only packets of IP fulfil, and those of IP or ARP.
_OF_IP = ("family", "protocol", "src_port", "dst_port", "icmp_type", "tcp_flags")
_OF_ARP = ("src_ip", "dst_ip")
#: Where a record's field has another name than the option.
_SHOWN = {"vlan": "vlan_id"}
_NUMBERS = ("vlan", "src_port", "dst_port", "min_len")
