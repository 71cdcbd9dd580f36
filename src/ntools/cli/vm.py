# SPDX-License-Identifier: GPL-2.0-only
"""Options that name a VM, resolved: its interfaces, what surrounds them, the guest's addresses."""

import argparse
from typing import Any, Dict, List, NamedTuple, Tuple

from ntools.errors import UsageProblem
from ntools.host import blind, guests, ovs, uplink
from ntools.host.devices import Device, Devices
from ntools.host.guests import MacSeed
from ntools.host.uplink import Topology
from ntools.model.filter import PacketFilter, Rule

__all__ = ["Place", "add_guest_address", "locate", "named_devices"]

_TAPS = ("tap", "macvtap", "tun")


class Place(NamedTuple):
    """Where the packets of a VM pass.

    :ivar seeds: addresses of the guests known beforehand.
    :ivar warnings: why packets may pass unseen.
    """

    topology: Topology
    seeds: Tuple[Tuple[Device, MacSeed], ...]
    warnings: Tuple[str, ...]

    def fields(self) -> Dict[str, Any]:
        """The place as a recording keeps it; seeds are for the kernel only."""
        return {"topology": self.topology.fields(), "warnings": list(self.warnings)}

    @classmethod
    def from_fields(cls, fields: Dict[str, Any]) -> "Place":
        """The inverse of :meth:`fields`."""
        warnings = tuple(str(line) for line in fields["warnings"])
        return cls(Topology.from_fields(fields["topology"]), (), warnings)


def locate(args: argparse.Namespace) -> Place:
    """Resolve ``--vm-interface``, ``--vm``, ``--phy-interface`` and ``--netns``.

    :raises UsageProblem: no such device or VM, or none named.
    """
    devices = Devices.snapshot(args.netns)
    chosen = _vm_devices(args, devices)
    if chosen and chosen[0].netns_inum != devices.netns_inum:
        devices = devices.of(chosen[0])
    phy = devices.find_list(args.phy_interface) if args.phy_interface else []
    clash = [device.name for device in phy if device in chosen]
    if clash:
        raise UsageProblem("'{}' cannot be both VM and physical interface.".format(clash[0]))
    layout = ovs.read_layout() if _on_ovs(chosen, devices) else None
    topology = uplink.discover(chosen, devices, phy, lambda: layout)
    holders = guests.Holders()
    seeds: List[Tuple[Device, MacSeed]] = []
    for device in chosen:
        found = guests.seed_macs(device, devices, None, layout)
        if not any(seed.exact for seed in found):  # only then is it worth a walk through /proc
            found = guests.seed_macs(device, devices, holders.of(device), layout)
        seeds += [(device, seed) for seed in found]
    warnings = list(topology.warnings)
    warnings += blind.blind_spots([*topology.vm, *topology.uplinks], devices, layout)
    warnings += [
        "'{}' is a {} device, not a tap: treating it as the interface of a VM".format(
            device.name, device.kind
        )
        for device in chosen
        if device.kind not in _TAPS
    ]
    return Place(topology, tuple(seeds), tuple(warnings))


def add_guest_address(args: argparse.Namespace, flt: PacketFilter) -> PacketFilter:
    """The filter with ``--vm-ip``: the address on either side.

    :raises UsageProblem: together with ``--src-ip``, ``--dst-ip`` or ``--filters-file``.
    """
    if not args.vm_ip:
        return flt
    if args.src_ip or args.dst_ip:
        raise UsageProblem("--vm-ip cannot be combined with --src-ip or --dst-ip.")
    if args.filters_file is not None:
        raise UsageProblem("--vm-ip cannot be combined with --filters-file.")
    rule = flt.rules[0] if flt.rules else Rule()
    rule = rule._replace(src_ip=(args.vm_ip,), bidir=True)
    try:
        rule.check()
    except ValueError as error:
        raise UsageProblem("{}.".format(str(error).replace("--src-ip", "--vm-ip"))) from None
    return PacketFilter((rule,))


def named_devices(args: argparse.Namespace, devices: Devices) -> List[Device]:
    """The devices of ``--vm`` or ``--vm-interface``, none if neither is given.

    :raises UsageProblem: no such device or VM, or both options.
    """
    interfaces = getattr(args, "vm_interface", None)
    if args.vm and interfaces:
        raise UsageProblem("give --vm or --vm-interface, not both.")
    if args.vm:
        found = guests.guest_devices(guests.find_guest(args.vm), devices)
        if not found:
            raise UsageProblem(
                "VM '{}' has no tap device in this network namespace. See --netns.".format(args.vm)
            )
        return found
    return devices.find_list(interfaces) if interfaces else []


def _vm_devices(args: argparse.Namespace, devices: Devices) -> List[Device]:
    found = named_devices(args, devices)
    if found:
        return found
    taps = [device.name for device in devices if device.kind in _TAPS]
    hint = "Here are: {}.".format(", ".join(taps[:8])) if taps else "See 'ip link'."
    raise UsageProblem("no VM named: give --vm-interface NAME or --vm NAME. " + hint)


def _on_ovs(chosen: List[Device], devices: Devices) -> bool:
    masters = (devices.by_index(device.master) for device in chosen)
    return any(master is not None and master.kind == "ovs-system" for master in masters)
