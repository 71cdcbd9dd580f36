# SPDX-License-Identifier: GPL-2.0-only
"""Flows and their parts as text: addresses, networks, MACs, protocols, frame types.

Values the user gives wrongly raise ValueError with one line that names them; the command line
turns that into its own error.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, NamedTuple, Optional, Sequence, Tuple

__all__ = [
    "ARP_TYPES",
    "ICMP_PROTOCOLS",
    "PORT_PROTOCOLS",
    "Flow",
    "Network",
    "address_text",
    "eth_type_name",
    "flow_text",
    "mac_text",
    "parse_address",
    "parse_eth_type",
    "parse_mac",
    "parse_network",
    "parse_port",
    "parse_protocol",
    "protocol_name",
    "tcp_flag_names",
]

# IANA numbers; the names are what operators type.
_PROTOCOLS: Dict[int, str] = {
    1: "icmp",
    2: "igmp",
    4: "ipip",
    6: "tcp",
    17: "udp",
    33: "dccp",
    41: "ipv6",
    47: "gre",
    50: "esp",
    51: "ah",
    58: "icmpv6",
    89: "ospf",
    103: "pim",
    112: "vrrp",
    132: "sctp",
    136: "udplite",
}
_PROTOCOL_NUMBERS = {name: number for number, name in _PROTOCOLS.items()}

ICMP_PROTOCOLS: Tuple[int, int] = (1, 58)
#: Protocols with ports the parser reads.
PORT_PROTOCOLS = frozenset((6, 17, 33, 132, 136))
# Protocol and type of echo requests and replies.
_ECHOES = frozenset(((1, 8), (1, 0), (58, 128), (58, 129)))
#: EtherTypes with protocol addresses of IPv4.
ARP_TYPES = frozenset((0x0806, 0x8035))

_ETH_TYPES: Dict[int, str] = {
    0x0800: "ipv4",
    0x0806: "arp",
    0x8035: "rarp",
    0x8100: "vlan",
    0x86DD: "ipv6",
    0x8808: "flow_control",
    0x8809: "lacp",
    0x88A8: "qinq",
    0x88CC: "lldp",
}
_ETH_TYPE_NUMBERS = {name: number for number, name in _ETH_TYPES.items()}

_TCP_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")


class Network(NamedTuple):
    """An address prefix.

    :ivar family: 4 or 6.
    :ivar address: 4 or 16 bytes; bits outside the mask are 0.
    :ivar mask: as long as ``address``.
    """

    family: int
    address: bytes
    mask: bytes

    @property
    def prefix_bits(self) -> int:
        """Length of the prefix."""
        return bin(int.from_bytes(self.mask, "big")).count("1")

    def contains(self, address: bytes) -> bool:
        """Whether ``address`` (4 or 16 bytes) lies in the network."""
        return len(address) == len(self.address) and all(
            byte & mask == own for byte, mask, own in zip(address, self.mask, self.address)
        )

    def __str__(self) -> str:
        text = address_text(self.address)
        bits = self.prefix_bits
        return text if bits == 8 * len(self.address) else f"{text}/{bits}"


class Flow(NamedTuple):
    """Who talks to whom.

    :ivar family: 4, 6, or 0 if the packet is not IP.
    :ivar protocol: IP protocol number.
    :ivar src, dst: 4 or 16 bytes. Of ARP, the protocol addresses of sender and target.
    :ivar src_port, dst_port: 0 if not known. Of ICMP, type << 8 | code and the identifier of an
        echo: messages of one ping are one flow.
    :ivar eth_type: EtherType, 0 if not known.
    """

    family: int
    protocol: int
    src: bytes
    dst: bytes
    src_port: int = 0
    dst_port: int = 0
    eth_type: int = 0

    @classmethod
    def from_kernel(cls, values: Sequence[Any]) -> Flow:
        """A flow from the fields of ``struct nt_tuple`` in their order."""
        src, dst, src_port, dst_port, eth_type, family, protocol = values
        if family not in (4, 6):
            family = 0
        size = 16 if family == 6 else 4
        return cls(family, protocol, src[:size], dst[:size], src_port, dst_port, eth_type)

    @property
    def has_ports(self) -> bool:
        """Whether the ports are ports and were read."""
        return self.protocol in PORT_PROTOCOLS and bool(self.src_port or self.dst_port)

    @property
    def has_icmp(self) -> bool:
        """Whether this is ICMP whose type was read."""
        return self.protocol in ICMP_PROTOCOLS and bool(self.src_port or self.dst_port)

    @property
    def has_echo(self) -> bool:
        """Whether this is an ICMP echo, request or reply, that was read."""
        return self.has_icmp and self.is_echo(self.src_port >> 8)

    def is_echo(self, icmp_type: int) -> bool:
        """Whether an ICMP message of this type is an echo, request or reply."""
        return (self.protocol, icmp_type) in _ECHOES

    def reversed(self) -> Flow:
        """The flow of the answers; of ICMP, only the addresses are exchanged."""
        ports = (self.src_port, self.dst_port)
        if self.protocol not in ICMP_PROTOCOLS:
            ports = ports[::-1]
        return Flow(self.family, self.protocol, self.dst, self.src, *ports, self.eth_type)

    def fields(self) -> Dict[str, Any]:
        """The flow's fields of a record, only those that are known."""
        fields: Dict[str, Any] = {}
        if self.family:
            fields["family"] = f"ipv{self.family}"
            fields["protocol"] = protocol_name(self.protocol)
        elif self.eth_type:
            fields["eth_type"] = eth_type_name(self.eth_type)
        if self.family or self.eth_type in ARP_TYPES:
            fields["src_ip"] = address_text(self.src)
            fields["dst_ip"] = address_text(self.dst)
        if self.has_ports:
            fields["src_port"] = self.src_port
            fields["dst_port"] = self.dst_port
        if self.has_icmp:
            fields["icmp_type"] = self.src_port >> 8
            fields["icmp_code"] = self.src_port & 0xFF
            if self.has_echo:
                fields["icmp_id"] = self.dst_port
        return fields

    def __str__(self) -> str:
        return flow_text(self.fields())


def flow_text(fields: Mapping[str, Any]) -> str:
    """A flow as people write it, from the fields of a record: ``tcp 10.0.0.1:80 > 10.0.0.2:99``."""
    kind = fields.get("protocol") or fields.get("eth_type") or "unknown"
    if fields.get("src_ip") is None:
        return str(kind)
    src = _end_text(fields["src_ip"], fields.get("src_port"))
    dst = _end_text(fields["dst_ip"], fields.get("dst_port"))
    text = f"{kind} {src} > {dst}"
    if fields.get("icmp_id") is not None:
        text += f" id {fields['icmp_id']}"
    elif fields.get("icmp_type") is not None:
        text += f" type {fields['icmp_type']} code {fields['icmp_code']}"
    return text


def _end_text(address: str, port: Optional[int]) -> str:
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def address_text(address: bytes) -> str:
    """Text of an address of 4 or 16 bytes.

    :raises ValueError: another length.
    """
    if len(address) == 4:
        return "{}.{}.{}.{}".format(*address)
    if len(address) == 16:
        # Costs 2 ms: only for those who meet IPv6.
        from socket import AF_INET6, inet_ntop

        return inet_ntop(AF_INET6, address)
    raise ValueError(f"address of {len(address)} bytes")


def parse_address(text: str) -> bytes:
    """The 4 or 16 bytes of an IPv4 or IPv6 address.

    :raises ValueError: neither.
    """
    if ":" in text:
        from socket import AF_INET6, inet_pton

        try:
            return inet_pton(AF_INET6, text)
        except (OSError, ValueError):
            raise _not("an IPv6 address", text) from None
    parts = text.split(".")
    # Octets with leading zeros are octal to some programs: refused instead of guessed.
    if len(parts) != 4 or not all(_is_decimal(part, 255) for part in parts):
        raise _not("an IPv4 or IPv6 address", text)
    return bytes(int(part) for part in parts)


def parse_network(text: str) -> Network:
    """An address with or without ``/prefix``.

    :raises ValueError: not an address, or the prefix is longer than it.
    """
    head, slash, tail = text.partition("/")
    address = parse_address(head)
    size = len(address)
    if slash and not _is_decimal(tail, 8 * size):
        raise ValueError(f"'{text}': the prefix length must be 0 to {8 * size}")
    bits = int(tail) if slash else 8 * size
    mask = (((1 << bits) - 1) << (8 * size - bits)).to_bytes(size, "big")
    return Network(
        4 if size == 4 else 6, bytes(byte & keep for byte, keep in zip(address, mask)), mask
    )


def parse_port(text: str) -> int:
    """A port number, 1 to 65535.

    :raises ValueError: anything else.
    """
    if not _is_decimal(text, 65535) or text == "0":
        raise ValueError(f"'{text}' is not a port from 1 to 65535")
    return int(text)


def mac_text(mac: bytes) -> str:
    """A hardware address as ``52:54:00:12:34:56``."""
    return ":".join(f"{byte:02x}" for byte in mac)


def parse_mac(text: str) -> bytes:
    """The 6 bytes of a hardware address, separated by ``:`` or ``-``.

    :raises ValueError: anything else.
    """
    parts = text.replace("-", ":").split(":")
    if len(parts) != 6 or not all(0 < len(part) < 3 and _is_hex(part) for part in parts):
        raise _not("a MAC address", text)
    return bytes(int(part, 16) for part in parts)


def protocol_name(number: int) -> str:
    """Name of an IP protocol; ``unknown(87)`` if it has none here."""
    return _PROTOCOLS.get(number) or f"unknown({number})"


def parse_protocol(text: str) -> Tuple[int, ...]:
    """Protocol numbers meant by a name or number.

    ``icmp`` means both ICMP and ICMPv6; ``all`` is the empty tuple.

    :raises ValueError: neither a known name nor 0 to 255.
    """
    name = text.lower()
    if name == "all":
        return ()
    if name == "icmp":
        return ICMP_PROTOCOLS
    if name in _PROTOCOL_NUMBERS:
        return (_PROTOCOL_NUMBERS[name],)
    if _is_decimal(name, 255):
        return (int(name),)
    raise ValueError(f"'{text}' is not a protocol (tcp, udp, icmp, ..., all, or 0 to 255)")


def eth_type_name(number: int) -> str:
    """Name of an EtherType, or its number as ``0x88b5``."""
    return _ETH_TYPES.get(number) or f"0x{number:04x}"


def parse_eth_type(text: str) -> int:
    """EtherType of a name or of a number such as ``0x88b5``.

    :raises ValueError: anything else.
    """
    name = text.lower()
    if name in _ETH_TYPE_NUMBERS:
        return _ETH_TYPE_NUMBERS[name]
    digits = name[2:] if name.startswith("0x") else ""
    number = int(digits, 16) if 0 < len(digits) < 9 and _is_hex(digits) else -1
    if not 0 <= number <= 0xFFFF:
        names = ", ".join(sorted(_ETH_TYPE_NUMBERS))
        raise ValueError(f"'{text}' is not a frame type ({names}, or such as 0x88b5)")
    return number


def tcp_flag_names(flags: int) -> Tuple[str, ...]:
    """Names of the flags set in the low 8 bits, ``("syn", "ack")``."""
    return tuple(name for bit, name in enumerate(_TCP_FLAGS) if flags >> bit & 1)


def _is_decimal(text: str, highest: int) -> bool:
    """Whether ``text`` is a plain decimal number up to ``highest``, without leading zeros."""
    return (
        text.isdigit()
        and text.isascii()
        and (text == "0" or text[0] != "0")
        and len(text) < 10
        and int(text) <= highest
    )


def _is_hex(text: str) -> bool:
    """Whether these are plain hexadecimal digits, which is less than int() takes."""
    return all(char in "0123456789abcdefABCDEF" for char in text)


def _not(what: str, text: str) -> ValueError:
    return ValueError(f"'{text}' is not {what}")
