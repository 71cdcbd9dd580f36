# SPDX-License-Identifier: GPL-2.0-only
"""Runs of the drop engine: packets the kernel freed as dropped, as events or as a table.

The kernel filters, finds the place and counts; names, derived reasons and classes are made here.
Whatever happens to single events, ``matched`` of the summary is the sum of what was shown, hidden
on request and lost by cause.
"""

import struct
from dataclasses import dataclass
from typing import Any, Dict, FrozenSet, Iterable, List, Optional, Sequence, Tuple

from ntools._loader import BpfObject
from ntools.engine import filter as packet_filter
from ntools.engine.drop_table import DropTable, Kind, Row
from ntools.engine.lookups import Lookups
from ntools.engine.places import Places
from ntools.engine.run import Engine
from ntools.errors import EnvironmentProblem, UsageProblem
from ntools.host.devices import Device
from ntools.model import flow, reasons
from ntools.model.filter import PacketFilter
from ntools.model.packet import PacketDecoder
from ntools.output.jsonl import Writer

__all__ = ["DIMENSIONS", "DropEngine", "DropOptions"]

#: What rows of the summary can be grouped by, and the enumerator of ``enum nt_drop_by``.
DIMENSIONS: Dict[str, Optional[str]] = {
    "reason": "NT_BY_REASON",
    "location": "NT_BY_LOCATION",
    "device": "NT_BY_DEVICE",
    "class": None,
    "netns": "NT_BY_NETNS",
    "port": "NT_BY_PORT",
    "fivetuple": "NT_BY_FIVETUPLE",
    "stack": "NT_BY_STACK",
}

#: The class of a row follows from these; the kernel always tells them apart.
_FOR_CLASS = ("NT_BY_REASON", "NT_BY_LOCATION")
_MAX_KNOWN = 4096
_LOST_EVENTS = ("ring_full", "perf_lost", "governor_dropped", "group_full")


@dataclass(frozen=True)
class DropOptions:
    """What to look for, and how to show it.

    :ivar filter: packets to take.
    :ivar group_by: names of :data:`DIMENSIONS`: a summary of rows; empty: events.
    :ivar only, without: drop reasons by name or pattern.
    :ivar locations: functions by name or pattern; packets dropped elsewhere are not wanted.
    :ivar netns: inode number of the namespace, 0: all.
    :ivar devices: empty: all.
    :ivar normal: what to do with normal frees: hide, mark, only or show.
    :ivar stacks: events carry the stack.
    :ivar count: events to show, 0: no limit.
    :ivar top: rows to show per report.
    :ivar max_entries: rows the kernel can keep.
    :ivar explain: the summary tells how many drops each step of the filter refused.
    """

    filter: PacketFilter = PacketFilter()
    group_by: Tuple[str, ...] = ()
    only: Tuple[str, ...] = ()
    without: Tuple[str, ...] = ()
    locations: Tuple[str, ...] = ()
    netns: int = 0
    devices: Tuple[Device, ...] = ()
    normal: str = "mark"
    stacks: bool = True
    count: int = 0
    top: int = 5
    max_entries: int = 10240
    explain: bool = False


class DropEngine(Engine):
    """One run: ``drop`` records, or ``drop_group`` records per interval and for the whole run.

    :ivar warnings: what the user should know before the first record.
    :raises UsageProblem: a reason or function this kernel does not have.
    :raises EnvironmentProblem: the kernel gives no reasons, or hides its symbols.
    """

    counters = ("drop_steps",)

    def __init__(
        self, obj: BpfObject, options: DropOptions, lookups: Optional[Lookups] = None
    ) -> None:
        super().__init__(obj, lookups)
        self.counts_events = not options.group_by
        self.warnings: List[str] = []
        self._options = options
        self._names = reasons.ReasonNames(self.lookups.enum)
        self._places = Places(self.lookups)
        self._facts = {
            value: name[len("NT_FACT_") :].lower()
            for name, value in obj.types.enum("nt_drop_fact").items()
        }
        self._known_facts: Dict[int, FrozenSet[str]] = {}
        self._judged: Dict[Tuple[int, int, int], Dict[str, Any]] = {}
        self._hidden_class: Dict[str, bool] = {}
        self._stacks: Dict[bytes, List[Dict[str, Any]]] = {}
        self._sent_stacks: Dict[int, str] = {}
        key, value = obj.types.struct("nt_drop_key"), obj.types.struct("nt_drop_val")
        self._table = DropTable(key, value, self._row_kind)
        self.shown = self.hidden = self.after_count = self.narrowed = 0
        self._codes, self._sense = self._wanted_reasons()
        self._configure()
        note = self.lookups.symbols_note()
        if note:
            self.warnings.append(note)

    # -- the run -------------------------------------------------------------------------------

    def begin(self) -> None:
        for code in self._codes:
            self.obj.map("drop_reasons").update(code, 1)
        for device in self._options.devices:
            self.obj.map("drop_devices").update((device.netns_inum, device.ifindex), 1)
        if self.counts_events:
            self._decode = _EventDecoder(self.obj)
        packet_filter.fill(self.obj, self._options.filter)
        super().begin()

    def header(self) -> Dict[str, Any]:
        fields: Dict[str, Any] = {}
        if self._options.devices:
            fields["devices"] = [
                {
                    "interface": device.name,
                    "ifindex": device.ifindex,
                    "netns_inum": device.netns_inum,
                    "kind": device.kind,
                }
                for device in self._options.devices
            ]
        if not self._names:
            because = "this kernel gives none; what the function tells is marked as derived"
            fields["degraded"] = [{"feature": "drop reasons", "because": because}]
        return fields

    def channel(self) -> Optional[Any]:
        return self.obj.channel() if self.counts_events else None

    def take(self, records: Iterable[Any], writer: Writer) -> int:
        if not self.counts_events:
            return 0
        before = self.shown
        for event in records:
            self._event(event, writer)
        return self.shown - before

    def report(self, writer: Writer, last: bool) -> None:
        if not self.counts_events:
            self._rows(writer, last)

    def settled(self) -> bool:
        """A program that was past the switch is not waited for by it: its event may still come."""
        return self._missing() == 0

    def matched(self) -> int:
        """Drops that passed the filter."""
        return self._steps()["matched"]

    def hooks(self) -> int:
        """Every drop is a run."""
        return self._steps()["seen"]

    def totals(self) -> Dict[str, Any]:
        steps = self._steps()
        fields: Dict[str, Any] = {
            "counts": {
                "matched": steps["matched"],
                "shown": self.shown,
                "hidden": self.hidden,
                "after_count": self.after_count,
                **({"narrowed": self.narrowed} if self._narrow else {}),
            },
            "reasons": self._totals_by_reason(),
        }
        if self._options.explain:
            fields["explain"] = {name: n for name, n in steps.items() if name != "matched"}
        return fields

    def narrow(self, flt: PacketFilter) -> None:
        """See :meth:`Engine.narrow`."""
        if not self.counts_events:
            raise UsageProblem(
                "a filter cannot be applied to this recording: it holds counts, not packets. "
                "Record with --mode event."
            )
        super().narrow(flt)

    def state(self) -> Dict[str, Any]:
        """Events shown and hidden so far."""
        return {
            **super().state(),
            "shown": self.shown,
            "hidden": self.hidden,
            "after_count": self.after_count,
        }

    def restore(self, state: Dict[str, Any]) -> None:
        """See :meth:`Engine.restore`."""
        super().restore(state)
        self.shown, self.hidden = int(state["shown"]), int(state["hidden"])
        self.after_count = int(state["after_count"])

    # -- configuration -------------------------------------------------------------------------

    def _configure(self) -> None:
        options, obj = self._options, self.obj
        sizes = obj.types.enum("nt_drop_size")
        by = obj.types.enum("nt_drop_by")
        modes = obj.types.enum("nt_drop_mode")
        if options.group_by:
            obj.resize("drop_groups", options.max_entries)
            obj.resize("events", 1)
        else:
            obj.resize("drop_groups", 1)
        if "stack" not in options.group_by:
            obj.resize("drop_stacks", 1)
        obj.resize("drop_devices", max(1, len(options.devices)))
        group_by = {DIMENSIONS[name] for name in options.group_by} | set(_FOR_CLASS)
        helpers = reasons.free_functions()
        self.lookups.expect_functions(helpers)
        locations = self._ranges(options.locations, sizes["NT_DROP_LOCATIONS"], "--location")
        obj.configure(
            mode=modes["NT_DROP_GROUPS" if options.group_by else "NT_DROP_EVENTS"],
            group_by=sum(by[name] for name in group_by if name),
            reasons=obj.types.enum("nt_drop_reasons")[self._sense],
            helpers=self._ranges(helpers, sizes["NT_DROP_HELPERS"], ""),
            locations=locations,
            by_location=int(bool(options.locations)),
            by_device=int(bool(options.devices)),
            netns=options.netns,
            stacks=int(options.stacks),
        )
        packet_filter.prepare(obj, options.filter)

    def _wanted_reasons(self) -> Tuple[FrozenSet[int], str]:
        options = self._options
        if not options.only and not options.without:
            return frozenset(), "NT_REASONS_ANY"
        if not self._names:
            raise EnvironmentProblem(
                "kernel {} gives no drop reasons. Use --location.".format(self.obj.kernel.release)
            )
        without = self._reason_codes(options.without)
        if not options.only:
            return without, "NT_REASONS_NOT"
        return self._reason_codes(options.only) - without, "NT_REASONS_ONLY"

    def _reason_codes(self, patterns: Sequence[str]) -> FrozenSet[int]:
        found: FrozenSet[int] = frozenset()
        unknown = []
        for pattern in patterns:
            try:
                found |= self._names.codes(pattern)
            except ValueError as problem:
                unknown.append(str(problem))
        if patterns and not found:
            raise UsageProblem(unknown[0] + self._similar(patterns[0]))
        self.warnings += unknown
        return found

    def _similar(self, name: str) -> str:
        import difflib

        near = difflib.get_close_matches(name.lower(), self._names.all(), 1)
        return ". Did you mean '{}'?".format(near[0]) if near else "."

    def _ranges(self, patterns: Sequence[str], room: int, option: str) -> bytes:
        """Address ranges of functions as the array of ``struct nt_range`` in the configuration."""
        found: List[Tuple[int, int]] = []
        for pattern in patterns:
            matches = self.lookups.functions(pattern)
            if not matches and option:
                note = self.lookups.symbols_note()
                if note:
                    raise EnvironmentProblem("{} needs symbols: {}.".format(option, note))
                raise UsageProblem(
                    "function '{}' is not in this kernel or its modules. See "
                    "/proc/kallsyms.".format(pattern)
                )
            found += [(first, end) for _, first, end in matches]
        merged: List[List[int]] = []
        for first, end in sorted(set(found)):
            if merged and first <= merged[-1][1]:
                merged[-1][1] = max(end, merged[-1][1])
            else:
                merged.append([first, end])
        if len(merged) > room and option:
            raise UsageProblem(
                "{} names {} functions, at most {} are possible.".format(option, len(merged), room)
            )
        flat = [word for first, end in merged[:room] for word in (first, end - first)]
        return struct.pack("<{}Q".format(len(flat)), *flat).ljust(16 * room, b"\0")

    # -- what one drop means -------------------------------------------------------------------

    def _facts_of(self, bits: int) -> FrozenSet[str]:
        known = self._known_facts.get(bits)
        if known is None:
            known = frozenset(name for value, name in self._facts.items() if bits & value)
            self._known_facts[bits] = known
        return known

    def _judge(self, code: int, location: int, bits: int) -> Dict[str, Any]:
        """Fields of reason, place and class."""
        key = (code, location, bits)
        known = self._judged.get(key)
        if known is not None:
            return known
        facts = self._facts_of(bits)
        place = self._places.frame(location)
        function = place["function"]
        own = self._names.name(code) if self._names else None
        fields: Dict[str, Any] = {
            "reason": own,
            "reason_code": code if self._names else None,
            "caller": function,
            "caller_offset": place["offset"],
            "caller_module": place.get("module"),
        }
        found = reasons.classify(own, function, facts)
        fields["class"] = found.name
        self._hidden_class[found.name] = found.hidden
        if function and own in (None, "not_specified"):
            derived = reasons.derive(function, facts)
            if derived:
                fields["reason"] = derived.reason
                fields["reason_derived"] = True
                fields["reason_also"] = list(derived.also) or None
        if len(self._judged) >= _MAX_KNOWN:
            self._judged.clear()
        self._judged[key] = fields
        return fields

    def _is_wanted(self, name: str) -> bool:
        """Whether drops of this class are shown."""
        if self._options.normal == "hide":
            return not self._hidden_class[name]
        return self._options.normal != "only" or name != "drop"

    def _device_fields(self, ifindex: int, netns: int, told: str = "") -> Dict[str, Any]:
        name = told or (self.lookups.device(netns, ifindex) if ifindex and netns else None)
        return {
            "interface": name or None,
            "ifindex": ifindex or None,
            "netns_inum": netns or None,
        }

    # -- events --------------------------------------------------------------------------------

    def _event(self, event: Tuple[Any, ...], writer: Writer) -> None:
        if self._options.count and self.shown >= self._options.count:
            self.after_count += 1
            return
        decode = self._decode
        if self._narrow and not self._narrow.matches(decode.packet.packet(event)):
            self.narrowed += 1
            return
        location = event[decode.location]
        frames = self._frames(event[decode.stack][: event[decode.stack_bytes]], location)
        judged = self._judge(event[decode.reason], location, event[decode.facts])
        if not self._is_wanted(judged["class"]):
            self.hidden += 1
            return
        device = _text(event[decode.device])
        writer.record(
            "drop",
            event[decode.ts_ns],
            **self._device_fields(event[decode.ifindex], event[decode.netns], device),
            **judged,
            **decode.packet.fields(event),
            len_bytes=event[decode.len_bytes],
            data_len_bytes=event[decode.data_len_bytes] or None,
            truesize_bytes=event[decode.truesize_bytes],
            cpu=event[decode.cpu],
            pid=event[decode.pid],
            tgid=event[decode.tgid],
            comm=event[decode.comm].partition(b"\0")[0],
            stack=frames or None,
        )
        self.shown += 1

    def _frames(self, raw: bytes, location: int) -> List[Dict[str, Any]]:
        """The frames of a stack from the place of the drop outwards."""
        known = self._stacks.get(raw)
        if known is None:
            known = self._places.stack(raw, location)
            if len(self._stacks) >= _MAX_KNOWN:
                self._stacks.clear()
            self._stacks[raw] = known
        return known

    # -- summary -------------------------------------------------------------------------------

    def _rows(self, writer: Writer, last: bool) -> None:
        """One report: the largest rows, then what all others have together."""
        table = self._table
        groups = self.obj.map("drop_groups")
        largest, rest = table.read(groups.items_bytes(), self._options.top, last)
        self.shown, self.hidden = table.shown, table.hidden
        for row in largest:
            fields = self._row_fields(groups.key.codec.unpack(row.key))
            self._emit_row(row, fields, writer, last)
        self._emit_row(rest, {"other": True}, writer, last)

    def _emit_row(self, row: Row, fields: Dict[str, Any], writer: Writer, last: bool) -> None:
        stack, location = fields.pop("stack", None), fields.pop("stack_location", 0)
        if stack:
            fields["stack_id"] = self._send_stack(stack, location, writer)
        writer.record(
            "drop_group",
            group_by=list(self._options.group_by),
            agg="total" if last else "delta",
            drop_packets=row.total_packets if last else row.packets,
            drop_bytes=row.total_bytes if last else row.bytes,
            total_packets=row.total_packets,
            total_bytes=row.total_bytes,
            first_ns=row.first_ns,
            last_ns=row.last_ns,
            **fields,
        )

    def _row_kind(self, key: Tuple[Any, ...]) -> Kind:
        """What a row of the kernel shows of its reason, place and device."""
        location, _, code, ifindex, netns, bits = key[-6:]
        by = self._options.group_by
        judged = self._judge(code, location, bits)
        same: List[Any] = [judged["class"]]
        if "reason" in by:
            same += [judged["reason"], code]
        if "location" in by:
            same.append(judged["caller"] or location)
        if "device" in by:
            same += [ifindex, netns]
        elif "netns" in by:
            same.append(netns)
        return Kind(tuple(same), self._is_wanted(judged["class"]))

    def _row_fields(self, key: Tuple[Any, ...]) -> Dict[str, Any]:
        """The fields of a row that its grouping shows."""
        location, stack, code, ifindex, netns, bits = key[-6:]
        by = self._options.group_by
        judged = self._judge(code, location, bits)
        fields: Dict[str, Any] = {"class": judged["class"]}
        for name, value in judged.items():
            if name.startswith("reason") and "reason" in by:
                fields[name] = value
            if name in ("caller", "caller_module") and "location" in by:
                fields[name] = value
        if "device" in by:
            fields.update(self._device_fields(ifindex, netns))
        elif "netns" in by:
            fields["netns_inum"] = netns or None
        if "fivetuple" in by or "port" in by:
            fields.update(_flow_fields(key[:-6], "fivetuple" in by))
        if "stack" in by:
            fields.update(stack=stack, stack_location=location)
        return fields

    def _send_stack(self, number: int, location: int, writer: Writer) -> Optional[str]:
        """Id of a stack; its record goes out before the first use."""
        if number not in self._sent_stacks:
            raw = self.obj.map("drop_stacks").lookup(number)
            if raw is None:
                return None
            self._sent_stacks[number] = "{:016x}".format(number)
            frames = self._places.stack(raw, location)
            writer.record("stack", id=self._sent_stacks[number], kind="kernel", frames=frames)
        return self._sent_stacks[number]

    # -- accounting ----------------------------------------------------------------------------

    def _steps(self) -> Dict[str, int]:
        """How many drops ended at each step of the filter; ``matched`` passed all."""
        numbers = self.obj.types.enum("nt_drop_step")
        rejects = self.obj.types.enum("nt_reject")
        counts = self.obj.map("drop_steps").sums()
        first = numbers["NT_STEP_FILTER"]
        found = {
            name[len("NT_STEP_") :].lower(): counts[number]
            for name, number in numbers.items()
            if number < first
        }
        for name, number in rejects.items():
            if 0 < number < rejects["NT_REJECT_MAX"]:
                found["filter_" + name[len("NT_REJECT_") :].lower()] = counts[first + number]
        return found

    def _missing(self) -> int:
        """Matched drops that are neither shown nor counted as lost yet."""
        lost = self.losses()
        accounted = sum(lost.get(cause, 0) for cause in _LOST_EVENTS)
        if self.counts_events:
            accounted += self.shown + self.hidden + self.after_count
            held = self.event_totals()
            accounted += held["sampled_out"] + held["switched_off"]
        else:
            accounted += self._table.packets(self.obj.map("drop_groups").items_bytes())
        return self._steps()["matched"] - accounted

    def _totals_by_reason(self) -> Dict[str, int]:
        """Drops by the kernel's own reason, exact whatever became of the events."""
        sizes = self.obj.types.enum("nt_drop_size")
        core, each, rest = (
            sizes["NT_DROP_CORE"], sizes["NT_DROP_SUBSYS"], sizes["NT_DROP_REASONS"] - 1
        )  # fmt: skip
        totals: Dict[str, int] = {}
        for slot, values in self.obj.map("drop_totals").items():
            packets = sum(value[0] for value in values)
            if not packets:
                continue
            if slot < core:
                code = slot
            else:
                subsystem, number = divmod(slot - core, each)
                code = (subsystem + 1) << 16 | number
            if not self._names:
                name = "none"
            else:
                name = "other" if slot == rest else self._names.name(code)
            totals[name] = totals.get(name, 0) + packets
        return totals


class _EventDecoder:
    """Places of the fields in the tuples of the channel."""

    def __init__(self, obj: BpfObject) -> None:
        record = obj.types.struct("nt_drop_event")
        self.packet = PacketDecoder(record.names, obj.types.enum("nt_pkt_flag"))
        at = {name: place for place, name in enumerate(record.names)}
        self.ts_ns, self.location, self.reason = at["ts_ns"], at["location"], at["reason"]
        self.ifindex, self.netns, self.device = at["ifindex"], at["netns"], at["device"]
        self.len_bytes, self.data_len_bytes = at["len_bytes"], at["data_len_bytes"]
        self.truesize_bytes, self.facts = at["truesize_bytes"], at["facts"]
        self.cpu, self.pid, self.tgid, self.comm = at["cpu"], at["pid"], at["tgid"], at["comm"]
        self.stack, self.stack_bytes = at["stack"], at["stack_bytes"]


def _text(raw: bytes) -> str:
    """A device name, "" if these bytes cannot be one."""
    name = raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return name if name.isprintable() and not set(name) & set("/: ") else ""


def _flow_fields(values: Tuple[Any, ...], whole: bool) -> Dict[str, Any]:
    packet = flow.Flow.from_kernel(values)
    fields = packet.fields()
    if whole:
        return fields
    kept = ("family", "protocol", "dst_port", "eth_type")
    return {name: fields[name] for name in kept if name in fields}
