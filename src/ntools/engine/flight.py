# SPDX-License-Identifier: GPL-2.0-only
"""The flight engine: packets of VM interfaces followed from stage to stage.

The kernel side (``bpf/flight.bpf.c``) keeps one flight per packet under way and histograms per
pair of stages. This side sweeps the flights that no longer move, pronounces the verdicts, and
checks that everything that started has ended in exactly one way.
"""

import time
from collections import Counter
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    Iterable,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from ntools._loader import BpfObject
from ntools.engine import filter as packet_filter
from ntools.engine.flight_record import FlightReader
from ntools.engine.lookups import Lookups
from ntools.engine.run import Engine
from ntools.engine.under_way import UnderWay
from ntools.engine.words import by_number, device_bits, explain_names, peer_kinds
from ntools.errors import UsageProblem
from ntools.host.devices import Device
from ntools.host.guests import MacSeed
from ntools.host.uplink import Topology
from ntools.model import flow, stages
from ntools.model.filter import PacketFilter
from ntools.model.hist import KernelHistogram, kernel_cells
from ntools.model.packet import Packet

if TYPE_CHECKING:  # records are made here and written by whoever runs us
    from ntools.output.jsonl import Writer

__all__ = ["FlightEngine", "FlightOptions"]

_VLAN_NONE = 0xFFFF
_ANY_VLAN = _VLAN_NONE
#: Rows of the ``by`` list; more ways to end than this are summed up by the kernel's counters only.
_MAX_GROUPS = 1000
#: Histograms, and how many a device needs: of both directions, the pairs that end at it.
_PAIRS, _PAIRS_OF_DEVICE = 256, 8
#: Guest addresses, and how many there may be for each VM interface if there are many.
_MACS, _MACS_OF_VM = 128, 4
#: Criteria of a filter that the record of a packet can answer.
_KEPT = frozenset(
    ("vlan", "eth_type", "family", "protocol", "src_ip", "dst_ip", "src_port", "dst_port",
     "icmp_type")
)  # fmt: skip
_COUNTS_ONLY = (
    "a filter cannot be applied to this recording: it holds counts, not packets. Record with "
    "--details."
)


class FlightOptions(NamedTuple):
    """What to follow and how.

    :ivar directions: of "rx" (from the VM), "tx" (to the VM).
    :ivar until: "guest": packets to the VM end when copied to its memory; "tap": at the tap.
    :ivar only_uplink: packets from the VM end at an uplink only, not at the first device.
    :ivar threshold_ns: least total of a packet that is shown one by one.
    :ivar timeout_s: a flight that has not moved for so long gets its verdict.
    :ivar filter: packets to take.
    """

    directions: Tuple[str, ...] = ("rx", "tx")
    until: str = "guest"
    multicast: bool = False
    only_uplink: bool = False
    threshold_ns: int = 0
    timeout_s: float = 1.0
    explain: bool = False
    filter: PacketFilter = PacketFilter()


class _Group(NamedTuple):
    """Flights that ended the same way."""

    direction: str
    end: str
    last_stage: str
    next_stage: Optional[str]
    interface: Optional[str]
    reason: Optional[str]
    derived: bool
    caller: Optional[str]


class FlightEngine(Engine):
    """Runs ``flight`` (summary) or ``flight_detail`` (packet records).

    :param topology: the VM interfaces and what surrounds them.
    :param seeds: addresses of the guests known beforehand, per VM interface.
    """

    counters = ("rejects",)

    def __init__(
        self,
        obj: BpfObject,
        topology: Topology,
        seeds: Sequence[Tuple[Device, MacSeed]],
        options: FlightOptions,
        lookups: Optional[Lookups] = None,
    ) -> None:
        super().__init__(obj, lookups)
        self._topology = topology
        self._seeds = seeds
        self._options = options
        self._details = "events" in obj.manifest
        self.counts_events = self.makes_records = self._details
        self.has_threshold = options.threshold_ns > 0
        self.sweep_s = options.timeout_s / 2
        self._kernel_ends = by_number(obj, "nt_end", "NT_END_")
        self._epoch = 1
        self._hists: Dict[Tuple[Any, ...], KernelHistogram] = {}
        self._groups: "Counter[_Group]" = Counter()
        self._fresh: "Counter[_Group]" = Counter()
        self._examples: Dict[_Group, Dict[str, Any]] = {}
        self._swept: "Counter[Tuple[str, str]]" = Counter()
        self._before: Dict[str, Dict[str, int]] = {}
        self._names = {device.ifindex: device.name for device in self._all_devices()}
        self._kinds = peer_kinds(topology)
        self._read = FlightReader(obj, self.lookups, self._names, self._kinds)
        self._at = self._read.at
        self._under_way = UnderWay(obj, self._read, ("flights", "parked"))
        self._roles = self._find_roles()
        self._seen: Set[str] = set()
        self._macs_refused = 0
        self._invariant: Dict[str, Any] = {}
        self._configure()

    # -- what the run calls --------------------------------------------------------------------

    def header(self) -> Dict[str, Any]:
        """Devices and their roles."""
        roles = [
            ("vnet", self._topology.vm),
            ("phy", self._topology.uplinks),
            ("int", self._topology.host_ports),
            ("other", self._topology.others),
        ]
        return {
            "devices": [
                {
                    "interface": device.name,
                    "ifindex": device.ifindex,
                    "netns_inum": device.netns_inum,
                    "role": role,
                    "kind": device.kind,
                    "master": self._names.get(device.master or 0),
                }
                for role, devices in roles
                for device in devices
            ]
        }

    def begin(self) -> None:
        """Fill devices and guest addresses, then open the entry."""
        vlans = dict(self._topology.vlan_ids)
        for key, role_bits in self._roles.items():
            self.obj.map("devices").update(key, (role_bits, vlans.get(key[1], _ANY_VLAN), 0))
        macs = self.obj.map("macs")
        # A guest that invents addresses fills the table of a switch, and must not fill ours.
        for device, seed in self._seeds[: macs.entries]:
            mac = flow.parse_mac(seed.mac)
            exact = (mac, 0) if seed.exact else (b"\0" + mac[1:], 1)
            macs.update(exact, device.ifindex)
        self._macs_refused = max(0, len(self._seeds) - macs.entries)
        self._seen = {
            stages.from_symbol(row.point) for row in self.obj.report if row.attach is not None
        }
        packet_filter.fill(self.obj, self._options.filter)
        bits = device_bits(self.obj, (ifindex for _, ifindex in self._roles))
        self.obj.configure(enabled=1, entry_open=1, device_bits=bits)

    def channel(self) -> Optional[Any]:
        """The packets of the detail build."""
        return self.obj.channel("events") if self._details else None

    def take(self, records: Iterable[Any], writer: "Writer") -> int:
        """Show completed packets."""
        shown = 0
        start, last = self._at["start_ns"], self._at["last_ns"]
        for record in records:
            if 0 <= record[last] - record[start] < self._options.threshold_ns:
                continue  # the kernel has looked at this; a replay may ask for slower ones
            self._packet(record, "completed", writer)
            shown += 1
        return shown

    def sweep(self, writer: "Writer") -> None:
        """Pronounce on flights that no longer move, and fetch those the kernel ended."""
        self._fetch_graves(writer)
        for record in self._under_way.overdue(self.now_ns - int(self._options.timeout_s * 1e9)):
            self._pronounce(record, self._verdict(record), writer)

    def report(self, writer: "Writer", last: bool) -> None:
        """Histograms and ends: of the interval, or of the whole run at its end."""
        if last:
            self._fetch_graves(writer)
        epoch, self._epoch = self._epoch, self._epoch + 1
        self.obj.configure(epoch=self._epoch)
        if self._narrow is None:  # else these would be times of other packets, too
            self._report_hists(writer, last, epoch)
        self._report_ends(writer, last)

    def stop(self) -> None:
        """Close the entry, and give packets under way the chance to end."""
        self.obj.configure(entry_open=0)
        deadline = time.monotonic() + min(self._options.timeout_s, 0.25)
        while time.monotonic() < deadline and self._under_way.any():
            time.sleep(0.01)
        self.obj.configure(enabled=0)
        time.sleep(0.01)  # a program that began before that has ended by now

    def finish(self, writer: "Writer") -> None:
        """Take what is still under way as open."""
        self.sweep(writer)
        for record in self._under_way.all():
            self._pronounce(record, "open", writer)

    def losses(self) -> Dict[str, int]:
        """Loss by cause, with the addresses of guests that found no room at the start."""
        found = super().losses()
        if self._macs_refused:
            found["mac_full"] = found.get("mac_full", 0) + self._macs_refused
        return found

    def totals(self) -> Dict[str, Any]:
        """The accounting of both directions together, and the rejections of --explain."""
        fields: Dict[str, Any] = {"invariant": self._invariant}
        if self._options.explain:
            names = explain_names(self.obj)
            fields["explain"] = {
                names[index]: count
                for index, count in enumerate(self.obj.map("rejects").sums())
                if count and index in names
            }
        return fields

    def narrow(self, flt: PacketFilter) -> None:
        """See :meth:`Engine.narrow`."""
        if not self._details:
            raise UsageProblem(_COUNTS_ONLY)
        lacking = sorted(flt.used - _KEPT)
        if lacking:
            raise UsageProblem(
                "--{} cannot be had from this recording: packets are kept without it.".format(
                    lacking[0].replace("_", "-")
                )
            )
        super().narrow(flt)

    def state(self) -> Dict[str, Any]:
        """Ends pronounced here, and their groups."""
        return {
            **super().state(),
            "macs_refused": self._macs_refused,
            "swept": [[list(key), count] for key, count in self._swept.items()],
            "groups": [
                [list(group), count, self._examples[group]] for group, count in self._groups.items()
            ],
        }

    def restore(self, state: Dict[str, Any]) -> None:
        """See :meth:`Engine.restore`."""
        super().restore(state)
        self._macs_refused = int(state["macs_refused"])
        for (direction, end), count in state["swept"]:
            self._swept[direction, end] = int(count)
        for group, count, example in state["groups"]:
            self._groups[_Group(*group)] = int(count)
            self._examples[_Group(*group)] = dict(example)

    def matched(self) -> int:
        """Packets followed, and those there was no room for."""
        sums = self.obj.map("ends").sums()
        width = len(self._kernel_ends)
        return sum(sums[::width])  # "started" is the first of each direction

    def hooks(self) -> int:
        """At most so often the programs ran for packets they follow."""
        return self.matched() * len(self._seen)

    def resume(self, writer: "Writer") -> None:
        """What was under way when the programs fell asleep went on unseen."""
        self._fetch_graves(writer)
        for record in self._under_way.given_up():
            self._pronounce(record, "lost_track", writer)

    # -- inside --------------------------------------------------------------------------------

    def _configure(self) -> None:
        types = self.obj.types
        directions = types.enum("nt_direction")
        flags = types.enum("nt_flight_flag")
        options = self._options
        bits = [1 << directions["NT_DIRECTION_" + name.upper()] for name in options.directions]
        wanted = (
            ("NT_FLIGHT_MULTICAST", options.multicast),
            ("NT_FLIGHT_UNTIL_TAP", options.until == "tap"),
            ("NT_FLIGHT_ONLY_UPLINK", options.only_uplink),
            ("NT_FLIGHT_EXPLAIN", options.explain),
        )
        self.obj.configure(
            enabled=0,
            directions=sum(bits),
            flags=sum(flags[name] for name, on in wanted if on),
            threshold_ns=options.threshold_ns,
            epoch=self._epoch,
        )
        packet_filter.prepare(self.obj, options.filter)
        self._make_room()

    def _find_roles(self) -> Dict[Tuple[int, int], int]:
        """Bits of ``enum nt_role`` by namespace and index of each device that has any."""
        roles = self.obj.types.enum("nt_role")
        found: Dict[Tuple[int, int], int] = {}
        for role, devices in (
            ("VNET", self._topology.vm),
            ("PORT", self._topology.entry_ports),
            ("UPLINK", self._topology.uplinks),
            ("HOST", self._topology.host_ports),
            ("PASS", self._topology.pass_through),
        ):
            for device in devices:
                key = device.netns_inum, device.ifindex
                found[key] = found.get(key, 0) | roles["NT_ROLE_" + role]
        return found

    def _make_room(self) -> None:
        """Maps for as many devices as there are; those of a few have their default size."""
        self.obj.resize("devices", max(1, len(self._roles)))
        self.obj.resize("pairs", max(_PAIRS, len(self._roles) * _PAIRS_OF_DEVICE))
        self.obj.resize("macs", max(_MACS, len(self._topology.vm) * _MACS_OF_VM))

    def _all_devices(self) -> Iterable[Device]:
        topology = self._topology
        for devices in (
            topology.vm, topology.entry_ports, topology.uplinks, topology.host_ports,
            topology.pass_through, topology.others,
        ):  # fmt: skip
            yield from devices

    def _fetch_graves(self, writer: "Writer") -> None:
        for record in self._under_way.graves():
            end = self._kernel_ends.get(record[self._at["end"]], "")
            end = end if end in stages.ENDS else "stale"  # what it stands for is not known
            self._describe(record, end, writer)

    def _verdict(self, record: Tuple[Any, ...]) -> str:
        """A free event later than the last stage is a drop; else nothing is known of the end."""
        if record[self._at["free_ns"]] > record[self._at["last_ns"]]:
            return "dropped"
        left = self._read.last_stage(record) == "dev.xmit"
        if left and self._options.only_uplink and record[self._at["direction"]] == 0:
            return "elsewhere"
        return "timed_out"

    def _pronounce(self, record: Tuple[Any, ...], end: str, writer: "Writer") -> None:
        """Count an end that the kernel side does not count."""
        self._swept[self._read.direction(record), end] += 1
        self._describe(record, end, writer)

    def _describe(self, record: Tuple[Any, ...], end: str, writer: "Writer") -> None:
        at = self._at
        direction = self._read.direction(record)
        last_stage = self._read.last_stage(record)
        evidence = self._read.evidence(record) if end == "dropped" else {}
        group = _Group(
            direction,
            end,
            last_stage,
            self._expected(direction, last_stage, record),
            self._names.get(record[at["last_ifindex"]]),
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
        if self._details and self.gate.passes(self._identity(record)):
            self._packet(record, end, writer, group.next_stage, evidence)

    def _identity(self, record: Tuple[Any, ...]) -> int:
        return self._read.identity(record) if self.gate.shift else 0  # 0: everything is shown

    def _expected(self, direction: str, stage: str, record: Tuple[Any, ...]) -> Optional[str]:
        through = {"openvswitch": ("ovs",), "bridge": ("bridge",)}.get(
            self._topology.bridge_kind or "", ()
        )
        vnet = any(
            device.ifindex == record[self._at["last_ifindex"]] for device in self._topology.vm
        )
        if direction == "rx":
            role = "vnet" if vnet else "out"
        else:
            role = "vnet" if vnet else "phy"
        for device in (role, ""):
            found = stages.expected_next("vm." + direction, stage, self._seen, through, device)
            if found:
                return found
        return None

    def _packet(
        self,
        record: Tuple[Any, ...],
        end: str,
        writer: "Writer",
        next_stage: Optional[str] = None,
        evidence: Optional[Dict[str, Any]] = None,
    ) -> None:
        read = self._read
        if read.direction(record) not in self._options.directions:
            return  # a replay may ask for one of two
        if self._narrow and not self._narrow.matches(
            Packet.from_flow(read.flow(record), read.vlan(record))
        ):
            return
        fields = read.packet(record, end)
        fields.update(next_stage=next_stage, evidence=evidence or None)
        writer.record("packet", ts_ns=record[self._at["start_ns"]], **fields)

    def _report_hists(self, writer: "Writer", last: bool, epoch: int) -> None:
        pairs = self.obj.map("pairs")
        rows = []
        for key_bytes, value in pairs.items_bytes():
            key = pairs.key.codec.unpack(key_bytes)
            hist = self._hists.setdefault(key, KernelHistogram())
            delta = hist.update(kernel_cells(value, pairs.percpu_stride), epoch)
            shown = hist.total if last else delta
            labels = self._labels(key)
            if shown.count and labels["direction"] in self._options.directions:
                rows.append((labels, shown))
        rows.sort(key=_pair_order)
        for labels, shown in rows:
            writer.record(
                "hist", name="stage", labels=labels, agg="total" if last else "delta",
                **shown.fields()
            )  # fmt: skip

    def _labels(self, key: Tuple[Any, ...]) -> Dict[str, Any]:
        direction, start, end, _, ifindex = key
        labels = {
            "direction": "tx" if direction else "rx",
            "from": self._read.stages[start],
            "to": self._read.stages[end],
        }
        if labels["to"] == stages.TOTAL:
            labels["peer_interface"] = self._read.name(ifindex)
            labels["peer_kind"] = self._kinds.get(ifindex, "other")
        elif ifindex:
            labels["interface"] = self._read.name(ifindex)
        return labels

    def _report_ends(self, writer: "Writer", last: bool) -> None:
        totals = self._totals()
        groups = self._groups if last else self._fresh
        everything: "Counter[str]" = Counter()
        for direction in self._options.directions:
            counts = totals[direction]
            if last:
                everything.update(counts)
                shown = counts
            else:
                before = self._before.get(direction, {})
                shown = {name: counts[name] - before.get(name, 0) for name in counts}
            if self._narrow is not None:
                continue
            writer.record(
                "ends",
                direction=direction,
                interface=",".join(device.name for device in self._topology.vm),
                agg="total" if last else "delta",
                holds=_holds(counts) if last else None,
                by=[
                    {
                        "end": group.end,
                        "last_stage": group.last_stage,
                        "next_stage": group.next_stage,
                        "interface": group.interface,
                        "reason": group.reason,
                        "reason_derived": group.derived or None,
                        "caller": group.caller,
                        "count": count,
                        "example": self._examples[group],
                    }
                    for group, count in groups.most_common()
                    if group.direction == direction
                ],
                **shown,
            )
        self._before = totals
        self._fresh = Counter()
        if last:
            self._invariant = dict(everything, holds=_holds(everything))

    def _totals(self) -> Dict[str, Dict[str, int]]:
        """Per direction: started, and every way to end."""
        sums = self.obj.map("ends").sums()
        width = len(self._kernel_ends)
        totals = {}
        for direction, base in (("rx", 0), ("tx", width)):
            kernel = {self._kernel_ends[n]: sums[base + n] for n in range(width)}
            counts = {"started": kernel.pop("started")}
            for name in stages.ENDS:
                counts[name] = kernel.get(name, 0) + self._swept[direction, name]
            totals[direction] = counts
        return totals


def _holds(counts: Dict[str, int]) -> bool:
    return counts["started"] == sum(counts[name] for name in stages.ENDS)


def _pair_order(row: Tuple[Dict[str, Any], Any]) -> Tuple[Any, ...]:
    labels = row[0]
    path = "vm." + labels["direction"]
    total = labels["to"] == stages.TOTAL
    return (
        labels["direction"],
        total,
        stages.position(path, labels["from"]),
        stages.position(path, labels["to"]),
        labels.get("interface", labels.get("peer_interface", "")),
    )
