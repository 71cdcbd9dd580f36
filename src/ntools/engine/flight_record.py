# SPDX-License-Identifier: GPL-2.0-only
"""What one flight says: the record the kernel keeps of a packet, in the words of our records."""

import struct
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ntools._loader import BpfObject
from ntools.engine import budget
from ntools.engine.lookups import Lookups
from ntools.engine.words import by_number
from ntools.model import flow, reasons

__all__ = ["FlightReader"]

_VLAN_NONE = 0xFFFF
_Record = Tuple[Any, ...]


class FlightReader:
    """Reads unpacked ``struct nt_flight``.

    :param names, kinds: of the devices known, by index.
    :ivar at: where in a record a field is, by its name.
    :ivar stages: names of the stages, by number.
    """

    def __init__(
        self, obj: BpfObject, lookups: Lookups, names: Mapping[int, str], kinds: Mapping[int, str]
    ) -> None:
        layout = obj.types.struct(obj.manifest["flight"][1])
        self.codec = layout.codec
        self.at = {name: index for index, name in enumerate(layout.names)}
        self.stages = by_number(obj, "nt_stage", "NT_STAGE_")
        self._types = obj.types
        self._lookups, self._names, self._kinds = lookups, names, kinds
        self._reasons: Optional[reasons.ReasonNames] = None

    def name(self, ifindex: int) -> str:
        """Name of a device."""
        return self._names.get(ifindex) or "if{}".format(ifindex)

    def direction(self, record: _Record) -> str:
        """ "rx" from the VM, "tx" to it."""
        return "tx" if record[self.at["direction"]] else "rx"

    def last_stage(self, record: _Record) -> str:
        """The stage a packet was seen at last."""
        return self.stages[record[self.at["last_stage"]]]

    def flow(self, record: _Record) -> flow.Flow:
        """Addresses and ports."""
        start = self.at["tuple__src"]
        return flow.Flow.from_kernel(record[start : start + 7])

    def vlan(self, record: _Record) -> Optional[int]:
        """Id of the outer tag."""
        tci = record[self.at["vlan_id"]]
        return None if tci == _VLAN_NONE else tci & 0xFFF

    def identity(self, record: _Record) -> int:
        """The number the kernel samples a packet by."""
        at = self.at
        src, dst, *rest = record[at["tuple__src"] : at["tuple__src"] + 7]
        return budget.identity(
            src + dst + struct.pack("<HHHBB", *rest), record[at["print__digest"]]
        )

    def evidence(self, record: _Record) -> Dict[str, Any]:
        """The free event of a flight as fields of a record; {} if there was none."""
        at = self.at
        return self.freed(*(record[at["free_" + name]] for name in ("ns", "location", "reason")))

    def freed(self, ts_ns: int, location: int, reason: int) -> Dict[str, Any]:
        """A free event as fields of a record; {} for time 0."""
        if not ts_ns:
            return {}
        if self._reasons is None:
            self._reasons = reasons.ReasonNames(self._lookups.enum)
            self._lookups.forget()
        fields: Dict[str, Any] = {"kind": "drop", "ts_ns": ts_ns}
        symbol = self._lookups.symbol(location)
        if symbol:
            fields["caller"] = symbol.name
            fields["caller_offset"] = symbol.offset
        if self._reasons:
            fields["reason_code"] = reason
            fields["reason"] = self._reasons.name(reason)
        if symbol and fields.get("reason") in (None, "not_specified"):
            derived = reasons.derive(symbol.name)
            if derived:
                fields["reason"] = derived.reason
                fields["reason_derived"] = True
        return fields

    def packet(self, record: _Record, end: str) -> Dict[str, Any]:
        """The fields of a packet record that the flight alone can tell."""
        at, flow_of = self.at, self.flow(record)
        fields: Dict[str, Any] = dict(flow_of.fields())
        fields.update(
            direction=self.direction(record),
            interface=self.name(record[at["vm_ifindex"]]),
            total_ns=max(0, record[at["last_ns"]] - record[at["start_ns"]]),
            end=end,
            last_stage=self.last_stage(record),
            len_bytes=record[at["len_bytes"]],
            segs=record[at["segs"]] or 1,
            vlan_id=self.vlan(record),
            icmp_seq=record[at["seq"]] if flow_of.has_echo else None,
            tcp_seq=record[at["seq"]] if flow_of.protocol == 6 else None,
            ip_id=record[at["ip_id"]] if flow_of.family else None,
            stages=self._hops(record),
        )
        if end == "completed":
            peer = record[at["entry_ifindex" if record[at["direction"]] else "last_ifindex"]]
            fields["peer_interface"] = self.name(peer)
            fields["peer_kind"] = self._kinds.get(peer, "other")
        return fields

    def _ends(self, record: _Record) -> List[Dict[str, Any]]:
        """The first and the last stage, where none between them are kept."""
        at, found = self.at, []  # type: Dict[str, int], List[Dict[str, Any]]
        for stage, ifindex, time in (
            ("entry_stage", "entry_ifindex", "start_ns"),
            ("last_stage", "last_ifindex", "last_ns"),
        ):
            found.append(
                {
                    "stage": self.stages[record[at[stage]]],
                    "interface": self.name(record[at[ifindex]]),
                    "ifindex": record[at[ifindex]],
                    "ts_ns": record[at[time]],
                    "delta_ns": record[at[time]] - found[0]["ts_ns"] if found else None,
                    "hits": 1,
                }
            )
        return found if record[at["hop_count"]] > 1 else found[:1]

    def _hops(self, record: _Record) -> List[Dict[str, Any]]:
        if "hops" not in self.at:
            return self._ends(record)
        blob, layout = record[self.at["hops"]], self._types.struct("nt_hop")
        count = min(record[self.at["hop_count"]], len(blob) // layout.size)
        found: List[Dict[str, Any]] = []
        before = None
        for ts_ns, ifindex, cpu, stage, _ in layout.codec.iter_unpack(blob[: count * layout.size]):
            found.append(
                {
                    "stage": self.stages[stage],
                    "interface": self.name(ifindex) if ifindex else None,
                    "ifindex": ifindex or None,
                    "ts_ns": ts_ns,
                    "delta_ns": None if before is None else ts_ns - before,
                    "cpu": cpu,
                    "hits": 1,
                }
            )
            before = ts_ns
        return found
