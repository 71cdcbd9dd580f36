# SPDX-License-Identifier: GPL-2.0-only
"""UDP on a path through this host; datagrams in fragments are put together by their bytes.

Not by the number of fragments: connection tracking reassembles a datagram and cuts it again.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple

from ntools._loader import BpfObject
from ntools.engine.lookups import Lookups
from ntools.engine.path_flow import DIRECTIONS, FlowEngine, FlowOptions
from ntools.host.sides import Sides
from ntools.model.flow import Flow
from ntools.model.packet import Packet

if TYPE_CHECKING:
    from ntools.output.jsonl import Writer

__all__ = ["STATUSES", "DatagramEngine"]

#: Status of a datagram -> its counter in path_stats.
STATUSES: Dict[str, str] = {
    "complete": "datagrams_complete",
    "internal_drop": "datagrams_dropped",
    "internal_drop_partial": "datagrams_partial",
    "incomplete_rx": "datagrams_incomplete",
    "open": "datagrams_open",
}
_LOST = ("internal_drop", "internal_drop_partial", "incomplete_rx")


class DatagramEngine(FlowEngine):
    """As :class:`FlowEngine`, and ``datagram`` records of those that came in fragments."""

    def __init__(
        self,
        obj: BpfObject,
        sides: Sides,
        options: FlowOptions,
        lookups: Optional[Lookups] = None,
    ) -> None:
        super().__init__(obj, sides, options, lookups)
        group = obj.types.struct("nt_group")
        self._in_group = {name: place for place, name in enumerate(group.names)}
        self._flags = obj.types.enum("nt_group_flag")
        self._by_ports = bool({"src_port", "dst_port"} & set(options.filter.used))
        self._datagrams: "Counter[Tuple[str, str]]" = Counter()

    def sweep(self, writer: "Writer") -> None:
        """Pronounce on packets and datagrams that do not go on."""
        super().sweep(writer)
        self._judge(self.now_ns - self._timeout_ns, False, writer)

    def finish(self, writer: "Writer") -> None:
        """What is still inside has no end."""
        super().finish(writer)
        self._judge(self.now_ns + 1, True, writer)

    def lost(self) -> int:
        """See :meth:`PathEngine.lost`; also those that came in with fragments missing."""
        lost = {STATUSES[name] for name in _LOST}
        return super().lost() + sum(n for (_, end), n in self._datagrams.items() if end in lost)

    def state(self) -> Dict[str, Any]:
        """Counts so far."""
        counts = [[list(key), count] for key, count in self._datagrams.items()]
        return {**super().state(), "datagrams": counts}

    def restore(self, state: Dict[str, Any]) -> None:
        """See :meth:`Engine.restore`."""
        super().restore(state)
        for (direction, name), count in state["datagrams"]:
            self._datagrams[direction, name] = int(count)

    def _totals(self) -> Dict[str, Dict[str, int]]:
        totals = super()._totals()
        for direction, counts in totals.items():
            found = {name: self._datagrams[direction, name] for name in STATUSES.values()}
            counts["datagrams"] = sum(found.values())
            counts.update(found)
            for name in ("fragments_in", "fragments_out"):
                counts[name] = self._datagrams[direction, name]
        return totals

    def _judge(self, limit_ns: int, ended: bool, writer: "Writer") -> None:
        groups = self.obj.map("groups")
        at = self._in_group
        for key, value in list(groups.items()):
            if value[at["last_ns"]] >= limit_ns:
                continue
            last = groups.lookup(key)
            if last is None or last[at["last_ns"]] >= limit_ns or not groups.delete(key):
                continue
            flags = last[at["flags"]]
            refused = flags & self._flags["NT_GROUP_REFUSED"]
            unknown = self._by_ports and not flags & self._flags["NT_GROUP_PORTS"]
            if not refused and not unknown:
                young = last[at["last_ns"]] >= self.now_ns - self._timeout_ns
                self._pronounce(key, last, ended and young, writer)

    def _pronounce(
        self, key: Tuple[Any, ...], group: Tuple[Any, ...], young: bool, writer: "Writer"
    ) -> None:
        at = self._in_group
        total, came, left = (group[at[name]] for name in ("total", "bytes_in", "bytes_out"))
        if total and left >= total:
            status = "complete"
        elif young:
            status = "open"
        elif not total or came < total:
            status = "incomplete_rx"
        else:
            status = "internal_drop_partial" if left else "internal_drop"
        direction = DIRECTIONS[group[at["direction"]]]
        src, dst, ip_id, family, protocol = key[:5]
        size = 16 if family == 6 else 4
        eth_type = 0x86DD if family == 6 else 0x800
        flow = Flow(
            family, protocol, src[:size], dst[:size],
            group[at["src_port"]], group[at["dst_port"]], eth_type,
        )  # fmt: skip
        if self._narrow and not self._narrow.matches(Packet.from_flow(flow, None)):
            return
        self._datagrams[direction, STATUSES[status]] += 1
        for name, field in (("fragments_in", "frags_in"), ("fragments_out", "frags_out")):
            self._datagrams[direction, name] += group[at[field]]
        wanted = self._options.shown
        if wanted == "none" or (wanted == "lost" and status in ("complete", "open")):
            return
        if not self.gate.passes(ip_id << 48):
            return
        evidence = {}
        if status.startswith("internal"):
            evidence = self._read.freed(
                *(group[at["free_" + name]] for name in ("ns", "location", "reason"))
            )
        writer.record(
            "datagram",
            ts_ns=group[at["first_ns"]],
            direction=direction,
            status=status,
            ip_id=ip_id,
            bytes_in=came,
            bytes_out=left,
            datagram_bytes=total or None,
            fragments_in=group[at["frags_in"]],
            fragments_out=group[at["frags_out"]],
            total_ns=max(0, group[at["last_ns"]] - group[at["first_ns"]]),
            evidence=evidence or None,
            **flow.fields(),
        )
        self._shown += 1
