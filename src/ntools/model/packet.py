# SPDX-License-Identifier: GPL-2.0-only
"""The fields of a record from ``struct nt_pkt``, the parsed packet inside an event.

The struct is found by the names of its fields, which the loader reads from the object: this module
knows what they mean, not where they are.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, Sequence

from .flow import Flow, mac_text, tcp_flag_names

__all__ = ["PacketDecoder"]

_TUPLE = ("src", "dst", "src_port", "dst_port", "eth_proto", "family", "protocol")
_TCP = 6
_VLAN_NONE = 0xFFFF
_ARP_OPERATIONS = {1: "request", 2: "reply", 3: "reverse_request", 4: "reverse_reply"}


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
            fields["vlan_id"] = event[places["vlan_id"]]
            fields["vlan_pcp"] = event[places["vlan_pcp"]]
        if event[places["inner_vlan_id"]] != _VLAN_NONE:
            fields["inner_vlan_id"] = event[places["inner_vlan_id"]]
        return fields
