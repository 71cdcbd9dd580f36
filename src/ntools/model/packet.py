# SPDX-License-Identifier: GPL-2.0-only
"""The fields of a record from ``struct nt_pkt``, the parsed packet inside an event.

The struct is found by the names of its fields, which the loader reads from the object: this module
knows what they mean, not where they are.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, NamedTuple, Optional, Sequence

from .flow import ARP_TYPES, Flow, mac_text, tcp_flag_names

__all__ = ["Packet", "PacketDecoder"]

_TUPLE = ("src", "dst", "src_port", "dst_port", "eth_proto", "family", "protocol")
_TCP = 6
_VLAN_NONE = 0xFFFF
_VLAN_MASK, _PCP_MASK = 0xFFF, 7
_ARP_OPERATIONS = {1: "request", 2: "reply", 3: "reverse_request", 4: "reverse_reply"}


class Packet(NamedTuple):
    """What a filter asks of a packet; None where the packet has no such field or it is not known.

    :ivar family: IP version, 0: not IP.
    :ivar eth_type: behind all VLAN tags.
    :ivar protocol: behind all IPv6 extension headers; only with ``family``.
    :ivar src, dst: addresses of IP, or protocol addresses of ARP; 4 or 16 bytes.
    :ivar vlan_id: of the outer tag.
    :ivar total_len: bytes from the IP header on, or behind the frame header.
    """

    family: int = 0
    eth_type: int = 0
    protocol: int = 0
    src: Optional[bytes] = None
    dst: Optional[bytes] = None
    src_port: Optional[int] = None
    dst_port: Optional[int] = None
    src_mac: Optional[bytes] = None
    dst_mac: Optional[bytes] = None
    vlan_id: Optional[int] = None
    icmp_type: Optional[int] = None
    tcp_flags: Optional[int] = None
    total_len: int = 0

    @classmethod
    def from_flow(cls, flow: Flow, vlan_id: Optional[int] = None) -> Packet:
        """What a flow tells. Addresses, flags and length below and above it are not known.

        Ports that are both 0, and an echo reply with identifier 0, pass for not read.
        """
        known = bool(flow.family) or flow.eth_type in ARP_TYPES
        return cls(
            family=flow.family,
            eth_type=flow.eth_type,
            protocol=flow.protocol,
            src=flow.src if known else None,
            dst=flow.dst if known else None,
            src_port=flow.src_port if flow.has_ports else None,
            dst_port=flow.dst_port if flow.has_ports else None,
            vlan_id=vlan_id,
            icmp_type=flow.src_port >> 8 if flow.has_icmp else None,
        )

    def reversed(self) -> Packet:
        """The packet with source and destination exchanged."""
        return self._replace(
            src=self.dst, dst=self.src, src_port=self.dst_port, dst_port=self.src_port,
            src_mac=self.dst_mac, dst_mac=self.src_mac,
        )  # fmt: skip


class PacketDecoder:
    """Takes the packet out of the events of one channel.

    :param names: the event's field names; the packet's are those after ``prefix``.
    :param flags: enumerators of ``enum nt_pkt_flag``.
    :raises KeyError: the event has no such packet.
    """

    def __init__(
        self, names: Sequence[str], flags: Mapping[str, int], prefix: str = "pkt__"
    ) -> None:
        places = {name: at for at, name in enumerate(names)}
        self._places = {
            name[len(prefix) :]: at for name, at in places.items() if name.startswith(prefix)
        }
        self._tuple = [places[f"{prefix}tuple__{name}"] for name in _TUPLE]
        self._l2 = flags["NT_PKT_L2"]
        self._l3 = flags["NT_PKT_L3"]
        self._l4 = flags["NT_PKT_L4"]
        self._icmp = flags["NT_PKT_ICMP"]
        self._fragment = flags["NT_PKT_FRAG"]
        self._more = flags["NT_PKT_MF"]
        self._tunnel = flags["NT_PKT_TUNNEL"]
        self._at = self._places["flags"]

    def flow(self, event: Sequence[Any]) -> Flow:
        """The packet's flow."""
        return Flow.from_kernel([event[at] for at in self._tuple])

    def packet(self, event: Sequence[Any]) -> Packet:
        """The packet as a filter sees it."""
        places = self._places
        flags = event[self._at]
        flow = self.flow(event)
        link, ends, ports = flags & self._l2, flags & self._l3, flags & self._l4
        vlan = event[places["vlan_id"]]
        return Packet(
            flow.family,
            flow.eth_type,
            flow.protocol,
            flow.src if ends else None,
            flow.dst if ends else None,
            flow.src_port if ports else None,
            flow.dst_port if ports else None,
            event[places["smac"]] if link else None,
            event[places["dmac"]] if link else None,
            None if vlan == _VLAN_NONE else vlan,
            event[places["icmp_type"]] if flags & self._icmp else None,
            event[places["tcp_flags"]] if event[places["tcp_hdr_len"]] else None,
            event[places["total_len"]],
        )

    def fields(self, event: Sequence[Any]) -> Dict[str, Any]:
        """The packet's fields of a record, only those that are known."""
        places = self._places
        flags = event[self._at]
        flow = self.flow(event)
        if not flags & self._l3:
            return self._link(event, Flow(0, 0, b"", b"", eth_type=flow.eth_type).fields())
        fields = flow.fields()
        if flow.family:
            fields["ip_id"] = event[places["ip_id"]] or None
            fields["ttl"] = event[places["ttl"]]
            if flags & self._fragment:
                fields["frag_offset_bytes"] = event[places["frag_off"]]
                fields["more_fragments"] = bool(flags & self._more)
        else:
            operation = event[places["arp_op"]]
            fields["arp_op"] = _ARP_OPERATIONS.get(operation, f"unknown({operation})")
        if flow.protocol == _TCP and flags & self._l4:
            fields["tcp_seq"] = event[places["seq"]]
            fields["tcp_ack"] = event[places["ack"]]
            fields["tcp_flags"] = tcp_flag_names(event[places["tcp_flags"]])
        if flags & self._icmp:
            # The flow tells the type only where it can be told from "not read".
            fields["icmp_type"] = event[places["icmp_type"]]
            fields["icmp_code"] = event[places["icmp_code"]]
            if flow.is_echo(fields["icmp_type"]):
                fields["icmp_id"] = event[places["icmp_id"]]
                fields["icmp_seq"] = event[places["icmp_seq"]]
        if flags & self._tunnel:
            fields["tunnel_id"] = event[places["tunnel_id"]]
        return self._link(event, fields)

    def _link(self, event: Sequence[Any], fields: Dict[str, Any]) -> Dict[str, Any]:
        places = self._places
        if event[self._at] & self._l2:
            fields["eth_src"] = mac_text(event[places["smac"]])
            fields["eth_dst"] = mac_text(event[places["dmac"]])
        if event[places["vlan_id"]] != _VLAN_NONE:
            fields["vlan_id"] = event[places["vlan_id"]] & _VLAN_MASK
            fields["vlan_pcp"] = event[places["vlan_pcp"]] & _PCP_MASK
        if event[places["inner_vlan_id"]] != _VLAN_NONE:
            fields["inner_vlan_id"] = event[places["inner_vlan_id"]] & _VLAN_MASK
        return fields
