# SPDX-License-Identifier: GPL-2.0-only
"""TCP and UDP packets on a path through this host: what came in, what left, what was lost between.

The kernel follows each buffer from where it comes in to where it leaves, and adds up what came in
and what left per flow. A buffer may be cut into several on its way, or come back from Open
vSwitch's user space as another one: then it is not seen to leave, but what it carried is.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, NamedTuple, Optional, Tuple

from ntools._loader import BpfObject
from ntools.engine.lookups import Lookups
from ntools.engine.path import PathEngine
from ntools.engine.words import by_number
from ntools.errors import UsageProblem
from ntools.host.sides import Sides
from ntools.model.filter import PacketFilter
from ntools.model.hist import KernelHistogram, kernel_cells
from ntools.model.packet import Packet

if TYPE_CHECKING:
    from ntools.output.jsonl import Writer

__all__ = ["DIRECTIONS", "ENDS", "FlowEngine", "FlowOptions"]

_Record = Tuple[Any, ...]

DIRECTIONS = ("forward", "reply")
#: How a packet ended -> what that means. What came in is their sum.
ENDS: Dict[str, str] = {
    "completed": "left as it came in",
    "split": "left in other buffers: cut into segments, or by way of user space",
    "dropped": "did not leave, and its buffer was freed as a drop",
    "timed_out": "did not leave in time; nothing else was seen of it",
    "open": "still under way when the counting ended",
}
#: Fields of ``struct nt_way`` that are shown: packets, bytes and what TCP says.
_COUNTS = (
    "units_in", "segs_in", "bytes_in", "units_out", "segs_out", "bytes_out", "split_out",
    "syn", "fin", "rst", "retrans_after", "retrans_before", "dup_ack",
)  # fmt: skip
_TCP = 6
_MAX_GROUPS = 1000


class FlowOptions(NamedTuple):
    """What to follow and show.

    :ivar directions: of :data:`DIRECTIONS`.
    :ivar shown: "none", "lost" or "all" packets one by one; needs the detail object but for none.
    """

    filter: PacketFilter
    directions: Tuple[str, ...] = DIRECTIONS
    timeout_s: float = 1.0
    shown: str = "none"
    explain: bool = False


class _Group(NamedTuple):
    """Packets that were lost alike."""

    direction: str
    end: str
    last_stage: str
    interface: Optional[str]
    reason: Optional[str]
    derived: bool
    caller: Optional[str]


class FlowEngine(PathEngine):
    """One run: ``path_stats`` per direction and interval, and packets one by one if wanted."""

    def __init__(
        self,
        obj: BpfObject,
        sides: Sides,
        options: FlowOptions,
        lookups: Optional[Lookups] = None,
    ) -> None:
        super().__init__(obj, sides, options.filter, options.timeout_s, options.explain, lookups)
        self._options = options
        self.counts_events = self.makes_records = options.shown != "none"
        self._way = obj.types.struct("nt_way")
        self._numbers = {name: number for number, name in enumerate(self._way.names)}
        self._kernel_ends = {
            name: number for number, name in by_number(obj, "nt_end", "NT_END_").items()
        }
        self._swept: "Counter[Tuple[str, str]]" = Counter()
        self._groups: "Counter[_Group]" = Counter()
        self._fresh: "Counter[_Group]" = Counter()
        self._examples: Dict[_Group, Dict[str, Any]] = {}
        self._before: Dict[str, Dict[str, int]] = {}
        self._hists = [KernelHistogram() for _ in DIRECTIONS]
        self._epoch = 1
        self._shown = 0
        bits = obj.types.enum("nt_direction")
        wanted = sum(1 << bits["NT_DIRECTION_" + name.upper()] for name in options.directions)
        self.configure(epoch=self._epoch)
        obj.configure(directions=wanted)

    # -- what the run calls --------------------------------------------------------------------

    def channel(self) -> Any:
        """Packets that have left, if the object tells of them."""
        return self.obj.channel("events") if "events" in self.obj.manifest else None

    def take(self, records: Iterable[Any], writer: "Writer") -> int:
        """Show packets that have left."""
        before = self._shown
        for record in records:
            self._show(record, "completed", None, writer)
        return self._shown - before

    def report(self, writer: "Writer", last: bool) -> None:
        """Totals of both directions: of the interval, or of the whole run."""
        epoch, self._epoch = self._epoch, self._epoch + 1
        self.obj.configure(epoch=self._epoch)
        if self._narrow is not None:
            return
        agg = "total" if last else "delta"
        totals = self._totals()
        cells = dict(self.obj.map("times").items_bytes())
        for number, direction in enumerate(DIRECTIONS):
            if direction not in self._options.directions:
                continue
            self._report_times(cells, number, direction, epoch, last, writer)
            counts = totals[direction]
            before = {} if last else self._before.get(direction, {})
            writer.record(
                "path_stats",
                direction=direction,
                agg=agg,
                holds=counts["started"] == sum(counts[name] for name in ENDS) if last else None,
                by=self._lost(direction, last),
                **{name: count - before.get(name, 0) for name, count in counts.items()},
            )
        self._before = totals
        self._fresh = Counter()

    def finish(self, writer: "Writer") -> None:
        """What is still inside has no end."""
        self.sweep(writer)
        for record in (*self._under_way.all(), *self._graves):
            self._end(record, "split" if self._left(record) else "open", writer)
        self._graves = []

    def lost(self) -> int:
        """See :meth:`PathEngine.lost`."""
        return sum(counts["dropped"] + counts["timed_out"] for counts in self._before.values())

    def matched(self) -> int:
        """Packets that came in."""
        started = self.obj.map("ends").sums()
        return int(sum(started[:: len(self._kernel_ends)]))

    def resume(self, writer: "Writer") -> None:
        """What was under way when the programs fell asleep went on unseen."""
        for record in (*self._under_way.given_up(), *self.given_up()):
            self._end(record, "timed_out", writer)

    def narrow(self, flt: PacketFilter) -> None:
        """See :meth:`Engine.narrow`."""
        if self.channel() is None:
            raise UsageProblem(
                "a filter cannot be applied to this recording: it holds counts, not packets. "
                "Record with --verbose."
            )
        super().narrow(flt)

    def state(self) -> Dict[str, Any]:
        """Ends pronounced here, and their groups."""
        return {
            **super().state(),
            "swept": [[list(key), count] for key, count in self._swept.items()],
            "buried": list(self._buried.items()),
            "groups": [
                [list(group), count, self._examples[group]] for group, count in self._groups.items()
            ],
        }

    def restore(self, state: Dict[str, Any]) -> None:
        """See :meth:`Engine.restore`."""
        super().restore(state)
        self._buried = Counter({number: int(count) for number, count in state["buried"]})
        for (direction, end), count in state["swept"]:
            self._swept[direction, end] = int(count)
        for group, count, example in state["groups"]:
            self._groups[_Group(*group)] = int(count)
            self._examples[_Group(*group)] = dict(example)

    def stuck(self, record: _Record, writer: "Writer") -> None:
        """See :meth:`PathEngine.stuck`."""
        if record[self._at["free_ns"]] > record[self._at["last_ns"]]:
            end = "dropped"
        else:
            end = "split" if self._left(record) else "timed_out"
        self._end(record, end, writer)

    # -- inside --------------------------------------------------------------------------------

    def _left(self, record: _Record) -> bool:
        """Whether what a packet of TCP carried has left, in whatever buffers."""
        at, flow = self._at, self._read.flow(record)
        if flow.protocol != _TCP:
            return False
        reply = record[at["direction"]]
        first = at["tuple__src"]
        src, dst, src_port, dst_port, *rest = record[first : first + 7]
        key = (dst, src, dst_port, src_port, *rest) if reply else record[first : first + 7]
        found = self.obj.map("flows").lookup(key)
        if found is None:
            return False
        way = self._ways(found)[reply]
        if not way[self._numbers["known"]] & self._known_out:
            return False
        beyond = (record[at["end_seq"]] - way[self._numbers["top_out"]]) & 0xFFFFFFFF
        return not beyond or bool(beyond >> 31)

    @property
    def _known_out(self) -> int:
        return int(self.obj.types.enum("nt_way_known")["NT_WAY_OUT"])

    def _ways(self, flow: Any) -> List[Tuple[Any, ...]]:
        """Both directions of a flow: an array of structs comes as bytes."""
        return list(self._way.codec.iter_unpack(flow))

    def _end(self, record: _Record, end: str, writer: "Writer") -> None:
        direction = DIRECTIONS[record[self._at["direction"]]]
        self._swept[direction, end] += 1
        if end == "split":
            return
        evidence = self._read.evidence(record) if end == "dropped" else {}
        group = _Group(
            direction,
            end,
            self._read.last_stage(record),
            self._read.name(record[self._at["last_ifindex"]]),
            evidence.get("reason"),
            bool(evidence.get("reason_derived")),
            evidence.get("caller"),
        )
        if len(self._groups) >= _MAX_GROUPS and group not in self._groups:
            group = group._replace(interface=None, reason=None, derived=False, caller=None)
        self._groups[group] += 1
        self._fresh[group] += 1
        if group not in self._examples:
            self._examples[group] = self._read.flow(record).fields()
        self._show(record, end, evidence or None, writer)

    def _show(
        self, record: _Record, end: str, evidence: Optional[Dict[str, Any]], writer: "Writer"
    ) -> None:
        wanted = self._options.shown
        if wanted == "none" or (wanted == "lost" and end == "completed"):
            return
        read = self._read
        direction = DIRECTIONS[record[self._at["direction"]]]
        if self._narrow and not self._narrow.matches(
            Packet.from_flow(read.flow(record), read.vlan(record))
        ):
            return
        if end != "completed" and not self.gate.passes(
            read.identity(record) if self.gate.shift else 0
        ):
            return
        fields = read.packet(record, end)
        at = self._at
        fields.update(direction=direction, evidence=evidence)
        fields["interface"] = read.name(record[at["entry_ifindex"]])
        if end == "completed":
            fields["peer_interface"] = read.name(record[at["last_ifindex"]])
            del fields["peer_kind"]
        writer.record("packet", ts_ns=record[self._at["start_ns"]], **fields)
        self._shown += 1

    def _lost(self, direction: str, last: bool) -> List[Dict[str, Any]]:
        """What did not leave, by how and where."""
        groups = self._groups if last else self._fresh
        return [
            {
                "end": group.end,
                "last_stage": group.last_stage,
                "interface": group.interface,
                "reason": group.reason,
                "reason_derived": group.derived or None,
                "caller": group.caller,
                "count": count,
                "example": self._examples[group],
            }
            for group, count in groups.most_common()
            if group.direction == direction
        ]

    def _report_times(
        self, cells: Any, number: int, direction: str, epoch: int, last: bool, writer: "Writer"
    ) -> None:
        times = self.obj.map("times")
        value = cells.get(number.to_bytes(4, "little"))
        if value is None:
            return
        hist = self._hists[number]
        delta = hist.update(kernel_cells(value, times.percpu_stride), epoch)
        shown = hist.total if last else delta
        if shown.count:
            writer.record(
                "hist", name="path", labels={"direction": direction},
                agg="total" if last else "delta", **shown.fields()
            )  # fmt: skip

    def _totals(self) -> Dict[str, Dict[str, int]]:
        """Per direction: what came in and left over all flows, and how packets ended."""
        sums = {direction: [0] * len(_COUNTS) for direction in DIRECTIONS}
        places = [self._numbers[name] for name in _COUNTS]
        flows = 0
        for _, value in self.obj.map("flows").items_bytes():
            flows += 1
            for direction, way in zip(DIRECTIONS, self._ways(value)):
                found = sums[direction]
                for index, place in enumerate(places):
                    found[index] += way[place]
        ends = self.obj.map("ends").sums()
        width = len(self._kernel_ends)
        totals = {}
        for number, direction in enumerate(DIRECTIONS):
            base = number * width
            counts = dict(zip(_COUNTS, sums[direction]))
            counts["started"] = ends[base + self._kernel_ends["started"]]
            for name in ENDS:
                counts[name] = self._swept[direction, name]
            counts["completed"] = ends[base + self._kernel_ends["completed"]]
            # What the kernel gave up and had no room to describe.
            evicted = sum(ends[base + self._kernel_ends[name]] for name in ("dropped", "stale"))
            counts["timed_out"] += max(0, evicted - self._buried[number])
            totals[direction] = counts
        return totals
