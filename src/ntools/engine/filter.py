# SPDX-License-Identifier: GPL-2.0-only
"""The packet filter as the kernel side wants it: ``struct nt_filter`` and its two maps.

One rule of single values becomes constants of the configuration. Anything else becomes sets of
rules, 64 bits wide, by value of each criterion: see ``bpf/include/nt_filter.h``.
"""

import struct
from typing import Any, Callable, Dict, Iterable, List, Tuple

from ntools._loader import BpfObject
from ntools._loader.btf import Types
from ntools.model.filter import CRITERIA, PacketFilter, Rule

__all__ = ["config", "fill", "has_sets", "prepare"]

_TABLES, _PREFIXES = "nt_tables", "nt_prefixes"
_PAGE = struct.Struct("<256Q")
_VALUES = 1 << 16
_NO_ICMP_TYPE = 0xFFFF
_BITS = {4: 32, 6: 128}
#: Pages of a table in use, where the values have less than 16 bits.
_PAGES = {"PROTOCOL": 1, "ICMP_TYPE": 2, "TCP_FLAGS": 1}
_USE = {"eth_type": "ETH_PROTO"}

Range = Tuple[int, int]


def prepare(obj: BpfObject, flt: PacketFilter) -> None:
    """Before the start: the configuration, and maps of the size the filter needs."""
    obj.configure(**config(flt, obj.types))
    sets = _Sets(flt, obj.types) if has_sets(flt) else None
    obj.resize(_TABLES, sets.table_entries if sets else 1)
    obj.resize(_PREFIXES, max(1, len(sets.prefixes)) if sets else 1)


def fill(obj: BpfObject, flt: PacketFilter) -> None:
    """Between the start and the first packet: what the programs look up."""
    if not has_sets(flt):
        return
    sets = _Sets(flt, obj.types)
    tables = obj.map(_TABLES)
    for index, rules in sets.tables():
        tables.update(index, rules)
    prefixes = obj.map(_PREFIXES)
    for (bits, field, data), rules in sets.prefixes.items():
        prefixes.update((32 + bits, field, data), rules)


def config(flt: PacketFilter, types: Types) -> Dict[str, Any]:
    """Fields of the configuration (``filter__...``), for ``struct nt_filter``."""
    numbers = types.enum("nt_filter_use")
    names = [_USE.get(name, name.upper()) for name in CRITERIA if name in flt.used]
    fields = _Sets(flt, types).fields() if has_sets(flt) else _constants(flt)
    if flt.rules and flt.rules[0].bidir and not has_sets(flt):
        names.append("BIDIR")
    fields["used"] = sum(numbers["NT_F_" + name] for name in names)
    return {"filter__" + name: value for name, value in fields.items()}


def has_sets(flt: PacketFilter) -> bool:
    """Whether the filter needs lookups: it has several rules, or a rule with a list."""
    return len(flt.rules) > 1 or any(not _is_single(rule) for rule in flt.rules)


def _is_single(rule: Rule) -> bool:
    """Whether the rule fits into constants."""
    lists = (
        rule.eth_type, rule.src_mac, rule.dst_mac, rule.src_ip, rule.dst_ip, rule.src_port,
        rule.dst_port, rule.tcp_flags,
    )  # fmt: skip
    families = {network.family for network in rule.src_ip + rule.dst_ip}
    if rule.family:
        families.add(rule.family)
    icmp_families = [family for family, _ in rule.icmp_type]
    return (
        all(len(values) < 2 for values in lists)
        and (not rule.vlan or rule.vlan[0][0] == rule.vlan[-1][1])
        and len(rule.vlan) < 2
        and len(rule.protocol) < 3
        and len(icmp_families) == len(set(icmp_families))
        and len(families) < 2
    )


def _constants(flt: PacketFilter) -> Dict[str, Any]:
    fields: Dict[str, Any] = {}
    for rule in flt.rules:
        for side in ("src", "dst"):
            for network in getattr(rule, side + "_ip"):
                fields[side + "_ip"] = network.address
                fields[side + "_mask"] = network.mask
                fields["family"] = network.family
            for first, last in getattr(rule, side + "_port"):
                fields[side + "_port"] = first
                fields[side + "_port_last"] = last
            for mac in getattr(rule, side + "_mac"):
                fields[side + "_mac"] = mac
        for first, _ in rule.vlan:
            fields["vlan_id"] = first
        for number in rule.eth_type:
            fields["eth_proto"] = number
        for mask, value in rule.tcp_flags:
            fields["tcp_mask"], fields["tcp_flags"] = mask, value
        if rule.family:
            fields["family"] = rule.family
        if rule.protocol:
            fields["protocol"], fields["protocol_alt"] = rule.protocol[0], rule.protocol[-1]
        if rule.icmp_type:
            of = dict(rule.icmp_type)
            fields["icmp_type"] = of.get(4, _NO_ICMP_TYPE)
            fields["icmp6_type"] = of.get(6, _NO_ICMP_TYPE)
        if rule.min_len:
            fields["min_len"] = rule.min_len
    return fields


class _Sets:
    """Sets of rules, bit n for rule n.

    :ivar prefixes: (bits, field, 16 bytes) -> rules; those of all covering prefixes included.
    """

    def __init__(self, flt: PacketFilter, types: Types) -> None:
        self._rules = flt.rules
        self._used = flt.used
        self._tables = types.enum("nt_filter_table")
        self._fields = types.enum("nt_filter_prefix")
        self._pages: Dict[bytes, int] = {}
        self._steps: Dict[int, bytes] = {}  # place in the first step -> page
        for name, criterion, ranges in _RANGES:
            if criterion in self._used or (name.endswith("_PORT") and self._has_ports()):
                self._add_table(name, criterion, ranges)
        self.prefixes: Dict[Tuple[int, int, bytes], int] = {}
        for side in ("src", "dst"):
            self._add_addresses(side)

    @property
    def table_entries(self) -> int:
        """Entries of ``nt_tables``."""
        return 256 * (self._tables["NT_TABLE_MAX"] + len(self._pages))

    def tables(self) -> Iterable[Tuple[int, int]]:
        """(index, value) of ``nt_tables``; what is not named is 0."""
        first = 256 * self._tables["NT_TABLE_MAX"]
        for place, page in self._steps.items():
            yield place, first + 256 * self._pages[page]
        for page, number in self._pages.items():
            for low, rules in enumerate(_PAGE.unpack(page)):
                if rules:
                    yield first + 256 * number + low, rules

    def fields(self) -> Dict[str, int]:
        """Fields of ``struct nt_filter``."""
        return {
            "rules": self._mask(lambda rule: True),
            "bidir": self._mask(lambda rule: rule.bidir),
            "ipv4": self._mask(lambda rule: rule.family != 6),
            "ipv6": self._mask(lambda rule: rule.family != 4),
            "any_family": self._mask(lambda rule: not rule.family),
            "any_protocol": self._any("protocol"),
            "any_port": self._any("src_port") & self._any("dst_port"),
            "any_icmp_type": self._any("icmp_type"),
            "any_tcp_flags": self._any("tcp_flags"),
            "any_src_ip": self._any("src_ip"),
            "any_dst_ip": self._any("dst_ip"),
            "any_src_mac": self._any("src_mac"),
            "any_dst_mac": self._any("dst_mac"),
        }

    def _mask(self, has: Callable[[Rule], Any]) -> int:
        return sum(1 << number for number, rule in enumerate(self._rules) if has(rule))

    def _any(self, criterion: str) -> int:
        """Rules that do not use a criterion."""
        return self._mask(lambda rule: not getattr(rule, criterion))

    def _has_ports(self) -> bool:
        """The programs look at both ports when any rule asks for one."""
        return bool(self._used & {"src_port", "dst_port"})

    def _add_table(
        self, name: str, criterion: str, ranges: Callable[[Any], Iterable[Range]]
    ) -> None:
        # Where a rule begins and ceases to be fulfilled, from value to value.
        changes: Dict[int, int] = {}
        for number, rule in enumerate(self._rules):
            values = getattr(rule, criterion)
            for first, last in _merged(ranges(values)) if values else ():
                changes[first] = changes.get(first, 0) ^ 1 << number
                changes[last + 1] = changes.get(last + 1, 0) ^ 1 << number
        rules = self._any(criterion)
        base = 256 * self._tables["NT_TABLE_" + name]
        touched = {value >> 8 for value in changes}
        page = b""
        for high in range(_PAGES.get(name, 256)):
            if high in touched:
                values = []
                for low in range(256):
                    rules ^= changes.get(high << 8 | low, 0)
                    values.append(rules)
                page = _PAGE.pack(*values)
            elif not page or high - 1 in touched:
                page = _PAGE.pack(*[rules] * 256)
            self._pages.setdefault(page, len(self._pages))
            self._steps[base + high] = page

    def _add_addresses(self, side: str) -> None:
        for family, extra in ((4, 0), (6, self._fields["NT_PREFIX_IPV6"])):
            found: Dict[Tuple[int, bytes], int] = {}
            for number, rule in enumerate(self._rules):
                for network in getattr(rule, side + "_ip"):
                    if network.family == family:
                        key = (network.prefix_bits, network.address)
                        found[key] = found.get(key, 0) | 1 << number
            field = self._fields["NT_PREFIX_{}_IP".format(side.upper())] + extra
            self._add_prefixes(found, field, self._any(side + "_ip"))
        macs: Dict[Tuple[int, bytes], int] = {}
        for number, rule in enumerate(self._rules):
            for mac in getattr(rule, side + "_mac"):
                macs[48, mac] = macs.get((48, mac), 0) | 1 << number
        field = self._fields["NT_PREFIX_{}_MAC".format(side.upper())]
        self._add_prefixes(macs, field, self._any(side + "_mac"))

    def _add_prefixes(self, found: Dict[Tuple[int, bytes], int], field: int, rules: int) -> None:
        """Each prefix with the rules of all that cover it, for the longest one is what is found."""
        lengths = sorted({bits for bits, _ in found})
        for bits, address in found:
            whole = rules
            for length in lengths:
                if length <= bits:
                    whole |= found.get((length, _cut(address, length)), 0)
            self.prefixes[bits, field, address.ljust(16, b"\0")] = whole


def _cut(address: bytes, bits: int) -> bytes:
    """The address with only its first bits."""
    size = 8 * len(address)
    number = int.from_bytes(address, "big") >> (size - bits) << (size - bits)
    return number.to_bytes(len(address), "big")


def _merged(ranges: Iterable[Range]) -> List[Range]:
    """The same values in ranges that do not touch."""
    found: List[Range] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def _each(values: Iterable[int]) -> Iterable[Range]:
    return [(value, value) for value in values]


def _flags(wanted: Iterable[Range]) -> Iterable[Range]:
    return _each(
        flags for flags in range(256) if any(flags & mask == value for mask, value in wanted)
    )


#: Table, criterion, and its values as ranges of the numbers the table is looked up by.
_RANGES: Tuple[Tuple[str, str, Callable[[Any], Iterable[Range]]], ...] = (
    ("VLAN", "vlan", lambda ranges: ranges),
    ("ETH_PROTO", "eth_type", _each),
    ("PROTOCOL", "protocol", _each),
    ("LENGTH", "min_len", lambda least: [(least, _VALUES - 1)]),
    ("SRC_PORT", "src_port", lambda ranges: ranges),
    ("DST_PORT", "dst_port", lambda ranges: ranges),
    ("ICMP_TYPE", "icmp_type", lambda types: _each((f == 6) << 8 | t for f, t in types)),
    ("TCP_FLAGS", "tcp_flags", _flags),
)
