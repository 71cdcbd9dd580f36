# SPDX-License-Identifier: GPL-2.0-only
"""Which devices stand around a VM: the wire, the host itself, its neighbours.

Starts at the tap and follows what the kernel and Open vSwitch tell about masters, ports,
bonds, VLAN devices, veth pairs between two switches and patch ports.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

from ntools.errors import UsageProblem
from ntools.host import ovs as _ovs
from ntools.host.devices import Device, Devices

__all__ = ["Topology", "discover", "expand"]

_STACKED = ("bond", "team", "vlan")
_SWITCHES = ("bridge", "ovs-system")
_TUNNEL_KINDS = ("vxlan", "geneve")
_DEVICE_LISTS = ("vm", "entry_ports", "uplinks", "host_ports", "pass_through", "others")
_SHOWN = 8
_MAX_DEPTH = 8  # as the kernel (MAX_NEST_DEV)

# The port of the switch inside a NIC that leads to a virtual or sub-function.
_REPRESENTOR = re.compile(r"(c\d+)?pf\d+(vf|sf)\d+$")

_Known = Dict[Tuple[int, Optional[int], int], List[Tuple[Device, Optional[int]]]]
_LayoutReader = Callable[[], Optional[_ovs.OvsLayout]]


@dataclass(frozen=True)
class Topology:
    """The devices around one or more VM interfaces, in the order they were met.

    :ivar entry_ports: packets to the VM that do not come from this host appear first at
        dev.rx of one of these.
    :ivar uplinks: the wire side, bonds and VLAN devices resolved.
    :ivar host_ports: the host's own side: bridge masters, OVS internal ports. Its packets to
        the VM pass dev.xmit there.
    :ivar pass_through: dev.xmit here is not an end, the packet goes on in this host.
    :ivar others: further ports: neighbour VMs, tunnels, containers.
    :ivar vlan_ids: (ifindex, VLAN id) where a VLAN device narrows an entry port or uplink.
    :ivar bridge_kind: ``bridge``, ``openvswitch`` or None without a switch.
    :ivar ovs: what the OVS database said, None when it was not asked or did not answer.
    :ivar description: lines for people.
    """

    vm: Tuple[Device, ...]
    entry_ports: Tuple[Device, ...]
    uplinks: Tuple[Device, ...]
    host_ports: Tuple[Device, ...]
    pass_through: Tuple[Device, ...]
    others: Tuple[Device, ...]
    vlan_ids: Tuple[Tuple[int, int], ...]
    bridge_kind: Optional[str]
    ovs: Optional[_ovs.OvsLayout]
    description: Tuple[str, ...]
    warnings: Tuple[str, ...]

    def fields(self) -> Dict[str, Any]:
        """The topology as JSON can carry it, without what OVS said."""
        found: Dict[str, Any] = {
            name: [device.fields() for device in getattr(self, name)] for name in _DEVICE_LISTS
        }
        found["vlan_ids"] = [list(pair) for pair in self.vlan_ids]
        found["bridge_kind"] = self.bridge_kind
        found["description"] = list(self.description)
        found["warnings"] = list(self.warnings)
        return found

    @classmethod
    def from_fields(cls, fields: Dict[str, Any]) -> "Topology":
        """The inverse of :meth:`fields`.

        :raises KeyError, TypeError: these are not the fields of a topology.
        """
        return cls(
            vlan_ids=tuple((int(ifindex), int(vlan)) for ifindex, vlan in fields["vlan_ids"]),
            bridge_kind=fields["bridge_kind"],
            ovs=None,
            description=tuple(str(line) for line in fields["description"]),
            warnings=tuple(str(line) for line in fields["warnings"]),
            **{
                name: tuple(Device.from_fields(device) for device in fields[name])
                for name in _DEVICE_LISTS
            },
        )


def expand(device: Device, devices: Devices) -> List[Tuple[Device, Optional[int]]]:
    """The devices a packet really enters or leaves by, each with the VLAN id that narrows it.

    A bond or team is its slaves, a VLAN device its lower device; anything else is itself.
    """
    return _unstack(device, None, devices, {})


def _unstack(
    device: Device,
    vlan_id: Optional[int],
    devices: Devices,
    passed: Dict[int, Device],
    depth: int = _MAX_DEPTH,
    known: Optional[_Known] = None,
) -> List[Tuple[Device, Optional[int]]]:
    if device.kind not in _STACKED or not device.lower or depth == 0:
        return [(device, vlan_id)]
    passed[device.ifindex] = device
    if device.kind == "vlan":  # of several tags the lowest device sees the outermost
        vlan_id = device.vlan_id
    # What several stand on is resolved once: the ways through a stack multiply from level to level.
    known = {} if known is None else known
    key = (device.ifindex, vlan_id, depth)
    if key not in known:
        found: List[Tuple[Device, Optional[int]]] = []
        for ifindex in device.lower:
            lower = devices.by_index(ifindex)
            if lower is not None:
                found += _unstack(lower, vlan_id, devices, passed, depth - 1, known)
        known[key] = list(dict.fromkeys(found))
    return known[key]


def is_representor(device: Device) -> bool:
    """Whether the device stands for a virtual function inside a switching NIC."""
    return device.phys_port_name is not None and bool(_REPRESENTOR.match(device.phys_port_name))


def discover(
    vm: Sequence[Device],
    devices: Devices,
    phy: Sequence[Device] = (),
    read_layout: _LayoutReader = _ovs.read_layout,
) -> Topology:
    """Find what surrounds the interfaces of a VM.

    :param vm: taps of one namespace.
    :param devices: snapshot of that namespace.
    :param phy: the user's choice of uplinks (``--phy-interface``), instead of those found.
    :raises UsageProblem: devices of different namespaces.
    """
    for device in (*vm, *phy):
        if device.netns_inum != devices.netns_inum:
            raise UsageProblem(
                f"device '{device.name}' is in another network namespace than the VM's interfaces."
            )
    walk = _Walk(devices, read_layout)
    for device in vm:
        walk.vm(device)
    return walk.topology(vm, phy)


@dataclass
class _Walk:
    """Everything met so far; each device once."""

    devices: Devices
    read_layout: _LayoutReader
    leaves: Dict[int, Device] = field(default_factory=dict)
    hosts: Dict[int, Device] = field(default_factory=dict)
    passed: Dict[int, Device] = field(default_factory=dict)
    vlans: Dict[int, Optional[int]] = field(default_factory=dict)
    kinds: List[str] = field(default_factory=list)
    switches: List[str] = field(default_factory=list)
    warnings: List[str] = field(default_factory=list)
    _waiting: List[Tuple[Device, Device]] = field(default_factory=list)
    _visited: Set[Tuple[int, int]] = field(default_factory=set)
    _hardware: Dict[Tuple[int, int], bool] = field(default_factory=dict)
    _layout: Optional[_ovs.OvsLayout] = None
    _asked: bool = False

    def vm(self, device: Device) -> None:
        master = self.devices.by_index(device.master)
        if master is None and device.kind == "macvtap":
            for lower in self._ports(device):
                self.port(lower)
        elif master is None:
            self._without_master(device)
        elif master.kind in _SWITCHES:
            self.switch(device, master)
        else:
            self._warn(f"{device.name} is in '{master.name}' ({master.kind}), which is no switch")
        while self._waiting:  # one after the other: a chain of switches may be of any length
            self._visit(*self._waiting.pop(0))

    def switch(self, member: Device, master: Device) -> None:
        """Note a switch whose ports are to be visited; ``member`` is where it was met."""
        if (member.ifindex, master.ifindex) not in self._visited:
            self._visited.add((member.ifindex, master.ifindex))
            self._waiting.append((member, master))

    def _visit(self, member: Device, master: Device) -> None:
        """Visit all ports of the switch ``member`` is in."""
        if master.kind == "bridge":
            self._note_switch(master.name, "bridge")
            self.hosts[master.ifindex] = self.passed[master.ifindex] = master
            ports = self._ports(master)
        else:
            ports = self._ovs_ports(member, master)
        # What is next to the VM first, other switches after it.
        for port in sorted(ports, key=lambda device: device.peer is not None):
            if port.ifindex != member.ifindex:
                self.port(port)

    def port(self, port: Device) -> None:
        """Go from a port down and through to where its packets come from."""
        for device, vlan_id in _unstack(port, None, self.devices, self.passed):
            peer = self.devices.by_index(device.peer)
            beyond = self.devices.by_index(peer.master) if peer is not None else None
            if device.kind == "bridge":  # a VLAN device on a bridge is a port of another one
                self.switch(device, device)
            elif peer is not None and beyond is not None and beyond.kind in _SWITCHES:
                if device.ifindex not in self.passed:
                    self.passed[device.ifindex] = device
                    self.passed[peer.ifindex] = peer
                    self.switch(peer, beyond)
            elif device.kind == "ovs-internal":
                self.hosts[device.ifindex] = self.passed[device.ifindex] = device
            else:
                self._leaf(device, vlan_id)

    def _leaf(self, device: Device, vlan_id: Optional[int]) -> None:
        self.leaves[device.ifindex] = device
        if self.vlans.setdefault(device.ifindex, vlan_id) != vlan_id:
            self.vlans[device.ifindex] = None  # by several ways: no VLAN narrows it

    def topology(self, vm: Sequence[Device], phy: Sequence[Device]) -> Topology:
        own = {device.ifindex for device in vm}
        leaves = [device for device in self.leaves.values() if device.ifindex not in own]
        found = [device for device in leaves if _is_uplink(device)]
        others = [device for device in leaves if not _is_uplink(device)]
        if phy:
            uplinks = self._chosen(phy)
            chosen = {device.ifindex for device in uplinks}
            others = [device for device in others if device.ifindex not in chosen]
        elif found:
            uplinks = found
        else:
            uplinks = [device for device in self.devices if _is_uplink(device)]
            self._warn_fallback(uplinks, others)
        self._pass_stacks()
        entry = list(dict.fromkeys((*uplinks, *others)))
        vlans = tuple((d.ifindex, v) for d in entry for v in [self.vlans.get(d.ifindex)] if v)
        kind = self.kinds[0] if self.kinds else None
        return Topology(
            vm=tuple(vm),
            entry_ports=tuple(entry),
            uplinks=tuple(uplinks),
            host_ports=tuple(self.hosts.values()),
            pass_through=tuple(self.passed.values()),
            others=tuple(others),
            vlan_ids=vlans,
            bridge_kind=kind,
            ovs=self._layout,
            description=tuple(self._describe(vm, uplinks, others)),
            warnings=tuple(self.warnings),
        )

    def _chosen(self, phy: Sequence[Device]) -> List[Device]:
        passed: Dict[int, Device] = {}
        chosen: Dict[Device, Optional[int]] = {}
        for device in phy:
            chosen.update(_unstack(device, None, self.devices, passed))
        self.passed.update(passed)
        self.vlans.update((device.ifindex, vlan_id) for device, vlan_id in chosen.items())
        return list(chosen)

    def _pass_stacks(self) -> None:
        """Also pass what routed packets take: everything stacked on hardware, OVS internals."""
        for device in self.devices:
            stacked = device.kind in (*_STACKED, "bridge") and self._on_hardware(device, _MAX_DEPTH)
            if stacked or device.kind == "ovs-internal":
                self.passed[device.ifindex] = device

    def _on_hardware(self, device: Device, depth: int) -> bool:
        known = self._hardware.get((device.ifindex, depth))
        if known is None:
            known = depth > 0 and any(
                one.has_bus_device or self._on_hardware(one, depth - 1)
                for one in self._ports(device)
            )
            self._hardware[device.ifindex, depth] = known
        return known

    def _without_master(self, device: Device) -> None:
        layout = self._ovs_layout()
        bridge = layout.bridge_of(device.name) if layout is not None else None
        if bridge is not None and not bridge.in_kernel:
            self._warn(
                f"{device.name} is in OVS bridge '{bridge.name}' with the user-space datapath: "
                "its packets do not pass the kernel's switch"
            )
        else:
            self._warn(f"{device.name} is in no bridge")

    def _ovs_layout(self) -> Optional[_ovs.OvsLayout]:
        if not self._asked:
            self._asked = True
            self._layout = self.read_layout()
        return self._layout

    def _ports(self, device: Device) -> List[Device]:
        """The devices below ``device`` in this namespace."""
        below = [self.devices.by_index(ifindex) for ifindex in device.lower]
        return [one for one in below if one is not None]

    def _ovs_ports(self, member: Device, master: Device) -> List[Device]:
        layout = self._ovs_layout()
        bridge = layout.bridge_of(member.name) if layout is not None else None
        if layout is None or bridge is None:
            self._note_switch(master.name, "openvswitch")
            self._warn(
                f"no answer from the OVS database about {member.name}: "
                "all ports of the datapath are taken"
            )
            internal = [d for d in self.devices if d.kind == "ovs-internal"]
            return self._ports(master) + internal
        found: List[Device] = []
        for one in layout.connected(bridge):
            self._note_switch(one.name, "openvswitch")
            behind = [device for port in one.ports for device in self._ovs_devices(port, master)]
            found += sorted(behind, key=lambda device: device.ifindex)
        return found

    def _ovs_devices(self, port: _ovs.OvsPort, master: Device) -> List[Device]:
        """Devices behind one OVS interface: a tunnel's is shared and has a name of its own.

        A device of that name which is not in the datapath is one OVS could not add.
        """
        named = self.devices.by_name(port.name)
        if named is not None:
            inside = named.kind == "ovs-internal" or named.master == master.ifindex
            return [named] if inside else []
        if port.type in _TUNNEL_KINDS:
            return [device for device in self._ports(master) if device.kind == port.type]
        return []

    def _note_switch(self, name: str, kind: str) -> None:
        if kind not in self.kinds:
            self.kinds.append(kind)
        text = f"{name} ({kind})"
        if text not in self.switches:
            self.switches.append(text)

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def _warn_fallback(self, uplinks: Sequence[Device], others: Sequence[Device]) -> None:
        if any(device.kind in _TUNNEL_KINDS for device in others):
            return
        if uplinks:
            self._warn("no uplink found, taking all devices with hardware: " + _names(uplinks))
        else:
            self._warn("no uplink found and no device with hardware in this network namespace")

    def _describe(
        self, vm: Sequence[Device], uplinks: Sequence[Device], others: Sequence[Device]
    ) -> List[str]:
        bonds = [
            d for d in self.passed.values() if d.kind in ("bond", "team") and _holds(d, uplinks)
        ]
        wire = _names(uplinks) + (f" of {_names(bonds)}" if bonds else "")
        rows = [
            ("VM", _names(vm)),
            ("switch", ", ".join(self.switches)),
            ("uplink", wire),
            ("host", _names(list(self.hosts.values()))),
            ("other", _names(others)),
        ]
        return [f"{label:<7}{text}" for label, text in rows if text]


def _is_uplink(device: Device) -> bool:
    return device.has_bus_device and not is_representor(device)


def _holds(device: Device, uplinks: Sequence[Device]) -> bool:
    return any(uplink.ifindex in device.lower for uplink in uplinks)


def _names(devices: Sequence[Device]) -> str:
    shown = ", ".join(device.name for device in devices[:_SHOWN])
    return shown + (f" and {len(devices) - _SHOWN} more" if len(devices) > _SHOWN else "")
