# SPDX-License-Identifier: GPL-2.0-only
"""The two sides of a path through this host: the devices packets come in by and leave by."""

from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

from ntools.errors import UsageProblem
from ntools.host.devices import Device, Devices
from ntools.host.uplink import expand

__all__ = ["Sides", "locate"]

#: Behind these is the host's own stack: what it sends comes in there, what it gets leaves.
_STACK_KINDS = ("ovs-internal", "bridge")
_WIRE, _STACK = "wire", "stack"


@dataclass(frozen=True)
class Sides:
    """Devices of both sides, bonds and VLAN devices resolved.

    :ivar a: where the forward direction comes in.
    :ivar b: where it leaves.
    :ivar stack: those whose other end is the host's own stack.
    :ivar vlan_ids: (ifindex, VLAN id) where a VLAN device narrows its lower device.
    """

    a: Tuple[Device, ...]
    b: Tuple[Device, ...]
    stack: Tuple[Device, ...] = ()
    vlan_ids: Tuple[Tuple[int, int], ...] = ()

    def fields(self) -> Dict[str, Any]:
        """As JSON can carry it."""
        return {
            "a": [device.fields() for device in self.a],
            "b": [device.fields() for device in self.b],
            "stack": [device.fields() for device in self.stack],
            "vlan_ids": [list(pair) for pair in self.vlan_ids],
        }

    @classmethod
    def from_fields(cls, fields: Dict[str, Any]) -> "Sides":
        """The inverse of :meth:`fields`.

        :raises KeyError, TypeError: these are not the fields of two sides.
        """
        a, b, stack = (
            tuple(Device.from_fields(device) for device in fields[name])
            for name in ("a", "b", "stack")
        )
        vlans = tuple((int(ifindex), int(vlan)) for ifindex, vlan in fields["vlan_ids"])
        return cls(a, b, stack, vlans)


def locate(rx: str, tx: str, devices: Devices) -> Sides:
    """The sides a user names.

    :param rx, tx: lists of devices, each ``NAME`` or ``NETNS/NAME``, with ``@wire`` or ``@stack``
        where the kind of the device does not tell which end of it is meant.
    :raises UsageProblem: no such device, or one that is on both sides.
    """
    found: Dict[str, List[Tuple[Device, Any, bool]]] = {}
    for side, names in (("a", rx), ("b", tx)):
        found[side] = []
        for name in [word.strip() for word in names.split(",") if word.strip()]:
            plain, _, end = name.rpartition("@")
            if not plain or end not in (_WIRE, _STACK):
                plain, end = name, ""
            for device in devices.find_list(plain):
                stack = end == _STACK or (not end and device.kind in _STACK_KINDS)
                lower = expand(device, devices.of(device)) if not end else [(device, None)]
                found[side] += [(one, vlan, stack) for one, vlan in lower]
        if not found[side]:
            raise UsageProblem(
                "no device named in --{}-iface '{}'.".format("rx" if side == "a" else "tx", names)
            )
    a, b = (tuple(dict.fromkeys(one for one, _, _ in found[side])) for side in ("a", "b"))
    both = [device.name for device in a if device in b]
    if both:
        raise UsageProblem(
            "'{}' is on both sides: --rx-iface is where requests come in, --tx-iface where they "
            "leave.".format(both[0])
        )
    everything = found["a"] + found["b"]
    return Sides(
        a,
        b,
        tuple(dict.fromkeys(device for device, _, stack in everything if stack)),
        tuple(dict.fromkeys((device.ifindex, vlan) for device, vlan, _ in everything if vlan)),
    )
