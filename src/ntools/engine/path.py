# SPDX-License-Identifier: GPL-2.0-only
"""What all path commands do alike: two sides, and packets that came in and do not leave."""

from collections import Counter
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Tuple

from ntools._loader import BpfObject
from ntools.engine import filter as packet_filter
from ntools.engine.flight_record import FlightReader
from ntools.engine.lookups import Lookups
from ntools.engine.run import Engine
from ntools.engine.under_way import UnderWay
from ntools.engine.words import device_bits, explain_names
from ntools.host.sides import Sides
from ntools.model.filter import PacketFilter

if TYPE_CHECKING:
    from ntools.output.jsonl import Writer

__all__ = ["PathEngine"]

_ANY_VLAN = 0xFFFF
Record = Tuple[Any, ...]


class PathEngine(Engine):
    """Packets between two sides of this host.

    :param sides: where packets of the forward direction come in and leave.
    :param timeout_s: longest wait for the next stage.
    :param explain: count what is not followed, by step of the filter.
    """

    counters = ("rejects",)

    def __init__(
        self,
        obj: BpfObject,
        sides: Sides,
        flt: PacketFilter,
        timeout_s: float,
        explain: bool,
        lookups: Optional[Lookups] = None,
    ) -> None:
        super().__init__(obj, lookups)
        self._sides, self._filter, self._explain = sides, flt, explain
        self._timeout_ns = int(timeout_s * 1e9)
        self.sweep_s = timeout_s / 4
        names = {device.ifindex: device.name for device in (*sides.a, *sides.b)}
        self._read = FlightReader(obj, self.lookups, names, {})
        self._at = self._read.at
        self._under_way = UnderWay(obj, self._read, ("flights",))
        self._graves: List[Record] = []
        self._buried: "Counter[int]" = Counter()
        self._roles = self._find_roles()
        packet_filter.prepare(obj, flt)
        obj.resize("devices", max(1, len(self._roles)))

    # -- for the engines -----------------------------------------------------------------------

    def configure(self, flags: Tuple[str, ...] = (), **fields: Any) -> None:
        """Set what does not change during the run; every engine does.

        :param flags: of ``enum nt_flight_flag``, without their prefix.
        """
        known = self.obj.types.enum("nt_flight_flag")
        wanted = (*flags, *(("EXPLAIN",) if self._explain else ()))
        bits = sum(known["NT_FLIGHT_" + name] for name in wanted)
        self.obj.configure(enabled=0, directions=3, flags=bits, **fields)

    def stuck(self, record: Record, writer: "Writer") -> None:
        """A packet came in and was not seen to leave in time."""
        raise NotImplementedError

    def lost(self) -> int:
        """Packets that were lost on the way, as far as it is known."""
        raise NotImplementedError

    def rejected(self, name: str) -> int:
        """Packets that were not followed for one reason of ``enum nt_explain``."""
        number = self.obj.types.enum("nt_explain")["NT_EXPLAIN_" + name.upper()]
        return int(self.obj.map("rejects").sums()[number])

    def given_up(self) -> Iterator[Record]:
        """Flights whose buffer went to another packet."""
        for record in self._under_way.graves():
            self._buried[record[self._at["direction"]]] += 1
            yield record

    # -- what the run calls --------------------------------------------------------------------

    def header(self) -> Dict[str, Any]:
        """Devices of both sides."""
        stack = set(self._sides.stack)
        return {
            "devices": [
                {
                    "interface": device.name,
                    "ifindex": device.ifindex,
                    "netns_inum": device.netns_inum,
                    "role": role,
                    "kind": device.kind,
                    "end": "stack" if device in stack else "wire",
                }
                for role, devices in (("rx", self._sides.a), ("tx", self._sides.b))
                for device in devices
            ]
        }

    def begin(self) -> None:
        """Fill in the devices, then open the entry."""
        vlans = dict(self._sides.vlan_ids)
        for key, bits in self._roles.items():
            self.obj.map("devices").update(key, (bits, vlans.get(key[1], _ANY_VLAN), 0))
        packet_filter.fill(self.obj, self._filter)
        chosen = device_bits(self.obj, (ifindex for _, ifindex in self._roles))
        self.obj.configure(enabled=1, entry_open=1, device_bits=chosen)

    def sweep(self, writer: "Writer") -> None:
        """Pronounce on what did not go on in time."""
        limit = self.now_ns - self._timeout_ns
        last = self._at["last_ns"]
        for record in self._under_way.overdue(limit):
            self.stuck(record, writer)
        # Its buffer went to another packet, but it may still leave in a new one.
        waiting: List[Record] = []
        for record in (*self._graves, *self.given_up()):
            if record[last] < limit:
                self.stuck(record, writer)
            else:
                waiting.append(record)
        self._graves = waiting

    def stop(self) -> None:
        """Nothing is waited for: what has not ended is said to be so."""
        self.obj.configure(entry_open=0, enabled=0)

    def totals(self) -> Dict[str, Any]:
        """What was not followed, by step."""
        if not self._explain:
            return {}
        names = explain_names(self.obj)
        sums = self.obj.map("rejects").sums()
        return {"explain": {names[i]: n for i, n in enumerate(sums) if n and i in names}}

    # -- inside --------------------------------------------------------------------------------

    def _find_roles(self) -> Dict[Tuple[int, int], int]:
        """Bits of ``enum nt_role`` by namespace and index of each device."""
        roles = self.obj.types.enum("nt_role")
        found: Dict[Tuple[int, int], int] = {}
        for role, devices in (
            ("SIDE_A", self._sides.a),
            ("SIDE_B", self._sides.b),
            ("STACK", self._sides.stack),
        ):
            for device in devices:
                key = device.netns_inum, device.ifindex
                found[key] = found.get(key, 0) | roles["NT_ROLE_" + role]
        return found
