# SPDX-License-Identifier: GPL-2.0-only
"""Runs of the qdisc engine: how long packets wait in the transmit queues of devices.

The kernel adds up per device, transmit queue and root qdisc, and tells of single packets when they
end. What has no end is found here: packets that still wait, and those that nobody saw go on. All
that was queued is the sum of the ways to leave, per queue, or the report says that it is not.
"""

import struct
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, NamedTuple, Optional, Tuple

from ntools._loader import BpfObject
from ntools.engine import budget
from ntools.engine import filter as packet_filter
from ntools.engine.lookups import Lookups
from ntools.engine.run import Engine
from ntools.engine.under_way import UnderWay
from ntools.engine.words import by_number, explain_names
from ntools.errors import UsageProblem
from ntools.host.devices import Device
from ntools.model import flow, reasons
from ntools.model.filter import PacketFilter
from ntools.model.hist import Histogram, KernelHistogram, kernel_cells
from ntools.model.packet import Packet

if TYPE_CHECKING:
    from ntools.output.jsonl import Writer

__all__ = ["ENDS", "TAKEN_ENDS", "QdiscEngine", "QdiscOptions"]

_Record = Tuple[Any, ...]
_Key = Tuple[int, ...]

#: How a packet leaves the queue -> what that means. ``queued`` is their sum.
ENDS: Dict[str, str] = {
    "dequeued": "taken from the qdisc",
    "bypassed": "given to the driver at once: no qdisc, or an idle one",
    "dropped": "freed as a drop while it waited",
    "split": "cut into segments, which go on in its place",
    "consumed": "freed as used, though neither sent nor split",
    "stale": "its skb became another packet: the end was not seen",
    "timed_out": "nothing was seen of it for too long",
    "open": "still waiting when the counting ended",
}
#: What becomes of those that were taken from the qdisc. ``taken`` is their sum.
TAKEN_ENDS: Dict[str, str] = {
    "sent": "handed to the driver",
    "taken_dropped": "freed as a drop",
    "taken_split": "cut into segments",
    "taken_consumed": "freed as used, though neither sent nor split",
    "taken_stale": "its skb became another packet",
    "taken_timed_out": "nothing was seen of it for too long",
    "taken_open": "not yet with the driver when the counting ended",
}
#: What else is counted per queue.
_OTHERS = (
    "queued", "taken", "requeued", "refused", "segments", "children", "reordered", "bulks",
    "bytes",
)  # fmt: skip
_VLAN_NONE = 0xFFFF
_QLEN_UNKNOWN = 0xFFFFFFFF
#: Criteria of a filter that the record of a packet can answer.
_KEPT = frozenset(
    ("vlan", "eth_type", "family", "protocol", "src_ip", "dst_ip", "src_port", "dst_port",
     "icmp_type")
)  # fmt: skip
_TCP = 6
_PARENT_ROOT = 0xFFFFFFFF


class QdiscOptions(NamedTuple):
    """What to measure, and what to show.

    :ivar netns: inode number of the namespace, 0: all.
    :ivar devices: empty: all.
    :ivar queue: number of the only transmit queue, -1: all.
    :ivar threshold_ns: shortest wait of a packet that is shown one by one.
    :ivar timeout_s: a packet that nothing was seen of for so long is given up.
    :ivar order: look for packets that overtake others of their flow.
    """

    filter: PacketFilter = PacketFilter()
    netns: int = 0
    devices: Tuple[Device, ...] = ()
    queue: int = -1
    details: bool = False
    threshold_ns: int = 0
    timeout_s: float = 30.0
    order: bool = False
    explain: bool = False


class _Layout:
    """Reads unpacked ``struct nt_queued``."""

    def __init__(self, obj: BpfObject) -> None:
        layout = obj.types.struct(obj.manifest["events"][1])
        self.codec = layout.codec
        self.at = {name: place for place, name in enumerate(layout.names)}

    def row(self, record: _Record) -> _Key:
        """The queue it is in."""
        start = self.at["row__netns"]
        return tuple(record[start : start + 4])


class QdiscEngine(Engine):
    """One run: ``qdisc_stats`` and ``hist`` records per queue, and packets one by one if wanted."""

    counters = ("rejects", "passed", "splits")

    def __init__(
        self, obj: BpfObject, options: QdiscOptions, lookups: Optional[Lookups] = None
    ) -> None:
        super().__init__(obj, lookups)
        self._options = options
        self.counts_events = self.makes_records = options.details
        self.has_threshold = options.threshold_ns > 0
        self.sweep_s = max(0.5, min(5.0, options.timeout_s / 2))
        self._layout = _Layout(obj)
        self._at = self._layout.at
        self._under_way = UnderWay(obj, self._layout, ("queued",))
        row = obj.types.struct("nt_qdisc_row")
        self._row_at = {name: place for place, name in enumerate(row.names)}
        self._ends = by_number(obj, "nt_qdisc_count", "NT_COUNT_")
        self._places = {name: number for number, name in self._ends.items()}
        self._times = by_number(obj, "nt_qdisc_time", "NT_TIME_")
        self._waits = obj.types.enum("nt_qdisc_state")["NT_QDISC_WAITS"]
        self._epoch = 1
        self._hists: Dict[_Key, KernelHistogram] = {}
        self._lengths: Dict[Tuple[_Key, str], List[int]] = {}
        self._before: Dict[_Key, Dict[str, int]] = {}
        self._drops_before: Dict[_Key, int] = {}
        self._given_up: "Counter[Tuple[_Key, str]]" = Counter()
        self._kinds: Dict[_Key, Tuple[str, int]] = {}
        self._reasons: Optional[reasons.ReasonNames] = None
        self._shown = 0
        self._configure()

    # -- what the run calls --------------------------------------------------------------------

    def header(self) -> Dict[str, Any]:
        """The devices that were named."""
        return {
            "devices": [
                {
                    "interface": device.name,
                    "ifindex": device.ifindex,
                    "netns_inum": device.netns_inum,
                    "kind": device.kind,
                }
                for device in self._options.devices
            ]
        }

    def begin(self) -> None:
        """Fill the maps, then open the entry."""
        for device in self._options.devices:
            self.obj.map("chosen_devices").update((device.netns_inum, device.ifindex), 1)
        packet_filter.fill(self.obj, self._options.filter)
        self.obj.configure(enabled=1, entry_open=1)

    def channel(self) -> Optional[Any]:
        """Packets that have ended."""
        return self.obj.channel("events") if self._options.details else None

    def take(self, records: Iterable[Any], writer: "Writer") -> int:
        """Show packets that have ended."""
        before = self._shown
        for record in records:
            self._packet(record, self._ends[record[self._at["end"]]], writer)
        return self._shown - before

    def sweep(self, writer: "Writer") -> None:
        """Give up packets nothing was seen of for too long."""
        for record in self._under_way.overdue(self.now_ns - int(self._options.timeout_s * 1e9)):
            self._give_up(record, "timed_out", writer)

    def report(self, writer: "Writer", last: bool) -> None:
        """Counts and times: of the interval, or of the whole run."""
        epoch, self._epoch = self._epoch, self._epoch + 1
        self.obj.configure(epoch=self._epoch)
        waiting: "Counter[Tuple[_Key, str]]" = Counter()
        if not last:  # at the end, finish() has counted them
            for record in self._under_way.all():
                waiting[self._layout.row(record), self._end_of(record, "open")] += 1
        rows = self._read_rows()
        drops = self._read_drops(last)
        if self._narrow is not None:
            return  # these would be counts of other packets, too
        times = self._read_times(last, epoch)
        for key in sorted(rows, key=self._place):
            for time_of, hist in sorted(times.get(key, {}).items()):
                name = self._times.get(time_of, "unknown({})".format(time_of))
                self._record_hist(name, key, hist, writer, last)
            self._report_row(key, rows[key], drops.get(key, []), waiting, writer, last)

    def stop(self) -> None:
        """Take nothing new; what waits is said to wait."""
        self.obj.configure(entry_open=0)
        time.sleep(0.01)  # a program that began before that has ended by now
        self.obj.configure(enabled=0)
        time.sleep(0.01)

    def finish(self, writer: "Writer") -> None:
        """Take what is still waiting as open."""
        for record in self._under_way.all():
            self._give_up(record, "open", writer)

    def totals(self) -> Dict[str, Any]:
        """All queues together, and what was not followed."""
        sums: "Counter[str]" = Counter()
        holds = True
        for key, values in self._read_rows().items():
            counts = self._counts(key, values, self._given_up)
            holds = holds and _holds(counts)
            sums.update(counts)
        names = ("queued", *ENDS, "taken", *TAKEN_ENDS)
        fields: Dict[str, Any] = {
            "counts": dict({name: sums[name] for name in names}, matched=self.matched()),
            "invariant": {
                "started": sums["queued"],
                "completed": sums["dequeued"] + sums["bypassed"] + sums["split"],
                "elsewhere": sums["consumed"],
                "lost_track": 0,
                "merged": 0,
                **{name: sums[name] for name in ("dropped", "stale", "timed_out", "open")},
                "holds": holds,
            },
        }
        if self._options.explain:
            known = explain_names(self.obj)
            rejected = self.obj.map("rejects").sums()
            fields["explain"] = {known[i]: n for i, n in enumerate(rejected) if n and i in known}
        return fields

    def narrow(self, flt: PacketFilter) -> None:
        """See :meth:`Engine.narrow`."""
        if not self._options.details:
            raise UsageProblem(
                "a filter cannot be applied to this recording: it holds counts, not packets. "
                "Record with --details."
            )
        lacking = sorted(flt.used - _KEPT)
        if lacking:
            raise UsageProblem(
                "--{} cannot be had from this recording: packets are kept without it.".format(
                    lacking[0].replace("_", "-")
                )
            )
        super().narrow(flt)

    def state(self) -> Dict[str, Any]:
        """Packets given up so far."""
        given_up = [[list(key), end, n] for (key, end), n in self._given_up.items()]
        return {**super().state(), "given_up": given_up}

    def restore(self, state: Dict[str, Any]) -> None:
        """See :meth:`Engine.restore`."""
        super().restore(state)
        for key, end, count in state["given_up"]:
            self._given_up[tuple(map(int, key)), str(end)] = int(count)

    def matched(self) -> int:
        """Packets that passed the filter."""
        return sum(self.obj.map("passed").sums())

    def hooks(self) -> int:
        """Entry, dequeue, driver and its answer, free."""
        return 5 * self.matched()

    def resume(self, writer: "Writer") -> None:
        """What waited when the programs fell asleep went on unseen."""
        for record in self._under_way.given_up():
            self._give_up(record, "timed_out", writer)

    # -- inside --------------------------------------------------------------------------------

    def _configure(self) -> None:
        options = self._options
        flags = self.obj.types.enum("nt_qdisc_flag")
        wanted = (
            ("NT_QDISC_DETAILS", options.details),
            ("NT_QDISC_ORDER", options.order),
            ("NT_QDISC_EXPLAIN", options.explain),
            ("NT_QDISC_BY_DEVICE", bool(options.devices)),
            ("NT_QDISC_BY_QUEUE", options.queue >= 0),
        )
        self.obj.configure(
            enabled=0,
            flags=sum(flags[name] for name, on in wanted if on),
            threshold_ns=options.threshold_ns,
            netns=options.netns,
            queue=max(0, options.queue),
            epoch=self._epoch,
        )
        packet_filter.prepare(self.obj, options.filter)
        self.obj.resize("chosen_devices", max(1, len(options.devices)))

    def _read_rows(self) -> Dict[_Key, _Record]:
        """``struct nt_qdisc_row`` by queue; what never held a packet has none."""
        queues = self.obj.map("queues")
        rows = {}
        for key_bytes, value in queues.items_bytes():
            key, row = queues.key.codec.unpack(key_bytes), queues.value.codec.unpack(value)
            rows[key] = row
            kind = row[self._row_at["kind"]].partition(b"\0")[0]
            self._kinds[key] = (
                kind.decode("ascii", "replace"), row[self._row_at["parent"]]
            )  # fmt: skip
        return rows

    def _end_of(self, record: _Record, end: str) -> str:
        return end if record[self._at["state"]] == self._waits else "taken_" + end

    def _give_up(self, record: _Record, end: str, writer: "Writer") -> None:
        """Count an end that the kernel side does not count."""
        end = self._end_of(record, end)
        self._given_up[self._layout.row(record), end] += 1
        if not self._options.details or not self._is_slow(record, self.now_ns):
            return
        if self.gate.passes(self._identity(record) if self.gate.shift else 0):
            self._packet(record, end, writer)

    def _identity(self, record: _Record) -> int:
        first = self._at["tuple__src"]
        src, dst, *rest = record[first : first + 7]
        tuple_bytes = src + dst + struct.pack("<HHHBB", *rest)
        return budget.identity(tuple_bytes, record[self._at["number"]])

    def _is_slow(self, record: _Record, now_ns: int) -> bool:
        """Whether it has waited long enough to be shown."""
        start, taken = record[self._at["start_ns"]], record[self._at["taken_ns"]]
        if not self._options.threshold_ns:
            return True
        return bool(start and (taken or now_ns) - start >= self._options.threshold_ns)

    def _counts(
        self, key: _Key, values: _Record, given_up: "Counter[Tuple[_Key, str]]"
    ) -> Dict[str, int]:
        """Everything counted of a queue, by name."""
        words = _words(values[self._row_at["counts"]], 8)
        counts = {name: words[self._places[name]] for name in _OTHERS}
        for name in (*ENDS, *TAKEN_ENDS):
            if name in self._places:
                counts[name] = words[self._places[name]]
            else:
                counts[name] = given_up[key, name]
        return counts

    def _report_row(
        self,
        key: _Key,
        values: _Record,
        drops: List[Dict[str, Any]],
        waiting: "Counter[Tuple[_Key, str]]",
        writer: "Writer",
        last: bool,
    ) -> None:
        counts = self._counts(key, values, self._given_up + waiting)
        shown = dict(counts)
        if not last:
            before = self._before.get(key, {})
            still = ("open", "taken_open")
            shown = {n: c if n in still else c - before.get(n, 0) for n, c in counts.items()}
            self._before[key] = counts
        lengths = {name: self._length(key, name, values, last) for name in ("qlen", "bulk")}
        if not last and not any(shown.values()):
            return
        for name, hist in lengths.items():
            if hist.count:
                self._record_hist(name, key, hist, writer, last)
        writer.record(
            "qdisc_stats",
            agg="total" if last else "delta",
            **self._where(key),
            **shown,
            holds=_holds(counts) if last else None,
            drops=drops or None,
        )

    def _length(self, key: _Key, name: str, values: _Record, last: bool) -> Histogram:
        """Lengths of the queue at arrivals, or of bulks; without exact extremes but the largest."""
        slots = _words(values[self._row_at[name + "s"]], 4)
        words = _words(values[self._row_at["counts"]], 8)
        now = [*slots, words[self._places[name + "_sum"]]]
        before = [0] * len(now)
        if not last:
            before = self._lengths.get((key, name), before)
            self._lengths[key, name] = now
        hist = Histogram("packets", 0, 0, len(slots) - 1)
        hist.slots = {n: (c - before[n]) & 0xFFFFFFFF for n, c in enumerate(slots) if c - before[n]}
        hist.count = sum(hist.slots.values())
        hist.sum = now[-1] - before[-1]
        if last and hist.count:
            hist.max = values[self._row_at[name + "_max"]]
        return hist

    def _read_times(self, last: bool, epoch: int) -> Dict[_Key, Dict[int, Histogram]]:
        """Histograms of times by queue and ``enum nt_qdisc_time``; only those with samples."""
        times = self.obj.map("queue_times")
        found: Dict[_Key, Dict[int, Histogram]] = {}
        for key_bytes, value in times.items_bytes():
            key = times.key.codec.unpack(key_bytes)
            hist = self._hists.setdefault(key, KernelHistogram())
            delta = hist.update(kernel_cells(value, times.percpu_stride), epoch)
            shown = hist.total if last else delta
            if shown.count:
                found.setdefault(key[:4], {})[key[4]] = shown
        return found

    def _record_hist(
        self, name: str, key: _Key, hist: Histogram, writer: "Writer", last: bool
    ) -> None:
        where = self._where(key)
        labels = {label: where[label] for label in where if where[label] is not None}
        agg = "total" if last else "delta"
        writer.record("hist", name=name, labels=labels, agg=agg, **hist.fields())

    def _where(self, key: _Key) -> Dict[str, Any]:
        """Device, transmit queue and qdisc."""
        netns, ifindex, queue, handle = key
        kind, parent = self._kinds.get(key, ("", 0))
        return {
            "interface": self._name(key),
            "ifindex": ifindex,
            "netns_inum": netns,
            "tx_queue": queue,
            "qdisc": kind or None,
            "handle": _handle_text(handle),
            "parent": _handle_text(parent),
        }

    def _name(self, key: _Key) -> str:
        for device in self._options.devices:
            if (device.netns_inum, device.ifindex) == key[:2]:
                return device.name
        return self.lookups.device(key[0], key[1]) or "if{}".format(key[1])

    def _place(self, key: _Key) -> Tuple[Any, ...]:
        return (self._name(key), *key)

    def _read_drops(self, last: bool) -> Dict[_Key, List[Dict[str, Any]]]:
        """Drops by queue: why, where, and how many."""
        drops = self.obj.map("queue_drops")
        found: Dict[_Key, List[Dict[str, Any]]] = {}
        for key, count in drops.items():
            before = 0 if last else self._drops_before.get(key, 0)
            if not last:
                self._drops_before[key] = count
            if count == before:
                continue
            *row, location, reason, state = key
            fields = self._freed(location, reason)
            fields["state"] = "queued" if state == self._waits else "taken"
            found.setdefault(tuple(row), []).append(dict(fields, count=count - before))
        for rows in found.values():
            rows.sort(key=lambda one: (-one["count"], str(one.get("reason"))))
        return found

    def _freed(self, location: int, reason: int) -> Dict[str, Any]:
        """A free as fields of a record."""
        if self._reasons is None:
            self._reasons = reasons.ReasonNames(self.lookups.enum)
            self.lookups.forget()
        fields: Dict[str, Any] = {}
        symbol = self.lookups.symbol(location)
        if symbol:
            fields["caller"], fields["caller_offset"] = symbol.name, symbol.offset
        if self._reasons:
            fields["reason"], fields["reason_code"] = self._reasons.name(reason), reason
        if fields.get("reason") in (None, "not_specified"):
            # Freed between entry and driver: nobody but the qdisc had it.
            fields["reason"], fields["reason_derived"] = "qdisc_drop", True
        return fields

    def _packet(self, record: _Record, end: str, writer: "Writer") -> None:
        at = self._at
        packet = flow.Flow.from_kernel(record[at["tuple__src"] : at["tuple__src"] + 7])
        vlan = None if record[at["vlan_id"]] == _VLAN_NONE else record[at["vlan_id"]] & 0xFFF
        if self._narrow and not self._narrow.matches(Packet.from_flow(packet, vlan)):
            return
        start, taken, ended = (record[at[name]] for name in ("start_ns", "taken_ns", "last_ns"))
        if end in ("open", "timed_out", "taken_open", "taken_timed_out"):
            ended = self.now_ns
        if not self._is_slow(record, ended):
            return  # the kernel has looked at this; a replay may ask for slower ones
        key = self._layout.row(record)
        if key not in self._kinds:
            self._learn_kind(key)
        waited = end not in ("bypassed",) and start
        dropped = end in ("dropped", "taken_dropped")
        qlen = record[at["qlen"]]
        writer.record(
            "qdisc_packet",
            ts_ns=start or taken or ended,
            end=end,
            **self._where(key),
            **packet.fields(),
            wait_ns=max(0, (taken or ended) - start) if waited else None,
            driver_ns=max(0, ended - taken) if taken and end == "sent" else None,
            total_ns=max(0, ended - (start or taken)),
            qlen_packets=None if qlen == _QLEN_UNKNOWN or not start else qlen,
            position=record[at["position"]] if record[at["bulk"]] else None,
            bulk_packets=record[at["bulk"]] or None,
            requeues=record[at["requeues"]] or None,
            reordered=bool(record[at["late"]]) if self._options.order else None,
            child=True if record[at["child"]] else None,
            len_bytes=record[at["len_bytes"]],
            segs=record[at["segs"]],
            vlan_id=vlan,
            ip_id=record[at["ip_id"]] or None if packet.family else None,
            tcp_seq=record[at["seq"]] if packet.protocol == _TCP else None,
            cpu=record[at["cpu"]],
            **(self._freed(record[at["location"]], record[at["reason"]]) if dropped else {}),
        )
        self._shown += 1

    def _learn_kind(self, key: _Key) -> None:
        row = self.obj.map("queues").lookup(key)
        if row is not None:
            kind = row[self._row_at["kind"]].partition(b"\0")[0].decode("ascii", "replace")
            self._kinds[key] = (kind, row[self._row_at["parent"]])


def _holds(counts: Dict[str, int]) -> bool:
    """Whether the ways to leave add up, before the driver's door and at it."""
    return counts["queued"] == sum(counts[name] for name in ENDS) and counts["taken"] == sum(
        counts[name] for name in TAKEN_ENDS
    )


def _words(raw: bytes, size: int) -> List[int]:
    return [int.from_bytes(raw[n : n + size], "little") for n in range(0, len(raw), size)]


def _handle_text(handle: int) -> str:
    """As tc writes it: ``1:``, ``1:10``, root; ``0:`` for qdiscs nobody gave one."""
    if handle == _PARENT_ROOT:
        return "root"
    minor = handle & 0xFFFF
    return "{:x}:{}".format(handle >> 16, "{:x}".format(minor) if minor else "")
